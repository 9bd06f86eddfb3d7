import json
import re
import shutil
import subprocess
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageColor

from classicrl.domains.cube3 import FACES, MOVES, SOLVED, parse_moves, turned
from classicrl.errors import UserError
from classicrl.views import cube3 as views
from classicrl.views.cube3 import SolvedCube, gif, html_page, terminal_net

# Sequences from the solved cube, and what they make of it.
EXAMPLES = {
    "R U R' U'": "UULUUFUUFRRUBRRURRFFDFFUFFFDDRDDDDDDBLLLLLLLLBRRBBBBBB",
    "D' L2 B R' F U": "LDRLURFLFLBBURBLRBDDURFFUUBRRDUDFFLRBBLULDDLFUFUDBBDFR",
    "U R2 F B R B2 R U2 L B2 R U' D' R2 F R' L B2 U2 F2": (
        "UBULURUFURURFRBRDRFUFLFRFDFDFDLDRDBDLULBLFLDLBUBRBLBDB"
    ),
}
HOSTILE = "</script><script>alert(1)</script> <!-- & \"quotes\" 'too' \u2028 \N{SNOWMAN} null"


def solved_cube(scramble: str, caption: str = "a caption") -> SolvedCube:
    """The cube that a sequence makes, and the way back."""
    moves = tuple(MOVES[action ^ 1] for action in reversed(parse_moves(scramble)))
    return SolvedCube(EXAMPLES[scramble], moves, caption)


ALL = [solved_cube(scramble, f"number {i}") for i, scramble in enumerate(EXAMPLES)]


