"""Symphony on MuJoCo, or any other gymnasium environment with continuous actions.

    L = mean H(q_k(s,u) - y)  -  mean J((Q'(s',u') - base) / |base|)  +  Sw(sigma', beta')

arXiv 2512.10477: a deterministic actor and three critics of many heads, one loss, one optimiser
step per update, and a replay whose memories fade with age. The actor is improved at the next
observation, through the frozen target critics. docs/symphony.md has the equations, every figure
logged and every deviation. --member picks the variant of the paper:

    s3   the default
    se   sample-efficient: less noise in actions
    s2   smaller steps, half of each gradient dropped, a longer warm-up
    ed   a smaller network and batch, 2 updates per step

--preset picks where the other defaults come from; any flag given wins over its preset:

    default    as the member says
    mini       for classic control and CPUs: 64 units, a warm-up of 1,000 steps
    humanoid   the paper's main run: Humanoid-v4, actions of +-1, forced falls
    gpu        humanoid, evaluated as in the paper

The first steps (--warmup-steps) are played by the untrained policy with its noise; then come
--updates-per-step updates after every step. The same command again continues the run.
"""

import dataclasses
import math
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
    """A step is one action in one environment. What is None comes from the member."""

    member: Literal["s3", "se", "s2", "ed"] = "s3"
    """Variant of the paper."""
    preset: Literal["default", "mini", "humanoid", "gpu"] = "default"
    """Where the defaults come from."""
    env_id: str = "Humanoid-v5"
    """Any environment of gymnasium with vectors of numbers as observations and actions."""
    total_steps: int = may_change(300_000)
    """Steps to train for, the warm-up among them."""
    seed: int = 0
    """Of everything random."""
    num_envs: int = 1
    """Environments side by side; n of them make n times the updates per step of all."""
    device: Literal["auto", "cpu", "cuda"] = may_change("auto")
    """auto: the GPU if there is one."""
    threads: int = may_change(0)
    """CPU threads; 0: all that this process may use. 1 makes resuming exact to the bit."""
    compile: bool = may_change(False)
    """Compile the networks with torch.compile: equal up to rounding, and not always faster
    (docs/performance.md)."""
    track: Literal["none", "wandb"] = may_change("none")
    """wandb: send the figures to Weights & Biases, too."""
    cuda_graph: bool = may_change(True)
    """On a GPU: all updates of a step as one CUDA graph."""
    tf32: bool = may_change(True)
    """On a GPU: matrix products in TF32."""
    run_dir: Path | None = not_recorded(None)
    """Default: runs/symphony_mujoco-<member>/<environment>-control/seed<seed>."""
    overwrite: bool = not_recorded(False)
    """Delete what an earlier run left in the run directory."""
    init_from: Path | None = None
    """Begin with the actor of this run directory, model directory or model file: it plays the
    warm-up. Critics and all else begin anew. A run that has a checkpoint continues from that."""

    action_scale: float | None = None
    """Actions are the middle of the environment's range +- this. Default: half the range. Nothing
    is clipped: MuJoCo clamps what it applies, but a control cost sees the action itself."""
    end_noise_only: bool = False
    """In the last 51 steps before an episode would be cut, only noise acts, so that a robot falls
    and an end is stored. For tasks whose episodes end by falling."""
    obs_norm: bool = False
    """Standardise observations by the warm-up's mean and deviation. Off in the paper."""
    gamma: float = 0.99
    """Discount per step."""
    noise_std: float | None = None
    """Deviation of the noise in actions, before it is clipped to +-1. 1/e; se: 1/pi."""
    grad_dropout: bool | None = None
    """Drop half of each gradient behind every network. s2 only."""
    learning_rate: float | None = None
    """1e-4; s2: 5e-5."""
    weight_decay: float = 0.01
    """Of all parameters."""
    target_rate: float = 0.005
    """Share of the online critics that goes into the target ones after every update."""
    ema_decay: float = 0.618033988749895
    """Weight of the running mean of values in the baseline of advantages."""
    advantage_floor: float = 1e-3
    """Least denominator of an advantage; the authors have none."""
    hidden: int | None = None
    """Units of every layer. 512; ed: 384."""
    heads_per_critic: int | None = None
    """A quarter of the units."""
    batch_size: int | None = None
    """Transitions per update. 384; ed: 288."""
    updates_per_step: int | None = None
    """3; ed: 2."""
    warmup_steps: int | None = None
    """Steps before the first update. 10,240; s2: 20,480; ed: 7,680."""
    warmup_replication: int | None = None
    """How many copies of the warm-up the replay begins with; 50, s2: 25. Their product with the
    warm-up's steps is the capacity; in a run much shorter than that, most draws are of the warm-up
    to the end."""
    terminal_keep: Literal["once", "forever", "off"] = "once"
    """How often an episode's last transition is spared from being overwritten."""

    log_period_steps: int = may_change(1_000)
    """Steps between rows of metrics.csv."""
    evaluation_period_steps: int = may_change(10_000)
    """Steps between evaluations."""
    evaluation_episodes: int = may_change(10)
    """Episodes in each."""
    final_evaluation_episodes: int = may_change(25)
    """Episodes in the last one."""
    checkpoint_period_steps: int = may_change(10_000)
    """Steps between checkpoints."""
    checkpoint_replay: Literal["full", "none"] = may_change("full")
    """none: leave the replay out; a resume then refills it with the policy of that time."""
    video: bool = may_change(True)
    """Draw one episode at the end, where this machine can."""


