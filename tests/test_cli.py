import configparser
import json
import re
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest
from PIL import Image
from synthetic_runs import write_model, write_peer, write_run

from classicrl import __version__, cli, doctor

REPOSITORY = Path(__file__).resolve().parent.parent
SUBCOMMANDS = (
    *("evaluate", "plot", "report", "doctor", "verify", "publish", "results"),
    *("solve", "export", "push", "pull"),
)


class Output:
    def __init__(self, code: object, out: str, err: str) -> None:
        self.code, self.out, self.err = code, out, err

    @property
    def error(self) -> str:
        """The one line of an error."""
        assert self.out == ""
        (line,) = self.err.splitlines()
        assert line.startswith("error: ")
        return line


@pytest.fixture
def run_cli(capsys: pytest.CaptureFixture[str]):  # type: ignore[no-untyped-def]
    def run(*arguments: object) -> Output:
        capsys.readouterr()
        with pytest.raises(SystemExit) as left:
            cli.main([str(argument) for argument in arguments])
        out, err = capsys.readouterr()
        return Output(left.value.code, out, err)

    return run


@pytest.mark.parametrize("arguments", [["--help"], *([name, "--help"] for name in SUBCOMMANDS)])
def test_help_imports_nothing_heavy(arguments: Sequence[str]) -> None:
    program = (
        "import sys, runpy\n"
        f"sys.argv = ['classicrl', *{list(arguments)!r}]\n"
        "try:\n"
        "    runpy.run_module('classicrl', run_name='__main__')\n"
        "except SystemExit as left:\n"
        "    assert left.code == 0, left.code\n"
        "heavy = {'torch', 'numpy', 'gymnasium', 'ale_py', 'matplotlib', 'tensorboard', 'PIL'}\n"
        "print('heavy:', sorted(heavy & set(sys.modules)))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, cwd=REPOSITORY
    )
    assert done.returncode == 0, done.stderr
    assert "usage: classicrl" in done.stdout
    assert done.stdout.splitlines()[-1] == "heavy: []"


# --------------------------------------------------------------------------------------- evaluate


def test_evaluate(tmp_path: Path, run_cli) -> None:  # type: ignore[no-untyped-def]
    write_model(tmp_path / "model.safetensors")
    options = ("--episodes", 3, "--max-frames", 400, "--threads", 1, "--seed", 5)
    done = run_cli("evaluate", tmp_path, *options)
    assert done.code == 0
    lines = done.out.splitlines()
    assert lines[0] == "dueling_dqn_atari on ALE/Pong-v5 (classic), weights of step 7,000"
    assert lines[1].startswith("protocol      classic: no sticky actions")
    assert lines[2] == "games         3, seed 5, epsilon 0.01, at most 400 frames a game"
    found = re.fullmatch(r"return        (\S+) \+- (\S+) \(mean.*\)", lines[3])
    interval = re.fullmatch(r"95% interval  \[(\S+), (\S+)\] \(of the mean, bootstrap\)", lines[4])
    extremes = re.fullmatch(r"range         (\S+) to (\S+)", lines[5])
    assert found and interval and extremes
    mean, low, high = float(found[1]), float(interval[1]), float(interval[2])
    assert float(extremes[1]) - 0.01 <= low <= mean <= high <= float(extremes[2]) + 0.01
    # 100 steps of Pong are lost, but not by more than a few points.
    assert -6 < mean <= 2
    assert run_cli("evaluate", tmp_path / "model.safetensors", *options).out == done.out


def test_evaluate_other_settings(tmp_path: Path, run_cli) -> None:  # type: ignore[no-untyped-def]
    write_model(tmp_path / "model.safetensors", protocol="sticky")
    options = ("--episodes", 2, "--max-frames", 200, "--threads", 1)
    assert ", epsilon 0, " in run_cli("evaluate", tmp_path, *options).out
    assert ", epsilon 0.25, " in run_cli("evaluate", tmp_path, *options, "--epsilon", 0.25).out


def test_evaluate_with_a_video(tmp_path: Path, run_cli) -> None:  # type: ignore[no-untyped-def]
    write_model(tmp_path / "model.safetensors")
    video = tmp_path / "out.gif"
    options = ("--episodes", 2, "--max-frames", 200, "--threads", 1, "--video", video)
    assert run_cli("evaluate", tmp_path, *options).code == 0
    with Image.open(video) as picture:
        assert picture.size == (160, 210)
        # 50 steps, a picture per two; the file holds equal ones once.
        assert 5 <= picture.n_frames <= 25  # type: ignore[attr-defined]


