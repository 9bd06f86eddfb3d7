"""Tabular VA-learning and its relatives: learners of V and A, and Q-learning to compare with.

The paper's (Tang et al. 2023, VA-learning, arXiv 2305.18161), and no more than its abstract says:
V and A are learnt directly, by bootstrapping and without Q; off-policy; the method is closely
connected to dueling. Derived here: the expected recursion (:func:`expected_update`), its limit, and
the resting points named below. Ours: the sampled updates of a table are a reconstruction, none is
quoted from the paper. Dueling is Wang et al. 2016 (arXiv 1511.06581), RDQ (regularised dueling
Q-learning) is arXiv 2507.09523; their tabular forms here are likewise ours.

Two tables V(x) and F(x,b), a behaviour policy mu that acts, a target policy pi:

    A(x,b) = F(x,b) - sum_c c(c|x) F(x,c)            c: the centring distribution, or none (A = F)
    q(x,b) = V(x) + A(x,b)
    y      = r + g (1-d) [ V(x') + sum_b pi(b|x') A(x',b) ]      evaluation
    y      = r + g (1-d) [ V(x') + max_b A(x',b) ]               control
    dA     = y - q(x,a)

    method             c      V(x) +=                F(x,b) += , for every b
    Q-learning         no V   -                      alpha dA 1{b=a}
    VA raw             none   alpha (y - V)          alpha dA 1{b=a}
    VA centred         mu     alpha (y - V)          alpha dA (1{b=a} - mu(b))
    VA projected       none   alpha (y - V)          alpha dA 1{b=a}, then F(x,.) -= F(x,mu)
    uniform dueling    1/nA   alpha dA               alpha dA (1{b=a} - 1/nA)
    behaviour dueling  mu     alpha dA               alpha dA (1{b=a} - mu(b))
    hard RDQ           none   alpha dA               alpha dA 1{b=a}
    soft RDQ           none   alpha (dA - beta V)    alpha (dA 1{b=a} - beta F(x,b)/nA)

Right-hand sides use the values from before the update, and the projection the F just updated.

Traps:

- The default form of VA is `raw`: it needs no mu. `centred` is the image of a network whose
  advantages are centred by mu. Centred and projected are the same where mu is uniform.
- V is not V^pi unless mu = pi, and in control it is not max_a Q*. It rests at q(x,mu) for the three
  VA forms and behaviour dueling, at mean_a q for uniform dueling, and at sum_a q/(nA+1) for hard
  RDQ that began at zero, because hard RDQ keeps V - sum_b F constant.
- Equal step sizes are not equal steps. With the target held, q(x,a) moves by alpha dA times 1 in
  Q-learning, 2 in hard RDQ, 2 - 1/nA in uniform dueling and 2 - 2 mu(a) + sum_c mu(c)^2 in
  behaviour dueling.
- VA raw overshoots. Its A forgets what V has learnt only at rate alpha: with a single action and
  small alpha, q follows a constant target beyond it, and a target that varies is passed on
  amplified by up to 2/sqrt(3) = 1.15; the error of a state that leads to itself swings with damping
  ratio sqrt(1-g) [derived]. Where mu is nearly deterministic this is the whole of it, and along a
  chain of such states the factors multiply: see the corridor. Centred and projected do not.
- Soft RDQ divides the penalty on F by nA. It is biased by O(beta) and rests at V = mean_b F(x,b).
- A tabular dueling update that shifts all F by alpha/nA without the TD error is another, wrong one:
  1/nA above multiplies dA.
- All this needs mu > 0. No convergence proof is claimed for the sampled forms.

Everything is float64. Axes: M MDPs (or seeds), X states, A actions, L learners side by side (every
method at every step size), T steps. L comes last, so that NumPy sums over actions run along memory.
"""

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Indices = NDArray[np.int64]

DEFAULT_BETA = 1e-3

# Streams of random numbers, one per concern, so that none depends on another.
_MDP_STREAM, _POLICY_STREAM, _TRAJECTORY_STREAM = range(3)


