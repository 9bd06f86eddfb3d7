"""Reports of run directories: whole in themselves, escaped, and honest about what is missing."""

import importlib.util
import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image
from synthetic_runs import write_minatar, write_model, write_peer, write_run, write_table

from classicrl import cli
from classicrl.errors import RunFailure, UserError
from classicrl.experiment import Run, StopRequest
from classicrl.reports.report_page import in_words, read_files, run_page, write_report
from classicrl.views.html_page import chart, picture, read_picture
from classicrl.views.line_chart import Line, line_chart, nice_ticks, thinned

ROOT = Path(__file__).resolve().parents[1]
REFERENCE = ROOT / "runs" / "reference"
VOID = {"meta", "link", "img", "source", "br"}
HOSTILE = """<script>alert(1)</script><img src=x onerror=alert(2)>"' &amp; ' onload='x'"""


class Page(HTMLParser):
    """What a browser would make of it; refuses elements that are closed out of order."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.source = text
        self.tags: list[tuple[str, dict[str, str]]] = []
        self.words = ""
        self._open: list[str] = []
        self.feed(text)
        self.close()
        assert not self._open, self._open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, {name: value or "" for name, value in attrs}))
        if tag not in VOID:
            self._open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, {name: value or "" for name, value in attrs}))

    def handle_endtag(self, tag: str) -> None:
        assert self._open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self._open[-1:] != ["style"]:
            self.words += data + "\n"

    def named(self, tag: str) -> list[dict[str, str]]:
        return [attributes for name, attributes in self.tags if name == tag]


def checked(text: str) -> Page:
    """A page that loads nothing, runs nothing, and can be read aloud."""
    page = Page(text)
    tags = {name for name, _ in page.tags}
    assert not tags & {"script", "iframe", "object", "embed", "form", "base", "a", "video"}
    for name, attributes in page.tags:
        assert not [key for key in attributes if key.startswith("on")], (name, attributes)
        for key in ("src", "href", "srcset", "data", "poster", "action", "xlink:href"):
            assert attributes.get(key, "data:").startswith("data:"), (name, attributes)
    style = text.partition("<style>")[2].partition("</style>")[0]
    assert "url(" not in style and "@import" not in style
    assert len(page.named("h1")) == 1 and page.named("h2")
    assert page.named("html") == [{"lang": "en"}]
    for image in page.named("img"):
        assert image["alt"] and image["src"].startswith("data:image/")
    for drawing in page.named("svg"):
        assert drawing.get("aria-hidden") == "true" or drawing["aria-label"]
    assert all(header["scope"] for header in page.named("th"))
    return page


def write_gif(path: Path, frames: int = 3) -> None:
    pictures = [Image.new("RGB", (40, 30), (80 * i, 20, 10)) for i in range(frames)]
    pictures[0].save(path, save_all=True, append_images=pictures[1:], duration=50)


# ------------------------------------------------------------------------------- whole runs


def test_a_finished_run(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", seed=3, summary={"num_parameters": 1_234_567})
    write_model(run / "model.safetensors")
    write_gif(run / "video.gif")
    Image.new("RGB", (50, 20), "red").save(run / "bonus.png")
    page = checked(write_report(run).read_text())
    for words in (
        "dueling_dqn_atari on ALE/Pong-v5",
        "-12 ± 2.5 over 9 games",
        "1,234,567",
        "no sticky actions",
        "python agents/dueling_dqn_atari.py --preset cpu --env-id ALE/Pong-v5",
        "--no-double",
        "c0ffee",
        "2 cores | a test",
        "never continued with other settings",
        "metrics.csv",
    ):
        assert words in page.words, words
    assert "Not whole" not in page.words and "report.html" not in page.words
    assert [image["src"].partition(";")[0] for image in page.named("img")] == [
        "data:image/gif",
        "data:image/png",
    ]
    (still,) = page.named("source")
    assert still["media"] == "(prefers-reduced-motion: reduce)"
    spoken = [svg["aria-label"] for svg in page.named("svg") if "aria-label" in svg]
    assert "to -11 at 7,000" in spoken[0]  # -21 + 7 + 3
    assert sum("between" in words for words in spoken) == len(spoken) == 3
    # Written again it does not count itself.
    assert "report.html" not in checked(write_report(run).read_text()).words


def test_an_unfinished_run_says_how_far_it_came(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", seed=0, finished=False)
    record = json.loads((run / "config.json").read_text())
    record["changes"] = [{"at": "2026-02-03T04:05:06Z", "fields": {"total_steps": 90_000}}]
    record["config"]["total_steps"] = 90_000
    (run / "config.json").write_text(json.dumps(record))
    page = checked(write_report(run, tmp_path / "page.html").read_text())
    assert "there is no summary.json" in page.words
    assert "the last row is of step 7,000 of 90,000" in page.words
    assert "2026-02-03T04:05:06Z\ntotal_steps 90,000" in page.words


def test_seeds_side_by_side(tmp_path: Path) -> None:
    for seed, score in ((4, 10.0), (5, 30.0)):
        write_minatar(tmp_path / f"seed{seed}", member="va", game="Asterix", seed=seed, score=score)
    shared = tmp_path / "seeds4-6"
    shared.mkdir()
    config = {"member": "va", "env_id": "MinAtar/Asterix-v1", "seed": 4, "num_seeds": 3}
    (shared / "config.json").write_text(json.dumps({"config": config}))
    page = checked(write_report(shared).read_text())
    assert "30 ± 2 over 100 games" in page.words
    assert "seed6 is not a directory" in page.words
    assert page.words.count("seed 5") == 2  # in the legend, in the table


REFERENCES = [
    *("qstar_cube3_train", "va_tabular", "ppo_rnd_small", "sb3-dqn", "va_minatar-va"),
    "dueling_dqn_atari",
]


@pytest.mark.parametrize("agent", REFERENCES)
def test_published_runs(agent: str) -> None:
    directory = min((REFERENCE / agent).rglob("summary.json")).parent
    page = checked(run_page(read_files(directory)))
    expected = {
        "qstar_cube3_train": "solved share",
        "va_tabular": "curves.csv",
        "ppo_rnd_small": "The command that trained it is not recorded",
        "sb3-dqn": "there is no config.json",
        "va_minatar-va": "sticky actions 0.1",
        "dueling_dqn_atari": "Diagnostics",
    }
    assert expected[agent] in page.words
    recorded = agent not in ("ppo_rnd_small", "sb3-dqn")
    assert (f"python agents/{agent.partition('-')[0]}.py" in page.words) == recorded


# ------------------------------------------------------------------------ hostile and damaged


def test_what_files_say_is_escaped(tmp_path: Path) -> None:
    run = write_run(
        tmp_path / "run", seed=0, env_id=HOSTILE, protocol=HOSTILE, **{HOSTILE: HOSTILE}
    )
    summary = json.loads((run / "summary.json").read_text())
    summary |= {"agent": HOSTILE, "machine": HOSTILE, HOSTILE: [HOSTILE], "versions": {HOSTILE: 1}}
    summary["eval"] |= {"mean_return": HOSTILE, "episodes": HOSTILE, HOSTILE: HOSTILE}
    (run / "summary.json").write_text(json.dumps(summary))
    record = json.loads((run / "config.json").read_text())
    record |= {"created": HOSTILE, "changes": [{"at": HOSTILE, "fields": {HOSTILE: HOSTILE}}]}
    (run / "config.json").write_text(json.dumps(record))
    name = "<img src=x onerror=alert(1)>&'"  # of a file: no slash
    write_table(run / "metrics.csv", {"step": [1, 2], HOSTILE: [0.5, 0.7], "losses/a": [1, 2]})
    write_table(run / f"{name}.csv", {HOSTILE: [HOSTILE, HOSTILE], "b": [HOSTILE, 2]})
    write_gif(run / f"{name}.gif")
    write_model(run / "model.safetensors", agent=HOSTILE)
    page = checked(write_report(run).read_text())
    assert page.words.count(HOSTILE) > 10
    assert f"{name}.gif" in page.words


def test_damaged_files_are_named(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", seed=0)
    (run / "summary.json").write_text('{"agent": ')
    (run / "evaluations.csv").write_text("step,mean_return\n5,high\n")
    (run / "video.gif").write_bytes(b"GIF89a no more")
    (run / "bonus.png").write_text("<svg onload='x'/>")
    page = checked(write_report(run).read_text())
    for name in ("summary.json cannot be read", "evaluations.csv is damaged"):
        assert name in page.words
    for name in ("video.gif", "bonus.png"):
        assert f"{name} cannot be read as a picture" in page.words
    assert not page.named("img")
    assert "losses" in page.words.lower()  # what is whole is shown


def test_facts_of_the_wrong_kind(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", seed=0)
    whole = json.loads((run / "summary.json").read_text())
    odd: list[Any] = [
        None,
        True,
        [],
        {},
        "x",
        -1,
        1e308,
        10**400,
        float("nan"),
        [[1]],
        [10**400] * 9,
    ]
    for value in odd:
        (run / "summary.json").write_text(json.dumps({name: value for name in whole}))
        (run / "config.json").write_text(
            json.dumps({"config": {"seed": value, "num_seeds": value}, "versions": value})
        )
        checked(run_page(read_files(run)))
        (run / "config.json").write_text(json.dumps({"config": value, "changes": value}))
        checked(run_page(read_files(run)))


@settings(
    max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    name=st.sampled_from(["config.json", "summary.json", "metrics.csv", "evaluations.csv"]),
    data=st.binary(max_size=60) | st.text(alphabet='step,\n"\r\0[]{}:0-eE.', max_size=60),
    alone=st.booleans(),
)
def test_any_bytes_end_in_a_page_or_one_line(
    tmp_path: Path, name: str, data: bytes | str, alone: bool
) -> None:
    run = tmp_path / "run"
    shutil.rmtree(run, ignore_errors=True)
    if alone:
        run.mkdir()
    else:
        write_run(run, seed=0)
    (run / name).write_bytes(data if isinstance(data, bytes) else data.encode())
    try:
        checked(run_page(read_files(run)))
    except UserError as error:
        assert alone and "\n" not in str(error)


def test_the_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def error_of(*arguments: object) -> str:
        with pytest.raises(SystemExit) as left:
            cli.main(["report", *map(str, arguments)])
        assert left.value.code == 2
        return capsys.readouterr().err

    (tmp_path / "empty").mkdir()
    assert "is not a directory" in error_of(tmp_path / "absent")
    assert "holds nothing of a run" in error_of(tmp_path / "empty")
    run = write_peer(tmp_path / "peer", seed=1)
    assert "is no directory: make it" in error_of(run, "--out", tmp_path / "a" / "b.html")
    assert "cannot write" in error_of(run, "--out", tmp_path / "empty")
    out = tmp_path / "page.html"
    with pytest.raises(SystemExit) as left:
        cli.main(["report", str(run), "--out", str(out)])
    assert (left.value.code, capsys.readouterr().out) == (0, f"wrote {out}\n")
    assert "sb3-dqn" in checked(out.read_text()).words


def test_a_page_binds_no_configuration_and_goes_with_the_run(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", seed=0)
    write_report(run)
    with Run(run, overwrite=True):
        assert not (run / "report.html").exists()


def test_matplotlib_is_not_needed(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", seed=0)
    program = (
        "import sys\n"
        "for name in ('matplotlib', 'ale_py', 'minatar'): sys.modules[name] = None\n"
        f"from classicrl.reports.report_page import write_report, Path\n"
        f"write_report(Path({str(run)!r}))\n"
    )
    subprocess.run([sys.executable, "-c", program], check=True, cwd=ROOT)
    checked((run / "report.html").read_text())


# --------------------------------------------------------------------------------- the parts


@given(st.floats(-1e12, 1e12), st.floats(1e-6, 1e12), st.integers(2, 9))
def test_ticks_are_few_and_within(low: float, length: float, at_most: int) -> None:
    high = low + length
    if high - low < 1e-9 * abs(high):
        return
    ticks = nice_ticks(low, high, at_most)
    slack = 1e-6 * (high - low)
    assert all(low - slack <= tick <= high + slack for tick in ticks)
    assert len(ticks) <= at_most + 1


def test_thinning_keeps_the_spikes() -> None:
    xs = np.arange(50_003.0)
    ys = np.sin(xs / 5_000)
    ys[31_337], ys[777] = 40.0, -40.0
    kept_xs, kept_ys = thinned(xs, ys)
    assert len(kept_xs) <= 600
    assert (np.diff(kept_xs) > 0).all()
    assert kept_xs[kept_ys.argmax()] == 31_337 and kept_xs[kept_ys.argmin()] == 777


def test_points_lie_where_the_values_are() -> None:
    line = Line("a", np.array([0.0, 50.0, 100.0]), np.array([0.0, 1.0, 0.5]), marked=True)
    svg = line_chart([line], title="t", x_label="steps", size=(680, 300), y_range=(0, 1))
    drawn = Page(svg)
    (polyline,) = drawn.named("polyline")
    points = list(map(float, polyline["points"].replace(",", " ").split()))
    # Axes from 54 to 666 and from 258 up to 12, with 5% of the range free at either end.
    assert points == pytest.approx([54, 246.8, 360, 23.2, 666, 135], abs=0.06)
    assert [float(circle["cx"]) for circle in drawn.named("circle")] == [54, 360, 666]


def test_charts_of_odd_values() -> None:
    nan, inf = float("nan"), float("inf")
    for ys in ([nan, nan], [inf, -inf], []):
        line = Line("a", np.arange(float(len(ys))), np.array(ys))
        assert "Nothing was recorded yet" in chart([line], title="t", x_label="x")
    for ys in ([5.0], [0.0, 0.0], [1e300, 1.0], [1e-30, 1e30], [-1e149, 1e149], [3.0, nan, inf]):
        line = Line("a", np.arange(float(len(ys))) + 7, np.array(ys), spread=np.ones(len(ys)))
        drawn = chart([line], title="t", x_label="x")
        Page(drawn)
        assert "nan" not in drawn and "inf" not in drawn


def test_a_wide_range_of_positive_values_is_drawn_by_its_logarithm() -> None:
    line = Line("a", np.arange(3.0), np.array([1e-4, 1e-2, 1.0]))
    assert "logarithmic" in line_chart([line], title="t", x_label="x")
    assert "logarithmic" not in line_chart([line], title="t", x_label="x", y_range=(0, 1))


def test_pictures(tmp_path: Path) -> None:
    Image.new("RGB", (6, 5), "blue").save(tmp_path / "a.bmp")
    with pytest.raises(UserError, match=r"a\.bmp is neither a GIF nor a PNG"):
        read_picture(tmp_path / "a.bmp")
    with pytest.raises(UserError, match="cannot be read as a picture"):
        read_picture(tmp_path / "absent.gif")
    Image.new("RGB", (6, 5), "blue").save(tmp_path / "a.png")
    shown = read_picture(tmp_path / "a.png")
    assert (shown.width, shown.height, shown.still) == (6, 5, None)
    (image,) = Page(picture(shown, 'a "b"', "c")).named("img")
    assert (image["alt"], image["width"], image["height"]) == ('a "b"', "6", "5")


def test_values_in_words() -> None:
    pairs: list[tuple[Any, str]] = [
        (None, "-"), (True, "yes"), (12_345, "12,345"), (10**30, "1e+30"), (0.123456, "0.1235"),
        (-23.0, "-23"), (123_456.7, "123,457"), (float("nan"), "-"), ([1, 2.5], "1, 2.5"),
        (list(range(9)), "9 numbers from 0 to 8, mean 4"), ([{"a": 1}], "1 entries"),
        ("x" * 300, "x" * 200 + " ..."),
    ]  # fmt: skip
    for value, words in pairs:
        assert in_words(value) == words


# ---------------------------------------------------------------------------------- the demo


@pytest.fixture
def demo() -> ModuleType:
    spec = importlib.util.spec_from_file_location("demo", ROOT / "runs" / "demo.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["demo"] = module  # dataclasses look their module up there
    spec.loader.exec_module(module)
    return module


def made(made_parts: list[str]) -> Callable[..., None]:
    """In place of the commands: what they would leave."""

    def make(part: Any, more: list[str], stop: StopRequest) -> None:
        made_parts.append(part.title)
        directory = part.result.parent
        if part.result.suffix == ".gif":
            write_gif(part.result)
            cube = {"moves": "R U'", "length_qtm": 2, "length_htm": 2, "seconds": 0.5}
            cubes = {"cubes": [cube | {"nodes_generated": 99}]}
            (directory / "cube.json").write_text(json.dumps(cubes))
        elif directory.name.startswith("key"):
            write_run(directory, seed=1, summary={"rewarded_at_step": None}, env_id="KeyReturn5")
        else:
            for seed in range(2):
                write_run(directory.parent / f"seed{seed}", seed=seed, env_id="CartPole-v1")
            directory.mkdir()
            part.result.write_text("{}")

    return make


def test_the_page_of_the_demo(
    demo: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    parts: list[str] = []
    monkeypatch.setattr(demo, "make", made(parts))
    config = demo.Config(run_dir=tmp_path / "demo", num_seeds=2)
    report = Path(demo.main(config)["report"])
    assert len(parts) == 5
    page = checked(report.read_text())
    assert len(page.named("img")) == 1 and len(page.named("figure")) == 5
    for words in ("R U'", "none without", "never", "dueling DQN, seed 1"):
        assert words in page.words
    checked((tmp_path / "demo" / "key-rnd" / "report.html").read_text())
    demo.main(config)  # nothing is left to do
    assert len(parts) == 5
    asked_anew = demo.Config(run_dir=tmp_path / "demo", num_seeds=2, rnd_steps=7)
    monkeypatch.setattr(demo, "make", lambda part, *_: parts.append(part.title))
    demo.main(asked_anew)  # other settings: the commands decide
    assert len(parts) == 10


def test_a_part_that_fails_or_is_stopped(demo: ModuleType, tmp_path: Path) -> None:
    def part(program: str) -> Any:
        return demo.Part("a part", ["-c", program], tmp_path / "x", 1.0)

    with StopRequest() as stop:
        with pytest.raises(RunFailure, match="a part: the command above failed"):
            demo.make(part("raise SystemExit(1)"), [], stop)
        with pytest.raises(UserError, match="a part: the command above failed"):
            demo.make(part("raise SystemExit(2)"), [], stop)
        stop.exit_code = 130
        waiting = "import signal, time\nsignal.signal(signal.SIGTERM, lambda *_: exit(75))\n"
        with pytest.raises(SystemExit) as left:
            demo.make(part(waiting + "time.sleep(50)"), [], stop)
        assert left.value.code == 130


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_the_demo_with_its_commands(demo: ModuleType, tmp_path: Path) -> None:
    config = demo.Config(run_dir=tmp_path, rnd_steps=4_096, classic_steps=1_500, num_seeds=2)
    page = checked(Path(demo.main(config)["report"]).read_text())
    assert len(page.named("img")) == 1
    assert (tmp_path / "cube.html").exists()