_HUMANOID = Config(preset="humanoid", env_id="Humanoid-v4", action_scale=1.0, end_noise_only=True)
PRESETS = {
    "default": Config(),
    "mini": Config(
        preset="mini",
        env_id="Pendulum-v1",
        total_steps=10_000,
        hidden=64,
        heads_per_critic=16,
        batch_size=64,
        warmup_steps=1_000,
        warmup_replication=10,  # a ring as long as the run: docs/symphony.md, Pendulum
        updates_per_step=3,
        learning_rate=1e-3,
        log_period_steps=500,
        evaluation_period_steps=2_000,
        checkpoint_period_steps=5_000,
    ),
    "humanoid": _HUMANOID,
    "gpu": dataclasses.replace(
        _HUMANOID,
        preset="gpu",
        evaluation_period_steps=2_500,
        evaluation_episodes=25,
        checkpoint_period_steps=50_000,
    ),
}

MEMBERS: dict[str, dict[str, Any]] = {
    "s3": {},
    "se": {"noise_std": 1 / math.pi},
    "s2": {
        "grad_dropout": True,
        "learning_rate": 5e-5,
        "warmup_steps": 20_480,
        "warmup_replication": 25,
    },
    "ed": {"hidden": 384, "batch_size": 288, "updates_per_step": 2, "warmup_steps": 7_680},
}
_S3 = {
    "noise_std": 1 / math.e,
    "grad_dropout": False,
    "learning_rate": 1e-4,
    "hidden": 512,
    "batch_size": 384,
    "updates_per_step": 3,
    "warmup_steps": 10_240,
    "warmup_replication": 50,
}


def resolve(config: Config) -> Config:
    """Fills in what the member says."""
    values = {**_S3, **MEMBERS[config.member]}
    values["heads_per_critic"] = (config.hidden or values["hidden"]) // 4
    open_fields = {k: v for k, v in values.items() if getattr(config, k) is None}
    return dataclasses.replace(config, **open_fields)


if __name__ == "__main__":  # before torch is imported, so that --help answers at once
    command_line = parse(PRESETS, "default", __doc__ or "")

import contextlib

import numpy as np
import torch
from numpy.typing import NDArray

from classicrl.algorithms.symphony import METRICS, CudaGraphUpdates, SymphonyLearner
from classicrl.console import TrainingProgress
from classicrl.control_evaluation import ControlEvaluator
from classicrl.envs.continuous import CONTROL_PROTOCOLS, ContinuousVector
from classicrl.errors import UserError
from classicrl.experiment import Run, StopRequest, versions
from classicrl.initial_weights import require_initial_weights, take_initial_weights
from classicrl.loggers import EpisodeStatistics, MeanMetrics, MetricsLog
from classicrl.machine import choose_device, compile_networks, describe, require_memory, set_threads
from classicrl.networks.symphony import SymphonyActor, SymphonyCritics, init_symphony_
from classicrl.replay.fading import FadingReplay, fading_nbytes
from classicrl.schedules import crossings
from classicrl.smoothness import SmoothnessMeter
from classicrl.tracking import require_tracker
from classicrl.training_state import Counters, TrainingState

