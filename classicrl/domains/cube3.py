"""The 3x3x3 Rubik's cube: its turns, notation, legality, and the domain that searches know.

**Facelets.** A cube is written as 54 letters, nine for each face in the order U R F D L B, row by
row, each face seen from outside. U's top row touches B, D's top row touches F, the top rows of the
others touch U. A letter names the face whose centre has that colour.

**Moves.** WCA notation: ``R`` is a quarter turn of the right face, clockwise as seen from outside,
``R'`` its inverse, ``R2`` a half turn. Actions 0..11 are ``U U' R R' F F' D D' L L' B B'``. Lengths
are in the quarter-turn metric (QTM, ``R2`` counts 2) unless said otherwise; in the half-turn metric
(HTM) it counts 1.

**States.** 20 bytes: for each of 8 corners and 12 edges the slot where its reference sticker lies,
0..23 on corners and 24..47 on edges. A turn is then one table lookup per byte, whatever the number
of stickers that it moves, and so is a sequence of turns.

Actions may be sequences, "meta-actions" (F. Agostinelli et al., "Q* Search", arXiv 2102.04518,
section 5): all pairs of turns make 12 + 144 = 156 actions, triples 1,884.
"""

import itertools
from collections import Counter
from collections.abc import Iterable, Sequence
from functools import cache

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from classicrl.errors import UserError

FACES = "URFDLB"
MOVES = tuple(face + prime for face in FACES for prime in ("", "'"))
SOLVED = "".join(face * 9 for face in FACES)
ACTION_COUNTS = (12, 156, 1884)

# Facelets of each cubie, clockwise as seen from outside; the first is its reference sticker.
CORNERS = {
    "URF": (8, 9, 20), "UFL": (6, 18, 38), "ULB": (0, 36, 47), "UBR": (2, 45, 11),
    "DFR": (29, 26, 15), "DLF": (27, 44, 24), "DBL": (33, 53, 42), "DRB": (35, 17, 51),
}  # fmt: skip
EDGES = {
    "UR": (5, 10), "UF": (7, 19), "UL": (3, 37), "UB": (1, 46), "DR": (32, 16), "DF": (28, 25),
    "DL": (30, 43), "DB": (34, 52), "FR": (23, 12), "FL": (21, 41), "BL": (50, 39), "BR": (48, 14),
}  # fmt: skip
_NAMES = (*CORNERS, *EDGES)
_CUBIES = (*CORNERS.values(), *EDGES.values())
_SLOTS = np.array([facelet for cubie in _CUBIES for facelet in cubie])  # facelet of each slot
_SLOT_OF = {int(facelet): slot for slot, facelet in enumerate(_SLOTS)}
_GOAL = tuple(_SLOT_OF[cubie[0]] for cubie in _CUBIES)


# Geometry: everything about turns and symmetries follows from where the facelets are.