def test_evaluate_refuses(tmp_path: Path, run_cli) -> None:  # type: ignore[no-untyped-def]
    model = write_model(tmp_path / "model.safetensors")
    for arguments, message in {
        ("absent",): "absent does not exist",
        (tmp_path, "--episodes", 0): "--episodes must be in",
        (tmp_path, "--episodes", 100_000): "--episodes must be in",
        (tmp_path, "--epsilon", 1.5): "--epsilon must be in",
        (tmp_path, "--epsilon", "nan"): "--epsilon must be in",
        (tmp_path, "--seed", -1): "--seed must not be negative",
        (tmp_path, "--max-frames", 0): "--max-frames must be positive",
        (tmp_path, "--video", "game.mp4"): "must end in .gif",
        (tmp_path, "--video", tmp_path / "absent" / "game.gif"): "is not a directory",
    }.items():
        done = run_cli("evaluate", *arguments)
        assert done.code == 2
        assert message in done.error
    model.write_bytes(model.read_bytes()[:-7])
    done = run_cli("evaluate", tmp_path)
    assert (done.code, "not a valid safetensors file" in done.error) == (2, True)
    model.unlink()
    done = run_cli("evaluate", tmp_path)
    assert (done.code, "holds no model.safetensors" in done.error) == (2, True)


def test_ctrl_c_leaves_without_a_traceback(tmp_path: Path) -> None:
    write_model(tmp_path / "model.safetensors")
    command = [sys.executable, "-m", "classicrl", "evaluate", str(tmp_path)]
    command += ["--threads", "1", "--episodes", "3"]
    process = subprocess.Popen(
        command, cwd=REPOSITORY, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert process.stdout and process.stdout.readline().startswith("dueling_dqn_atari")
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=20)
    assert process.returncode == 130
    assert err == "stopped\n"


# ------------------------------------------------------------------------------------------- plot


def test_plot(tmp_path: Path, run_cli) -> None:  # type: ignore[no-untyped-def]
    runs = [write_run(tmp_path / "a", seed=0), write_peer(tmp_path / "b", seed=1)]
    out = tmp_path / "curves.png"
    done = run_cli("plot", *runs, "--out", out, "--metric", "loss", "--x", "hours")
    assert (done.code, done.out) == (0, f"wrote {out}\n")
    assert out.stat().st_size > 10_000


