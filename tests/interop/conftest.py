"""Tiny repositories with random weights, saved by diffusers itself: of Wan, and of classes."""

import json

import numpy as np
import pytest
import torch
from diffusers import (
  AutoencoderKL,
  AutoencoderKLWan,
  DDIMScheduler,
  DiTPipeline,
  DiTTransformer2DModel,
  UniPCMultistepScheduler,
  WanPipeline,
  WanTransformer3DModel,
)
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast, UMT5Config, UMT5EncoderModel

WORDS = ["a red ball rolls to the left", "a blue cube falls behind the wall", "blurred, ugly"]


def perturbed(model):
  """Random numbers everywhere: no gate is zero, no scale one."""
  with torch.no_grad():
    for parameter in model.parameters():
      parameter.mul_(0.5 if parameter.std() > 0.5 else 1.0).add_(0.1 * torch.randn_like(parameter))
  return model.eval()


def make_tokenizer():
  tokenizer = Tokenizer(models.Unigram())
  tokenizer.normalizer = normalizers.NFKC()
  tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
  special = ["<pad>", "</s>", "<unk>"]
  trainer = trainers.UnigramTrainer(vocab_size=60, special_tokens=special, unk_token="<unk>")
  tokenizer.train_from_iterator(WORDS, trainer)
  tokenizer.post_processor = processors.TemplateProcessing(
    single="$A </s>", special_tokens=[("</s>", 1)]
  )
  return PreTrainedTokenizerFast(
    tokenizer_object=tokenizer, pad_token="<pad>", eos_token="</s>", unk_token="<unk>"
  )


def make_transformer(**changes):
  torch.manual_seed(0)
  sizes = dict(
    patch_size=(1, 2, 2), num_attention_heads=2, attention_head_dim=12, in_channels=4,
    out_channels=4, text_dim=20, freq_dim=32, ffn_dim=40, num_layers=2, rope_max_seq_len=32,
  )  # fmt: skip
  return perturbed(WanTransformer3DModel(**sizes | changes))


@pytest.fixture(scope="session")
def pipeline():
  torch.manual_seed(0)
  text = UMT5Config(
    vocab_size=64, d_model=20, d_kv=8, d_ff=24, num_layers=2, num_heads=2,
    feed_forward_proj="gated-gelu",
  )  # fmt: skip
  vae = AutoencoderKLWan(
    base_dim=4, z_dim=4, dim_mult=[1, 1, 1, 1], num_res_blocks=1,
    latents_mean=[0.1, -0.2, 0.3, 0.0], latents_std=[1.5, 0.5, 1.0, 2.0],
  )  # fmt: skip
  scheduler = UniPCMultistepScheduler(
    prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=3.0
  )
  pipe = WanPipeline(
    tokenizer=make_tokenizer(), text_encoder=perturbed(UMT5EncoderModel(text)),
    vae=perturbed(vae), scheduler=scheduler, transformer=make_transformer(),
  )  # fmt: skip
  pipe.set_progress_bar_config(disable=True)
  return pipe


@pytest.fixture(scope="session")
def repository(pipeline, tmp_path_factory):
  folder = tmp_path_factory.mktemp("hub") / "tiny-wan"
  pipeline.save_pretrained(folder, max_shard_size="20KB")
  return folder


def save_dit_pipeline(path):
  """Writes a repository of images by class: 1000 of them, of 8x8 pixels."""
  torch.manual_seed(0)
  transformer = DiTTransformer2DModel(
    num_attention_heads=2, attention_head_dim=8, num_layers=2, in_channels=4, out_channels=8,
    sample_size=4,
  )  # fmt: skip
  vae = AutoencoderKL(
    down_block_types=("DownEncoderBlock2D",) * 2, up_block_types=("UpDecoderBlock2D",) * 2,
    block_out_channels=(4, 8), norm_num_groups=2,
  )  # fmt: skip
  first = transformer.transformer_blocks[0].norm1.emb
  with torch.no_grad():
    for parameter in [*transformer.parameters(), *vae.parameters()]:
      parameter.add_(0.1 * torch.randn_like(parameter))
    transformer.transformer_blocks[1].norm1.emb.load_state_dict(first.state_dict())
  DiTPipeline(transformer, vae, DDIMScheduler(clip_sample=False)).save_pretrained(path)
  index = json.loads((path / "model_index.json").read_text())  # as published: diffusers drops it
  index["id2label"] = {str(i): f"thing {i}, alias {i}" for i in range(1000)}
  (path / "model_index.json").write_text(json.dumps(index))
  return path


@pytest.fixture(scope="session")
def class_repository(tmp_path_factory):
  return save_dit_pipeline(tmp_path_factory.mktemp("hub") / "tiny-dit")


def linked(source, target):
  """A copy of a folder whose files are links to the originals, as the hub's cache has them."""
  for path in source.rglob("*"):
    there = target / path.relative_to(source)
    there.parent.mkdir(parents=True, exist_ok=True)
    if path.is_file():
      there.symlink_to(path)
  return target


def relative_error(got, expected):
  got, expected = np.asarray(got, np.float64), np.asarray(expected, np.float64)
  return np.linalg.norm(got - expected) / np.linalg.norm(expected)