@cache
def _geometry() -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Position of the cubie and outward normal of each facelet, [54, 3] each; x, y, z = R, U, F."""
    position, normal = np.zeros((54, 3), np.int64), np.zeros((54, 3), np.int64)
    for row, col in itertools.product(range(3), range(3)):
        x, y = col - 1, 1 - row
        places = ((x, 1, -y), (1, y, -x), (x, y, 1), (x, -1, y), (-1, y, x), (-x, y, -1))
        for face, place in enumerate(places):
            position[9 * face + 3 * row + col] = place
    for face, axis in enumerate(((0, 1, 0), (1, 0, 0), (0, 0, 1))):
        normal[9 * face : 9 * face + 9] = axis
        normal[9 * face + 27 : 9 * face + 36] = [-component for component in axis]
    return position, normal


def _moved(matrix: NDArray[np.int64], layer: NDArray[np.bool_] | None = None) -> NDArray[np.int64]:
    """Where each facelet [54] goes when the cube, or one layer of it, is turned by ``matrix``."""
    position, normal = _geometry()
    where = {tuple(place): i for i, place in enumerate(np.hstack([position, normal]).tolist())}
    target = np.arange(54)
    for i in range(54) if layer is None else np.flatnonzero(layer):
        target[i] = where[(*(matrix @ position[i]).tolist(), *(matrix @ normal[i]).tolist())]
    return target


@cache
def _turns() -> NDArray[np.int64]:
    """Where each facelet goes in each of the 12 turns, [12, 54]."""
    position, normal = _geometry()
    turns = []
    for face in range(6):
        x, y, z = axis = normal[9 * face]
        # Rotation by -90 degrees about the axis: v -> axis (axis . v) - axis x v.
        cross = np.array([[0, -z, y], [z, 0, -x], [-y, x, 0]])
        clockwise = _moved(np.outer(axis, axis) - cross, position @ axis == 1)
        turns += [clockwise, np.argsort(clockwise)]
    return np.array(turns)


def _slot_map(facelet_map: NDArray[np.int64]) -> NDArray[np.int64]:
    """The same map [54] from slots to slots, [48]."""
    return np.array([_SLOT_OF[int(facelet)] for facelet in facelet_map[_SLOTS]])


# Notation.


def parse_moves(text: str) -> list[int]:
    """Quarter turns of a text such as ``R U2 F'``, as actions 0..11.

    Raises:
        UserError: a token that is no face turn, with its position.

    >>> format_moves(parse_moves("R U2 F'"))
    "R U U F'"
    """
    actions: list[int] = []
    for position, token in enumerate(text.split(), start=1):
        face, suffix = token[:1], token[1:].replace("\N{RIGHT SINGLE QUOTATION MARK}", "'")
        if face and face in FACES and suffix in ("", "'", "2", "2'"):
            action = 2 * FACES.index(face) + (suffix == "'")
            actions += [action] * (2 if "2" in suffix else 1)
            continue
        if face in ("x", "y", "z"):
            why = "it turns the whole cube"
        elif face in ("M", "E", "S"):
            why = "it turns a middle slice"
        elif face in ("u", "r", "f", "d", "l", "b") or "w" in token:
            why = "it turns two layers"
        else:
            why = "it is no move"
        raise UserError(
            f"move {position}, {token!r}: {why}; moves are U R F D L B, each alone or followed by "
            "' or 2, with spaces between"
        )
    return actions


def format_moves(actions: Iterable[int], *, half_turns: bool = False) -> str:
    """WCA notation of actions 0..11. ``half_turns`` writes two equal turns as one, ``R2``."""
    moves = []
    for action, group in itertools.groupby(actions):
        count = len(list(group))
        if half_turns:
            # Four equal turns are none, three are one the other way.
            half = FACES[action // 2] + "2"
            moves += [[], [MOVES[action]], [half], [MOVES[action ^ 1]]][count % 4]
        else:
            moves += [MOVES[action]] * count
    return " ".join(moves)


def half_turn_length(actions: Iterable[int]) -> int:
    """Moves of quarter turns 0..11 in the half-turn metric.

    >>> half_turn_length(parse_moves("R U2 F'"))
    3
    """
    return len(format_moves(actions, half_turns=True).split())


def turned(facelets: str, action: int) -> str:
    """The 54 letters after one quarter turn 0..11."""
    source = np.argsort(_turns()[action])
    return "".join(facelets[i] for i in source)


# States.


def _rotated(slot: int, offset: int) -> int:
    """Where the sticker ``offset`` places clockwise of a cubie's sticker at ``slot`` lies."""
    size = 3 if slot < 24 else 2
    return slot - slot % size + (slot % size + offset) % size