class Page(HTMLParser):
    """Tags and attributes of a page, and the text of its scripts by their ids."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.scripts: dict[str, str] = {}
        self.open: str | None = None
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag == "script":
            self.open = dict(attrs)["id"] or ""
            self.scripts[self.open] = ""

    def handle_endtag(self, tag: str) -> None:
        self.open = None if tag == "script" else self.open

    def handle_data(self, data: str) -> None:
        if self.open:
            self.scripts[self.open] += data

    @property
    def data(self) -> dict[str, Any]:
        data: dict[str, Any] = json.loads(self.scripts["data"])
        return data


def applied(facelets: str, source: list[int]) -> str:
    return "".join(facelets[i] for i in source)


# The page.


def test_the_page_loads_nothing() -> None:
    text = html_page(ALL)
    assert not re.search(r"https?:|//[a-z]|\bsrc\s*=|url\(|@import|\bfetch\(|XMLHttp", text, re.I)
    page = Page(text)
    loading = {"img", "iframe", "object", "embed", "audio", "video", "base", "form", "a"}
    assert not loading & {tag for tag, _ in page.tags}
    links = [attributes["href"] for tag, attributes in page.tags if tag == "link"]
    assert links == ["data:,"]  # an empty icon: otherwise browsers ask for one
    assert [a.get("id") for tag, a in page.tags if tag == "script"] == ["data", "model", "view"]
    (policy,) = (a["content"] for tag, a in page.tags if a.get("http-equiv"))
    assert policy is not None and policy.startswith("default-src 'none'")


def test_the_cubes_come_through() -> None:
    data = Page(html_page(ALL)).data
    cubes = [SolvedCube(c["facelets"], tuple(c["moves"]), c["caption"]) for c in data["cubes"]]
    assert cubes == ALL


def test_hostile_captions_stay_text() -> None:
    harmless = html_page([ALL[0]])
    text = html_page([ALL[0]._replace(caption=HOSTILE)])
    page = Page(text)
    assert page.data["cubes"][0]["caption"] == HOSTILE
    assert page.tags == Page(harmless).tags
    assert not {"<", ">", "&", "\u2028"} & set(page.scripts["data"])
    assert "innerHTML" not in text and "document.write" not in text


def test_the_page_turns_as_the_domain_does() -> None:
    turns = Page(html_page(ALL)).data["turns"]
    assert list(turns) == list(MOVES)
    rng = np.random.default_rng(3)
    for action, move in enumerate(MOVES):
        assert sorted(turns[move]) == list(range(54))
        letters = "".join(rng.permutation(list(SOLVED)))
        assert applied(letters, turns[move]) == turned(letters, action)


@pytest.mark.parametrize("scramble", EXAMPLES)
def test_the_page_knows_the_worked_examples(scramble: str) -> None:
    turns = Page(html_page(ALL)).data["turns"]
    facelets = SOLVED
    for action in parse_moves(scramble):
        facelets = applied(facelets, turns[MOVES[action]])
    assert facelets == EXAMPLES[scramble]
    for move in solved_cube(scramble).moves:
        facelets = applied(facelets, turns[move])
    assert facelets == SOLVED


def test_a_right_turn_in_the_net() -> None:
    """R lifts the right column of the front to the top, and so on round the cube."""
    turns = Page(html_page(ALL)).data["turns"]
    assert [turns["R"][i] for i in (2, 5, 8)] == [20, 23, 26]  # top from front
    assert [turns["R"][i] for i in (51, 48, 45)] == [2, 5, 8]  # back from top, upside down
    assert [turns["R"][i] for i in (29, 32, 35)] == [51, 48, 45]  # bottom from back
    assert [turns["R"][i] for i in (20, 23, 26)] == [29, 32, 35]  # front from bottom


def test_every_element_that_the_script_names_is_there() -> None:
    page = Page(html_page(ALL))
    ids = [attributes["id"] for _, attributes in page.tags if "id" in attributes]
    assert len(ids) == len(set(ids))
    named = re.findall(r"(?:element|getElementById)\(\"([\w-]+)\"\)", page.scripts["view"])
    assert set(named) <= set(ids)
    for tag, attributes in page.tags:
        if tag == "button" and attributes["id"] != "sides":  # that one has a text
            assert attributes["aria-label"]


@pytest.mark.skipif(shutil.which("node") is None, reason="needs Node.js")
def test_the_script_turns_layers_to_where_the_stickers_go(tmp_path: Path) -> None:
    page = Page(html_page(ALL))
    check = """
    const page = JSON.parse(require("fs").readFileSync(0, "utf8")), {frames, turns, faces} = page;
    const worst = Math.max(...Object.entries(turns).flatMap(([move, source]) => {
      const axis = frames[faces.indexOf(move[0])][0];
      return source.map((from, to) => {
        const [start, end] = [from, to].map(
          i => plus(cubieOf(i, frames), frames[Math.floor(i / 9)][0], 0.5));
        const turns = dot(cubieOf(from, frames), axis) > 0.5;
        const there = turns ? rotated(start, axis, quarterTurn(move)) : start;
        return Math.hypot(...plus(there, end, -1));
      });
    }));
    const ends = page.cubes.map(cube => statesOf(cube, turns).at(-1));
    console.log(JSON.stringify({worst, ends, parts: cubies(frames).length}));
    """
    script = tmp_path / "check.js"
    script.write_text(page.scripts["model"] + check, encoding="utf-8")
    run = subprocess.run(
        ["node", str(script)],
        input=page.scripts["data"],
        capture_output=True,
        text=True,
        check=True,
        timeout=50,
    )
    said = json.loads(run.stdout)
    assert said["worst"] < 1e-9
    assert said["ends"] == [SOLVED] * len(ALL)
    assert said["parts"] == 27


def test_refuses_what_is_no_cube(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no cube to show"):
        html_page([])
    with pytest.raises(UserError, match="54 facelets"):
        html_page([SolvedCube(SOLVED[1:], (), "")])
    with pytest.raises(UserError, match="54 facelets"):
        terminal_net(SOLVED.replace("U", "x"), color=True)
    with pytest.raises(UserError, match=r"move 2, 'R2', is none of"):
        html_page([SolvedCube(SOLVED, ("R", "R2"), "")])
    with pytest.raises(UserError, match="at least 20"):
        gif(ALL[0], tmp_path / "a.gif", milliseconds_per_move=10)
    with pytest.raises(UserError, match="cannot write"):
        gif(SolvedCube(SOLVED, (), ""), tmp_path / "absent" / "a.gif")
    assert not list(tmp_path.iterdir())


# The GIF.


def net_of(picture: Image.Image) -> str:
    """Letters whose colours are nearest to those in the middles of the net's cells."""
    pixels = np.asarray(picture.convert("RGB")).astype(int)
    palette = np.array([ImageColor.getrgb(color) for color in views.COLORS])
    letters = []
    for index in range(54):
        x, y = views.net_corner(index)
        distances = np.abs(pixels[y + 7, x + 7] - palette).sum(axis=1)
        assert distances.min() < 30
        letters.append(FACES[distances.argmin()])
    return "".join(letters)