# -- Methods -----------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Method:
    """One row of the table in this module's docstring.

    Args:
        label: for people.
        centre: the centring distribution c.
        value_error: what V is moved by. ``own``: y - V. ``shared``: dA. ``none``: there is no V.
        projects: whether F(x,mu) is subtracted from F(x,.) after the update.
        beta: strength of soft RDQ's penalty.
    """

    label: str
    centre: Literal["none", "uniform", "behaviour"]
    value_error: Literal["none", "own", "shared"]
    projects: bool = False
    beta: float = 0.0


METHODS: Mapping[str, Method] = {
    "q_learning": Method("Q-learning", "none", "none"),
    "va_raw": Method("VA raw", "none", "own"),
    "va_centred": Method("VA centred", "behaviour", "own"),
    "va_projected": Method("VA projected", "none", "own", projects=True),
    "uniform_dueling": Method("uniform dueling", "uniform", "shared"),
    "behaviour_dueling": Method("behaviour dueling", "behaviour", "shared"),
    "hard_rdq": Method("hard RDQ", "none", "shared"),
    "soft_rdq": Method("soft RDQ", "none", "shared", beta=DEFAULT_BETA),
}


class Learners(NamedTuple):
    """Coefficients of the one update rule that covers all methods; float64 ``[L]`` each.

    All but ``step_size`` and ``beta`` are 0 or 1.
    """

    step_size: Floats
    has_value: Floats
    shares_error: Floats  # V is moved by dA; otherwise by y - V
    centres_uniformly: Floats
    centres_by_behaviour: Floats
    projects: Floats
    beta: Floats

    @classmethod
    def grid(cls, methods: Sequence[Method], step_sizes: Sequence[float]) -> "Learners":
        """Every method at every step size, the step size varying fastest: ``L = K * S``."""
        pairs = [(method, step_size) for method in methods for step_size in step_sizes]
        columns = [
            (
                step_size,
                method.value_error != "none",
                method.value_error == "shared",
                method.centre == "uniform",
                method.centre == "behaviour",
                method.projects,
                method.beta,
            )
            for method, step_size in pairs
        ]
        return cls(*np.array(columns, dtype=np.float64).reshape(len(pairs), 7).T)


# -- One update --------------------------------------------------------------------------------


def centring_term(learners: Learners, advantage: Floats, behaviour: Floats) -> Floats:
    """``sum_c c(c|x) F(x,c)``, what is to be subtracted from F to get A; zero if c is none.

    Args:
        learners: L of them.
        advantage: F(x,.), ``[..., A, L]``.
        behaviour: mu(.|x), ``[..., A]``.

    Returns:
        ``[..., L]``.
    """
    num_actions: int = advantage.shape[-2]
    total: Floats = advantage.sum(axis=-2)
    uniform = learners.centres_uniformly / num_actions
    by_behaviour = learners.centres_by_behaviour
    return uniform * total + by_behaviour * mean_under(behaviour, advantage)


def mean_under(distribution: Floats, table: Floats) -> Floats:
    """``sum_b distribution(b) table(b)``: ``[..., A]`` and ``[..., A, L]`` -> ``[..., L]``."""
    product: Floats = np.matmul(distribution[..., None, :], table)[..., 0, :]
    return product


def bootstrap(
    learners: Learners,
    value: Floats,
    advantage: Floats,
    behaviour: Floats,
    policy: Floats | None = None,
) -> Floats:
    """What follows the discount in y: ``V + sum_b pi(b) A(b)``, or ``V + max_b A(b)``.

    Args:
        learners: L of them.
        value: V(x'), ``[..., L]``.
        advantage: F(x',.), ``[..., A, L]``.
        behaviour: mu(.|x'), ``[..., A]``.
        policy: pi(.|x'), ``[..., A]``; None: control.

    Returns:
        ``[..., L]``.
    """
    if policy is None:
        chosen: Floats = advantage.max(axis=-2)
    else:
        chosen = mean_under(policy, advantage)
    return value + chosen - centring_term(learners, advantage, behaviour)


