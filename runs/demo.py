"""The demonstration: a cube solved, a key found, two value learners on CartPole, on one page.

    make demo          or: python runs/demo.py

Five parts, each a command that works alone too: classicrl solve with the network that comes with
the package; agents/ppo_rnd_small.py on KeyReturn5 with the bonus and without; and
agents/va_classic_control.py as VA-learning and as dueling DQN. Core dependencies only.

Interrupted? The same command continues; parts that are done are not done again.
"""

import dataclasses
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from classicrl.command_line import exit_with, may_change, not_recorded, parse, require_positive


@dataclasses.dataclass(frozen=True)
class Config:
    """Defaults take a few minutes on two cores."""

    run_dir: Path = not_recorded(Path("runs/demo"))
    """Everything goes there."""
    threads: int = may_change(1)
    """CPU threads of each part."""
    cube_seed: int = 0
    """Of the random cube."""
    rnd_seed: int = 0
    """Of PPO with and without the bonus."""
    rnd_steps: int = 150_000
    """Of each."""
    classic_steps: int = 15_000
    """Of each seed on CartPole."""
    num_seeds: int = 3
    """Side by side on CartPole."""
    overwrite: bool = not_recorded(False)
    """Begin anew."""


if __name__ == "__main__":  # before torch is imported, so that --help answers at once
    command_line = parse({"default": Config()}, "default", __doc__ or "")

from classicrl.errors import RunFailure, UserError
from classicrl.experiment import Run, StopRequest, as_json, read_json, versions
from classicrl.reports.report_page import (
    RunFiles,
    duration,
    in_words,
    read_files,
    return_chart,
    version_rows,
    write_page,
    write_report,
)
from classicrl.views import html_page as html

AGENTS = Path(__file__).resolve().parents[1] / "agents"
KEY_ENV = "classicrl/KeyReturn5-v0"
_POLL_SECONDS = 0.1


@dataclasses.dataclass(frozen=True)
class Part:
    """One command of the demonstration."""

    title: str
    arguments: list[str]
    result: Path
    """Exists once the part is done."""
    weight: float
    """Its share of the time, in seconds of an idle core; only how they compare matters."""


def parts_of(config: Config) -> list[Part]:
    """In their order."""
    out, threads = config.run_dir, ["--threads", str(config.threads)]
    cube = ["--json", str(out / "cube.json"), "--html", str(out / "cube.html")]
    cube += ["--gif", str(out / "cube.gif"), "--seed", str(config.cube_seed)]
    solve = ["-m", "classicrl", "solve", "--random", "1", "--device", "cpu", *cube, *threads]
    parts = [Part("a scrambled cube, solved", solve, out / "cube.gif", 10)]
    small, classic = str(AGENTS / "ppo_rnd_small.py"), str(AGENTS / "va_classic_control.py")
    for bonus, title in (("rnd", "PPO with RND seeks a key"), ("none", "PPO alone seeks it")):
        run_dir = out / f"key-{bonus}"
        arguments = [small, "--env-id", KEY_ENV, "--bonus", bonus, "--run-dir", str(run_dir)]
        arguments += ["--seed", str(config.rnd_seed), "--total-steps", str(config.rnd_steps)]
        weight = (10 if bonus == "rnd" else 7) * config.rnd_steps / 100_000
        parts.append(Part(title, [*arguments, *threads], run_dir / "summary.json", weight))
    for member, title in (
        ("va", "VA-learning on CartPole"),
        ("dueling", "dueling DQN on CartPole"),
    ):
        run_dir = out / f"cartpole-{member}"
        arguments = [classic, "--member", member, "--run-dir", str(run_dir), "--device", "cpu"]
        arguments += ["--total-steps", str(config.classic_steps)]
        arguments += ["--num-seeds", str(config.num_seeds)]
        shared = run_dir / f"seeds0-{config.num_seeds - 1}" / "summary.json"
        weight = 30 * config.classic_steps / 10_000
        parts.append(Part(title, [*arguments, *threads], shared, weight))
    return parts


