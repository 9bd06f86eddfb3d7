"""Tabular V and A: numbers by hand, identities, resting points, a slow plain reference."""

import dataclasses
import math
from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from classicrl.algorithms.tabular import (
    MDP,
    METHODS,
    Floats,
    Learners,
    Method,
    Trajectory,
    action_values,
    backup,
    bootstrap,
    centring_term,
    corridor,
    epsilon_greedy,
    estimated_behaviour,
    expected_update,
    learn,
    optimal_values,
    policy_values,
    random_mdps,
    random_policies,
    sample_trajectory,
    self_loop,
    uniform_policies,
    update,
)

NAMES = list(METHODS)
EXACT = [name for name in NAMES if name != "soft_rdq"]  # those whose resting q is exact
UNIFORM = [1 / 3, 1 / 3, 1 / 3]


def approx(values: object) -> object:
    return pytest.approx(values, abs=1e-6, rel=0)


def one_update(
    name: str,
    value: float,
    advantage: Sequence[float],
    target: float,
    action: int,
    mu: Sequence[float],
    step_size: float,
) -> tuple[float, list[float]]:
    """V and F of one learner at one state after one update."""
    new_value, new_advantage = update(
        Learners.grid([METHODS[name]], [step_size]),
        np.array([[value]]),
        np.array(advantage, dtype=np.float64).reshape(1, -1, 1),
        np.array([[target]]),
        np.array([action]),
        np.array([mu]),
    )
    return float(new_value[0, 0]), [float(f) for f in new_advantage[0, :, 0]]


def centred(advantage: Sequence[float], mu: Sequence[float]) -> list[float]:
    mean = sum(f * p for f, p in zip(advantage, mu, strict=True))
    return [f - mean for f in advantage]


# -- One update, by hand -----------------------------------------------------------------------

MU = [0.5, 0.3, 0.2]


@pytest.mark.parametrize("name", [name for name in NAMES if name != "q_learning"])
@pytest.mark.parametrize(("policy", "expected"), [(None, 3.7), ([0.2, 0.3, 0.5], 2.53)])
def test_targets_of_control_and_evaluation(
    name: str, policy: list[float] | None, expected: float
) -> None:
    following = bootstrap(
        Learners.grid([METHODS[name]], [0.1]),
        np.array([[2.0]]),
        np.array([[[1.0], [0.0], [-1.0]]]),
        np.array([UNIFORM]),
        None if policy is None else np.array([policy]),
    )
    assert following.shape == (1, 1)
    assert 1 + 0.9 * following[0, 0] == approx(expected)


@pytest.mark.parametrize(
    ("name", "before", "value", "after"),
    [
        ("va_centred", (2, -1, 0), 1.27, (1.78, -0.692, -0.088)),
        ("behaviour_dueling", (2, -1, 0), 1.44, (1.78, -0.692, -0.088)),
        ("uniform_dueling", (2, -1, 0), 1.403333, (1.865556, -0.731111, -0.134444)),
        ("hard_rdq", (2, -1, 0), 1.37, (2, -0.63, 0)),
        ("va_raw", (1.3, -1.7, -0.7), 1.27, (1.3, -1.26, -0.7)),
        ("va_projected", (1.3, -1.7, -0.7), 1.27, (1.168, -1.392, -0.832)),
    ],
)
def test_one_update(
    name: str, before: tuple[float, ...], value: float, after: tuple[float, ...]
) -> None:
    new_value, new_advantage = one_update(name, 1.0, before, 3.7, 1, MU, 0.1)
    assert new_value == approx(value)
    assert new_advantage == approx(list(after))


def test_one_update_of_the_others() -> None:
    assert one_update("q_learning", 0.0, (2, -1, 0), 3.7, 1, MU, 0.1) == (
        0.0,
        approx([2, -0.53, 0]),
    )
    value, advantage = one_update("soft_rdq", 1.0, (2, -1, 0), 3.7, 1, MU, 0.1)
    # dA = 3.7; beta = 1e-3.
    assert value == approx(1 + 0.1 * (3.7 - 1e-3))
    assert advantage == approx([2 - 1e-4 * 2 / 3, -1 + 0.1 * (3.7 + 1e-3 / 3), 0])


def test_centred_advantages_after_one_update() -> None:
    _, advantage = one_update("va_centred", 1.0, (2, -1, 0), 3.7, 1, MU, 0.1)
    assert centred(advantage, MU) == approx([1.1152, -1.3568, -0.7528])