def update(
    learners: Learners,
    value: Floats,
    advantage: Floats,
    target: Floats,
    action: Indices,
    behaviour: Floats,
) -> tuple[Floats, Floats]:
    """One sampled update at one state of each of N tables: the module's table, all methods at once.

    With dA = y - V - A(a), V moves by alpha (y - V) or alpha dA, which differ by A(a) only.

    Args:
        learners: L of them.
        value: V(x), ``[N, L]``; stays zero where a method has no V.
        advantage: F(x,.), ``[N, A, L]``.
        target: y, ``[N, L]``.
        action: a, int64 ``[N]``.
        behaviour: mu(.|x), ``[N, A]``.

    Returns:
        The new V(x) and F(x,.), in new arrays.
    """
    num_actions: int = behaviour.shape[-1]
    row = np.arange(len(behaviour))
    uniform = learners.centres_uniformly / num_actions
    taken = advantage[row, action] - centring_term(learners, advantage, behaviour)  # A(x,a)
    own_error = target - value
    td_error = own_error - taken
    new_value = value + learners.step_size * learners.has_value * (
        own_error - learners.shares_error * taken - learners.beta * value
    )
    step = learners.step_size * td_error  # [N, L]
    centre = uniform + learners.centres_by_behaviour * behaviour[..., None]  # c, [N, A, L]
    new_advantage = advantage * (1 - learners.step_size * learners.beta / num_actions)
    new_advantage -= centre * step[:, None]
    new_advantage[row, action] += step
    shift = learners.projects * mean_under(behaviour, new_advantage)
    new_advantage -= shift[:, None]
    return new_value, new_advantage


def action_values(
    learners: Learners, value: Floats, advantage: Floats, behaviour: Floats
) -> Floats:
    """``q = V + A`` of whole tables.

    Args:
        learners: L of them.
        value: V, ``[M, X, L]``.
        advantage: F, ``[M, X, A, L]``.
        behaviour: mu, ``[M, X, A]``.

    Returns:
        ``[M, X, A, L]``.
    """
    offset = value - centring_term(learners, advantage, behaviour)
    return advantage + offset[..., None, :]


def estimated_behaviour(counts: Floats) -> Floats:
    """``mu_hat(a|x) = (N(x,a) + 1) / (N(x) + nA)`` from counts of actions, ``[..., A]``.

    Uniform where nothing was seen, never zero.
    """
    num_actions: int = counts.shape[-1]
    visits: Floats = counts.sum(axis=-1, keepdims=True)
    return (counts + 1) / (visits + num_actions)


# -- MDPs --------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class MDP:
    """M finite MDPs of one size.

    Args:
        transition: P(x'|x,a), ``[M, X, A, X]``.
        reward: r(x,a), ``[M, X, A]``.
        gamma: discount per step, in [0, 1).
        terminal: bool ``[M, X]``: entering the state ends the episode; its values are zero.
        start: int64 ``[M]``: the state in which every episode begins.

    Raises:
        ValueError: if shapes do not fit, rows of P are no distributions, or gamma is not in [0, 1).
    """

    transition: Floats
    reward: Floats
    gamma: float
    terminal: NDArray[np.bool_]
    start: Indices

    def __post_init__(self) -> None:
        m, x, a = self.reward.shape
        shapes = (self.transition.shape, self.terminal.shape, self.start.shape)
        if shapes != ((m, x, a, x), (m, x), (m,)):
            raise ValueError(f"shapes {shapes} do not fit rewards of shape {self.reward.shape}")
        if (self.transition < 0).any() or not np.allclose(self.transition.sum(axis=-1), 1):
            raise ValueError("transition must hold distributions along its last axis")
        if not 0 <= self.gamma < 1:
            raise ValueError(f"gamma must be in [0, 1), got {self.gamma}")

    @property
    def live(self) -> Floats:
        """1 for states that are not terminal, else 0; float64 ``[M, X]``."""
        return np.where(self.terminal, 0.0, 1.0)


def random_mdps(
    num_mdps: int,
    *,
    num_states: int = 20,
    num_actions: int = 5,
    gamma: float = 0.9,
    concentration: float = 0.5,
    seed: int = 0,
) -> MDP:
    """Random MDPs without end: P(.|x,a) ~ Dirichlet(concentration), r(x,a) ~ N(0,1).

    The m-th MDP depends on ``seed`` and m alone, not on how many there are.
    """
    transitions, rewards = [], []
    for m in range(num_mdps):
        rng = np.random.default_rng([seed, m, _MDP_STREAM])
        alphas = np.full(num_states, concentration)
        transitions.append(rng.dirichlet(alphas, size=(num_states, num_actions)))
        rewards.append(rng.standard_normal((num_states, num_actions)))
    return MDP(
        transition=np.stack(transitions),
        reward=np.stack(rewards),
        gamma=gamma,
        terminal=np.zeros((num_mdps, num_states), dtype=np.bool_),
        start=np.zeros(num_mdps, dtype=np.int64),
    )


