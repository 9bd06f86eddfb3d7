"""The script that trains networks for the cube: it learns, stops, continues, and is refused."""

import dataclasses
import itertools
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from script_process import command_line, load_script

from classicrl import cube_solver
from classicrl.algorithms.q_iteration import QIterationLearner
from classicrl.cube_solver import load_network
from classicrl.domains.cube3 import Cube3
from classicrl.domains.cube3_evaluation import Scores
from classicrl.domains.cube3_walks import CubeWalks
from classicrl.domains.pancake import Pancake
from classicrl.domains.walks import no_undo, random_walks
from classicrl.errors import UserError
from classicrl.loggers import read_csv
from classicrl.networks.byte_q_network import ByteQNetwork
from classicrl.reports.publish import publish
from classicrl.reports.reference import verify
from classicrl.reports.results import write_results
from classicrl.search.beam import q_beam
from classicrl.search.nodes import Perimeter
from classicrl.search.value import q_of_children

SETTINGS: dict[str, Any] = {
    "total_updates": 60,
    "threads": 1,
    "device": "cpu",
    "embedding_size": 24,
    "hidden_size": 16,
    "batch_size": 200,
    "walk_length": 9,
    "ball_depth": 3,
    "log_period_updates": 10,
    "evaluation_period_updates": 20,
    "evaluation_cubes": 1,
    "final_evaluation_cubes": 2,
    "evaluation_width": 8,
    "checkpoint_period_updates": 20,
    "target_period_updates": 7,
}


