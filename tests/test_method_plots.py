"""Methods beside one another: what is compared, and pictures that say what they show."""

from pathlib import Path

import numpy as np
import pytest
from synthetic_runs import colours_of, write_run

from classicrl.errors import UserError
from classicrl.reports.method_plots import (
    Kind,
    improvements,
    interquartile_means,
    plot_methods,
    scores_of,
)
from classicrl.reports.plots import centre_of, plot_runs
from classicrl.reports.records import curve, read_run
from classicrl.reports.statistics import interquartile_mean, performance_profile

BLUE, ORANGE = (0x00, 0x72, 0xB2), (0xD5, 0x5E, 0x00)


def scored(directory: Path, last: float, **settings: object) -> Path:
    """A run whose last evaluation is ``last``."""
    run = write_run(directory, **settings)  # type: ignore[arg-type]
    lines = (run / "evaluations.csv").read_text().splitlines()
    column = lines[0].split(",").index("mean_return")
    cells = lines[-1].split(",")
    cells[column] = str(last)
    (run / "evaluations.csv").write_text("\n".join([*lines[:-1], ",".join(cells)]) + "\n")
    return run


@pytest.fixture
def runs(tmp_path: Path) -> list[Path]:
    """Two methods on two environments, with 2 and 1 seeds, and 3 and 2."""
    made = []
    for preset, env_id, returns in (
        ("cpu", "ALE/Pong-v5", (-10.0, 10.0)),
        ("cpu", "ALE/Breakout-v5", (300.0,)),
        ("fast", "ALE/Pong-v5", (20.0, 15.0, 0.0)),
        ("fast", "ALE/Breakout-v5", (100.0, 400.0)),
    ):
        for seed, last in enumerate(returns):
            name = f"{preset}-{env_id[4:]}-{seed}"
            made.append(scored(tmp_path / name, last, preset=preset, env_id=env_id, seed=seed))
    return made


def test_scores_of_several_environments_have_one_scale(runs: list[Path]) -> None:
    scores = scores_of([read_run(run) for run in runs])
    pong, breakout = "ALE/Pong-v5, classic", "ALE/Breakout-v5, classic"
    cpu, fast = (scores.by_method[f"dueling_dqn_atari {name}"] for name in ("cpu", "fast"))
    assert cpu[pong] == pytest.approx([0, 2 / 3])
    assert cpu[breakout] == pytest.approx([2 / 3])
    assert fast[pong] == pytest.approx([1, 5 / 6, 1 / 3])
    assert fast[breakout] == pytest.approx([0, 1])
    assert scores.scaled and scores.seeds["dueling_dqn_atari fast"][pong] == [0, 1, 2]
    ((pair, estimate),) = improvements(scores).items()
    assert pair == "dueling_dqn_atari cpu > dueling_dqn_atari fast"
    assert estimate.value == pytest.approx((1 / 6 + 1 / 2) / 2)
    # Weights 1/4, 1/4, 1/2 of 0, 2/3, 2/3: the middle half is all 2/3.
    assert interquartile_means(scores)["dueling_dqn_atari cpu"].value == pytest.approx(2 / 3)


def test_scores_of_one_environment_stay_returns(runs: list[Path]) -> None:
    scores = scores_of([read_run(run) for run in runs if "Pong" in run.name])
    assert not scores.scaled
    assert scores.by_method["dueling_dqn_atari cpu"]["ALE/Pong-v5, classic"].tolist() == [-10, 10]


@pytest.mark.parametrize("kind", ["profile", "improvement", "iqm"])
def test_a_picture_says_what_it_shows(kind: Kind, runs: list[Path], tmp_path: Path) -> None:
    plot_methods(runs, tmp_path / "methods.png", kind)
    found = colours_of(tmp_path / "methods.png")
    assert BLUE in found
    assert (ORANGE in found) == (kind != "improvement")
    plot_methods(runs, tmp_path / "methods.svg", kind)
    drawn = (tmp_path / "methods.svg").read_text()  # matplotlib leaves each text as a comment
    for text in (
        "Seeds of dueling_dqn_atari fast on ALE/Pong-v5, classic: 0, 1, 2;",
        "scaled on each environment",
        "no sticky actions",
    ):
        assert text in drawn


def test_what_cannot_be_compared_is_refused(runs: list[Path], tmp_path: Path) -> None:
    out = tmp_path / "methods.png"
    with pytest.raises(UserError, match="dueling_dqn_atari fast has no run on ALE/Breakout-v5"):
        plot_methods([run for run in runs if "fast-Breakout" not in run.name], out, "profile")
    with pytest.raises(UserError, match="there is only dueling_dqn_atari cpu"):
        plot_methods([run for run in runs if "cpu" in run.name], out, "improvement")
    cube = Path(__file__).parents[1] / "runs/reference/qstar_cube3_train/cube3-12-qtm/gpu-seed0"
    without = "without a return; they have solved_share, mean_length"
    with pytest.raises(UserError, match=without):
        plot_methods([cube], out, "iqm")
    with pytest.raises(UserError, match=without):
        plot_runs([cube], out, metric="eval")
    (runs[0] / "evaluations.csv").unlink()
    with pytest.raises(UserError, match="no evaluation yet"):
        plot_methods(runs, out, "iqm")
    with pytest.raises(UserError, match="no run to draw"):
        plot_methods([], out, "iqm")
    assert not out.exists()


def test_profiles_fall_and_end_at_zero() -> None:
    rng = np.random.default_rng(3)
    scores = [rng.normal(size=5), rng.normal(size=3)]
    profile = performance_profile(scores, np.linspace(-4, 4, 50))
    assert profile.share[0] == 1 and profile.share[-1] == 0
    assert (np.diff(profile.share) <= 0).all()
    assert (profile.low <= profile.share).all() and (profile.share <= profile.high).all()
    assert profile.share == pytest.approx(
        sum((s[:, None] > np.linspace(-4, 4, 50)).mean(axis=0) for s in scores) / 2
    )


def test_interquartile_means_along_a_curve() -> None:
    values = np.random.default_rng(4).normal(size=(5, 7))
    values[2] = 1e6  # one seed far out
    middle, low, high = centre_of(values, "iqm")
    assert middle == pytest.approx(interquartile_mean(values.T))
    assert middle.shape == low.shape == high.shape == (7,)
    assert (low <= middle).all() and (middle <= high).all() and (middle < 10).all()
    mean, *_ = centre_of(values, "mean")
    assert (mean > 1e5).all()
    single = centre_of(values[:1], "iqm")
    assert all(np.array_equal(part, values[0]) for part in single)


def test_frames_are_four_a_step_on_atari_only(tmp_path: Path) -> None:
    atari = read_run(write_run(tmp_path / "a", seed=0))
    other = read_run(write_run(tmp_path / "b", seed=0, env_id="CartPole-v1", protocol="plain"))
    for run, factor in ((atari, 4), (other, 1)):
        steps, frames = (curve(run, "return", x)[0] for x in ("steps", "frames"))
        assert frames.tolist() == (factor * steps).tolist()
    plot_runs([tmp_path / "a"], tmp_path / "a.svg", x="frames", centre="iqm")
    assert "frames (4 for each decision of the agent)" in (tmp_path / "a.svg").read_text()