def main(config: Config) -> dict[str, Any]:
    """Makes the parts that are not made yet, then the page."""
    require_positive(config, may_be_zero={"threads", "cube_seed", "rnd_seed"})
    with Run(config.run_dir, overwrite=config.overwrite) as run, StopRequest() as stop:
        path = config.run_dir / "config.json"
        before = read_json(path).get("config") if path.exists() else None
        config = run.configure(config, lambda given: given)
        # What other settings made is left to the commands: they continue it, or refuse.
        same = before == as_json(config)
        began, done = time.monotonic(), 0.0
        todo = [part for part in parts_of(config) if not (same and part.result.exists())]
        for number, part in enumerate(todo, start=1):
            left = sum(other.weight for other in todo[number - 1 :])
            if done:  # at the rate so far
                seconds = (time.monotonic() - began) * left / done
                ahead = f"; about {duration(seconds)} left"
            else:
                ahead = ""
            print(f"\n[{number}/{len(todo)}] {part.title}{ahead}", flush=True)
            overwrite = (
                ["--overwrite"] if config.overwrite and "solve" not in part.arguments else []
            )
            make(part, overwrite, stop)
            done += part.weight
        page = config.run_dir / "report.html"
        write_page(demo_page(config), page)
        for key in ("key-rnd", "key-none"):
            write_report(config.run_dir / key)
        print(
            f"\nthe cube, to turn by hand: {config.run_dir / 'cube.html'}\n"
            f"the report, open it in a browser: {page}"
        )
        return {"report": str(page)}


def make(part: Part, more: list[str], stop: StopRequest) -> None:
    """Runs a part's command to its end, or stops it and leaves as it left.

    It has a process group of its own: Ctrl-C reaches it once, from here, so that it saves first.
    """
    command = [sys.executable, *part.arguments, *more]
    with subprocess.Popen(command, process_group=0) as process:
        told = False
        while process.poll() is None:
            if stop and not told:
                process.terminate()
                told = True
            time.sleep(_POLL_SECONDS)
    if stop:
        print("stopped; the same command continues", file=sys.stderr)
        raise SystemExit(stop.exit_code)
    if process.returncode:
        error = UserError if process.returncode == UserError.exit_code else RunFailure
        raise error(f"{part.title}: the command above failed; the same command tries it again")


# The page.


def demo_page(config: Config) -> str:
    """All parts on one page, from the files that they left."""
    out = config.run_dir
    bonus, plain = read_files(out / "key-rnd"), read_files(out / "key-none")
    classic = {
        member: [
            read_files(out / f"cartpole-{member}" / f"seed{seed}")
            for seed in range(config.num_seeds)
        ]
        for member in ("va", "dueling")
    }
    return html.page(
        "Three agents and a cube",
        "What classicrl's demonstration made on this machine: a Rubik's cube solved by Q* search "
        "with a trained network, an environment whose reward chance hardly finds, and two value "
        "learners on CartPole. Each part is a command that works alone, too.",
        [
            _cube_section(read_json(out / "cube.json"), out / "cube.gif"),
            _key_section(config, bonus, plain),
            _classic_section(config, classic),
            _section_of_versions([bonus, plain, *(runs[0] for runs in classic.values())]),
        ],
        over="classicrl, make demo",
        footer="Made by runs/demo.py; the curves, scores and moves are those of the files in "
        f"{out}. classicrl report makes such a page of any run directory.",
    )


def _cube_section(document: dict[str, Any], gif: Path) -> str:
    (cube,) = document["cubes"]
    return html.section(
        "A scrambled cube, solved",
        html.paragraph(
            f"A cube after 100 to 200 random turns, solved in {cube['length_qtm']} quarter turns "
            f"({cube['length_htm']} counted with half turns) in {cube['seconds']:.2f} s, with "
            f"{in_words(cube['nodes_generated'])} states generated. cube.html, beside this page, "
            "shows the same cube to be turned by hand."
        ),
        html.picture(
            html.read_picture(gif),
            f"A Rubik's cube being solved by the moves {cube['moves']}",
            cube["moves"],
        ),
    )


