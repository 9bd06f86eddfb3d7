"""The state of an environment as plain values, which a checkpoint can hold.

An environment can be saved if all that changes in it is numbers, text, arrays, lists and random
generators, as in classic control and MinAtar.
"""

from typing import Any

import gymnasium
import numpy as np

_RANDOM_STATE = "random_state"
_GENERATOR = "generator"


def plain_state_of(env: gymnasium.Env[Any, Any]) -> list[dict[str, Any]] | None:
    """Plain values of every layer, outermost first; None if something else than plain changes."""
    try:
        return [plain_attributes(layer) for layer in layers_of(env)]
    except TypeError:
        return None


def layers_of(env: Any) -> list[Any]:
    """The wrappers, the environment, and the game inside it where it is a MinAtar one."""
    layers = [env]
    while isinstance(layers[-1], gymnasium.Wrapper):
        layers.append(layers[-1].env)
    for inner in ("game", "env"):  # MinAtar: the environment holds an interface, that holds a game
        if type(layers[-1]).__module__.startswith("minatar."):
            layers.append(getattr(layers[-1], inner))
    return layers


# Set once when the environment is made.
_FIXED = {"env", "spec", "action_space", "observation_space", "metadata", "render_mode"}
_FIXED |= {"_action_space", "_observation_space", "_metadata", "_cached_spec", "_reward_range"}
_FIXED |= {"action_set", "action_map", "_saved_kwargs"}
# In classic control and MinAtar the window's, or fixed, and then not plain. Other environments may
# count in them.
_OFTEN_FIXED = {"game", "channels", "screen", "clock", "isopen"}


def plain_attributes(layer: Any, *, skip: bool = False) -> dict[str, Any]:
    """All attributes but the fixed ones; TypeError for one that is not plain, or ``skip`` them."""
    plain = {}
    for name, value in vars(layer).items():
        if name in _FIXED:
            continue
        try:
            plain[name] = to_plain(value)
        except TypeError:
            if not skip and name not in _OFTEN_FIXED:
                raise
    return plain


def to_plain(value: Any) -> Any:
    """Raises TypeError for what is neither a number, text, array, list nor random generator."""
    if isinstance(value, np.generic):  # first: some are floats, too
        return value.item()
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, np.ndarray):
        return value.copy()
    if isinstance(value, list):
        return [to_plain(item) for item in value]
    if isinstance(value, tuple):
        return tuple(to_plain(item) for item in value)
    if isinstance(value, np.random.RandomState):
        return {_RANDOM_STATE: dict(value.get_state(legacy=False))}
    if isinstance(value, np.random.Generator):
        return {_GENERATOR: dict(value.bit_generator.state)}
    raise TypeError(f"{type(value)} cannot be saved")


def restore_plain_state(env: gymnasium.Env[Any, Any], state: list[dict[str, Any]]) -> None:
    """Puts back what :func:`plain_state_of` took."""
    for layer, attributes in zip(layers_of(env), state, strict=True):
        restore_attributes(layer, attributes)


def restore_attributes(layer: Any, attributes: dict[str, Any]) -> None:
    """Sets plain values; random generators go on from the saved state."""
    for name, value in attributes.items():
        if isinstance(value, dict) and _RANDOM_STATE in value:
            getattr(layer, name).set_state(value[_RANDOM_STATE])
        elif isinstance(value, dict):
            getattr(layer, name).bit_generator.state = value[_GENERATOR]
        else:
            # A copy: the environment changes its arrays and lists in place.
            setattr(layer, name, to_plain(value))
