"""Trains a deep Q-network for the Rubik's cube: Q(s,a), the moves to the solved cube by action a.

    walk      Q(s, the step back) -> k,  Q(s, the next step) -> k + 2,  k steps along a random walk
    bellman   Q(s,a) -> 1 + min_b Q-(s', b)

It learns first how far random walks have come, then from its own estimates of the next state
(classicrl/algorithms/q_iteration.py). Distances within a ball around the solved cube are exact.
--recipe paper is that of F. Agostinelli et al., "Q* Search" (arXiv 2102.04518): bellman alone.

--actions 156 and 1884 add sequences of two and three turns as actions; --trunk takes all layers
but the last from a network that was trained before. --recipe teacher learns such actions from a
network for 12:

    teacher   Q(s, abc) -> 1 + (Q12(s after ab, c) - 1) / 3     (classicrl/domains/cube3_teacher.py)

--function v learns the moves to the solved cube from a state, V(s), as A* is used to:

    walk      V(s) -> k             bellman   V(s) -> 1 + min_a V-(s after a)

agents/qstar_cube3_solve.py searches with the result.

The same command again continues the run.
"""

import dataclasses
from pathlib import Path
from typing import Any, Literal

from classicrl.command_line import (
    exit_with,
    may_change,
    not_recorded,
    parse,
    require_positive,
)


@dataclasses.dataclass(frozen=True)
class Config:
    """A step is one update; time is that of the training, evaluations included."""

    preset: Literal["cpu", "gpu"] = "cpu"
    """gpu: ten minutes of large batches, seldom interrupted."""

    actions: Literal[12, 156, 1884] = 12
    """Quarter turns, and sequences of up to two or three as well."""
    function: Literal["q", "v"] = "q"
    """q: Q of every action. v: V of the state alone."""
    minutes: float = 60.0
    """To train for; the learning rate and the change from walk to bellman follow the clock."""
    total_updates: int = 0
    """Updates to train for instead, so that the result can be reproduced; 0: by the clock."""
    seed: int = 0
    """Of the weights and all data."""
    device: Literal["auto", "cpu", "cuda"] = may_change("auto")
    """auto: the GPU if there is one."""
    threads: int = may_change(0)
    """CPU threads; 0: all that this process may use."""
    compile: bool = may_change(False)
    """Compile the networks with torch.compile: equal up to rounding, and not always faster
    (docs/performance.md)."""
    track: Literal["none", "wandb"] = may_change("none")
    """wandb: send the figures to Weights & Biases, too."""
    run_dir: Path | None = not_recorded(None)
    """Default: runs/qstar_cube3_train/cube3-<actions>/seed<seed>; where V is learned,
    qstar_cube3_train-v."""
    overwrite: bool = not_recorded(False)
    """Delete what an earlier run left there."""
    init_from: Path | None = None
    """Begin with the network of this run directory, model directory or model file; all else begins
    anew. A run that has a checkpoint continues from that."""

    embedding_size: int = 1024
    """Units of the first layer."""
    hidden_size: int = 256
    """Units of the layers after it."""
    num_blocks: int = 1
    """Residual blocks of two layers."""
    trunk: Path | None = None
    """A model file: all layers but the last start as there. A run that has a checkpoint continues
    from that."""

    recipe: Literal["default", "paper", "teacher"] = "default"
    """default: walk, then bellman. paper: bellman alone, on scrambles of up to 30 turns. teacher:
    from a network for 12 actions, for 156 and 1884."""
    teacher: Path | None = None
    """Its model file, or a run directory. Default: the network in the package."""
    walk_share: float = 0.7
    """Of the training that is walk, with --recipe default."""
    walk_length: int = 26
    """Turns of a walk: 26 reach every cube."""
    ball_depth: int = 6
    """Turns around the solved cube within which distances are known."""
    batch_size: int = 2_000
    """States per update."""
    learning_rate: float = 1e-3
    """Of Adam: constant for half of walk, then falling to a fiftieth."""
    bellman_learning_rate: float = 2e-4
    """Of Adam at the start of bellman, falling to a fiftieth."""
    temperature: float = 1 / 3
    """T, of the softmax over -Q from which bellman and teacher draw actions (not for V)."""
    target_period_updates: int = 500
    """The target network is copied every so many updates of bellman."""

    log_period_updates: int = may_change(200)
    """Updates between rows of metrics.csv."""
    evaluation_period_updates: int = may_change(5_000)
    """Updates between evaluations."""
    evaluation_cubes: int = may_change(10)
    """Full scrambles that a beam search is to solve in each."""
    final_evaluation_cubes: int = may_change(50)
    """In the last one."""
    evaluation_width: int = may_change(1_024)
    """Of that beam. Where V is learned, divided by the actions: all children are asked about."""
    checkpoint_period_updates: int = may_change(5_000)
    """Updates between checkpoints."""


