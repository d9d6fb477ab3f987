"""Configs: loading, overriding with strict types, and building objects, with mistakes named."""

from __future__ import annotations

import dataclasses

import flax.linen as nn
import pytest
from hypothesis import given
from hypothesis import strategies as st
from ml_collections import ConfigDict

from sora_jax import config as config_lib
from sora_jax.errors import UserError

SOURCE = """
from ml_collections import ConfigDict

def get_config(arg=""):
  optim = {"lr": 1e-3, "name": "adamw"}
  config = ConfigDict({"seed": 0, "optim": optim, "model": {"widths": (64, 96)}})
  config.seed = 7 if arg == "smoke" else 0
  return config
"""


@pytest.fixture
def path(tmp_path):
  path = tmp_path / "toy.py"
  path.write_text(SOURCE)
  return str(path)


def test_load_with_argument_and_overrides(path):
  assert config_lib.load(path).seed == 0
  config = config_lib.load(f"{path}:smoke", ["optim.lr=0.5", "model.widths=8,16,32"])
  assert config.seed == 7 and config.optim.lr == 0.5 and config.model.widths == (8, 16, 32)
  assert config.is_locked
  with pytest.raises((AttributeError, KeyError)):
    config.optim.lrr = 3


@pytest.mark.parametrize(
  ("override", "message"),
  [
    ("optim.l=1", "optim has no key 'l'"),
    ("optimm.lr=1", "'optim'"),
    ("optim.nam=muon", "did you mean 'name'"),
    ("optim=3", "is a section"),
    ("seed.x=3", "is a value"),
    ("seed", "needs a value"),
    ("seed=1.5", "of type int"),
    ("optim.lr=fast", "of type float"),
    ("model.widths=a,b", "of type tuple"),
    ("model.widths=1.5,2", "of type tuple"),
    ('model.widths=("a")', "of type tuple"),
    ("seed=1e400", "of type int"),
  ],
)
def test_override_mistakes(path, override, message):
  with pytest.raises(UserError, match=message):
    config_lib.load(path, [override])


@pytest.mark.parametrize("text", ["96", "(96,)", "[96]", "1,2,3", "()"])
@pytest.mark.parametrize("old", [(64, 48), [64, 48]])
def test_a_size_keeps_its_length(text, old):
  config = ConfigDict({"shapes": {"square": {"size": old}}})
  with pytest.raises(UserError, match=r"holds 2 numbers, .* --config.shapes.square.size=64,48"):
    config_lib.apply_override(config, f"shapes.square.size={text}")
  config_lib.apply_override(config, "shapes.square.size=96,80")
  assert tuple(config.shapes.square.size) == (96, 80)


def test_file_mistakes(path, tmp_path):
  with pytest.raises(UserError, match="did you mean 'toy.py'"):
    config_lib.load(str(tmp_path / "toi.py"))
  with pytest.raises(UserError, match="no config file"):
    config_lib.load(str(tmp_path / "no" / "such.py"))
  empty = tmp_path / "empty.py"
  empty.write_text("x = 1\n")
  with pytest.raises(UserError, match="get_config"):
    config_lib.load(str(empty))
  empty.write_text("def get_config():\n  return 1\n")
  with pytest.raises(UserError, match="takes no argument"):
    config_lib.load(f"{empty}:smoke")
  empty.write_text("def get_config(arg):\n  raise ValueError('images or video')\n")
  with pytest.raises(UserError, match="'moke': images or video"):
    config_lib.load(f"{empty}:moke")
  empty.write_text("import no_such_module\n")
  with pytest.raises(UserError, match="cannot be run: ModuleNotFoundError"):
    config_lib.load(str(empty))


@given(
  value=st.one_of(
    st.booleans(), st.integers(), st.floats(allow_nan=False, allow_infinity=False), st.none(),
    st.tuples(st.integers(), st.integers()),
  )
)  # fmt: skip
def test_printing_and_overriding_is_the_identity(value):
  old = {bool: False, int: 1, float: 1.0, type(None): None, tuple: (0,)}[type(value)]
  config = ConfigDict({"a": {"b": old}})
  config_lib.apply_override(config, f"a.b={value}")
  assert config.a.b == value and type(config.a.b) is type(value)


def test_override_of_nothing_and_to_nothing():
  config = ConfigDict({"init_from": None, "name": "x", "steps": 5})
  config_lib.apply_override(config, "init_from=runs/a=b")
  config_lib.apply_override(config, "name=none")
  assert config.name == "none"
  config_lib.apply_override(config, "name=None")
  config_lib.apply_override(config, "steps=1e4")
  assert config.init_from == "runs/a=b" and config.name is None and config.steps == 10_000


@dataclasses.dataclass(frozen=True)
class Sampler:
  steps: int
  shift: float = 1.0
  widths: tuple[int, ...] = ()


class Layer(nn.Module):
  width: int
  patch: tuple[int, ...] = (1, 2, 2)


def test_build():
  section = ConfigDict({"steps": 3, "widths": [1, 2]})
  assert config_lib.build(Sampler, section, shift=2.0) == Sampler(3, 2.0, (1, 2))
  layer = config_lib.build(Layer, ConfigDict({"width": 4, "patch": [1, 1, 1]}))
  assert layer.patch == (1, 1, 1) and hash(layer) is not None
  assert config_lib.build(lambda **kw: kw, {"anything": 1}) == {"anything": 1}


@pytest.mark.parametrize(
  ("target", "section", "message"),
  [
    (Sampler, {"steps": 3, "shft": 2}, "Sampler has no setting 'shft'; did you mean 'shift'"),
    (Sampler, {"shift": 2.0}, "Sampler needs a value for 'steps'"),
    (Layer, {"width": 4, "parent": None}, "has no setting 'parent'"),
  ],
)
def test_build_mistakes(target, section, message):
  with pytest.raises(UserError, match=message):
    config_lib.build(target, section)


def test_flatten_is_what_json_gives_back():
  config = ConfigDict({"a": {"b": (1, (2, 3)), "c": {}}, "d": None})
  assert config_lib.flatten(config) == {"a.b": [1, [2, 3]], "a.c": {}, "d": None}
