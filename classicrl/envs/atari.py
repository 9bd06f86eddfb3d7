"""Atari games for replay agents: many emulators on C++ threads, or one that can be saved exactly.

`make_atari` gives either behind one interface. A step is one agent decision in one environment and
lasts 4 emulator frames.
"""

from typing import Any

import numpy as np
import numpy.typing as npt

from classicrl import watch
from classicrl.cpus import available_cpus
from classicrl.envs.atari_protocol import (
    FRAME_SKIP,
    OBS_SHAPE,
    PROTOCOLS,
    SCREEN_SIZE,
    STACK_FRAMES,
    AtariProtocol,
    AtariStep,
    atari_games,
    checked_actions,
    rom_of,
)
from classicrl.envs.atari_single import AtariSingle
from classicrl.envs.faults import Stepping
from classicrl.errors import UserError

__all__ = [
    "PROTOCOLS",
    "AtariProtocol",
    "AtariSingle",
    "AtariStep",
    "AtariVector",
    "atari_games",
    "make_atari",
]


def make_atari(
    env_id: str,
    num_envs: int,
    *,
    protocol: AtariProtocol,
    seed: int,
    num_threads: int = 0,
) -> "AtariVector | AtariSingle":
    """Return `num_envs` environments of one game; exactly one is an `AtariSingle`.

    Args:
        env_id: "ALE/<Game>-v5", for any game in ale-py.
        num_envs: number of environments N, at least 1.
        protocol: the rules of play, as in `PROTOCOLS`.
        seed: non-negative; every environment has its own stream from it.
        num_threads: emulator threads; 0 takes min(num_envs, available CPUs).

    Raises UserError for an unknown game, a missing ale-py, or a number out of range.
    """
    if num_envs < 1:
        raise UserError(f"num_envs is {num_envs}: choose 1 or more")
    if seed < 0:
        raise UserError(f"seed is {seed}: choose 0 or more")
    if num_threads < 0:
        raise UserError(f"num_threads is {num_threads}: choose 0 (automatic) or more")
    if num_envs == 1:
        return AtariSingle(env_id, protocol=protocol, seed=seed)
    return AtariVector(env_id, num_envs, protocol=protocol, seed=seed, num_threads=num_threads)


