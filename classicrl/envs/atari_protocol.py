"""What both Atari environments share: the playing rules, the record of one step, the game names."""

import difflib
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from classicrl.errors import UserError

FRAME_SKIP = 4
STACK_FRAMES = 4
SCREEN_SIZE = 84
OBS_SHAPE = (STACK_FRAMES, SCREEN_SIZE, SCREEN_SIZE)

# Two-player cartridges: ale-py ships the files, but its emulator ends the process on loading one.
_NOT_SINGLE_PLAYER = frozenset({"combat", "joust", "maze_craze", "warlords"})


@dataclass(frozen=True)
class AtariProtocol:
    """The rules of play, apart from the game.

    Attributes:
        name: how the protocol is called in settings and in saved state.
        repeat_action_probability: chance, per emulator frame, that the console repeats the action
            of the frame before ("sticky actions", Machado et al. 2018, section 5.2).
        life_loss_terminates: report `terminated` at every lost life; the game itself goes on.
            Some games count lives in reserve and go on at 0: ale-py passes over the loss of the
            last one in reserve, and so do both environments here.
        noop_max: a game starts after 0 to `noop_max - 1` emulator frames of doing nothing; a press
            of FIRE counts as one of them.
        fire_reset: press FIRE for one emulator frame at the start of a game that has that button.
        max_frames_per_episode: emulator frames after the start at which a game is cut.
        full_action_space: offer all 18 actions instead of those which the game knows.
    """

    name: str
    repeat_action_probability: float
    life_loss_terminates: bool
    noop_max: int
    fire_reset: bool
    max_frames_per_episode: int = 108_000
    full_action_space: bool = False

    def __post_init__(self) -> None:
        if not 0.0 <= self.repeat_action_probability <= 1.0:
            raise UserError(
                f"repeat_action_probability is {self.repeat_action_probability}: "
                "choose a probability between 0 and 1"
            )
        if self.noop_max < 0:
            raise UserError(f"noop_max is {self.noop_max}: choose 0 (no no-ops) or more")
        if self.max_frames_per_episode < 1:
            raise UserError(
                f"max_frames_per_episode is {self.max_frames_per_episode}: choose 1 or more"
            )


PROTOCOLS: dict[str, AtariProtocol] = {
    # Mnih et al. 2015 (DQN): deterministic console, random starts, one life is one episode.
    "classic": AtariProtocol(
        name="classic",
        repeat_action_probability=0.0,
        life_loss_terminates=True,
        noop_max=30,
        fire_reset=True,
    ),
    # Machado et al. 2018: the console's own randomness replaces random starts.
    "sticky": AtariProtocol(
        name="sticky",
        repeat_action_probability=0.25,
        life_loss_terminates=False,
        noop_max=0,
        fire_reset=False,
    ),
    # Burda et al. 2018 (RND), tables 2 to 4: as above, but a game is cut after 4,500 steps.
    "exploration": AtariProtocol(
        name="exploration",
        repeat_action_probability=0.25,
        life_loss_terminates=False,
        noop_max=0,
        fire_reset=False,
        max_frames_per_episode=18_000,
    ),
}


class AtariStep(NamedTuple):
    """What one step of N environments brought. The arrays belong to the caller.

    Attributes:
        obs: uint8 [N, 4, 84, 84], what the agent acts on next, newest frame last: the first
            observation of the new game where `ended`.
        reward: float32 [N], raw game score.
        terminated: bool [N], the value stops here: game over, or a life lost under a protocol
            with `life_loss_terminates`.
        ended: bool [N], a game ended here (over, or cut at the frame cap) and the next has begun.
        final_obs: uint8 [ended.sum(), 4, 84, 84], the last observations of the games that ended,
            in environment order.

    A game was truncated where `ended & ~terminated`.
    """

    obs: npt.NDArray[np.uint8]
    reward: npt.NDArray[np.float32]
    terminated: npt.NDArray[np.bool_]
    ended: npt.NDArray[np.bool_]
    final_obs: npt.NDArray[np.uint8]


def checked_actions(
    actions: npt.NDArray[np.integer[Any]], num_envs: int, num_actions: int
) -> npt.NDArray[np.int32]:
    """Return `actions` as int32 [num_envs] of the caller's values, or raise ValueError.

    An action out of range stops a worker thread of ale-py's vector environment, after which the
    whole batch waits for ever: so nothing unchecked may reach it.
    """
    given = np.asarray(actions)
    if not np.issubdtype(given.dtype, np.integer):
        raise ValueError(f"actions must be integers, got dtype {given.dtype}")
    if given.shape != (num_envs,):
        raise ValueError(f"actions must have shape ({num_envs},), got {given.shape}")
    outside = np.flatnonzero((given < 0) | (given >= num_actions))
    if outside.size:
        index = int(outside[0])
        raise ValueError(
            f"action {int(given[index])} of environment {index} is outside [0, {num_actions})"
        )
    return given.astype(np.int32)


def atari_games() -> dict[str, str]:
    """Map every playable environment id ("ALE/Breakout-v5") to its cartridge ("breakout").

    Raises UserError where ale-py is not installed.
    """
    try:
        from ale_py import roms
    except ImportError as error:
        raise UserError(
            'Atari games need ale-py, which is not installed: pip install "classicrl[atari]"'
        ) from error
    return {
        f"ALE/{rom.title().replace('_', '')}-v5": rom
        for rom in sorted(roms.get_all_rom_ids())
        if rom not in _NOT_SINGLE_PLAYER
    }


def rom_of(env_id: str) -> str:
    """Return the cartridge of an environment id; UserError names the nearest ids otherwise."""
    games = atari_games()
    if env_id in games:
        return games[env_id]
    # Compare bare names: "ALE/" and "-v5" are common to all, and would make every id look alike.
    ids_by_name = {game[4:-3].lower(): game for game in games}
    asked = env_id.rsplit("/", 1)[-1].split("-", 1)[0].replace("NoFrameskip", "")
    asked = asked.replace("_", "").lower()
    near = [ids_by_name[name] for name in difflib.get_close_matches(asked, ids_by_name)]
    hint = f"did you mean {' or '.join(near)}?" if near else 'ids look like "ALE/Breakout-v5"'
    raise UserError(f"unknown Atari game {env_id!r}: {hint}")
