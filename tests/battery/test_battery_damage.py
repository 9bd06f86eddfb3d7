"""Damaged and foreign files in a run directory: the same command ends as if nothing had happened,
or refuses in one line that names the file. It never continues from something else."""

import functools
import json
import os
import random
import shutil
import signal
from collections.abc import Callable
from pathlib import Path

import pytest
from broken_process import owner_of
from script_process import after_calls
from small_agents import Agent, end_of, load, rows
from tally import FULL, Tally, size
from test_checkpoint import forge

from classicrl.checkpoint import CheckpointStore, checkpoint_paths, read_checkpoint
from classicrl.errors import UserError

GROUP = "corrupt and foreign files"

Damage = Callable[[Path], None]  # of the path of a file


def truncate(path: Path, rng: random.Random) -> None:
    os.truncate(path, rng.randrange(path.stat().st_size))


def flip_bit(path: Path, rng: random.Random) -> None:
    data = bytearray(path.read_bytes())
    data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
    path.write_bytes(data)


def zero_page(path: Path, rng: random.Random) -> None:
    data = path.read_bytes()
    begin = rng.randrange(0, len(data), 4096)
    zeroed = data[:begin] + bytes(min(4096, len(data) - begin)) + data[begin + 4096 :]
    path.write_bytes(zeroed if zeroed != data else bytes(len(data)) + b"\0")


def delete(path: Path, rng: random.Random) -> None:
    path.unlink()


def swap(path: Path, rng: random.Random) -> None:
    """Its contents against those of another file of the same directory."""
    others = [p for p in path.parent.iterdir() if p.is_file() and p != path]
    other = rng.choice(others) if others else path
    mine = path.read_bytes()
    path.write_bytes(other.read_bytes() + (b" " if other == path else b""))
    if other != path:
        other.write_bytes(mine)


KINDS = {
    # damage -> cases in the whole battery, over all agents
    truncate: 40,
    flip_bit: 100,
    zero_page: 20,
    delete: 20,
    swap: 10,
}


