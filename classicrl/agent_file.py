"""A trained agent from its model file: the network, how it acts, and what it was trained for."""

import dataclasses
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Literal, NamedTuple, get_args

import numpy as np
import torch
from numpy.typing import NDArray

from classicrl.algorithms.ppo import SampledPolicy
from classicrl.checkpoint import load_model, require_fit
from classicrl.control_evaluation import ControlEvaluator, ControlPolicy
from classicrl.envs.atari import PROTOCOLS, AtariProtocol, AtariSingle
from classicrl.envs.continuous import CONTROL_PROTOCOLS, ContinuousVector, ControlProtocol
from classicrl.envs.gym_vector import GYM_PROTOCOLS, GymProtocol, GymVector
from classicrl.errors import UserError
from classicrl.evaluation import AtariEvaluator, GymEvaluator
from classicrl.experiment import MODEL_FILE
from classicrl.networks.actor_critic import (
    ActorCritic,
    PolicyName,
    RecurrentActorCritic,
    atari_actor_critic,
    vector_actor_critic,
)
from classicrl.networks.q_network import (
    HeadName,
    QNetwork,
    TorsoName,
    atari_q_network,
    minatar_q_network,
    vector_q_network,
)
from classicrl.networks.symphony import SymphonyActor

GymTorsoName = Literal["minatar", "vector"]
ControlTorsoName = Literal["symphony"]
ACTOR_CRITIC = "actor-critic"  # the head of agents that draw their actions

Network = QNetwork | ActorCritic | RecurrentActorCritic | SymphonyActor


class AgentCard(NamedTuple):
    """What a model file says of itself."""

    agent: str
    env_id: str
    protocol: AtariProtocol | GymProtocol | ControlProtocol
    torso: str
    head: str
    step: int  # agent decisions that it was trained for

    def __str__(self) -> str:
        return (
            f"{self.agent} on {self.env_id} ({self.protocol.name}), weights of step {self.step:,}"
        )


class Agent(NamedTuple):
    """A trained agent, ready to play."""

    policy: Callable[[NDArray[Any]], NDArray[Any]]  # observations -> actions
    network: Network
    card: AgentCard


def load_agent(path: Path, device: torch.device | str = "cpu") -> Agent:
    """The agent of a model file, or of the run directory that holds one.

    Args:
        path: a ``.safetensors`` file that training wrote, or a directory with
            ``model.safetensors``.
        device: where the network computes.

    Raises:
        UserError: if there is none, it is damaged, or another program wrote it.
    """
    path = model_path(path)
    tensors, metadata = load_model(path)
    card = _card(path, metadata)
    network, num_actions = network_of(card, tensors)
    what = f"{card.torso}, {card.head}, {num_actions} actions of {card.env_id}"
    require_fit(path, tensors, network, f"the network that it names ({what})")
    network.load_state_dict(tensors)
    network.to(torch.device(device))
    if isinstance(card.protocol, AtariProtocol):
        network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    network.eval()
    if isinstance(network, SymphonyActor):
        return Agent(_control_policy(network), network, card)
    if not isinstance(network, QNetwork):
        return Agent(SampledPolicy(network), network, card)

    @torch.inference_mode()
    def policy(obs: NDArray[Any]) -> NDArray[np.int64]:
        actions: NDArray[np.int64] = (
            network(torch.from_numpy(obs).to(device)).q.argmax(dim=1).cpu().numpy()
        )
        return actions

    return Agent(policy, network, card)


def model_path(path: Path) -> Path:
    """The model file of a run directory or a model directory, or the file itself.

    Raises:
        UserError: if there is none.
    """
    if not path.exists():
        raise UserError(f"{path} does not exist: name a run directory or a model file")
    if not path.is_dir():
        return path
    if not (path / MODEL_FILE).exists():
        # Of seeds trained side by side each has its own, beside what they share.
        near = [p.parent for d in (path, path.parent) for p in d.glob(f"seed*/{MODEL_FILE}")]
        example = f", such as {min(near)}," if near else ""
        raise UserError(
            f"{path} holds no {MODEL_FILE}: name a run that has saved a checkpoint{example} or "
            "a model file"
        )
    return path / MODEL_FILE


