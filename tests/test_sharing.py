"""Model directories: made of runs, played, trained on, and carried by a hub that only remembers."""

import builtins
import dataclasses
import json
import re
import shlex
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from script_process import load_script
from small_runs import ALL, Small, scripts

from classicrl import cli, cube_solver, hub
from classicrl.checkpoint import load_model, save_model
from classicrl.command_line import parse
from classicrl.errors import UserError
from classicrl.evaluation import GymEvaluator
from classicrl.model_directory import FILES, check_model, export_model
from classicrl.reports.records import read_run

ROOT = Path(__file__).parents[1]
Finished = Callable[[Small], Path]
Run = Callable[..., tuple[object, str, str]]


@pytest.fixture
def classicrl(capsys: pytest.CaptureFixture[str]) -> Run:
    def run(*arguments: object) -> tuple[object, str, str]:
        capsys.readouterr()
        with pytest.raises(SystemExit) as left:
            cli.main([str(argument) for argument in arguments])
        return (left.value.code, *capsys.readouterr())

    return run


def result_of(finished: Finished, script: str) -> Path:
    """Where the first seed's results are."""
    small = next(one for one in ALL if one.script == script)
    return finished(small) / small.results[0]


@pytest.fixture
def model(finished: Finished, tmp_path: Path) -> Path:
    out = tmp_path / "model"
    export_model(result_of(finished, "va_classic_control"), out)
    return out


@pytest.mark.parametrize("one", scripts())
def test_every_run_becomes_a_directory_that_trains_on(
    one: Small, finished: Finished, tmp_path: Path
) -> None:
    source, out = finished(one) / one.results[0], tmp_path / "model"
    player = export_model(source, out)
    assert {path.name for path in out.iterdir()} == set(FILES)
    assert (out / "model.safetensors").read_bytes() == (source / "model.safetensors").read_bytes()
    assert check_model(out)[:4] == player[:4]
    summary = json.loads((source / "summary.json").read_text())
    card = (out / "README.md").read_text()
    for fact in (summary["agent"], summary["env_id"], summary["protocol"], "--init-from model"):
        assert fact in card
    scores = summary["eval"]
    assert f"{scores['mean_return']:.2f}" in card and f"over {scores['episodes']} games" in card
    assert f"python agents/{one.script}.py " in card
    assert f"torch {torch.__version__}" in card
    assert "--track" not in card and str(tmp_path) not in card
    assert read_run(out).agent == summary["agent"]
    assert one.run(tmp_path / "run", init_from=out)["num_updates"] > 0