def test_the_error_of_uniform_dueling() -> None:
    value, _ = one_update("uniform_dueling", 1.0, (2, -1, 0), 3.7, 1, MU, 0.1)
    assert (value - 1) / 0.1 == approx(4.033333)


def test_raw_and_centred_on_one_state() -> None:
    mu, gamma = [0.8, 0.2], 0.9
    value, advantage = one_update("va_raw", 0.0, [0, 0], 1.0, 0, mu, 0.5)
    assert (value, advantage) == (approx(0.5), approx([0.5, 0]))
    target = gamma * (value + max(advantage))
    value, advantage = one_update("va_raw", value, advantage, target, 1, mu, 0.5)
    assert (value, advantage) == (approx(0.7), approx([0.5, 0.2]))

    value, advantage = one_update("va_centred", 0.0, [0, 0], 1.0, 0, mu, 0.5)
    assert (value, centred(advantage, mu)) == (approx(0.5), approx([0.04, -0.16]))
    target = gamma * (value + max(centred(advantage, mu)))
    value, advantage = one_update("va_centred", value, advantage, target, 1, mu, 0.5)
    assert (value, centred(advantage, mu)) == (approx(0.493), approx([0.01664, -0.06656]))


def test_learning_takes_the_same_steps_on_one_state() -> None:
    mdp, mu = self_loop([1.0, 0.0]), np.array([[[0.8, 0.2]]])
    zero = np.zeros((2, 1), dtype=np.int64)
    path = Trajectory(
        state=zero,
        action=np.array([[0], [1]]),
        reward=np.array([[1.0], [0.0]]),
        discount=np.full((2, 1), 0.9),
        next_state=zero,
    )
    learners = Learners.grid([METHODS["va_raw"], METHODS["va_centred"]], [0.5])
    values = dict(learn(mdp, path, learners, behaviour=mu, policy=None, period_steps=1))
    assert values[0][0, 0].tolist() == [[0, 0], [0, 0]]
    assert values[1][0, 0].T.tolist() == [approx([1, 0.5]), approx([0.54, 0.34])]
    assert values[2][0, 0].T.tolist() == [approx([1.2, 0.9]), approx([0.50964, 0.42644])]


# -- The expected recursion --------------------------------------------------------------------


@pytest.mark.parametrize(
    ("policy", "value", "q"),
    [(None, 9.8, [10, 9]), ([0.8, 0.2], 8, [8.2, 7.2]), ([0, 1], 0.8, [1, 0])],
)
def test_limits_on_one_state(policy: list[float] | None, value: float, q: list[float]) -> None:
    mdp, mu = self_loop([1.0, 0.0]), np.array([[[0.8, 0.2]]])
    pi = None if policy is None else np.array([[policy]])
    v, a = np.zeros((1, 1)), np.zeros((1, 1, 2))
    for _ in range(300):
        v, a = expected_update(mdp, v, a, mu, pi)
    assert v[0, 0] == approx(value)  # V^pi would be 0 where pi always takes the second action
    assert (v + a[0, 0])[0].tolist() == approx(q)
    exact = optimal_values(mdp) if pi is None else policy_values(mdp, pi)
    assert exact[0, 0].tolist() == approx(q)
    assert a[0, 0].tolist() == approx([0.2, -0.8])


def test_first_iterations_on_one_state() -> None:
    mdp, mu = self_loop([1.0, 0.0]), np.array([[[0.8, 0.2]]])
    v, a = np.zeros((1, 1)), np.zeros((1, 1, 2))
    seen = []
    for _ in range(3):
        v, a = expected_update(mdp, v, a, mu)
        seen.append(float(v[0, 0]))
    assert seen == approx([0.8, 1.7, 2.51])


