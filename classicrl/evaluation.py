"""Playing a policy without learning: scores over whole games, and a video of one."""

import contextlib
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from classicrl.console import limit_in_words
from classicrl.envs.atari import AtariProtocol, AtariSingle, AtariVector, make_atari
from classicrl.envs.gym_vector import GymProtocol, GymVector
from classicrl.errors import UserError
from classicrl.types import NO_LIMIT

Policy = Callable[[NDArray[Any]], NDArray[np.int64]]
"""Actions: ``[N, *obs_shape]`` -> int64 ``[N]``. One that remembers, or draws at random, is a
:class:`GamesPolicy` too."""


@runtime_checkable
class GamesPolicy(Protocol):
    """A policy that must know which games it plays, since it remembers or draws at random."""

    def begin(self, num_games: int, seed: int) -> None:
        """New games begin; the same seed plays them alike."""
        ...

    def keep(self, going_on: NDArray[np.bool_]) -> None:
        """Only those of its games go on, bool of their number; the others are not asked again."""
        ...

    def __call__(self, obs: NDArray[Any]) -> NDArray[np.int64]:
        """Actions in the games that go on, ``[N, *obs_shape]`` -> int64 ``[N]``."""
        ...


EVALUATION_SEED = 1_000_000  # far from the seeds that people train with
_VIDEO_SECONDS_PER_STEP = 4 / 60  # one step is 4 frames of a 60 Hz console


class Evaluation(NamedTuple):
    """Scores of whole games (all lives, rewards as the game gives them)."""

    returns: list[float]
    num_steps: list[int]
    epsilon: float
    max_frames_per_episode: int
    smoothness: Mapping[str, float] = {}  # of continuous actions; never written to
    limit_unit: Literal["frames", "steps", "turns"] = "frames"  # of max_frames_per_episode

    @property
    def mean_return(self) -> float:
        """Mean over the games."""
        return float(np.mean(self.returns))

    @property
    def std_return(self) -> float:
        """Sample standard deviation over the games; 0 for a single one."""
        return float(np.std(self.returns, ddof=1)) if len(self.returns) > 1 else 0.0

    def figures(self) -> dict[str, float]:
        """What ``evaluations.csv`` says of it; the limit is NaN where there is none."""
        limit = self.max_frames_per_episode
        return {
            "mean_return": self.mean_return,
            "std_return": self.std_return,
            "episodes": len(self.returns),
            "epsilon": self.epsilon,
            "max_frames_per_episode": limit if limit < NO_LIMIT else math.nan,
            **self.smoothness,
        }

    def record(self) -> dict[str, Any]:
        """What ``summary.json`` says of it: the same, with every game's return, from which
        intervals are made; the limit is a number that can be given again."""
        return {
            **self.figures(),
            "max_frames_per_episode": self.max_frames_per_episode,
            "returns": self.returns,
        }

    def __str__(self) -> str:
        return (
            f"{self.mean_return:.2f} +- {self.std_return:.2f} over {len(self.returns)} games "
            f"(epsilon {self.epsilon:g}, "
            f"{limit_in_words(self.max_frames_per_episode, self.limit_unit)})"
        )


def pooled(evaluations: Sequence[Evaluation]) -> Evaluation:
    """The games of several evaluations under the same rules as one."""
    return evaluations[0]._replace(
        returns=[r for one in evaluations for r in one.returns],
        num_steps=[n for one in evaluations for n in one.num_steps],
    )


def evaluation_epsilon(protocol: AtariProtocol) -> float:
    """Share of random actions in evaluation: 0.01 where the console is deterministic, else 0.

    Without it a greedy policy would play one and the same game, or wait for ever in Breakout.
    """
    return 0.01 if protocol.repeat_action_probability == 0.0 else 0.0


def epsilon_greedy(
    greedy: NDArray[np.int64], epsilon: float, num_actions: int, rng: np.random.Generator
) -> NDArray[np.int64]:
    """Replaces each of ``[N]`` actions, with probability epsilon, by a uniformly random one."""
    explore = rng.random(len(greedy)) < epsilon
    return np.where(explore, rng.integers(num_actions, size=len(greedy)), greedy)


def members_epsilon_greedy(
    greedy: NDArray[np.int64],
    epsilon: float,
    num_actions: int,
    rngs: Sequence[np.random.Generator],
) -> NDArray[np.int64]:
    """:func:`epsilon_greedy` for K members side by side, each drawing with its own generator.

    int64 ``[K, N] -> [K * N]``; a member's actions are those that it would take alone.
    """
    num_envs = greedy.shape[1]
    drawn = [(rng.random(num_envs), rng.integers(num_actions, size=num_envs)) for rng in rngs]
    explore = np.concatenate([chance for chance, _ in drawn]) < epsilon
    return np.where(explore, np.concatenate([action for _, action in drawn]), greedy.ravel())


