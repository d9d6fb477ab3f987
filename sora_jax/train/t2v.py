"""Recipe: text to video. Flow matching on packed sequences of latent patches.

Parameters: `dit`, the transformer, and `text`, the encoder trained with it over a frozen table of
word pieces; or, where `config.text_from` names a model, its encoder is taken as it is, its states
are cached beside the latents, and there is no `text`. `config.lora` trains an adapter of the
transformer (`models.lora`), and nothing else.

Every batch draws from the mixture of conditions of `diffusion.conditioning`, so the model learns
all tasks at once; images are videos of one frame. Clips come in the shapes of `config.data.shapes`,
all of them in the same packed sequences.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from sora_jax import config as config_lib
from sora_jax import provenance
from sora_jax.data import encode
from sora_jax.data.batches import Batches
from sora_jax.data.packing import Packer
from sora_jax.data.records import RecordSource
from sora_jax.data.states import Reader
from sora_jax.diffusion import conditioning
from sora_jax.diffusion.loss import flow_matching
from sora_jax.diffusion.time import LevelSampler, schedule
from sora_jax.errors import UserError
from sora_jax.generate.denoise import SAMPLING, read_prompts
from sora_jax.generate.model import VideoModel
from sora_jax.interop import lora as lora_files
from sora_jax.interop import names, native, pipelines, wan_dit, wordpieces
from sora_jax.models import lora
from sora_jax.models.dit import DiT, blank_tokens, split_params
from sora_jax.models.lora import Lora
from sora_jax.models.patch import grid_shape
from sora_jax.models.text import Prompts, TextEncoder
from sora_jax.models.tokens import Tokens
from sora_jax.parallel import sharding
from sora_jax.typing import REFERENCE_FPS, Array, Params, PRNGKey, Scalar


@dataclass(frozen=True)
class T2VRecipe:
  """See the module's docstring. Without `text` the encoder is that of `config.text_from`."""

  config: ConfigDict
  dit: DiT
  text: TextEncoder | None
  lora: Lora | None
  packer: Packer
  sequence: bool = True

  @property
  def trainable(self) -> str:
    """Paths of what is trained."""
    return lora.TRAINABLE if self.lora else "^(?!text/pieces$)"

  def init(self, key: PRNGKey) -> Params:
    """Fresh weights over the pretrained word pieces."""
    keys = jax.random.split(key, 3)
    params = {"dit": self.dit.init(keys[0], blank_tokens(self.dit))["params"]}
    if self.text is not None:
      pieces = jnp.zeros((1, self.text.length), jnp.int32)
      params["text"] = self.text.init(keys[1], pieces, pieces)["params"]
      params["text"]["pieces"] = jnp.asarray(wordpieces.table())
    if self.lora:  # what is not trained is kept in the type it is used in
      params["dit"] = lora.add(self.dit.stored(params["dit"]), self.lora, keys[2])
      lora_files.check(params["dit"], wan_dit.rules(self.dit))  # not only when it is exported
    return params

  def read(self, key: PRNGKey) -> Params:
    """The weights of `config.init_from`, on the host, and a fresh adapter if there is to be one.

    Raises:
      UserError: it is no model, or one of another shape.
    """
    source, params = self.config.init_from, {}
    if self.text is not None:
      like = jax.eval_shape(dataclasses.replace(self, lora=None).init, key)
      del like["text"]["pieces"]
      params = native.load_params(source, "transformer", like)
      wordpieces.check(native.read_config(native.find(source))["text"]["vocabulary"], source)
      params["text"]["pieces"] = wordpieces.table()
    else:
      begins = self.dit.split and not pipelines.is_split(source)
      theirs = self.dit.clone(split=False) if begins else self.dit
      found = pipelines.open_transformer(source, theirs)
      dit = names.to_ours(found.tensors, found.rules, found.shapes)
      dit = jax.tree.map(lambda x: np.asarray(x, np.float32), dit)
      params["dit"] = split_params(dit, self.dit) if begins else dit
    if self.lora:
      adapter = jax.jit(lambda key: lora.adapter_of(self.init(key)["dit"]))(key)
      params["dit"] = lora.apply(self.dit.stored(params["dit"]), adapter)
    return params

  @functools.cached_property
  def prompts(self) -> Prompts:
    """The tokenizer; longer captions are cut."""
    if self.text is not None:
      return Prompts.load(wordpieces.TOKENIZER, self.text.length, cut=True)
    theirs = self.source.prompts
    return Prompts(
      theirs.tokenizer, theirs.length, cut=True, clean=theirs.clean, ending=theirs.ending,
      padded=theirs.padded, rows=theirs.rows,
    )  # fmt: skip

  @functools.cached_property
  def source(self) -> pipelines.Parts:
    """The model whose text encoder is taken as it is.

    Raises:
      UserError: there is no such model, or its states are not as wide as `model.text_width`.
    """
    parts = pipelines.open_model(self.config.text_from, self.config.model.dtype)
    if (width := parts.components["text"].module.width) != self.dit.text_width:
      raise UserError(
        f"The text encoder of {self.config.text_from} makes states of {width} numbers and the "
        f"transformer reads {self.dit.text_width}: set model.text_width={width}."
      )
    return parts

  def loss(
    self, params: Params, batch: Any, key: PRNGKey, step: Array
  ) -> tuple[Scalar, dict[str, Scalar]]:
    return self._loss(params, batch, key, jax.random.fold_in(key, 1))

  def validation_loss(
    self, params: Params, batch: Any, key: PRNGKey, step: Array
  ) -> tuple[Scalar, dict[str, Scalar]]:
    """The loss without noise on the words (`TextEncoder.noise`)."""
    return self._loss(params, batch, key, None)

  def _loss(
    self, params: Params, batch: Any, key: PRNGKey, words: PRNGKey | None
  ) -> tuple[Scalar, dict[str, Scalar]]:
    read: Callable[..., Tokens] = read_prompts
    if self.dit.remat != "none":  # or the gathered encoder would be kept for the backward pass
      read = jax.checkpoint(read_prompts, static_argnums=0)
    tokens = read(self.text, params.get("text"), batch, words)
    model = lambda tokens: self.dit.apply({"params": params["dit"]}, tokens)  # noqa: E731
    return flow_matching(model, tokens, key)

  def batch(self) -> dict[str, jax.ShapeDtypeStruct]:
    """Of packed or padded samples; buckets, and short sequences, hold about as many tokens."""
    return self.packer.fields(self.packer.rows, self.dit.patch_width, self.dit.cond_features)

  @functools.cached_property
  def caches(self) -> dict[str, RecordSource]:
    """The encoded clips of each shape that has a share; encoding them the first time.

    Raises:
      UserError: the autoencoder is not that of the model, or the clips cannot be had.
    """
    return self._encoded({name: self.config.data.shapes[name] for name in self.shares})

  @functools.cached_property
  def held_out(self) -> dict[str, RecordSource]:
    """Clips like `caches`, of the usual shape and the sources of `config.data.validation`."""
    return self._encoded({"held out": dict(self.usual, **self.config.data.validation)})

  def _encoded(self, shapes: Mapping[str, Any]) -> dict[str, RecordSource]:
    data = self.config.data
    # What is exported with a text encoder of ours holds a copy of an autoencoder of ours.
    load_vae = pipelines.load_vae if self.text is None else native.load_vae
    vae, params = load_vae(self.config.vae)
    reader = None
    if self.text is None:
      text = self.source.components["text"]
      reader = Reader(text.module, self.prompts, text.tensors, text.place)
    if vae.z_channels != self.dit.channels:
      raise UserError(
        f"The latents of {self.config.vae} have {vae.z_channels} channels and those of the "
        f"transformer {self.dit.channels}: set model.channels={vae.z_channels}."
      )
    caches = {}
    for name, section in shapes.items():
      shape = dict(section, size=tuple(section["size"]))
      del shape["share"]
      sources = shape.pop("sources", data.sources)
      caches[name] = encode.cache(
        Path(data.cache), vae, params, sources, seed=self.config.seed, reader=reader, **shape
      )
    return caches

  @property
  def shares(self) -> dict[str, float]:
    """How much of the samples each shape has, of those that have any; the largest first.

    Raises:
      UserError: none has any, or most samples would be loops.
    """
    shapes = self.config.data.shapes
    shares = {name: float(shape.share) for name, shape in shapes.items() if shape.share > 0}
    if not shares:
      raise UserError("No shape of clips has a share: set config.data.shapes.NAME.share above 0.")
    largest = max(shares, key=lambda name: shares[name])
    if shapes[largest].loop:
      raise UserError(f"Most samples would be loops: give the shape {largest} a smaller share.")
    return dict(sorted(shares.items(), key=lambda item: -item[1]))

  @property
  def usual(self) -> ConfigDict:
    """The shape with the largest share: what a request that says nothing gets."""
    return self.config.data.shapes[next(iter(self.shares))]

  def dataset(self, shard_index: int, shard_count: int) -> Iterator[Any]:
    return self._batches(self.caches, self.shares)(shard_index, shard_count)

  def validation(self, shard_index: int, shard_count: int) -> Iterator[Any]:
    return self._batches(self.held_out, {"held out": 1.0})(shard_index, shard_count)

  def _batches(
    self, caches: Mapping[str, RecordSource], shares: Mapping[str, float]
  ) -> Callable[[int, int], Iterator[Any]]:
    config = self.config
    batches = Batches(
      caches=caches, shares=shares, packer=self.packer, prompts=self.prompts,
      mixture=config_lib.build(conditioning.Mixture, config.mixture),
      levels=config_lib.build(LevelSampler, config.levels),
      patch=self.dit.patch, cond_features=self.dit.cond_features, samples=config.data.samples,
      seed=config.seed, reference_fps=self.reference_fps,
    )  # fmt: skip
    return functools.partial(batches, config.data.batching)

  @property
  def reference_fps(self) -> float:
    """The rate at which latent frames are one unit of time apart."""
    sampling = {} if self.text is not None else self.source.config["sampling"]
    return sampling.get("reference_fps", REFERENCE_FPS)

  def preview(self, params: Params, key: PRNGKey) -> dict[str, np.ndarray]:
    """Samples of the config's prompts, side by side."""
    vae, vae_params = pipelines.load_vae(self.config.vae)
    text = self.text
    if text is None:
      theirs = self.source.components["text"]
      text, params = theirs.module, params | {"text": theirs.place(sharding.mesh_of(params))}
    model = VideoModel(
      vae=vae, dit=self.dit, text=text, prompts=self.prompts,
      params={"vae": vae_params, **params}, config=self.description(),
    )  # fmt: skip
    prompts = list(self.config.preview)
    videos = model.sample(prompts, seed=0, frames=self.usual.frames)
    return {"samples": np.concatenate(list(videos), axis=2)}

  def description(self) -> dict[str, Any]:
    """The config.json of what is exported."""
    usual, shapes = self.usual, self.config.data.shapes
    others: dict[str, Any] = {}
    if self.text is not None:
      source = native.read_config(native.find(self.config.vae))
      others = {
        "vae": source["vae"],
        "vae_training": source.get("vae_training", []),
        "text": self.config.text.to_dict() | {"vocabulary": self.text.vocabulary},
        "known_words": sorted(set().union(*(c.info["words"] for c in self.caches.values()))),
      }
    return others | {
      "transformer": self.config.model.to_dict(),
      "sampling": (SAMPLING if self.text is not None else self.source.config["sampling"])
      | dict(
        frames=usual.frames,
        size=list(usual.size),
        fps=usual.fps,
        longest=max(shapes[name].frames for name in self.shares if not shapes[name].loop),
        tokens=max(self._tokens(name) for name in self.shares),
        shift=self.config.levels.shift,
        reference_tokens=self.config.levels.get("reference_tokens", LevelSampler.reference_tokens),
      )
      | _sampling(self.config),
      "training": provenance.training(self.config),
    }

  def _tokens(self, name: str) -> int:
    """Tokens of the grid of a shape's clips."""
    return math.prod(grid_shape(self.caches[name][0]["latents"].shape[:3], self.dit.patch))

  def export(self, params: Params, workdir: Path) -> None:
    """Writes a checkpoint folder: all that makes videos, and the log.

    Of a model whose text encoder was taken as it is, the transformer alone, or if it is one of low
    noise the model with it; of an adapter, the file that diffusers reads (`interop.lora`).
    """
    if self.lora:
      file = workdir / "export" / lora_files.FILE
      return lora_files.write(file, params["dit"], wan_dit.rules(self.dit))
    if self.config.levels.get("highest", 1.0) < 1:
      return self._export_low(params, workdir)
    components = {"transformer": {"dit": params["dit"]}}
    log = workdir / "metrics.jsonl"
    files = {"training.jsonl": log} if log.exists() else {}
    if self.text is not None:
      text = {name: x for name, x in params["text"].items() if name != "pieces"}
      components["transformer"]["text"] = text
      files |= native.files(native.find(self.config.vae), "vae")
    native.save(workdir / "export", components, self.description(), files)

  def _export_low(self, params: Params, workdir: Path) -> None:
    """The model of `text_from` with a second transformer, for the noise levels trained on."""
    folder = native.find(self.config.text_from)
    config = native.read_config(folder)
    config["sampling"] |= _sampling(self.config) | dict(boundary=self.config.levels.highest)
    config["low"] = self.config.model.to_dict()
    config["low_training"] = provenance.training(self.config)
    logs = {"training.jsonl": folder / "training.jsonl", "low.jsonl": workdir / "metrics.jsonl"}
    files = {name: log for name, log in logs.items() if log.exists()}
    files |= native.files(folder, "vae", "transformer")
    native.save(workdir / "export", {"low": params["dit"]}, config, files)


