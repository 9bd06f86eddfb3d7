"""From a typed configuration to a command line, and from errors to exit codes.

Imports neither torch nor gymnasium: a script parses its command line before it imports them, so
``--help`` answers at once.
"""

import dataclasses
import math
import os
import sys
from collections.abc import Callable, Mapping, Set
from importlib import metadata
from typing import Any, NoReturn, TypeVar

import tyro

from classicrl import watch
from classicrl.errors import RunFailure, UserError

ConfigT = TypeVar("ConfigT")


def may_change(default: Any) -> Any:
    """A configuration field that a continued run may set anew: it changes what is reported or how
    fast, never what is learned."""
    return dataclasses.field(default=default, metadata={"may_change": True})


def not_recorded(default: Any) -> Any:
    """A configuration field that says what to do with the run directory, not how to train."""
    return dataclasses.field(default=default, metadata={"not_recorded": True})


def parse(presets: Mapping[str, ConfigT], default: str, description: str) -> ConfigT:
    """Parses ``sys.argv`` over the preset that ``--preset`` names.

    A preset only sets defaults: every flag given wins over it, and ``--help`` shows the defaults
    of the preset that it is called with.
    """
    name = default
    for position, argument in enumerate(sys.argv):
        if argument.startswith("--preset="):
            name = argument.partition("=")[2]
        elif argument == "--preset" and position + 1 < len(sys.argv):
            name = sys.argv[position + 1]
    preset = presets.get(name, presets[default])  # an unknown name is refused by the parser itself
    return tyro.cli(type(preset), default=preset, description=description)


def expects_gpu() -> bool:
    """Whether there is an NVIDIA GPU that torch can use, as far as can be told without loading it:
    the driver is there, and torch is no build for CPUs alone."""
    has_driver = any(map(os.path.exists, ("/proc/driver/nvidia/version", "/dev/nvidia0")))
    return has_driver and not metadata.version("torch").endswith("+cpu")


def exit_with(main: Callable[[ConfigT], Any], config: ConfigT) -> NoReturn:
    """Runs ``main(config)`` and leaves with its exit code.

    0 done; 1 failed in mid-run; 2 bad input; 75 stopped by SIGTERM, call again; 130 by SIGINT. An
    environment that hangs ends it with 1, too.
    """
    watch.start()
    try:
        main(config)
    except (UserError, RunFailure) as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(error.exit_code)
    except OSError as error:  # the disk or the file system, in mid-run
        print(f"error: {error}", file=sys.stderr)
        sys.exit(RunFailure.exit_code)
    except KeyboardInterrupt:
        sys.exit(130)
    sys.exit(0)


def require_positive(
    config: Any, *, may_be_zero: Set[str] = frozenset(), at_most_one: Set[str] = frozenset()
) -> None:
    """Refuses a configuration in which a number is negative or infinite, zero though it must not
    be, or a share above one.

    Args:
        config: a dataclass; fields that are not numbers, or None, are passed over.
        may_be_zero: names of fields.
        at_most_one: names of fields.

    Raises:
        UserError: naming the flag.
    """
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        if isinstance(value, bool) or not isinstance(value, int | float):
            continue
        flag = f"--{field.name.replace('_', '-')}"
        if not math.isfinite(value):
            raise UserError(f"{flag} must be a finite number, got {value}")
        if field.name == "seed" and value >= 2**63:
            raise UserError(f"{flag} must be below 2^63, got {value}")
        if field.name in at_most_one and value > 1:
            raise UserError(f"{flag} must be at most 1, got {value}")
        if field.name in may_be_zero:
            if not value >= 0:
                raise UserError(f"{flag} must not be negative, got {value}")
        elif not value > 0:
            raise UserError(f"{flag} must be positive, got {value}")
