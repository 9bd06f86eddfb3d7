"""Starts a data-parallel script on several processes with torchrun, and again when one is lost.

    python runs/launch.py --ranks 2 --retries 3 agents/ppo_rnd_atari.py --env-id ALE/Pong-v5

If a process dies, all are ended, and a fresh torchrun on a new port starts them again; the script
continues from its checkpoint. torchrun can restart processes itself (--max-restarts), but a group
whose connections were up when a process died often does not come together again, so that is off
here.

Exit codes are those of the scripts: 0 done, 1 failed too often, 2 bad input, 75 call again, 130
interrupted.
"""

import argparse
import signal
import socket
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from classicrl.command_line import exit_with
from classicrl.errors import RunFailure, UserError

if TYPE_CHECKING:
    from classicrl.experiment import StopRequest

DONE, BAD_INPUT, CALL_AGAIN, INTERRUPTED = 0, 2, 75, 130
FAILED = 1


def free_port() -> int:
    """A port of this machine that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def one_group(ranks: int, port: int, command: Sequence[str]) -> int:
    """Runs the script on ``ranks`` processes until all have ended; one exit code for all.

    In a process of its own for every attempt, so that no store of an earlier one is met.
    """
    from torch.distributed.elastic.multiprocessing.api import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.run import get_args_parser, run

    arguments = [
        "--nnodes=1",
        f"--nproc-per-node={ranks}",
        "--rdzv-backend=c10d",
        f"--rdzv-endpoint=127.0.0.1:{port}",
        f"--rdzv-id=classicrl-{port}",
        "--max-restarts=0",
        *command,
    ]
    try:
        run(get_args_parser().parse_args(arguments))
    except ChildFailedError as error:
        return code_of_all([failure.exitcode for failure in error.failures.values()])
    except SignalException as stopped:
        # The processes were sent the same signal, and torchrun has waited for them.
        return INTERRUPTED if stopped.sigval == signal.SIGINT else CALL_AGAIN
    return DONE


def code_of_all(codes: Sequence[int]) -> int:
    """One exit code for the codes of those processes that did not end with 0.

    The first to end makes torchrun send SIGTERM to the others: that counts for nothing by itself.
    """
    for code in (BAD_INPUT, INTERRUPTED, CALL_AGAIN):
        if code in codes and all(other in (code, -signal.SIGTERM) for other in codes):
            return code
    return FAILED


def main(arguments: Sequence[str]) -> None:
    """Starts groups until one is done, is refused, asks to be called again, or none is left."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--ranks", type=int, default=2, help="processes that train together")
    parser.add_argument("--retries", type=int, default=3, help="how often to start them again")
    parser.add_argument("--group-on-port", type=int, help=argparse.SUPPRESS)
    parser.add_argument("script", type=Path, help="the program, and after it its own flags")
    parser.add_argument("flags", nargs=argparse.REMAINDER, help=argparse.SUPPRESS)
    asked = parser.parse_args(arguments)
    if asked.ranks < 1 or asked.retries < 0:
        raise UserError("--ranks must be positive, and --retries must not be negative")
    if not asked.script.is_file():
        raise UserError(f"{asked.script} is not a file: name a script, such as agents/<agent>.py")
    command = [str(asked.script), *asked.flags]
    if asked.group_on_port is not None:
        sys.exit(one_group(asked.ranks, asked.group_on_port, command))

    from classicrl.experiment import StopRequest  # imports torch: bad input is answered before

    with StopRequest() as stop:
        for attempt in range(1 + asked.retries):
            # In a session of its own: a Ctrl-C reaches the processes once, through this one.
            process = subprocess.Popen(
                [
                    *(sys.executable, __file__, "--ranks", str(asked.ranks)),
                    *("--group-on-port", str(free_port()), *command),
                ],
                start_new_session=True,
            )
            code = wait(process, stop)
            if stop:
                sys.exit(code if code in (DONE, CALL_AGAIN, INTERRUPTED) else stop.exit_code)
            if code in (DONE, BAD_INPUT, CALL_AGAIN, INTERRUPTED):
                sys.exit(code)
            if attempt < asked.retries:
                print(f"a process was lost (exit code {code}): starting all again", flush=True)
    raise RunFailure(f"{asked.script} failed {1 + asked.retries} times: its last lines say why")


def wait(process: subprocess.Popen[bytes], stop: "StopRequest") -> int:
    """The exit code of a group; a stop that is asked for is passed on once."""
    passed_on = False
    try:
        while True:
            if stop and not passed_on:
                process.send_signal(signal.SIGINT if stop.exit_code == 130 else signal.SIGTERM)
                passed_on = True
            try:
                return process.wait(timeout=0.1)
            except subprocess.TimeoutExpired:
                continue
    finally:
        if process.poll() is None:  # interrupted a second time
            process.terminate()


if __name__ == "__main__":
    exit_with(main, sys.argv[1:])