def test_the_gif_shows_every_state(tmp_path: Path) -> None:
    cube = ALL[1]
    path = tmp_path / "cube.gif"
    path.write_bytes(b"an old file")
    gif(cube, path, milliseconds_per_move=60)
    with Image.open(path) as image:
        assert image.size == views.GIF_SIZE
        assert image.n_frames == len(cube.moves) + 1
        nets, durations = [], []
        for frame in range(image.n_frames):
            image.seek(frame)
            nets.append(net_of(image))
            durations.append(image.info["duration"])
        assert image.info["loop"] == 0  # for ever
    assert nets == views.states(cube)
    assert nets[-1] == SOLVED
    assert durations[1:-1] == [60] * (len(cube.moves) - 1)
    assert list(tmp_path.iterdir()) == [path]


def test_the_gif_turns_layers_smoothly(tmp_path: Path) -> None:
    cube = ALL[0]
    gif(cube, tmp_path / "cube.gif")
    with Image.open(tmp_path / "cube.gif") as image:
        frames, durations = [], []
        for frame in range(image.n_frames):
            image.seek(frame)
            frames.append(image.convert("RGB").tobytes())
            durations.append(image.info["duration"])
        assert net_of(image) == SOLVED
    assert len(frames) >= 4 * len(cube.moves)
    assert len(set(frames)) == len(frames)
    # Each move takes its time, but the last picture is seen for longer.
    per_move = len(durations[1:]) // len(cube.moves)
    assert sum(durations[1 : 1 + per_move]) == 400
    assert sum(durations[1:-1]) + durations[per_move] == 400 * len(cube.moves)
    assert min(durations[0], durations[-1]) >= 1000


def test_a_solved_cube_needs_one_picture(tmp_path: Path) -> None:
    gif(SolvedCube(SOLVED, (), "nothing to do"), tmp_path / "cube.gif")
    with Image.open(tmp_path / "cube.gif") as image:
        assert image.n_frames == 1
        assert net_of(image) == SOLVED


@pytest.mark.parametrize("action", range(12))
def test_turned_layers_end_where_the_stickers_go(action: int) -> None:
    centers, axis = views.sticker_centers(), views.FRAMES[action // 2][0]
    matrix = views.rotation(axis, views.turn_angle(MOVES[action]))
    layer = (centers @ axis > 0.5)[:, None]
    ends = np.where(layer, centers @ matrix.T, centers)
    np.testing.assert_allclose(ends[views.turn_sources(action)], centers, atol=1e-12)


# The terminal.


def test_terminal_net_by_hand() -> None:
    assert terminal_net(EXAMPLES["R U R' U'"], color=False).splitlines() == [
        "       U U L",
        "       U U F",
        "       U U F",
        "B L L  F F D  R R U  B R R",
        "L L L  F F U  B R R  B B B",
        "L L L  F F F  U R R  B B B",
        "       D D R",
        "       D D D",
        "       D D D",
    ]


def test_terminal_net_in_colors() -> None:
    codes = {"231": "U", "160": "R", "34": "F", "226": "D", "208": "L", "27": "B"}
    facelets = EXAMPLES["D' L2 B R' F U"]
    colored = terminal_net(facelets, color=True)
    letters = re.sub(r"\x1b\[48;5;(\d+)m  ", lambda found: codes[found[1]] + " ", colored)
    plain = [line.rstrip() for line in letters.replace("\x1b[0m", "").splitlines()]
    assert plain == terminal_net(facelets, color=False).splitlines()
    # The background is reset before the gap between faces and before every line's end.
    assert all(line.endswith("\x1b[0m") for line in colored.splitlines())
    assert colored.count("\x1b[0m") == 18
