"""The command ``classicrl``: what is done with agents once ``agents/*.py`` have trained them.

Only the parser is imported here; each subcommand imports what it needs, so that ``--help`` answers
at once.
"""

import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NoReturn

from tyro.conf import OmitArgPrefixes, Positional
from tyro.extras import subcommand_cli_from_dict

from classicrl.command_line import exit_with
from classicrl.errors import RunFailure, UserError
from classicrl.solve_cubes import SolveConfig, solve_cubes

if TYPE_CHECKING:
    from classicrl.experiment import StopRequest

_INDEX = Path("runs/reference/index.json")
_MAX_EPISODES = 1_000  # games are played side by side, an emulator each

Device = Literal["auto", "cpu", "cuda"]


def main(arguments: Sequence[str] | None = None) -> NoReturn:
    """Runs the subcommand of ``arguments``, by default ``sys.argv[1:]``, and exits.

    0 done; 1 the answer is no (``verify``, ``doctor``, ``results --check``); 2 bad input; 75
    stopped by SIGTERM; 130 by SIGINT.
    """
    subcommands: dict[str, Callable[..., Any]] = {
        "evaluate": evaluate,
        "plot": plot,
        "report": report,
        "doctor": doctor,
        "verify": verify,
        "publish": publish,
        "results": results,
        "solve": solve,
        "export": export,
        "push": push,
        "pull": pull,
    }
    exit_with(
        lambda given: subcommand_cli_from_dict(
            subcommands,
            prog="classicrl",
            description="Evaluate, draw, check, publish and share what the scripts in agents/ "
            "trained.",
            args=given,
        ),
        arguments,
    )


def evaluate(
    run_dir: Positional[str],
    *,
    episodes: int = 30,
    epsilon: float | None = None,
    seed: int = 0,
    video: Path | None = None,
    max_frames: int | None = None,
    device: Device = "auto",
    threads: int = 0,
    index: Path = _INDEX,
) -> None:
    """Play a trained agent without learning, and say how well it does.

    Args:
        run_dir: A run or model directory, a model file, or the name of a published result.
        episodes: Games, each from its own seed.
        epsilon: Share of random actions. Default: 0.01 without sticky actions, else 0.
        seed: Of the games; none of them is one of training's.
        video: Write one more game to this GIF.
        max_frames: Where a game is cut: emulator frames on Atari (default 108,000, or what the
            protocol says), elsewhere steps (default: what the protocol or environment says).
        device: auto is the GPU if there is one.
        threads: CPU threads; 0 is all that this process may use.
        index: Where published results are looked up.
    """
    _require(1 <= episodes <= _MAX_EPISODES, f"--episodes must be in [1, {_MAX_EPISODES:,}]")
    _require(epsilon is None or 0 <= epsilon <= 1, "--epsilon must be in [0, 1]")
    _require(seed >= 0, "--seed must not be negative")
    _require(threads >= 0, "--threads must not be negative")
    _require(max_frames is None or max_frames > 0, "--max-frames must be positive")
    if video is not None:
        _require(video.suffix == ".gif", f"--video {video} must end in .gif")
        _require(video.parent.is_dir(), f"--video: {video.parent} is not a directory")

    from classicrl.agent_file import evaluator_of, load_agent, model_path
    from classicrl.checkpoint import load_model
    from classicrl.console import limit_in_words
    from classicrl.evaluation import AtariEvaluator
    from classicrl.experiment import MODEL_FILE, StopRequest
    from classicrl.machine import choose_device, set_threads
    from classicrl.reports.plots import protocol_in_words
    from classicrl.reports.reference import find, read_index
    from classicrl.reports.statistics import bootstrap_interval

    path = Path(run_dir)
    if not path.exists() and index.exists() and len(path.parts) == 1:
        try:
            (entry,) = find(read_index(index), [run_dir])
        except UserError as error:
            raise UserError(f"{run_dir} does not exist, and {error}") from error
        if entry.weights is None:
            raise UserError(f"{run_dir} was published without weights: it cannot be played")
        path = index.parent / entry.path / MODEL_FILE
    threads = set_threads(threads)
    path = model_path(path)
    if load_model(path)[1].get("domain") == "cube3":
        _require(video is None, "--video: cubes are drawn by classicrl solve --gif")
        _require(epsilon is None, "--epsilon: cubes are solved by a search, without random actions")
        _require(max_frames is None, "--max-frames: a cube has a minute of search instead")
        _evaluate_cubes(path, episodes, seed, str(choose_device(device)))
        return
    agent = load_agent(path, choose_device(device))
    protocol = agent.card.protocol
    with StopRequest() as stop:
        evaluator = evaluator_of(
            agent,
            seed=seed,
            epsilon=epsilon,
            max_frames=max_frames,
            num_threads=threads,
            should_stop=lambda: bool(stop),
        )
        if video is not None and not isinstance(evaluator, AtariEvaluator):
            evaluator.require_gif()  # before the games are played
        print(agent.card, flush=True)
        scores = evaluator.play(episodes)
        if scores is None:
            _leave(stop)
        low, high = bootstrap_interval(scores.returns)
        print(
            f"protocol      {protocol.name}: {protocol_in_words(protocol.name)}\n"
            f"games         {episodes}, seed {seed}, epsilon {scores.epsilon:g}, "
            f"{limit_in_words(scores.max_frames_per_episode, scores.limit_unit)}\n"
            f"return        {scores.mean_return:.2f} +- {scores.std_return:.2f} "
            "(mean, standard deviation over games)\n"
            f"95% interval  [{low:.2f}, {high:.2f}] (of the mean, bootstrap)\n"
            f"range         {min(scores.returns):g} to {max(scores.returns):g}",
            flush=True,
        )
        if video is not None:
            try:
                if not evaluator.record_gif(video):
                    _leave(stop)
            except OSError as error:
                raise UserError(f"cannot write {video} ({error.strerror})") from error
            print(f"video         {video}")


