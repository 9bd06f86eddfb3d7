"""One Atari emulator in this process, whose state can be saved and restored exactly."""

import dataclasses
import math
from typing import Any

import numpy as np
import numpy.typing as npt

from classicrl import watch
from classicrl.envs.atari_protocol import (
    FRAME_SKIP,
    OBS_SHAPE,
    SCREEN_SIZE,
    AtariProtocol,
    AtariStep,
    checked_actions,
    rom_of,
)
from classicrl.envs.faults import Stepping
from classicrl.errors import UserError


def _area_weights(source: int, target: int) -> npt.NDArray[np.float32]:
    """Weights [target/g, source/g], g = gcd, that average `source` pixels down to `target`.

    Each new pixel is the mean of the stretch it covers, pixels cut by its edge counted in part.
    The pattern repeats g times along the side, so that one block of it is enough.
    """
    blocks = math.gcd(source, target)
    edges = np.arange(target // blocks + 1) * (source / target)
    pixels = np.arange(source // blocks)
    covered = np.minimum(edges[1:, None], pixels + 1) - np.maximum(edges[:-1, None], pixels)
    weights: npt.NDArray[np.float32] = np.clip(covered, 0.0, 1.0).astype(np.float32)
    return weights * np.float32(target / source)


class AtariSingle:
    """One emulator with the preprocessing of ale-py's vector environment, in numpy.

    Each step repeats the action for 4 emulator frames; the two last grey screens are pooled by
    their maximum, averaged down to 84x84 (largest difference to the vector environment: 1 grey
    level) and stacked with the three before, zeros at the start of a game (Mnih et al. 2015,
    Methods, "Preprocessing"). Emulation runs inside `recv`.

    Raises UserError for an unknown game or a missing ale-py.
    """

    num_envs = 1
    obs_shape = OBS_SHAPE

    def __init__(self, env_id: str, *, protocol: AtariProtocol, seed: int) -> None:
        rom = rom_of(env_id)
        import ale_py
        from ale_py import roms

        rom_path = roms.get_rom_path(rom)
        if rom_path is None:
            raise UserError(f"the cartridge of {env_id} is missing: reinstall ale-py")
        self.env_id = env_id
        self.protocol = protocol
        self._stepping = Stepping(env_id, [seed])
        self._stepping.at = 0
        emulator_words, numpy_seeds = np.random.SeedSequence(seed).spawn(2)
        self._rng = np.random.default_rng(numpy_seeds)
        ale_py.ALEInterface.setLoggerMode(ale_py.LoggerMode.Error)  # no banner on stderr
        self._ale = ale_py.ALEInterface()
        self._ale.setFloat("repeat_action_probability", protocol.repeat_action_probability)
        # Read at loadROM only; 0 would mean "seed from the clock".
        emulator_seed = 1 + int(emulator_words.generate_state(1)[0]) % (2**31 - 1)
        self._ale.setInt("random_seed", emulator_seed)
        self._ale.loadROM(rom_path)
        self._actions = (
            self._ale.getLegalActionSet()
            if protocol.full_action_space
            else self._ale.getMinimalActionSet()
        )
        self.action_meanings = tuple(action.name for action in self._actions)
        self.num_actions = len(self._actions)
        self._fires = protocol.fire_reset and "FIRE" in self.action_meanings

        height, width = self._ale.getScreenDims()
        # [0] holds the last frame, then the pooled screen; [1] the frame before it.
        self._screens = np.zeros((2, height, width), dtype=np.uint8)
        self._row_weights = _area_weights(height, SCREEN_SIZE)
        self._column_weights = np.ascontiguousarray(_area_weights(width, SCREEN_SIZE).T)
        self._stack = np.zeros(OBS_SHAPE, dtype=np.uint8)
        self._game_frames = 0
        self._lives = 0
        self._started = False
        self._pending: int | None = None

    @property
    def lives(self) -> int:
        """Lives left in the present game; 0 in games without lives."""
        return self._lives

    def reset(self) -> npt.NDArray[np.uint8]:
        """Begin a new game; returns its first observation, uint8 [1, 4, 84, 84]."""
        self._pending = None
        self._started = True
        self._begin_game()
        return self.observation()

    def observation(self) -> npt.NDArray[np.uint8]:
        """Return what the agent acts on next, uint8 [1, 4, 84, 84]."""
        if not self._started:
            raise RuntimeError("observation() before reset() or load_state_dict()")
        return self._stack[None].copy()

    def send(self, actions: npt.NDArray[np.integer[Any]]) -> None:
        """Take the next action, integers [1] within [0, num_actions); ValueError otherwise."""
        if not self._started:
            raise RuntimeError("send() before reset() or load_state_dict()")
        if self._pending is not None:
            raise RuntimeError("send() twice without a recv() between")
        self._pending = int(checked_actions(actions, 1, self.num_actions)[0])

    def recv(self) -> AtariStep:
        """Play the sent action and return the step; EnvironmentFault if the emulator fails."""
        if self._pending is None:
            raise RuntimeError("recv() without a send() before it")
        action, self._pending = self._actions[self._pending], None
        self._stepping.steps += 1
        watch.doing = self._stepping
        try:
            return self._play(action)
        except Exception as error:
            raise self._stepping.fault(error) from error
        finally:
            watch.doing = None

    def _play(self, action: Any) -> AtariStep:
        reward = 0
        game_over = life_lost = False
        for frames_left in range(FRAME_SKIP, 0, -1):
            reward += self._ale.act(action)
            game_over = self._ale.game_over()
            lives = self._ale.lives()
            life_lost = 0 < lives < self._lives  # see AtariProtocol for a count of 0
            self._game_frames += 1
            if game_over or self._game_frames >= self.protocol.max_frames_per_episode:
                # The vector environment leaves the screen of the breaking frame out, and shows
                # the pooled screen of the step before it once more.
                break
            if frames_left <= 2:
                self._ale.getScreenGrayscale(self._screens[frames_left - 1])
        self._lives = lives
        self._push_screen()

        ended = game_over or self._game_frames >= self.protocol.max_frames_per_episode
        terminated = game_over or (life_lost and self.protocol.life_loss_terminates)
        final_obs = self._stack[None][: int(ended)].copy()
        if ended:
            self._begin_game()
        return AtariStep(
            obs=self.observation(),
            reward=np.array([reward], dtype=np.float32),
            terminated=np.array([terminated]),
            ended=np.array([ended]),
            final_obs=final_obs,
        )

    def step(self, actions: npt.NDArray[np.integer[Any]]) -> AtariStep:
        """`send`, then `recv`."""
        self.send(actions)
        return self.recv()

    def close(self) -> None:
        """Nothing to release: the emulator goes with the object."""

    def ram(self) -> npt.NDArray[np.uint8]:
        """Return a copy of the console's memory, uint8 [128]."""
        return self._ale.getRAM()

    def render(self) -> npt.NDArray[np.uint8]:
        """Return the present screen in colour, uint8 [210, 160, 3]; some games are taller.

        Saved state holds no screen: after `load_state_dict` this is right from the next step on.
        """
        return self._ale.getScreenRGB()

    def state_dict(self) -> dict[str, Any]:
        """Return everything that a bit-exact continuation needs. Not between send and recv."""
        if self._pending is not None:
            raise RuntimeError("state_dict() between send() and recv(): receive the step first")
        return {
            "env_id": self.env_id,
            "protocol": dataclasses.asdict(self.protocol),
            "emulator": self._ale.cloneState(include_rng=True).serialize(),
            "screens": self._screens.copy(),
            "stack": self._stack.copy(),
            "game_frames": self._game_frames,
            "lives": self._lives,
            "started": self._started,
            "steps": self._stepping.steps,
            "rng": self._rng.bit_generator.state,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on exactly where `state_dict` was taken; `reset` is not needed afterwards.

        Raises UserError when the state is that of another game or protocol.
        """
        from ale_py import ALEState

        if state["env_id"] != self.env_id:
            raise UserError(
                f"the saved game is {state['env_id']}, this run plays {self.env_id}: use the same"
            )
        if state["protocol"] != dataclasses.asdict(self.protocol):
            raise UserError(
                f"the game was saved under other rules ({state['protocol']}): use the same protocol"
            )
        self._ale.restoreState(ALEState(state["emulator"]))
        self._screens = np.array(state["screens"], dtype=np.uint8)
        self._stack = np.array(state["stack"], dtype=np.uint8)
        self._game_frames = int(state["game_frames"])
        self._lives = int(state["lives"])
        self._started = bool(state["started"])
        self._stepping.steps = int(state.get("steps", 0))  # not there in older checkpoints
        self._rng.bit_generator.state = state["rng"]
        self._pending = None

    def _begin_game(self) -> None:
        from ale_py import Action

        self._ale.reset_game()
        if self._fires:
            self._ale.act(Action.FIRE)
        noops = int(self._rng.integers(max(self.protocol.noop_max, 1))) - int(self._fires)
        for _ in range(noops):
            self._ale.act(Action.NOOP)
            if self._ale.game_over():
                self._ale.reset_game()
        self._stack[:] = 0
        self._ale.getScreenGrayscale(self._screens[0])
        self._screens[1] = 0
        self._push_screen()
        self._game_frames = 0
        self._lives = self._ale.lives()

    def _push_screen(self) -> None:
        """Pool the two screens in place, scale the result down and put it on the stack."""
        np.maximum(self._screens[0], self._screens[1], out=self._screens[0])
        rows_in, columns_in = self._row_weights.shape[1], self._column_weights.shape[0]
        blocks = self._screens[0].astype(np.float32).reshape(-1, columns_in)
        narrow = (blocks @ self._column_weights).reshape(-1, rows_in, SCREEN_SIZE)
        small = (self._row_weights @ narrow).reshape(SCREEN_SIZE, SCREEN_SIZE)
        self._stack[:-1] = self._stack[1:]
        self._stack[-1] = np.rint(small)