@pytest.mark.parametrize("control", [True, False])
def test_the_expected_recursion_contracts(control: bool) -> None:
    mdp = random_mdps(3, num_states=6, num_actions=4, gamma=0.8, seed=1)
    mu = random_policies(3, 6, 4, uniform_share=0.1)
    policy = None if control else random_policies(3, 6, 4)
    exact = optimal_values(mdp) if policy is None else policy_values(mdp, policy)
    rng = np.random.default_rng(0)
    v, a = rng.standard_normal((3, 6)), rng.standard_normal((3, 6, 4))
    first = np.abs(v[..., None] + a - exact).max(axis=(1, 2))
    error = first
    limit = (mu * exact).sum(axis=-1)
    for i in range(1, 40):
        v, a = expected_update(mdp, v, a, mu, policy)
        following = np.abs(v[..., None] + a - exact).max(axis=(1, 2))
        assert (following <= 0.8 * error + 1e-12).all()
        assert (mu * a).sum(axis=-1) == approx(np.zeros((3, 6)))
        assert (np.abs(v - limit).max(axis=1) <= 0.8**i * first + 1e-12).all()
        from_exact = np.abs(a - (exact - limit[..., None])).max(axis=(1, 2))
        assert (from_exact <= 2 * 0.8**i * first + 1e-12).all()
        error = following
    assert (a.argmax(axis=-1) == exact.argmax(axis=-1)).all()


def test_the_expected_recursion_needs_every_action() -> None:
    with pytest.raises(ValueError, match="positive"):
        expected_update(
            self_loop([1.0, 0.0]), np.zeros((1, 1)), np.zeros((1, 1, 2)), np.array([[[1.0, 0.0]]])
        )


# -- Identities --------------------------------------------------------------------------------

numbers = st.floats(-10, 10)
weights = st.lists(st.floats(0.05, 1.0), min_size=4, max_size=4).map(
    lambda w: [x / sum(w) for x in w]
)
four = st.lists(numbers, min_size=4, max_size=4)


@given(mu=weights, advantage=four, value=numbers, targets=four)
def test_pythagoras(
    mu: list[float], advantage: list[float], value: float, targets: list[float]
) -> None:
    learners = Learners.grid([METHODS["va_centred"]], [0.1])
    f, p, y = np.array(advantage), np.array(mu), np.array(targets)
    a = f - centring_term(learners, f[:, None], p)
    mean = p @ y
    left = p @ (value + a - y) ** 2
    right = (value - mean) ** 2 + p @ (a - (y - mean)) ** 2
    assert abs(p @ a) < 1e-9
    assert left == pytest.approx(right, abs=1e-9)


@given(mu=weights, advantage=four, value=numbers, target=numbers, action=st.integers(0, 3))
def test_equal_step_sizes_are_not_equal_steps(
    mu: list[float], advantage: list[float], value: float, target: float, action: int
) -> None:
    multiples = {
        "q_learning": 1.0,
        "hard_rdq": 2.0,
        "uniform_dueling": 2 - 1 / 4,
        "behaviour_dueling": 2 - 2 * mu[action] + sum(p * p for p in mu),
    }
    for name, multiple in multiples.items():
        centre = {"uniform_dueling": [0.25] * 4, "behaviour_dueling": mu}.get(name, [0.0] * 4)
        v = 0.0 if name == "q_learning" else value
        before = v + centred(advantage, centre)[action]
        new_value, new_advantage = one_update(name, v, advantage, target, action, mu, 0.1)
        after = new_value + centred(new_advantage, centre)[action]
        assert after - before == pytest.approx(0.1 * multiple * (target - before), abs=1e-9)


@given(mu=weights, advantage=four, value=numbers, target=numbers, action=st.integers(0, 3))
def test_hard_rdq_keeps_its_split(
    mu: list[float], advantage: list[float], value: float, target: float, action: int
) -> None:
    new_value, new_advantage = one_update("hard_rdq", value, advantage, target, action, mu, 0.3)
    assert new_value - sum(new_advantage) == pytest.approx(value - sum(advantage), abs=1e-9)


@given(mu=weights, advantage=four, value=numbers, target=numbers, action=st.integers(0, 3))
def test_projection_leaves_nothing_under_mu(
    mu: list[float], advantage: list[float], value: float, target: float, action: int
) -> None:
    _, after = one_update("va_projected", value, advantage, target, action, mu, 0.3)
    assert sum(f * p for f, p in zip(after, mu, strict=True)) == pytest.approx(0, abs=1e-9)


def with_an_end(mdp: MDP) -> MDP:
    """The last state ends the episode; the next begins in the second."""
    terminal = np.zeros_like(mdp.terminal)
    terminal[:, -1] = True
    return dataclasses.replace(mdp, terminal=terminal, start=np.ones_like(mdp.start))


