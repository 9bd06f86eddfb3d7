"""The cube: turns as tables, known orders and counts, notation, legality, symmetries."""

import itertools
import math
from functools import cache

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from classicrl.domains.cube3 import (
    CORNERS,
    EDGES,
    FACES,
    MOVES,
    SOLVED,
    Cube3,
    format_moves,
    from_facelets,
    half_turn_length,
    parse_moves,
    random_scrambles,
    to_facelets,
    turned,
)
from classicrl.errors import UserError
from classicrl.search import Perimeter

# What the clockwise turn of each face does to the facelets; all numbers are indices of the 54.
CYCLES = {
    "U": "(0 2 8 6)(1 5 7 3)(9 18 36 45)(10 19 37 46)(11 20 38 47)",
    "R": "(9 11 17 15)(10 14 16 12)(2 51 29 20)(5 48 32 23)(8 45 35 26)",
    "F": "(18 20 26 24)(19 23 25 21)(6 9 29 44)(7 12 28 41)(8 15 27 38)",
    "D": "(27 29 35 33)(28 32 34 30)(15 51 42 24)(16 52 43 25)(17 53 44 26)",
    "L": "(36 38 44 42)(37 41 43 39)(0 18 27 53)(3 21 30 50)(6 24 33 47)",
    "B": "(45 47 53 51)(46 50 52 48)(0 42 35 11)(1 39 34 14)(2 36 33 17)",
}
# What two programs that share no code with this one, nor with each other, say of these.
EXAMPLES = {
    "R U R' U'": "UULUUFUUFRRUBRRURRFFDFFUFFFDDRDDDDDDBLLLLLLLLBRRBBBBBB",
    "D' L2 B R' F U": "LDRLURFLFLBBURBLRBDDURFFUUBRRDUDFFLRBBLULDDLFUFUDBBDFR",
    "U R2 F B R B2 R U2 L B2 R U' D' R2 F R' L B2 U2 F2": (
        "UBULURUFURURFRBRDRFUFLFRFDFDFDLDRDBDLULBLFLDLBUBRBLBDB"
    ),
}
action_count = pytest.mark.parametrize("actions", [12, 156, 1884])


@cache
def cube(actions: int = 12, deduplicate: bool = True) -> Cube3:
    return Cube3(actions, deduplicate=deduplicate)


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def inverse_turns(turns: list[int]) -> list[int]:
    return [turn ^ 1 for turn in reversed(turns)]


def facelets_after(turns: list[int], facelets: str = SOLVED) -> str:
    for turn in turns:
        facelets = turned(facelets, turn)
    return facelets


# Turns.


@pytest.mark.parametrize(("moves", "facelets"), EXAMPLES.items())
def test_worked_examples(moves: str, facelets: str) -> None:
    turns = parse_moves(moves)
    assert facelets_after(turns) == facelets
    state = cube().after(turns)
    assert to_facelets(state) == facelets
    assert torch.equal(from_facelets(facelets), state)
    # Backwards they solve it.
    assert facelets_after(inverse_turns(turns), facelets) == SOLVED
    for turn in inverse_turns(turns):
        assert not cube().is_goal(state[None])
        state = cube().apply(state[None], torch.tensor([turn]))[0]
    assert cube().is_goal(state[None])


def test_the_superflip_has_twenty_moves() -> None:
    turns = parse_moves([*EXAMPLES][2])
    assert (len(turns), half_turn_length(turns)) == (28, 20)


@pytest.mark.parametrize("face", FACES)
def test_cycles_of_each_turn(face: str) -> None:
    expected = list(range(54))  # where the sticker at each index goes
    for cycle in CYCLES[face].strip("()").split(")("):
        numbers = [int(number) for number in cycle.split()]
        for here, there in zip(numbers, numbers[1:] + numbers[:1], strict=True):
            expected[here] = there
    # Letters that all differ show where each sticker goes.
    letters = "".join(chr(ord("0") + i) for i in range(54))
    clockwise = turned(letters, 2 * FACES.index(face))
    assert [clockwise.index(letter) for letter in letters] == expected
    assert turned(clockwise, 2 * FACES.index(face) + 1) == letters