AGENT = "symphony_mujoco"
PROTOCOL = CONTROL_PROTOCOLS["control"]
PROGRESS_PERIOD_STEPS = 50
FORCED_FALL_STEPS = 50


def main(config: Config) -> dict[str, Any]:
    """Trains, or continues, or reports a finished run; returns its summary."""
    require_positive(
        config,
        may_be_zero={"seed", "threads", "weight_decay"},
        at_most_one={"gamma", "target_rate", "ema_decay"},
    )
    game = f"{config.env_id.replace('/', '-')}-{PROTOCOL.name}"
    agent = f"{AGENT}-{config.member}"
    directory = config.run_dir or Path(f"runs/{agent}/{game}/seed{config.seed}")
    require_tracker(config.track)
    require_initial_weights(
        config.init_from,
        directory,
        card_of(config),
        overwrite=config.overwrite,
        network=lambda: actor_of(
            resolve(config), ContinuousVector(config.env_id, 1, seeds=config.seed)
        ),
    )
    with Run(directory, overwrite=config.overwrite) as run, StopRequest() as stop:
        config = run.configure(config, resolve)
        if not config.heads_per_critic:
            raise UserError(f"--hidden {config.hidden} leaves critics without heads: 4 or more")
        summary = run.summary
        if summary is None or summary["total_steps"] < config.total_steps:
            summary = train(config, run, stop)
        print(run.closing_lines(summary))
        return summary


def card_of(config: Config) -> dict[str, str]:
    """What a model file of the run says of itself."""
    return {
        "agent": f"{AGENT}-{config.member}",
        "env_id": config.env_id,
        "protocol": PROTOCOL.name,
        "torso": "symphony",
        "head": "actor",
    }


def actor_of(config: Config, envs: ContinuousVector) -> SymphonyActor:
    """The actor that a resolved configuration asks for, its weights not yet set."""
    scale = envs.half_range
    if config.action_scale is not None:
        scale = np.full(envs.action_size, config.action_scale, dtype=np.float32)
    return SymphonyActor(
        envs.obs_size,
        envs.action_size,
        config.hidden,
        centre=envs.centre,
        scale=scale,
        grad_dropout=config.grad_dropout,
        obs_norm=config.obs_norm,
    )