class AtariVector:
    """N emulators on the threads of ale-py's vector environment.

    Between `send` and `recv` the emulators run while the caller may learn. The emulators cannot
    be saved: `load_state_dict` begins new games, other than those already played.

    Raises UserError for an unknown game or a missing ale-py.
    """

    obs_shape = OBS_SHAPE

    def __init__(
        self,
        env_id: str,
        num_envs: int,
        *,
        protocol: AtariProtocol,
        seed: int,
        num_threads: int = 0,
    ) -> None:
        rom = rom_of(env_id)
        from ale_py.vector_env import AtariVectorEnv

        self.env_id = env_id
        self.num_envs = num_envs
        self.protocol = protocol
        self._seed = seed
        self._starts = 0
        self._stepping = Stepping(env_id, [seed])
        # Every argument is spelt out: the defaults differ between ale-py's own ways in, and
        # `episodic_life` restarts the whole game at every lost life.
        self._envs = AtariVectorEnv(
            rom,
            num_envs,
            batch_size=num_envs,
            num_threads=num_threads or min(num_envs, available_cpus()),
            thread_affinity_offset=-1,
            max_num_frames_per_episode=protocol.max_frames_per_episode,
            repeat_action_probability=protocol.repeat_action_probability,
            full_action_space=protocol.full_action_space,
            continuous=False,
            autoreset_mode="SameStep",
            img_height=SCREEN_SIZE,
            img_width=SCREEN_SIZE,
            grayscale=True,
            stack_num=STACK_FRAMES,
            frameskip=FRAME_SKIP,
            maxpool=True,
            noop_max=protocol.noop_max,
            episodic_life=False,
            life_loss_info=protocol.life_loss_terminates,
            reward_clipping=False,
            use_fire_reset=protocol.fire_reset,
        )
        self.action_meanings = tuple(action.name for action in self._envs.ale.get_action_set())
        self.num_actions = len(self.action_meanings)
        self._obs: npt.NDArray[np.uint8] | None = None
        self._game_starts = np.zeros(num_envs, dtype=np.int64)
        self._pending = False

    def reset(self) -> npt.NDArray[np.uint8]:
        """Begin a new game everywhere; returns the first observations, uint8 [N, 4, 84, 84]."""
        if self._pending:
            self.recv()  # the emulators must be at rest before they are given other seeds
        # A new base for every start, so that a resumed run does not replay its games.
        sequence = np.random.SeedSequence([self._seed, self._starts])
        base = int(sequence.generate_state(1)[0])
        # 0 would mean "seed from the clock", and the emulator's seeds are 31 bits wide.
        seeds = 1 + (base + np.arange(self.num_envs)) % (2**31 - 1)
        self._starts += 1
        obs, info = self._envs.reset(seed=seeds)
        self._obs = obs
        self._game_starts = _game_starts(info)
        return self.observation()

    def observation(self) -> npt.NDArray[np.uint8]:
        """Return what the agent acts on next, uint8 [N, 4, 84, 84]."""
        if self._obs is None:
            raise RuntimeError("observation() before reset() or load_state_dict()")
        return self._obs.copy()

    def send(self, actions: npt.NDArray[np.integer[Any]]) -> None:
        """Set the emulators off with integers [N] within [0, num_actions); ValueError otherwise."""
        if self._obs is None:
            raise RuntimeError("send() before reset() or load_state_dict()")
        if self._pending:
            raise RuntimeError("send() twice without a recv() between")
        self._envs.send(checked_actions(actions, self.num_envs, self.num_actions))
        self._pending = True

    def recv(self) -> AtariStep:
        """Wait for the emulators and return the step; EnvironmentFault if one fails."""
        if not self._pending:
            raise RuntimeError("recv() without a send() before it")
        # First: a Ctrl-C raises right after the wait, and a second wait would never end.
        self._pending = False
        self._stepping.steps += 1
        watch.doing = self._stepping
        try:
            obs, reward, terminated, _, info = self._envs.recv()
        except Exception as error:
            raise self._stepping.fault(error) from error
        finally:
            watch.doing = None
        # A game that goes on keeps its start. `terminated` and `truncated` do not tell: a life
        # lost goes on, but a life lost on the very frame of the cap is a terminated end.
        game_starts = _game_starts(info)
        ended = game_starts != self._game_starts
        self._game_starts = game_starts
        self._obs = obs
        # Rows of `final_obs` whose game goes on are uninitialised memory.
        final_obs = info["final_obs"][ended] if ended.any() else np.empty((0, *OBS_SHAPE), np.uint8)
        return AtariStep(
            obs=self.observation(),
            reward=reward.astype(np.float32),
            terminated=terminated,
            ended=ended,
            final_obs=final_obs,
        )

    def step(self, actions: npt.NDArray[np.integer[Any]]) -> AtariStep:
        """`send`, then `recv`."""
        self.send(actions)
        return self.recv()

    def close(self) -> None:
        """Stop the threads. The environments cannot be used afterwards."""
        self._obs = None
        self._pending = False
        vars(self).pop("_envs", None)  # the threads are joined when their owner is freed

    def state_dict(self) -> dict[str, Any]:
        """Return seed, starts and steps so far: the emulators themselves cannot be saved.

        Not between send and recv.
        """
        if self._pending:
            raise RuntimeError("state_dict() between send() and recv(): receive the step first")
        return {
            "env_id": self.env_id,
            "seed": self._seed,
            "starts": self._starts,
            "steps": self._stepping.steps,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Begin games that the saved run has not played; `observation` returns their first views.

        Raises UserError when the state is that of another game.
        """
        if state["env_id"] != self.env_id:
            raise UserError(
                f"the saved game is {state['env_id']}, this run plays {self.env_id}: use the same"
            )
        self._seed = int(state["seed"])
        self._starts = int(state["starts"])
        self._stepping.steps = int(state.get("steps", 0))  # not there in older checkpoints
        self.reset()


def _game_starts(info: dict[str, npt.NDArray[np.int32]]) -> npt.NDArray[np.int64]:
    """Frame of each emulator's life at which its present game began, int64 [N]."""
    frames: npt.NDArray[np.int64] = info["frame_number"].astype(np.int64)
    return frames - info["episode_frame_number"]