def self_loop(reward: Sequence[float], gamma: float = 0.9) -> MDP:
    """One MDP with one state that leads to itself, an action for every reward."""
    num_actions = len(reward)
    return MDP(
        transition=np.ones((1, 1, num_actions, 1)),
        reward=np.array(reward, dtype=np.float64).reshape(1, 1, num_actions),
        gamma=gamma,
        terminal=np.zeros((1, 1), dtype=np.bool_),
        start=np.zeros(1, dtype=np.int64),
    )


_VERTICAL_STATES, _HORIZONTAL_STATES, _JUNCTION_ROW = 10, 50, 5
_MOVES = ((0, 1), (0, -1), (-1, 0), (1, 0))  # up, down, left, right; what follows are no-ops


def corridor(
    num_seeds: int = 1,
    *,
    num_actions: int = 5,
    gamma: float = 0.99,
    large_reward: float = 1.0,
    small_reward: float = 0.1,
) -> MDP:
    """Three connected corridors, after Wang et al. 2016, section 4.1; ``num_seeds`` equal copies.

    After the paper, as we know it: two vertical corridors of 10 states joined by a horizontal one
    of 50; up, down, left, right and no-op, and further no-ops to make 10 or 20 actions; the agent
    starts at the bottom left, the largest reward is at the top right; a reward is received upon
    arrival and ends the episode; there is a smaller one elsewhere. Ours, because we could not read
    it off the paper: the horizontal corridor joins the vertical ones at their sixth state from
    below; the small reward is at the top left; the sizes of both rewards; gamma; a move into a wall
    does nothing. Results are therefore not comparable with the paper's figures.

    Returns:
        Deterministic MDPs with 70 states.

    Raises:
        ValueError: if ``num_actions`` is below 5.
    """
    if num_actions <= len(_MOVES):
        raise ValueError(f"the corridor has at least {len(_MOVES) + 1} actions, got {num_actions}")
    right = _HORIZONTAL_STATES + 1  # column of the right vertical corridor
    cells = [(0, row) for row in range(_VERTICAL_STATES)]
    cells += [(column, _JUNCTION_ROW) for column in range(1, right)]
    cells += [(right, row) for row in range(_VERTICAL_STATES)]
    index = {cell: i for i, cell in enumerate(cells)}
    rewards = {
        index[right, _VERTICAL_STATES - 1]: large_reward,
        index[0, _VERTICAL_STATES - 1]: small_reward,
    }
    transition = np.zeros((len(cells), num_actions, len(cells)))
    reward = np.zeros((len(cells), num_actions))
    for (column, row), x in index.items():
        for a in range(num_actions):
            across, up = _MOVES[a] if a < len(_MOVES) else (0, 0)
            after = x if x in rewards else index.get((column + across, row + up), x)
            transition[x, a, after] = 1.0
            if x not in rewards:
                reward[x, a] = rewards.get(after, 0.0)
    terminal = np.isin(np.arange(len(cells)), list(rewards))
    return MDP(
        transition=np.repeat(transition[None], num_seeds, axis=0),
        reward=np.repeat(reward[None], num_seeds, axis=0),
        gamma=gamma,
        terminal=np.repeat(terminal[None], num_seeds, axis=0),
        start=np.full(num_seeds, index[0, 0], dtype=np.int64),
    )


# -- Policies ----------------------------------------------------------------------------------


def random_policies(
    num_mdps: int,
    num_states: int,
    num_actions: int,
    *,
    uniform_share: float = 0.0,
    seed: int = 0,
) -> Floats:
    """Per state a draw from Dirichlet(1), mixed with the uniform policy; ``[M, X, A]``.

    A behaviour policy needs ``uniform_share`` > 0, so that no action is too rare to be learnt. The
    draw for the m-th MDP depends on ``seed``, m and whether there is a share, so that a behaviour
    and a target policy of one seed are independent.
    """
    policies = []
    for m in range(num_mdps):
        rng = np.random.default_rng([seed, m, _POLICY_STREAM, int(uniform_share > 0)])
        policies.append(rng.dirichlet(np.ones(num_actions), size=num_states))
    drawn: Floats = np.stack(policies)
    return (1 - uniform_share) * drawn + uniform_share / num_actions


