"""The `quality` suite: how near samples are to real clips, by judges that need no simulator.

Of each number there is the same of real clips beside it, at the same count: a distance has its
floor, the classifier its real-versus-real, sharpness, flicker and warp error those of real clips,
and nearest training clips those of held-out ones. `evals.ranking` checks that each of them ranks
real clips above their controls. docs/evals.md has definitions, sources and protocols.
"""

from __future__ import annotations

import itertools
import os
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import numpy as np
from tqdm import tqdm

from sora_jax.data.pipeline import Source
from sora_jax.errors import UserError
from sora_jax.evals import efficientnet, flow, i3d, memorisation, realism, reference, suites
from sora_jax.evals import exhibit as exhibits
from sora_jax.evals.adherence import Judge
from sora_jax.evals.exhibit import Exhibit, Real
from sora_jax.evals.memorisation import Memorisation
from sora_jax.evals.reconstruction import Mean, Reconstruction, appearance, grey_ratio
from sora_jax.evals.reference import BATCH, Clips, batches
from sora_jax.evals.report import Results
from sora_jax.typing import UInt8

SIGNS = ("sharpness", "flicker", "warp error")
SHARES = ("copies", "still")
Pieces = Iterable[UInt8[np.ndarray, "_ t h w 3"]]  # of any size
Rows = dict[str, np.ndarray]  # kind -> a row, or a number, per clip


def _moving(clips: Clips) -> bool:
  return clips.shape[1] >= i3d.FRAMES


