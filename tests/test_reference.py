import dataclasses
import json
import shlex
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from synthetic_runs import set_weight, write_model, write_peer, write_run

from classicrl.agent_file import load_agent
from classicrl.errors import UserError
from classicrl.evaluation import AtariEvaluator
from classicrl.reports.publish import command_of, publish, without_paths
from classicrl.reports.records import read_run
from classicrl.reports.reference import Entry, Verdict, find, read_index, verify
from classicrl.reports.results import has_block, with_block, write_results

REPOSITORY = Path(__file__).resolve().parent.parent
EPISODES = 3
MAX_FRAMES = 400


@pytest.fixture(scope="module")
def played(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What the games of `write_model` really score, cut early."""
    agent = load_agent(write_model(tmp_path_factory.mktemp("model") / "model.safetensors"))
    protocol = dataclasses.replace(agent.card.protocol, max_frames_per_episode=MAX_FRAMES)
    evaluator = AtariEvaluator(agent.policy, "ALE/Pong-v5", protocol, seed=5, num_threads=1)
    scores = evaluator.play(EPISODES)
    assert scores is not None
    return scores.record()


@pytest.fixture
def run(tmp_path: Path, played: dict[str, Any]) -> Path:
    """A finished run whose weights and evaluation belong together."""
    directory = write_run(tmp_path / "run", seed=5, summary={"eval": played})
    write_model(directory / "model.safetensors")
    return directory


def checked(entry: Entry, root: Path, **options: Any) -> Verdict:
    verdict = verify(entry, root, num_threads=1, **options)
    assert verdict is not None
    return verdict


def test_what_is_published_holds(tmp_path: Path, run: Path, played: dict[str, Any]) -> None:
    root = tmp_path / "reference"
    entry = publish(run, root, "pong", "python agents/dueling_dqn_atari.py", cheap=True)
    assert entry.path == "dueling_dqn_atari/ALE-Pong-v5-classic/cpu-seed5"
    assert {path.name for path in (root / entry.path).iterdir()} == {
        "config.json",
        "metrics.csv",
        "evaluations.csv",
        "summary.json",
        "model.safetensors",
    }
    assert read_index(root / "index.json") == [entry]
    assert (entry.commit, entry.machine, entry.cheap) == ("c0ffee" * 6, "2 cores | a test", True)
    assert (entry.eval.episodes, entry.eval.seed) == (EPISODES, 5)
    assert entry.eval.max_frames_per_episode == MAX_FRAMES

    verdict = checked(entry, root)
    assert verdict.holds
    # The same seed plays the same games.
    assert f"replayed {played['mean_return']:.2f}, within" in verdict.detail
    assert checked(entry, root, play=False).detail == "5 files as published; not played"


def test_a_score_outside_of_the_interval_does_not_hold(tmp_path: Path, run: Path) -> None:
    entry = publish(run, tmp_path / "reference", "pong", "command")
    better = dataclasses.replace(entry.eval, interval=(15.0, 20.0))
    verdict = checked(dataclasses.replace(entry, eval=better), tmp_path / "reference")
    assert not verdict.holds
    assert "outside [15.00, 20.00]" in verdict.detail


@pytest.mark.parametrize("file", ["model.safetensors", "metrics.csv", "summary.json"])
def test_an_altered_file_does_not_hold(tmp_path: Path, run: Path, file: str) -> None:
    root = tmp_path / "reference"
    entry = publish(run, root, "pong", "command")
    path = root / entry.path / file
    data = bytearray(path.read_bytes())
    data[-2] ^= 1
    path.write_bytes(data)
    verdict = checked(entry, root)
    assert not verdict.holds
    assert verdict.detail == f"{file} is not the file that was published (SHA-256)"
    path.unlink()
    assert not checked(entry, root).holds


def test_the_index_and_the_summary_must_agree(tmp_path: Path, run: Path) -> None:
    root = tmp_path / "reference"
    entry = publish(run, root, "pong", "command")
    boast = dataclasses.replace(entry, eval=dataclasses.replace(entry.eval, mean_return=20.5))
    verdict = checked(boast, root, play=False)
    assert not verdict.holds
    assert "the index says 20.50" in verdict.detail


def test_weights_of_another_game_do_not_hold(tmp_path: Path, run: Path) -> None:
    root = tmp_path / "reference"
    entry = publish(run, root, "pong", "command")
    other = dataclasses.replace(entry, protocol="sticky")
    verdict = checked(other, root)
    assert not verdict.holds
    assert "another agent" in verdict.detail


def test_a_stopped_verification_has_no_verdict(tmp_path: Path, run: Path) -> None:
    entry = publish(run, tmp_path / "reference", "pong", "command")
    assert verify(entry, tmp_path / "reference", should_stop=lambda: True) is None


def test_a_peer_is_published_without_weights(tmp_path: Path) -> None:
    root = tmp_path / "reference"
    peer = write_peer(tmp_path / "peer", seed=2)
    with pytest.raises(UserError, match="--command"):
        publish(peer, root, "sb3")
    entry = publish(peer, root, "sb3", "python benchmarks/sb3_dqn_atari.py", machine="a laptop")
    assert (entry.path, entry.weights) == ("sb3-dqn/ALE-Pong-v5-classic/2013-seed2", None)
    assert (entry.machine, entry.commit) == ("a laptop", None)
    verdict = checked(entry, root)
    assert verdict.holds
    assert verdict.detail == "3 files as published; no weights to play"
    # Student's interval of 5 games (quantile 2.776; expanded to first order 2.55), times sqrt(2).
    low, high = entry.eval.interval
    assert (low + high) / 2 == pytest.approx(-17.0)
    assert 2.5 < (high - low) / 2 / (2**0.5 * 2 / 5**0.5) < 2.8


def test_what_was_lost_is_left_out_and_said(tmp_path: Path, run: Path) -> None:
    root = tmp_path / "reference"
    for file in ("config.json", "evaluations.csv"):
        (run / file).unlink()
    entry = publish(run, root, "pong", "command", variant="cpu", note="two files were lost")
    assert set(entry.files) == {"metrics.csv", "summary.json"}
    assert read_index(root / "index.json") == [entry] and entry.note == "two files were lost"
    assert checked(entry, root, play=False).detail == "3 files as published; not played"


def test_no_path_of_the_training_machine_is_published(tmp_path: Path, run: Path) -> None:
    root = tmp_path / "reference"
    publish(run, root, "pong")
    publish(write_peer(tmp_path / "peer", seed=2), root, "sb3", "command")
    for path in root.rglob("*.*"):
        if path.suffix in (".json", ".csv"):
            assert str(tmp_path) not in path.read_text()
            assert "somewhere" not in path.read_text()


def test_of_every_path_only_the_last_parts_are_left() -> None:
    record = {
        "config": {"teacher": "/home/jane/secret/runs/cube/seed0", "trunk": None, "env_id": "a/b"},
        "files": ["/home/jane/secret/a/b/c", 3],
        "run_dir": "somewhere",
    }
    assert without_paths(record) == {
        "config": {"teacher": "runs/cube/seed0", "trunk": None, "env_id": "a/b"},
        "files": ["a/b/c", 3],
        "run_dir": None,
    }


def test_long_metrics_are_thinned_and_keep_their_ends(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", seed=0, total_steps=20_300, period_steps=7)
    root = tmp_path / "reference"
    entry = publish(run, root, "pong", "command", variant="long")
    before = read_run(run).metrics["step"]
    published = read_run(root / entry.path)
    after = published.metrics["step"]
    assert len(before) == 2_900
    assert 900 <= len(after) <= 1_000
    assert (after[0], after[-1]) == (7, 20_300)
    assert published.variant == "long"
    assert published.settings == read_run(run).settings


def test_publish_again(tmp_path: Path, run: Path) -> None:
    root = tmp_path / "reference"
    first = publish(run, root, "pong", "command")
    with pytest.raises(UserError, match="published already"):
        publish(run, root, "pong", "command")
    with pytest.raises(UserError, match="holds 'pong' already"):
        publish(run, root, "other", "command")
    second = publish(run, root, "pong", "command", variant="new", replace=True)
    assert read_index(root / "index.json") == [second]
    assert not (root / first.path).exists()
    assert checked(second, root, play=False).holds


def test_other_settings_are_another_variant(tmp_path: Path) -> None:
    root = tmp_path / "reference"
    publish(write_run(tmp_path / "a", seed=0), root, "a", "command")
    other = write_run(tmp_path / "b", seed=1, gamma=0.9)
    with pytest.raises(UserError, match="other settings than 'a'"):
        publish(other, root, "b", "command")
    publish(other, root, "b", "command", variant="cpu-gamma0.9")


def test_publish_refuses_what_is_not_finished(tmp_path: Path, run: Path) -> None:
    root = tmp_path / "reference"
    unfinished = write_run(tmp_path / "unfinished", seed=0, finished=False)
    write_model(unfinished / "model.safetensors")
    with pytest.raises(UserError, match="not finished"):
        publish(unfinished, root, "a", "command")
    peer = write_peer(tmp_path / "peer", seed=2)
    summary = json.loads((peer / "summary.json").read_text())
    (peer / "summary.json").write_text(json.dumps(summary | {"completed": False}))
    with pytest.raises(UserError, match="not finished"):
        publish(peer, root, "a", "command")
    write_model(run / "model.safetensors", step=9_000)
    with pytest.raises(UserError, match=r"of step 9,000, summary\.json of 7,000"):
        publish(run, root, "a", "command")
    write_model(run / "model.safetensors", env_id="ALE/Boxing-v5", num_actions=18)
    with pytest.raises(UserError, match="another agent"):
        publish(run, root, "a", "command")
    assert not root.exists()


@pytest.mark.parametrize("name", ["", "../up", "a/b", "-x", "two words"])
def test_publish_refuses_a_name(tmp_path: Path, name: str) -> None:
    with pytest.raises(UserError, match="cannot be a name"):
        publish(tmp_path, tmp_path / "reference", name, "command")


def test_large_networks(tmp_path: Path, run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = tmp_path / "reference"
    monkeypatch.setattr("classicrl.reports.publish.MAX_WEIGHTS_BYTES", 3 * 2**20)  # of 5.1
    with pytest.raises(UserError, match="--weights half"):
        publish(run, root, "pong", "command")
    half = publish(run, root, "pong", "command", weights="half")
    assert (root / half.path / "model.safetensors").stat().st_size < 3 * 2**20
    assert load_agent(root / half.path).card.step == 7_000
    none = publish(run, root, "pong", "command", weights="none", replace=True)
    assert none.weights is None
    assert not (root / none.path / "model.safetensors").exists()


def test_the_derived_command_is_understood_by_the_script(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", seed=5, double=True, first_update_steps=None)
    record = json.loads((run / "config.json").read_text())
    command = command_of("dueling_dqn_atari", record)
    assert "--double" in command and "--total-steps 7000" in command
    assert "run-dir" not in command and "None" not in command
    python, *words = shlex.split(command)
    assert python == "python"
    done = subprocess.run(
        [sys.executable, *words, "--help"], cwd=REPOSITORY, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert "usage" in done.stdout


# -------------------------------------------------------------------------------------- the index


def test_find(tmp_path: Path) -> None:
    root = tmp_path / "reference"
    for seed in (0, 1):
        publish(write_run(tmp_path / f"{seed}", seed=seed), root, f"pong-{seed}", "command")
    entries = read_index(root / "index.json")
    assert find(entries, []) == entries
    assert [entry.seed for entry in find(entries, ["pong-1"])] == [1]
    with pytest.raises(UserError, match="'pong-2'; there are: pong-0, pong-1"):
        find(entries, ["pong-2"])
    many = [dataclasses.replace(entries[0], name=f"game{i:02d}-seed0") for i in range(30)]
    with pytest.raises(UserError, match=r"there are: game17-seed0, .* and 22 more") as caught:
        find(many, ["game17-sed0"])
    assert len(str(caught.value)) < 250


def drop_command(records: list[dict[str, Any]]) -> Any:
    del records[0]["command"]
    return records


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda records: {"results": records}, "list"),
        (lambda records: [*records, *records], "two results named 'pong'"),
        (lambda records: [records[0] | {"path": "../elsewhere"}], "leads out"),
        (lambda records: [records[0] | {"files": {"/etc/passwd": "0"}}], "leads out"),
        (lambda records: [records[0] | {"weights": {"file": "a/../../b", "sha256": ""}}], "leads"),
        (lambda records: [records[0] | {"total_steps": "many"}], "entry 0 is malformed"),
        (lambda records: ["pong"], "entry 0 is malformed"),
        (drop_command, "entry 0 lacks 'command'"),
    ],
)
def test_a_malformed_index_is_refused(
    tmp_path: Path, damage: Callable[[Any], Any], message: str
) -> None:
    root = tmp_path / "reference"
    publish(write_run(tmp_path / "run", seed=0), root, "pong", "command")
    index = root / "index.json"
    index.write_text(json.dumps(damage(json.loads(index.read_text()))))
    with pytest.raises(UserError, match=message):
        read_index(index)


def test_an_index_that_is_missing_or_no_json_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="does not exist"):
        read_index(tmp_path / "index.json")
    (tmp_path / "index.json").write_text("[{")
    with pytest.raises(UserError, match="JSON"):
        read_index(tmp_path / "index.json")


# -------------------------------------------------------------------------------- the documents


def test_results_follow_the_index(tmp_path: Path) -> None:
    root = tmp_path / "runs" / "reference"
    index = root / "index.json"
    publish(write_run(tmp_path / "a", seed=0), root, "pong-0", "train pong 0")
    publish(write_run(tmp_path / "b", seed=2), root, "pong-2", "train pong 2")
    readme, page, picture = (
        tmp_path / name for name in ("README.md", "docs/results.md", "docs/results.png")
    )
    readme.write_text("before\n<!-- generated: results -->\n<!-- end: results -->\nafter\n")

    everything = [page, readme, picture]
    assert write_results(index, tmp_path, check=True) == everything
    assert not page.exists()
    assert write_results(index, tmp_path) == everything
    assert write_results(index, tmp_path, check=True) == []
    # Seeds 0 and 2 score -15 and -13.
    assert "| -14.0 [-15.0, -13.0] | -15.0 (seed 0), -13.0 (seed 2) |" in page.read_text()
    assert "| pong-2 | 7,000 | 100 | 0.02 | 2 cores \\| a test | c0ffeec0ffee |" in page.read_text()
    assert "# pong-2\ntrain pong 2\n" in page.read_text()
    assert readme.read_text().startswith("before\n") and readme.read_text().endswith("\nafter\n")
    assert "-14.0 [-15.0, -13.0] | 2 |" in readme.read_text()
    with Image.open(picture) as image:
        assert image.size[0] > 500

    # What people write around it stays; what they write into it does not.
    page.write_text("By hand.\n" + page.read_text().replace("-14.0", "+21.0"))
    assert write_results(index, tmp_path, check=True) == [page]
    write_results(index, tmp_path)
    assert page.read_text().startswith("By hand.\n") and "+21.0" not in page.read_text()

    publish(write_peer(tmp_path / "peer", seed=1), root, "sb3", "train sb3")
    assert write_results(index, tmp_path, check=True) == everything
    write_results(index, tmp_path)
    picture.write_bytes(b"no picture")
    assert write_results(index, tmp_path, check=True) == [picture]


def test_results_without_a_place(tmp_path: Path) -> None:
    index = tmp_path / "index.json"
    index.write_text("[]")
    (tmp_path / "README.md").write_text("No comments here.\n")
    assert write_results(index, tmp_path) == [tmp_path / "docs/results.md"]
    assert "Nothing is published yet." in (tmp_path / "docs/results.md").read_text()
    assert (tmp_path / "README.md").read_text() == "No comments here.\n"
    (tmp_path / "docs/results.md").write_text("<!-- generated: scores -->\n")
    with pytest.raises(UserError, match="lacks the lines"):
        write_results(index, tmp_path)


def test_blocks() -> None:
    text = "a\n<!-- generated: x -->\nold\n<!-- end: x -->\nb <!-- generated: y -->\n"
    assert has_block(text, "x") and not has_block(text, "y")
    new = with_block(text, "x", r"back\1slash")
    assert new == (
        "a\n<!-- generated: x -->\n\nback\\1slash\n\n<!-- end: x -->\nb <!-- generated: y -->\n"
    )
    assert with_block(new, "x", r"back\1slash") == new


def test_the_published_documents_are_up_to_date() -> None:
    index = REPOSITORY / "runs/reference/index.json"
    assert write_results(index, REPOSITORY, check=True) == []
    for entry in read_index(index):
        assert checked(entry, index.parent, play=False).holds


# ---------------------------------------------------------------------------------- model files


def test_load_agent_refuses(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    with pytest.raises(UserError, match="does not exist"):
        load_agent(path)
    with pytest.raises(UserError, match=r"holds no model\.safetensors"):
        load_agent(tmp_path)
    whole = write_model(path).read_bytes()
    for damaged in (whole[: len(whole) // 2], b"", b"\xff" * 64):
        path.write_bytes(damaged)
        with pytest.raises(UserError, match="not a valid safetensors file"):
            load_agent(path)
    for field, message in {
        "protocol": "classic, sticky",
        "torso": "nature, small",
        "head": "dueling",
        "env_id": "unknown Atari game",
        "step": "not a number",
    }.items():
        write_model(path, **{field: "nonsense"})
        with pytest.raises(UserError, match=message):
            load_agent(path)
    write_model(path, num_actions=2)
    with pytest.raises(UserError, match=r"head\.advantage\.bias is \(2,\), expected \(6,\)"):
        load_agent(path)
    write_model(path, head="q")
    with pytest.raises(UserError, match="does not fit"):
        load_agent(path)
    set_weight(write_model(path), "head.value.bias", float("nan"))
    with pytest.raises(UserError, match=r"NaN or infinite weights in head\.value\.bias"):
        load_agent(path)


def test_a_foreign_model_file_is_refused(tmp_path: Path) -> None:
    import safetensors.torch
    import torch

    path = tmp_path / "model.safetensors"
    safetensors.torch.save_file({"weight": torch.ones(3, 5)}, path)
    with pytest.raises(UserError, match="lacks agent, env_id, protocol, torso, head, step"):
        load_agent(path)