def train(config: Config, run: Run, stop: StopRequest) -> dict[str, Any]:
    """The whole of the training, from nothing or from the last checkpoint; returns the summary."""
    device = choose_device(config.device)
    set_threads(config.threads)
    software = versions()
    N, G = config.num_envs, config.updates_per_step
    warmup_steps, batch_size = config.warmup_steps, config.batch_size
    if warmup_steps % N:
        raise UserError(f"--warmup-steps {warmup_steps} must be a multiple of --num-envs {N}")
    if device.type == "cuda" and config.tf32:
        torch.set_float32_matmul_precision("high")

    # -- The parts -----------------------------------------------------------------------------
    envs = ContinuousVector(
        config.env_id,
        N,
        seeds=[config.seed * 1_000 + n for n in range(N)],
        max_episode_steps=PROTOCOL.max_episode_steps,
    )
    S, A = envs.obs_size, envs.action_size
    rows = warmup_steps * config.warmup_replication
    if device.type == "cpu":  # which gives memory only to what is written
        rows = min(rows, config.total_steps)
    require_memory(
        fading_nbytes(S, A, warmup_steps, rows),
        device,
        what=f"a replay of {rows:,} transitions",
        flag="--warmup-replication or --total-steps",
    )
    # Streams of their own for the first weights, for the noise, and for draws from the replay.
    words = np.random.SeedSequence(config.seed).generate_state(3)
    init_seed, noise_seed, replay_seed = map(int, words)
    generator = torch.Generator().manual_seed(init_seed)
    actor = actor_of(config, envs)
    critics = SymphonyCritics(
        S,
        A,
        config.hidden,
        config.heads_per_critic,
        grad_dropout=config.grad_dropout,
        obs_norm=config.obs_norm,
    )
    for network in (actor, critics):
        init_symphony_(network, generator)
    learner = SymphonyLearner(
        actor.to(device),
        critics.to(device),
        learning_rate=config.learning_rate,
        weight_decay=config.weight_decay,
        target_rate=config.target_rate,
        noise_std=config.noise_std,
        ema_decay=config.ema_decay,
        advantage_floor=config.advantage_floor,
        seed=noise_seed,
    )
    if config.compile:
        # The target's values are asked for by another method than the one that would be compiled.
        compile_networks(actor, critics)
    replay = FadingReplay(
        S,
        A,
        warmup_steps=warmup_steps,
        replication=config.warmup_replication,
        gamma=config.gamma,
        terminal_keep=config.terminal_keep,
        device=device,
        seed=replay_seed,
        save_rows=config.checkpoint_replay == "full",
    )
    graph = None
    if device.type == "cuda" and config.cuda_graph:
        graph = CudaGraphUpdates(
            learner,
            replay.sample,
            [replay.generator],
            batch_size=batch_size,
            num_updates=N * G,
        )
    episodes = EpisodeStatistics(N)
    discounted = EpisodeStatistics(N, gamma=config.gamma)
    means = MeanMetrics()
    meter = SmoothnessMeter(N, envs.low, envs.high, dt=envs.dt, weight=envs.weight)

    @torch.no_grad()
    def policy(obs: NDArray[Any]) -> NDArray[np.float32]:
        """The deterministic policy, in the environment's units."""
        action = learner.act(torch.from_numpy(obs).to(device), explore=False)
        return actor.env_action(action).cpu().numpy()

    evaluator = ControlEvaluator(
        policy, config.env_id, PROTOCOL, seed=config.seed, should_stop=lambda: bool(stop)
    )

    # -- Where it stands: at nothing, or at the last checkpoint --------------------------------
    progress = TrainingProgress(config.total_steps)
    count = Counters()
    state = TrainingState(
        run.directory,
        count,
        parts={
            "learner": learner,
            "replay": replay,
            "envs": envs,
            "episodes": episodes,
            "discounted": discounted,
            "means": means,
            "meter": meter,
        },
        model=actor,
        card=card_of(config),
        info={"versions": software},
        say=progress.say,
    )
    refill_left = 0
    if state.resume():
        obs = envs.observation()
        if not envs.resumed_exactly:  # new episodes have begun
            progress.say(f"{config.env_id} cannot be continued exactly: new episodes begin")
            for part in (episodes, discounted, meter):
                part.begin_new_episodes()
        if not replay.warmup_done:
            refill_left = min(count.step, warmup_steps) - replay.num_warmup
        if refill_left:
            progress.say(
                f"the checkpoint lacks its replay: {refill_left:,} steps of the present policy "
                "refill it first"
            )
    else:
        obs = envs.reset()
        if config.init_from is not None:
            # What the environment says of its actions stays.
            progress.say(
                take_initial_weights(
                    actor, config.init_from, card_of(config), keep=("centre", "scale")
                )
            )
            if actor.obs_norm is not None:
                learner.set_obs_norm(actor.obs_norm.mean, actor.obs_norm.std)
    progress.begin_at(count.step)
    log = MetricsLog(
        run.directory,
        resume_step=count.step,
        evaluated_at_step=count.evaluated_at_step,
        track=config.track,
    )

    def gain_of_policy() -> torch.Tensor | None:
        """0 for environments in which only noise shall act now, ``[N, 1]``."""
        if not config.end_noise_only:
            return None
        # The step that is played next is number running_steps + 1 of its episode.
        falling = discounted.running_steps + 1 >= envs.max_episode_steps - FORCED_FALL_STEPS
        return torch.from_numpy((~falling)[:, None].astype(np.float32)).to(device)

    # -- The loop ------------------------------------------------------------------------------
    with progress, log, contextlib.closing(envs):
        shown = {"return": math.nan, "loss": math.nan, "gain": math.nan}
        while count.step < config.total_steps and not stop:
            if crossings(count.evaluated_at_step, count.step, config.evaluation_period_steps):
                scores = evaluator.play(config.evaluation_episodes)
                if scores is None:  # stopped; the resumed run begins with this evaluation
                    break
                count.evaluated_at_step = count.step
                log.write_evaluation(count.step, scores.figures())
                progress.say(f"step {count.step:,}: evaluation {scores}")

            before, after = count.step, count.step + N
            action = learner.act(torch.from_numpy(obs).to(device), policy_gain=gain_of_policy())
            told = actor.env_action(action).cpu().numpy()
            envs.send(told)
            result = envs.recv()
            next_obs = result.obs.copy()
            next_obs[result.ended] = result.final_obs
            replay.add(obs, action.cpu().numpy(), result.reward, result.terminated, next_obs)
            obs = result.obs
            episodes.add(result.reward, result.ended)
            discounted.add(result.reward, result.ended)
            meter.add(told, result.ended, result.power, result.position)
            if not replay.warmup_done and replay.num_warmup == warmup_steps:
                progress.say(
                    f"the warm-up is over: rewards are divided by {replay.finish_warmup():.4g}"
                )
                if config.obs_norm and not refill_left and config.init_from is None:
                    learner.set_obs_norm(*replay.obs_moments())
            if refill_left:  # these steps make up for others that the run has counted already
                refill_left = max(0, refill_left - N)
                count.refill_steps += N
                continue

            count.step = after
            if after > warmup_steps:
                metrics = (
                    learner.update(replay.sample(N * G * batch_size), num_updates=N * G)
                    if graph is None
                    else graph()
                )
                means.add(metrics)
                count.updates += N * G

            if crossings(before, after, config.log_period_steps) or after >= config.total_steps:
                state.require_finite(means.peek().values())
                mean = means.pop()
                reward_scale = replay.reward_scale or math.nan
                row = {
                    "charts/episodic_return": episodes.recent_mean(),
                    "charts/episodes": episodes.num_episodes,
                    "charts/updates": count.updates,
                    "charts/steps_per_second": progress.steps_per_second,
                    "charts/wall_seconds": state.seconds,
                    "charts/reward_scale": reward_scale,
                    "charts/scaled_discounted_return": discounted.recent_mean() / reward_scale,
                    "losses/td": mean.get("critic", math.nan),
                    "losses/actor": mean.get("actor", math.nan),
                    "losses/action_scale": mean.get("action_scale", math.nan),
                }
                for name in METRICS[3:]:
                    row[f"diagnostics/{name}"] = mean.get(name, math.nan)
                for name, value in meter.pop().items():
                    row[f"smoothness/{name}"] = value
                log.write(after, row)
                shown = {"return": row["charts/episodic_return"], "loss": row["losses/td"]}
                shown["gain"] = row["diagnostics/action_gain"]
            if crossings(before, after, PROGRESS_PERIOD_STEPS) or after >= config.total_steps:
                progress.update(after, shown)
            if crossings(before, after, config.checkpoint_period_steps):
                state.require_finite(means.peek().values())
                state.save()

        state.require_finite(means.peek().values())
        state.save(last=True)
        log.flush()
        if stop:
            progress.say(f"stopped at step {count.step:,}; the same command continues")
            raise SystemExit(stop.exit_code)

        # -- The end: a last evaluation, a video, the summary ----------------------------------
        progress.say(f"trained; now it plays {config.final_evaluation_episodes} games")
        scores = evaluator.play(config.final_evaluation_episodes)
        if scores is None:
            raise SystemExit(stop.exit_code)
        log.write_evaluation(count.step, scores.figures())
        if config.video:
            video = run.directory / "video.gif"
            try:
                if not evaluator.record_gif(video):
                    raise SystemExit(stop.exit_code)
                log.gif(count.step, "eval/game", video)
            except UserError as error:
                progress.say(f"no video: {error}")
        summary = {
            "agent": f"{AGENT}-{config.member}",
            "env_id": config.env_id,
            "protocol": PROTOCOL.name,
            "seed": config.seed,
            "total_steps": config.total_steps,
            "num_updates": count.updates,
            "eval": scores.record(),
            "reward_scale": replay.reward_scale,
            "steps_per_second": count.step / state.seconds,
            "wall_seconds": state.seconds,
            "refill_steps": count.refill_steps,
            "num_parameters": sum(p.numel() for p in learner.parameters),
            "device": str(device),
            "machine": describe(device),
            "versions": software,
        }
        run.finish(summary)
        return summary


if __name__ == "__main__":
    exit_with(main, command_line)
