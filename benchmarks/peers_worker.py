"""One library, on a number of threads: answers what `peers_cpu.py` asks, with seconds.

python benchmarks/peers_worker.py {diffusers|sora_jax} THREADS FOLDER

FOLDER has shapes.json; diffusers writes its weights there, from which both compute. A line of JSON
on stdin is a task; its seconds go to stdout, its output to a file.
"""

from __future__ import annotations

import functools
import json
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

LIBRARY, THREADS, FOLDER = sys.argv[1], int(sys.argv[2]), sys.argv[3]
SHAPES = json.loads((Path(FOLDER) / "shapes.json").read_text())
Run = Callable[[], Any]


def inputs() -> dict[str, Any]:
  """Channels last; the same numbers in both processes."""
  rng = np.random.default_rng(0)
  draw = lambda shape: rng.normal(size=shape).astype(np.float32)  # noqa: E731
  b, words = SHAPES["latents"][0], SHAPES["words"]
  small = [[1, 1 + (t - 1) // 4, h // 8, w // 8, 16] for _, t, h, w, _ in SHAPES["clips"]]
  return dict(
    latents=draw(SHAPES["latents"]), target=draw(SHAPES["latents"]),
    text=draw((b, words, SHAPES["wan"]["text_dim"])), level=np.full(b, 500.0, np.float32),
    clips=[np.tanh(draw(shape)) for shape in SHAPES["clips"]], small=[draw(s) for s in small],
  )  # fmt: skip


def diffusers() -> Callable[[str, str, int], Run]:
  """Weights of both models are bfloat16 where that is asked for, as `from_pretrained` has them."""
  import torch
  from diffusers import AutoencoderKLWan, WanTransformer3DModel

  torch.set_num_threads(THREADS)
  torch.manual_seed(0)
  classes = dict(wan=WanTransformer3DModel, vae=AutoencoderKLWan)
  models = {name: kind(**SHAPES[name]).eval() for name, kind in classes.items()}
  for name, model in models.items():
    model.save_pretrained(f"{FOLDER}/{name}")
  given = inputs()

  @functools.cache
  def load(name: str, dtype: str) -> Any:
    folder = f"{FOLDER}/{name}"
    return classes[name].from_pretrained(folder, torch_dtype=getattr(torch, dtype)).eval()

  def prepare(task: str, dtype: str, clip: int) -> Run:
    model = load("wan" if task in ("forward", "train") else "vae", dtype)
    put = lambda x: torch.from_numpy(x).to(getattr(torch, dtype))  # noqa: E731
    first = lambda x: put(x).permute(0, 4, 1, 2, 3).contiguous()  # noqa: E731
    last = lambda x: x.permute(0, 2, 3, 4, 1)  # noqa: E731
    latents, target, text = first(given["latents"]), first(given["target"]), put(given["text"])
    level = torch.from_numpy(given["level"])
    video, small = first(given["clips"][clip]), first(given["small"][clip])

    def train() -> Any:
      model.zero_grad(set_to_none=True)
      loss = (model(latents, level, text).sample - target).float().square().mean()
      loss.backward()
      return loss

    def still(run: Run) -> Run:
      return lambda: torch.no_grad()(lambda: last(run()))()

    runs = dict(
      forward=still(lambda: model(latents, level, text).sample),
      train=train,
      encode=still(lambda: model.encode(video).latent_dist.mean),
      decode=still(lambda: model.decode(small).sample),
    )
    return lambda: runs[task]().detach().float().numpy()

  return prepare


def sora_jax() -> Callable[[str, str, int], Run]:
  """Weights are float32 in training and in the autoencoder, and `DiT.stored` in forward passes."""
  import jax
  import jax.numpy as jnp
  from safetensors.numpy import load_file

  from sora_jax.interop import names, wan_dit, wan_vae
  from sora_jax.models.patch import grid_shape, patchify, unpatchify
  from sora_jax.models.tokens import Tokens

  given = inputs()

  def load(name: str, table: Any) -> tuple[Any, Any]:
    folder = Path(FOLDER) / name
    model = table.from_config(json.loads((folder / "config.json").read_text()))
    tensors = load_file(folder / "diffusion_pytorch_model.safetensors")
    params = names.to_ours(tensors, table.rules(model), table.shapes(model))
    return model, jax.tree.map(jnp.asarray, params)

  (dit, dit_params), (vae, vae_params) = load("wan", wan_dit), load("vae", wan_vae)
  grid = grid_shape(tuple(SHAPES["latents"][1:4]), dit.patch)
  axes = np.stack(np.meshgrid(*map(np.arange, grid), indexing="ij"), -1).reshape(1, -1, 3)
  ones = jnp.ones((len(given["latents"]), axes.shape[1]), jnp.int32)
  positions = jnp.asarray(np.broadcast_to(axes, (*ones.shape, 3)), jnp.float32)
  text = jnp.asarray(given["text"])
  shared = dict(
    positions=positions, period=jnp.zeros(ones.shape), segments=ones, block=0 * ones,
    cond=jnp.asarray(given["level"])[:, None, None] / 1000, cond_index=0 * ones, text=text,
    text_ids=jnp.ones(text.shape[:2], jnp.int32), prompt=ones,
  )  # fmt: skip

  def prepare(task: str, dtype: str, clip: int) -> Run:
    # Products alone are kept: memory traffic costs more here than norms and GELUs made again.
    model = dit.copy(dtype=jnp.dtype(dtype), remat="dots")
    coder = vae.copy(dtype=jnp.dtype(dtype))

    def forward(params: Any, latents: Any, _: Any, shared: Any) -> Any:
      values = model.apply({"params": params}, Tokens(patchify(latents, dit.patch), **shared))
      return unpatchify(values, latents.shape[1:4], dit.patch)

    def loss(params: Any, latents: Any, target: Any, shared: Any) -> Any:
      return jnp.mean(jnp.square(forward(params, latents, target, shared) - target))

    moving = given["latents"], given["target"], shared
    run, args = {
      "forward": (forward, (model.stored(dit_params), *moving)),
      "train": (jax.value_and_grad(loss), (dit_params, *moving)),
      "encode": (
        lambda p, x: coder.apply({"params": p}, x, method=coder.encode)[0],
        (vae_params, given["clips"][clip]),
      ),
      "decode": (
        lambda p, x: coder.apply({"params": p}, x, method=coder.decode).clip(-1, 1),
        (vae_params, given["small"][clip]),
      ),
    }[task]
    args = jax.tree.map(jnp.asarray, args)
    compiled = jax.jit(run).lower(*args).compile()

    def call() -> np.ndarray:
      out = jax.block_until_ready(compiled(*args))
      return np.asarray(out[0] if task == "train" else out)

    return call

  return prepare


def main() -> None:
  """Answers until nobody asks."""
  # Before a library starts its threads: as many as cores it may use.
  os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:THREADS])
  answers = os.fdopen(os.dup(1), "w")
  os.dup2(2, 1)  # what libraries print is no answer
  prepare = functools.cache({"diffusers": diffusers, "sora_jax": sora_jax}[LIBRARY]())
  for line in sys.stdin:
    task = json.loads(line)
    seconds = 0.0
    if task["task"] != "start":
      run = prepare(task["task"], task["dtype"], task["clip"])
      start = time.perf_counter()
      output = run()
      seconds = time.perf_counter() - start
      np.save(f"{FOLDER}/{LIBRARY}.npy", output)
    print(seconds, file=answers, flush=True)


if __name__ == "__main__":
  main()
