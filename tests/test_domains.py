"""Lights Out, pancakes and sliding tiles: known counts, plain references, random walks."""

import math
from itertools import permutations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from torch import Tensor

from classicrl.domains import LightsOut, Pancake, SlidingPuzzle

AnyDomain = LightsOut | Pancake | SlidingPuzzle

# Tests of all of these take 13 states: no domain has as many cells or actions.
DOMAINS: list[AnyDomain] = [
    LightsOut(3),
    LightsOut(4),
    LightsOut(7),
    Pancake(2),
    Pancake(7),
    Pancake(35),
    Pancake(256),
    SlidingPuzzle(4),
    SlidingPuzzle(2, 5),
    SlidingPuzzle(5, 3),
]
every_domain = pytest.mark.parametrize("domain", DOMAINS, ids=lambda domain: domain.name)
seeds = st.integers(0, 2**32 - 1)


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def inverse(domain: AnyDomain) -> Tensor:
    assert domain.inverse is not None
    return domain.inverse


def random_legal(domain: AnyDomain, states: Tensor, generator: torch.Generator) -> Tensor:
    """One legal action of each state, [B] int64."""
    legal = domain.legal(states)
    if legal is None:
        legal = torch.ones(len(states), len(domain.costs), dtype=torch.bool)
    if not len(states):
        return torch.zeros(0, dtype=torch.int64)
    return torch.multinomial(legal.float(), 1, generator=generator)[:, 0]


def layers(domain: AnyDomain, start: Tensor, depth: int) -> list[Tensor]:
    """The states [*, S] that are 0, 1, ... steps from the start [S], to ``depth`` or to the end."""
    found = [start[None]]
    num_actions, row = len(domain.costs), f"V{len(start)}"
    seen = start.numpy().view(row)
    while len(found) <= depth:
        parents = found[-1].repeat_interleave(num_actions, 0)
        actions = torch.arange(num_actions).repeat(len(found[-1]))
        legal = domain.legal(found[-1])
        if legal is not None:
            parents, actions = parents[legal.flatten()], actions[legal.flatten()]
        children: NDArray[np.void] = np.unique(domain.apply(parents, actions).numpy().view(row))
        children = children[~np.isin(children, seen)]
        if not len(children):
            break
        # Every action can be undone, so a child is new or lies in one of the last two layers.
        seen = np.concatenate([found[-1].numpy().view(row)[:, 0], children])
        found.append(torch.from_numpy(children.view(np.uint8).reshape(len(children), -1)))
    return found


def sizes(found: list[Tensor]) -> list[int]:
    return [len(layer) for layer in found]


def rank_mod_2(rows: Tensor) -> int:
    """Rank over GF(2) of 0s and 1s [n, m]; each row is one whole number."""
    basis: list[int] = []
    for row in rows.tolist():
        number = int("".join(map(str, row)), 2)
        for leader in basis:
            number = min(number, number ^ leader)
        if number:
            basis.append(number)
    return len(basis)


# What all of them promise.


@every_domain
def test_the_goal_and_the_tables(domain: AnyDomain) -> None:
    assert (domain.goal.dtype, domain.goal.ndim) == (torch.uint8, 1)
    assert domain.costs.dtype == torch.float32
    assert (domain.costs == 1).all()
    assert inverse(domain).dtype == torch.int64
    assert inverse(domain).shape == domain.costs.shape
    assert domain.is_goal(domain.goal.repeat(3, 1)).tolist() == [True] * 3


def test_names_tell_them_apart() -> None:
    assert len({domain.name for domain in DOMAINS}) == len(DOMAINS)
    assert [LightsOut().name, Pancake().name] == ["lights-out-7x7", "pancake-35"]
    assert SlidingPuzzle(5, 3).name == "sliding-puzzle-5x3"