def acting_distribution(
    greedy: NDArray[np.int64], epsilon: float, num_actions: int
) -> NDArray[np.float32]:
    """What :func:`epsilon_greedy` draws from: epsilon / A each, the rest on the greedy action.

    int64 ``[N]`` -> float32 ``[N, A]``.
    """
    acting = np.full((len(greedy), num_actions), epsilon / num_actions, dtype=np.float32)
    acting[np.arange(len(greedy)), greedy] += 1.0 - epsilon
    return acting


class AtariEvaluator:
    """Plays whole games with a policy, on seeds that no training uses.

    Args:
        policy: greedy actions.
        env_id, protocol: the game and its rules.
        seed: the same seed plays the same games.
        epsilon: share of random actions; None for what :func:`evaluation_epsilon` says.
        num_threads: for the emulators; 0 for all that this process may use.
        should_stop: asked at every step; what is under way is then given up.
    """

    def __init__(
        self,
        policy: Policy,
        env_id: str,
        protocol: AtariProtocol,
        *,
        seed: int = 0,
        epsilon: float | None = None,
        num_threads: int = 0,
        should_stop: Callable[[], bool] = lambda: False,
    ) -> None:
        self.policy = policy
        self.env_id = env_id
        self.protocol = protocol
        self.seed = seed + EVALUATION_SEED
        self.epsilon = evaluation_epsilon(protocol) if epsilon is None else epsilon
        self.num_threads = num_threads
        self.should_stop = should_stop

    def play(self, episodes: int) -> Evaluation | None:
        """Plays ``episodes`` games side by side, each from its own seed.

        Every environment contributes exactly its first game, so short games do not crowd out long
        ones.

        Returns:
            The scores, or None if it was stopped before the last game was over.
        """
        env = make_atari(
            self.env_id,
            episodes,
            protocol=self.protocol,
            seed=self.seed,
            num_threads=self.num_threads,
        )
        cap = self.protocol.max_frames_per_episode
        return _play_first_games(env, self.policy, self.epsilon, self.seed, cap, self.should_stop)

    def record_gif(self, path: Path, max_steps: int = 900) -> bool:
        """Plays one game and writes its screens as a GIF, one picture per two steps.

        Args:
            path: of the GIF.
            max_steps: recording stops here (900 steps are a minute of play).

        Returns:
            Whether it was written: not if it was stopped.
        """
        env = AtariSingle(self.env_id, protocol=self.protocol, seed=self.seed)
        rng = np.random.default_rng([self.seed, 2])
        begin_games(self.policy, 1, self.seed)
        obs, screens = env.reset(), [env.render()]
        for count in range(1, max_steps + 1):
            if self.should_stop():
                env.close()
                return False
            action = epsilon_greedy(self.policy(obs), self.epsilon, env.num_actions, rng)
            step = env.step(action)
            obs = step.obs
            if step.ended[0]:
                break
            if count % 2 == 0:
                screens.append(env.render())
        env.close()
        write_gif(path, screens, milliseconds=2 * _VIDEO_SECONDS_PER_STEP * 1000)
        return True


