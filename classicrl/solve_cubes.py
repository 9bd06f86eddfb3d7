"""From a command line to solved cubes: for ``agents/qstar_cube3_solve.py`` and ``classicrl solve``.

Torch is imported only once there is something to solve, so that ``--help`` answers at once.
"""

import dataclasses
import json
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from classicrl.command_line import require_positive
from classicrl.errors import UserError

if TYPE_CHECKING:
    from torch import Tensor

    from classicrl.cube_solver import CubeSolution
    from classicrl.search.solution import Progress

SearchName = Literal["qstar", "astar", "deferred-astar", "q-beam"]


@dataclasses.dataclass(frozen=True)
class SolveSettings:
    """How to search. What is None is the preset's business."""

    preset: Literal["fast", "best"] = "fast"
    """fast begins with a beam of 8,192 states, best with 262,144, or 65,536 at more than 12
    actions: shorter, and that much slower. A network of V is asked about all children of a state:
    its beams are narrower by the number of actions."""
    search: SearchName | None = None
    """One search instead of the preset's ladder."""
    weight: float | None = None
    """Of the moves made against those estimated to remain, 0 to 1, for --search but q-beam.
    Default: 0.3, best 0.6."""
    batch_size: int | None = None
    """States per batch; the width of q-beam."""
    stop: Literal["bound", "first"] | None = None
    """bound: until nothing better is promised. first: at the first solution. For --search but
    q-beam. Default: bound."""
    max_nodes: int | None = None
    """States to generate in a search. Default: 3,000,000; in a ladder, 200 times the width."""
    max_seconds: float = 600.0
    """For a cube."""
    perimeter: int | None = None
    """Turns around the solved cube where the rest is looked up, 0 to 6, in whole actions of up to
    2 or 3 turns where --actions is 156 or 1884. Default: 5, best 6."""
    symmetries: int | None = None
    """Of 48, over which the network's answers are averaged. Default: 1."""