def _evaluate_cubes(path: Path, cubes: int, seed: int, device: str) -> None:
    from classicrl.cube_solver import UNSOLVED_RETURN
    from classicrl.experiment import StopRequest
    from classicrl.reports.players import player_of
    from classicrl.reports.plots import protocol_in_words

    with StopRequest() as stop:
        player = player_of(path, seed=seed, device=device, should_stop=lambda: bool(stop))
        print(f"{player.agent} on {player.env_id}, weights of update {player.step:,}", flush=True)
        scores = player.play(cubes)
        if scores is None:
            _leave(stop)
    unsolved = sum(score == UNSOLVED_RETURN for score in scores.returns)
    print(
        f"protocol      {player.protocol}: {protocol_in_words(player.protocol)}\n"
        f"cubes         {cubes}, seed {seed}, solved {cubes - unsolved}\n"
        f"return        {scores.mean_return:.2f} +- {scores.std_return:.2f} "
        f"(mean, standard deviation over cubes; {UNSOLVED_RETURN:g} if unsolved)"
    )


def plot(
    run_dirs: Positional[tuple[Path, ...]],
    *,
    out: Path = Path("curves.png"),
    kind: Literal["curves", "profile", "improvement", "iqm"] = "curves",
    metric: str = "return",
    x: Literal["steps", "frames", "hours"] = "steps",
    centre: Literal["mean", "iqm"] = "mean",
) -> None:
    """Draw learning curves, or how methods compare over environments and seeds.

    Args:
        run_dirs: Run directories, of peers too.
        out: Picture to write: .png, .svg or .pdf.
        kind: curves: seeds of one configuration become one curve with its interval. Of last
            evaluations, over all environments: profile: share of runs above a score; improvement:
            probability that one method beats another; iqm: interquartile means.
        metric: Of curves: return, eval, loss, or any column of metrics.csv.
        x: Of curves: against steps, frames (4 a step on Atari), or hours of wall time.
        centre: Of curves: mean or interquartile mean over seeds.
    """
    _require(bool(run_dirs), "name one or more run directories")
    if kind == "curves":
        from classicrl.reports.plots import plot_runs

        plot_runs(run_dirs, out, metric=metric, x=x, centre=centre)
    else:
        from classicrl.reports.method_plots import plot_methods

        plot_methods(run_dirs, out, kind)
    print(f"wrote {out}")


def report(run_dir: Positional[Path], *, out: Path | None = None) -> None:
    """Write a page about a run: curves, scores, pictures, settings, versions; one file, offline.

    Args:
        run_dir: A run directory of any agent, finished or not.
        out: Page to write. Default: report.html in the run directory.
    """
    from classicrl.reports.report_page import write_report

    print(f"wrote {write_report(run_dir, out)}")


def doctor() -> None:
    """Say what this installation and this machine can do, and what is missing for more."""
    from classicrl.doctor import examine

    failed = []
    for finding in examine():
        print(finding, flush=True)
        if finding.status == "fail":
            failed.append(finding.topic)
    if failed:
        raise RunFailure(f"{', '.join(failed)} failed: see the lines above")