def test_plot_refuses(  # type: ignore[no-untyped-def]
    tmp_path: Path, run_cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert "name one or more" in run_cli("plot").error
    assert "is not a directory" in run_cli("plot", tmp_path / "absent").error
    run = write_run(tmp_path / "a", seed=0)
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    done = run_cli("plot", run, "--out", tmp_path / "curves.png")
    assert done.code == 2
    assert 'pip install "classicrl[plots]"' in done.error


# ----------------------------------------------------------------------------------------- doctor


def test_doctor(run_cli) -> None:  # type: ignore[no-untyped-def]
    done = run_cli("doctor")
    assert done.code == 0, done.out
    topics = {line.split()[1]: line for line in done.out.splitlines()}
    assert topics["classicrl"].split()[2] == __version__
    assert {"python", "torch", "CPUs", "memory", "disk", "GPU"} <= topics.keys() | {"GPU"}
    assert {f"[{extra}]" for extra in doctor.EXTRAS} <= topics.keys()
    assert "views (1, 4, 84, 84)" in topics["Atari"]


def test_doctor_finds_what_is_broken(  # type: ignore[no-untyped-def]
    run_cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "gymnasium", None)
    done = run_cli("doctor")
    assert done.code == 1
    assert re.search(r"^FAIL  gymnasium .*pip install", done.out, re.MULTILINE)
    assert done.err.startswith("error: gymnasium failed")


def test_doctor_counts_a_missing_extra_as_no_fault(  # type: ignore[no-untyped-def]
    run_cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    version = doctor._version
    absent = {"ale-py", "matplotlib"}
    monkeypatch.setattr(doctor, "_version", lambda name: None if name in absent else version(name))
    done = run_cli("doctor")
    assert done.code == 0
    assert 'ale-py not installed: pip install "classicrl[atari]"' in done.out
    assert 'matplotlib not installed: pip install "classicrl[plots]"' in done.out


def test_doctor_says_when_the_games_do_not_start(  # type: ignore[no-untyped-def]
    run_cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*arguments: object, **options: object) -> None:
        raise RuntimeError("no cartridge\nmore")

    monkeypatch.setattr("classicrl.envs.atari.AtariSingle", broken)
    done = run_cli("doctor")
    assert done.code == 1
    assert "FAIL  Atari        Pong does not start (RuntimeError: no cartridge)" in done.out


def test_doctor_knows_the_extras_of_the_package() -> None:
    setup = configparser.ConfigParser()
    setup.read(REPOSITORY / "setup.cfg")
    extras = dict(setup["options.extras_require"])
    assert set(extras) - {"all"} == set(doctor.EXTRAS)
    for extra, distributions in doctor.EXTRAS.items():
        for name in distributions:
            assert name in extras[extra]


# ----------------------------------------------------------------- verify, publish, results


@pytest.fixture
def reference(tmp_path: Path) -> Path:
    """An index of a run whose weights do not score what its summary says, and of a peer."""
    from classicrl.reports.publish import publish

    run = write_run(tmp_path / "run", seed=5)
    write_model(run / "model.safetensors")
    index = tmp_path / "reference" / "index.json"
    publish(run, index.parent, "pong", "command")
    publish(write_peer(tmp_path / "peer", seed=1), index.parent, "sb3", "command")
    records = json.loads(index.read_text())
    records[0]["eval"] |= {"episodes": 2, "max_frames_per_episode": 200}
    index.write_text(json.dumps(records))
    return index


def test_verify(reference: Path, run_cli) -> None:  # type: ignore[no-untyped-def]
    options = ("--index", reference, "--threads", 1)
    done = run_cli("verify", "sb3", *options)
    assert (done.code, done.err) == (0, "")
    assert done.out == "holds  sb3: 3 files as published; no weights to play\nall 1 hold\n"

    done = run_cli("verify", *options)  # 50 steps cannot lose ten points
    assert done.code == 1
    assert "FAILS  pong: replayed" in done.out and "holds  sb3" in done.out
    assert done.err == "error: 1 of 2 do not hold: pong\n"

    done = run_cli("verify", "--fast", *options)
    assert done.code == 0
    assert "pong: 5 files as published; not played" in done.out

    records = json.loads(reference.read_text())
    records[0]["eval"]["interval"] = [-5.0, 5.0]
    reference.write_text(json.dumps(records))
    assert run_cli("verify", *options).code == 0
    done = run_cli("verify", "pong", "--seed", 12, *options)
    assert done.code == 0
    assert "seed 12" in done.out


def test_verify_sees_an_altered_file(reference: Path, run_cli) -> None:  # type: ignore[no-untyped-def]
    weights = next(reference.parent.rglob("model.safetensors"))
    data = bytearray(weights.read_bytes())
    data[-9] ^= 4
    weights.write_bytes(data)
    done = run_cli("verify", "--fast", "--index", reference)
    assert done.code == 1
    assert "FAILS  pong: model.safetensors is not the file that was published" in done.out


def test_verify_refuses(reference: Path, run_cli) -> None:  # type: ignore[no-untyped-def]
    done = run_cli("verify", "tetris", "--index", reference)
    assert done.code == 2
    assert "'tetris'; there are: pong, sb3" in done.error
    done = run_cli("verify", "--index", reference.with_name("absent.json"))
    assert (done.code, "does not exist" in done.error) == (2, True)


def test_evaluate_by_name(reference: Path, run_cli) -> None:  # type: ignore[no-untyped-def]
    options = ("--index", reference, "--episodes", 2, "--max-frames", 200, "--threads", 1)
    assert "weights of step 7,000" in run_cli("evaluate", "pong", *options).out
    assert "published without weights" in run_cli("evaluate", "sb3", *options).error
    assert "there are: pong, sb3" in run_cli("evaluate", "tetris", *options).error


def test_publish_and_results(tmp_path: Path, run_cli) -> None:  # type: ignore[no-untyped-def]
    index = tmp_path / "runs" / "reference" / "index.json"
    peer = write_peer(tmp_path / "peer", seed=1)
    arguments = ("publish", peer, "--name", "sb3", "--index", index)
    done = run_cli(*arguments)
    assert (done.code, "--command" in done.error) == (2, True)
    done = run_cli(*arguments, "--command", "python peer.py --seed 1")
    assert done.code == 0
    assert "return -17.00, a replay must lie in [" in done.out
    assert "warning: the commit that trained it is not known" in done.out

    options = ("--index", index, "--root", tmp_path)
    done = run_cli("results", "--check", *options)
    assert done.code == 1
    assert "out of date; run `classicrl results`" in done.error
    assert run_cli("results", *options).code == 0
    done = run_cli("results", "--check", *options)
    assert (done.code, done.out) == (0, "everything is up to date\n")
