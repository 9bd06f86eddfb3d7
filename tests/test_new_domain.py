"""The puzzle of docs/new_domain.md: its moves, that it is learned and solved, what is quoted."""

import math
import re
from pathlib import Path

import pytest
import torch
from script_process import command_line, load_script

from classicrl.search import Domain, qstar

SCRIPT = "../docs/examples/top_spin"
DOCS = Path(__file__).parents[1] / "docs"


def distances(num_tokens: int) -> dict[bytes, int]:
    """Of every state that can be reached, by breadth-first search over plain tuples."""
    goal = tuple(range(num_tokens))
    found, front = {bytes(goal): 0}, [goal]
    while front:
        following = []
        for s in front:
            for t in (s[1:] + s[:1], s[-1:] + s[:-1], s[3::-1] + s[4:]):
                if bytes(t) not in found:
                    found[bytes(t)] = found[bytes(s)] + 1
                    following.append(t)
        front = following
    return found


def test_the_page_quotes_the_file_that_runs() -> None:
    text, page = (
        (DOCS / "examples" / "top_spin.py").read_text(),
        (DOCS / "new_domain.md").read_text(),
    )
    quoted = re.findall(r"<!-- from: top_spin.py -->\n```python\n(.*?)```", page, re.S)
    assert len(quoted) == page.count("```python") == 3
    assert all(excerpt in text for excerpt in quoted)


@pytest.mark.parametrize("num_tokens", [6, 7, 10])
def test_moves_by_another_model(num_tokens: int) -> None:
    domain: Domain = load_script(SCRIPT).TopSpin(num_tokens)
    generator = torch.Generator().manual_seed(0)
    states = torch.stack([torch.randperm(num_tokens, generator=generator) for _ in range(7)])
    states = states.to(torch.uint8)
    for action, moved in enumerate(
        (
            lambda s: s[1:] + s[:1],
            lambda s: s[-1:] + s[:-1],
            lambda s: s[3::-1] + s[4:],
        )
    ):
        actions = torch.full((7,), action)
        after = domain.apply(states, actions)
        assert after.tolist() == [moved(s) for s in states.tolist()]
        assert domain.inverse is not None
        assert torch.equal(domain.apply(after, domain.inverse[actions]), states)
    assert domain.is_goal(torch.arange(num_tokens, dtype=torch.uint8)[None]).all()
    assert not domain.is_goal(states).any()


def test_exact_estimates_give_shortest_paths() -> None:
    domain = load_script(SCRIPT).TopSpin(6)
    known = distances(6)

    def exact(states: torch.Tensor) -> torch.Tensor:
        columns = []
        for action in range(3):
            after = domain.apply(states, torch.full((len(states),), action))
            columns.append([1.0 + known[bytes(s)] for s in after.tolist()])
        return torch.tensor(columns).T

    for state in list(known)[:: len(known) // 15]:
        start = torch.tensor(list(state), dtype=torch.uint8)
        found = qstar(domain, exact, start, weight=1.0, batch_size=10)
        assert found.solved and found.path_cost == known[state]


def test_with_an_odd_number_half_of_all_orders_can_be_reached() -> None:
    assert len(distances(6)) == math.factorial(6) and len(distances(7)) == math.factorial(7) // 2
    swapped = torch.tensor([1, 0, 2, 3, 4, 5, 6], dtype=torch.uint8)
    domain = load_script(SCRIPT).TopSpin(7)
    found = qstar(domain, lambda states: torch.zeros(len(states), 3), swapped)
    assert not found.solved and found.stopped == "exhausted"


def test_it_is_learned_and_solved(tmp_path: Path) -> None:
    arguments = ["--tokens", "6", "--updates", "150", "--puzzles", "3", "--seed", "1"]
    code, output = command_line(SCRIPT, *arguments, output=tmp_path / "output")
    assert code == 0, output
    lines = output.splitlines()
    assert len(lines) == 3
    known = distances(6)
    for line in lines:
        found = re.fullmatch(r"\[([\d, ]+)\]  ([<>T]*)  \[(\d+) moves, (\d+) nodes\]", line)
        assert found is not None, line
        s, moves = [int(token) for token in found[1].split(", ")], found[2]
        assert len(moves) == int(found[3]) >= known[bytes(s)]
        for move in moves:
            s = {"<": s[1:] + s[:1], ">": s[-1:] + s[:-1], "T": s[3::-1] + s[4:]}[move]
        assert s == sorted(s)


def test_bad_sizes_exit_2_with_one_line(tmp_path: Path) -> None:
    code, output = command_line(SCRIPT, "--tokens", "5", output=tmp_path / "output")
    assert code == 2 and output == "error: --tokens: a ring has 6 to 20 tokens, not 5\n"
