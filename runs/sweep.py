r"""Runs agents x environments x seeds, and collects their scores in one table and one plot.

    python runs/sweep.py --agents "va_classic_control --num-seeds 1" --envs CartPole-v1 Acrobot-v1 \
        --seeds 0 1 2 --workers 2
    python runs/sweep.py --file runs/classic_control.toml --engine ray

A trial is one call of a script in agents/, with a run directory of its own. That directory is all
that an engine needs to know: a trial that was killed, or that says "call again" (exit code 75), is
called again and continues there. So does the sweep itself: the same command again continues what
is not finished and reports what is. Two engines may even take turns on one sweep.

results.csv and curves.png are written into --out.
"""

import ast
import csv
import dataclasses
import fcntl
import io
import itertools
import os
import re
import shlex
import subprocess
import sys
import time
import tomllib
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path
from typing import Any, Literal, NamedTuple, get_args, get_origin, get_type_hints

import tyro

from classicrl.command_line import exit_with, require_positive
from classicrl.cpus import available_cpus
from classicrl.errors import RunFailure, UserError

ROOT = Path(__file__).resolve().parents[1]
DONE, BAD_INPUT, CALL_AGAIN = 0, 2, 75
POLL_SECONDS = 0.1


@dataclasses.dataclass(frozen=True)
class Config:
    """Every flag can be a line of a TOML file instead."""

    file: Path | None = None
    """A TOML file with any of the settings below; flags win over it."""
    agents: tuple[str, ...] = ()
    """Scripts of agents/, each with flags of its own: "va_minatar --member dqn --num-seeds 1"."""
    envs: tuple[str, ...] = ()
    """For --env-id. A file that ends in .txt stands for its lines. None: the script's default."""
    seeds: tuple[int, ...] = (0,)
    """For --seed."""
    flags: str = ""
    """More flags for every trial: "--total-steps 20000"."""
    out: Path = Path("runs/sweep")
    """Holds the run directories, <agent>/<environment>/seed<seed>, and the results."""

    engine: Literal["local", "ray", "slurm"] = "local"
    """local: processes of this machine. ray: a Ray cluster, whose nodes share the directory --out.
    slurm: a job per trial, through submitit."""
    workers: int = 0
    """Trials at a time. 0: one per CPU that this process may use; with ray and slurm, all."""
    ranks: int = 1
    """Processes of one trial that train together, for scripts that can (runs/launch.py)."""
    retries: int = 3
    """How often a trial may fail in a row without a new checkpoint before it is given up."""

    slurm_cluster: Literal["slurm", "local"] = "slurm"
    """local: submitit's executor of that name, to try things out without Slurm."""
    slurm_partition: str | None = None
    """Where the jobs go."""
    slurm_minutes: int = 1_440
    """Time limit of a job; one that reaches it is queued again and continues."""


# -- trials ----------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Trial:
    """One call of a script, with what identifies it."""

    name: str
    directory: Path
    command: tuple[str, ...]


class Outcome(NamedTuple):
    """How a trial ended."""

    trial: Trial
    status: Literal["done", "refused", "given up", "stopped"]
    calls: int
    seconds: float


