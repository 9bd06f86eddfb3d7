"""Random walks: states follow from actions, rules are kept, draws are uniform and repeatable."""

import torch

from classicrl.domains import Cube3, Pancake, no_undo, random_walks

W, K = 11, 6


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_states_follow_from_actions() -> None:
    domain = Cube3()
    walks = random_walks(domain, domain.goal, domain.walk_rule(), W, K, seeded(0))
    assert (walks.states.dtype, walks.states.shape) == (torch.uint8, (W, K + 1, 20))
    assert (walks.actions.dtype, walks.actions.shape) == (torch.int64, (W, K))
    for states, actions in zip(walks.states, walks.actions.tolist(), strict=True):
        for step in range(K + 1):
            assert torch.equal(states[step], domain.after(actions[:step]))


def test_walks_keep_to_their_rule() -> None:
    domain = Cube3()
    follows = domain.walk_rule()
    actions = random_walks(domain, domain.goal, follows, 3000, K, seeded(1)).actions
    padded = torch.cat([torch.full((3000, 2), 12), actions], 1)
    for step in range(K):
        assert follows[tuple(padded[:, step : step + 3].T)].all()
    # All that is allowed is drawn, about as often: a first turn is any, a second any that follows.
    first = actions[:, 0].bincount(minlength=12)
    assert (first - 250).abs().max() < 80
    pairs = {tuple(pair) for pair in actions[:, :2].tolist()}
    assert len(pairs) == 114


def test_walks_that_never_take_back_a_step() -> None:
    domain = Pancake(5)
    assert domain.inverse is not None
    follows = no_undo(domain.inverse)
    assert (follows.dtype, follows.shape) == (torch.bool, (5, 5, 4))
    assert follows[:, 4].all()  # nothing to take back
    actions = random_walks(domain, domain.goal, follows, 500, K, seeded(2)).actions
    assert (actions[:, 1:] != actions[:, :-1]).all()
    assert {tuple(pair) for pair in actions[:, :2].tolist()} == {
        (i, j) for i in range(4) for j in range(4) if i != j
    }


def test_no_undo_of_actions_that_others_undo() -> None:
    follows = no_undo(Cube3().inverse)
    for last in range(12):
        for action in range(12):
            assert (follows[:, last, action] == (action != last ^ 1)).all()


def test_the_same_seed_walks_the_same_way() -> None:
    domain = Cube3()
    first, again, other = (
        random_walks(domain, domain.goal, domain.walk_rule(), W, K, seeded(seed)).actions
        for seed in (3, 3, 4)
    )
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
