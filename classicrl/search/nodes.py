"""The states that a search has kept: rows of arrays, found again by a hash table."""

import torch
from torch import Tensor

from classicrl.search.domain import Domain

# Growing at 0.6 keeps searches in the table at about two steps; triangular steps keep the longest
# short, which matters because a batch goes on until its last state has been found.
_MAX_LOAD = 0.6
_EMPTY = -1


class Nodes:
    """Nodes 0, 1, 2, ... with a state each, the way to it, and its cost.

    Storage for ``capacity`` nodes is taken at once and never moved: memory of a CPU that was never
    written to costs nothing, and nothing is ever copied to grow. The table holds a node for each
    state, the latest; 31 bits of the state's hash lie beside it, and states themselves are
    compared, so no two states are ever confused.

    Args:
        capacity: nodes that fit.
        state_size: S, bytes of a state.
        device: of everything here.

    Attributes:
        states: [capacity, S] uint8.
        path_cost: g, [capacity] float32.
        parent: node it came from, [capacity] int32; -1 for the start.
        action: that led here from the parent, [capacity] int16.
        size: nodes that are there.
    """

    def __init__(self, capacity: int, state_size: int, device: torch.device) -> None:
        self.capacity = capacity
        self.states = torch.empty(capacity, state_size, dtype=torch.uint8, device=device)
        self.path_cost = torch.empty(capacity, device=device)
        self.parent = torch.empty(capacity, dtype=torch.int32, device=device)
        self.action = torch.empty(capacity, dtype=torch.int16, device=device)
        self.size = 0
        self._in_table = 0
        self._slots = torch.full((1 << 14,), _EMPTY, device=device)
        # Random numbers per byte and value; their sum, modulo 2^64, is a state's hash.
        generator = torch.Generator().manual_seed(0)
        numbers = torch.randint(-(2**63), 2**63 - 1, (state_size * 256,), generator=generator)
        self._numbers = numbers.to(device)
        self._offset = 256 * torch.arange(state_size, device=device)

    @staticmethod
    def bytes_per_node(state_size: int) -> float:
        """Memory that a node may take, the table at its emptiest included."""
        return state_size + 4 + 4 + 2 + 2 * 8 / _MAX_LOAD

    def num_bytes(self) -> int:
        """Memory in use."""
        arrays = (self.states, self.path_cost, self.parent, self.action)
        return self.size * sum(a[0].nbytes for a in arrays) + self._slots.nbytes

    def hashes(self, states: Tensor) -> Tensor:
        """Hashes [B] int64 of states [B, S]."""
        return self._numbers[self._offset + states].sum(1)

    def find(self, states: Tensor, hashes: Tensor) -> tuple[Tensor, Tensor]:
        """Looks states up.

        Args:
            states: [B, S] uint8.
            hashes: of them, [B] int64.

        Returns:
            Their nodes [B] int64, -1 where there is none, and where in the table they stand or
            belong [B] int64, for the :meth:`add` that comes next: the table has room for all.
        """
        while self._in_table + len(hashes) > _MAX_LOAD * len(self._slots):
            self._grow()
        mask = len(self._slots) - 1
        place = hashes & mask
        node = torch.full_like(hashes, -1)
        mark = _mark(hashes)
        asking = torch.arange(len(hashes), device=hashes.device)
        step = 0
        while len(asking):
            here = place[asking]
            entry = self._slots[here]
            # The mark alone is wrong once in 2^31 times; the state itself decides.
            alike = ((entry >> 32) == mark[asking]).nonzero()[:, 0]
            if len(alike):
                known = entry[alike] & 0xFFFFFFFF
                same = (self.states[known] == states[asking[alike]]).all(1)
                node[asking[alike[same]]] = known[same]
            step += 1
            on = (entry != _EMPTY) & (node[asking] < 0)
            place[asking[on]] = (here[on] + step) & mask
            asking = asking[on]
        return node, place

    def add(
        self,
        states: Tensor,
        hashes: Tensor,
        path_cost: Tensor,
        parent: Tensor,
        action: Tensor,
        known: Tensor,
        place: Tensor,
    ) -> Tensor:
        """Makes nodes; their states must differ from one another.

        Args:
            states, hashes: [B, S] uint8, [B] int64.
            path_cost, parent, action: of the new nodes, [B].
            known, place: what :meth:`find` said of them. Where a node was known, the table forgets
                it for the new one.

        Returns:
            Their numbers, [B] int64.

        Raises:
            OverflowError: more than ``capacity``.
        """
        count = len(states)
        first, self.size = self.size, self.size + count
        if self.size > self.capacity:
            self.size = first
            raise OverflowError(f"{self.capacity} nodes are full")
        rows = slice(first, self.size)
        self.states[rows], self.path_cost[rows] = states, path_cost
        self.parent[rows], self.action[rows] = parent, action
        node = torch.arange(first, self.size, device=states.device)
        entry = (_mark(hashes) << 32) | node
        old = known >= 0
        # Of several that want one slot, whichever is written last has it; the others look again.
        free = old | (self._slots[place] == _EMPTY)
        self._slots[place[free]] = entry[free]
        left = self._slots[place] != entry
        self._insert(entry[left], hashes[left])
        self._in_table += len(entry) - int(old.sum())
        return node

    def path(self, node: int) -> list[int]:
        """Actions from the start to the node."""
        actions = []
        while (parent := int(self.parent[node])) >= 0:
            actions.append(int(self.action[node]))
            node = parent
        return actions[::-1]

    def _insert(self, entry: Tensor, hashes: Tensor) -> None:
        mask, step = len(self._slots) - 1, 0
        place = hashes & mask
        while len(entry):
            free = self._slots[place] == _EMPTY
            self._slots[place[free]] = entry[free]
            on = self._slots[place] != entry
            step += 1
            entry, place = entry[on], (place[on] + step) & mask

    def _grow(self) -> None:
        entries = self._slots[self._slots != _EMPTY]
        self._slots = self._slots.new_full((2 * len(self._slots),), _EMPTY)
        for part in torch.split(entries, 1 << 20):
            self._insert(part, self.hashes(self.states[part & 0xFFFFFFFF]))