def _key_section(config: Config, bonus: RunFiles, plain: RunFiles) -> str:
    charts = [
        return_chart(
            [(None, run)], "steps", title=title, size=(500, 280), colours=[colour], y_range=(0, 1)
        )
        for run, title, colour in ((bonus, "PPO with RND", 0), (plain, "PPO alone", 1))
    ]
    rows = [
        [name, *_scores(run), in_words(run.summary.get("rewarded_at_step") or "never"), _time(run)]
        for name, run in (("PPO with RND", bonus), ("PPO alone", plain))
    ]
    header = ("agent", "return", "episodes", "solved at step", "wall time")
    return html.section(
        "A key that curiosity finds",
        html.paragraph(
            "In KeyReturn5 nothing is rewarded until a key was fetched at the end of a corridor "
            "and carried back; a uniformly random policy does that in 1.5e-6 of episodes. Random "
            "network distillation pays the agent for what it has not seen. A return is 1 or 0; "
            "solved means that 90 of the last 100 episodes succeeded."
        ),
        html.group("beside", charts),
        html.table("After training, episodes without learning", header, rows),
        html.paragraph(
            f"One seed each, {config.rnd_seed}, which proves nothing by itself. In the benchmark "
            "of ten seeds and 200,000 steps (docs/rnd.md) all ten solved it with the bonus, and "
            "none without."
        ),
    )


def _classic_section(config: Config, classic: dict[str, list[RunFiles]]) -> str:
    titles = {"va": "VA-learning", "dueling": "dueling DQN"}
    highest = max(
        (float(run.evaluations["mean_return"].max()) for runs in classic.values() for run in runs
         if len(run.evaluations.get("mean_return", ()))),
        default=1.0,
    )  # fmt: skip
    charts = []
    for colour, (member, runs) in enumerate(classic.items()):
        shown = [("training, each seed", run._replace(evaluations={})) for run in runs]
        shown += [("evaluation, each seed", run._replace(metrics={})) for run in runs]
        charts.append(
            return_chart(
                shown,
                "steps",
                title=f"{titles[member]}, {len(runs)} seeds",
                size=(500, 280),
                colours=[2 * colour] * len(runs) + [2 * colour + 1] * len(runs),
                y_range=(0.0, highest),
            )
        )
    rows = [
        [f"{titles[member]}, seed {seed}", *_scores(run), in_words(run.summary.get("total_steps"))]
        for member, runs in classic.items()
        for seed, run in enumerate(runs)
    ]
    header = ("agent", "return", "episodes", "steps")
    return html.section(
        "Two ways to split a value",
        html.paragraph(
            "VA-learning and dueling DQN both learn Q(x,a) as a value of the state and an "
            "advantage of the action, and centre the advantages differently. CartPole pays 1 for "
            "each step that the pole stands, at most 500. So short a training does not compare "
            "the two; it shows each of them at work."
        ),
        html.group("beside", charts),
        html.table("After training, episodes without learning", header, rows),
    )


def _section_of_versions(runs: list[RunFiles]) -> str:
    machines = dict.fromkeys(in_words(run.summary.get("machine") or "not recorded") for run in runs)
    rows = version_rows([runs[0].summary.get("versions"), versions()])
    return html.section(
        "Machine and versions",
        html.paragraph(f"Machine: {'; '.join(machines)}."),
        html.table("Versions", ("software", "when it was trained", "when this was written"), rows),
    )


def _scores(run: RunFiles) -> tuple[str, str]:
    scores = run.summary["eval"]
    words = f"{scores['mean_return']:.2f} ± {scores['std_return']:.2f}"
    return words, in_words(scores["episodes"])


def _time(run: RunFiles) -> str:
    return duration(run.summary.get("wall_seconds")) or "-"


if __name__ == "__main__":
    exit_with(main, command_line)