@pytest.mark.parametrize("action", range(12), ids=MOVES)
def test_four_equal_turns_are_none(action: int) -> None:
    states = cube().random_states(7, seeded(action))
    seen = [states]
    for _ in range(4):
        seen.append(cube().apply(seen[-1], torch.full((7,), action)))
    for fewer in (1, 2, 3):
        assert (seen[fewer] != states).any(1).all()
    assert torch.equal(seen[4], states)
    undone = cube().apply(seen[1], torch.full((7,), action ^ 1))
    assert torch.equal(undone, states)


@pytest.mark.parametrize(
    ("moves", "order"), [("R U", 105), ("R U R' U'", 6), ("R U'", 63), ("R U2 D' B D'", 1260)]
)
def test_orders(moves: str, order: int) -> None:
    turns = parse_moves(moves)
    state, times = cube().goal[None], 0
    while times == 0 or not cube().is_goal(state):
        for turn in turns:
            state = cube().apply(state, torch.tensor([turn]))
        times += 1
        assert times <= order
    assert times == order


@given(turns=st.lists(st.integers(0, 11), max_size=40))
@settings(max_examples=50)
def test_states_and_letters_turn_alike(turns: list[int]) -> None:
    """The two models are tables of their own: of facelets, and of slots of reference stickers."""
    assert to_facelets(cube().after(turns)) == facelets_after(turns)


def test_apply_leaves_its_argument_alone() -> None:
    states = cube().random_states(13, seeded(0))
    before = states.clone()
    after = cube().apply(states, torch.arange(13) % 12)
    assert torch.equal(states, before)
    assert (after.dtype, after.shape) == (torch.uint8, (13, 20))
    assert cube().legal(states) is None
    assert cube().apply(states[:0], torch.arange(0)).shape == (0, 20)


def test_is_goal_needs_every_cubie() -> None:
    states = cube().goal.repeat(21, 1)
    states[torch.arange(20), torch.arange(20)] ^= 1
    assert cube().is_goal(states).tolist() == [False] * 20 + [True]


# How many states lie how far.


def layers(domain: Cube3, depth: int) -> list[int]:
    return Perimeter(domain, domain.goal, depth).layers


def test_cube_layers() -> None:
    assert layers(cube(), 5) == [1, 12, 114, 1068, 10011, 93840]


@pytest.mark.slow
def test_cube_layers_to_six() -> None:
    assert layers(cube(), 6) == [1, 12, 114, 1068, 10011, 93840, 878880]


def test_layers_of_pairs_and_triples() -> None:
    assert layers(cube(156), 2) == [1, 126, 11079]
    assert layers(cube(1884), 1) == [1, 1194]


# Sequences of turns as actions.


@pytest.mark.parametrize(("actions", "useful"), [(12, 12), (156, 126), (1884, 1194)])
def test_actions_that_differ(actions: int, useful: int) -> None:
    domain = cube(actions)
    assert len(domain.costs) == len(domain.sequences) == useful
    assert domain.costs.dtype == torch.float32
    assert (domain.costs == 1).all()
    # On one state with nothing symmetric about it, actions that differ make different states.
    state = domain.random_states(1, seeded(3))
    after = domain.apply(state.expand(useful, -1), torch.arange(useful))
    assert len(torch.cat([state, after]).unique(dim=0)) == useful + 1


@pytest.mark.parametrize(("actions", "distinct"), [(156, 127), (1884, 1195)])
def test_all_actions_as_in_the_paper(actions: int, distinct: int) -> None:
    domain = cube(actions, False)
    length = domain.max_turns
    every = [s for n in range(1, length + 1) for s in itertools.product(range(12), repeat=n)]
    assert domain.sequences == every
    assert len(every) == actions
    state = domain.random_states(1, seeded(3))
    after = domain.apply(state.expand(actions, -1), torch.arange(actions))
    assert len(after.unique(dim=0)) == distinct  # one of them does nothing


@action_count
@pytest.mark.parametrize("deduplicate", [True, False])
def test_inverse_actions(actions: int, deduplicate: bool) -> None:
    domain = cube(actions, deduplicate)
    number = len(domain.costs)
    states = domain.random_states(number, seeded(4))
    after = domain.apply(states, torch.arange(number))
    assert domain.inverse.dtype == torch.int64
    assert torch.equal(domain.apply(after, domain.inverse), states)
    if deduplicate:
        assert torch.equal(domain.inverse[domain.inverse], torch.arange(number))
        assert (after != states).any(1).all()