def uniform_policies(num_mdps: int, num_states: int, num_actions: int) -> Floats:
    """``[M, X, A]``, all 1/nA."""
    return np.full((num_mdps, num_states, num_actions), 1 / num_actions)


def epsilon_greedy(q: Floats, epsilon: float) -> Floats:
    """The best action of q (the first, where several are) but for a share of uniform ones.

    ``[M, X, A] -> [M, X, A]``.
    """
    num_actions: int = q.shape[-1]
    greedy: Floats = np.eye(num_actions)[q.argmax(axis=-1)]
    return (1 - epsilon) * greedy + epsilon / num_actions


# -- Exact values ------------------------------------------------------------------------------


def policy_values(mdp: MDP, policy: Floats) -> Floats:
    """Q^pi by one linear solve per MDP; policy ``[M, X, A]`` -> ``[M, X, A]``.

    v = r^pi + g P^pi v over states that are not terminal, then Q^pi = r + g P v.
    """
    num_states = mdp.reward.shape[1]
    live = mdp.live
    transition = np.einsum("mxa,mxay->mxy", policy, mdp.transition) * live[:, None, :]
    reward = (policy * mdp.reward).sum(axis=-1)
    value = np.linalg.solve(np.eye(num_states) - mdp.gamma * transition, reward[..., None])
    return backup(mdp, value[..., 0])


def optimal_values(mdp: MDP, *, tolerance: float = 1e-12) -> Floats:
    """Q* by value iteration to within ``tolerance`` of it in max-norm; ``[M, X, A]``.

    The bound is in exact arithmetic; rounding adds to it what it must.
    """
    q = np.zeros_like(mdp.reward)
    while True:
        following = backup(mdp, q.max(axis=-1))
        change = float(np.abs(following - q).max())
        q = following
        # Rounding may keep the change from falling below a few units in the last place.
        floor = 4 * np.finfo(np.float64).eps * float(np.abs(q).max())
        if change * mdp.gamma <= max(tolerance * (1 - mdp.gamma), floor):
            return q


def backup(mdp: MDP, state_value: Floats) -> Floats:
    """``r(x,a) + g sum_x' P(x'|x,a) v(x')``, v zero where terminal; ``[M, X] -> [M, X, A]``."""
    reached = mdp.live * state_value
    expected: Floats = np.matmul(mdp.transition, reached[:, None, :, None])[..., 0]
    q: Floats = mdp.reward + mdp.gamma * expected
    return q


def expected_update(
    mdp: MDP,
    value: Floats,
    advantage: Floats,
    behaviour: Floats,
    policy: Floats | None = None,
) -> tuple[Floats, Floats]:
    """One step of the expected recursion, at all states at once [derived]:

        V'(x) = sum_a mu(a|x) (T q)(x,a),  A'(x,a) = (T q)(x,a) - V'(x),  q = V + A

    T is the Bellman operator of ``policy``, or the optimal one. Then sum_a mu(a|x) A'(x,a) = 0 and
    V' + A' = T q, so the max-norm error of q shrinks by gamma or more per step. The limit is
    V(x) = sum_a mu(a|x) q^(x,a), A = q^ - V, with q^ = Q^pi or Q*. That V is not V^pi unless
    mu = pi, and not max_a Q*.

    Args:
        mdp: M of them.
        value: ``[M, X]``.
        advantage: ``[M, X, A]``.
        behaviour: mu, ``[M, X, A]``, positive everywhere.
        policy: pi, ``[M, X, A]``; None: control.

    Raises:
        ValueError: if mu is not positive: an action that is never taken is never learnt.
    """
    if not (behaviour > 0).all():
        raise ValueError("behaviour must give every action a positive probability")
    q = value[..., None] + advantage
    following = q.max(axis=-1) if policy is None else (policy * q).sum(axis=-1)
    target = backup(mdp, following)
    new_value = (behaviour * target).sum(axis=-1)
    return new_value, target - new_value[..., None]


# -- Learning from one trajectory --------------------------------------------------------------