@every_domain
@given(seed=seeds)
def test_walks_stay_valid_and_can_be_taken_back(domain: AnyDomain, seed: int) -> None:
    generator = seeded(seed)
    states = domain.random_states(13, generator)
    for _ in range(3):
        actions = random_legal(domain, states, generator)
        before = states.clone()
        after = domain.apply(states, actions)
        assert torch.equal(states, before), "apply wrote into its argument"
        assert (after.dtype, after.shape) == (torch.uint8, states.shape)
        assert (after != states).any(1).all()
        if isinstance(domain, LightsOut):
            assert (after <= 1).all()
        else:
            assert torch.equal(after.sort(1).values, domain.goal.sort().values.expand(13, -1))
        back = inverse(domain)[actions]
        legal = domain.legal(after)
        assert legal is None or legal.gather(1, back[:, None]).all()
        assert torch.equal(domain.apply(after, back), states)
        states = after


@every_domain
@pytest.mark.parametrize("count", [0, 1, 13])
def test_batches_of_any_size(domain: AnyDomain, count: int) -> None:
    states = domain.random_states(count, seeded(5))
    actions = random_legal(domain, states, seeded(6))
    after = domain.apply(states, actions)
    assert after.shape == states.shape == (count, len(domain.goal))
    assert domain.is_goal(states).shape == (count,)
    # A state alone is treated as it is among others.
    for b in range(count):
        assert torch.equal(domain.apply(states[b : b + 1], actions[b : b + 1])[0], after[b])


@every_domain
def test_is_goal_needs_every_byte(domain: AnyDomain) -> None:
    states = domain.goal.repeat(len(domain.goal) + 1, 1)
    states.fill_diagonal_(7)  # one byte in each row, none in the last
    assert domain.is_goal(states).tolist() == [*(domain.goal == 7).tolist(), True]


@every_domain
def test_random_states_follow_their_generator(domain: AnyDomain) -> None:
    first = domain.random_states(13, seeded(1))
    assert torch.equal(first, domain.random_states(13, seeded(1)))
    assert not torch.equal(first, domain.random_states(13, seeded(2)))


@pytest.mark.parametrize(
    ("domain", "num_states"),
    [
        (LightsOut(2), 16),
        (Pancake(4), 24),
        (SlidingPuzzle(2), 12),
    ],
    ids=lambda value: getattr(value, "name", value),
)
def test_random_states_are_uniform(domain: AnyDomain, num_states: int) -> None:
    states = domain.random_states(1000 * num_states, seeded(3))
    distinct, counts = states.unique(dim=0, return_counts=True)
    reached = torch.cat(layers(domain, domain.goal, 99)).unique(dim=0)
    assert torch.equal(distinct, reached)
    assert len(distinct) == num_states
    # Chi-square: mean k, variance 2k at k degrees of freedom; four standard deviations.
    freedom = num_states - 1
    chi_square = ((counts - 1000.0) ** 2 / 1000).sum()
    assert abs(chi_square - freedom) < 4 * math.sqrt(2 * freedom)


def use_everything(domain: AnyDomain) -> tuple[Tensor, ...]:
    """All that a domain computes, of states and actions that the seed fixes."""
    states = domain.random_states(13, seeded(8))
    actions = torch.arange(13, device=states.device) % len(domain.costs)
    results = [states, domain.apply(states, actions), domain.is_goal(states), inverse(domain)]
    if isinstance(domain, LightsOut):
        results.append(domain.scrambled(torch.arange(13), seeded(9)))
        results.append(domain.optimal_presses(states))
    elif isinstance(domain, Pancake):
        results.append(domain.gap_heuristic(states))
    else:
        results += [domain.legal(states), domain.is_solvable(states)]
    return tuple(results)


def test_everything_stays_on_the_device() -> None:
    """A device that computes nothing, but refuses whatever was left on another one."""
    for domain in (LightsOut(device="meta"), Pancake(device="meta"), SlidingPuzzle(device="meta")):
        for result in (domain.goal, domain.costs, *use_everything(domain)):
            assert result.is_meta


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="requires CUDA")
@pytest.mark.parametrize("kind", [LightsOut, Pancake, SlidingPuzzle])
def test_a_gpu_computes_the_same(kind: type[AnyDomain]) -> None:
    on_cpu, on_gpu = use_everything(kind()), use_everything(kind(device="cuda"))
    for expected, result in zip(on_cpu, on_gpu, strict=True):
        assert result.is_cuda
        assert torch.equal(result.cpu(), expected)