@action_count
def test_an_action_is_its_sequence_of_turns(actions: int) -> None:
    domain = cube(actions)
    chosen = list(range(0, len(domain.costs), 7))
    for action in chosen:
        after = domain.apply(domain.goal[None], torch.tensor([action]))[0]
        assert torch.equal(after, cube().after(domain.sequences[action]))
    turns = domain.turns(chosen)
    assert turns == [turn for action in chosen for turn in domain.sequences[action]]
    assert max(map(len, domain.sequences)) == domain.max_turns


def test_what_is_left_out_does_what_a_shorter_or_an_earlier_one_does() -> None:
    kept = {tuple(cube().after(s).tolist()): s for s in cube(156).sequences}
    kept[tuple(cube().goal.tolist())] = ()
    for sequence in cube(156, False).sequences:
        stays = kept[tuple(cube().after(sequence).tolist())]
        assert (len(stays), stays) <= (len(sequence), sequence)


@action_count
def test_action_of_turns(actions: int) -> None:
    domain = cube(actions)
    found = domain.action_of_turns()
    assert (found.dtype, found.shape) == (torch.int64, (13, 13, 13))
    by_state = {tuple(cube().after(s).tolist()): i for i, s in enumerate(domain.sequences)}
    assert len(by_state) == len(domain.sequences)
    for place in itertools.islice(itertools.product(range(13), repeat=3), 0, None, 5):
        state = cube().after([turn for turn in place if turn < 12])
        assert found[place] == by_state.get(tuple(state.tolist()), -1), place
    assert found[12, 12, 12] == -1


def test_other_numbers_of_actions_are_refused() -> None:
    with pytest.raises(UserError, match="12, 156 or 1884 actions, not 18"):
        Cube3(18)


def test_names() -> None:
    assert [cube(n).name for n in (12, 156)] == ["cube3-12", "cube3-156"]
    assert cube(156, False).name == "cube3-156-all"