class Trajectory(NamedTuple):
    """What M agents met in T steps. It depends on the MDPs and mu only: all methods share it.

    ``next_state`` is the state entered; after a terminal one the next row's ``state`` is the start.
    """

    state: Indices  # [T, M]
    action: Indices  # [T, M]
    reward: Floats  # [T, M]
    discount: Floats  # [T, M], gamma, or 0 where next_state is terminal
    next_state: Indices  # [T, M]


def sample_trajectory(mdp: MDP, behaviour: Floats, num_steps: int, *, seed: int = 0) -> Trajectory:
    """One continuing trajectory per MDP under mu, ``[M, X, A]``.

    The m-th depends on ``seed``, m, its MDP and its mu alone.
    """
    num_mdps = len(mdp.reward)
    draws = np.stack(
        [
            np.random.default_rng([seed, m, _TRAJECTORY_STREAM]).random((num_steps, 2))
            for m in range(num_mdps)
        ],
        axis=1,
    )  # [T, M, 2]
    # The last entry is left out: it is 1 but for rounding, and a draw beyond it must find the end.
    action_edges = behaviour.cumsum(axis=-1)[..., :-1]
    state_edges = mdp.transition.cumsum(axis=-1)[..., :-1]
    row = np.arange(num_mdps)
    states, actions, next_states = np.empty((3, num_steps, num_mdps), dtype=np.int64)
    x = mdp.start
    for t in range(num_steps):
        a = (draws[t, :, :1] >= action_edges[row, x]).sum(axis=-1)
        following = (draws[t, :, 1:] >= state_edges[row, x, a]).sum(axis=-1)
        states[t], actions[t], next_states[t] = x, a, following
        x = np.where(mdp.terminal[row, following], mdp.start, following)
    return Trajectory(
        state=states,
        action=actions,
        reward=mdp.reward[row, states, actions],
        discount=mdp.gamma * mdp.live[row, next_states],
        next_state=next_states,
    )


def learn(
    mdp: MDP,
    trajectory: Trajectory,
    learners: Learners,
    *,
    behaviour: Floats | None,
    policy: Floats | None,
    period_steps: int,
) -> Iterator[tuple[int, Floats]]:
    """All learners on one trajectory, from tables of zeros.

    Args:
        mdp: M of them; only their size is used.
        trajectory: T steps of each.
        learners: L of them.
        behaviour: mu, ``[M, X, A]``, as known; None: estimated from the actions of all steps before
            the present one (:func:`estimated_behaviour`). An estimate that changes also changes the
            q of centred methods, with no update.
        policy: pi, ``[M, X, A]``, to evaluate; None: control.
        period_steps: how often the values are wanted.

    Yields:
        The steps done (0 first) and q, ``[M, X, A, L]``. Step sizes that are too large for a method
        yield infinities or NaN there and nowhere else.
    """
    num_mdps, num_states, num_actions = mdp.reward.shape
    num_learners = len(learners.step_size)
    row = np.arange(num_mdps)
    value = np.zeros((num_mdps, num_states, num_learners))
    advantage = np.zeros((num_mdps, num_states, num_actions, num_learners))
    counts = np.zeros((num_mdps, num_states, num_actions))
    counted = behaviour is None

    def mu_of(x: Indices) -> Floats:
        return estimated_behaviour(counts[row, x]) if behaviour is None else behaviour[row, x]

    def values() -> Floats:
        mu = estimated_behaviour(counts) if behaviour is None else behaviour
        with np.errstate(over="ignore", invalid="ignore"):
            return action_values(learners, value, advantage, mu)

    yield 0, values()
    for t in range(len(trajectory.state)):
        x, a, following = trajectory.state[t], trajectory.action[t], trajectory.next_state[t]
        mu = mu_of(x)
        with np.errstate(over="ignore", invalid="ignore"):
            next_value = bootstrap(
                learners,
                value[row, following],
                advantage[row, following],
                mu_of(following),
                None if policy is None else policy[row, following],
            )
            target = trajectory.reward[t, :, None] + trajectory.discount[t, :, None] * next_value
            value[row, x], advantage[row, x] = update(
                learners, value[row, x], advantage[row, x], target, a, mu
            )
        if counted:
            counts[row, x, a] += 1
        if (t + 1) % period_steps == 0:
            yield t + 1, values()
