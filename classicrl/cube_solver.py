"""Solves Rubik's cubes with a trained network: what the script and the command line call.

From a state to moves that were replayed, :meth:`CubeSolver.solve`. Without a search named, a
preset's ladder is climbed: a short search first, wider ones while the cube is not solved.
"""

import math
import time
from collections.abc import Callable, Iterator
from functools import partial
from importlib import resources
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from classicrl.checkpoint import load_model, require_fit
from classicrl.domains.cube3 import ACTION_COUNTS, Cube3, format_moves, half_turn_length
from classicrl.errors import UserError
from classicrl.evaluation import Evaluation
from classicrl.experiment import MODEL_FILE
from classicrl.machine import available_memory
from classicrl.networks.byte_q_network import ByteQNetwork
from classicrl.search.beam import q_beam
from classicrl.search.best_first import astar, deferred_astar, qstar
from classicrl.search.nodes import Perimeter
from classicrl.search.solution import Progress, QFunction, Solution
from classicrl.search.value import q_of_children, value_of_every_action
from classicrl.solve_cubes import SearchName, SolveSettings

_CARD_NUMBERS = ("actions", "embedding_size", "hidden_size", "num_blocks")
_WEIGHT = {"fast": 0.3, "best": 0.6}
_SHARE_OF_MEMORY = 0.8  # of what is free, for one search
_MAX_WIDTH = 1 << 20
_SECONDS_PER_CUBE = 60.0  # of an evaluation
_MAX_DEPTH = 60  # of a beam, in actions
_LADDER_DEPTH = 40  # 26 turns solve any cube; a beam that is deeper has lost its way
_MAX_TURNS = 3 * _MAX_DEPTH  # of a solution, in the longest actions

CUBE_PROTOCOL = "qtm"
"""Random cubes solved with the preset ``fast``; a return is minus the quarter turns."""
UNSOLVED_RETURN = -100.0
"""Of a cube that stays unsolved."""


class CubeNetwork(NamedTuple):
    """A network of Q, or of V alone, and the domain whose actions it judges."""

    domain: Cube3
    network: ByteQNetwork
    card: dict[str, str]

    @property
    def is_value(self) -> bool:
        """Whether it estimates V(s) alone."""
        return self.card.get("function") == "v"

    def q_function(self, search: SearchName) -> QFunction:
        """What guides a search: a network of V gives A* itself, and the others the children's."""
        if not self.is_value:
            return self.network
        if self.states_per_row(search) == 1:
            return value_of_every_action(self.domain, self._value)
        return q_of_children(self.domain, self._value)

    def states_per_row(self, search: SearchName) -> int:
        """How many states the network sees for a row of Q: one, or all children of one."""
        of_state = not self.is_value or search in ("astar", "deferred-astar")
        return 1 if of_state else len(self.domain.costs)

    def _value(self, states: Tensor) -> Tensor:
        value: Tensor = self.network(states)[:, 0]
        return value


def shipped_network(actions: int) -> Path:
    """The model file that comes with the package.

    Raises:
        UserError: there is none for so many actions.
    """
    path = Path(str(resources.files("classicrl") / "weights" / f"cube3_{actions}.safetensors"))
    if not path.exists():
        raise UserError(
            f"no network for {actions} actions comes with this version: train one with "
            f"agents/qstar_cube3_train.py --actions {actions} and name it as --network"
        )
    return path


def load_network(path: Path, device: torch.device | str = "cpu") -> CubeNetwork:
    """The network of a model file, or of a run directory that holds one.

    Raises:
        UserError: it is missing, damaged, of another shape than it says, or of another program.
    """
    if path.is_dir():
        path = path / MODEL_FILE
    tensors, card = load_model(path)
    if card.get("domain") != "cube3" or not all(card.get(n, "").isdecimal() for n in _CARD_NUMBERS):
        raise UserError(f"{path} holds no network for the cube: name one of qstar_cube3_train")
    sizes = {name: int(card[name]) for name in _CARD_NUMBERS}
    if sizes["actions"] not in ACTION_COUNTS:
        raise UserError(f"{path} is for {sizes['actions']} actions; the cube has 12, 156 or 1884")
    domain = Cube3(sizes.pop("actions"), device=device)
    if card.get("function", "q") not in ("q", "v"):
        raise UserError(f"{path} holds no network of Q or V, but of {card['function']!r}")
    if max(sizes.values()) > 1 << 15:
        raise UserError(f"{path} names layers of impossible size")
    build = partial(
        ByteQNetwork,
        domain.feature_offsets,
        domain.num_features,
        1 if card.get("function") == "v" else len(domain.sequences),
        embedding_size=sizes["embedding_size"],
        hidden_size=sizes["hidden_size"],
        num_blocks=sizes["num_blocks"],
    )
    with torch.device("meta"):  # shapes first: a wrong card must not cost memory
        network = build()
    require_fit(path, tensors, network, "the network that it names")
    network = build()
    network.load_state_dict({name: tensor.float() for name, tensor in tensors.items()})
    return CubeNetwork(domain, network.to(device).eval(), card)