def evaluator_of(
    agent: Agent,
    *,
    seed: int = 0,
    epsilon: float | None = None,
    max_frames: int | None = None,
    num_threads: int = 0,
    should_stop: Callable[[], bool] = lambda: False,
) -> AtariEvaluator | GymEvaluator | ControlEvaluator:
    """What plays games with an agent.

    Args:
        agent: from :func:`load_agent`.
        seed: the same seed plays the same games.
        epsilon: share of random actions; None for what the agent's protocol says.
        max_frames: after which a game is cut on Atari; elsewhere steps. None for what the protocol
            says.
        num_threads: of Atari's emulators; 0 for all that this process may use.
        should_stop: asked at every step; what is under way is then given up.
    """
    env_id, protocol = agent.card.env_id, agent.card.protocol
    if isinstance(protocol, ControlProtocol):
        if epsilon:
            raise UserError(f"--epsilon {epsilon}: {env_id} takes no discrete actions")
        if max_frames is not None:
            protocol = dataclasses.replace(protocol, max_episode_steps=max_frames)
        return ControlEvaluator(agent.policy, env_id, protocol, seed=seed, should_stop=should_stop)
    if isinstance(protocol, GymProtocol):
        if max_frames is not None:
            protocol = dataclasses.replace(protocol, max_episode_steps=max_frames)
        return GymEvaluator(
            agent.policy, env_id, protocol, seed=seed, epsilon=epsilon, should_stop=should_stop
        )
    if max_frames is not None:
        protocol = dataclasses.replace(protocol, max_frames_per_episode=max_frames)
    return AtariEvaluator(
        agent.policy,
        env_id,
        protocol,
        seed=seed,
        epsilon=epsilon,
        num_threads=num_threads,
        should_stop=should_stop,
    )


def _control_policy(actor: SymphonyActor) -> ControlPolicy:
    @torch.inference_mode()
    def policy(obs: NDArray[Any]) -> NDArray[np.float32]:
        seen = torch.from_numpy(obs).to(actor.centre.device)
        return actor.env_action(actor(seen).action).cpu().numpy()

    return policy


def network_of(card: AgentCard, tensors: Mapping[str, torch.Tensor]) -> tuple[Network, int]:
    """The network that a card names, and its number of actions (or of their dimensions).

    Building the game is the one way to learn that number, and that the game is installed.
    """
    head: Any = card.head
    if isinstance(card.protocol, ControlProtocol):
        controlled = ContinuousVector(card.env_id, 1, seeds=0)
        size = controlled.action_size
        second = tensors.get("block.second.weight", torch.empty(1))  # if not there, it is refused
        actor = SymphonyActor(
            controlled.obs_size, size, len(second), obs_norm="obs_norm.mean" in tensors
        )
        return actor, size
    if isinstance(card.protocol, AtariProtocol):
        num_actions = AtariSingle(card.env_id, protocol=card.protocol, seed=0).num_actions
        if card.head == ACTOR_CRITIC:
            return atari_actor_critic(card.torso, num_actions), num_actions  # type: ignore[arg-type]
        return atari_q_network(card.torso, head, num_actions), num_actions  # type: ignore[arg-type]
    env = GymVector(card.env_id, 1, seeds=0)
    if card.head == ACTOR_CRITIC:
        return vector_actor_critic(env.obs_shape[-1], env.num_actions), env.num_actions
    if card.torso == "vector":
        return vector_q_network(head, env.obs_shape[-1], env.num_actions), env.num_actions
    centred_by = [f"head.{name}.hidden.bias" for name in ("behaviour", "centre")]
    widths = [len(tensors[name]) for name in centred_by if name in tensors]
    network = minatar_q_network(
        head, env.obs_shape[-1], env.num_actions, behaviour_hidden=max(widths, default=64)
    )
    return network, env.num_actions


def protocol_named(name: str) -> AtariProtocol | GymProtocol | ControlProtocol:
    """The rules of that name; KeyError if this version has none."""
    known: dict[str, AtariProtocol | GymProtocol | ControlProtocol] = {
        **PROTOCOLS,
        **GYM_PROTOCOLS,
        **CONTROL_PROTOCOLS,
    }
    return known[name]


def _card(path: Path, metadata: dict[str, str]) -> AgentCard:
    missing = [name for name in AgentCard._fields if name not in metadata]
    if missing:
        raise UserError(
            f"{path} was not written by an agent of classicrl that can be evaluated: its metadata "
            f"lacks {', '.join(missing)}"
        )
    torsos, heads = get_args(TorsoName), (*get_args(HeadName), ACTOR_CRITIC)
    if metadata["protocol"] in CONTROL_PROTOCOLS:
        torsos, heads = get_args(ControlTorsoName), ("actor",)
    elif metadata["protocol"] not in PROTOCOLS:
        torsos = get_args(GymTorsoName)
    elif metadata["head"] == ACTOR_CRITIC:
        torsos = get_args(PolicyName)
    choices = {
        "protocol": (*PROTOCOLS, *GYM_PROTOCOLS, *CONTROL_PROTOCOLS),
        "torso": torsos,
        "head": heads,
    }
    for field, known in choices.items():
        if metadata[field] not in known:
            raise UserError(
                f"{path} names the {field} {metadata[field]!r}; this version knows "
                f"{', '.join(known)}"
            )
    if not metadata["step"].isdecimal():
        raise UserError(f"{path} names the training step {metadata['step']!r}, not a number")
    return AgentCard(
        agent=metadata["agent"],
        env_id=metadata["env_id"],
        protocol=protocol_named(metadata["protocol"]),
        torso=metadata["torso"],
        head=metadata["head"],
        step=int(metadata["step"]),
    )