# Lights Out.


@pytest.mark.parametrize("size", [1, 2, 3, 5, 7])
def test_a_press_toggles_a_cell_and_its_neighbours(size: int) -> None:
    domain, n = LightsOut(size), size * size
    states = domain.random_states(3 * n, seeded(size))
    after = domain.apply(states, torch.arange(n).repeat(3)).tolist()
    for b, board in enumerate(states.tolist()):
        row, column = divmod(b % n, size)
        for r, c in [(0, 0), (-1, 0), (1, 0), (0, -1), (0, 1)]:
            if 0 <= row + r < size and 0 <= column + c < size:
                board[size * (row + r) + column + c] ^= 1
        assert after[b] == board


def test_presses_of_seven_by_seven_are_independent() -> None:
    domain = LightsOut(7)
    presses = domain.apply(domain.goal.repeat(49, 1), torch.arange(49))
    assert presses.sum() == 217
    assert rank_mod_2(presses) == 49


def test_known_optima() -> None:
    lit, centre, corner = torch.ones(49), torch.zeros(49), torch.zeros(49)
    centre[24] = corner[6] = 1
    states = torch.stack([lit, centre, corner, torch.zeros(49)]).to(torch.uint8)
    optimum = LightsOut(7).optimal_presses(states)
    assert optimum.tolist() == [33, 17, 19, 0]
    assert optimum.dtype == torch.int64


@pytest.mark.parametrize("size", [1, 2, 3])
def test_optimal_presses_are_the_distance(size: int) -> None:
    domain = LightsOut(size)
    found = layers(domain, domain.goal, 99)
    assert sum(sizes(found)) == 2 ** (size * size)
    for depth, states in enumerate(found):
        assert (domain.optimal_presses(states) == depth).all()


@given(cells=st.lists(st.integers(0, 48), unique=True))
def test_optimal_presses_of_cells_pressed_once_each(cells: list[int]) -> None:
    domain = LightsOut(7)
    state = domain.goal[None]
    for cell in cells:
        state = domain.apply(state, torch.tensor([cell]))
    assert domain.optimal_presses(state).tolist() == [len(cells)]


def test_random_boards_need_half_of_the_cells() -> None:
    domain = LightsOut(7)
    optimum = domain.optimal_presses(domain.random_states(10_000, seeded(4))).float()
    # Each cell is pressed or not with equal odds: variance 49 / 4.
    assert optimum.mean() == pytest.approx(24.5, abs=4 * 3.5 / 100)
    assert optimum.std() == pytest.approx(3.5, abs=0.1)


@pytest.mark.parametrize(("size", "rank"), [(4, 12), (5, 23)])
def test_boards_with_dependent_presses(size: int, rank: int) -> None:
    domain = LightsOut(size)
    assert rank_mod_2(domain.presses) == rank
    with pytest.raises(ValueError, match=f"{size}x{size} are linearly dependent"):
        domain.optimal_presses(domain.goal[None])
    # All else works, and what is drawn can be solved: it adds nothing to the span of the presses.
    states = domain.random_states(1 << 10, seeded(2))
    assert rank_mod_2(torch.cat([domain.presses, states])) == rank
    unsolvable = domain.goal.clone()
    unsolvable[0] = 1
    assert rank_mod_2(torch.cat([domain.presses, unsolvable[None]])) == rank + 1


@given(seed=seeds, lengths=st.lists(st.integers(0, 60), max_size=12))
def test_scrambled_takes_as_many_presses_as_told(seed: int, lengths: list[int]) -> None:
    domain = LightsOut(7)
    num_presses = torch.tensor(lengths, dtype=torch.int64)
    states = domain.scrambled(num_presses, seeded(seed))
    assert states.shape == (len(lengths), 49)
    optimum = domain.optimal_presses(states)
    # Two presses of one cell cancel, so the parity stays.
    assert ((optimum <= num_presses) & ((optimum - num_presses) % 2 == 0)).all()
    assert torch.equal(states, domain.scrambled(num_presses, seeded(seed)))