def test_features_number_cubie_and_slot() -> None:
    """A row for each of 24 slots of each of 20 cubies, and no row is shared."""
    states = cube().random_states(4000, seeded(1)).long()
    features = states + torch.tensor(cube().feature_offsets)
    assert cube().num_features == 480
    assert features.unique().tolist() == list(range(480))
    assert torch.equal(features // 24, torch.arange(20).expand(4000, -1))


# Notation.


@given(turns=st.lists(st.integers(0, 11), max_size=60))
def test_moves_can_be_read_back(turns: list[int]) -> None:
    assert parse_moves(format_moves(turns)) == turns
    assert len(format_moves(turns).split()) == len(turns)
    # Half turns change the list, not what it does.
    short = format_moves(turns, half_turns=True)
    assert facelets_after(parse_moves(short)) == facelets_after(turns)
    assert half_turn_length(turns) == len(short.split())
    assert len(parse_moves(short)) <= len(turns)


@pytest.mark.parametrize(
    ("turns", "long", "short"),
    [
        ([], "", ""),
        ([2], "R", "R"),
        ([2, 2], "R R", "R2"),
        ([3, 3], "R' R'", "R2"),
        ([2, 2, 2], "R R R", "R'"),
        ([3, 3, 3], "R' R' R'", "R"),
        ([2, 2, 2, 2, 0], "R R R R U", "U"),
        ([0, 0, 11, 2, 2], "U U B' R R", "U2 B' R2"),
    ],
)
def test_half_turns(turns: list[int], long: str, short: str) -> None:
    assert format_moves(turns) == long
    assert format_moves(turns, half_turns=True) == short


def test_what_moves_may_look_like() -> None:
    assert parse_moves("  U U' R\tR'\nF F' D D' L L' B B' ") == list(range(12))
    assert parse_moves("R2 U2' F\u2019 D2\u2019") == [2, 2, 0, 0, 5, 6, 6]
    assert parse_moves("") == []


@pytest.mark.parametrize(
    ("token", "reason"),
    [
        ("x", "turns the whole cube"),
        ("y'", "turns the whole cube"),
        ("z2", "turns the whole cube"),
        ("M", "turns a middle slice"),
        ("E'", "turns a middle slice"),
        ("S2", "turns a middle slice"),
        ("r", "turns two layers"),
        ("u'", "turns two layers"),
        ("Rw", "turns two layers"),
        ("Fw2", "turns two layers"),
        ("R3", "is no move"),
        ("R''", "is no move"),
        ("R'2", "is no move"),
        ("2R", "is no move"),
        ("RU", "is no move"),
        ("R,", "is no move"),
        ("'", "is no move"),
        ("Q", "is no move"),
        ("R\u00b2", "is no move"),
    ],
)
def test_what_is_no_face_turn_is_refused_with_its_position(token: str, reason: str) -> None:
    for before in ("", "R U2 "):
        with pytest.raises(UserError) as caught:
            parse_moves(f"{before}{token} D")
        position = 1 + len(before.split())
        assert f"move {position}, {token!r}: it {reason}" in str(caught.value)


# Letters.


@given(seed=st.integers(0, 2**32 - 1))
@settings(max_examples=20)
def test_letters_can_be_read_back(seed: int) -> None:
    for state in cube().random_states(3, seeded(seed)):
        facelets = to_facelets(state)
        assert torch.equal(from_facelets(f" {facelets}\n"), state)
        assert from_facelets(facelets).dtype == torch.uint8
        assert to_facelets(state.tolist()) == facelets


def swapped(facelets: str, *pairs: tuple[int, int]) -> str:
    letters = list(facelets)
    for left, right in pairs:
        letters[left], letters[right] = letters[right], letters[left]
    return "".join(letters)


def written(facelets: str, letters: dict[int, str]) -> str:
    return "".join(letters.get(i, letter) for i, letter in enumerate(facelets))


URF, UFL = CORNERS["URF"], CORNERS["UFL"]
UR, UF, DR, FR, BR = (EDGES[name] for name in ("UR", "UF", "DR", "FR", "BR"))
FAULTS = {
    "nothing": ("", "54 facelets, these are 0"),
    "one too few": (SOLVED[:-1], "54 facelets, these are 53"),
    "one too many": (SOLVED + "B", "54 facelets, these are 55"),
    "gap": (SOLVED[:9] + " " + SOLVED[10:], "facelet 10 is ' '"),
    "unknown letter": (written(SOLVED, {53: "X"}), "facelet 54 is 'X'"),
    "lower case": (SOLVED.lower(), "facelet 1 is 'u'"),
    "counts": (written(SOLVED, {0: "F"}), "9 facelets U, these are 8"),
    "centres": (swapped(SOLVED, (4, 13)), "centre of face U must be U, not R"),
    "held otherwise": ("".join(face * 9 for face in "RUFDLB"), "centre of face U must be U"),
    "opposite colours": (
        swapped(SOLVED, (UR[1], DR[0])),
        "no cubie has the colours UD, seen at UR",
    ),
    "mirrored corner": (swapped(SOLVED, URF[:2]), "no cubie has the colours RUF, seen at URF"),
    # The letters that these need are taken from cubies that are looked at later.
    "doubled edge": (
        swapped(SOLVED, (UF[1], BR[1])),
        "the cubie UR is there twice, the second time at UF",
    ),
    "doubled corner": (
        written(SOLVED, {UFL[1]: "R", UFL[2]: "F", FR[1]: "L"}),
        "the cubie URF is there twice, the second time at UFL",
    ),
}
# Of the cubies at some places, wherever they belong.
TWISTED, FLIPPED = [(URF[0], URF[1]), (URF[1], URF[2])], [UR]
SWAPPED_EDGES, SWAPPED_CORNERS = list(zip(UR, UF, strict=True)), list(zip(URF, UFL, strict=True))
UNREACHABLE: dict[str, tuple[list[tuple[int, int]], str]] = {
    "twisted corner": (TWISTED, "a corner is twisted"),
    "corner twisted the other way": (TWISTED[::-1], "a corner is twisted"),
    "flipped edge": (FLIPPED, "an edge is flipped"),
    "swapped edges": (SWAPPED_EDGES, "two cubies are swapped"),
    "swapped corners": (SWAPPED_CORNERS, "two cubies are swapped"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_impossible_cubes_are_named(fault: str) -> None:
    facelets, message = FAULTS[fault]
    with pytest.raises(UserError) as caught:
        from_facelets(facelets)
    assert message in str(caught.value)


@pytest.mark.parametrize("fault", UNREACHABLE)
@pytest.mark.parametrize("moves", ["", *EXAMPLES])
def test_cubes_that_turns_cannot_reach_are_named(fault: str, moves: str) -> None:
    pairs, message = UNREACHABLE[fault]
    with pytest.raises(UserError, match=message):
        from_facelets(swapped(facelets_after(parse_moves(moves)), *pairs))


def test_faults_that_cancel_are_none() -> None:
    """Turns reach what is twisted once each way, flipped twice or swapped twice."""
    for pairs in (
        [*TWISTED, (UFL[1], UFL[2]), (UFL[0], UFL[1])],
        [UR, UF],
        SWAPPED_EDGES + SWAPPED_CORNERS,
    ):
        facelets = swapped(SOLVED, *pairs)
        assert to_facelets(from_facelets(facelets)) == facelets != SOLVED


# Random cubes.


def test_lengths_of_random_scrambles() -> None:
    scrambles = random_scrambles(20_200, seeded(0))
    assert scrambles.shape == (20_200, 200)
    made = scrambles >= 0
    assert torch.equal(made, made.cummin(1).values), "-1 comes last"
    lengths = made.sum(1)
    values, counts = lengths.unique(return_counts=True)
    assert values.tolist() == list(range(100, 201))
    assert chi_square(counts) < 4
    turns = scrambles[made]
    assert turns.max() == 11
    assert chi_square(turns.bincount()) < 4


def chi_square(counts: Tensor) -> float:
    """Of counts that should be equal: by how many standard deviations it passes its mean."""
    mean, freedom = counts.float().mean(), len(counts) - 1
    statistic = float(((counts - mean) ** 2 / mean).sum())
    return (statistic - freedom) / math.sqrt(2 * freedom)


@given(low=st.integers(0, 5), more=st.integers(0, 4))
@settings(max_examples=20)
def test_scrambles_of_other_lengths(low: int, more: int) -> None:
    scrambles = random_scrambles(99, seeded(low), min_turns=low, max_turns=low + more)
    assert scrambles.shape == (99, low + more)
    lengths = (scrambles >= 0).sum(1)
    assert lengths.unique().tolist() == list(range(low, low + more + 1))


def test_random_states_are_scrambles_of_the_solved_cube() -> None:
    states = cube().random_states(17, seeded(5))
    scrambles = random_scrambles(17, seeded(5))
    for state, turns in zip(states, scrambles.tolist(), strict=True):
        assert torch.equal(state, cube().after([turn for turn in turns if turn >= 0]))
    assert torch.equal(states, cube().random_states(17, seeded(5)))
    assert not torch.equal(states, cube().random_states(17, seeded(6)))
    assert len(states.unique(dim=0)) == 17
    # Other actions, the same cubes.
    assert torch.equal(states, cube(156).random_states(17, seeded(5)))


# Symmetries.


@action_count
def test_an_image_of_an_action_does_in_the_image_what_it_does_here(actions: int) -> None:
    domain = cube(actions)
    number = len(domain.costs)
    states, every = domain.random_states(number, seeded(8)), torch.arange(number)
    after = domain.apply(states, every)
    symmetries = domain.symmetries()
    assert len(symmetries) == 48
    for symmetry in symmetries:
        assert torch.equal(symmetry.actions.sort().values, every)
        image = symmetry.image(states)
        assert torch.equal(domain.apply(image, symmetry.actions), symmetry.image(after))
        assert torch.equal(symmetry.image(domain.goal[None])[0], domain.goal)


def test_symmetries_differ_and_half_are_mirrored() -> None:
    symmetries = cube().symmetries()
    states = cube().random_states(5, seeded(9))
    assert torch.equal(symmetries[0].image(states), states)
    assert symmetries[0].actions.tolist() == list(range(12))
    assert len({tuple(symmetry.actions.tolist()) for symmetry in symmetries}) == 48
    assert len({tuple(symmetry.image(states[:1])[0].tolist()) for symmetry in symmetries}) == 48
    # In a mirror, clockwise turns look counter-clockwise.
    mirrored = [bool(symmetry.actions[0] % 2) for symmetry in symmetries]
    assert sum(mirrored) == 24
    for symmetry, mirror in zip(symmetries, mirrored, strict=True):
        assert (symmetry.actions % 2 == (torch.arange(12) % 2) ^ mirror).all()
        for state in symmetry.image(states):
            assert torch.equal(from_facelets(to_facelets(state)), state), "no legal cube"


def test_a_symmetry_by_hand() -> None:
    """The mirror between left and right: R and L change places, all turns their direction."""
    expected = parse_moves("U' U L' L F' F D' D R' R B' B")
    assert expected in [symmetry.actions.tolist() for symmetry in cube().symmetries()]


# Walks.


def test_the_walk_rule_leaves_one_way_to_each_state() -> None:
    """Of all sequences of 1 to 4 turns it allows one for each state that is so many turns away."""
    follows = cube().walk_rule()
    assert (follows.dtype, follows.shape) == (torch.bool, (13, 13, 12))
    states, sequences = cube().goal[None], torch.full((1, 2), 12)
    allowed = torch.ones(1, dtype=torch.bool)
    nearer = states
    for length, count in [(1, 12), (2, 114), (3, 1068), (4, 10011)]:
        # Every sequence, allowed or not.
        turns = torch.arange(12).repeat(len(states))
        sequences = torch.cat([sequences.repeat_interleave(12, 0), turns[:, None]], 1)
        states = cube().apply(states.repeat_interleave(12, 0), turns)
        before, last = sequences[:, -3], sequences[:, -2]
        allowed = allowed.repeat_interleave(12) & follows[before, last, turns]
        reached = states.unique(dim=0)
        known = torch.cat([nearer, reached]).unique(dim=0)
        # None of the allowed is nearer, no two are the same, and none is left out.
        assert int(allowed.sum()) == count == len(known) - len(nearer)
        assert len(torch.cat([nearer, states[allowed]]).unique(dim=0)) == len(known)
        assert len(states) == 12**length
        nearer = known


def test_the_walk_rule_by_hand() -> None:
    follows = cube().walk_rule()
    for moves, fine in {
        "U U'": False,
        "U' U": False,
        "U U": True,
        "U' U'": False,  # written U U
        "U D": True,
        "D U": False,  # written U D
        "D U'": False,
        "R L": True,
        "L R": False,
        "F' B": True,
        "B' F'": False,
        "R U": True,
        "U R'": True,
        "R R R": False,
        "U R R": True,
        "F R F": True,
        "F R F'": True,
    }.items():
        before, last, action = [12, 12, *parse_moves(moves)][-3:]
        assert bool(follows[before, last, action]) == fine, moves
    # Any turn may come first; after any two there is one to go on with.
    assert follows[12, 12].all()
    assert follows.any(2).all()


# Devices.


def use_everything(domain: Cube3) -> list[Tensor]:
    states = domain.random_states(5, seeded(2), min_turns=3, max_turns=6)
    actions = torch.arange(5, device=domain.device)
    symmetry = domain.symmetries()[7]
    return [
        states, domain.apply(states, actions), domain.is_goal(states), domain.goal, domain.costs,
        domain.inverse, domain.action_of_turns(), domain.walk_rule(), domain.after([0, 3]),
        symmetry.image(states), symmetry.actions,
    ]  # fmt: skip


def test_everything_stays_on_the_device() -> None:
    """A device that computes nothing, but refuses whatever was left on another one."""
    assert all(result.is_meta for result in use_everything(Cube3(device="meta")))


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="requires CUDA")
def test_a_gpu_computes_the_same() -> None:
    on_cpu, on_gpu = use_everything(Cube3()), use_everything(Cube3(device="cuda"))
    for expected, result in zip(on_cpu, on_gpu, strict=True):
        assert result.is_cuda
        assert torch.equal(result.cpu(), expected)
