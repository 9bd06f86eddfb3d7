"""The examples of docs/components.md run as they stand there."""

import re
from pathlib import Path

import numpy as np
import pytest
import torch

PAGE = Path(__file__).parent.parent / "docs" / "components.md"
EXAMPLES = dict(re.findall(r"<!-- test: (\w+) -->\n```python\n(.*?)```", PAGE.read_text(), re.S))

PRINTED = {
    "replay": r"torch.Size\(\[32, 3\]\) tensor\(0\.9\d+\)",
    "learner": r"(0\.9|1\.0)\d+",
    "family": r"\{'loss': \(1, 3\), .*'behaviour_nll': \(1, 3\), 'grad_norm': \(1, 3\)\}",
    "loggers": r"\[5\. 5\. 5\. 5\.\]",
    "checkpoint": r"1000 tensor\(\[1\., 1\., 1\.\]\)",
    "atari": r"\[0\. 0\. 0\.\] \[False False False\] \[False False False\]",
}


def test_every_example_is_known() -> None:
    assert set(EXAMPLES) == set(PRINTED)
    assert PAGE.read_text().count("```python") == len(EXAMPLES)


@pytest.mark.parametrize("name", sorted(PRINTED))
def test_example(name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    torch.manual_seed(0)
    exec(EXAMPLES[name], {"np": np, "torch": torch, "folder": str(tmp_path)})
    assert re.fullmatch(PRINTED[name], capsys.readouterr().out.strip())
    assert len(EXAMPLES[name].splitlines()) <= 20
