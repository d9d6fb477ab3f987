"""Storyboards: read from files, followed by the clock, refused in one sentence."""

import json

import pytest

from sora_jax.errors import UserError
from sora_jax.generate.story import Story


def test_each_prompt_holds_until_the_next_begins():
  story = Story(("a", "b", "c"), (0, 1.0, 2.5))
  assert story.at([0, 0.99, 1.0, 2.4, 2.5, 60]) == ["a", "a", "b", "b", "c", "c"]
  assert Story.of(" a ball ").at([0, 9]) == ["a ball", "a ball"]
  assert Story.of(story) is story


def test_a_file_is_read(tmp_path):
  path = tmp_path / "story.json"
  path.write_text(json.dumps([{"start": 0, "prompt": "a "}, {"start": 1.5, "prompt": "b"}]))
  assert Story.read(path) == Story(("a", "b"), (0.0, 1.5))


@pytest.mark.parametrize(
  ("text", "message"),
  [
    ("no json", "is no storyboard: write it as"),
    ('{"start": 0}', "is no storyboard"),
    ('[{"start": "soon", "prompt": "a"}]', "is no storyboard"),
    ("[]", "at least one"),
    ('[{"start": 0, "prompt": null}]', "is no storyboard"),
    ('[{"start": 0, "prompt": " "}]', "is empty"),
    ('[{"start": 1, "prompt": "a"}]', "begin with 0"),
    ('[{"start": 0, "prompt": "a"}, {"start": 0, "prompt": "b"}]', "rise"),
    ('[{"start": 0, "prompt": "a"}, {"start": NaN, "prompt": "b"}]', "rise"),
    ('[{"start": 0, "prompt": "a"}, {"start": Infinity, "prompt": "b"}]', "rise"),
  ],
)
def test_what_is_no_story_is_refused(tmp_path, text, message):
  path = tmp_path / "story.json"
  path.write_text(text)
  with pytest.raises(UserError, match=message):
    Story.read(path)
