"""Labels for sequences of turns: against the plain meaning, one state and one action at a time."""

import pytest
import torch
from torch import Tensor

from classicrl.algorithms.q_iteration import QIterationLearner
from classicrl.domains.cube3 import Cube3
from classicrl.domains.cube3_teacher import TurnTeacher
from classicrl.networks.byte_q_network import ByteQNetwork
from classicrl.search.nodes import Perimeter

TURNS = Cube3(12)


def q_of_turns(states: Tensor) -> Tensor:
    """1 + a number that depends on the state after each turn: what a teacher would say of it."""
    after = [TURNS.apply(states, torch.full((len(states),), turn)) for turn in range(12)]
    return torch.stack([1.0 + left(child) for child in after], 1)


def left(states: Tensor) -> Tensor:
    """A number in [0, 20] that tells states apart."""
    return (states.float() * torch.arange(1.0, 21.0)).sum(1).remainder(20.3)


@pytest.mark.parametrize("actions", [156, 1884])
def test_every_label_is_what_is_left_after_its_action(actions: int) -> None:
    domain, m = Cube3(actions), (2 if actions == 156 else 3)
    states = TURNS.random_states(7, torch.Generator().manual_seed(1))
    chosen = torch.randint(
        len(domain.sequences), (7, 2), generator=torch.Generator().manual_seed(2)
    )
    chosen[0] = torch.tensor([3, 0])  # single turns begin with nothing
    teacher = TurnTeacher(domain, q_of_turns, None, torch.Generator().manual_seed(3))
    taught = teacher.labels(states, chosen)
    assert taught.actions.shape == taught.labels.shape == taught.weights.shape == (7, 36)
    there = taught.actions >= 0
    row = there.nonzero()[:, 0]
    children = domain.apply(states[row], taught.actions[there])
    torch.testing.assert_close(taught.labels[there], 1.0 + left(children) / m)
    # Each chosen action is there; together they weigh as much as all labels do.
    weights = torch.where(there, taught.weights, 0.0)
    for state in range(7):
        for action in chosen[state].tolist():
            assert (weights[state][taught.actions[state] == action] > 1.0).any()
    torch.testing.assert_close((taught.weights - 1.0).sum(1), torch.full((7,), 36.0))


def test_all_actions_are_labelled_in_time() -> None:
    domain = Cube3(1884)
    teacher = TurnTeacher(domain, q_of_turns, None, torch.Generator().manual_seed(3))
    states = TURNS.random_states(3_000, torch.Generator().manual_seed(1))
    taught = teacher.labels(states, torch.zeros(3_000, 1, dtype=torch.int64))
    other = taught.actions[:, 12:]
    assert set(other.flatten().tolist()) - {-1} == set(range(len(domain.sequences)))


def test_chosen_labels_are_exact_in_the_ball_and_no_less_beyond() -> None:
    """Two turns from the solved cube, by U R: undone by R' U'; U' R' leads four turns away."""
    domain, ball = Cube3(156), Perimeter(TURNS, TURNS.goal, 3)
    state = TURNS.after([0, 2])[None]
    solving = domain.sequences.index((3, 1))
    leaving = domain.sequences.index((0, 2))
    teacher = TurnTeacher(
        domain, lambda s: torch.full((len(s), 12), 2.5), ball, torch.Generator().manual_seed(0)
    )
    taught = teacher.labels(state, torch.tensor([[solving, leaving]]))

    def label(action: int, part: slice) -> float:
        (found,) = taught.labels[0, part][taught.actions[0, part] == action]
        return float(found)

    assert label(solving, slice(0, 12)) == 1.0  # solved
    assert label(leaving, slice(12, 24)) == 1.0 + 4 / 2  # at least one beyond the ball
    untouched = domain.sequences.index((3, 4))
    assert label(untouched, slice(0, 12)) == 1.0 + 1.5 / 2  # as the teacher says


def test_single_turns_are_not_taught() -> None:
    with pytest.raises(ValueError, match="not single turns"):
        TurnTeacher(TURNS, q_of_turns, None, torch.Generator())


def test_errors_count_by_their_weights() -> None:
    """The gradient with weights is that of every label repeated so often."""
    network = ByteQNetwork(TURNS.feature_offsets, 480, 12, embedding_size=8, hidden_size=6)
    learner = QIterationLearner(network, learning_rate=0.0)
    states = TURNS.random_states(3, torch.Generator().manual_seed(1))
    actions = torch.tensor([[0, 5], [7, -1], [2, 11]])
    labels = torch.tensor([[3.0, 4.0], [5.0, torch.nan], [9.0, 1.0]])
    weights = torch.tensor([[1.0, 3.0], [2.0, 9.0], [1.0, 1.0]])
    got = learner.update_walk(states, actions, labels, weights)
    q = learner.action_values(states)
    terms = [(0, 0), (0, 1), (0, 1), (0, 1), (1, 0), (1, 0), (2, 0), (2, 1)]
    errors = [(q[i, actions[i, j]] - labels[i, j]) ** 2 for i, j in terms]
    torch.testing.assert_close(got["loss"], torch.stack(errors).mean())
