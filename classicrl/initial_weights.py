"""Fine-tuning: a new run that begins with the weights of a trained agent (``--init-from``).

Only the parameters of the network that a model file holds are taken, and what belongs to them, such
as the standardisation of observations. Optimiser, replay, counters, random numbers and networks
beside it (a bonus, critics) begin anew. A run that has a checkpoint continues from that instead.
"""

from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from classicrl.agent_file import AgentCard, model_path, network_of, protocol_named
from classicrl.checkpoint import load_model, require_fit
from classicrl.cube_solver import load_network
from classicrl.errors import UserError
from classicrl.experiment import MODEL_FILE

# What may differ between the agent that was trained and the one that goes on. All else that a card
# says decides about the network's layers.
_MAY_DIFFER = {"agent", "env_id", "protocol", "step"}


def require_initial_weights(
    init_from: Path | str | None,
    directory: Path,
    card: Mapping[str, str],
    *,
    overwrite: bool,
    seeds: Sequence[int] = (),
    network: Callable[[], nn.Module] | None = None,
) -> None:
    """Refuses weights that the run could not begin with, before anything is deleted or made.

    Args:
        init_from: a model file, or a run or model directory; None: nothing to check.
        directory: of the run, or what seeds trained side by side share. If there are checkpoints
            in it that shall stay, the run continues from them, and nothing is checked.
        card: what the run's own model files will say of themselves.
        overwrite: whether the run deletes what is in its directory.
        seeds: of members side by side; see :func:`take_initial_weights`.
        network: makes the run's network, for its shapes. None: the card says all about it.

    Raises:
        UserError: if a file is missing, damaged, of another kind of agent or network, or would be
            deleted by ``overwrite``.
    """
    if init_from is None or (not overwrite and (directory / "checkpoints").exists()):
        return
    own = [directory, *(directory.parent / f"seed{seed}" for seed in seeds)]
    for path in _files(Path(init_from), seeds):
        if overwrite and any(path.resolve().is_relative_to(each.resolve()) for each in own):
            raise UserError(
                f"--init-from {init_from} lies in the run directory, which --overwrite empties: "
                "choose another --run-dir"
            )
        tensors, _ = _read(path, card)
        if "domain" in card:  # load_network has compared the shapes with the card
            continue
        expected, where = (network(), "") if network else _expected(card, tensors)
        require_fit(path, tensors, expected, f"this run's network{where}")


@torch.no_grad()
def take_initial_weights(
    network: nn.Module,
    init_from: Path | str,
    card: Mapping[str, str],
    *,
    seeds: Sequence[int] = (),
    keep: Collection[str] = (),
) -> str:
    """Sets a network's parameters and buffers, in place, to those of a model file.

    Args:
        network: of the new run, on any device; with ``seeds``, of so many members side by side.
        init_from: a model file, or a run or model directory. With ``seeds`` also a directory with
            ``seed<n>`` for each of them: then each member begins with its own, else all with the
            same.
        card: as for :func:`require_initial_weights`.
        seeds: of the members; none for an ordinary network.
        keep: names of tensors that stay as they are, such as the range of actions.

    Returns:
        A line that says what the run begins with.

    Raises:
        UserError: as :func:`require_initial_weights`.
    """
    own = network.state_dict()
    states, line = [], ""
    for path in _files(Path(init_from), seeds):
        tensors, metadata = _read(path, card)
        alone = {n: t[0] for n, t in own.items()} if seeds else own
        require_fit(path, tensors, alone, "this run's network")
        states.append(tensors)
        line = line or (
            f"beginning with the weights of {path}: {metadata.get('agent')}"
            + (f" on {metadata['env_id']}" if "env_id" in metadata else "")
            + f", step {int(metadata.get('step', 0)):,}"
        )
    if seeds:
        states = states * (len(seeds) // len(states))
        line += ", and each other seed with its own" if len(set(map(id, states))) > 1 else ""
    for name, values in own.items():
        if name not in keep:
            taken = torch.stack([state[name] for state in states]) if seeds else states[0][name]
            values.copy_(taken)
    return line


def _files(source: Path, seeds: Sequence[int]) -> list[Path]:
    """The model file, or that of each seed."""
    of_seeds = [source / f"seed{seed}" / MODEL_FILE for seed in seeds]
    if of_seeds and not (source / MODEL_FILE).exists() and all(p.exists() for p in of_seeds):
        return of_seeds
    return [model_path(source)]


def _read(path: Path, card: Mapping[str, str]) -> tuple[Mapping[str, Tensor], dict[str, str]]:
    """Tensors and metadata of a file whose network is of the kind that the card names."""
    tensors, metadata = load_model(path)
    if "domain" in card:  # a file that does not say so is of Q
        card, metadata = {"function": "q", **card}, {"function": "q", **metadata}
    differing = [
        f"{name} {metadata.get(name, 'unknown')}, not {value}"
        for name, value in card.items()
        if name not in _MAY_DIFFER and metadata.get(name) != value
    ]
    if differing:
        raise UserError(
            f"--init-from {path} holds another kind of network, of "
            f"{metadata.get('agent', 'a program that does not say its name')}: it has "
            + "; ".join(differing)
        )
    if "domain" in card:
        return load_network(path).network.state_dict(), metadata
    return tensors, metadata


def _expected(card: Mapping[str, str], tensors: Mapping[str, Tensor]) -> tuple[nn.Module, str]:
    """The network of an agent that is not trained yet, and what it is for, in words."""
    named = AgentCard(
        agent=card["agent"],
        env_id=card["env_id"],
        protocol=protocol_named(card["protocol"]),
        torso=card["torso"],
        head=card["head"],
        step=0,
    )
    network, num_actions = network_of(named, tensors)
    return network, f" ({num_actions} actions of {named.env_id})"