def test_one_press_is_any_cell() -> None:
    domain = LightsOut(3)
    states = domain.scrambled(torch.ones(9_000, dtype=torch.int64), seeded(0))
    distinct, counts = states.unique(dim=0, return_counts=True)
    assert torch.equal(distinct, domain.presses.unique(dim=0))
    assert (counts - 1000).abs().max() < 150


def test_long_scrambles_are_counted_exactly() -> None:
    """Cells are pressed many thousand times: no count may be rounded."""
    domain = LightsOut(1)
    num_presses = torch.tensor([5_000, 5_001, 99_999])
    assert domain.scrambled(num_presses, seeded(0)).tolist() == [[0], [1], [1]]


@pytest.mark.parametrize("size", [0, -3])
def test_boards_without_cells_are_refused(size: int) -> None:
    with pytest.raises(ValueError, match="at least 1 cell"):
        LightsOut(size)


# Pancakes.


@pytest.mark.parametrize("n", [2, 3, 8, 35])
def test_an_action_reverses_the_top(n: int) -> None:
    domain = Pancake(n)
    states = domain.random_states(3 * (n - 1), seeded(n))
    after = domain.apply(states, torch.arange(n - 1).repeat(3)).tolist()
    for b, stack in enumerate(states.tolist()):
        k = b % (n - 1) + 2
        assert after[b] == stack[:k][::-1] + stack[k:]


def test_pancake_layers_and_the_gap_below_them() -> None:
    domain = Pancake(7)
    found = layers(domain, domain.goal, 99)
    assert sizes(found) == [1, 6, 30, 149, 543, 1357, 1903, 1016, 35]
    for depth, states in enumerate(found):
        gap = domain.gap_heuristic(states)
        assert (gap <= depth).all()
        assert torch.equal(gap == 0, domain.is_goal(states))


def test_the_gap_by_hand() -> None:
    domain = Pancake(5)
    by_hand = {
        (0, 1, 2, 3, 4): 0,
        (4, 3, 2, 1, 0): 1,  # only the plate, 5, lies beside a pancake that is not 4
        (1, 0, 2, 3, 4): 1,  # 0 | 2
        (2, 0, 4, 1, 3): 5,
        (0, 2, 1, 3, 4): 2,  # 0 | 2, 1 | 3
    }
    gap = domain.gap_heuristic(torch.tensor(list(by_hand), dtype=torch.uint8))
    assert gap.tolist() == list(by_hand.values())
    assert gap.dtype == torch.int64


@given(seed=seeds, n=st.sampled_from([2, 3, 35, 256]))
def test_the_gap_against_the_obvious_loop(seed: int, n: int) -> None:
    domain = Pancake(n)
    states = domain.random_states(11, seeded(seed))
    gap = domain.gap_heuristic(states)
    for b, stack in enumerate(states.tolist()):
        pairs = zip(stack, [*stack[1:], n], strict=True)
        assert gap[b] == sum(abs(left - right) > 1 for left, right in pairs)
    # Consistent: an action changes it by no more than its cost.
    after = domain.apply(states, random_legal(domain, states, seeded(seed)))
    assert ((domain.gap_heuristic(after) - gap).abs() <= 1).all()


def test_the_mean_gap_of_random_stacks() -> None:
    domain = Pancake(35)
    gap = domain.gap_heuristic(domain.random_states(5_000, seeded(7))).float()
    # 34 pairs of pancakes, of which 2/35 belong together; the plate belongs to one of 35.
    assert gap.mean() == pytest.approx(34 * (1 - 2 / 35) + 34 / 35, abs=0.1)


@pytest.mark.parametrize("n", [1, 257])
def test_stacks_that_do_not_fit_are_refused(n: int) -> None:
    with pytest.raises(ValueError, match="2 to 256 pancakes"):
        Pancake(n)


# Sliding tiles.


def with_two_tiles_swapped(states: Tensor) -> Tensor:
    swapped = states.clone()
    swapped[states == 1], swapped[states == 2] = 2, 1
    return swapped


