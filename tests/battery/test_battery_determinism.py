"""The same command in processes with other hash seeds: equal to the bit, but for times."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from small_agents import Agent, end_of, rows
from tally import FULL, Tally

GROUP = "determinism across processes"
TESTS = Path(__file__).parents[1]

PROGRAM = """
import sys
from pathlib import Path

sys.path[:0] = sys.argv[3:]
import torch

torch.set_num_threads(1)
from small_agents import ALL

[agent] = [agent for agent in ALL if agent.script == sys.argv[1]]
agent.run(Path(sys.argv[2]))
"""


def fresh(agent: Agent, directory: Path, hash_seed: str) -> dict[str, str]:
    """The end of a run in a new interpreter."""
    paths = [str(TESTS / "battery"), str(TESTS), str(TESTS.parent)]
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, agent.script, str(directory), *paths],
        env={**os.environ, "PYTHONHASHSEED": hash_seed, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return end_of(agent, directory)


@pytest.mark.timeout(600 if FULL else 240)
@pytest.mark.parametrize("agent", rows(*(() if FULL else ("va_classic_control",))))
def test_other_hash_seeds_give_the_same_run(agent: Agent, tmp_path: Path, tally: Tally) -> None:
    expected = fresh(agent, tmp_path / "0", "0")
    for hash_seed in ("1", "31337") if FULL else ("1",):
        assert fresh(agent, tmp_path / hash_seed, hash_seed) == expected
        tally.count("equal to the bit")
