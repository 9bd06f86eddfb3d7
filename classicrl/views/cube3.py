"""A Rubik's cube being solved: a page that plays the moves, an animated GIF, a net for terminals.

All three follow the facelet order and the turns of :mod:`classicrl.domains.cube3`. The page draws
with the same frames of the faces as the GIF and is handed the turns as permutations, so that none
of it is written down twice.
"""

import io
import json
import textwrap
from collections.abc import Iterator, Sequence
from importlib import resources
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageColor, ImageDraw, ImageFont

from classicrl.checkpoint.files import write_atomic
from classicrl.domains.cube3 import FACES, MOVES, SOLVED, turned
from classicrl.errors import UserError

Floats = NDArray[np.float64]

FACE_NAMES = ("top", "right", "front", "bottom", "left", "back")
COLORS = ("#f7f8fa", "#d0202b", "#0d9a4c", "#ffd51a", "#ff8518", "#1859d6")  # of U R F D L B
_ANSI_COLORS = (231, 160, 34, 226, 208, 27)  # the nearest of the 256 that terminals know

# Column and row of each face in the unfolded cube.
NET = ((1, 0), (2, 1), (1, 1), (1, 2), (0, 1), (3, 1))
# Outward normal of each face, then where its columns and its rows run; x, y, z point to R, U, F.
FRAMES: Floats = np.array(
    [
        [(0, 1, 0), (1, 0, 0), (0, 0, 1)],
        [(1, 0, 0), (0, 0, -1), (0, -1, 0)],
        [(0, 0, 1), (1, 0, 0), (0, -1, 0)],
        [(0, -1, 0), (1, 0, 0), (0, 0, -1)],
        [(-1, 0, 0), (0, 0, 1), (0, -1, 0)],
        [(0, 0, -1), (-1, 0, 0), (0, -1, 0)],
    ],
    dtype=np.float64,
)


class SolvedCube(NamedTuple):
    """A cube and the moves that solve it."""

    facelets: str  # at the start: 54 letters, see classicrl.domains.cube3
    moves: tuple[str, ...]  # quarter turns such as R and U'
    caption: str  # one line, such as "22 quarter turns, 0.8 s, 61,204 nodes"


def states(cube: SolvedCube) -> list[str]:
    """The cube's letters before the first move and after each.

    Raises:
        UserError: these are not 54 letters of faces, or a move is no quarter turn.
    """
    _check_letters(cube.facelets)
    for number, move in enumerate(cube.moves, start=1):
        if move not in MOVES:
            allowed = " ".join(MOVES)
            raise UserError(f"move {number}, {move!r}, is none of the quarter turns {allowed}")
    found = [cube.facelets]
    for move in cube.moves:
        found.append(turned(found[-1], MOVES.index(move)))
    return found


def _check_letters(facelets: str) -> None:
    if len(facelets) != 54 or not set(facelets) <= set(FACES):
        raise UserError(f"a cube has 54 facelets, letters of {FACES}; this is {facelets!r}")


def turn_sources(action: int) -> list[int]:
    """For each facelet after a turn, the one where its sticker was before."""
    return [ord(letter) for letter in turned("".join(map(chr, range(54))), action)]


# The page.


def html_page(cubes: Sequence[SolvedCube]) -> str:
    """A page that plays the solutions, whole in itself: it loads nothing from anywhere.

    Raises:
        UserError: there is no cube, or one is not as :func:`states` wants it.
    """
    if not cubes:
        raise UserError("no cube to show: give one or more")
    for cube in cubes:
        states(cube)
    data = json.dumps(
        {
            "faces": FACES,
            "names": FACE_NAMES,
            "colors": COLORS,
            "net": NET,
            "frames": FRAMES.astype(int).tolist(),
            "turns": {move: turn_sources(action) for action, move in enumerate(MOVES)},
            "cubes": [cube._asdict() for cube in cubes],
        },
        separators=(",", ":"),
    )
    # Inside a script element, nothing but "<" could end the data.
    data = data.replace("&", r"\u0026").replace("<", r"\u003c").replace(">", r"\u003e")
    template = resources.files("classicrl.views").joinpath("cube3.html").read_text("utf-8")
    before, after = template.split(">null<")
    return f"{before}>{data}<{after}"