def build(config: ConfigDict) -> T2VRecipe:
  """The recipe of a config."""
  _sampling(config)  # a mistake in it is found now, not after training,
  config_lib.build(conditioning.Mixture, config.mixture)  # and one in this not after encoding
  dit = config_lib.build(DiT, config.model)
  text, width = None, dit.text_width
  if not config.get("text_from"):
    rows, table = wordpieces.table().shape
    text = config_lib.build(TextEncoder, config.text, vocabulary=rows, table_width=table)
    width = 0  # of states that are there already
  adapter = config.get("lora")
  if config.levels.get("highest", 1.0) < 1 and not (adapter and adapter.rank):
    _check_low(config, text)
  return T2VRecipe(
    config=config,
    dit=dit,
    text=text,
    lora=config_lib.build(Lora, adapter) if adapter and adapter.rank else None,
    packer=config_lib.build(Packer, config.packing, rows=config.train.batch_size, text_width=width),
  )


def _sampling(config: ConfigDict) -> dict[str, Any]:
  """What a config says of sampling. Raises UserError: it is nothing a checkpoint can say."""
  given = config.get("sampling", ConfigDict()).to_dict()
  for name in given:
    if name not in SAMPLING:
      raise UserError(f"sampling has no setting {name!r}{config_lib.nearest(name, SAMPLING)}.")
  config_lib.build(schedule, given.get("schedule", {}), steps=1, shift=1.0)
  return given


def _check_low(config: ConfigDict, text: TextEncoder | None) -> None:
  """Refuses a transformer of low noise that no model could be exported with."""
  if text is not None:
    raise UserError(
      "A transformer of low noise joins a model: name it in text_from, or set levels.highest=1."
    )
  if "architectures" in native.read_config(native.find(config.text_from))["text"]:
    raise UserError("A transformer of low noise can join only a model whose text encoder is ours.")