@pytest.mark.parametrize("control", [True, False])
def test_pairs_of_methods_that_agree_where_mu_is_uniform(control: bool) -> None:
    mdp = random_mdps(2, num_states=4, num_actions=3, seed=2)
    uniform, random = uniform_policies(2, 4, 3), random_policies(2, 4, 3, uniform_share=0.1)
    policy = None if control else random_policies(2, 4, 3)
    pairs = (("va_centred", "va_projected"), ("uniform_dueling", "behaviour_dueling"))
    learners = Learners.grid([METHODS[name] for pair in pairs for name in pair], [0.1, 0.3])
    for mu, equal in ((uniform, True), (random, False)):
        path = sample_trajectory(mdp, mu, 300)
        *_, (_, q) = learn(mdp, path, learners, behaviour=mu, policy=policy, period_steps=300)
        by_pair = q.reshape(2, 4, 3, 2, 2, 2)  # pairs, which of the two, step sizes
        difference = np.abs(by_pair[..., 0, :] - by_pair[..., 1, :]).max(axis=(0, 1, 2, 4))
        assert ((difference < 1e-9) if equal else (difference > 1e-3)).all()


# -- Resting points ----------------------------------------------------------------------------


def mean_update(
    learners: Learners,
    value: Floats,
    advantage: Floats,
    mdp: MDP,
    mu: Floats,
    policy: Floats | None,
) -> tuple[Floats, Floats]:
    """The update in the mean over actions and next states; tables ``[X, L]``, ``[X, A, L]``."""
    num_states, num_actions = mu.shape
    following = bootstrap(learners, value, advantage, mu, policy)
    target = mdp.reward[0][..., None] + mdp.gamma * mdp.transition[0] @ following
    values, advantages = update(
        learners,
        value.repeat(num_actions, axis=0),
        advantage.repeat(num_actions, axis=0),
        target.reshape(num_states * num_actions, -1),
        np.tile(np.arange(num_actions), num_states),
        mu.repeat(num_actions, axis=0),
    )
    values = values.reshape(num_states, num_actions, -1)
    advantages = advantages.reshape(num_states, num_actions, num_actions, -1)
    return np.einsum("xa,xal->xl", mu, values), np.einsum("xa,xabl->xbl", mu, advantages)


def rest(
    methods: Sequence[Method], mdp: MDP, mu: Floats, policy: Floats | None
) -> tuple[Floats, Floats, Floats]:
    """V, F and q of the mean updates' limit from zero."""
    learners = Learners.grid(methods, [0.3])
    num_states, num_actions = mu.shape
    value = np.zeros((num_states, len(methods)))
    advantage = np.zeros((num_states, num_actions, len(methods)))
    for _ in range(4_000):
        value, advantage = mean_update(learners, value, advantage, mdp, mu, policy)
    return value, advantage, action_values(learners, value, advantage, mu)


@pytest.mark.parametrize("control", [True, False])
def test_resting_points(control: bool) -> None:
    mdp = random_mdps(1, num_states=3, num_actions=4, gamma=0.6, seed=3)
    mu = random_policies(1, 3, 4, uniform_share=0.4, seed=3)[0]
    policy = None if control else random_policies(1, 3, 4, seed=3)[0]
    exact = (optimal_values(mdp) if policy is None else policy_values(mdp, policy[None]))[0]
    value, _, q = rest([METHODS[name] for name in EXACT], mdp, mu, policy)
    under_mu = (mu * exact).sum(axis=-1)
    expected = {
        "q_learning": np.zeros(3),
        "va_raw": under_mu,
        "va_centred": under_mu,
        "va_projected": under_mu,
        "behaviour_dueling": under_mu,
        "uniform_dueling": exact.mean(axis=-1),
        "hard_rdq": exact.sum(axis=-1) / 5,
    }
    for k, name in enumerate(EXACT):
        assert q[..., k] == approx(exact), name
        assert value[..., k] == approx(expected[name]), name


def test_soft_rdq_rests_at_the_mean_advantage_and_is_biased_by_beta() -> None:
    mdp = random_mdps(1, num_states=3, num_actions=4, gamma=0.6, seed=4)
    policy = random_policies(1, 3, 4, seed=4)
    exact = policy_values(mdp, policy)[0]
    betas = [0.0, 0.1, 0.4]
    methods = [dataclasses.replace(METHODS["soft_rdq"], beta=beta) for beta in betas]
    for mu in (np.full((3, 4), 0.25), random_policies(1, 3, 4, uniform_share=0.4, seed=4)[0]):
        value, advantage, q = rest(methods, mdp, mu, policy[0])
        assert value[:, 1:] == approx(advantage[..., 1:].mean(axis=1))
        bias = np.abs(q - exact[..., None]).max(axis=(0, 1))
        assert bias[0] < 1e-9
        assert 2 < bias[2] / bias[1] < 5