# The terminal.


def terminal_net(facelets: str, *, color: bool) -> str:
    """The unfolded cube, nine lines, two characters a sticker.

    Args:
        facelets: 54 letters.
        color: ANSI background colours; without, the stickers' letters.

    Raises:
        UserError: these are not 54 letters of faces.
    """
    _check_letters(facelets)
    lines = []
    for y in range(9):
        groups = []
        for x in range(4):
            if (x, y // 3) not in NET:
                groups.append(" " * 6)
                continue
            first = 9 * NET.index((x, y // 3)) + 3 * (y % 3)
            row = facelets[first : first + 3]
            if color:
                codes = (_ANSI_COLORS[FACES.index(letter)] for letter in row)
                groups.append("".join(f"\x1b[48;5;{code}m  " for code in codes) + "\x1b[0m")
            else:
                groups.append("".join(f"{letter} " for letter in row))
        lines.append(" ".join(groups).rstrip())
    return "\n".join(lines)


# The GIF. Lengths are in pixels of the finished picture, in the cube in cubies.

GIF_SIZE = (600, 400)
_OVERSAMPLING = 3  # drawn so much larger and then reduced, for smooth edges
_TURNING = 0.7  # share of a move's time; then the cube rests
_FRAME_MILLISECONDS = 50
_FIRST_MILLISECONDS, _LAST_MILLISECONDS = 1000, 2500
_PAPER, _INK, _FAINT, _BODY = "#eef1f5", "#171a20", "#5c6573", "#17191d"
_LINE, _BAR = "#d3dae4", "#1c5cd0"
_MIDDLE, _RADIUS = (188, 184), 172  # of the cube, whatever way its layers stand
_NET_CORNER, _CELL, _GUTTER = (376, 40), 15, 5

_DISTANCE, _YAW, _PITCH = 11.0, 0.66, 0.52  # of the eye
_VIEW: Floats = np.array(
    [
        [np.cos(_YAW), 0.0, -np.sin(_YAW)],
        [-np.sin(_YAW) * np.sin(_PITCH), np.cos(_PITCH), -np.cos(_YAW) * np.sin(_PITCH)],
        [np.sin(_YAW) * np.cos(_PITCH), np.sin(_PITCH), np.cos(_YAW) * np.cos(_PITCH)],
    ]
)
_EYE: Floats = _DISTANCE * _VIEW[2]
_LIGHT: Floats = np.array([-0.1, 0.86, 0.5])
_SQUARE: Floats = np.array([[1.0, 1.0], [-1.0, 1.0], [-1.0, -1.0], [1.0, -1.0]])
_OUTER = 1.5 * np.sqrt(3)  # from the middle to a corner
_ZOOM = _RADIUS * np.sqrt(_DISTANCE**2 - _OUTER**2) / _OUTER


def gif(cube: SolvedCube, path: Path, *, milliseconds_per_move: int = 400) -> None:
    """Writes the solution as an animated GIF: three faces, turning, and a net of all six.

    Args:
        cube: to be solved.
        path: of the GIF; its directory must exist.
        milliseconds_per_move: at least 20; players show nothing faster.

    Raises:
        UserError: the cube is not as :func:`states` wants it, or the GIF cannot be written.
    """
    if milliseconds_per_move < 20:
        raise UserError(f"{milliseconds_per_move} ms per move are too few: give at least 20")
    known = states(cube)
    # One palette for all, made of some: what does not change between two pictures is not stored.
    last = len(cube.moves)
    some = [
        np.asarray(_picture(cube, known, done, 0.4 if done < last else 0.0))
        for done in sorted({last, *range(0, last, 1 + last // 12)})
    ]
    palette = Image.fromarray(np.concatenate(some)).quantize(128)
    pictures, durations = [], []
    for picture, milliseconds in _frames(cube, known, milliseconds_per_move):
        pictures.append(picture.quantize(palette=palette, dither=Image.Dither.NONE))
        durations.append(milliseconds)
    file = io.BytesIO()
    pictures[0].save(
        file,
        format="GIF",
        save_all=True,
        append_images=pictures[1:],
        duration=durations,
        loop=0,
        optimize=False,
    )
    try:
        write_atomic(path, file.getvalue())
    except OSError as error:
        raise UserError(f"cannot write {path} ({error.strerror}): choose another path") from error


def _frames(
    cube: SolvedCube, known: Sequence[str], milliseconds_per_move: int
) -> Iterator[tuple[Image.Image, int]]:
    """Pictures of a cube with these states, and how long each is seen."""
    last = len(cube.moves)
    yield _picture(cube, known, 0, 0.0), _FIRST_MILLISECONDS if last else _LAST_MILLISECONDS
    steps = max(1, round(_TURNING * milliseconds_per_move / _FRAME_MILLISECONDS))
    rest = milliseconds_per_move - (steps - 1) * _FRAME_MILLISECONDS
    for number in range(1, last + 1):
        for step in range(1, steps):
            t = step / steps
            yield _picture(cube, known, number - 1, t * t * (3 - 2 * t)), _FRAME_MILLISECONDS
        yield _picture(cube, known, number, 0.0), _LAST_MILLISECONDS if number == last else rest


def _picture(cube: SolvedCube, known: Sequence[str], done: int, share: float) -> Image.Image:
    """The cube after ``done`` moves and a ``share`` of the next one."""
    width, height = GIF_SIZE
    scale = _OVERSAMPLING
    picture = Image.new("RGB", (scale * width, scale * height), _PAPER)
    draw = ImageDraw.Draw(picture)
    number, total = done + (share > 0), len(cube.moves)
    move = cube.moves[number - 1] if number else ""
    for polygon, color in _cube_polygons(known[done], move, share):
        draw.polygon([(scale * x, scale * y) for x, y in polygon.tolist()], fill=color)
    for index, letter in enumerate(known[done]):
        x, y = (scale * place for place in net_corner(index))
        side = scale * _CELL
        if index % 9 == 0:  # the face's ground
            box = (x - scale, y - scale, x + 3 * side + scale - 1, y + 3 * side + scale - 1)
            draw.rounded_rectangle(box, radius=3 * scale, fill=_BODY)
        box = (x + scale, y + scale, x + side - scale - 1, y + side - scale - 1)
        draw.rounded_rectangle(box, radius=3 * scale, fill=COLORS[FACES.index(letter)])
    draw.rectangle((0, scale * (height - 5), scale * width, scale * height), fill=_LINE)
    progress = (done + share) / total if total else 1.0
    draw.rectangle((0, scale * (height - 5), scale * width * progress, scale * height), fill=_BAR)
    picture = picture.reduce(scale)

    draw = ImageDraw.Draw(picture)
    left = _NET_CORNER[0]
    solved = known[done] == SOLVED and not share
    words = [f"{number} of {total}" if total else "", "solved" if solved else ""]
    draw.text((left, 226), move or "start", _INK, ImageFont.load_default(60 if move else 34))
    draw.text((left, 298), ", ".join(filter(None, words)), _FAINT, ImageFont.load_default(20))
    caption = textwrap.shorten(cube.caption, 80, placeholder=" ...")
    draw.text((width / 2, height - 26), caption, _FAINT, ImageFont.load_default(15), anchor="mm")
    return picture


def net_corner(index: int) -> tuple[int, int]:
    """Upper left corner of a facelet's cell in the GIF's net."""
    (column, row), (y, x) = NET[index // 9], divmod(index % 9, 3)
    return (
        _NET_CORNER[0] + _CELL * (3 * column + x) + _GUTTER * column,
        _NET_CORNER[1] + _CELL * (3 * row + y) + _GUTTER * row,
    )


def sticker_centers() -> Floats:
    """Where the facelets are, [54, 3]; the cube's edge is 3 and its middle the origin."""
    rows, columns = np.divmod(np.arange(9), 3) - np.array([[1], [1]])
    normal, right, down = FRAMES.transpose(1, 0, 2)[:, :, None]  # [6, 1, 3] each
    centers: Floats = 1.5 * normal + columns[:, None] * right + rows[:, None] * down
    return centers.reshape(54, 3)


def rotation(axis: Floats, angle: float) -> Floats:
    """Matrix that rotates points about a unit axis, counter-clockwise for who looks against it."""
    x, y, z = axis
    cross: Floats = np.array([[0.0, -z, y], [z, 0.0, -x], [-y, x, 0.0]])
    straight: Floats = np.cos(angle) * np.eye(3) + (1 - np.cos(angle)) * np.outer(axis, axis)
    matrix: Floats = straight + np.sin(angle) * cross
    return matrix


def turn_angle(move: str) -> float:
    """Of the layer, about its outward axis: clockwise as seen from outside, or the other way."""
    return np.pi / 2 if move.endswith("'") else -np.pi / 2


def _rounded_square(half: float, radius: float) -> Floats:
    """Corners of a square with round corners, [24, 2]."""
    angles = np.linspace(0, np.pi / 2, 6) + np.pi / 2 * np.arange(4)[:, None]
    around: Floats = np.stack([np.cos(angles), np.sin(angles)], axis=-1)
    return ((half - radius) * _SQUARE[:, None] + radius * around).reshape(-1, 2)


def _cube_polygons(facelets: str, move: str, share: float) -> Iterator[tuple[Floats, str]]:
    """What is seen of a cube, the farther first: polygons [N, 2] in pixels and their colours.

    A turning layer and the rest are two boxes, apart at a plane: the one on the eye's side hides
    the other. Of a single box all sides that face the eye are seen whole.
    """
    axis = FRAMES[FACES.index(move[0])][0] if share else FRAMES[0][0]
    centers, outline = sticker_centers(), _rounded_square(0.43, 0.11)
    heights = centers @ axis  # above the middle slice
    blocks = [(-1.5, 1.5, np.eye(3))]
    if share:
        layer = (0.5, 1.5, rotation(axis, share * turn_angle(move)))
        blocks = [(-1.5, 0.5, np.eye(3)), layer]
        if _EYE @ axis < 0.5:
            blocks.reverse()
    for low, high, turn in blocks:
        for face, (normal, right, down) in enumerate(FRAMES):
            signs = np.array([normal + u * right + v * down for u, v in _SQUARE])
            above = signs @ axis
            box = 1.5 * signs + np.outer(np.where(above > 0, high, low) - 1.5 * above, axis)
            facing = turn @ normal
            if facing @ (_EYE - turn @ box[0]) <= 0:
                continue
            yield _projected(box @ turn.T), _shaded(_BODY, facing)
            for i in range(9 * face, 9 * face + 9):
                if low <= heights[i] <= high:
                    sticker = centers[i] + outline[:, :1] * right + outline[:, 1:] * down
                    color = COLORS[FACES.index(facelets[i])]
                    yield _projected(sticker @ turn.T), _shaded(color, facing)


def _projected(points: Floats) -> Floats:
    """Where points [N, 3] are in the picture, [N, 2]."""
    seen = points @ _VIEW.T
    flat: Floats = _ZOOM * seen[:, :2] / (_DISTANCE - seen[:, 2:])
    return np.array(_MIDDLE) + flat * [1, -1]


def _shaded(color: str, facing: Floats) -> str:
    """A surface's colour in the light."""
    brightness = min(1.0, 0.8 + 0.22 * max(0.0, float(facing @ _LIGHT)))
    red, green, blue = (round(brightness * value) for value in ImageColor.getrgb(color)[:3])
    return f"#{red:02x}{green:02x}{blue:02x}"
