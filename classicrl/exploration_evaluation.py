"""Playing a policy without learning, to see how it explores: rooms visited, and the bonus drawn
under the game.

The games are played by single emulators, whose memory can be read: where the agent stands is a byte
of it in some games.
"""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from classicrl.algorithms.rnd import RND
from classicrl.envs.atari import AtariProtocol, AtariSingle
from classicrl.evaluation import (
    EVALUATION_SEED,
    Evaluation,
    Policy,
    begin_games,
    keep_games,
    write_gif,
)

ROOM_BYTE = {"ALE/MontezumaRevenge-v5": 3, "ALE/Pitfall-v5": 1}
"""Where in the console's memory the number of the room stands."""

_MILLISECONDS_PER_PICTURE = 133  # two steps of 4 frames at 60 Hz
_PLOT_HEIGHT = 64
_BACKGROUND, _LINE, _MARK, _TEXT = (16, 18, 24), (90, 200, 250), (250, 160, 60), (200, 205, 215)


class Rooms:
    """The rooms that evaluated games have visited, and the first step at which each was seen."""

    def __init__(self) -> None:
        self.first_visits: dict[int, int] = {}  # room -> steps that the agent had been trained for

    def record(self) -> dict[str, Any]:
        """What ``summary.json`` says of them."""
        return {"visited": len(self.first_visits), "first_seen_at_step": self.first_visits}

    def state_dict(self) -> dict[str, Any]:
        """The visits."""
        return {"first_visits": dict(self.first_visits)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continues the record."""
        self.first_visits = {int(k): int(v) for k, v in state["first_visits"].items()}


class Trace(NamedTuple):
    """One game, step by step."""

    score: list[float]  # [steps]
    bonus: list[float]  # [steps], raw intrinsic reward of each step; empty without RND
    room: list[int]  # [steps], empty where the game's rooms are not known
    screens: list[NDArray[np.uint8]]  # [steps + 1] of [210, 160, 3]


class ExplorationEvaluator:
    """Plays whole games with a policy and watches where it goes.

    Args:
        policy: actions.
        rnd: the bonus that is drawn; None for none.
        env_id, protocol: the game and its rules.
        seed: the same seed plays the same games, on seeds that no training uses.
        should_stop: asked at every step; what is under way is then given up.
    """

    def __init__(
        self,
        policy: Policy,
        rnd: RND | None,
        env_id: str,
        protocol: AtariProtocol,
        *,
        seed: int = 0,
        should_stop: Callable[[], bool] = lambda: False,
    ) -> None:
        self.policy = policy
        self.rnd = rnd
        self.env_id = env_id
        self.protocol = protocol
        self.seed = seed + EVALUATION_SEED
        self.should_stop = should_stop
        self.rooms = Rooms()
        self._rooms_now: set[int] = set()

    def play(self, episodes: int, step: int = 0) -> Evaluation | None:
        """Plays ``episodes`` games side by side, one emulator each, and notes their rooms.

        Args:
            episodes: number of games.
            step: that the agent has been trained for.

        Returns:
            The scores, or None if it was stopped before the last game was over.
        """
        envs = [self._emulator(k) for k in range(episodes)]
        begin_games(self.policy, episodes, self.seed)
        playing = list(range(episodes))
        obs = {k: env.reset() for k, env in enumerate(envs)}
        returns, num_steps = [0.0] * episodes, [0] * episodes
        self._rooms_now = {room for env in envs for room in self._room(env)}
        while playing:
            if self.should_stop():
                return None
            actions = self.policy(np.concatenate([obs[k] for k in playing]))
            goes_on = np.ones(len(playing), dtype=np.bool_)
            for row, k in enumerate(playing):
                result = envs[k].step(actions[row : row + 1])
                obs[k] = result.obs
                returns[k] += float(result.reward[0])
                num_steps[k] += 1
                goes_on[row] = not result.ended[0]
                if goes_on[row]:  # else the next game has begun
                    self._rooms_now.update(self._room(envs[k]))
            keep_games(self.policy, goes_on)
            playing = [k for row, k in enumerate(playing) if goes_on[row]]
        for room in sorted(self._rooms_now):
            self.rooms.first_visits.setdefault(room, step)
        # Actions are those of the policy, which draws them.
        return Evaluation(returns, num_steps, 0.0, self.protocol.max_frames_per_episode)

    def figures(self) -> dict[str, float]:
        """Rooms in the last evaluation and in all of them; nothing for games without rooms."""
        if self.env_id not in ROOM_BYTE:
            return {}
        return {"rooms": len(self._rooms_now), "rooms_ever": len(self.rooms.first_visits)}

    def __str__(self) -> str:
        if self.env_id not in ROOM_BYTE:
            return "rooms not known"
        return f"{len(self._rooms_now)} rooms, {len(self.rooms.first_visits)} so far"

    def trace(self, max_steps: int) -> Trace | None:
        """Plays one game and keeps everything; None if it was stopped.

        Args:
            max_steps: the game is left here.
        """
        env = self._emulator(0)
        begin_games(self.policy, 1, self.seed)
        obs = env.reset()
        trace = Trace([], [], [], [env.render()])
        for _ in range(max_steps):
            if self.should_stop():
                return None
            result = env.step(self.policy(obs))
            obs = result.final_obs if result.ended[0] else result.obs
            trace.score.append(float(result.reward[0]))
            # The emulator has begun the next game where this one ended.
            ended = bool(result.ended[0])
            trace.room.extend(trace.room[-1:] if ended else self._room(env))
            trace.screens.append(trace.screens[-1] if ended else env.render())
            if self.rnd is not None:
                device = self.rnd.filter_state.device
                trace.bonus.append(float(self.rnd.bonus(torch.from_numpy(obs).to(device))[0]))
            if result.ended[0]:
                break
        return trace

    def draw(self, directory: Path, max_steps: int = 900) -> bool:
        """Writes ``video.gif``, a game with its bonus under the screen, and ``bonus.png``.

        Args:
            directory: where to.
            max_steps: the game is left here (900 steps are a minute of play).

        Returns:
            Whether they were written: not if it was stopped.
        """
        trace = self.trace(max_steps)
        if trace is None:
            return False
        pictures = [_with_plot(trace, step) for step in range(0, len(trace.screens), 2)]
        write_gif(directory / "video.gif", pictures, _MILLISECONDS_PER_PICTURE)
        if trace.bonus:
            draw_bonus(trace, directory / "bonus.png")
        return True

    def _emulator(self, game: int) -> AtariSingle:
        # Spread out: seeds that follow one another are other runs' evaluation seeds.
        seed = int(np.random.SeedSequence([self.seed, game]).generate_state(1)[0])
        return AtariSingle(self.env_id, protocol=self.protocol, seed=seed)

    def _room(self, env: AtariSingle) -> list[int]:
        """The room as a list of one; empty where it is not known."""
        byte = ROOM_BYTE.get(self.env_id)
        return [] if byte is None else [int(env.ram()[byte])]


def draw_bonus(trace: Trace, path: Path, num_peaks: int = 5) -> None:
    """A picture of a game: its bonus over time, and the screens at the highest peaks above it.

    Args:
        trace: with a bonus.
        path: of a PNG.
        num_peaks: screens to show, in the order of time.
    """
    height, width = trace.screens[0].shape[:2]
    gap, plot_height, margin = 8, 160, 22
    canvas_width = num_peaks * (width + gap) + gap
    canvas = Image.new("RGB", (canvas_width, height + plot_height + 4 * gap + margin), _BACKGROUND)
    draw = ImageDraw.Draw(canvas)
    bonus = np.array(trace.bonus)
    top, left, right = height + 2 * gap + margin, 44, canvas_width - gap
    x = left + (right - left) * np.arange(len(bonus)) / max(1, len(bonus) - 1)
    y = top + plot_height * (1.0 - bonus / bonus.max())
    draw.line(list(zip(x.tolist(), y.tolist(), strict=True)), fill=_LINE, width=1)
    draw.line([(left, top), (left, top + plot_height), (right, top + plot_height)], fill=_TEXT)
    draw.text((4, top), f"{bonus.max():.2g}", fill=_TEXT)
    draw.text((4, top + plot_height - 10), "0", fill=_TEXT)
    draw.text((left + 4, top + plot_height + 4), "intrinsic reward, by step", fill=_TEXT)
    draw.text((right - 60, top + plot_height + 4), f"{len(bonus):,} steps", fill=_TEXT)
    for n, step in enumerate(_peaks(bonus, num_peaks)):
        corner = gap + n * (width + gap)
        canvas.paste(Image.fromarray(trace.screens[step + 1]), (corner, gap))
        room = f", room {trace.room[step]}" if trace.room else ""
        draw.text((corner + 4, height + gap + 4), f"step {step + 1:,}{room}", fill=_MARK)
        centre = (corner + width / 2, height + gap + margin - 4)
        draw.line([centre, (x[step], y[step])], fill=_MARK, width=1)
    canvas.save(path)


def _peaks(bonus: NDArray[np.float64], number: int) -> list[int]:
    """Steps of the highest bonuses, none near another, in the order of time."""
    apart = max(1, len(bonus) // (4 * number))
    left = bonus.copy()
    peaks: list[int] = []
    while len(peaks) < number and np.isfinite(left).any():
        step = int(np.argmax(left))
        if not np.isfinite(left[step]):
            break
        peaks.append(step)
        left[max(0, step - apart) : step + apart + 1] = -np.inf
    return sorted(peaks)


def _with_plot(trace: Trace, step: int) -> NDArray[np.uint8]:
    """The screen after ``step`` steps, under it the bonus so far and the score."""
    screen = trace.screens[step]
    height, width = screen.shape[:2]
    canvas = Image.new("RGB", (width, height + _PLOT_HEIGHT), _BACKGROUND)
    canvas.paste(Image.fromarray(screen))
    draw = ImageDraw.Draw(canvas)
    words = f"score {sum(trace.score[:step]):g}"
    if trace.room:
        words += f"  room {trace.room[max(0, step - 1)]}"
    draw.text((3, height + 1), words, fill=_TEXT)
    if trace.bonus:
        window = 2 * width  # the steps that fit, two to a pixel
        first = max(0, step - window)
        shown = np.array(trace.bonus[first:step])
        if len(shown) > 1:
            x = np.arange(len(shown)) / 2
            highest = max(trace.bonus)
            y = height + _PLOT_HEIGHT - 2 - (_PLOT_HEIGHT - 16) * shown / highest
            draw.line(list(zip(x.tolist(), y.tolist(), strict=True)), fill=_LINE, width=1)
    return np.asarray(canvas)
