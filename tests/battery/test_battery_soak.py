"""A run of half an hour: its memory and its open files stay what they are."""

import os
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from tally import FULL, Tally

from classicrl.loggers import read_csv

GROUP = "soak"
MINUTES = float(os.environ.get("CLASSICRL_SOAK_MINUTES", "30"))
SCRIPT = Path(__file__).parents[2] / "agents" / "va_classic_control.py"
FLAGS = (
    "--total-steps 1000000000 --num-seeds 2 --replay-capacity 5000 --epsilon-decay-steps 2000 "
    "--checkpoint-period-steps 2000 --evaluation-period-steps 2000 --evaluation-episodes 2 "
    "--log-period-steps 200 --device cpu --threads 1 --batch-size 16"
)


def resident_kib(pid: int) -> int:
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmRSS:"):
            return int(line.split()[1])
    raise ValueError(f"process {pid} says nothing of its memory")


@pytest.mark.skipif(not FULL, reason="takes half an hour: make test-all")
@pytest.mark.timeout(60 * MINUTES + 300)
def test_memory_and_descriptors_stay_flat(tmp_path: Path, tally: Tally) -> None:
    """From a tenth of the time on: then the replay has wrapped, and everything was used once."""
    command = [sys.executable, str(SCRIPT), *FLAGS.split(), "--run-dir", str(tmp_path)]
    output = (tmp_path / "output").open("wb")
    process = subprocess.Popen(command, stdout=output, stderr=subprocess.STDOUT)
    seconds, memory, descriptors = [], [], []
    began = time.monotonic()
    try:
        while (now := time.monotonic() - began) < 60 * MINUTES:
            time.sleep(min(5.0, MINUTES))
            assert process.poll() is None, (tmp_path / "output").read_text()
            if now > 6 * MINUTES:
                seconds.append(now)
                memory.append(resident_kib(process.pid))
                descriptors.append(len(os.listdir(f"/proc/{process.pid}/fd")))
    finally:
        process.terminate()
        code = process.wait()
        output.close()
    assert code == 75
    steps = read_csv(tmp_path / "seed0" / "metrics.csv")["step"]
    assert steps[-1] > 10_000  # the replay of 5,000 has wrapped
    slope = np.polyfit(np.array(seconds) / 60, np.array(memory) / 1024, 1)[0]  # MiB per minute
    print(f"{len(memory)} samples, {steps[-1]:.0f} steps, slope {slope:.3f} MiB/min")
    assert slope < 1.0, (slope, memory[:: max(1, len(memory) // 20)])
    # Those of a checkpoint that is being written come and go.
    assert max(descriptors[len(descriptors) // 2 :]) <= max(descriptors[: len(descriptors) // 2])
    tally.count(f"{MINUTES:g} min: {slope:.2f} MiB/min, descriptors flat")
