"""A trained agent from its model file: the network, how it acts, and what it was trained for."""

from pathlib import Path
from typing import NamedTuple, get_args

import numpy as np
import torch
from numpy.typing import NDArray

from classicrl.checkpoint import load_model
from classicrl.envs.atari import PROTOCOLS, AtariProtocol, AtariSingle
from classicrl.errors import UserError
from classicrl.evaluation import Policy
from classicrl.networks.q_network import HeadName, QNetwork, TorsoName, atari_q_network

MODEL_FILE = "model.safetensors"


class AgentCard(NamedTuple):
    """What a model file says of itself."""

    agent: str
    env_id: str
    protocol: AtariProtocol
    torso: str
    head: str
    step: int  # agent decisions that it was trained for

    def __str__(self) -> str:
        return (
            f"{self.agent} on {self.env_id} ({self.protocol.name}), weights of step {self.step:,}"
        )


class Agent(NamedTuple):
    """A trained agent, ready to play."""

    policy: Policy
    network: QNetwork
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
    if path.is_dir():
        if not (path / MODEL_FILE).exists():
            raise UserError(
                f"{path} holds no {MODEL_FILE}: name a run that has saved a checkpoint, or a "
                "model file"
            )
        path = path / MODEL_FILE
    elif not path.exists():
        raise UserError(f"{path} does not exist: name a run directory or a model file")
    tensors, metadata = load_model(path)
    card = _card(path, metadata)
    # Building the game is the one way to learn its number of actions, and that it is installed.
    num_actions = AtariSingle(card.env_id, protocol=card.protocol, seed=0).num_actions
    network = atari_q_network(card.torso, card.head, num_actions)  # type: ignore[arg-type]
    expected = {name: tuple(tensor.shape) for name, tensor in network.state_dict().items()}
    for name in sorted(expected.keys() | tensors.keys()):
        found = tuple(tensors[name].shape) if name in tensors else None
        if found != expected.get(name):
            raise UserError(
                f"{path} does not fit the network that it names ({card.torso}, {card.head}, "
                f"{num_actions} actions of {card.env_id}): {name} is {found or 'missing'}, "
                f"expected {expected.get(name) or 'none'}"
            )
        if not torch.isfinite(tensors[name]).all():
            raise UserError(f"{path} has NaN or infinite weights in {name}: they cannot play")
    network.load_state_dict(tensors)
    network.to(torch.device(device)).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    network.eval()

    @torch.inference_mode()
    def policy(obs: NDArray[np.uint8]) -> NDArray[np.int64]:
        actions: NDArray[np.int64] = (
            network(torch.from_numpy(obs).to(device)).q.argmax(dim=1).cpu().numpy()
        )
        return actions

    return Agent(policy, network, card)


def _card(path: Path, metadata: dict[str, str]) -> AgentCard:
    missing = [name for name in AgentCard._fields if name not in metadata]
    if missing:
        raise UserError(
            f"{path} was not written by an agent of classicrl that can be evaluated: its metadata "
            f"lacks {', '.join(missing)}"
        )
    choices = {
        "protocol": tuple(PROTOCOLS),
        "torso": get_args(TorsoName),
        "head": get_args(HeadName),
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
        protocol=PROTOCOLS[metadata["protocol"]],
        torso=metadata["torso"],
        head=metadata["head"],
        step=int(metadata["step"]),
    )