def test_soft_rdq_at_rest_by_hand() -> None:
    # Fixed targets y_b, uniform mu: F_b = (y_b - V) / (1 + beta) and V = mean_b y / (2 + beta).
    mdp = dataclasses.replace(self_loop([3.0, 6.0]), gamma=0.0)
    method = dataclasses.replace(METHODS["soft_rdq"], beta=0.5)
    value, advantage, _ = rest([method], mdp, np.array([[0.5, 0.5]]), None)
    assert value[0, 0] == approx(4.5 / 2.5)
    assert advantage[0, :, 0].tolist() == approx([1.2 / 1.5, 4.2 / 1.5])


def test_hard_rdq_at_rest_by_hand() -> None:
    mdp = dataclasses.replace(self_loop([3.0, 6.0]), gamma=0.0)
    value, advantage, _ = rest([METHODS["hard_rdq"]], mdp, np.array([[0.7, 0.3]]), None)
    assert value[0, 0] == approx(3.0)
    assert advantage[0, :, 0].tolist() == approx([0.0, 3.0])


# -- The overshoot of the raw form -------------------------------------------------------------


def test_raw_swings_with_a_single_action_and_centred_does_not() -> None:
    gamma, alpha = 0.9, 0.05
    mdp, mu = self_loop([1.0], gamma), np.ones((1, 1))
    learners = Learners.grid([METHODS["va_raw"]], [alpha])

    def after(v: float, a: float) -> Floats:
        value, advantage = np.array([[v]]), np.array([[[a]]])
        return np.concatenate(
            [x.ravel() for x in mean_update(learners, value, advantage, mdp, mu, None)]
        )

    origin = after(0, 0)
    rates = np.linalg.eigvals(np.stack([after(1, 0), after(0, 1)], axis=1) - origin[:, None])
    rates = (rates - 1) / alpha
    # -(1-g) +- i sqrt(g(1-g)): modulus sqrt(1-g), hence damping ratio sqrt(1-g).
    assert rates.real == approx([-(1 - gamma)] * 2)
    assert np.sort(rates.imag) == approx([-math.sqrt(0.09), math.sqrt(0.09)])

    path = sample_trajectory(mdp, mu[None], 2_000)
    learners = Learners.grid([METHODS["va_raw"], METHODS["va_centred"]], [alpha])
    values = learn(mdp, path, learners, behaviour=mu[None], policy=None, period_steps=1)
    highest = np.max([q[0, 0, 0] for _, q in values], axis=0)
    assert highest[0] > 13 and highest[1] < 10 + 1e-9  # the value is 10


def test_raw_amplifies_a_target_that_varies() -> None:
    alpha = 0.005
    gains = []
    for name in ("va_raw", "va_centred", "q_learning"):
        learners = Learners.grid([METHODS[name]], [alpha])
        value, advantage, seen = np.zeros((1, 1)), np.zeros((1, 1, 1)), []
        for t in range(6_000):
            target = np.array([[math.sin(alpha / math.sqrt(2) * t)]])
            value, advantage = update(
                learners, value, advantage, target, np.zeros(1, dtype=np.int64), np.ones((1, 1))
            )
            q = action_values(learners, value[None], advantage[None], np.ones((1, 1, 1)))
            seen.append(float(q[0, 0, 0, 0]))
        gains.append(max(seen[3_000:]))
    assert gains[0] == pytest.approx(2 / math.sqrt(3), rel=0.01)
    assert gains[1] < 1 and gains[2] < 1


# -- Learning, against a slow reference --------------------------------------------------------