def averaged(domain: Cube3, q_function: QFunction, symmetries: int) -> QFunction:
    """Q averaged over the first so many of the cube's 48 symmetries: less noise for more time."""
    if symmetries == 1:
        return q_function
    chosen = domain.symmetries()[:symmetries]

    def mean(states: Tensor) -> Tensor:
        total = torch.zeros(len(states), len(domain.costs), device=states.device)
        for symmetry in chosen:
            total += q_function(symmetry.image(states))[:, symmetry.actions]
        return total / len(chosen)

    return mean


class CubeSolution(NamedTuple):
    """Of one cube.

    Attributes:
        solved: moves were found, and replayed.
        turns: quarter turns 0..11.
        cost: of the actions of the search that found them.
        nodes_generated, states_evaluated, seconds, network_seconds: of all searches made for it.
        attempts: their names and settings.
        stopped: why the last one ended.
    """

    solved: bool
    turns: list[int]
    cost: float
    nodes_generated: int
    states_evaluated: int
    seconds: float
    network_seconds: float
    attempts: list[str]
    stopped: str

    @property
    def moves(self) -> str:
        """WCA notation, quarter turns."""
        return format_moves(self.turns)

    def as_json(self) -> dict[str, object]:
        """Plain values."""
        return {
            "solved": self.solved,
            "moves": self.moves,
            "length_qtm": len(self.turns) if self.solved else None,
            "length_htm": half_turn_length(self.turns) if self.solved else None,
            "cost": self.cost if self.solved else None,
            "nodes_generated": self.nodes_generated,
            "states_evaluated": self.states_evaluated,
            "seconds": round(self.seconds, 4),
            "search": self.attempts,
            "stopped": self.stopped,
        }


class _Attempt(NamedTuple):
    search: SearchName
    size: int
    max_nodes: int
    weight: float = 0.0  # of a search that is no beam
    symmetries: int = 1
    max_depth: int = _MAX_DEPTH

    def __str__(self) -> str:
        size = f"width {self.size}" if self.search == "q-beam" else f"batch {self.size}"
        weight = "" if self.search == "q-beam" else f", weight {self.weight:g}"
        symmetries = f", {self.symmetries} symmetries" if self.symmetries > 1 else ""
        return f"{self.search} {size}{weight}{symmetries}"