def verify(
    names: Positional[tuple[str, ...]] = (),
    *,
    index: Path = _INDEX,
    fast: bool = False,
    seed: int | None = None,
    device: Device = "auto",
    threads: int = 0,
) -> None:
    """Check published results: their files, and their scores by playing the weights again.

    Args:
        names: Results of the index; all if none is given.
        index: Of the published results.
        fast: Play only those that the index calls cheap; the files of all are checked.
        seed: Play other games than the recorded ones.
        device: auto is the GPU if there is one.
        threads: CPU threads; 0 is all that this process may use.
    """
    _require(seed is None or seed >= 0, "--seed must not be negative")
    _require(threads >= 0, "--threads must not be negative")
    from classicrl.experiment import StopRequest
    from classicrl.machine import choose_device, set_threads
    from classicrl.reports import reference

    entries = reference.find(reference.read_index(index), names)
    threads = set_threads(threads)
    where = str(choose_device(device))
    failed = []
    with StopRequest() as stop:
        for entry in entries:
            verdict = reference.verify(
                entry,
                index.parent,
                play=entry.cheap or not fast,
                seed=seed,
                device=where,
                num_threads=threads,
                should_stop=lambda: bool(stop),
            )
            if verdict is None:
                _leave(stop)
            print(f"{'holds' if verdict.holds else 'FAILS'}  {verdict.name}: {verdict.detail}")
            sys.stdout.flush()
            if not verdict.holds:
                failed.append(verdict.name)
    if failed:
        raise RunFailure(f"{len(failed)} of {len(entries)} do not hold: {', '.join(failed)}")
    print(f"all {len(entries)} hold" if entries else "nothing is published yet")


def publish(
    run_dir: Positional[Path],
    *,
    name: str,
    command: str | None = None,
    variant: str | None = None,
    weights: Literal["full", "half", "none"] = "full",
    machine: str | None = None,
    cheap: bool = False,
    replace: bool = False,
    note: str = "",
    index: Path = _INDEX,
) -> None:
    """Copy a finished run into the published results.

    Args:
        run_dir: Of the finished run; a peer's too.
        name: By which it is verified.
        command: What trains it. Default: from its configuration; peers need it.
        variant: Of the agent. Default: its preset.
        weights: half stores 16-bit floats, for networks above 8 MiB; none leaves them out.
        machine: Default: what the run recorded; peers record none.
        cheap: Quick checks (verify --fast) shall replay it.
        replace: Replace the result of this name.
        note: What a reader must know beside it, such as a file that was lost.
        index: Of the published results.
    """
    _require(index.name == "index.json", f"--index {index} must be a file named index.json")
    from classicrl.reports import publish as publishing

    entry = publishing.publish(
        run_dir,
        index.parent,
        name,
        command,
        variant=variant,
        weights=weights,
        machine=machine,
        cheap=cheap,
        replace=replace,
        note=note,
    )
    low, high = entry.eval.interval
    print(
        f"{entry.name}: {index.parent / entry.path}, return {entry.eval.mean_return:.2f}, a replay "
        f"must lie in [{low:.2f}, {high:.2f}]"
    )
    if entry.commit is None or entry.commit.endswith("with changes"):
        print(f"warning: the commit that trained it is {entry.commit or 'not known'}")


def results(*, check: bool = False, index: Path = _INDEX, root: Path = Path()) -> None:
    """Write the published results into docs/results.md and README.md.

    Args:
        check: Write nothing; exit with 1 if something is out of date.
        index: Of the published results.
        root: Of the repository.
    """
    from classicrl.reports.results import write_results

    stale = ", ".join(map(str, write_results(index, root, check=check)))
    if stale and check:
        raise RunFailure(f"{stale}: out of date; run `classicrl results`")
    print(f"wrote {stale}" if stale else "everything is up to date")


def solve(config: OmitArgPrefixes[SolveConfig]) -> None:
    """Solve Rubik's cubes with a network that qstar_cube3_train trained."""
    solve_cubes(config)


def export(run_dir: Positional[Path], *, out: Path, licence: str = "mit") -> None:
    """Make a model directory of a run, to hand on: weights, settings, scores and a card.

    Args:
        run_dir: Of the run, finished or not.
        out: Directory to make.
        licence: Of the weights, as model hubs name it.
    """
    from classicrl.model_directory import FILES, export_model

    player = export_model(run_dir, out, licence=licence)
    made = ", ".join(name for name in FILES if (out / name).exists())
    print(f"{player.agent} on {player.env_id}, step {player.step:,}: {out} ({made})")


def push(model_dir: Positional[Path], name: Positional[str], *, private: bool = False) -> None:
    """Upload a model directory to the Hugging Face Hub; needs the extra hub.

    Args:
        model_dir: That classicrl export made.
        name: OWNER/NAME on the hub.
        private: Not for others to see, if it is made now.
    """
    from classicrl import hub

    print(hub.push(model_dir, name, private=private))


def pull(name: Positional[str], *, out: Path, revision: str | None = None) -> None:
    """Download a model directory from the Hugging Face Hub and check it; needs the extra hub.

    Args:
        name: OWNER/NAME on the hub.
        out: Directory to make.
        revision: A commit. Default: the newest.
    """
    from classicrl import hub

    player = hub.pull(name, out, revision=revision)
    print(f"{player.agent} on {player.env_id}, step {player.step:,}: {out}")


def _require(holds: bool, message: str) -> None:
    if not holds:
        raise UserError(message)


def _leave(stop: "StopRequest") -> NoReturn:
    print("stopped", file=sys.stderr)
    raise SystemExit(stop.exit_code)
