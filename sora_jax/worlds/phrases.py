"""The wordings captions are made of, each table split into training and held-out ones."""

from __future__ import annotations

from sora_jax.worlds.vocabulary import motion_family

Choices = dict[str, tuple[str, ...]]


def _table(train: str, heldout: str) -> Choices:
  """Alternatives separated by "|"; none may stand on both sides."""
  split = {"train": tuple(train.split("|")), "heldout": tuple(heldout.split("|"))}
  if set(split["train"]) & set(split["heldout"]):
    raise ValueError(f"a held-out wording is trained on: {split}")
  return split


def undirected(motion: str) -> str:
  """The key of EVENTS: directions are filled in, except for depth, which has its own words."""
  return motion if motion in ("toward", "away", "rest", "control") else motion_family(motion)


SHAPES: dict[str, Choices] = {
  "ball": _table("sphere|globe|round sphere", "orb|round ball"),
  "cube": _table("box|square cube", "block|square box"),
  "cylinder": _table("drum|barrel|round drum", "cylindrical can|round column"),
  "cone": _table("pointed cone|tapered cone", "cone shape"),
  "capsule": _table("pill|medicine pill|lozenge", "pill shape|rounded capsule"),
}
SIZES: dict[str, Choices] = {
  "small": _table("small|little|miniature", "tiny"),
  "large": _table("large|big|giant", "huge"),
}
NUMBERS: dict[int, Choices] = {
  3: _table("three", "3"),
  4: _table("four", "4"),
}
COUNTS = {1: "one", 2: "two", 3: "three", 4: "four", 5: "five"}
TOWERS = _table("a stack|a tower", "a pile|a tall stack")
ROLLS = _table("rolls|rolls|moves|goes|wanders", "travels")
SLIDES = _table("slides|slides|moves|goes|shifts", "glides|travels")

