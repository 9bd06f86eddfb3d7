"""Environments with continuous actions, the smoothness of actions, and playing a policy."""

import math
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import pytest

from classicrl.control_evaluation import ControlEvaluator
from classicrl.envs.continuous import CONTROL_PROTOCOLS, ContinuousVector, ControlProtocol
from classicrl.envs.faults import EnvironmentFault
from classicrl.errors import UserError
from classicrl.smoothness import FIGURES, SmoothnessMeter, normalised, spectrum

ENVIRONMENTS = ("Hopper-v5", "Humanoid-v5", "Reacher-v5", "Pendulum-v1")
needs_mujoco = pytest.mark.skipif(
    gymnasium.spec("Hopper-v5") is None or not pytest.importorskip("mujoco"), reason="needs mujoco"
)


def actions_for(env: ContinuousVector, steps: int, seed: int = 0) -> Any:
    rng = np.random.default_rng(seed)
    return rng.uniform(env.low, env.high, (steps, env.num_envs, env.action_size)).astype(np.float32)


@needs_mujoco
@pytest.mark.parametrize("env_id", ENVIRONMENTS)
@pytest.mark.parametrize("at", [0, 1, 30])
def test_saved_and_loaded_goes_on_to_the_bit(env_id: str, at: int) -> None:
    """Episodes end on the way; derived quantities, which rewards are made of, come back too."""
    env = ContinuousVector(env_id, 2, seeds=3, max_episode_steps=45)
    actions = actions_for(env, 60)
    env.reset()
    for t in range(at):
        env.step(actions[t])
    state = env.state_dict()
    other = ContinuousVector(env_id, 2, seeds=99, max_episode_steps=45)
    other.load_state_dict(state)
    assert other.resumed_exactly
    np.testing.assert_array_equal(env.observation(), other.observation())
    for t in range(at, 60):
        for mine, theirs in zip(env.step(actions[t]), other.step(actions[t]), strict=True):
            np.testing.assert_array_equal(mine, theirs)


def test_faults_name_the_step_of_the_whole_run() -> None:
    env = ContinuousVector("Pendulum-v1", 2, seeds=3)
    env.reset()
    for action in actions_for(env, 3):
        env.step(action)
    other = ContinuousVector("Pendulum-v1", 2, seeds=3)
    other.load_state_dict(env.state_dict())
    assert str(env._stepping).endswith("step 3") and str(other._stepping).endswith("step 3")
    older = {name: value for name, value in env.state_dict().items() if name != "steps"}
    other.load_state_dict(older)
    assert other.resumed_exactly


@needs_mujoco
def test_a_simulation_that_cannot_be_put_back_begins_anew() -> None:
    env = ContinuousVector("Hopper-v5", 1, seeds=3)
    env.reset()
    env.step(actions_for(env, 1)[0])
    state = env.state_dict()
    state["envs"][0]["physics"][1] += 1e-9  # what was simulated elsewhere comes out otherwise here
    env.load_state_dict(state)
    assert not env.resumed_exactly
    with pytest.raises(UserError, match="use the same"):
        ContinuousVector("Hopper-v5", 2, seeds=3).load_state_dict(state)


def test_a_time_limit_is_no_termination_and_shows_the_true_last_observation() -> None:
    env = ContinuousVector("Pendulum-v1", 2, seeds=0, max_episode_steps=4)
    plain = gymnasium.make("Pendulum-v1", max_episode_steps=4)
    env.reset()
    inner: Any = plain.unwrapped
    plain.reset(seed=0)
    inner.state = np.array(env._envs[1].unwrapped.state)  # type: ignore[attr-defined]
    for t, action in enumerate(actions_for(env, 4)):
        result = env.step(action)
        expected, *_ = plain.step(action[1])
        if t < 3:
            assert not result.ended.any() and len(result.final_obs) == 0
            np.testing.assert_allclose(result.obs[1], expected)
    assert result.ended.all() and not result.terminated.any()
    np.testing.assert_allclose(result.final_obs[1], expected)
    assert not np.allclose(result.obs[1], expected)


