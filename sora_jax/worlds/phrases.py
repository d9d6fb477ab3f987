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
  "ball": _table("sphere|globe|round sphere", "orb|marble"),
  "cube": _table("box|square cube", "block|die"),
  "cylinder": _table("drum|barrel|round drum", "can|tube"),
  "cone": _table("pointed cone|tapered cone", "traffic cone|party hat"),
  "capsule": _table("pill|medicine pill|lozenge", "tablet"),
}
SIZES: dict[str, Choices] = {
  "small": _table("small|little|miniature", "tiny|mini"),
  "large": _table("large|big|giant", "huge"),
}
NUMBERS: dict[int, Choices] = {
  3: _table("three", "3"),
  4: _table("four", "4"),
}
COUNTS = {1: "one", 2: "two", 3: "three", 4: "four", 5: "five"}
TOWERS = _table("a stack|a tower", "a pile|a column|a tall stack")
ROLLS = _table("rolls|rolls|moves|goes|wanders", "trundles|rolls along|bowls")
SLIDES = _table("slides|slides|moves|goes|shifts", "glides|slips|skids")

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
    "{main} {goes} along the ground from {other} to {side}|"
    "i want to see {main} that travels over the floor to the {side}|"
    "{side}ward motion: {main} {goes} over the floor all the way to the {side} edge of the picture|"
    "starting on the {other}, {main} {goes} straight across the room and ends up on the {side}",
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
    "{main} {goes} right up to the camera|"
    "from the back of the room {main} {goes} closer and closer to us|"
    "a clip of {main} coming straight at the viewer and getting bigger|"
    "{main} starts far away and approaches the lens along the floor",
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
    "{main} {goes} off into the distance|"
    "{main} starts close to us, then {goes} to the back of the scene|"
    "we watch {main} getting smaller as it heads away from the viewer|"
    "leaving the camera behind, {main} {goes} farther and farther back",
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
    "{main} drops from above, lands on the ground and stays there|"
    "{main} comes down out of the air and ends up lying still on the floor|"
    "something falls: {main} hits the ground and doesn't move any more|"
    "show {main} plunging to the floor, where it comes to rest",
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
    "{main} keeps hopping up and down on the ground|"
    "dropped from a height, {main} bounces a few times on the floor|"
    "{main} hits the floor, springs back up, comes down and jumps up again|"
    "video of {main} bouncing again and again, each time a bit lower",
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
    "{main} {goes} {side}, vanishes behind a wall for a moment and shows up again|"
    "coming from the {other}, {main} goes behind a wall and pops back out on the {side}|"
    "a wall stands in the middle, {main} {goes} behind it and reappears on its {side} side|"
    "{main} heading {side}, out of sight behind a wall, then visible again",
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
    "{main} {goes} behind a wall and stays out of sight|"
    "{main} disappears behind a wall and never shows up again|"
    "there is a wall, and {main} goes to hide behind it for good|"
    "we lose sight of {main} as it slips behind a wall and remains there",
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
    "{main} sits next to a wall and nothing moves|"
    "beside a wall there is {main}, just staying where it is|"
    "a wall with {main} at its side, nothing at all going on|"
    "{main} stays put near a wall for the whole clip",
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
    "{main} just sitting there, not moving|"
    "a quiet still life with {main}|"
    "nothing happens, we simply look at {main} on the floor|"
    "{main} stays perfectly still the whole time",
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
    "{main} {goes} to the {side} and crashes into {target}, sending it flying {side}|"
    "coming from the {other}, {main} smashes into {target} and knocks it away to the {side}|"
    "{main} rams {target}, which gets flung to the {side}|"
    "a collision: {main} speeds {side} and bumps hard into {target}, which shoots off to the "
    "{side}",
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
    "{main} gets shoved to the {side} by a paddle and stays there|"
    "a paddle comes in from the {other} and moves {main} over to the {side}, where it stops|"
    "with a gentle push from a paddle, {main} is moved {side} and then stays put|"
    "a paddle nudges {main} along to the {side} and leaves it standing there",
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
    "{main} tips over and comes crashing down|"
    "{main} loses its balance and tumbles to the ground|"
    "watch {main} collapse, the pieces ending up all over the floor|"
    "at first it stands, then it wobbles and goes down: {main} falling apart",
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
    "{main} dangles from a string and sways back and forth|"
    "tied to a string, {main} swings from side to side like the weight of a clock|"
    "a pendulum made of a string and {main}, going to and fro|"
    "{main} on the end of a cord, swinging left and right in the air",
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
    "{main} goes round and round {target}|"
    "{main} keeps travelling in a ring around {target}|"
    "with {target} in the middle, {main} makes one loop after another around it|"
    "like a planet around its sun, {main} orbits {target}",
  ),
}
EXTRAS = _table(
  ", with {things} in the scene|, {things} in the background|, next to {things}|, with {things}",
  ", with {things} also in the picture| while {things} stand nearby|"
  ", plus {things} in the background",
)
FLOOR_NAMES = {
  "grey": "grey", "white": "white", "dark": "dark", "wooden": "wooden", "checkered": "checkered",
  "sandy": "sandy", "grassy": "grassy", "tiled": "tiled",
}  # fmt: skip
FLOORS = _table(
  " on a {floor} floor|, on a {floor} floor|, the floor is {floor}",
  ", the ground is a {floor} floor| in a room with a {floor} floor|, all on {floor} flooring",
)
LIGHTS: dict[str, Choices] = {
  "day": _table(
    " in daylight|, by day|, in bright light| on a bright day",
    ", in bright daylight| on a sunny day|, around noon",
  ),
  "dusk": _table(
    " at dusk|, at sunset|, in evening light", ", just as the sun goes down| in the evening light"
  ),
  "night": _table(
    " at night|, by night|, in the dark of the night",
    ", in the middle of the night| after dark|, under the moonlight",
  ),
}
CAMERAS: dict[str, Choices] = {
  "static": _table(
    ", static camera|, the camera is still",
    ", the camera never moves|, filmed from a tripod|, fixed shot",
  ),
  "pan": _table(
    ", the camera pans to the {side}|, the camera pans {side}",
    ", the camera turns to the {side}|, slow pan {side}|, while the view sweeps to the {side}",
  ),
  "zoom": _table(
    ", the camera zooms {way}|, camera zooming {way}",
    ", slowly zooming {way}|, with a smooth zoom {way}",
  ),
  "orbit": _table(
    ", the camera circles to the {side}|, the camera orbits around it to the {side}|"
    ", seen by a camera that moves around to the {side}",
    ", the camera circles around the scene to the {side}|"
    ", filmed by a camera moving around to the {side}|, orbit shot moving {side}",
  ),
}
LOOKS: dict[str, Choices] = {
  "line": _table(
    "in a line drawing, {text}|{text}, as a line drawing|line drawing: {text}|"
    "{text}, drawn with ink lines|"
    "hand-drawn lines: {text}|"
    "{text}, black lines on paper|"
    "black and white lines: {text}",
    "simple line drawing: {text}|{text}, drawn with thin ink outlines|a pen sketch: {text}",
  ),
  "pixel": _table(
    "in pixel art, {text}|{text}, in pixel art style|pixel art: {text}|{text}, as pixel art|"
    "{text}, pixelated|in coarse pixels, {text}|{text}, as in 8-bit graphics",
    "{text}, like in an old 8-bit video game|retro pixel graphics: {text}|"
    "{text}, made of big chunky pixels",
  ),
  "mono": _table(
    "a monochrome video in which {text}|{text}, in monochrome|monochrome: {text}|"
    "{text}, in shades of a single colour|"
    "all in one hue: {text}|"
    "{text}, in one colour only|"
    "{text}, tinted",
    "{text}, everything in shades of one single colour|monochrome picture, {text}|"
    "{text}, tinted in just one hue",
  ),
}
