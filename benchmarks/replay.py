"""Speed and size of two replays of stacked frames, classicrl's and stable-baselines3's, and what a
draw by age costs in Symphony's replay.

The replays of frames are given the same stream of transitions, made before anything is timed, and
are full when the timing begins. What each of them takes in and hands out is in docs/performance.md.

Draws by age are timed at several capacities, and at each with nothing but the warm-up's virtual
copies, half renewed, and gone round more than once, next to uniform draws of the same rows.

    python benchmarks/replay.py --threads 2 --json benchmarks/results/my-machine.json

Each rate is measured several times, the replays in turn.
"""

import dataclasses
import functools
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal, NamedTuple, Protocol

import numpy as np
import torch
import tyro
from numpy.typing import NDArray
from report import Table, alternately, by_kind, keep, origin, ratios, show, spread

from classicrl.command_line import exit_with, require_positive
from classicrl.errors import UserError
from classicrl.machine import available_memory, choose_device, set_threads
from classicrl.replay import ReplayBuffer, replay_nbytes
from classicrl.replay.fading import FadingReplay, FadingSampler
from classicrl.replay.samplers import UniformSampler

STACK = 4
FRAME_SHAPE = (84, 84)
NUM_ACTIONS = 6
# Hopper's: a row of 27 numbers.
FADING_OBS_SIZE, FADING_ACTION_SIZE = 11, 3
FADING_STATES = {"the warm-up alone": 0.0, "half renewed": 0.5, "gone round 4/3 times": 4 / 3}
"""Transitions written after the warm-up, in capacities."""


@dataclasses.dataclass(frozen=True)
class Config:
    """A transition is a stack of 4 frames of 84x84 bytes, what was done, and the stack after."""

    capacity: int = 100_000
    """Transitions that each replay has room for."""
    num_envs: int = 8
    """Environments in the stream: transitions per call of `add`."""
    batch_sizes: tuple[int, ...] = (32, 512)
    """Transitions per call of `sample`: a row for each."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Where batches are wanted. auto: the GPU if there is one. cpu and cuda are two results: keep
    them in two files."""
    threads: int = 0
    """CPU threads of torch; 0: all that this process may use."""
    peer: Literal["sb3", "none"] = "sb3"
    """none: measure classicrl alone."""
    fading_capacities: tuple[int, ...] = (8_192, 65_536, 524_288)
    """Slots of the replays that are drawn from by age; () leaves that out."""
    fading_batch_size: int = 384
    """Transitions per draw by age."""
    fading_replication: int = 32
    """Copies of the warm-up that each of them begins with; divides every capacity."""
    repeats: int = 7
    """How often everything is measured."""
    add_calls: int = 2_000
    """Calls of `add` per repeat."""
    sampled: int = 20_000
    """Transitions drawn per repeat and batch size."""
    stream_steps: int = 500
    """Steps of each environment before the stream begins again."""
    episode_steps: int = 100
    """Mean length of an episode; in half of them the last step terminates, the others are cut."""
    seed: int = 0
    """Of everything random."""
    json: Path | None = None
    """Keep the result in this file; other benchmarks' results in it stay."""


class Step(NamedTuple):
    """One step of every environment, as an environment with automatic reset gives it."""

    obs: NDArray[np.uint8]  # [N, 4, 84, 84]
    action: NDArray[np.int64]  # [N]
    reward: NDArray[np.float32]  # [N]
    terminated: NDArray[np.bool_]  # [N]
    ended: NDArray[np.bool_]  # [N]
    next_obs: NDArray[np.uint8]  # [N, 4, 84, 84], the true last stack where `ended`
    final_obs: NDArray[np.uint8]  # [ended.sum(), 4, 84, 84], the same where `ended`
    infos: list[dict[str, bool]]  # [N], as stable-baselines3 wants to be told of a cut