if __name__ == "__main__":  # before torch is imported, so that --help answers at once
    presets = {
        "cpu": Config(),
        "gpu": Config(
            preset="gpu",
            device="cuda",
            minutes=10.0,
            num_blocks=2,
            batch_size=16_384,
            evaluation_period_updates=50_000,
            checkpoint_period_updates=50_000,
        ),
    }
    command_line = parse(presets, "cpu", __doc__ or "")

import math

import torch
from torch import Tensor, nn

from classicrl.algorithms.q_iteration import QIterationLearner
from classicrl.checkpoint import load_model, save_model
from classicrl.console import TrainingProgress, duration_in_words
from classicrl.cube_solver import (
    CUBE_PROTOCOL,
    UNSOLVED_RETURN,
    CubeEvaluator,
    CubeNetwork,
    load_network,
    shipped_network,
)
from classicrl.domains.cube3 import Cube3
from classicrl.domains.cube3_evaluation import NetworkEvaluator, Scores
from classicrl.domains.cube3_teacher import TaughtLabels, TurnTeacher
from classicrl.domains.cube3_walks import CubeWalks, WalkBatch
from classicrl.errors import UserError
from classicrl.experiment import MODEL_FILE, Run, StopRequest, versions
from classicrl.initial_weights import require_initial_weights, take_initial_weights
from classicrl.loggers import MeanMetrics, MetricsLog
from classicrl.machine import choose_device, compile_networks, describe, set_threads
from classicrl.networks.byte_q_network import ByteQNetwork
from classicrl.schedules import crossings
from classicrl.search.nodes import Perimeter
from classicrl.search.value import q_of_children
from classicrl.tracking import require_tracker
from classicrl.training_state import Counters, TrainingState

AGENT = "qstar_cube3_train"
PAPER_WALK_LENGTH = 30
TAUGHT_ACTIONS = 3  # of a state: the way back and two drawn ones
SOLVE_SEED = 1_000_000  # of the last evaluation's cubes
WALK_MODEL_FILE = "walk.safetensors"
DEPTHS = ("1_6", "7_12", "13_18", "19_30")  # turns of a walk, for the errors that are logged


@dataclasses.dataclass
class CubeCounters(Counters):
    """Steps are updates here."""

    bellman_updates: int = 0


def main(config: Config) -> dict[str, Any]:
    """Trains, or continues, or reports a finished run; returns the summary."""
    require_positive(
        config, may_be_zero={"seed", "threads", "total_updates", "walk_share", "ball_depth"},
        at_most_one={"walk_share"},
    )  # fmt: skip
    directory = config.run_dir or Path(
        f"runs/{agent_of(config)}/cube3-{config.actions}/seed{config.seed}"
    )
    require_tracker(config.track)
    require_initial_weights(
        config.init_from, directory, card_of(config), overwrite=config.overwrite
    )
    require_trunk(config, directory)
    require_teacher(config, directory)
    with Run(directory, overwrite=config.overwrite) as run, StopRequest() as stop:
        config = run.configure(config, lambda new: new)
        summary = run.summary
        if summary is None:
            summary = train(config, run, stop)
        scores, beam = summary["eval"], summary["beam"]
        print(
            f"{run.not_used_line}{summary['agent']}, {config.actions} actions, "
            f"{summary['num_updates']:,} updates in "
            f"{duration_in_words(summary['wall_seconds'])}: full scrambles solved in "
            f"{-scores['mean_return']:.2f} quarter turns (mean of {scores['episodes']}, preset "
            f"fast; unsolved counts {-UNSOLVED_RETURN:.0f}); a beam of {beam['width']:,} solves "
            f"{beam['solved']} of {beam['cubes']} ({summary['kept']} kept)\n"
            f"everything is in {directory}; solve with it: agents/qstar_cube3_solve.py --network "
            f"{directory / 'model.safetensors'} --random 5\n"
            f"curves: tensorboard --logdir {directory}"
        )
        return summary


def agent_of(config: Config) -> str:
    """By which its runs are known."""
    return AGENT + ("-v" if config.function == "v" else "")


def card_of(config: Config) -> dict[str, str]:
    """What a model file of the run says of itself."""
    card = {
        "agent": agent_of(config),
        "domain": "cube3",
        "actions": str(config.actions),
        "embedding_size": str(config.embedding_size),
        "hidden_size": str(config.hidden_size),
        "num_blocks": str(config.num_blocks),
    }
    return card | ({"function": "v"} if config.function == "v" else {})


