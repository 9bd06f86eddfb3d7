"""The machine that a run finds: device, threads, memory."""

import ctypes
import os
import platform
from pathlib import Path

import torch
from torch import nn

from classicrl.cpus import available_cpus, group_memory
from classicrl.errors import UserError

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3  # malloc.h


def choose_device(name: str) -> torch.device:
    """``auto`` (a GPU if there is one), ``cpu`` or ``cuda``.

    Raises:
        UserError: if CUDA is asked for and absent.
    """
    if name == "cuda" and not torch.cuda.is_available():
        raise UserError(
            "--device cuda, but torch finds no CUDA GPU here: use --device cpu, or install a CUDA "
            "build of torch and the driver"
        )
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    return torch.device(name)


def set_threads(num_threads: int) -> int:
    """Gives torch ``num_threads`` CPU threads; 0: all that this process may use. Returns them.

    Also has the CPU take denormal numbers as zero. Adam's moments of rarely used weights decay into
    them, on which arithmetic is many times slower; threads inherit the setting if it is made
    before they are. And has glibc keep freed memory: it returns arrays of over 32 MiB to the
    system, which clears every page of the next one.
    """
    threads = num_threads or available_cpus()
    torch.set_flush_denormal(True)
    _keep_freed_memory()
    torch.set_num_threads(threads)
    return threads


def _keep_freed_memory() -> None:
    try:
        mallopt = ctypes.CDLL("libc.so.6").mallopt
    except (OSError, AttributeError):  # not glibc
        return
    mallopt(_M_MMAP_THRESHOLD, 1 << 30)
    mallopt(_M_TRIM_THRESHOLD, (1 << 31) - 1)


def compile_networks(*networks: nn.Module) -> None:
    """Has torch.compile take over the forward passes of networks, in place, and so their backward.

    Names, parameters and what is saved stay as they are; results are equal up to rounding, which
    training amplifies, so a compiled run and a plain one part in the end. Code is generated when a
    network meets a new kind of input: the first calls take seconds to minutes.

    Raises:
        UserError: if nothing can be compiled here.
    """
    device = next(networks[0].parameters()).device
    # No single cause can be asked for: the compiler, Python's headers, Triton. So it is tried.
    try:
        torch.compile(lambda x: 2 * x + 1)(torch.ones(3, device=device))
    except Exception as error:
        reason = " ".join(str(error).split())[:200]
        needs = "Triton" if device.type == "cuda" else "a C++ compiler such as g++"
        raise UserError(
            f"--compile needs {needs} that torch.compile can use, and it failed here "
            f"({type(error).__name__}: {reason}): install it, or leave --compile off"
        ) from error
    # Of several networks that share code, with and without gradients, for several sizes of batches:
    # eight, the default, are too few, and the rest would then not be compiled at all.
    torch._dynamo.config.recompile_limit = 64
    for network in networks:
        network.compile()


def available_memory(device: torch.device) -> int:
    """Memory that can still be allocated on a device, in bytes."""
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    free = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")  # all there is
    try:
        for line in Path("/proc/meminfo").read_text().splitlines():
            if line.startswith("MemAvailable:"):
                free = int(line.split()[1]) * 1024
    except FileNotFoundError:  # not Linux
        pass
    return int(min(free, group_memory()))


def require_memory(nbytes: int, device: torch.device, *, what: str, flag: str) -> None:
    """Says how much memory something will take, or refuses if the device has less.

    Raises:
        UserError: naming the flag to change.
    """
    free = available_memory(device)
    if nbytes > free:
        raise UserError(
            f"{what} needs {nbytes / 1e9:.1f} GB, but {device} has {free / 1e9:.1f} GB free: "
            f"lower {flag}"
        )
    amount = f"{nbytes / 1e9:.2f} GB" if nbytes >= 1e8 else f"{nbytes / 1e6:.1f} MB"
    print(f"{what}: {amount} of {free / 1e9:.1f} GB free on {device}")


def describe(device: torch.device) -> str:
    """The kind of machine, in a few words."""
    processor = platform.processor() or platform.machine()
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                processor = line.partition(":")[2].strip()
                break
    except OSError:
        pass
    cores, threads = available_cpus(), torch.get_num_threads()
    words = f"{cores} core{'s' * (cores > 1)}, {threads} thread{'s' * (threads > 1)}, {processor}"
    if device.type == "cuda":
        words += f", {torch.cuda.get_device_name(device)}"
    return words