def make_stream(config: Config) -> list[Step]:
    """Random frames in episodes; all of them end on the last step, so it can be run in a circle."""
    rng = np.random.default_rng(config.seed)
    num_envs = config.num_envs

    def frames(n: int) -> NDArray[np.uint8]:
        return rng.integers(256, size=(n, *FRAME_SHAPE), dtype=np.uint8)

    stream = []
    obs = np.zeros((num_envs, STACK, *FRAME_SHAPE), dtype=np.uint8)
    obs[:, -1] = frames(num_envs)
    for t in range(config.stream_steps):
        ended = rng.random(num_envs) < 1 / config.episode_steps
        ended |= t == config.stream_steps - 1
        terminated = ended & (rng.random(num_envs) < 0.5)
        next_obs = np.concatenate([obs[:, 1:], frames(num_envs)[:, None]], axis=1)
        step = Step(
            obs=obs,
            action=rng.integers(NUM_ACTIONS, size=num_envs),
            reward=rng.integers(-1, 2, size=num_envs).astype(np.float32),
            terminated=terminated,
            ended=ended,
            next_obs=next_obs,
            final_obs=next_obs[ended],
            infos=[{"TimeLimit.truncated": bool(cut)} for cut in ended & ~terminated],
        )
        stream.append(step)
        obs = next_obs.copy()
        obs[ended] = 0
        obs[ended, -1] = frames(int(ended.sum()))
    return stream


class Replay(Protocol):
    """One of the replays that are compared."""

    name: str

    @property
    def nbytes(self) -> int:
        """Memory of all that it keeps."""

    def add(self, step: Step) -> None:
        """Stores one step of every environment."""

    def sample(self, batch_size: int) -> Any:
        """A batch, as the learner gets it."""

    def num_transitions(self) -> int:
        """Transitions that can be drawn."""


class ClassicRL:
    """classicrl's: it is given the newest frame of each stack and links rows to stacks."""

    name = "classicrl"

    def __init__(self, config: Config, device: torch.device) -> None:
        self.buffer = ReplayBuffer(
            config.capacity,
            FRAME_SHAPE,
            config.num_envs,
            stack=STACK,
            device=device,
            seed=config.seed,
        )

    @property
    def nbytes(self) -> int:
        return self.buffer.nbytes

    def add(self, step: Step) -> None:
        self.buffer.add(
            step.obs[:, -1],
            step.action,
            step.reward,
            step.terminated,
            step.ended,
            step.final_obs[:, -1],
        )

    def sample(self, batch_size: int) -> Any:
        return self.buffer.sample(batch_size)

    def num_transitions(self) -> int:
        first, end = self.buffer.oldest_id, self.buffer.next_id
        return int(self.buffer.rings.is_whole(np.arange(first, end)[None]).sum())


class StableBaselines3:
    """stable-baselines3's: it is given both whole stacks, and keeps both, or in the variant
    `optimize_memory_usage` one of them."""

    def __init__(self, config: Config, device: torch.device, *, optimized: bool) -> None:
        import gymnasium
        from stable_baselines3.common.buffers import ReplayBuffer as Buffer

        self.name = "stable-baselines3" + (", memory optimised" if optimized else "")
        self.buffer = Buffer(
            config.capacity,
            gymnasium.spaces.Box(0, 255, (STACK, *FRAME_SHAPE), np.uint8),
            gymnasium.spaces.Discrete(NUM_ACTIONS),
            device=device,
            n_envs=config.num_envs,
            optimize_memory_usage=optimized,
            # It cannot tell a cut from a termination when it keeps one stack only.
            handle_timeout_termination=not optimized,
        )

    @property
    def nbytes(self) -> int:
        return sum(a.nbytes for a in vars(self.buffer).values() if isinstance(a, np.ndarray))

    def add(self, step: Step) -> None:
        self.buffer.add(step.obs, step.next_obs, step.action, step.reward, step.ended, step.infos)

    def sample(self, batch_size: int) -> Any:
        return self.buffer.sample(batch_size)

    def num_transitions(self) -> int:
        # Where one stack is kept, the oldest one of each environment has lost its own.
        lost = self.buffer.optimize_memory_usage and self.buffer.full
        return int((self.buffer.size() - lost) * self.buffer.n_envs)


def make_replays(config: Config, device: torch.device) -> list[Replay]:
    """classicrl's first; then, unless it is alone, both of stable-baselines3's."""
    replays: list[Replay] = [ClassicRL(config, device)]
    if config.peer == "none":
        return replays
    try:
        import stable_baselines3  # noqa: F401
    except ImportError as error:
        raise UserError(
            f"{error}: pip install -c constraints.txt -e '.[atari,bench]', or use --peer none"
        ) from error
    replays += [StableBaselines3(config, device, optimized=o) for o in (False, True)]
    return replays