EVENTS: dict[str, Choices] = {
  "across": _table(
    "{main} {goes} to the {side}|{main} {goes} from {other} to {side}|"
    "{main} {goes} {side}|{main} {goes} across the floor to the {side}|"
    "{main} {goes} from the {other} to the {side}|"
    "to the {side} {goes} {main}|"
    "we see how {main} {goes} {side}|"
    "from the {other}, {main} {goes} to the {side}|"
    "{main} makes its way to the {side}|"
    "{main} is moving to the {side}|"
    "in the {side} direction {goes} {main}|"
    "watch {main} move {side}|"
    "a video of {main} moving to the {side}|"
    "{main} drifts to the {side}|"
    "{side} is where {main} {goes}|"
    "{main} comes from the {other} and {goes} {side}|"
    "{main} starts on the {other} and ends on the {side}|"
    "there is {main} that {goes} to the {side}",
    "{main} {goes} off toward the {side}|{main} crosses the scene from {other} to {side}|"
    "going {side}: {main}|{main} heads to the {side} side",
  ),
  "toward": _table(
    "{main} {goes} toward the camera|{main} {goes} towards us|{main} {goes} toward the viewer|"
    "{main} comes closer to the camera|"
    "{main} gets nearer to the camera|"
    "towards us {goes} {main}|"
    "{main} {goes} closer and closer|"
    "{main} is moving toward us|"
    "a video of {main} coming toward the camera|"
    "{main} advances toward the viewer|"
    "{main} grows larger as it comes near|"
    "{main} {goes} forward, to the camera|"
    "there is {main} that {goes} toward us|"
    "from far off {main} comes near|"
    "closer to us {goes} {main}",
    "{main} approaches the camera|{main} {goes} from the back to the front|{main} is coming at us",
  ),
  "away": _table(
    "{main} {goes} away from the camera|{main} {goes} away from us|"
    "{main} {goes} away into the distance|{main} {goes} off to the back|"
    "{main} moves off into the background|"
    "away from us {goes} {main}|"
    "{main} gets smaller as it {goes} away|"
    "{main} is moving away from us|"
    "a video of {main} moving away from the camera|"
    "{main} recedes into the distance|"
    "{main} shrinks as it {goes} into the distance|"
    "there is {main} that {goes} away from the camera|"
    "{main} withdraws from the camera|"
    "{main} {goes} backward, away from the viewer|"
    "farther from us {goes} {main}",
    "{main} leaves the viewer and goes into the distance|"
    "{main} {goes} from the front to the back|{main} goes further and further away",
  ),
  "falls": _table(
    "{main} falls to the floor|{main} falls down and stays there|{main} drops to the ground|"
    "{main} falls from above and lands|{main} drops from above onto the floor|"
    "{main} plunges to the floor|"
    "{main} comes down from above|"
    "high up, {main} begins to fall|"
    "through the air {main} falls to the floor|"
    "{main} is dropping to the floor|"
    "a video of {main} falling to the floor|"
    "watch {main} fall to the ground|"
    "there is {main} that falls to the floor|"
    "{main} descends to the ground and lands|"
    "dropped from high up, {main} lands on the floor|"
    "{main} comes falling out of the air|"
    "down to the floor drops {main}",
    "{main} drops down from the sky|{main} is falling until it hits the ground|"
    "from above, {main} falls down",
  ),
  "bounces": _table(
    "{main} bounces up and down|{main} bounces on the floor|{main} is bouncing|"
    "{main} drops and bounces back up|"
    "{main} rebounds from the floor|"
    "again and again, {main} bounces|"
    "{main} springs up from the floor|"
    "up and down bounces {main}|"
    "{main} leaps up from the floor again and again|"
    "a video of {main} bouncing|"
    "watch {main} bounce up and down|"
    "there is {main} that bounces on the floor|"
    "{main} drops, rises and drops again|"
    "{main} does not stop bouncing|"
    "each time it lands, {main} bounces back|"
    "bouncing on the floor, {main} goes up and down",
    "{main} hops up and down on the ground|{main} keeps bouncing|{main} jumps up and down",
  ),
  "passes": _table(
    "{main} {goes} behind the wall and comes out on the {side}|"
    "{main} {goes} behind a wall and reappears on the {side}|"
    "{main} passes behind the wall to the {side}|"
    "{main} disappears behind the wall and comes out on the {side}|"
    "{main} {goes} {side} and passes behind a wall|"
    "{main} is hidden by the wall for a moment and emerges on the {side}|"
    "behind the wall {goes} {main}, and out on the {side}|"
    "on its way {side}, {main} disappears behind the wall for a while|"
    "{main} is moving {side}, behind the wall and out again|"
    "a video of {main} passing behind the wall to the {side}|"
    "{main} slips behind the wall and is back on the {side}|"
    "there is {main} that {goes} behind the wall and comes out on the {side}|"
    "{main} is covered by a wall while it {goes} {side}, then seen again|"
    "coming from the {other}, {main} {goes} behind the wall and out on the {side}|"
    "{main} enters behind the wall on the {other} and leaves it on the {side}|"
    "{main} cannot be seen behind the wall until it comes out on the {side}",
    "{main} goes in behind the wall on the {other} and shows up again on the {side}|"
    "{main} vanishes behind a wall, then appears on the {side}|"
    "going {side}, {main} passes behind the wall and comes back into view",
  ),
  "hides": _table(
    "{main} {goes} behind the wall and stays there|{main} hides behind the wall|"
    "{main} {goes} behind a wall and does not come out|"
    "{main} disappears behind the wall and stays hidden|"
    "{main} is gone behind the wall|"
    "behind a wall {goes} {main} and is not seen again|"
    "{main} slips behind the wall and is lost|"
    "a video of {main} hiding behind a wall|"
    "there is {main} that {goes} behind the wall and stays hidden|"
    "{main} {goes} behind the wall and cannot be seen any more|"
    "{main} enters behind the wall and nothing comes out|"
    "once behind the wall, {main} does not return",
    "{main} goes behind a wall and remains out of sight|"
    "{main} vanishes behind the wall and never comes back",
  ),
  "control": _table(
    "{main} rests beside the wall and nothing moves|{main} stays next to a wall|"
    "{main} stands still beside the wall, nothing comes out|"
    "{main} does not move, nothing comes out from behind the wall|"
    "{main} waits beside the wall|"
    "beside a wall {main} rests|"
    "{main} keeps still, and so does the wall|"
    "there is {main} that rests beside the wall|"
    "a video of {main} standing beside a wall|"
    "{main} is standing beside the wall, without moving|"
    "beside the wall, {main} does not move at all|"
    "{main} and a wall, both at rest|"
    "nothing happens: {main} stands beside the wall",
    "{main} sits still by the wall|next to the wall {main} just stays where it is",
  ),
  "rest": _table(
    "{main} stands still|{main} rests on the floor|{main} stays still|"
    "a still life with {main} in the middle|"
    "{main} is not moving|"
    "a quiet scene with {main}|"
    "nothing moves, not even {main}|"
    "{main} is at rest|"
    "a video of {main} standing still|"
    "there is {main} that does not move|"
    "nothing happens to {main}|"
    "{main} stands there quietly",
    "{main} sits motionless|{main} just stays where it is",
  ),
  "hits": _table(
    "{main} {goes} {side} and hits {target}|{main} {goes} to the {side} and bumps into {target}|"
    "{main} {goes} to the {side} and knocks {target} away|"
    "{main} hits {target} from the {other} and pushes it to the {side}|"
    "{main} {goes} {side} into {target}|"
    "{target} is hit by {main} and moves to the {side}|"
    "{main} slams into {target} on its way {side}|"
    "a video of {main} moving {side} and hitting {target}|"
    "{main} is moving {side} and bumps into {target}|"
    "{main} rams {target} and drives it to the {side}|"
    "there is {main} that {goes} {side} and hits {target}|"
    "{target} is knocked to the {side} by {main}|"
    "{main} hits {target} and both move on to the {side}|"
    "moving {side}, {main} meets {target} and pushes it on",
    "{main} collides with {target} while moving {side}|"
    "going {side}, {main} runs into {target}|{main} strikes {target} to the {side}",
  ),
  "pushed": _table(
    "{main} is pushed to the {side} and stays there|a paddle pushes {main} to the {side}|"
    "a dark paddle pushes {main} {side} and goes back|"
    "{main} is pushed {side} by a paddle and stays where it was pushed|"
    "{main} is moved to the {side} by a paddle|"
    "to the {side} a paddle pushes {main}|"
    "something pushes {main} {side}|"
    "{main} is being pushed to the {side}|"
    "a video of a paddle pushing {main} to the {side}|"
    "there is {main} that a paddle pushes {side}|"
    "a paddle comes and moves {main} to the {side}|"
    "{main} moves {side} because a paddle pushes it|"
    "pushed by a paddle, {main} {goes} {side}",
    "{main} gets shoved to the {side} and remains there|"
    "a flat paddle shoves {main} from {other} to {side}",
  ),
  "topples": _table(
    "{main} topples over|{main} falls over|{main} collapses|{main} tips over and falls down|"
    "{main} loses its balance and falls|"
    "down falls {main}|"
    "{main} gives way and tips over|"
    "{main} is falling over|"
    "a video of {main} falling over|"
    "watch {main} topple|"
    "there is {main} that tips over|"
    "{main} leans, tips and falls|"
    "over goes {main}|"
    "{main} does not stay upright and falls apart",
    "{main} comes tumbling down|{main} tumbles over|{main} crashes to the ground",
  ),
  "swings": _table(
    "{main} swings on a string|{main} swings back and forth|{main} hangs on a string and swings|"
    "{main} swings left and right like a pendulum|"
    "hanging from a string, {main} swings|"
    "{main} sways left and right on a string|"
    "{main} dangles from a string, back and forth|"
    "{main} is swaying on a string|"
    "a video of {main} swinging on a string|"
    "there is {main} that swings back and forth|"
    "tied to a string, {main} swings left and right|"
    "{main} moves back and forth like a pendulum|"
    "left and right swings {main}|"
    "{main} oscillates on a string",
    "a pendulum with {main} swings from side to side|{main} is swinging to and fro on a rope",
  ),
  "circles": _table(
    "{main} circles around {target}|{main} orbits {target}|{main} goes around {target}|"
    "{main} moves in circles around {target}|"
    "{main} revolves around {target}|"
    "around {target} circles {main}|"
    "{main} moves around {target} again and again|"
    "{main} is moving in a circle around {target}|"
    "a video of {main} circling around {target}|"
    "there is {main} that goes around {target}|"
    "{target} is circled by {main}|"
    "round and round {target} goes {main}|"
    "{main} makes circles around {target}|"
    "{main} rotates around {target}",
    "{main} travels in a ring around {target}|{main} keeps circling {target}",
  ),
}
EXTRAS = _table(
  ", with {things} in the scene|, {things} in the background|, next to {things}|, with {things}",
  ", and there is also {things}|, in the company of {things}",
)
FLOOR_NAMES = {
  "grey": "grey", "white": "white", "dark": "dark", "wooden": "wooden", "checkered": "checkered",
  "sandy": "sandy", "grassy": "grassy", "tiled": "tiled",
}  # fmt: skip
FLOORS = _table(
  " on a {floor} floor|, on a {floor} floor|, the floor is {floor}",
  ", over a {floor} surface|, on {floor} ground",
)
LIGHTS: dict[str, Choices] = {
  "day": _table(" in daylight|, by day|, in bright light| on a bright day", " in the daytime"),
  "dusk": _table(" at dusk|, at sunset|, in evening light", ", as the sun goes down"),
  "night": _table(" at night|, by night|, in the dark of the night", ", under a night sky"),
}
CAMERAS: dict[str, Choices] = {
  "static": _table(", static camera|, the camera is still", ", the camera does not move"),
  "pan": _table(
    ", the camera pans to the {side}|, the camera pans {side}",
    ", while the camera turns {side}",
  ),
  "zoom": _table(
    ", the camera zooms {way}|, camera zooming {way}",
    ", with a zoom {way}",
  ),
  "orbit": _table(
    ", the camera circles to the {side}|, the camera orbits around it to the {side}|"
    ", seen by a camera that moves around to the {side}",
    ", while the camera goes around to the {side}",
  ),
}
LOOKS: dict[str, Choices] = {
  "line": _table(
    "in a line drawing, {text}|{text}, as a line drawing|line drawing: {text}|"
    "{text}, drawn with ink lines|"
    "hand-drawn lines: {text}|"
    "{text}, black lines on paper|"
    "black and white lines: {text}",
    "{text}, in the style of an ink sketch|{text}, rendered as a line sketch",
  ),
  "pixel": _table(
    "in pixel art, {text}|{text}, in pixel art style|pixel art: {text}|{text}, as pixel art|"
    "{text}, pixelated|in coarse pixels, {text}|{text}, as in 8-bit graphics",
    "{text}, like an old pixel video game|{text}, drawn in big pixels",
  ),
  "mono": _table(
    "a monochrome video in which {text}|{text}, in monochrome|monochrome: {text}|"
    "{text}, in shades of a single colour|"
    "all in one hue: {text}|"
    "{text}, in one colour only|"
    "{text}, tinted",
    "{text}, in a single tint|a one-colour monochrome picture in which {text}",
  ),
}
