# ---
# jupyter:
#   jupytext:
#     formats: ipynb,py:percent
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # A first video
#
# A prompt becomes a video, and then we look at what happened on the way: latents, tokens, noise
# levels. At the end you change the seed, the size and the words. All of it runs on a CPU in a few
# minutes.
#
# **In Colab**: upload this file and set `SOURCE` below to the repository's address, `git+https://...`.
# On your own machine, after `pip install -e ".[notebooks]"`, the next cell does nothing.

# %%
import importlib.util
import subprocess
import sys

SOURCE = ".."  # the checkout; in Colab the address: "git+https://..."
if importlib.util.find_spec("sora_jax") is None:
  subprocess.run([sys.executable, "-m", "pip", "install", "-q", SOURCE], check=True)

# %%
import tempfile
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
from IPython.display import Image, display

import sora_jax as sj
from sora_jax.data import video as files
from sora_jax.data.images import strip
from sora_jax.diffusion import conditioning, process, sampler, time


def show(video, fps=8, scale=3):
  """Plays uint8 frames (t, h, w, 3) below the cell."""
  with tempfile.TemporaryDirectory() as folder:
    path = Path(folder) / "video.gif"
    files.write(path, video, fps)
    display(Image(path.read_bytes(), width=scale * video.shape[2]))


# %% [markdown]
# ## A prompt becomes a video

# %%
model = sj.load("toy")
prompt = "a red ball rolls to the left"
video = model.sample(prompt, seed=0)
print(video.shape, video.dtype)
show(video)

# %% [markdown]
# ## Inside: latents
#
# The autoencoder compresses time by 4 and rows and columns by 8. The first latent frame covers one
# frame of the video and each later one four, so 4k + 1 frames become k + 1 latent frames. Here are
# the first three of the 64 channels, shown as colours.

# %%
latents = model.encode(video[None])
print("video", video[None].shape, "-> latents", latents.shape)


def as_colours(latents):
  """Three channels of latents (t, h, w, z) as uint8, three standard deviations to each side."""
  return np.uint8(np.clip(latents[..., :3] / 6 + 0.5, 0, 1) * 255)


plt.figure(figsize=(10, 2.5))
plt.imshow(strip(as_colours(latents[0])))
plt.axis("off")
plt.title("latent frames, three of 64 channels")
plt.show()

# %% [markdown]
# It is *causal*: a latent never sees a later frame. Paint the second half of the video grey, and
# the latents before it stay as they were.

# %%
half = 1 + 4 * ((latents.shape[1] - 1) // 2)
grey = video.copy()
grey[half:] = 127
change = np.abs(model.encode(grey[None]) - latents).max(axis=(0, 2, 3, 4))
for index, value in enumerate(change):
  print(f"latent frame {index}: largest change {value:.6f}")

# %% [markdown]
# ## Inside: tokens
#
# The transformer knows nothing of videos. It sees a sequence of tokens, each a small patch of
# latents with a position (time, row, column) and a noise level. To animate an image, its tokens get
# noise level 0: they are known, and the rest is made to fit.

# %%
settings = dict(patch=model.dit.patch, fps=8.0, cond_features=model.dit.cond_features)
everything = conditioning.layout(latents[0], prompt=prompt, **settings)
first_frame = np.zeros(latents.shape[1:4], bool)
first_frame[0] = True
animate = conditioning.layout(latents[0], prompt=prompt, known=first_frame, **settings)
print("tokens", everything.values.shape, "the first positions:")
print(everything.positions[:3])
for name, sample in (("from words alone", everything), ("from its first frame", animate)):
  known = np.mean(sample.cond[sample.cond_index, 0] == 0)
  print(f"{name}: {known:.0%} of the tokens are known")

# %% [markdown]
# ## Inside: noise levels
#
# Sampling starts at level 1, pure noise, and steps down to 0, data. On the way the noisy latents
# are a straight mixture of both. More tokens need more time at high noise: that is the shift. The
# last step is a long one: at low noise this small model adds more grain than detail.

# %%
tokens = len(everything.values)
request = model.request()  # what the checkpoint uses where you say nothing
shift = time.LevelSampler(shift=request["shift"]).shift_for(tokens)
levels = time.schedule(request["steps"], shift, **request["schedule"])
noise = sampler.initial_noise(0, np.arange(1), *latents.shape[1:])
middle = latents.shape[1] // 2

fig, axes = plt.subplots(1, 6, figsize=(13, 2.6))
axes[0].plot(levels, ".-")
axes[0].set(title="noise level", xlabel="step")
for axis, level in zip(axes[1:], (1.0, 0.75, 0.5, 0.25, 0.0), strict=True):
  noisy = process.corrupt(latents, noise, np.float32(level))
  frame = np.asarray(model.decode(noisy))[0, 4 * middle]
  axis.imshow(frame)
  axis.set(title=f"decoded at {level:.2f}", xticks=[], yticks=[])
plt.show()

# %% [markdown]
# ## Change the seed
#
# The same words, other noise. Sample *i* of a seed always has the same noise, whatever the batch.

# %%
show(np.concatenate([model.sample(prompt, seed=seed) for seed in (1, 2, 3)], axis=2))

# %% [markdown]
# ## Change the size
#
# A size is nothing but the positions of the tokens, so wide and tall videos need no other model.

# %%
height, width = request["size"]
step = model.vae.space_stride * model.dit.patch[2]
wide = (height, width + 2 * step)
show(model.sample(prompt, size=wide, seed=0))

# %% [markdown]
# ## Change the words
#
# Words the model was trained without are named in a warning; it can only guess at them.

# %%
for words in (
  "a blue cone falls from above",
  "a small green cube slides to the right at night",
  "a crimson ball rolls",
):
  print(words)
  show(model.sample(words, seed=0))

# %% [markdown]
# Next: `docs/architecture.md` walks from the command line to the velocity, and `docs/training.md`
# shows how to train on your own clips.