def _mark(hashes: Tensor) -> Tensor:
    """31 bits of hashes that say nothing of the lowest 32."""
    return (hashes >> 32) & 0x7FFFFFFF


def first_of_equals(states: Tensor, hashes: Tensor, path_cost: Tensor) -> Tensor:
    """Which rows to keep so that every state is there once: the cheapest, or first, of its kind.

    Where another state of the same hash comes between two equal ones (once in 2^64), both stay.

    Args:
        states, hashes, path_cost: [B, S], [B], [B].

    Returns:
        Their indices, ascending, int64.
    """
    order = torch.sort(path_cost, stable=True).indices
    order = order[torch.sort(hashes[order], stable=True).indices]
    keep = torch.ones(len(order), dtype=torch.bool, device=states.device)
    earlier, later = order[:-1], order[1:]
    repeated = (hashes[earlier] == hashes[later]).nonzero()[:, 0]
    same = (states[earlier[repeated]] == states[later[repeated]]).all(1)
    keep[repeated[same] + 1] = False
    return order[keep].sort().values


class Perimeter:
    """All states within ``depth`` actions of the goal, with the way from each.

    A search that meets one of them knows the exact rest of the path.

    Args:
        domain: whose actions all cost 1 and have inverses.
        goal: [S] uint8.
        depth: actions.

    Raises:
        ValueError: other costs, or no inverses.
    """

    def __init__(
        self, domain: Domain, goal: Tensor, depth: int, *, capacity: int = 2_000_000
    ) -> None:
        if domain.inverse is None or not bool((domain.costs == 1).all()):
            raise ValueError("a perimeter needs actions of cost 1 that have inverses")
        self.depth, self._inverse = depth, domain.inverse
        self._nodes = nodes = Nodes(capacity, len(goal), goal.device)
        states = goal[None]
        hashes = nodes.hashes(states)
        start = torch.zeros(1, device=goal.device)
        layer = nodes.add(states, hashes, start, start - 1, start, *nodes.find(states, hashes))
        self.layers = [1]
        for distance in range(1, depth + 1):
            first = nodes.size
            for part in torch.split(layer, max(1, 1_000_000 // len(domain.costs))):
                parents, actions = children(domain, nodes.states[part])
                states = domain.apply(nodes.states[part][parents], actions)
                hashes = nodes.hashes(states)
                keep = first_of_equals(states, hashes, torch.zeros_like(hashes))
                states, hashes = states[keep], hashes[keep]
                known, place = nodes.find(states, hashes)
                new = known < 0
                cost = torch.full_like(known, distance, dtype=torch.float32)
                origin = part[parents[keep]]
                fields = (states, hashes, cost, origin, actions[keep], known, place)
                nodes.add(*(field[new] for field in fields))
            layer = torch.arange(first, nodes.size, device=goal.device)
            self.layers.append(len(layer))

    def __len__(self) -> int:
        return self._nodes.size

    def hashes(self, states: Tensor) -> Tensor:
        """Hashes [B] int64 of states [B, S], those of any :class:`Nodes` of such states."""
        return self._nodes.hashes(states)

    def distance(self, states: Tensor, hashes: Tensor) -> tuple[Tensor, Tensor]:
        """Actions to the goal [B] float32, inf outside, and nodes [B] for :meth:`tail`.

        Args:
            states: [B, S] uint8.
            hashes: as :meth:`Nodes.hashes` of any nodes gives them, [B] int64.
        """
        node = self._nodes.find(states, hashes)[0]
        cost = self._nodes.path_cost[node.clamp(min=0)]
        return torch.where(node >= 0, cost, torch.inf), node

    def tail(self, node: int) -> list[int]:
        """Actions from the node's state to the goal."""
        return [int(self._inverse[action]) for action in self._nodes.path(node)[::-1]]


def children(domain: Domain, states: Tensor) -> tuple[Tensor, Tensor]:
    """All legal pairs of a state and an action: indices of states and actions, [M] int64 each."""
    legal = domain.legal(states)
    if legal is None:
        legal = states.new_ones(len(states), len(domain.costs), dtype=torch.bool)
    parents, actions = legal.nonzero(as_tuple=True)
    return parents, actions