@pytest.fixture(autouse=True)
def failing_is_quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Networks that know nothing would climb the ladder to its end for every cube."""
    monkeypatch.setattr(cube_solver, "_MAX_WIDTH", 16)


def run(directory: Path, **changes: Any) -> dict[str, Any]:
    script = load_script("qstar_cube3_train")
    summary: dict[str, Any] = script.main(script.Config(**SETTINGS | changes, run_dir=directory))
    return summary


def weights(directory: Path) -> dict[str, torch.Tensor]:
    return dict(load_network(directory).network.state_dict())


@pytest.mark.parametrize("actions", [12, 156])
@pytest.mark.parametrize("recipe", ["default", "paper"])
def test_a_run_leaves_a_network_that_can_solve(tmp_path: Path, actions: int, recipe: str) -> None:
    summary = run(tmp_path, actions=actions, recipe=recipe)
    assert summary["num_updates"] == 60 and summary["num_states"] == 12_000
    assert summary["kept"] in ({"walk", "bellman"} if recipe == "default" else {"bellman"})
    assert load_network(tmp_path).domain.max_turns == (1 if actions == 12 else 2)
    table = read_csv(tmp_path / "metrics.csv")
    assert table["step"].tolist() == [10, 20, 30, 40, 50, 60]
    # walk_share 0.7: of the last 18 updates.
    expected = [0, 0, 0, 0, 1, 1] if recipe == "default" else [1] * 6
    assert table["charts/bellman"].tolist() == expected
    assert read_csv(tmp_path / "evaluations.csv")["step"].tolist() == [20, 40, 60]
    assert json.loads((tmp_path / "summary.json").read_text())["beam"]["cubes"] == 2
    assert summary["eval"]["episodes"] == 2 and summary["eval"]["mean_return"] >= -100
    assert run(tmp_path, actions=actions, recipe=recipe) == summary  # finished: reported again


@pytest.mark.parametrize("actions", [12, 156])
@pytest.mark.parametrize("recipe", ["default", "paper"])
def test_values_of_states_alone_are_learned(tmp_path: Path, actions: int, recipe: str) -> None:
    changes = {"actions": actions, "recipe": recipe, "function": "v", "batch_size": 50}
    summary = run(tmp_path, **changes)
    loaded = load_network(tmp_path)
    assert loaded.is_value and loaded.domain.max_turns == (1 if actions == 12 else 2)
    assert summary["beam"]["width"] == 1 and summary["eval"]["episodes"] == 2
    table = read_csv(tmp_path / "metrics.csv")
    assert table["charts/bellman"].tolist() == (
        [0, 0, 0, 0, 1, 1] if recipe == "default" else [1] * 6
    )
    if recipe == "default":
        assert table["losses/q"][3] < 0.8 * table["losses/q"][0]
    assert run(tmp_path, **changes) == summary
    with pytest.raises(UserError, match="--recipe teacher is for networks of Q"):
        run(tmp_path / "taught", actions=156, recipe="teacher", function="v")
    if actions == 12:
        with pytest.raises(UserError, match="must be a network of Q"):
            run(tmp_path / "taught", actions=156, recipe="teacher", teacher=tmp_path)
        with pytest.raises(UserError, match="has function v, not q"):
            run(tmp_path / "q", init_from=tmp_path)
    assert not (tmp_path / "taught").exists() and not (tmp_path / "q").exists()


def test_a_run_of_a_version_without_a_setting_goes_on_with_its_default(tmp_path: Path) -> None:
    """And is refused another."""
    summary = run(tmp_path)
    path = tmp_path / "config.json"
    record = json.loads(path.read_text())
    del record["config"]["function"], record["sha256"]
    path.write_text(json.dumps(record))
    assert run(tmp_path) == summary
    with pytest.raises(UserError, match="function is v, was None"):
        run(tmp_path, function="v")


@pytest.mark.parametrize("actions", [156, 1884])
def test_sequences_of_turns_are_learned_from_a_network_for_turns(
    tmp_path: Path, actions: int
) -> None:
    changes = {"actions": actions, "recipe": "teacher", "log_period_updates": 20}
    changes["learning_rate"] = 0.01  # so few updates
    summary = run(tmp_path, **changes)
    assert summary["kept"] == "teacher" and summary["num_updates"] == 60
    table = read_csv(tmp_path / "metrics.csv")
    assert table["losses/q"][-1] < 0.8 * table["losses/q"][0]
    assert table["charts/bellman"].tolist() == [0, 0, 0]
    assert run(tmp_path, **changes) == summary


def test_a_teacher_that_cannot_teach_is_refused_first(tmp_path: Path) -> None:
    run(tmp_path / "156", actions=156)
    for changes, message in (
        ({"recipe": "teacher"}, "add --actions 156"),
        ({"teacher": tmp_path / "156", "actions": 156}, "needs --recipe teacher"),
        (
            {"teacher": tmp_path / "156", "actions": 156, "recipe": "teacher"},
            "must be for 12 actions",
        ),
        ({"teacher": tmp_path / "no", "actions": 156, "recipe": "teacher"}, "no is not a file"),
    ):
        with pytest.raises(UserError, match=message):
            run(tmp_path / "run", **changes)
        assert not (tmp_path / "run").exists()
    run(tmp_path / "12", total_updates=1, walk_share=1.0)
    kept = (tmp_path / "12" / "model.safetensors").read_bytes()
    changes = {"teacher": tmp_path / "12", "actions": 156, "recipe": "teacher", "overwrite": True}
    with pytest.raises(UserError, match=r"--teacher .*--overwrite empties"):
        run(tmp_path / "12", **changes)
    assert (tmp_path / "12" / "model.safetensors").read_bytes() == kept


def test_a_network_is_published_and_solves_its_cubes_again(tmp_path: Path) -> None:
    run(tmp_path / "run")
    index = tmp_path / "reference" / "index.json"
    entry = publish(tmp_path / "run", index.parent, name="cube")
    assert (entry.env_id, entry.protocol, entry.agent) == ("cube3-12", "qtm", "qstar_cube3_train")
    verdict = verify(entry, index.parent)
    assert verdict is not None and verdict.holds and "replayed" in verdict.detail
    other = verify(dataclasses.replace(entry, env_id="cube3-156"), index.parent)
    assert other is not None and not other.holds and "of another agent" in other.detail
    write_results(index, tmp_path)
    assert "cube3-12" in (tmp_path / "docs" / "results.md").read_text()
    assert write_results(index, tmp_path, check=True) == []


def test_errors_are_told_apart_by_depth(tmp_path: Path) -> None:
    """Together they are the loss; where walks do not come there is none."""
    sums = load_script("qstar_cube3_train").summed_by_depth(
        torch.tensor([1, 6, 7, 30]), torch.tensor([1.0, 3.0, 5.0, 7.0])
    )
    found = {name: float(total) for name, total in sums.items()}
    assert (found["errors_1_6"], found["states_1_6"]) == (4.0, 2.0)
    assert (found["errors_7_12"], found["states_7_12"]) == (5.0, 1.0)
    assert (found["errors_13_18"], found["states_13_18"]) == (0.0, 0.0)
    assert (found["errors_19_30"], found["states_19_30"]) == (7.0, 1.0)
    run(tmp_path, walk_length=12, walk_share=0.5, log_period_updates=20, total_updates=60)
    table = read_csv(tmp_path / "metrics.csv")
    near, far = table["losses/q_depth_1_6"], table["losses/q_depth_7_12"]
    assert np.isnan(table["losses/q_depth_13_18"]).all()
    bellman = table["charts/bellman"] == 1
    assert bellman.any() and not bellman.all()
    loss = table["losses/q"][bellman]  # with one label a state it is the mean over all of them
    assert (np.minimum(near, far)[bellman] <= loss).all()
    assert (loss <= np.maximum(near, far)[bellman]).all()


def test_walks_teach_and_a_trunk_is_taken_over(tmp_path: Path) -> None:
    run(tmp_path / "long", total_updates=300, walk_share=1.0, log_period_updates=50)
    loss = read_csv(tmp_path / "long" / "metrics.csv")["losses/q"]
    assert loss[-1] < 0.5 * loss[0]
    first, second = tmp_path / "long", tmp_path / "second"
    model = first / "model.safetensors"
    run(second, actions=156, trunk=model, total_updates=1, bellman_learning_rate=1e-9, walk_share=0)
    for name, tensor in weights(first).items():
        if not name.startswith("head"):
            torch.testing.assert_close(weights(second)[name], tensor, atol=1e-6, rtol=0)
    with pytest.raises(UserError, match="is of another shape"):
        run(tmp_path / "third", trunk=model, hidden_size=8)
    assert not (tmp_path / "third").exists()
    kept = (second / "model.safetensors").read_bytes()
    for trunk, message in ((tmp_path / "absent", "not a file"), (second, "overwrite empties")):
        with pytest.raises(UserError, match=message):
            run(second, actions=156, trunk=trunk, overwrite=True)
        assert (second / "model.safetensors").read_bytes() == kept


def test_of_two_networks_the_one_that_solves_more_and_shorter_is_better() -> None:
    """And where both solve nothing, as narrow beams do, the one that is nearer to what is known."""
    best = Scores(9, 5, 120, 0.1, 0.5, 0.0)
    for worse in (
        best._replace(solved=4, total_length=90, distance_error=0.1),
        best._replace(total_length=121, distance_error=0.1),
        best._replace(distance_error=0.6),
    ):
        assert best.better_than(worse) and not worse.better_than(best)
    unknown = best._replace(distance_error=math.nan)
    assert not unknown.better_than(unknown)


def test_no_earlier_run_has_a_say_in_which_network_is_kept(tmp_path: Path) -> None:
    run(tmp_path)
    assert (tmp_path / "walk.safetensors").exists()
    summary = run(tmp_path, walk_share=1.0, overwrite=True)
    assert summary["kept"] == "walk" and not (tmp_path / "walk.safetensors").exists()
    assert run(tmp_path, hidden_size=8, overwrite=True)["num_updates"] == 60


@pytest.mark.parametrize(
    ("recipe", "function"), [("default", "q"), ("default", "v"), ("teacher", "q")]
)
def test_a_continued_run_equals_one_without_a_break(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, recipe: str, function: str
) -> None:
    changes = {
        "recipe": recipe, "actions": 12 if recipe == "default" else 156, "function": function,
    }  # fmt: skip
    run(tmp_path / "whole", **changes)
    script = load_script("qstar_cube3_train")
    learner = script.QIterationLearner
    calls = 0

    def interrupted(self: Any, *arguments: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == 30:
            raise KeyboardInterrupt
        return update(self, *arguments)

    update = learner.update_walk
    monkeypatch.setattr(learner, "update_walk", interrupted)
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "parts", **changes)
    monkeypatch.setattr(learner, "update_walk", update)
    run(tmp_path / "parts", **changes)
    ours, theirs = weights(tmp_path / "parts"), weights(tmp_path / "whole")
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--minutes", "0"], "--minutes must be positive"),
        (["--walk-share", "1.5"], "--walk-share must be at most 1"),
        (["--trunk", "/nowhere"], "is not a file"),
        (["--batch-size", "-3"], "--batch-size must be positive"),
        (["--actions", "18"], "18"),
    ],
)
def test_bad_flags_exit_2(tmp_path: Path, arguments: list[str], message: str) -> None:
    exit_code, output = command_line(
        "qstar_cube3_train", *arguments, "--run-dir", str(tmp_path / "run"), output=tmp_path / "out"
    )
    assert exit_code == 2 and message in output and "Traceback" not in output


def test_labels_follow_the_walk() -> None:
    """Children on the walk: exact in the ball, else the steps taken; cost in actions."""
    turns = Cube3(12)
    ball = Perimeter(turns, turns.goal, 3)
    for actions in (12, 156, 1884):
        domain = Cube3(actions)
        m = domain.max_turns
        walks = CubeWalks(domain, 8, ball, torch.Generator().manual_seed(2))
        batch = walks.draw(40)
        assert batch.states.shape == (320, 20) and batch.actions.shape == (320, 2 * m)
        assert sorted(set(batch.steps.tolist())) == list(range(1, 9))
        for j, (action, label) in enumerate(zip(batch.actions.T, batch.labels.T, strict=True)):
            there = action >= 0
            along = batch.steps[there] + (j // 2 + 1) * (1 if j % 2 else -1)
            known = walks.distance(domain.apply(batch.states[there], action[there]))
            exact = 1 + torch.ceil(known / m)
            bound = 1 + torch.ceil(torch.clamp(along, min=4) / m)
            expected = torch.where(known.isinf(), bound, exact)
            torch.testing.assert_close(label[there], expected)
        known = walks.distance(batch.states)
        bound = torch.ceil(torch.clamp(batch.steps, min=4) / m)
        torch.testing.assert_close(
            batch.costs, torch.where(known.isinf(), bound, torch.ceil(known / m))
        )
        # Only a step back beyond the solved cube has no label.
        assert torch.equal(batch.actions < 0, batch.actions < 0)
        assert bool((batch.actions[:, 1::2] >= 0).all()) and bool((batch.actions[:, 0] >= 0).all())


def test_bellman_updates_reach_the_exact_costs_of_a_small_problem() -> None:
    """The 4-pancake, 24 states: Q becomes 1 + d(child)."""
    domain = Pancake(4)
    layers = Perimeter(domain, domain.goal, 4)
    states = layers._nodes.states[:24]
    distance = layers._nodes.path_cost[:24]
    generator = torch.Generator().manual_seed(0)
    network = ByteQNetwork(
        [4 * i for i in range(4)], 16, 3, embedding_size=64, hidden_size=32, generator=generator
    )
    learner = QIterationLearner(network, learning_rate=2e-3)
    for update in range(1_500):
        action = torch.randint(3, (24,), generator=generator)
        children = domain.apply(states, action)
        cost = torch.where(domain.is_goal(children), 0.0, learner.next_cost(children))
        learner.update_bellman(states, action, 1.0 + cost)
        if update % 50 == 0:
            learner.sync_target()
    for action in range(3):
        children = domain.apply(states, torch.full((24,), action))
        exact = 1 + layers.distance(children, layers.hashes(children))[0]
        q = learner.action_values(states)[:, action]
        torch.testing.assert_close(q, exact, atol=0.15, rtol=0)
    assert distance.max() == 4


def test_value_updates_reach_the_exact_distances_of_a_small_problem() -> None:
    """The 4-pancake again: V becomes d, from the least cost of the children."""
    domain = Pancake(4)
    layers = Perimeter(domain, domain.goal, 4)
    states = layers._nodes.states[:24]
    distance = layers._nodes.path_cost[:24]
    away = distance > 0
    states, distance = states[away], distance[away]
    network = ByteQNetwork(
        [4 * i for i in range(4)], 16, 1, embedding_size=64, hidden_size=32,
        generator=torch.Generator().manual_seed(0),
    )  # fmt: skip
    learner = QIterationLearner(network, learning_rate=2e-3)
    only = torch.zeros(23, dtype=torch.int64)
    for update in range(1_000):
        target = q_of_children(domain, learner.next_cost)(states).amin(1)
        learner.update_bellman(states, only, target)
        if update % 50 == 0:
            learner.sync_target()
    torch.testing.assert_close(learner.action_values(states)[:, 0], distance, atol=0.15, rtol=0)


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_seven_pancakes_are_learned_by_bellman_targets_alone() -> None:
    """Greedily followed, Q solves all 5,040 states but one in fifty, in at most 20 reversals."""
    domain, generator = Pancake(7), torch.Generator().manual_seed(0)
    assert domain.inverse is not None
    follows = no_undo(domain.inverse)
    network = ByteQNetwork(
        [7 * i for i in range(7)], 49, 6, embedding_size=128, hidden_size=128, num_blocks=0,
        mean_output=0.0, generator=generator,
    )  # fmt: skip
    learner = QIterationLearner(network, learning_rate=1e-3)
    for part in learner.target.get_submodule("head").parameters():
        part.zero_()  # every state is at the goal, as far as the first targets know
    smoothed = 1.0
    for update in range(1, 5_001):
        walks = random_walks(domain, domain.goal, follows, 42, 12, generator)
        states = walks.states[:, 1:].flatten(0, 1)
        chances = torch.softmax(-3.0 * learner.action_values(states), dim=1)
        action = torch.multinomial(chances, 1, generator=generator)[:, 0]
        children = domain.apply(states, action)
        cost = torch.where(domain.is_goal(children), 0.0, learner.next_cost(children))
        loss = float(learner.update_bellman(states, action, 1.0 + cost)["loss"])
        smoothed += 0.05 * (loss - smoothed)
        if update % 100 == 0 and smoothed < 0.05:
            learner.sync_target()
    everywhere = torch.tensor(list(itertools.permutations(range(7))), dtype=torch.uint8)
    at, solved = everywhere.clone(), domain.is_goal(everywhere)
    for _ in range(20):
        at = domain.apply(at, learner.action_values(at).argmin(1))
        solved |= domain.is_goal(at)
    assert len(solved) == 5_040 and float(solved.float().mean()) >= 0.98


@pytest.mark.slow
@pytest.mark.timeout(1_800)
def test_walks_alone_teach_a_beam_to_solve_ten_turns() -> None:
    """After 2.5 million states of walks a beam of 256 is to solve 38 of 40 scrambles of 10 turns.

    It is a matter of how the first layer begins: with rows whose sum has variance 1, as after a
    dense layer, 37 are solved (docs/qstar.md).
    """
    domain, generator = Cube3(12), torch.Generator().manual_seed(0)
    walks = CubeWalks(domain, 14, None, generator)
    network = ByteQNetwork(
        domain.feature_offsets, domain.num_features, 12, embedding_size=512, hidden_size=128,
        num_blocks=1, mean_output=7.0, generator=generator,
    )  # fmt: skip
    learner, num_updates = QIterationLearner(network, learning_rate=1e-3), 1_250
    for update in range(num_updates):
        learner.set_learning_rate(1e-3 * min(1.0, max(0.02, 2.0 * (1.0 - update / num_updates))))
        part = walks.batch(2_000)
        learner.update_walk(part.states, part.actions, part.labels)
    scrambled = random_walks(domain, domain.goal, domain.walk_rule(), 40, 10, generator)
    found = [
        q_beam(domain, learner.action_values, start, width=256, max_depth=12)
        for start in scrambled.states[:, -1]
    ]
    assert sum(solution.solved for solution in found) >= 38