def stopped(agent: Agent, directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A run that is stopped late, with three checkpoints."""
    load(agent)
    owner, name = owner_of(agent.update)
    late = {"qstar_cube3_train": 50}.get(agent.script, 26)
    with monkeypatch.context() as patch:
        after_calls(patch, owner, name, late, lambda: os.kill(os.getpid(), signal.SIGTERM))
        with pytest.raises(SystemExit) as caught:
            agent.run(directory)
    assert caught.value.code == 75


@pytest.fixture(scope="module")
def prepared(
    tmp_path_factory: pytest.TempPathFactory,
) -> Callable[[Agent, pytest.MonkeyPatch], tuple[dict[str, str], Path]]:
    """The end of an uninterrupted run, and a run directory that was left in the middle."""

    @functools.cache
    def make(agent_name: str) -> Path:
        return tmp_path_factory.mktemp(agent_name)

    made: dict[str, tuple[dict[str, str], Path]] = {}

    def get(agent: Agent, monkeypatch: pytest.MonkeyPatch) -> tuple[dict[str, str], Path]:
        if agent.script not in made:
            directory = make(agent.script)
            agent.run(directory / "whole")
            stopped(agent, directory / "stopped", monkeypatch)
            made[agent.script] = end_of(agent, directory / "whole"), directory / "stopped"
        return made[agent.script]

    return get


Prepared = Callable[[Agent, pytest.MonkeyPatch], tuple[dict[str, str], Path]]


def files_of(agent: Agent, directory: Path) -> list[Path]:
    """All that a resume reads."""
    store = agent.checkpoint_directory(directory)
    found = [p for path in checkpoint_paths(store)[-2:] for p in path.iterdir()]
    found += sorted((store / "replay").glob("**/*.safetensors"))
    for name in agent.results:
        found += [directory / name / "config.json", directory / name / "metrics.csv"]
        found += [directory / name / "evaluations.csv"]
    return sorted(found)


def continued(agent: Agent, directory: Path, expected: dict[str, str]) -> str:
    """What the same command made of it; fails if that is neither the same end nor a refusal."""
    try:
        agent.run(directory)
    except UserError as error:
        assert "\n" not in str(error) and str(directory) in str(error), error
        return "refused, file named"
    assert end_of(agent, directory) == expected
    bad = list(agent.checkpoint_directory(directory).glob("*.bad*"))
    return "put aside, same end" if bad else "same end"


def is_logged_figure(path: Path) -> bool:
    return path.suffix == ".csv"


def damaged_once(
    agent: Agent, pristine: Path, directory: Path, damage: Callable[..., None], seed: int
) -> Path:
    shutil.copytree(pristine, directory)
    rng = random.Random(f"{agent.script} {damage.__name__} {seed}")
    paths = files_of(agent, directory)
    if damage is not delete:
        # A figure that was logged has no checksum: it is a result, and not what a run goes on from.
        paths = [path for path in paths if not is_logged_figure(path)]
    path = paths[seed % len(paths)]
    damage(path, rng)
    return path


@pytest.mark.timeout(4000 if FULL else 240)
@pytest.mark.parametrize("damage", KINDS, ids=[kind.__name__ for kind in KINDS])
@pytest.mark.parametrize(
    "agent", rows("va_classic_control", *(["qstar_cube3_train", "va_minatar"] if FULL else []))
)
def test_damage_is_noticed_and_the_run_ends_the_same(
    agent: Agent,
    damage: Callable[..., None],
    prepared: Prepared,
    tmp_path: Path,
    tally: Tally,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    expected, pristine = prepared(agent, monkeypatch)
    share = {"va_classic_control": 0.6, "qstar_cube3_train": 0.2, "va_minatar": 0.2}
    for seed in range(size(1, round(KINDS[damage] * share[agent.script]))):
        directory = tmp_path / str(seed)
        path = damaged_once(agent, pristine, directory, damage, seed)
        if damage is delete and is_logged_figure(path):
            agent.run(directory)  # it goes on, with a table that begins later
            tally.count("figures deleted: goes on")
        else:
            tally.count(continued(agent, directory, expected))
        shutil.rmtree(directory)


def change(path: Path, *keys: str, value: object) -> None:
    """An entry of a JSON file."""
    record = json.loads(path.read_text())
    inner = record
    for key in keys[:-1]:
        inner = inner[key]
    inner[keys[-1]] = value
    path.write_text(json.dumps(record, indent=2))


def newest(agent: Agent, directory: Path) -> Path:
    return checkpoint_paths(agent.checkpoint_directory(directory))[-1]


def of_another_run(agent: Agent, directory: Path, **settings: object) -> None:
    """The newest checkpoint comes from elsewhere, whole and of a later step."""
    other = directory.with_name(f"{directory.name}-other")
    agent.run(other, **settings)
    mine, others = agent.checkpoint_directory(directory), agent.checkpoint_directory(other)
    for path in checkpoint_paths(mine):
        shutil.rmtree(path)
    shutil.copytree(others, mine, dirs_exist_ok=True)


def rewritten(agent: Agent, directory: Path, change: Callable[[dict], object]) -> None:
    """The newest checkpoint saved again, whole, with a changed state."""
    checkpoint = read_checkpoint(newest(agent, directory))
    change(checkpoint.state)
    store = CheckpointStore(agent.checkpoint_directory(directory), warn=print)
    replay = agent.checkpoint_directory(directory) / "replay"
    files = [
        replay / str(k) / record[2] if (replay / str(k)).is_dir() else replay / record[2]
        for k, saved in enumerate(checkpoint.state.get("replays", []))
        for record in saved["archive"]["chunks"]
    ]
    store.save(checkpoint.step, checkpoint.state, files=files, info=checkpoint.info)


FOREIGN: dict[str, tuple[Callable[[Agent, Path], object], str]] = {
    "a later format": (
        lambda agent, run: forge(newest(agent, run), lambda d: d.update(format_version=9)),
        "format version 9",
    ),
    "another run of the same configuration": (of_another_run, "belongs to another run"),
    "another seed": (
        lambda agent, run: of_another_run(agent, run, total_steps=200),
        "belongs to another run",
    ),
    "a part is missing": (
        lambda agent, run: rewritten(agent, run, lambda state: state.pop("learner")),
        "another program, version or configuration (KeyError",
    ),
    "weights of another shape": (
        lambda agent, run: rewritten(
            agent,
            run,
            lambda state: state["learner"]["online"].update(
                {
                    name: values[..., :-1].clone()
                    for name, values in state["learner"]["online"].items()
                }
            ),
        ),
        "another program, version or configuration (RuntimeError",
    ),
    "another environment": (
        lambda agent, run: rewritten(
            agent, run, lambda state: state["envs"].update(env_id="Acrobot-v1")
        ),
        "the saved environments are",
    ),
    "replays of fewer members": (
        lambda agent, run: rewritten(agent, run, lambda state: state["replays"].pop()),
        "another program, version or configuration (ValueError",
    ),
    "a setting of the record changed": (
        lambda agent, run: change(run / agent.shared / "config.json", "config", "gamma", value=0.5),
        "was altered",
    ),
    "the record is a list": (
        lambda agent, run: (run / agent.shared / "config.json").write_text("[]"),
        "does not hold a JSON object",
    ),
    "the record's settings are text": (
        lambda agent, run: change(run / agent.shared / "config.json", "config", value="x"),
        "was altered",
    ),
}


@pytest.mark.parametrize(("make", "message"), FOREIGN.values(), ids=FOREIGN)
@pytest.mark.parametrize("agent", rows("va_classic_control"))
def test_what_is_not_this_runs_is_refused(
    agent: Agent,
    make: Callable[[Agent, Path], object],
    message: str,
    prepared: Prepared,
    tmp_path: Path,
    tally: Tally,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    _, pristine = prepared(agent, monkeypatch)
    directory = Path(shutil.copytree(pristine, tmp_path / "run"))
    make(agent, directory)
    with pytest.raises(UserError) as caught:
        agent.run(directory)
    assert message in str(caught.value) and "\n" not in str(caught.value)
    tally.count("foreign: refused, reason named")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (b"step,loss\nx1,2.0\n40,1.0\n", "'x1' is not a step"),
        (b"step,loss\n\xff\xfe,2.0\n", "metrics.csv is damaged"),
        (b"\0" * 4096 + b"\n", "metrics.csv"),
        (b"step,loss\n20,\n", None),
    ],
)
@pytest.mark.parametrize("agent", rows("va_classic_control"))
def test_figures_that_are_no_table_are_named(
    agent: Agent,
    text: bytes,
    message: str | None,
    prepared: Prepared,
    tmp_path: Path,
    tally: Tally,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    _, pristine = prepared(agent, monkeypatch)
    directory = Path(shutil.copytree(pristine, tmp_path / "run"))
    table = directory / agent.results[0] / "metrics.csv"
    table.write_bytes(text)
    if message is None:  # other columns than this version writes: those of an earlier one
        agent.run(directory)
        header, first, *_ = table.read_text().splitlines()
        assert header.startswith("step,loss,") and first.startswith("20,,")
        tally.count("figures of other columns: goes on")
        return
    with pytest.raises(UserError) as caught:
        agent.run(directory)
    assert message in str(caught.value) and str(table) in str(caught.value)
    tally.count("refused, file named")