def plain_learn(
    name: str,
    alpha: float,
    path: Sequence[tuple[int, int, float, float, int]],
    num_states: int,
    num_actions: int,
    behaviour: list[list[float]] | None,
    policy: list[list[float]] | None,
) -> list[list[float]]:
    """q after all steps of one learner, in scalars, each method written out."""
    actions = range(num_actions)
    v = [0.0] * num_states
    f = [[0.0] * num_actions for _ in range(num_states)]
    n = [[0] * num_actions for _ in range(num_states)]

    def mu(x: int) -> list[float]:
        if behaviour is not None:
            return behaviour[x]
        return [(n[x][b] + 1) / (sum(n[x]) + num_actions) for b in actions]

    def abar(x: int) -> list[float]:
        if name in ("va_centred", "behaviour_dueling"):
            return [f[x][b] - sum(mu(x)[c] * f[x][c] for c in actions) for b in actions]
        if name == "uniform_dueling":
            return [f[x][b] - sum(f[x]) / num_actions for b in actions]
        return list(f[x])

    for x, a, r, discount, following in path:
        ahead = abar(following)
        best = (
            max(ahead) if policy is None else sum(policy[following][b] * ahead[b] for b in actions)
        )
        y = r + discount * (v[following] + best)
        d = y - v[x] - abar(x)[a]
        e = y - v[x]
        is_a = [1.0 if b == a else 0.0 for b in actions]
        if name == "q_learning":
            f[x][a] += alpha * d
        elif name == "va_raw":
            v[x] += alpha * e
            f[x][a] += alpha * d
        elif name == "va_centred":
            v[x] += alpha * e
            f[x] = [f[x][b] + alpha * d * (is_a[b] - mu(x)[b]) for b in actions]
        elif name == "va_projected":
            v[x] += alpha * e
            f[x][a] += alpha * d
            mean = sum(mu(x)[b] * f[x][b] for b in actions)
            f[x] = [f[x][b] - mean for b in actions]
        elif name == "uniform_dueling":
            v[x] += alpha * d
            f[x] = [f[x][b] + alpha * d * (is_a[b] - 1 / num_actions) for b in actions]
        elif name == "behaviour_dueling":
            v[x] += alpha * d
            f[x] = [f[x][b] + alpha * d * (is_a[b] - mu(x)[b]) for b in actions]
        elif name == "hard_rdq":
            v[x] += alpha * d
            f[x][a] += alpha * d
        else:
            assert name == "soft_rdq"
            v[x] += alpha * (d - 1e-3 * v[x])
            f[x] = [f[x][b] + alpha * (d * is_a[b] - 1e-3 * f[x][b] / num_actions) for b in actions]
        n[x][a] += 1
    return [[v[x] + abar(x)[b] for b in actions] for x in range(num_states)]


@pytest.mark.parametrize("known", [True, False])
@pytest.mark.parametrize("control", [True, False])
def test_learning_is_that_of_the_plain_reference(control: bool, known: bool) -> None:
    m, x, a, steps, sizes = 3, 4, 5, 150, (0.1, 0.3)
    mdp = with_an_end(random_mdps(m, num_states=x, num_actions=a, seed=5))
    mu = random_policies(m, x, a, uniform_share=0.1, seed=5)
    policy = None if control else random_policies(m, x, a, seed=5)
    path = sample_trajectory(mdp, mu, steps, seed=5)
    learners = Learners.grid(list(METHODS.values()), sizes)
    values = learn(
        mdp, path, learners, behaviour=mu if known else None, policy=policy, period_steps=steps
    )
    *_, (step, q) = values
    assert (step, q.shape) == (steps, (m, x, a, 16)) and q.dtype == np.float64
    for i in range(m):
        columns = (path.state, path.action, path.reward, path.discount, path.next_state)
        rows = list(zip(*(column[:, i].tolist() for column in columns), strict=True))
        for k, (name, size) in enumerate((n, s) for n in NAMES for s in sizes):
            plain = plain_learn(
                name,
                size,
                rows,
                x,
                a,
                mu[i].tolist() if known else None,
                None if policy is None else policy[i].tolist(),
            )
            assert q[i, :, :, k] == pytest.approx(np.array(plain), abs=1e-9), (name, size, i)


def test_values_come_at_the_period_and_do_not_depend_on_it() -> None:
    mdp = random_mdps(2, num_states=3, num_actions=4)
    mu = uniform_policies(2, 3, 4)
    path = sample_trajectory(mdp, mu, 50)
    learners = Learners.grid([METHODS["va_raw"]], [0.1])
    often = dict(learn(mdp, path, learners, behaviour=mu, policy=None, period_steps=10))
    seldom = dict(learn(mdp, path, learners, behaviour=mu, policy=None, period_steps=20))
    assert list(often) == [0, 10, 20, 30, 40, 50] and list(seldom) == [0, 20, 40]
    assert (often[40] == seldom[40]).all()