@pytest.mark.parametrize("one", scripts())
def test_the_card_says_how_to_train_on_and_tells_no_paths(
    one: Small, finished: Finished, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = tmp_path / "run"
    shutil.copytree(finished(one) / one.results[0], run)
    record = json.loads((run / "config.json").read_text())
    record["config"]["init_from"] = str(tmp_path / "va" / "CartPole-v1-plain" / "seed3")
    (run / "config.json").write_text(json.dumps(record))
    export_model(run, tmp_path / "model")
    card = (tmp_path / "model" / "README.md").read_text()
    written = card + (tmp_path / "model" / "config.json").read_text()
    assert str(tmp_path) not in written and "va/CartPole-v1-plain/seed3" in written
    (command,) = re.findall(r"^python (agents/.*)   # from the repository", card, re.M)
    monkeypatch.setattr(sys, "argv", shlex.split(command))
    monkeypatch.chdir(tmp_path)
    script = load_script(one.script)
    presets = getattr(script, "PRESETS", {"default": script.Config()})
    config = parse(presets, next(iter(presets)), "")
    assert config.init_from == Path("model")

    class Accepted(Exception):
        pass

    def accept(*_: Any, **__: Any) -> None:
        raise Accepted

    # Nothing more is refused before the run directory is opened.
    for opening in ("Run", "SeedGroup", "shared_run"):
        if hasattr(script, opening):
            monkeypatch.setattr(script, opening, accept)
    with pytest.raises(Accepted):
        script.main(dataclasses.replace(config, run_dir=tmp_path / "new"))


def test_the_commands_take_it(model: Path, classicrl: Run) -> None:
    code, out, _ = classicrl("evaluate", model, "--episodes", 2, "--threads", 1)
    assert code == 0 and out.startswith("va_classic_control-va on CartPole-v1 (plain)")
    assert "at most 500 steps a game\n" in out  # no frames, where there are none
    code, out, _ = classicrl("report", model)
    assert code == 0 and (model / "report.html").exists()


def test_a_network_for_the_cube_is_evaluated(
    finished: Finished,
    tmp_path: Path,
    classicrl: Run,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(cube_solver, "_MAX_WIDTH", 16)  # it knows nothing
    source = result_of(finished, "qstar_cube3_train")
    code, out, err = classicrl("evaluate", source, "--episodes", 2)
    assert code == 0, err
    first, _, cubes, score = out.splitlines()
    assert first == "qstar_cube3_train on cube3-12, weights of update 20"
    assert cubes == "cubes         2, seed 0, solved 0"
    assert score.startswith("return        -100.00 +- 0.00 ")
    code, _, err = classicrl("evaluate", source, "--video", tmp_path / "cube.gif")
    assert code == 2 and "classicrl solve --gif" in err
    for flag, value in (("--epsilon", 0.1), ("--max-frames", 9)):
        code, _, err = classicrl("evaluate", source, flag, value)
        assert code == 2 and flag in err


def test_a_video_that_cannot_be_is_refused_before_the_games(
    model: Path, classicrl: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(GymEvaluator, "play", lambda *_: pytest.fail("played"))
    code, out, err = classicrl("evaluate", model, "--video", tmp_path / "cart.gif")
    assert (code, out) == (2, "") and "no video of it" in err


def test_what_is_never_cut_has_no_limit(
    finished: Finished, capsys: pytest.CaptureFixture[str]
) -> None:
    small = next(one for one in ALL if one.script == "ppo_rnd_small")
    directory = finished(small)
    capsys.readouterr()
    small.run(directory)  # finished: it says again what it said last
    assert "(epsilon 0, no limit to a game)\n" in capsys.readouterr().out


def test_export_from_the_command_line(finished: Finished, tmp_path: Path, classicrl: Run) -> None:
    source = result_of(finished, "qstar_cube3_train")
    code, out, _ = classicrl("export", source, "--out", tmp_path / "m", "--licence", "cc-by-4.0")
    assert code == 0 and out.startswith("qstar_cube3_train on cube3")
    assert 'license: "cc-by-4.0"' in (tmp_path / "m" / "README.md").read_text()
    code, out, err = classicrl("export", source, "--out", tmp_path / "m")
    assert (code, out) == (2, "") and "exists: choose another --out" in err
    code, out, err = classicrl("export", tmp_path / "absent", "--out", tmp_path / "n")
    assert (code, out) == (2, "") and "does not exist" in err
    assert not (tmp_path / "n").exists()


def test_into_the_present_directory(
    finished: Finished, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = result_of(finished, "va_classic_control").resolve()
    (tmp_path / "pole").mkdir()
    monkeypatch.chdir(tmp_path / "pole")
    export_model(source, Path("."))
    assert "classicrl evaluate pole " in (tmp_path / "pole" / "README.md").read_text()
    assert [path.name for path in tmp_path.iterdir()] == ["pole"]


def test_a_run_under_way_says_that_it_has_no_score(finished: Finished, tmp_path: Path) -> None:
    run = tmp_path / "run"
    shutil.copytree(result_of(finished, "va_classic_control"), run)
    (run / "summary.json").unlink()
    export_model(run, tmp_path / "model")
    assert "not recorded: the run was not finished" in (tmp_path / "model/README.md").read_text()


@pytest.mark.parametrize("name", ["symphony_mujoco-s3/Pendulum-v1-control/mini-seed0"])
def test_a_published_result_becomes_one(name: str, tmp_path: Path) -> None:
    player = export_model(ROOT / "runs" / "reference" / name, tmp_path / "model")
    assert player.env_id == "Pendulum-v1"
    assert "Commit 809a5e8" in (tmp_path / "model" / "README.md").read_text()


# --------------------------------------------------------------------------------------- the hub


class Fake(ModuleType):
    """huggingface_hub, as far as it is used, with folders for repositories."""

    def __init__(self, root: Path) -> None:
        super().__init__("huggingface_hub")
        self.root, self.private = root, False

    def HfApi(self) -> "Fake":
        return self

    def create_repo(self, name: str, *, private: bool, exist_ok: bool) -> None:
        assert exist_ok
        self.private = private
        (self.root / name).mkdir(parents=True, exist_ok=True)

    def upload_folder(
        self, *, repo_id: str, folder_path: str, allow_patterns: list[str], commit_message: str
    ) -> None:
        for name in allow_patterns:
            if (Path(folder_path) / name).exists():
                shutil.copy(Path(folder_path) / name, self.root / repo_id / name)

    def snapshot_download(
        self, name: str, *, revision: str | None, local_dir: str, allow_patterns: list[str]
    ) -> str:
        if revision == "absent" or not (self.root / name).exists():
            raise FileNotFoundError(f"404\nno {name} at {revision}")
        for pattern in allow_patterns:
            if (self.root / name / pattern).exists():
                shutil.copy(
                    self.root / name / pattern, Path(local_dir) / pattern, follow_symlinks=False
                )
        (Path(local_dir) / ".cache").mkdir()
        return local_dir


@pytest.fixture
def fake(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Fake:
    module = Fake(tmp_path / "hub")
    monkeypatch.setitem(sys.modules, "huggingface_hub", module)
    return module


def test_there_and_back(model: Path, fake: Fake, tmp_path: Path, classicrl: Run) -> None:
    (model / "secret.txt").write_text("mine")
    code, out, _ = classicrl("push", model, "me/cart", "--private")
    assert (code, out.strip()) == (0, "https://huggingface.co/me/cart")
    assert {path.name for path in (fake.root / "me/cart").iterdir()} == set(FILES)
    assert fake.private
    code, out, _ = classicrl("pull", "me/cart", "--out", tmp_path / "back")
    assert code == 0 and out.startswith("va_classic_control-va on CartPole-v1, step 80")
    assert {path.name for path in (tmp_path / "back").iterdir()} == set(FILES)
    for name in FILES:
        assert (tmp_path / "back" / name).read_bytes() == (model / name).read_bytes()


def test_what_the_hub_says_is_one_line(fake: Fake, model: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="did not give me/absent: FileNotFoundError: 404 no me/ab"):
        hub.pull("me/absent", tmp_path / "out")
    with pytest.raises(UserError, match="OWNER/NAME"):
        hub.pull("absent", tmp_path / "out")
    with pytest.raises(UserError, match="exists"):
        hub.pull("me/absent", model)
    with pytest.raises(UserError, match="classicrl export"):
        hub.push(tmp_path, "me/cart")
    assert not (tmp_path / "out").exists()


def spoil_link(repository: Path) -> None:
    (repository / "config.json").unlink()
    (repository / "config.json").symlink_to("/etc/hostname")


def spoil_json(repository: Path) -> None:
    (repository / "summary.json").write_text("[" * 100_000)


def spoil_pickle(repository: Path) -> None:
    (repository / "model.safetensors").write_bytes(b"cos\nsystem\n(S'touch owned'\ntR.")


def spoil_shape(repository: Path) -> None:
    tensors, card = load_model(repository / "model.safetensors")
    name = next(iter(tensors))
    save_model(repository / "model.safetensors", {**tensors, name: torch.zeros(3, 5)}, card)


def spoil_environment(repository: Path) -> None:
    tensors, card = load_model(repository / "model.safetensors")
    card["env_id"] = "antigravity:CartPole-v1"
    save_model(repository / "model.safetensors", tensors, card)


def spoil_everything(repository: Path) -> None:
    (repository / "model.safetensors").rename(repository / "pytorch_model.bin")


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (spoil_link, "no ordinary file"),
        (spoil_json, "cannot be read as JSON"),
        (spoil_pickle, "not a valid safetensors file"),
        (spoil_shape, "does not fit"),
        (spoil_environment, "which is refused"),
        (spoil_everything, r"holds no model\.safetensors"),
    ],
)
def test_foreign_files_are_checked_before_they_get_a_name(
    spoil: Callable[[Path], None], message: str, model: Path, fake: Fake, tmp_path: Path
) -> None:
    hub.push(model, "them/cart")
    spoil(fake.root / "them/cart")
    with pytest.raises(UserError, match=message):
        hub.pull("them/cart", tmp_path / "out")
    assert not (tmp_path / "out").exists()
    assert "antigravity" not in sys.modules


def test_what_is_not_installed_is_named(monkeypatch: pytest.MonkeyPatch, model: Path) -> None:
    real = builtins.__import__

    def without(name: str, *arguments: Any, **named: Any) -> Any:
        if name == "huggingface_hub":
            raise ImportError(name)
        return real(name, *arguments, **named)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(UserError, match=r'pip install "classicrl\[hub\]"'):
        hub.push(model, "me/cart")