def trials_of(config: Config) -> list[Trial]:
    """All combinations.

    Raises:
        UserError: for an unknown agent or one that cannot be swept, an unreadable list, two trials
            that are the same, or seeds that more than one trial would train.
    """
    if not config.agents:
        raise UserError("name one or more --agents")
    workers = config.workers or available_cpus()
    threads = ["--threads", str(max(1, available_cpus() // workers))]
    trials: dict[Path, Trial] = {}
    for agent in config.agents:
        script, *own_flags = shlex.split(agent)
        path = ROOT / "agents" / f"{script}.py"
        if not path.is_file():
            known = ", ".join(sorted(found.stem for found in path.parent.glob("*.py")))
            raise UserError(f"there is no agent {script!r}: choose of {known}")
        settings = settings_of(path)
        lacking = [f"--{name}" for name in ("run-dir", "seed", "threads") if name not in settings]
        if settings and lacking:
            raise UserError(f"{script} cannot be swept: it has no {', '.join(lacking)}")
        flags = own_flags + shlex.split(config.flags)
        named = {flag.partition("=")[0] for flag in flags}
        if "num-seeds" in settings:
            require_apart(script, config.seeds, num_seeds_of(flags, settings["num-seeds"]))
        for flag in ("--run-dir", "--seed", "--overwrite"):
            if flag in named:
                raise UserError(f"{flag} is the sweep's to set: leave it out of --agents, --flags")
        if "--threads" not in named:
            flags = [*flags, *threads]
        for env_id in list(environments(config.envs)) or [None]:
            for seed in config.seeds:
                parts = [slug(agent), slug(env_id or "default"), f"seed{seed}"]
                directory = config.out.absolute().joinpath(*parts)
                if directory in trials:
                    raise UserError(f"{'/'.join(parts)} is there twice: name each trial once")
                launch = [str(ROOT / "runs" / "launch.py"), "--ranks", str(config.ranks)]
                command = [
                    sys.executable,
                    *(launch if config.ranks > 1 else []),
                    str(path),
                    *(["--env-id", env_id] if env_id else []),
                    *("--seed", str(seed), "--run-dir", str(directory)),
                    *flags,
                ]
                name = f"{agent}, {env_id or 'its environment'}, seed {seed}"
                trials[directory] = Trial(name, directory, tuple(command))
    return list(trials.values())


def settings_of(script: Path) -> dict[str, Any]:
    """Flags of a script, without dashes, and their defaults as far as they are plain values.

    As its class Config has them, which is read, not run; nothing where there is no such class.
    """
    return {
        field.target.id.replace("_", "-"): getattr(field.value, "value", None)
        for found in ast.parse(script.read_text()).body
        if isinstance(found, ast.ClassDef) and found.name == "Config"
        for field in found.body
        if isinstance(field, ast.AnnAssign) and isinstance(field.target, ast.Name)
    }


def num_seeds_of(flags: Sequence[str], default: int) -> int:
    """How many seeds a trial trains, by its flags."""
    number = str(default)
    for flag, value in itertools.pairwise([*flags, ""]):
        if flag == "--num-seeds":
            number = value
        elif flag.startswith("--num-seeds="):
            number = flag.partition("=")[2]
    return int(number) if number.isdecimal() else default  # the script refuses what is no number


def require_apart(script: str, seeds: Sequence[int], num_seeds: int) -> None:
    """Raises UserError if two trials would train the same seed."""
    for before, seed in itertools.pairwise(sorted(seeds)):
        if before < seed < before + num_seeds:
            raise UserError(
                f"a trial of {script} trains {num_seeds} seeds, from --seed on, so those of seeds "
                f"{before} and {seed} overlap: add --num-seeds 1 to its flags, or give one of them"
            )


def environments(names: Sequence[str]) -> Iterator[str]:
    """The names, with the lines of files in the place of those that end in .txt."""
    for name in names:
        if not name.endswith(".txt"):
            yield name
            continue
        try:
            yield from Path(name).read_text().split()
        except (OSError, ValueError) as error:
            raise UserError(f"cannot read the environments in {name}: {error}") from error


def slug(text: str) -> str:
    """As a name of a directory."""
    return re.sub(r"[^A-Za-z0-9_.]+", "-", text).strip("-")


def run_trial(trial: Trial, retries: int, should_stop: Callable[[], bool]) -> Outcome:
    """Calls a trial's script until it is done, is refused, or fails too often in a row.

    A failure after a new checkpoint begins a new row: a machine that is taken away every hour ends
    no training, and one that cannot get on ends soon.
    """
    began = time.monotonic()
    calls = failures = 0
    status: Literal["done", "refused", "given up", "stopped"] = "stopped"
    checkpoints = checkpoints_of(trial)
    while not should_stop():
        # A sweep that was killed leaves its trials alive: they go on, and are waited for here.
        if in_use(trial):
            time.sleep(POLL_SECONDS)
            continue
        calls += 1
        code = call(trial, should_stop)
        if code == DONE:
            status = "done"
            break
        if code == BAD_INPUT and not in_use(trial):
            status = "refused"
            break
        newer = checkpoints_of(trial)
        failures = 0 if newer - checkpoints else failures + 1
        checkpoints = newer
        if failures > retries:
            status = "given up"
            break
    return Outcome(trial, status, calls, time.monotonic() - began)


def call(trial: Trial, should_stop: Callable[[], bool]) -> int:
    """One call of the script; its exit code, negative after a signal."""
    trial.directory.mkdir(parents=True, exist_ok=True)
    with (trial.directory / "trial.log").open("ab") as log:
        # In a session of its own: a Ctrl-C is for the sweep, which then stops its trials once.
        process = subprocess.Popen(
            trial.command, stdout=log, stderr=subprocess.STDOUT, start_new_session=True
        )
    asked = False
    try:
        while process.poll() is None:
            if should_stop() and not asked:
                process.terminate()  # it saves first
                asked = True
            time.sleep(POLL_SECONDS)
    except BaseException:  # cancelled
        process.terminate()
        process.wait()
        raise
    return process.returncode


def checkpoints_of(trial: Trial) -> frozenset[str]:
    """Names of the checkpoints that the trial has now."""
    found = trial.directory.glob("**/checkpoints/ckpt-*")
    return frozenset(path.name for path in found if re.fullmatch(r"ckpt-\d+", path.name))


def in_use(trial: Trial) -> bool:
    """Whether a process holds the lock of one of the trial's run directories."""
    for path in [trial.directory / ".lock", *trial.directory.glob("*/.lock")]:
        try:
            with path.open("rb") as lock:
                fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except FileNotFoundError:
            continue
        except OSError:
            return True
    return False


# -- engines: each yields outcomes as trials end ---------------------------------------------------


def run_local(
    trials: Sequence[Trial], config: Config, should_stop: Callable[[], bool]
) -> Iterator[Outcome]:
    """A thread per process of this machine."""
    with ThreadPoolExecutor(config.workers or available_cpus()) as pool:
        futures = [pool.submit(run_trial, trial, config.retries, should_stop) for trial in trials]
        for future in as_completed(futures):
            yield future.result()


def run_ray(
    trials: Sequence[Trial], config: Config, should_stop: Callable[[], bool]
) -> Iterator[Outcome]:
    """A Ray task per trial, a CPU each; Ray starts the task of a worker that died again.

    Joins the cluster of the variable RAY_ADDRESS, or starts one on this machine.
    """
    try:
        import ray
    except ImportError as error:
        raise UserError(
            "--engine ray needs ray, which is not installed: pip install 'classicrl[sweep]'"
        ) from error
    ray.init(num_cpus=None if "RAY_ADDRESS" in os.environ else config.workers or None)
    task = ray.remote(num_cpus=1, max_retries=config.retries)(run_trial)
    waiting = list(trials)
    running: dict[Any, Trial] = {}
    try:
        while (waiting or running) and not should_stop():
            while waiting and (not config.workers or len(running) < config.workers):
                trial = waiting.pop(0)
                running[task.remote(trial, config.retries, never)] = trial
            ended, _ = ray.wait(list(running), timeout=0.5)
            for reference in ended:
                trial = running.pop(reference)
                try:
                    yield ray.get(reference)
                except ray.exceptions.RayError as error:
                    print(f"{trial.name}: {type(error).__name__}", file=sys.stderr)
                    yield Outcome(trial, "given up", config.retries + 1, 0.0)
        for reference in running:
            ray.cancel(reference)  # interrupts `call`, which lets its process save and end
        if running:
            ray.wait(list(running), num_returns=len(running), timeout=60)
        for trial in [*running.values(), *waiting]:
            yield Outcome(trial, "stopped", 0, 0.0)
    finally:
        ray.shutdown()


def run_slurm(
    trials: Sequence[Trial], config: Config, should_stop: Callable[[], bool]
) -> Iterator[Outcome]:
    """A job per trial. A job that reaches its time limit is queued again by submitit; one that
    is lost is sent again from here."""
    try:
        import submitit
    except ImportError as error:
        raise UserError(
            "--engine slurm needs submitit, which is not installed: pip install 'classicrl[slurm]'"
        ) from error
    executor = submitit.AutoExecutor(config.out / "slurm", cluster=config.slurm_cluster)
    executor.update_parameters(
        timeout_min=config.slurm_minutes, cpus_per_task=1, tasks_per_node=1, nodes=1
    )
    if config.slurm_partition:
        executor.update_parameters(slurm_partition=config.slurm_partition)

    waiting = list(trials)
    losses = dict.fromkeys((trial.directory for trial in trials), 0)
    running: dict[Trial, Any] = {}
    while (waiting or running) and not should_stop():
        while waiting and (not config.workers or len(running) < config.workers):
            trial = waiting.pop(0)
            running[trial] = executor.submit(SlurmJob(trial, config.retries))
        for trial, job in list(running.items()):
            if not job.done():
                continue
            del running[trial]
            if job.exception() is None:
                yield Outcome(*job.result())
                continue
            losses[trial.directory] += 1
            if losses[trial.directory] > config.retries:
                print(f"{trial.name}: {job.exception()}", file=sys.stderr)
                yield Outcome(trial, "given up", losses[trial.directory], 0.0)
            else:
                waiting.append(trial)
        time.sleep(POLL_SECONDS)
    for trial, job in running.items():
        job.cancel()
        yield Outcome(trial, "stopped", 0, 0.0)
    for trial in waiting:
        yield Outcome(trial, "stopped", 0, 0.0)


class SlurmJob:
    """What submitit calls: the trial, and what to do when its time is nearly up."""

    def __init__(self, trial: Trial, retries: int) -> None:
        self.trial = trial
        self.retries = retries
        self.time_is_up = False

    def __call__(self) -> tuple[Any, ...]:
        """Runs the trial."""
        return tuple(run_trial(self.trial, self.retries, lambda: self.time_is_up))

    def checkpoint(self) -> Any:
        """Called within ``__call__`` by a signal: lets the process save, and asks to be queued."""
        from submitit.helpers import DelayedSubmission

        self.time_is_up = True
        deadline = time.monotonic() + 60
        while in_use(self.trial) and time.monotonic() < deadline:
            for process in processes_of(self.trial):
                os.kill(process, 15)
            time.sleep(1.0)
        return DelayedSubmission(SlurmJob(self.trial, self.retries))


def processes_of(trial: Trial) -> list[int]:
    """Ids of this machine's processes that were started by the trial's command."""
    wanted = "\0".join(trial.command).encode() + b"\0"
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            if path.read_bytes() == wanted:
                found.append(int(path.parent.name))
        except OSError:
            continue
    return found


def never() -> bool:
    """For trials that are stopped from outside."""
    return False


ENGINES = {"local": run_local, "ray": run_ray, "slurm": run_slurm}


# -- results ---------------------------------------------------------------------------------------


def results_of(trial: Trial) -> list[Path]:
    """Directories of the finished runs of a trial: its own, or one per seed in it."""
    if (trial.directory / "summary.json").is_file():
        return [trial.directory]
    seeds = sorted(trial.directory.glob("seed*/summary.json"))
    return [p.parent for p in seeds if re.fullmatch(r"seed\d+", p.parent.name)]


def write_results(trials: Sequence[Trial], out: Path) -> int:
    """Writes results.csv and curves.png of the trials that are done; the number of results."""
    from classicrl.checkpoint import write_atomic
    from classicrl.experiment import read_json
    from classicrl.reports.plots import write_figure
    from classicrl.reports.records import read_run

    columns = ("agent", "env_id", "protocol", "seed", "steps", "mean_return", "std_return")
    columns += ("episodes", "wall_seconds", "directory")
    text = io.StringIO()
    table = csv.writer(text, lineterminator="\n")
    table.writerow(columns)
    runs = []
    for trial in trials:
        for directory in results_of(trial):
            summary, run = read_json(directory / "summary.json"), read_run(directory)
            runs.append(run)
            steps = summary.get("total_steps", summary.get("num_updates"))
            scores = [summary["eval"][name] for name in ("mean_return", "std_return", "episodes")]
            row = [run.agent, run.env_id, run.protocol, run.seed, steps, *scores]
            table.writerow([*row, round(summary["wall_seconds"], 1), directory.relative_to(out)])
    write_atomic(out / "results.csv", text.getvalue().encode())
    if runs:
        try:
            write_figure(runs, out / "curves.png", metric="eval")
        except UserError as error:
            print(f"no plot: {error}", file=sys.stderr)
    return len(runs)


# -- the program -----------------------------------------------------------------------------------


def with_file(path: Path) -> Config:
    """The settings of a TOML file.

    Raises:
        UserError: if it cannot be read, or has a key or a type that no setting has.
    """
    try:
        values = tomllib.loads(path.read_text())
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"cannot read {path}: {error}") from error
    types = get_type_hints(Config)
    for name, value in values.items():
        if name == "file" or name not in types:
            raise UserError(f"{path}: there is no setting {name!r}; there are {', '.join(types)}")
        default = getattr(Config, name)
        kind = str if default is None else type(default)
        if isinstance(default, tuple):
            item = int if name == "seeds" else str
            if not isinstance(value, list) or not all(type(v) is item for v in value):
                raise UserError(f"{path}: {name} must be a list of {item.__name__}")
            value = tuple(value)
        elif isinstance(default, Path) and isinstance(value, str):
            value = Path(value)
        elif type(value) is not kind:
            raise UserError(f"{path}: {name} must be a {kind.__name__}")
        elif get_origin(types[name]) is Literal and value not in get_args(types[name]):
            raise UserError(f"{path}: {name} is one of {', '.join(get_args(types[name]))}")
        values[name] = value
    return Config(**values)


def main(arguments: Sequence[str]) -> None:
    """Runs what is not done, and writes the results."""
    from classicrl.experiment import Run, StopRequest

    default, words = Config(), list(arguments)
    if "--flags" in words[:-1]:  # its value begins with two dashes, too
        at = words.index("--flags")
        words[at : at + 2] = [f"--flags={words[at + 1]}"]
    for position, argument in enumerate(words):
        if argument.startswith("--file="):
            default = with_file(Path(argument.partition("=")[2]))
        elif argument == "--file" and position + 1 < len(words):
            default = with_file(Path(words[position + 1]))
    config = tyro.cli(Config, default=default, description=__doc__, args=words)
    require_positive(config, may_be_zero={"workers", "retries"})
    if not config.seeds or min(config.seeds) < 0:
        raise UserError("--seeds must be one or more numbers from 0 on")
    trials = trials_of(config)
    config = dataclasses.replace(config, out=config.out.absolute())
    with Run(config.out) as run, StopRequest() as stop:
        print(f"{len(trials)} trials, engine {config.engine}, in {run.directory}", flush=True)
        outcomes = []
        for outcome in ENGINES[config.engine](trials, config, lambda: bool(stop)):
            outcomes.append(outcome)
            times = "once" if outcome.calls == 1 else f"{outcome.calls} times"
            print(
                f"[{len(outcomes)}/{len(trials)}] {outcome.status}: {outcome.trial.name} "
                f"(called {times}, {outcome.seconds:.0f} s)",
                flush=True,
            )
        done = {o.trial.directory for o in outcomes if o.status == "done"}
        # In the order of the trials, not in that of their ends: the same table every time.
        count = write_results([t for t in trials if t.directory in done], config.out)
        print(f"{count} results of {len(done)} trials: {config.out / 'results.csv'}", flush=True)
        if stop:
            print("stopped; the same command continues")
            raise SystemExit(stop.exit_code)
        failed = [o for o in outcomes if o.status != "done"]
        if failed:
            logs = ", ".join(str(o.trial.directory / "trial.log") for o in failed)
            raise RunFailure(f"{len(failed)} of {len(trials)} trials are not done: see {logs}")


if __name__ == "__main__":
    exit_with(main, sys.argv[1:])