@pytest.mark.parametrize(("width", "height"), [(2, 2), (3, 3), (4, 4), (5, 2), (2, 6), (16, 16)])
def test_moves_against_the_obvious_board(width: int, height: int) -> None:
    domain = SlidingPuzzle(width, height)
    states = domain.random_states(29, seeded(width))
    legal = domain.legal(states)
    assert (legal.dtype, legal.shape) == (torch.bool, (29, 4))
    for action, (r, c) in enumerate([(-1, 0), (1, 0), (0, -1), (0, 1)]):
        after = domain.apply(states, torch.full((29,), action)).tolist()
        for b, tiles in enumerate(states.tolist()):
            row, column = divmod(tiles.index(0), width)
            on_board = 0 <= row + r < height and 0 <= column + c < width
            assert legal[b, action] == on_board
            if on_board:
                blank, tile = width * row + column, width * (row + r) + column + c
                tiles[blank], tiles[tile] = tiles[tile], tiles[blank]
            assert after[b] == tiles


def test_the_fifteen_puzzle_by_hand() -> None:
    domain = SlidingPuzzle()
    assert domain.goal.tolist() == [*range(1, 16), 0]
    assert domain.legal(domain.goal[None]).tolist() == [[True, False, True, False]]
    up, left = domain.apply(domain.goal.repeat(2, 1), torch.tensor([0, 2])).tolist()
    assert up == [*range(1, 12), 0, 13, 14, 15, 12]
    assert left == [*range(1, 15), 0, 15]


def test_fifteen_puzzle_layers() -> None:
    domain = SlidingPuzzle(4)
    expected = [1, 2, 4, 10, 24, 54, 107, 212, 446, 946, 1948, 3938]
    assert sizes(layers(domain, domain.goal, len(expected) - 1)) == expected


def test_eight_puzzle_layers() -> None:
    domain = SlidingPuzzle(3)
    found = layers(domain, domain.goal, 99)
    counts = np.array(sizes(found))
    assert counts.sum() == 181_440
    assert (len(counts) - 1, counts[-1]) == (31, 2)
    assert (counts * np.arange(32)).sum() / counts.sum() == pytest.approx(21.972, abs=5e-4)
    # The parity rule admits what the goal reaches, and not the other half of all 9! boards.
    reached = torch.cat(found)
    assert domain.is_solvable(reached).all()
    assert not domain.is_solvable(with_two_tiles_swapped(reached)).any()


@pytest.mark.parametrize(("width", "height"), [(2, 2), (3, 2), (2, 3), (4, 2)])
def test_solvable_is_what_the_goal_reaches(width: int, height: int) -> None:
    domain = SlidingPuzzle(width, height)
    boards = torch.tensor(list(permutations(range(width * height))), dtype=torch.uint8)
    solvable = boards[domain.is_solvable(boards)]
    assert len(solvable) == len(boards) // 2
    reached = torch.cat(layers(domain, domain.goal, 99))
    assert torch.equal(solvable.unique(dim=0), reached.unique(dim=0))


@pytest.mark.parametrize(("width", "height"), [(4, 4), (5, 2), (3, 7), (16, 16)])
def test_random_boards_can_be_solved(width: int, height: int) -> None:
    domain = SlidingPuzzle(width, height)
    states = domain.random_states(37, seeded(1))
    assert domain.is_solvable(states).all()
    assert not domain.is_solvable(with_two_tiles_swapped(states)).any()


def test_fourteen_and_fifteen_cannot_be_swapped() -> None:
    domain = SlidingPuzzle(4)
    swapped = torch.tensor([[*range(1, 14), 15, 14, 0]], dtype=torch.uint8)
    assert domain.is_solvable(swapped).tolist() == [False]


@pytest.mark.parametrize(("width", "height"), [(1, None), (1, 8), (8, 1), (0, 3), (17, 16)])
def test_boards_that_do_not_fit_are_refused(width: int, height: int | None) -> None:
    with pytest.raises(ValueError, match="on a side and at most 256"):
        SlidingPuzzle(width, height)