class Measure:
  """All that is read off a clip: afterwards it is not needed any more.

  Kinds: `image` (EfficientNet's features of the middle frame), `content` and `motion` (see
  `memorisation`), `sharpness`; of clips, which have 16 frames or more, also `video` (I3D's logits),
  `flicker` and `warp error`.
  """

  def __init__(self) -> None:
    """Raises UserError: the packages with the networks are not installed."""
    self.image_features, self.video_features = efficientnet.Features(), i3d.Features()

  def image(self, clips: Clips) -> np.ndarray:
    """Features of the middle frame."""
    return self.image_features(clips[:, clips.shape[1] // 2])

  def numbers(self, clips: Clips) -> Rows:
    """All that needs no network."""
    found = {kind: np.asarray(values) for kind, values in appearance(clips).items()}
    found |= {"content": memorisation.content(clips), "motion": memorisation.motion(clips)}
    return found | ({"warp error": flow.warp_error(clips)} if _moving(clips) else {})

  def __call__(self, clips: Clips) -> Rows:
    found = self.numbers(clips) | {"image": self.image(clips)}
    return found | ({"video": self.video_features(clips)} if _moving(clips) else {})

  def all(self, pieces: Pieces, measure: Callable[[Clips], Rows] | None = None) -> Rows:
    """Rows of all batches of clips, whatever their size."""
    parts = [(measure or self)(clips) for clips in pieces]
    return {kind: np.concatenate([part[kind] for part in parts]) for kind in parts[0]}

  def real(self, source: Source, name: str, numbers: int) -> Rows:
    """Rows of real clips, their features kept in the user's cache; `numbers` of the first few."""
    first = itertools.islice(batches(source, f"real clips: {name}"), -(-numbers // BATCH))
    rows = self.all((clips for _, clips in first), self.numbers)
    rows = {kind: values[:numbers] for kind, values in rows.items()}
    rows["image"] = reference.cached(source, self.image, name, "efficientnet")
    if _moving(source[0]["video"][None]):
      rows["video"] = reference.cached(source, self.video_features, name)
    return rows


class Bench:
  """Real clips, measured once; any number of sets of clips may be held against them."""

  def __init__(self, real: Real):
    """Raises UserError: missing packages, or real clips that cannot be read."""
    self.real, self.measure = real, Measure()
    count = len(real.heldout)
    self.heldout = self.measure.real(real.heldout, "floor", count)
    self.reference = self.measure.real(real.reference, "reference", count)

  def distances(self, sets: Mapping[str, Rows]) -> dict[str, Any]:
    """Fréchet and kernel distances of sets, and of the held-out clips, to the reference."""
    out: dict[str, Any] = {}
    for kind, frechet in (("video", "FVD"), ("image", "Frechet")):
      if kind in self.heldout:
        chosen = {name: rows[kind] for name, rows in sets.items() if kind in rows}
        chosen["floor (real)"] = self.heldout[kind]
        out[f"{kind} distance"] = reference.distances(chosen, self.reference[kind], frechet)
    return out

  def signs(self, rows: Rows) -> dict[str, Any]:
    """Sharpness, flicker and warp error of samples and of held-out clips; 1 is the best ratio."""
    out = {}
    for sign in SIGNS:
      if sign in rows:
        means = {"samples": Mean(), "real": Mean()}
        means["samples"].add(rows[sign])
        means["real"].add(self.heldout[sign])
        made, real = (mean.mean for mean in means.values())
        ratio = made / real if sign == "sharpness" else grey_ratio(made, real)
        out[sign] = {k: x.summary() for k, x in means.items()} | {"ratio": {"mean": ratio}}
    return out

  def realism(self, rows: Rows) -> tuple[dict[str, Any], np.ndarray]:
    """How well samples, and other real clips, are told from held-out ones; and who passed."""
    kinds = [kind for kind in ("video", "image") if kind in rows]
    made, real, other = (
      np.concatenate([x[kind] for kind in kinds], axis=1)
      for x in (rows, self.heldout, self.reference)
    )
    count = min(len(made), len(real))  # equally many, so that ignorance is right in half
    against = realism.guesses(real[:count], made[:count])
    metrics = {
      "accuracy": realism.accuracy(*against),
      "real versus real": realism.accuracy(*realism.guesses(real[:count], other[:count])),
    }
    return metrics, against[1]

  def memorisation(self, sets: Mapping[str, Rows]) -> Memorisation | None:
    """Nearest training clips of sets, of the held-out clips, and of as many of the reference."""
    if self.real.training is None:
      return None
    pieces, total = self.real.training
    named = {**sets, "heldout": self.heldout, "others": self.reference}
    search = Memorisation(**{name: (x["content"], x["motion"]) for name, x in named.items()})
    with tqdm(total=total, desc="training clips searched", unit="clip") as bar:
      for clips in pieces:
        search.update(clips)
        bar.update(len(clips))
    return search


def suite(
  exhibit: Exhibit, real: Real, reconstruct: Callable[[Clips], Clips] | None = None
) -> Results:
  """All measurements of an exhibit.

  Args:
    reconstruct: the model's round trip through its latents, if it has one.

  Raises:
    UserError: missing packages, or clips that cannot be read.
  """
  bench, results = Bench(real), Results()
  rows = bench.measure.all(clips for _, clips in batches(exhibit.clips, "samples"))
  sets = {"samples": rows}
  if reconstruct is not None:
    results.metrics["reconstruction"], sets["reconstructions"] = _reconstruction(bench, reconstruct)
  results.metrics |= bench.distances(sets)
  results.metrics["classifier"], passed = bench.realism(rows)
  results.metrics |= bench.signs(rows)
  results.rows = [{"set": "samples", "index": i} for i in range(len(exhibit.clips))]
  for i, row in enumerate(results.rows):
    row |= {sign: float(rows[sign][i]) for sign in SIGNS if sign in rows}
    row["taken for real"] = bool(passed[i]) if i < len(passed) else None
  if (search := bench.memorisation({"samples": rows})) is not None:
    found = search.summary("samples")
    for kind, numbers in search.summary("others").items():
      found[kind] |= {f"{key} among real": numbers[key] for key in SHARES if key in numbers}
    if exhibit.frames == 1:
      del found["motion"]
    results.metrics["memorisation"] = {"training clips": {"mean": search.seen}, **found}
    for kind, values in search.nearest("samples").items():
      for row, value in zip(results.rows, values, strict=True):
        row[f"nearest training clip, {kind}"] = value
  if exhibit.asked is not None:
    results.metrics |= _adherence(exhibit, results.rows)
  return results


def _reconstruction(
  bench: Bench, reconstruct: Callable[[Clips], Clips]
) -> tuple[dict[str, Any], Rows]:
  """PSNR, SSIM and LPIPS of held-out clips, and what is measured of their reconstructions."""
  score = Reconstruction()

  def remade(clips: Clips) -> Rows:
    made = reconstruct(clips)
    score.update(clips, made)
    found = {"image": bench.measure.image(made)}
    return found | {"video": bench.measure.video_features(made)}

  pieces = (clips for _, clips in batches(bench.real.heldout, "reconstructions"))
  rows = bench.measure.all(pieces, remade)
  return score.summary(), rows


def _adherence(exhibit: Exhibit, rows: list[dict[str, Any]]) -> dict[str, Any]:
  """What the oracle reads of samples whose captions are known."""
  assert exhibit.asked is not None
  judge = Judge()
  read = (judge(clips) for _, clips in batches(exhibit.clips, "oracle"))
  readings = itertools.chain.from_iterable(read)
  found = suites.adherence(readings, exhibit.asked, exhibit.prompts, "adherence", rows)
  return {"adherence": found}


def run(
  load: Callable[[], Any],
  count: int | None,
  seed: int = 0,
  videos: str | os.PathLike[str] | None = None,
  real: str | os.PathLike[str] | None = None,
) -> Results:
  """The suite on a model, or on a folder of videos.

  Args:
    load: gives the model of prompts or of classes; not called if there are videos.
    count: samples, or files; None is all files.
    videos: a folder to judge in the place of a model.
    real: a folder of real clips in the place of worlds.

  Raises:
    UserError: as `exhibit` does, or classes that are not those of worlds, and no real images.
  """
  if count is not None and count < exhibits.LEAST:
    raise UserError(f"The quality suite needs at least {exhibits.LEAST} clips: give --count more.")
  config: Mapping[str, Any] = {}
  reconstruct = None
  if videos is not None:
    shown = exhibits.of_folder(videos, count)
  else:
    if count is None:
      raise ValueError("a model does not say how many samples")
    model = load()
    config, reconstruct = getattr(model, "config", {}), getattr(model, "reconstruct", None)
    of = exhibits.of_classes if hasattr(model, "classes") else exhibits.of_videos
    shown = of(model, count, seed)
    if hasattr(model, "classes") and shown.asked is None and real is None:
      raise UserError("These classes are not those of worlds: name real images with --real DIR.")
  if real is not None:
    return suite(shown, exhibits.real_files(shown, real), reconstruct)
  return suite(shown, exhibits.real_worlds(shown, seed, config), reconstruct)
