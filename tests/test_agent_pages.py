"""Every agent's page explains every figure that its script logs."""

import re
from pathlib import Path
from typing import Any

import pytest
import small_runs
from battery import small_agents
from script_process import load_script

from classicrl.loggers import read_csv

DOCS = Path(__file__).parents[1] / "docs"
# The figures that all agents share stand in the page of dueling DQN, to which the others refer.
PAGES = {
    "dueling_dqn_atari": ("dueling_dqn.md",),
    "va_atari": ("va_learning.md", "dueling_dqn.md"),
    "va_minatar": ("va_learning.md", "dueling_dqn.md"),
    "va_classic_control": ("va_learning.md", "dueling_dqn.md"),
    "ppo_rnd_atari": ("rnd.md",),
    "ppo_rnd_small": ("rnd.md",),
    "dqn_rnd_small": ("rnd.md",),
    "symphony_mujoco": ("symphony.md",),
    "qstar_cube3_train": ("qstar.md",),
}
SHORT: dict[str, dict[str, Any]] = {
    "ppo_rnd_small": {"total_steps": 2_048, "num_envs": 4, "final_evaluation_episodes": 2},
    "dqn_rnd_small": {"total_steps": 2_048, "num_envs": 4, "final_evaluation_episodes": 2},
}
HEADINGS = {  # what a reader looks for in the page of an agent
    "dueling_dqn.md": ("Every figure that is logged", "Deviations from the papers", "Results"),
    "va_learning.md": ("Every figure that is logged", "Deviations", "Results"),
    "va_tabular.md": ("Every figure that is logged", "Deviations", "Random MDPs"),
    "rnd.md": ("Every figure that is logged", "Deviations", "What was measured"),
    "symphony.md": ("What is logged", "Differences from the paper", "(What was measured|Results)"),
    "qstar.md": ("Every figure that is logged", "Deviations from the paper", "what was measured"),
}


def explained(name: str, text: str) -> bool:
    """In code, in full or with a star for what follows."""
    group = name.partition("/")[0]
    return any(f"`{written}`" in text for written in (name, f"eval/{name}", f"{group}/*"))


def test_every_script_is_here() -> None:
    scripts = {path.stem for path in (DOCS.parent / "agents").glob("*.py")}
    assert scripts - {"va_tabular", "qstar_cube3_solve"} == set(PAGES)  # they log no curves


def settings_of(script: str) -> dict[str, Any]:
    if script in SHORT:
        return SHORT[script]
    agent = next(a for a in (*small_agents.ALL, *small_runs.ALL) if a.script == script)
    pytest.importorskip(agent.needs)
    return agent.settings


@pytest.mark.parametrize("script", PAGES)
def test_every_figure_is_explained(script: str, tmp_path: Path) -> None:
    module = load_script(script)
    text = "".join((DOCS / page).read_text() for page in PAGES[script])
    with small_agents.short_searches():
        module.main(module.Config(**settings_of(script), run_dir=tmp_path))
    tables = sorted(tmp_path.rglob("metrics.csv")) + sorted(tmp_path.rglob("evaluations.csv"))
    assert len(tables) >= 2
    names = {name for table in tables for name in read_csv(table)} - {"step"}
    assert len(names) > 8
    missing = sorted(name for name in names if not explained(name, text))
    assert not missing, f"{PAGES[script]} do not explain {missing}"


@pytest.mark.parametrize("page", HEADINGS)
def test_every_page_has_its_parts(page: str) -> None:
    """Equation, command, figures, deviations, results."""
    text = (DOCS / page).read_text()
    assert re.match(r"# .*\n\n(    .*\n)+", text), "a page of an agent begins with its equations"
    assert re.search(r"^python agents/\w+\.py", text, re.M)
    for heading in HEADINGS[page]:
        assert re.search(rf"^##+ .*{heading}", text, re.M | re.I), f"{page} lacks {heading!r}"