def summed_by_depth(steps: Tensor, squared_error: Tensor) -> dict[str, Tensor]:
    """Squared errors of a batch's states [B] and their number, by how long their walks were [B]."""
    sums = {}
    for depth in DEPTHS:
        low, high = map(int, depth.split("_"))
        inside = (steps >= low) & (steps <= high)
        sums[f"errors_{depth}"] = torch.where(inside, squared_error, 0.0).sum()
        sums[f"states_{depth}"] = inside.sum()
    return sums


def network_of(config: Config, domain: Cube3) -> ByteQNetwork:
    """A new network of the sizes asked for."""
    return ByteQNetwork(
        domain.feature_offsets,
        domain.num_features,
        1 if config.function == "v" else len(domain.sequences),
        embedding_size=config.embedding_size,
        hidden_size=config.hidden_size,
        num_blocks=config.num_blocks,
        mean_output=1.0 if config.recipe == "paper" else config.walk_length / domain.max_turns / 2,
        generator=torch.Generator().manual_seed(config.seed),
    )


def train(config: Config, run: Run, stop: StopRequest) -> dict[str, Any]:
    """The whole of the training, from nothing or from the last checkpoint; returns the summary."""
    device = choose_device(config.device)
    set_threads(config.threads)
    software = versions()
    paper = config.recipe == "paper"
    walk_share = {"default": config.walk_share, "paper": 0.0, "teacher": 1.0}[config.recipe]
    walk_length = PAPER_WALK_LENGTH if paper else config.walk_length
    walks_at_once = max(2_000, 16 * config.batch_size // walk_length)

    # -- The parts -----------------------------------------------------------------------------
    domain, turns = Cube3(config.actions, device=device), Cube3(12, device=device)
    m = domain.max_turns
    ball = None if paper else Perimeter(turns, turns.goal, config.ball_depth)
    generator = torch.Generator(device).manual_seed(config.seed)
    walks = CubeWalks(domain, walk_length, ball, generator)
    network = network_of(config, domain)
    learner = QIterationLearner(network.to(device), learning_rate=config.learning_rate)
    if config.compile:
        compile_networks(learner.online, learner.target)
    teacher = None
    if config.recipe == "teacher":
        q_of_turns = load_network(config.teacher or shipped_network(12), device).network
        teacher = TurnTeacher(domain, q_of_turns, ball, generator)
    of_value, num_actions = config.function == "v", len(domain.costs)
    evaluator = NetworkEvaluator(
        domain, ball, width=max(1, config.evaluation_width // (num_actions if of_value else 1))
    )
    means = MeanMetrics()
    card = card_of(config)

    def drawn_actions(states: Tensor, count: int) -> Tensor:
        """``count`` different actions of each state, [B, count]: the better, the likelier."""
        chances = torch.softmax(-learner.action_values(states) / config.temperature, dim=1)
        return torch.multinomial(chances, count, generator=generator)

    def taught(teacher: TurnTeacher, part: WalkBatch) -> TaughtLabels:
        """Labels of the longest way back along the walk, and of what the network would choose."""
        longest, shortest = part.actions[:, 2 * m - 2], part.actions[:, 0]
        back = torch.where(longest >= 0, longest, shortest)[:, None]
        drawn = drawn_actions(part.states, TAUGHT_ACTIONS - 1)
        return teacher.labels(part.states, torch.cat((back, drawn), 1))

    def next_cost(states: Tensor) -> Tensor:
        """Of next states [B]; but for the paper's recipe exact where it is known, and no less than
        beyond the ball."""
        cost = learner.next_cost(states)
        if paper:
            return torch.where(turns.is_goal(states), 0.0, cost)
        known = walks.distance(states)
        at_least = math.ceil((config.ball_depth + 1) / m)
        return torch.where(known.isinf(), cost.clamp(min=at_least), torch.ceil(known / m))

    def bellman_target(states: Tensor, steps: Tensor) -> tuple[Tensor, Tensor]:
        """Drawn actions [B] and targets [B]: 1 + cost of the next state.

        But for the paper's recipe no more than the walk and the action took.
        """
        action = drawn_actions(states, 1)[:, 0]
        cost = next_cost(domain.apply(states, action))
        if not paper:
            cost = torch.minimum(cost, torch.ceil(steps / m) + 1.0)
        return action, 1.0 + cost

    def value_target(states: Tensor, steps: Tensor) -> Tensor:
        """1 + the least cost of the next states [B]; as above, no more than the walk took."""
        cost = q_of_children(domain, next_cost)(states).amin(1)
        return cost if paper else torch.minimum(cost, torch.ceil(steps / m))

    def value_of(states: Tensor) -> Tensor:
        return learner.action_values(states)[:, 0]

    def only_output(states: Tensor) -> Tensor:
        """The index of V among the outputs, [B]."""
        return torch.zeros(len(states), dtype=torch.int64, device=device)

    def evaluate(cubes: int) -> Scores:
        if of_value:
            return evaluator.evaluate(q_of_children(domain, value_of), cubes, value_of)
        return evaluator.evaluate(learner.action_values, cubes)

    def fraction() -> float:
        """Of the training that is done."""
        if config.total_updates:
            return count.step / config.total_updates
        return state.seconds / (60.0 * config.minutes)

    def learning_rate(done: float) -> float:
        if done < walk_share:  # constant, then linear
            return config.learning_rate * max(0.02, min(1.0, 2.0 * (1.0 - done / walk_share)))
        done = (done - walk_share) / max(1e-9, 1.0 - walk_share)
        start = config.learning_rate if paper else config.bellman_learning_rate
        return start * max(0.02, 1.0 - done)

    # -- Where it stands -----------------------------------------------------------------------
    progress = TrainingProgress(config.total_updates or 1)
    count = CubeCounters()
    state = TrainingState(
        run.directory,
        count,
        parts={"learner": learner, "means": means, "walks": walks},
        model=learner.online,
        card=card,
        info={"versions": software},
        say=progress.say,
    )
    if not state.resume():
        if config.trunk is not None:
            take_trunk(learner.online, config.trunk)
        if config.init_from is not None:
            progress.say(take_initial_weights(learner.online, config.init_from, card))
        learner.sync_target()
    progress.begin_at(count.step)
    log = MetricsLog(
        run.directory,
        resume_step=count.step,
        evaluated_at_step=count.evaluated_at_step,
        track=config.track,
    )
    walk_model = run.directory / WALK_MODEL_FILE

    # -- The loop ------------------------------------------------------------------------------
    with progress, log:
        shown = {"loss": math.nan, "solved": math.nan, "length": math.nan}
        done = fraction()
        while done < 1.0 and not stop:
            if crossings(count.evaluated_at_step, count.step, config.evaluation_period_updates):
                count.evaluated_at_step = count.step
                scores = evaluate(config.evaluation_cubes)
                log.write_evaluation(count.step, scores.figures())
                progress.say(f"update {count.step:,}: {scores}")
                shown |= {"solved": scores.solved / scores.cubes, "length": scores.mean_length}
                if stop:
                    break

            part = walks.batch(config.batch_size, walks_at_once)
            rate = learning_rate(done)
            learner.set_learning_rate(rate)
            walking = done < walk_share
            if teacher is not None:
                metrics = learner.update_walk(part.states, *taught(teacher, part))
            elif walking and of_value:
                only = only_output(part.states)[:, None]
                metrics = learner.update_walk(part.states, only, part.costs[:, None])
            elif walking:
                metrics = learner.update_walk(part.states, part.actions, part.labels)
            else:
                if count.bellman_updates == 0:
                    save_model(walk_model, learner.online.state_dict(), card)
                if count.bellman_updates % config.target_period_updates == 0:
                    learner.sync_target()
                if of_value:
                    actions = only_output(part.states)
                    target = value_target(part.states, part.steps)
                else:
                    actions, target = bellman_target(part.states, part.steps)
                metrics = learner.update_bellman(part.states, actions, target)
                count.bellman_updates += 1
            metrics |= summed_by_depth(part.steps, metrics.pop("squared_error"))
            means.add({name: value[None] for name, value in metrics.items()})
            before, count.step, count.updates = count.step, count.step + 1, count.updates + 1
            done = fraction()

            if crossings(before, count.step, config.log_period_updates) or done >= 1.0:
                state.require_finite(means.peek().values())
                mean = means.pop()
                row = {
                    "charts/learning_rate": rate,
                    "charts/bellman": float(not walking),
                    "charts/states_per_second": progress.steps_per_second * config.batch_size,
                    "charts/wall_seconds": state.seconds,
                    "losses/q": mean["loss"],
                    "diagnostics/q": mean["q"],
                    "diagnostics/grad_norm": mean["grad_norm"],
                }
                for depth in DEPTHS:
                    states = mean.get(f"states_{depth}", 0.0)
                    error = mean[f"errors_{depth}"] / states if states else math.nan
                    row[f"losses/q_depth_{depth}"] = error
                log.write(count.step, row)
                shown["loss"] = mean["loss"]
                progress.total_steps = max(count.step, round(count.step / max(done, 1e-9)))
                progress.update(count.step, shown)
            if crossings(before, count.step, config.checkpoint_period_updates):
                state.require_finite(means.peek().values())
                state.save()

        state.require_finite(means.peek().values())
        state.save(last=True)
        log.flush()
        if stop:
            progress.say(f"stopped at update {count.step:,}; the same command continues")
            raise SystemExit(stop.exit_code)

        # -- The end: the better of walk and bellman by search, a summary ------------------------
        progress.say(f"trained; now it solves {config.final_evaluation_cubes} cubes")
        best = evaluate(config.final_evaluation_cubes)
        kept = "bellman" if count.bellman_updates else "teacher" if teacher is not None else "walk"
        if count.bellman_updates and walk_model.exists() and walk_share > 0.0:
            tensors, _ = load_model(walk_model)
            bellman = {name: tensor.clone() for name, tensor in network.state_dict().items()}
            network.load_state_dict(tensors)
            of_walk = evaluate(config.final_evaluation_cubes)
            progress.say(f"bellman: {best}\nwalk: {of_walk}")
            if of_walk.better_than(best):
                best, kept = of_walk, "walk"
            else:
                network.load_state_dict(bellman)
        save_model(
            run.directory / MODEL_FILE,
            network.state_dict(),
            {**card, "step": str(count.step)},
        )
        log.write_evaluation(count.step, best.figures())
        solved = CubeEvaluator(
            CubeNetwork(domain, network, card), seed=SOLVE_SEED, should_stop=lambda: bool(stop)
        ).play(config.final_evaluation_cubes)
        if solved is None:
            raise SystemExit(stop.exit_code)
        summary = {
            "agent": agent_of(config),
            "env_id": domain.name,
            "protocol": CUBE_PROTOCOL,
            "seed": config.seed,
            "total_steps": count.step,
            "num_updates": count.step,
            "num_states": count.step * config.batch_size,
            "kept": kept,
            "eval": solved.record() | {"seed": SOLVE_SEED},
            "beam": best.as_json() | {"width": evaluator.width},
            "steps_per_second": count.step / state.seconds,
            "wall_seconds": state.seconds,
            "num_parameters": sum(p.numel() for p in network.parameters()),
            "device": str(device),
            "machine": describe(device),
            "versions": software,
        }
        run.finish(summary)
        return summary


def require_teacher(config: Config, directory: Path) -> None:
    """Refuses a teacher that could not teach, before a run directory is made."""
    if config.recipe != "teacher":
        if config.teacher is not None:
            raise UserError("--teacher needs --recipe teacher")
        return
    if config.function == "v":
        raise UserError("--recipe teacher is for networks of Q: leave --function v out")
    if config.actions == 12:
        raise UserError("--recipe teacher is for sequences of turns: add --actions 156 or 1884")
    if config.teacher is not None:
        require_elsewhere("teacher", config.teacher, config, directory)
    path = config.teacher or shipped_network(12)
    network = load_network(path)
    if (actions := network.domain.max_turns) != 1:
        raise UserError(
            f"--teacher {path} must be for 12 actions; it judges {actions} turns at once"
        )
    if network.is_value:
        raise UserError(f"--teacher {path} must be a network of Q; it is one of V")


def require_trunk(config: Config, directory: Path) -> None:
    """Refuses a trunk that the run could not begin with, before anything is deleted or made."""
    if config.trunk is None or (not config.overwrite and (directory / "checkpoints").exists()):
        return
    require_elsewhere("trunk", config.trunk, config, directory)
    take_trunk(network_of(config, Cube3(config.actions)), config.trunk)


def require_elsewhere(flag: str, path: Path, config: Config, directory: Path) -> None:
    """Refuses a file that --overwrite would delete before it is read."""
    if config.overwrite and path.resolve().is_relative_to(directory.resolve()):
        raise UserError(
            f"--{flag} {path} lies in the run directory, which --overwrite empties: choose another "
            "--run-dir"
        )


def take_trunk(network: nn.Module, path: Path) -> None:
    """Copies all layers but the last from a model file."""
    tensors, _ = load_model(path)
    own = network.state_dict()
    for name, tensor in tensors.items():
        if name.startswith("head."):
            continue
        if name not in own or own[name].shape != tensor.shape:
            raise UserError(
                f"--trunk {path}: {name} is of another shape; give the sizes that it was trained "
                "with as --embedding-size, --hidden-size and --num-blocks"
            )
        own[name].copy_(tensor)


if __name__ == "__main__":
    exit_with(main, command_line)