class GymEvaluator:
    """As :class:`AtariEvaluator`, for gymnasium environments. A frame is a step there.

    Args:
        policy: greedy actions.
        env_id, protocol: the environment and its rules.
        seed: the same seed plays the same episodes.
        epsilon: share of random actions; None for what the protocol says.
        should_stop: asked at every step; what is under way is then given up.
    """

    def __init__(
        self,
        policy: Policy,
        env_id: str,
        protocol: GymProtocol,
        *,
        seed: int = 0,
        epsilon: float | None = None,
        should_stop: Callable[[], bool] = lambda: False,
    ) -> None:
        self.policy = policy
        self.env_id = env_id
        self.protocol = protocol
        self.seed = seed + EVALUATION_SEED
        self.epsilon = protocol.evaluation_epsilon if epsilon is None else epsilon
        self.should_stop = should_stop

    def play(self, episodes: int) -> Evaluation | None:
        """As :meth:`AtariEvaluator.play`."""
        env = self._make(episodes)
        cap = env.max_episode_steps
        scores = _play_first_games(env, self.policy, self.epsilon, self.seed, cap, self.should_stop)
        return None if scores is None else scores._replace(limit_unit="steps")

    def require_gif(self) -> None:
        """Refuses an environment of which :meth:`record_gif` can show nothing.

        Raises:
            UserError: if it shows no board.
        """
        with contextlib.closing(self._make(1)) as env:
            if len(env.obs_shape) != 3:
                raise UserError(
                    f"{self.env_id} shows numbers, not a board: there is no video of it"
                )

    def record_gif(self, path: Path, max_steps: int = 600) -> bool:
        """Plays one game on a board and writes it as a GIF, one picture per step.

        Raises:
            UserError: as :meth:`require_gif`.
        """
        self.require_gif()
        env = self._make(1)
        rng = np.random.default_rng([self.seed, 2])
        begin_games(self.policy, 1, self.seed)
        obs = env.reset()
        pictures = [_board_picture(obs[0])]
        for _ in range(max_steps):
            if self.should_stop():
                env.close()
                return False
            action = epsilon_greedy(self.policy(obs), self.epsilon, env.num_actions, rng)
            step = env.step(action)
            if step.ended[0]:
                break
            obs = step.obs
            pictures.append(_board_picture(obs[0]))
        env.close()
        write_gif(path, pictures, milliseconds=100)
        return True

    def _make(self, num_envs: int) -> GymVector:
        return GymVector(
            self.env_id,
            num_envs,
            seeds=self.seed,
            max_episode_steps=self.protocol.max_episode_steps,
        )


def _play_first_games(
    env: AtariSingle | AtariVector | GymVector,
    policy: Policy,
    epsilon: float,
    seed: int,
    max_frames_per_episode: int,
    should_stop: Callable[[], bool],
) -> Evaluation | None:
    """The first game of every environment, so short games do not crowd out long ones."""
    num_games = env.num_envs
    rng = np.random.default_rng([seed, 1])
    returns = np.zeros(num_games)
    num_steps = np.zeros(num_games, dtype=np.int64)
    playing = np.ones(num_games, dtype=np.bool_)
    begin_games(policy, num_games, seed)
    obs: NDArray[Any] = env.reset()
    try:
        while playing.any():
            if should_stop():
                return None
            action = np.zeros(num_games, dtype=np.int64)
            action[playing] = epsilon_greedy(policy(obs[playing]), epsilon, env.num_actions, rng)
            step = env.step(action)
            returns[playing] += step.reward[playing]
            num_steps[playing] += 1
            keep_games(policy, ~step.ended[playing])
            playing &= ~step.ended
            obs = step.obs
    finally:
        env.close()
    return Evaluation(returns.tolist(), num_steps.tolist(), epsilon, max_frames_per_episode)


def begin_games(policy: Policy, num_games: int, seed: int) -> None:
    """Tells a policy that wants to know that games begin."""
    if isinstance(policy, GamesPolicy):
        policy.begin(num_games, seed)


def keep_games(policy: Policy, going_on: NDArray[np.bool_]) -> None:
    """Tells a policy that wants to know which of its games go on."""
    if isinstance(policy, GamesPolicy):
        policy.keep(going_on)


def write_gif(path: Path, screens: list[NDArray[np.uint8]], milliseconds: float) -> None:
    """Writes pictures ``[H, W, 3]`` as an animation that shows each for some milliseconds."""
    # One palette for all: consoles show few colours, and shared ones pack far better.
    first = Image.fromarray(np.concatenate(screens[:: max(1, len(screens) // 8)])).quantize(128)
    pictures = [
        Image.fromarray(s).quantize(palette=first, dither=Image.Dither.NONE) for s in screens
    ]
    pictures[0].save(
        path,
        save_all=True,
        append_images=pictures[1:],
        duration=round(milliseconds),
        loop=0,
        optimize=False,
    )


def _board_picture(board: NDArray[np.uint8], pixels: int = 16) -> NDArray[np.uint8]:
    """A colour for every kind of thing on a board ``[10, 10, C]``; the last kind lies on top."""
    hues = np.arange(board.shape[-1]) / board.shape[-1]
    kinds = 0.55 + 0.45 * np.cos(2 * np.pi * (hues[:, None] - np.array([0.0, 1 / 3, 2 / 3])))
    colours = np.concatenate([[[0.05, 0.05, 0.08]], kinds])
    top = np.max(board * (1 + np.arange(board.shape[-1])), axis=-1)  # 0 where there is nothing
    picture: NDArray[np.uint8] = (255 * colours[top]).clip(0, 255).astype(np.uint8)
    return picture.repeat(pixels, axis=0).repeat(pixels, axis=1)