def measure_fading(config: Config, device: torch.device) -> list[dict[str, Any]]:
    """Times draws by age beside uniform ones; a record per capacity and state."""
    records = []
    size, rng = config.fading_batch_size, np.random.default_rng(config.seed)
    calls = -(-config.sampled // size)
    for capacity in config.fading_capacities:
        warmup_steps = capacity // config.fading_replication
        replay = FadingReplay(
            FADING_OBS_SIZE,
            FADING_ACTION_SIZE,
            warmup_steps=warmup_steps,
            replication=config.fading_replication,
            device=device,
            seed=config.seed,
        )
        _write_random(replay, warmup_steps, rng)
        replay.finish_warmup()
        for state, rounds in FADING_STATES.items():
            _write_random(replay, int(rounds * capacity) - replay.num_writes, rng)
            # The virtual ring stands for as many items as it has slots, whatever was written. A
            # sampler of ages depends on their number alone.
            jobs = {
                "fading": lambda ring=replay: ring.rows_of_ranks(ring.sample_ranks(size)),
                "uniform": lambda n=capacity: torch.randint(n, (size,), device=device),
                "fading batch": lambda ring=replay: ring.sample(size),
                "uniform batch": functools.partial(_uniform_batch, replay, size),
                "fading ages": functools.partial(FadingSampler(), rng, capacity, size),
                "uniform ages": functools.partial(UniformSampler(), rng, capacity, size),
            }
            repeated = [functools.partial(_repeat, job, calls) for job in jobs.values()]
            alternately(repeated, device, 1)  # warm-up
            timings = alternately(repeated, device, config.repeats)
            records.append(
                {
                    "capacity": capacity,
                    "state": state,
                    "num_writes": replay.num_writes,
                    "calls": calls,
                    "jobs": {
                        name: by_kind(timing) for name, timing in zip(jobs, timings, strict=True)
                    },
                }
            )
            print(f"draws by age: {capacity:,} slots, {state}", flush=True)
    return records


def _write_random(replay: FadingReplay, count: int, rng: np.random.Generator) -> None:
    """Random transitions, one in 200 of them terminal."""
    for begin in range(0, count, 1_024):
        n = min(1_024, count - begin)
        replay.add(
            rng.standard_normal((n, FADING_OBS_SIZE)),
            rng.uniform(-1.0, 1.0, (n, FADING_ACTION_SIZE)),
            rng.standard_normal(n),
            rng.random(n) < 0.005,
            rng.standard_normal((n, FADING_OBS_SIZE)),
        )


def _uniform_batch(replay: FadingReplay, size: int) -> torch.Tensor:
    """As :meth:`FadingReplay.sample`, with every slot equally likely."""
    ranks = torch.randint(replay.capacity, (size,), device=replay.device)
    return replay._rows.index_select(0, replay.rows_of_ranks(ranks))


def _repeat(job: Callable[[], object], times: int) -> None:
    for _ in range(times):
        job()


def measure(config: Config) -> dict[str, Any]:
    """Measures everything; returns the result as it is kept in JSON."""
    device = choose_device(config.device)
    set_threads(config.threads)
    if any(n % config.fading_replication or n < 1 for n in config.fading_capacities):
        raise UserError(
            f"--fading-capacities {config.fading_capacities} must be positive multiples of "
            f"--fading-replication {config.fading_replication}"
        )
    stack_nbytes = replay_nbytes(config.capacity, (STACK, *FRAME_SHAPE))
    needed = stack_nbytes // STACK + (3 * stack_nbytes if config.peer == "sb3" else 0)
    if needed > available_memory(torch.device("cpu")):
        raise UserError(
            f"{config.capacity:,} transitions take {needed / 1e9:.1f} GB in all replays together, "
            "more than is free: lower --capacity"
        )
    stream = make_stream(config)
    replays = make_replays(config, device)
    for replay in replays:
        print(f"fills {replay.name}: {replay.nbytes / 1e9:.2f} GB", flush=True)
        for t in range(config.capacity // config.num_envs + config.stream_steps):
            replay.add(stream[t % len(stream)])

    at = dict.fromkeys(range(len(replays)), 0)

    def add(i: int) -> None:
        for t in range(at[i], at[i] + config.add_calls):
            replays[i].add(stream[t % len(stream)])
        at[i] += config.add_calls

    def sample(replay: Replay, batch_size: int) -> None:
        for _ in range(-(-config.sampled // batch_size)):
            replay.sample(batch_size)

    jobs = {"add": [functools.partial(add, i) for i in range(len(replays))]}
    per_repeat = {"add": config.add_calls * config.num_envs}
    for batch_size in config.batch_sizes:
        jobs[f"sample {batch_size}"] = [
            functools.partial(sample, replay, batch_size) for replay in replays
        ]
        per_repeat[f"sample {batch_size}"] = -(-config.sampled // batch_size) * batch_size
    timings = {}
    for name, all_sides in jobs.items():
        alternately(all_sides, device, 1)  # warm-up
        timings[name] = alternately(all_sides, device, config.repeats)
    records = {}
    for i, replay in enumerate(replays):
        records[replay.name] = {
            "nbytes": replay.nbytes,
            "num_transitions": replay.num_transitions(),
            **{name: by_kind(timings[name][i]) for name in jobs},
        }
    return {
        **origin(config, device),
        "per_repeat": per_repeat,
        "replays": records,
        "fading": measure_fading(config, device),
    }


def tables(result: dict[str, Any]) -> list[Table]:
    """What a result says, as text."""
    config, records = result["config"], result["replays"]

    def rates(replay: str, job: str) -> list[float]:
        return [result["per_repeat"][job] / s for s in records[replay][job]["wall_seconds"]]

    own, *peers = records
    header = ["transitions/s", own]
    for peer in peers:
        header += [peer, "ratio"]
    rows = []
    for job in result["per_repeat"]:
        kind, _, batch_size = job.partition(" ")
        name = f"added, {config['num_envs']} at once"
        cells = [f"sampled, {batch_size} at once" if kind == "sample" else name]
        cells.append(spread(rates(own, job)))
        for peer in peers:
            cells += [
                spread(rates(peer, job)),
                spread(ratios(rates(own, job), rates(peer, job)), 2),
            ]
        rows.append(tuple(cells))
    bytes_each = {name: r["nbytes"] / r["num_transitions"] for name, r in records.items()}
    cells = ["bytes per transition", f"{bytes_each[own]:,.0f}"]
    for peer in peers:
        cells += [f"{bytes_each[peer]:,.0f}", f"{bytes_each[peer] / bytes_each[own]:.2f}"]
    rows.append(tuple(cells))
    return [
        Table(
            f"Replays of {config['capacity']:,}, {result['threads']} threads, batches on "
            f"{result['device']}: median (range) of {config['repeats']} repeats",
            tuple(header),
            rows,
            ("A ratio above 1 is in favour of classicrl.",) if peers else (),
        ),
        *([fading_table(result)] if result.get("fading") else []),
    ]


def fading_table(result: dict[str, Any]) -> Table:
    """Microseconds of a draw by age, and how many times a uniform one that is."""
    config = result["config"]
    rows = []
    for record in result["fading"]:
        cells = [f"{record['capacity']:,}, {record['state']}"]
        for kind in ("", " batch", " ages"):
            own, uniform = (
                [1e6 * s / record["calls"] for s in record["jobs"][name + kind]["wall_seconds"]]
                for name in ("fading", "uniform")
            )
            cells += [spread(own, 1), spread(ratios(own, uniform), 2)]
        rows.append(tuple(cells))
    return Table(
        f"Draws of {config['fading_batch_size']} by age, {result['threads']} threads, on "
        f"{result['device']}: microseconds, median (range) of {config['repeats']} repeats",
        (
            "slots",
            "which rows",
            "to uniform",
            "batch of them",
            "to uniform",
            "`FadingSampler`",
            "to uniform",
        ),
        rows,
        (
            "Which rows: `FadingReplay`, one look into an alias table; "
            "uniform: torch's `randint`. A batch gathers rows of "
            f"{2 * FADING_OBS_SIZE + FADING_ACTION_SIZE + 2} numbers besides. `FadingSampler` "
            "draws ages for the other replay on the CPU, next to `UniformSampler`; it keeps no "
            "table, and its cost does not depend on what was written.",
        ),
    )


def main(config: Config) -> dict[str, Any]:
    """Measures, prints, keeps."""
    require_positive(config, may_be_zero={"threads", "seed"})
    # stable-baselines3 warns of memory that it compares with all that is free, untouched pages
    # included; what is needed is checked here.
    warnings.filterwarnings("ignore", message="This system does not have apparently enough memory")
    result = measure(config)
    show(tables(result))
    if config.json is not None:
        keep(config.json, "replay", result)
        print(f"kept in {config.json}; python benchmarks/report.py writes docs/performance.md")
    return result


if __name__ == "__main__":
    exit_with(main, tyro.cli(Config, description=__doc__))
