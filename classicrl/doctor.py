"""What this installation and this machine can do, and what is missing for more."""

import importlib
import os
import platform
import shutil
import time
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path
from typing import Literal, NamedTuple

from classicrl.errors import UserError

_CORE = {  # distribution -> module
    "classicrl": "classicrl",
    "torch": "torch",
    "numpy": "numpy",
    "gymnasium": "gymnasium",
    "tyro": "tyro",
    "rich": "rich",
    "tensorboard": "tensorboard",
    "pillow": "PIL",
    "safetensors": "safetensors",
}
EXTRAS = {  # extra -> its distributions
    "atari": ("ale-py",),
    "minatar": ("minatar",),
    "mujoco": ("mujoco",),
    "plots": ("matplotlib",),
    "sweep": ("ray",),
    "slurm": ("submitit",),
    "wandb": ("wandb",),
    "hub": ("huggingface_hub",),
    "bench": ("stable-baselines3", "sb3-contrib", "opencv-python-headless"),
    "docs": ("mkdocs-material",),
    "dev": ("pytest", "hypothesis", "pytest-timeout", "pytest-xdist", "ruff", "mypy"),
}
_LOW_DISK_BYTES = 2 * 2**30
_LOW_MEMORY_BYTES = 3 * 2**30


class Finding(NamedTuple):
    """One line of the report."""

    status: Literal["ok", "note", "fail"]  # a note takes nothing from the core
    topic: str
    detail: str

    def __str__(self) -> str:
        mark = {"ok": "ok  ", "note": "note", "fail": "FAIL"}[self.status]
        return f"{mark}  {self.topic:<12} {self.detail}"


def examine() -> Iterator[Finding]:
    """Looks at everything, one finding after the other; never raises."""
    yield Finding("ok", "python", f"{platform.python_version()}, {platform.platform()}")
    for distribution, module in _CORE.items():
        yield _package(distribution, module)
    yield from _machine()
    for extra, distributions in EXTRAS.items():
        missing = [name for name in distributions if _version(name) is None]
        if missing:
            detail = f'{", ".join(missing)} not installed: pip install "classicrl[{extra}]"'
            yield Finding("note", f"[{extra}]", detail)
        else:
            found = ", ".join(f"{name} {_version(name)}" for name in distributions)
            yield Finding("ok", f"[{extra}]", found)
    if _version("ale-py") is not None:
        yield _atari()


def _version(distribution: str) -> str | None:
    try:
        return metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return None


def _package(distribution: str, module: str) -> Finding:
    version = _version(distribution)
    try:
        importlib.import_module(module)
    except Exception as error:  # a broken binary fails in many ways
        remedy = f"pip install --force-reinstall {distribution}"
        return Finding("fail", distribution, f"cannot be imported ({_line(error)}): {remedy}")
    if version is None:
        return Finding("note", distribution, "works, but was not installed by pip")
    return Finding("ok", distribution, version)


def _machine() -> Iterator[Finding]:
    try:
        import torch

        from classicrl.cpus import available_cpus
        from classicrl.machine import available_memory, describe

        cpu = torch.device("cpu")
        yield Finding("ok", "machine", describe(cpu))
        all_cpus = os.cpu_count() or 1
        usable = available_cpus()
        reason = "" if usable == all_cpus else f" of {all_cpus} (affinity or container quota)"
        yield Finding("ok", "CPUs", f"{usable}{reason}; torch takes {torch.get_num_threads()}")
        yield _room("memory", available_memory(cpu), _LOW_MEMORY_BYTES, "lower --replay-capacity")
        x = torch.ones(3, 5) @ torch.ones(5, 2)
        if x.sum().item() != 30.0:
            yield Finding("fail", "torch", "multiplies matrices wrongly: reinstall it")
        if not torch.cuda.is_available():
            yield Finding("ok", "GPU", "none that torch can use: agents run on the CPU")
        for index in range(torch.cuda.device_count()):
            free, total = torch.cuda.mem_get_info(index)
            name = torch.cuda.get_device_name(index)
            detail = f"{name}, {free / 2**30:.1f} of {total / 2**30:.1f} GiB free"
            yield Finding("ok", f"cuda:{index}", detail)
    except Exception as error:
        yield Finding("fail", "machine", _line(error))
    try:
        free_disk = shutil.disk_usage(Path.cwd()).free
        yield _room("disk", free_disk, _LOW_DISK_BYTES, "free some, or work elsewhere")
    except OSError as error:
        yield Finding("note", "disk", _line(error))


def _room(topic: str, free: int, low: int, remedy: str) -> Finding:
    gibibytes = f"{free / 2**30:.1f} GiB free"
    if free < low:
        return Finding("note", topic, f"{gibibytes}, little for the default settings: {remedy}")
    return Finding("ok", topic, gibibytes)


def _atari() -> Finding:
    try:
        from classicrl.envs.atari import PROTOCOLS, AtariSingle, atari_games

        started = time.perf_counter()
        env = AtariSingle("ALE/Pong-v5", protocol=PROTOCOLS["classic"], seed=0)
        shape = env.reset().shape
        milliseconds = 1000 * (time.perf_counter() - started)
        env.close()
        detail = f"{len(atari_games())} games; Pong starts in {milliseconds:.0f} ms, views {shape}"
    except UserError as error:
        return Finding("fail", "Atari", str(error))
    except Exception as error:
        remedy = "pip install --force-reinstall ale-py"
        return Finding("fail", "Atari", f"Pong does not start ({_line(error)}): {remedy}")
    return Finding("ok", "Atari", detail)


def _line(error: Exception) -> str:
    words = str(error).split("\n")[0].strip()
    return f"{type(error).__name__}: {words}" if words else type(error).__name__
