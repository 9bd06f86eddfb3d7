"""The replay ring against plain lists, in many random worlds (tests/test_replay.py plays them)."""

import pytest
from hypothesis import given, settings
from tally import FULL, Tally, size
from test_replay import World, play, worlds

GROUP = "replay against plain lists"
_TALLY: list[Tally] = []


@pytest.fixture(autouse=True)
def counted(tally: Tally) -> None:
    """Hypothesis calls the test again and again with the fixtures of the first call."""
    _TALLY[:] = [tally]


@pytest.mark.timeout(3600 if FULL else 120)
@settings(max_examples=size(20, 5_000))
@given(world=worlds)
def test_every_drawable_transition_is_the_models_and_no_other(world: World) -> None:
    checks = play(world)
    assert checks
    _TALLY[0].count("same transitions, ring wrapped" if any(checks) else "same transitions")