@needs_mujoco
def test_what_is_known_of_the_body() -> None:
    env = ContinuousVector("Humanoid-v5", 1, seeds=0)
    assert env.dt == pytest.approx(0.015) and 300 < env.weight < 500
    assert env.half_range.tolist() == pytest.approx([0.4] * 17)
    env.reset()
    result = env.step(np.full((1, 17), 5.0, dtype=np.float32))  # beyond the limits: MuJoCo's affair
    assert result.power[0] > 0 and math.isfinite(result.position[0])
    pendulum = ContinuousVector("Pendulum-v1", 1, seeds=0)
    pendulum.reset()
    result = pendulum.step(np.zeros((1, 1), dtype=np.float32))
    assert np.isnan(result.power).all() and np.isnan(result.position).all()
    assert pendulum.dt == 0.05 and math.isnan(pendulum.weight)


@pytest.mark.parametrize(
    ("env_id", "message"),
    [("CartPole-v1", "discrete"), ("Pendulm-v1", "did you mean"), ("FrozenLake-v1", "Box")],
)
def test_other_environments_are_refused(env_id: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        ContinuousVector(env_id, 1, seeds=0)


def test_calls_out_of_order_and_bad_actions_are_refused() -> None:
    env = ContinuousVector("Pendulum-v1", 3, seeds=0)
    with pytest.raises(RuntimeError, match="before reset"):
        env.observation()
    env.reset()
    with pytest.raises(RuntimeError, match="without a send"):
        env.recv()
    with pytest.raises(ValueError, match="expected actions"):
        env.send(np.zeros((3, 2), dtype=np.float32))
    env.send(np.zeros((3, 1), dtype=np.float32))
    with pytest.raises(RuntimeError, match="between send"):
        env.state_dict()


# -- smoothness ------------------------------------------------------------------------------------

LOW, HIGH = np.array([-2.0, 0.0], dtype=np.float32), np.array([2.0, 1.0], dtype=np.float32)


def test_normalised() -> None:
    x = normalised(np.array([[2.0, 0.5], [-9.0, 0.25]]), LOW, HIGH)
    np.testing.assert_allclose(x, [[1.0, 0.0], [-1.0, -0.5]])


def test_meter_against_sums_by_hand() -> None:
    dt, weight = 0.1, 20.0
    meter = SmoothnessMeter(1, LOW, HIGH, dt=dt, weight=weight)
    actions = np.array([[0.0, 0.5], [2.0, 0.5], [0.0, 1.0], [1.0, 0.0], [1.0, 0.5]])
    ended = [False, False, True, False, False]
    power = [10.0, 20.0, 30.0, 5.0, 5.0]
    position = [1.0, 2.0, 4.0, 9.0, 9.5]
    for a, e, p, x in zip(actions, ended, power, position, strict=True):
        meter.add(a[None], np.array([e]), np.array([p]), np.array([x]))
    x = normalised(actions, LOW, HIGH)
    figures = meter.figures()
    assert tuple(figures) == FIGURES
    assert figures["action_magnitude"] == pytest.approx(np.abs(x).mean())
    assert figures["action_saturation"] == pytest.approx(3 / 10)
    steps = np.abs(np.diff(x, axis=0))[[0, 1, 3]]  # not from one episode into the next
    assert figures["action_rate"] == pytest.approx(steps.mean() / dt)
    jerk = np.abs(x[2] - 2 * x[1] + x[0])
    assert figures["action_jerk"] == pytest.approx(jerk.mean() / dt**2)
    assert figures["energy_joules"] == pytest.approx(6.0)
    assert figures["cost_of_transport"] == pytest.approx(6.0 / (weight * 3.0))


def test_meter_goes_on_after_saving_and_counts_whom_it_shall() -> None:
    rng = np.random.default_rng(0)

    def steps(meter: SmoothnessMeter, count: int, counted: Any = None) -> None:
        for _ in range(count):
            action = rng.uniform(LOW, HIGH, (3, 2))
            ended = rng.random(3) < 0.2
            meter.add(action, ended, rng.random(3), rng.random(3), counted)

    one, other = (SmoothnessMeter(3, LOW, HIGH, dt=0.5, weight=1.0) for _ in range(2))
    steps(one, 30)
    other.load_state_dict(one.state_dict())
    rng = np.random.default_rng(1)
    steps(one, 20)
    rng = np.random.default_rng(1)
    steps(other, 20)
    assert one.figures() == other.figures()
    popped = one.pop()
    assert popped == other.figures() and math.isnan(one.figures()["action_magnitude"])
    steps(one, 5, np.array([False, False, False]))
    assert math.isnan(one.figures()["action_rate"])


def test_spectrum_of_a_sine() -> None:
    dt, steps, frequency = 0.02, 500, 5.0
    times = np.arange(steps) * dt
    x = 0.5 * np.sin(2 * np.pi * frequency * times)[:, None] * np.array([1.0, 0.0])
    bins = steps // 2 + 1
    assert spectrum(x, dt) == pytest.approx(2 * dt / bins * 0.5 * frequency / 2, rel=1e-6)
    assert math.isnan(spectrum(x[:1], dt))


# -- playing ---------------------------------------------------------------------------------------


@needs_mujoco
def test_evaluation_is_deterministic_and_counts_first_episodes() -> None:
    def policy(obs: Any) -> Any:
        return np.tanh(obs[:, :3]) * np.array([0.5, -0.5, 0.25], dtype=np.float32)

    evaluator = ControlEvaluator(policy, "Hopper-v5", CONTROL_PROTOCOLS["control"], seed=1)
    one, other = evaluator.play(3), evaluator.play(3)
    assert one is not None and other is not None and one.returns == other.returns
    assert len(set(one.returns)) == 3 and one.max_frames_per_episode == 1_000
    figures = one.figures()
    assert figures["mean_steps"] == pytest.approx(np.mean(one.num_steps))
    assert all(math.isfinite(figures[name]) for name in (*FIGURES, "action_spectrum"))
    stopped = ControlEvaluator(
        policy, "Hopper-v5", CONTROL_PROTOCOLS["control"], should_stop=lambda: True
    )
    assert stopped.play(2) is None


@pytest.mark.parametrize("error", [AttributeError("no glGetError"), RuntimeError("invalid value")])
def test_a_library_for_drawing_that_is_missing(
    error: Exception, monkeypatch: pytest.MonkeyPatch
) -> None:
    """MuJoCo loads it when it is imported, and says what PyOpenGL happens to say."""

    def make(*args: Any, **kwargs: Any) -> Any:
        raise error

    monkeypatch.setattr(gymnasium, "make", make)
    monkeypatch.setenv("MUJOCO_GL", "osmesa")
    with pytest.raises(UserError, match=f"with MUJOCO_GL=osmesa .{error}.: unset it"):
        ContinuousVector("Pendulum-v1", 1, seeds=0)
    monkeypatch.delenv("MUJOCO_GL")
    with pytest.raises(type(error)):  # that has another cause
        ContinuousVector("Pendulum-v1", 1, seeds=0)


@needs_mujoco
def test_a_gif_or_one_clear_line(tmp_path: Path) -> None:
    def policy(obs: Any) -> Any:
        return np.zeros((len(obs), 3), dtype=np.float32)

    evaluator = ControlEvaluator(policy, "Hopper-v5", ControlProtocol("control", 20))
    path = tmp_path / "hopper.gif"
    try:
        assert evaluator.record_gif(path)
        assert path.stat().st_size > 1_000
    except UserError as error:
        assert "EGL" in str(error) and "\n" not in str(error)


def test_a_step_that_says_neither_over_nor_not_is_a_fault(monkeypatch: pytest.MonkeyPatch) -> None:
    envs = ContinuousVector("Pendulum-v1", 2, seeds=3)
    envs.reset()
    step = envs._envs[1].step
    monkeypatch.setattr(envs._envs[1], "step", lambda action: (*step(action)[:2], None, False, {}))
    envs.send(np.zeros((2, 1), np.float32))
    with pytest.raises(EnvironmentFault, match=r"environment 1 .* said terminated=None"):
        envs.recv()
    envs.close()