@pytest.mark.filterwarnings("error")
def test_a_learner_that_diverges_leaves_its_neighbours_alone() -> None:
    mdp = random_mdps(2, num_states=3, num_actions=4)
    mu = uniform_policies(2, 3, 4)
    path = sample_trajectory(mdp, mu, 400)
    sane = [METHODS[name] for name in EXACT]
    *_, (_, alone) = learn(
        mdp, path, Learners.grid(sane, [0.1]), behaviour=mu, policy=None, period_steps=400
    )
    beside = Learners.grid([METHODS["hard_rdq"]], [60.0])
    both = Learners(
        *(np.concatenate(pair) for pair in zip(Learners.grid(sane, [0.1]), beside, strict=True))
    )
    *_, (_, q) = learn(mdp, path, both, behaviour=mu, policy=None, period_steps=400)
    assert q[..., :-1] == pytest.approx(alone, abs=1e-12)
    assert not np.isfinite(q[..., -1]).all()


def test_every_method_finds_the_values() -> None:
    mdp = random_mdps(2, num_states=3, num_actions=2, gamma=0.5, seed=6)
    mu = uniform_policies(2, 3, 2)
    path = sample_trajectory(mdp, mu, 6_000, seed=6)
    learners = Learners.grid(list(METHODS.values()), [0.02])
    *_, (_, q) = learn(mdp, path, learners, behaviour=mu, policy=None, period_steps=6_000)
    error = np.abs(q - optimal_values(mdp)[..., None]).mean(axis=(0, 1, 2))
    assert (error < 0.15).all(), dict(zip(NAMES, error, strict=True))


# -- MDPs, policies, exact values, trajectories ------------------------------------------------


def test_counts() -> None:
    counts = np.array([[0.0, 0.0, 0.0], [4.0, 0.0, 1.0]])
    assert estimated_behaviour(counts).tolist() == [
        pytest.approx([1 / 3] * 3),
        pytest.approx([5 / 8, 1 / 8, 2 / 8]),
    ]


def test_counted_behaviour_is_of_the_steps_before() -> None:
    mdp = self_loop([1.0, 0.0])
    path = Trajectory(
        state=np.zeros((1, 1), dtype=np.int64),
        action=np.zeros((1, 1), dtype=np.int64),
        reward=np.ones((1, 1)),
        discount=np.full((1, 1), 0.9),
        next_state=np.zeros((1, 1), dtype=np.int64),
    )
    learners = Learners.grid([METHODS["va_centred"]], [0.5])
    *_, (_, q) = learn(mdp, path, learners, behaviour=None, policy=None, period_steps=1)
    # Updated with mu_hat = (1/2, 1/2): F = (.25, -.25); read with (2/3, 1/3): F(x,mu) = 1/12.
    assert q[0, 0, :, 0].tolist() == approx([0.5 + 0.25 - 1 / 12, 0.5 - 0.25 - 1 / 12])


@pytest.mark.parametrize("with_end", [True, False])
def test_exact_values_solve_their_equations(with_end: bool) -> None:
    mdp = random_mdps(3, num_states=5, num_actions=4, seed=7)
    mdp = with_an_end(mdp) if with_end else mdp
    policy = random_policies(3, 5, 4, seed=7)
    q = policy_values(mdp, policy)
    assert backup(mdp, (policy * q).sum(axis=-1)) == pytest.approx(q, abs=1e-9)
    best = optimal_values(mdp)
    assert backup(mdp, best.max(axis=-1)) == pytest.approx(best, abs=1e-11)
    assert (best >= q - 1e-9).all()
    greedy = policy_values(mdp, epsilon_greedy(best, 0.0))
    assert greedy == pytest.approx(best, abs=1e-9)


def test_nothing_follows_a_terminal_state() -> None:
    base = random_mdps(1, num_states=2, num_actions=3, seed=8)
    transition = np.zeros_like(base.transition)
    transition[..., 1] = 1.0
    mdp = with_an_end(dataclasses.replace(base, transition=transition))
    assert optimal_values(mdp) == approx(base.reward)