class CubeSolver:
    """A network made ready to solve cubes.

    Args:
        network: from :func:`load_network`.
        settings: for every cube.

    Raises:
        UserError: a setting out of its range.
    """

    def __init__(self, network: CubeNetwork, settings: SolveSettings | None = None) -> None:
        self.network, self.settings = network, settings or SolveSettings()
        self._check()
        domain = network.domain
        depth = self.settings.perimeter
        if depth is None:
            depth = 6 if self.settings.preset == "best" else 5
        self.perimeter_depth = depth  # in turns
        self._perimeter = None
        if depth >= domain.max_turns:  # it is made of the domain's actions, of up to so many turns
            self._perimeter = Perimeter(domain, domain.goal, depth // domain.max_turns)

    def _check(self) -> None:
        settings = self.settings
        if settings.search in (None, "q-beam"):
            for flag, value in (("--weight", settings.weight), ("--stop", settings.stop)):
                if value is not None:
                    raise UserError(
                        f"{flag} is for --search qstar, astar and deferred-astar; a beam has no "
                        "such setting, and without --search a preset's beams are tried"
                    )
        for flag, value, low, high in (
            ("--weight", settings.weight, 0.0, 1.0),
            ("--batch-size", settings.batch_size, 1, _MAX_WIDTH),
            ("--max-nodes", settings.max_nodes, 1, 1 << 31),
            ("--perimeter", settings.perimeter, 0, 6),
            ("--symmetries", settings.symmetries, 1, 48),
        ):
            if value is not None and not low <= value <= high:
                raise UserError(f"{flag} must be from {low:g} to {high:g}, got {value}")
        if not settings.max_seconds > 0:
            raise UserError(f"--max-seconds must be positive, got {settings.max_seconds}")

    def solve(
        self, start: Tensor, progress: Callable[[str, Progress], None] | None = None
    ) -> CubeSolution:
        """Solves a cube, state uint8 [20]; the best of what its searches found."""
        began = time.perf_counter()
        domain, attempts = self.network.domain, []
        best: Solution | None = None
        generated = evaluated = 0
        network_seconds = 0.0
        stopped = "solved"
        for attempt in self._ladder():
            left = self.settings.max_seconds - (time.perf_counter() - began)
            if left <= 0:
                stopped = "max_seconds"
                break
            attempts.append(str(attempt))
            solution = self._search(attempt, start, left, progress)
            generated += solution.num_generated
            seen = self.network.states_per_row(attempt.search)
            evaluated += solution.num_evaluated * seen * attempt.symmetries
            network_seconds += solution.network_seconds
            stopped = solution.stopped
            if solution.solved:
                best = solution
                break
            if stopped == "max_bytes":  # a wider beam would need more
                break
        return CubeSolution(
            solved=best is not None,
            turns=domain.turns(best.actions) if best else [],
            cost=best.path_cost if best else math.inf,
            nodes_generated=generated,
            states_evaluated=evaluated,
            seconds=time.perf_counter() - began,
            network_seconds=network_seconds,
            attempts=attempts,
            stopped=stopped,
        )

    def _ladder(self) -> Iterator[_Attempt]:
        settings, fast = self.settings, self.settings.preset == "fast"
        symmetries = settings.symmetries or 1
        if settings.search is not None:
            beam = settings.search == "q-beam"
            size = settings.batch_size or (4096 if beam else 1000)
            max_nodes = settings.max_nodes or 3_000_000
            weight = _WEIGHT[settings.preset] if settings.weight is None else settings.weight
            yield _Attempt(settings.search, size, max_nodes, weight, symmetries)
            return
        # Rows of Q of a whole layer are in memory: those of more actions are longer.
        best = 262_144 if self.network.domain.max_turns == 1 else 65_536
        width = 8_192 if fast else best
        if self.network.is_value:  # as many states for the network: it is asked about all children
            width = max(1, width // len(self.network.domain.costs))
        width = min(settings.batch_size or width, _MAX_WIDTH)
        while True:
            # Wide enough for any cube in the end: four times as wide after each failure.
            max_nodes = settings.max_nodes or 200 * width
            yield _Attempt(
                "q-beam", width, max_nodes, symmetries=symmetries, max_depth=_LADDER_DEPTH
            )
            if width >= _MAX_WIDTH:
                return
            width = min(4 * width, _MAX_WIDTH)

    def _search(
        self,
        attempt: _Attempt,
        start: Tensor,
        max_seconds: float,
        progress: Callable[[str, Progress], None] | None,
    ) -> Solution:
        domain = self.network.domain
        q_function = self.network.q_function(attempt.search)
        q_function = averaged(domain, q_function, attempt.symmetries)
        name = str(attempt)
        show = None if progress is None else lambda now: progress(name, now)
        max_bytes = _SHARE_OF_MEMORY * available_memory(start.device)
        if attempt.search == "q-beam":
            return q_beam(
                domain, q_function, start, width=attempt.size, max_depth=attempt.max_depth,
                max_nodes=attempt.max_nodes, max_seconds=max_seconds, max_bytes=max_bytes,
                perimeter=self._perimeter, progress=show,
            )  # fmt: skip
        search = {"qstar": qstar, "astar": astar, "deferred-astar": deferred_astar}[attempt.search]
        return search(
            domain, q_function, start, weight=attempt.weight, batch_size=attempt.size,
            stop=self.settings.stop or "bound", max_nodes=attempt.max_nodes,
            max_seconds=max_seconds, max_bytes=max_bytes, perimeter=self._perimeter,
            progress=show,
        )  # fmt: skip


class CubeEvaluator:
    """Solves random cubes with the preset ``fast``, in a minute each at most.

    Args:
        network: from :func:`load_network`.
        seed: the same seed scrambles the same cubes.
        should_stop: asked before every cube; what is under way is then given up.
    """

    def __init__(
        self,
        network: CubeNetwork,
        *,
        seed: int = 0,
        should_stop: Callable[[], bool] = lambda: False,
    ) -> None:
        self._solver = CubeSolver(network, SolveSettings(max_seconds=_SECONDS_PER_CUBE))
        self._seed, self._should_stop = seed, should_stop

    def play(self, num_episodes: int) -> Evaluation | None:
        """Returns of so many cubes; None if it was stopped."""
        domain = self._solver.network.domain
        generator = torch.Generator().manual_seed(self._seed)
        turns = Cube3(12, device=domain.device)
        returns, lengths = [], []
        for start in turns.random_states(num_episodes, generator):
            if self._should_stop():
                return None
            solution = self._solver.solve(start)
            returns.append(-float(len(solution.turns)) if solution.solved else UNSOLVED_RETURN)
            lengths.append(len(solution.turns))
        return Evaluation(
            returns, lengths, epsilon=0.0, max_frames_per_episode=_MAX_TURNS, limit_unit="turns"
        )