@dataclasses.dataclass(frozen=True)
class SolveConfig(SolveSettings):
    """Exactly one of scramble, facelets, scrambles-file and random says which cubes."""

    scramble: str | None = None
    """Moves that scrambled a solved cube."""
    facelets: str | None = None
    """54 letters of URFDLB."""
    scrambles_file: Path | None = None
    """A file with a scramble a line."""
    random: int = 0
    """So many random cubes, of 100 to 200 quarter turns each."""
    seed: int = 0
    """Of random cubes; another number of them is another draw, also at its beginning."""
    actions: Literal[12, 156, 1884] | None = None
    """Quarter turns, and sequences of up to two or three as well. Default: those of --network, or
    12."""
    network: Path | None = None
    """A model file or a run of qstar_cube3_train. Default: the one in the package, if there is."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """auto: the GPU if there is one."""
    threads: int = 0
    """CPU threads; 0: all that this process may use."""
    json: Path | None = None
    """Write the solutions there."""
    html: Path | None = None
    """Write an animated page there."""
    gif: Path | None = None
    """Write a picture of the first solution there."""
    half_turns: bool = False
    """Show R2 for R R. What --json writes is in quarter turns."""


def solve_cubes(config: SolveConfig) -> dict[str, Any]:
    """Solves; returns what ``--json`` writes. Leaves with exit code 1 if a cube stays unsolved."""
    from rich.console import Console

    from classicrl.cube_solver import CubeSolver, load_network, shipped_network
    from classicrl.domains.cube3 import to_facelets
    from classicrl.machine import choose_device, set_threads
    from classicrl.views.cube3 import terminal_net

    require_positive(
        config,
        may_be_zero={"weight", "perimeter", "random", "seed", "threads"},
        at_most_one={"weight"},
    )
    set_threads(config.threads)
    device = choose_device(config.device)
    cubes = cubes_of(config)
    require_outputs([path for path in (config.json, config.html, config.gif) if path is not None])
    network = load_network(config.network or shipped_network(config.actions or 12), device)
    known = int(network.card["actions"])
    if config.actions not in (None, known):
        raise UserError(
            f"--actions {config.actions}: {config.network} has {known}; leave --actions out"
        )
    names = [field.name for field in dataclasses.fields(SolveSettings)]
    solver = CubeSolver(network, SolveSettings(**{name: getattr(config, name) for name in names}))

    console = Console(file=sys.stderr)
    solutions = []
    for number, start in enumerate(cubes, start=1):
        if len(cubes) == 1 and console.is_terminal:
            print(terminal_net(to_facelets(start), color=True), file=sys.stderr)
        with console.status(f"cube {number} of {len(cubes)}") as status:

            def show(
                search: str, now: "Progress", number: int = number, status: Any = status
            ) -> None:
                rate = now.num_generated / max(now.seconds, 1e-9)
                status.update(
                    f"cube {number} of {len(cubes)}: {search}, {now.num_generated:,} nodes, "
                    f"{rate:,.0f}/s, best f {now.best_f:.1f}, open {now.num_open:,}"
                )

            solution = solver.solve(start.to(device), show)
        solutions.append(solution)
        print(f"{number:3d}  {described(solution, config.half_turns)}", flush=True)
    settings = {name: getattr(config, name) for name in names}
    network_name = str(config.network or "of the package")
    report = {
        "cubes": [solution.as_json() for solution in solutions],
        "settings": {**settings, "actions": known, "network": network_name},
    }
    write_outputs(config, cubes, solutions, report)
    if not any(solution.solved for solution in solutions):
        for flag, path in (("--html", config.html), ("--gif", config.gif)):
            if path is not None:
                print(f"{flag}: no cube was solved, {path} was not written", file=sys.stderr)
    solved = [solution for solution in solutions if solution.solved]
    if len(solutions) > 1 and solved:
        lengths = [len(solution.turns) for solution in solved]
        seconds = sorted(solution.seconds for solution in solutions)
        median = seconds[len(seconds) // 2]
        print(
            f"solved {len(solved)} of {len(solutions)}: mean {sum(lengths) / len(solved):.2f} "
            f"quarter turns ({min(lengths)}-{max(lengths)}), median {median:.2f} s"
        )
    if len(solved) < len(solutions):
        raise SystemExit(1)
    return report


def require_outputs(paths: list[Path]) -> None:
    """Refuses files that could not be written, before anything is solved."""
    for path in paths:
        if not path.parent.is_dir():
            raise UserError(f"{path.parent} is no directory: make it, or write elsewhere")
        if path.is_dir():
            raise UserError(f"{path} is a directory: name a file in it")
        if not os.access(path.parent, os.W_OK):
            raise UserError(f"{path.parent} is not writable: write elsewhere")
    if len({path.resolve() for path in paths}) < len(paths):
        raise UserError("--json, --html and --gif need files of their own: two name the same")


def cubes_of(config: SolveConfig) -> "list[Tensor]":
    """The states to solve, uint8 [20] each."""
    import torch

    from classicrl.domains.cube3 import Cube3, from_facelets, parse_moves

    given = [
        config.scramble is not None,
        config.facelets is not None,
        config.scrambles_file is not None,
        config.random != 0,
    ]
    if sum(given) != 1:
        raise UserError(
            "say which cubes to solve: one of --scramble, --facelets, --scrambles-file, --random"
        )
    turns = Cube3(12)
    if config.scramble is not None:
        return [turns.after(parse_moves(config.scramble))]
    if config.facelets is not None:
        return [from_facelets(config.facelets)]
    if config.scrambles_file is not None:
        return [turns.after(scramble) for scramble in scrambles_of(config.scrambles_file)]
    if not 1 <= config.random <= 1_000_000:
        raise UserError(f"--random must be from 1 to 1,000,000, got {config.random}")
    generator = torch.Generator().manual_seed(config.seed)
    return list(turns.random_states(config.random, generator))


def scrambles_of(path: Path) -> list[list[int]]:
    """The quarter turns of each line that is not empty."""
    from classicrl.domains.cube3 import parse_moves

    try:
        lines = path.read_text().splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path} cannot be read: {error}") from error
    scrambles = []
    for number, line in enumerate(lines, start=1):
        if line.strip():
            try:
                scrambles.append(parse_moves(line))
            except UserError as error:
                raise UserError(f"{path}, line {number}, {error}") from error
    if not scrambles:
        raise UserError(f"{path} holds no scramble: write one a line")
    return scrambles


def described(solution: "CubeSolution", half_turns: bool) -> str:
    """One line."""
    from classicrl.domains.cube3 import format_moves, half_turn_length

    figures = f"{solution.seconds:.2f} s, {solution.nodes_generated:,} nodes"
    if not solution.solved:
        return f"not solved within the limits ({solution.stopped}; {figures})"
    moves = format_moves(solution.turns, half_turns=half_turns) or "(solved already)"
    length, in_half_turns = len(solution.turns), half_turn_length(solution.turns)
    return f"{moves}  [{length} quarter turns, {in_half_turns} with half turns, {figures}]"


def write_outputs(
    config: SolveConfig,
    cubes: "list[Tensor]",
    solutions: "list[CubeSolution]",
    report: dict[str, Any],
) -> None:
    """JSON, HTML and GIF, as far as they are asked for."""
    from classicrl.checkpoint import write_atomic
    from classicrl.domains.cube3 import to_facelets
    from classicrl.views.cube3 import SolvedCube, gif, html_page

    shown = [
        SolvedCube(
            to_facelets(cube),
            tuple(solution.moves.split()),
            f"{len(solution.turns)} quarter turns, {solution.seconds:.2f} s, "
            f"{solution.nodes_generated:,} nodes",
        )
        for cube, solution in zip(cubes, solutions, strict=True)
        if solution.solved
    ]
    if config.json is not None:
        write_atomic(config.json, (json.dumps(report, indent=2) + "\n").encode())
    if config.html is not None and shown:
        write_atomic(config.html, html_page(shown).encode())
    if config.gif is not None and shown:
        gif(shown[0], config.gif)