def to_facelets(state: Tensor | Sequence[int]) -> str:
    """54 letters of a state, 20 slots."""
    letters = [FACES[i // 9] for i in range(54)]  # centres stay
    for cubie, slot in zip(_CUBIES, state, strict=True):
        for offset, sticker in enumerate(cubie):
            letters[_SLOTS[_rotated(int(slot), offset)]] = FACES[sticker // 9]
    return "".join(letters)


def from_facelets(text: str) -> Tensor:
    """State, uint8 [20], of a cube's 54 letters.

    Raises:
        UserError: the letters are no cube, or one that turns cannot reach; says which test failed.
    """
    letters = text.strip()
    if len(letters) != 54:
        raise UserError(f"a cube has 54 facelets, these are {len(letters)}")
    for i, letter in enumerate(letters):
        if letter not in FACES:
            raise UserError(f"facelet {i + 1} is {letter!r}; facelets are the letters {FACES}")
    counts = Counter(letters)
    for face in FACES:
        if counts[face] != 9:
            raise UserError(f"a cube has 9 facelets {face}, these are {counts[face]}")
    for face, centre in zip(FACES, letters[4::9], strict=True):
        if centre != face:
            raise UserError(f"the centre of face {face} must be {face}, not {centre}: hold it so")
    colours = ["".join(FACES[i // 9] for i in cubie) for cubie in _CUBIES]
    state: list[int | None] = [None] * 20
    for name, place in zip(_NAMES, _CUBIES, strict=True):
        seen = "".join(letters[i] for i in place)
        # Turned until its reference sticker comes first, it must be a cubie that exists.
        for offset in range(len(seen)):
            if (turned_seen := seen[offset:] + seen[:offset]) in colours:
                cubie = colours.index(turned_seen)
                break
        else:
            raise UserError(f"no cubie has the colours {seen}, seen at {name}")
        if state[cubie] is not None:
            raise UserError(f"the cubie {_NAMES[cubie]} is there twice, the second time at {name}")
        state[cubie] = _rotated(_SLOT_OF[place[0]], offset)
    slots = np.array(state)
    corners, edges = slots[:8], slots[8:] - 24
    if corners.sum() % 3:
        raise UserError("a corner is twisted: turns cannot reach this cube")
    if edges.sum() % 2:
        raise UserError("an edge is flipped: turns cannot reach this cube")
    if _odd(corners // 3) != _odd(edges // 2):
        raise UserError("two cubies are swapped: turns cannot reach this cube")
    return torch.tensor(slots, dtype=torch.uint8)


def _odd(permutation: NDArray[np.int64]) -> bool:
    return bool(np.sum(np.triu(permutation[:, None] > permutation[None, :], 1)) % 2)


class Cube3:
    """The cube as a search domain: 12 quarter turns, or sequences of up to two or three as well.

    Sequences that do what a shorter one, or one before it, does are left out: 126 of 156 and 1,194
    of 1,884 remain. Every action costs 1.

    Args:
        actions: 12, 156 or 1884.
        deduplicate: leave them out; without it, all are there, also those that do nothing, as in
            the paper.
        device: where its tables are; states must be there too.

    Attributes:
        sequences: the quarter turns of each action.
        goal: the solved cube, [20] uint8.

    >>> cube = Cube3()
    >>> state = cube.after(parse_moves("R U"))
    >>> cube.is_goal(torch.stack([cube.goal, state]))
    tensor([ True, False])
    """

    def __init__(
        self,
        actions: int = 12,
        *,
        deduplicate: bool = True,
        device: torch.device | str = "cpu",
    ) -> None:
        if actions not in ACTION_COUNTS:
            raise UserError(f"the cube has 12, 156 or 1884 actions, not {actions}")
        self.name = f"cube3-{actions}" + ("" if deduplicate else "-all")
        self.max_turns = 1 + ACTION_COUNTS.index(actions)
        turn_maps = np.array([_slot_map(turn) for turn in _turns()])
        self.sequences: list[tuple[int, ...]] = []
        tables: list[NDArray[np.int64]] = []
        index_of = {np.arange(48).tobytes(): -1}
        for length in range(1, self.max_turns + 1):
            for sequence in itertools.product(range(12), repeat=length):
                table = np.arange(48)
                for turn in sequence:
                    table = turn_maps[turn][table]
                if (key := table.tobytes()) not in index_of:
                    index_of[key] = len(tables)
                elif deduplicate:
                    continue
                self.sequences.append(sequence)
                tables.append(table)
        inverse = [index_of[np.argsort(table).tobytes()] for table in tables]
        # An action that does nothing undoes itself.
        inverse = [i if i >= 0 else action for action, i in enumerate(inverse)]
        self._index_of = index_of
        self._slot_tables = np.array(tables)
        self.device = torch.device(device)
        # Which row of an embedding a byte picks: 24 slots for each of the 20 cubies.
        self.feature_offsets = [24 * cubie - 24 * (cubie >= 8) for cubie in range(20)]
        self.num_features = 480
        self.goal = torch.tensor(_GOAL, dtype=torch.uint8, device=device)
        self.costs = torch.ones(len(tables), device=device)
        self.inverse = torch.tensor(inverse, device=device)
        self.tables = torch.tensor(self._slot_tables, dtype=torch.uint8, device=device).flatten()

    def apply(self, states: Tensor, actions: Tensor) -> Tensor:
        """States [B, 20] uint8 and an action each [B] int64: the states after them [B, 20]."""
        return self.tables[(48 * actions)[:, None] + states]

    def is_goal(self, states: Tensor) -> Tensor:
        """Which of the states [B, 20] are solved, [B] bool."""
        return (states == self.goal).all(1)

    def legal(self, states: Tensor) -> None:
        """Every action can be taken everywhere."""

    def turns(self, actions: Iterable[int]) -> list[int]:
        """The quarter turns 0..11 that a sequence of actions stands for."""
        return [turn for action in actions for turn in self.sequences[action]]

    def action_of_turns(self) -> Tensor:
        """The action that does what up to three turns do, [13, 13, 13] int64; 12 is no turn.

        -1 where no action of this domain does, or where the turns do nothing.
        """
        found = torch.full((13, 13, 13), -1)
        turn_maps = [*(_slot_map(turn) for turn in _turns()), np.arange(48)]
        for first, second, third in itertools.product(range(13), repeat=3):
            table = turn_maps[third][turn_maps[second][turn_maps[first]]]
            found[first, second, third] = self._index_of.get(table.tobytes(), -1)
        return found.to(self.device)

    def after(self, turns: Sequence[int]) -> Tensor:
        """The state [20] that quarter turns 0..11 make of the solved cube."""
        state = self.goal[None]
        for turn in turns:
            state = self.apply(state, torch.tensor([turn], device=self.device))
        return state[0]

    def random_states(
        self, count: int, generator: torch.Generator, *, min_turns: int = 100, max_turns: int = 200
    ) -> Tensor:
        """Solved cubes scrambled by random quarter turns, [count, 20].

        Args:
            generator: on the CPU, so that all devices draw the same cubes.
            min_turns, max_turns: the length is uniform in between, both included.
        """
        scrambles = random_scrambles(count, generator, min_turns=min_turns, max_turns=max_turns)
        states = self.goal.repeat(count, 1)
        for turns in scrambles.to(self.device).unbind(1):
            after = self.apply(states, turns.clamp(min=0))
            states = torch.where((turns >= 0)[:, None], after, states)
        return states

    def walk_rule(self) -> Tensor:
        """Which quarter turn may follow two others on a walk, [13, 13, 12] bool; 12 is none.

        No walk takes a step back, writes a half turn in two ways or three quarter turns instead of
        one, or turns opposite faces in both orders; so fewer walks are longer than they need to be.
        """
        follows = torch.ones(13, 13, 12, dtype=torch.bool)
        for last, action in itertools.product(range(12), range(12)):
            face, previous = action // 2, last // 2
            if face == previous:
                follows[:, last, action] = action == last and action % 2 == 0
                follows[last, last, action] = False
            elif face % 3 == previous % 3:
                follows[:, last, action] = previous < face
        return follows.to(self.device)

    @cache  # noqa: B019  a handful of tables, for as long as the domain lives
    def symmetries(self) -> tuple["Symmetry", ...]:
        """The 48 symmetries of the cube, the identity first; 24 of them are mirrored."""
        found = []
        for axes in itertools.permutations(range(3)):
            for signs in itertools.product((1, -1), repeat=3):
                matrix = np.zeros((3, 3), np.int64)
                matrix[range(3), axes] = signs
                found.append(self._symmetry(_moved(matrix)))
        return tuple(found)

    def _symmetry(self, facelet_map: NDArray[np.int64]) -> "Symmetry":
        move = _slot_map(facelet_map)
        back = np.argsort(move)
        source, table = np.zeros(20, np.int64), np.zeros((20, 48), np.int64)
        for cubie, reference in enumerate(_GOAL):
            # The sticker that becomes this cubie's reference: which cubie's, how far round it is.
            original = int(back[reference])
            source[cubie] = next(c for c, r in enumerate(_GOAL) if original in _stickers(r))
            offset = _stickers(_GOAL[source[cubie]]).index(original)
            table[cubie] = [move[_rotated(slot, offset)] for slot in range(48)]
        actions = [self._index_of[move[t[back]].tobytes()] for t in self._slot_tables]
        # Actions that do nothing stay themselves.
        actions = [a if a >= 0 else i for i, a in enumerate(actions)]
        return Symmetry(
            torch.tensor(source, device=self.device),
            torch.tensor(table, dtype=torch.uint8, device=self.device).flatten(),
            torch.tensor(actions, device=self.device),
        )


def _stickers(reference: int) -> list[int]:
    return [_rotated(reference, offset) for offset in range(3 if reference < 24 else 2)]


class Symmetry:
    """A rotation or mirror image of the cube; distances are the same on both sides of it.

    Attributes:
        actions: for each action the one that does in the image what it does here, [A] int64.
    """

    def __init__(self, source: Tensor, table: Tensor, actions: Tensor) -> None:
        self._source, self._table, self.actions = source, table, actions
        self._offset = 48 * torch.arange(20, device=source.device)

    def image(self, states: Tensor) -> Tensor:
        """The images [B, 20] of states [B, 20] uint8."""
        return self._table[self._offset + states[:, self._source]]


def random_scrambles(
    count: int, generator: torch.Generator, *, min_turns: int = 100, max_turns: int = 200
) -> Tensor:
    """Quarter turns 0..11, each drawn uniformly, [count, max_turns] int64; -1 after the last."""
    lengths = torch.randint(min_turns, max_turns + 1, (count, 1), generator=generator)
    turns = torch.randint(12, (count, max_turns), generator=generator)
    return torch.where(torch.arange(max_turns) < lengths, turns, -1)