def test_the_corridor() -> None:
    mdp = corridor(2, num_actions=10, gamma=0.99)
    assert mdp.reward.shape == (2, 70, 10)
    assert mdp.terminal.sum(axis=1).tolist() == [2, 2]
    assert set(mdp.transition.ravel()) == {0.0, 1.0}
    q = optimal_values(mdp)
    # 5 up, 51 to the right, 4 up: 60 moves, the last of which is rewarded.
    assert q[0, mdp.start[0]].max() == pytest.approx(0.99**59)
    assert q[0, mdp.start[0]].argmax() == 0  # up
    # No-ops and walls cost one step.
    assert q[0, mdp.start[0], 1:] == pytest.approx(np.full(9, 0.99**60))
    path = sample_trajectory(mdp, epsilon_greedy(q, 0.0), 150)
    assert np.flatnonzero(path.discount[:, 0] == 0).tolist() == [59, 119]
    assert path.reward[:, 0].sum() == 2
    assert path.state[[0, 60, 120], 0].tolist() == [mdp.start[0]] * 3
    # Five actions reach the small reward at the top left as well.
    assert sorted(set(mdp.reward.ravel())) == [0.0, 0.1, 1.0]


def test_the_corridor_needs_a_no_op() -> None:
    with pytest.raises(ValueError, match="5 actions"):
        corridor(num_actions=4)


def test_trajectories_follow_the_mdp_and_mu() -> None:
    mdp = random_mdps(2, num_states=3, num_actions=4, seed=9)
    mu = random_policies(2, 3, 4, uniform_share=0.1, seed=9)
    path = sample_trajectory(mdp, mu, 20_000, seed=9)
    assert (path.state[1:] == path.next_state[:-1]).all() and (path.discount == 0.9).all()
    for m in range(2):
        x, a, following = path.state[:, m], path.action[:, m], path.next_state[:, m]
        assert (path.reward[:, m] == mdp.reward[m, x, a]).all()
        pairs = np.zeros((3, 4, 3))
        np.add.at(pairs, (x, a, following), 1)
        visits = pairs.sum(axis=-1)
        frequency = visits / visits.sum(axis=-1, keepdims=True)
        spread = 5 / np.sqrt(visits.sum(axis=-1, keepdims=True))
        assert (np.abs(frequency - mu[m]) < spread).all()
        frequency = pairs / visits[..., None]
        assert (np.abs(frequency - mdp.transition[m]) < 5 / np.sqrt(visits)[..., None]).all()


def test_more_mdps_leave_the_first_ones_as_they_are() -> None:
    few, many = (random_mdps(n, num_states=3, num_actions=4) for n in (2, 5))
    assert (few.transition == many.transition[:2]).all() and (few.reward == many.reward[:2]).all()
    assert (random_policies(2, 3, 4) == random_policies(5, 3, 4)[:2]).all()
    mu = uniform_policies(5, 3, 4)
    first, all_ = sample_trajectory(few, mu[:2], 30), sample_trajectory(many, mu, 30)
    assert all((a == b[:, :2]).all() for a, b in zip(first, all_, strict=True))
    assert (random_mdps(2, seed=1).reward != random_mdps(2, seed=2).reward).all()


def test_random_policies() -> None:
    pi, mu = random_policies(2, 3, 4), random_policies(2, 3, 4, uniform_share=0.1)
    assert pi.shape == mu.shape == (2, 3, 4)
    assert pi.sum(axis=-1) == approx(np.ones((2, 3)))
    assert mu.sum(axis=-1) == approx(np.ones((2, 3)))
    assert mu.min() >= 0.1 / 4
    assert np.abs(mu - (0.9 * pi + 0.1 / 4)).max() > 0.05  # other draws than the target policy's
    assert epsilon_greedy(np.array([[[1.0, 3.0, 3.0]]]), 0.3)[0, 0].tolist() == approx(
        [0.1, 0.8, 0.1]
    )


def test_mdps_are_checked() -> None:
    mdp = random_mdps(2, num_states=3, num_actions=4)
    with pytest.raises(ValueError, match="gamma"):
        dataclasses.replace(mdp, gamma=1.0)
    with pytest.raises(ValueError, match="distributions"):
        dataclasses.replace(mdp, transition=2 * mdp.transition)
    with pytest.raises(ValueError, match="shapes"):
        dataclasses.replace(mdp, start=np.zeros(3, dtype=np.int64))
