"""A trained agent to hand on: a directory with its weights, its settings, its scores and a card.

model.safetensors   the weights, with what they are for
config.json         the settings and versions of the training, without paths
summary.json        its figures and its last evaluation, where the run was finished
README.md           a model card: all of that in words, and how to use it

Names are those of a run directory, so whatever takes a run directory takes a model directory.
"""

import json
import math
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from classicrl.agent_file import model_path
from classicrl.checkpoint import load_model, write_atomic
from classicrl.errors import UserError
from classicrl.experiment import (
    CONFIG_FILE,
    MODEL_FILE,
    SUMMARY_FILE,
    json_bytes,
    read_json_if_there,
    versions,
)
from classicrl.reports.players import Player, player_of
from classicrl.reports.plots import protocol_in_words
from classicrl.reports.publish import command_of, without_paths
from classicrl.reports.statistics import bootstrap_interval

CARD_FILE = "README.md"
FILES = (MODEL_FILE, CONFIG_FILE, SUMMARY_FILE, CARD_FILE)

_MAX_JSON_BYTES = 1 << 22
_MAX_MODEL_BYTES = 1 << 32
# Settings that decide what is played and the network's kind and sizes.
_OF_THE_NETWORK = (
    *("env_id", "protocol", "member", "torso", "policy", "hidden", "obs_norm"),
    *("actions", "embedding_size", "hidden_size", "num_blocks"),
)
_VERSIONS = ("classicrl", "python", "torch", "numpy", "gymnasium", "ale-py", "minatar", "mujoco")


def export_model(run_directory: Path, out: Path, *, licence: str = "mit") -> Player:
    """Makes a model directory of a run, finished or not.

    Args:
        run_directory: or a model directory, whose card is then written anew.
        out: the directory to make; it must not exist, or be empty.
        licence: of the weights, an SPDX name in lower case.

    Returns:
        Whose weights they are.

    Raises:
        UserError: if the run has no weights that can be played, or ``out`` cannot be made.
    """
    source = model_path(run_directory)
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise UserError(f"{out} exists: choose another --out, or take it away")
    player = player_of(source)
    directory = source.parent
    record = read_json_if_there(directory / CONFIG_FILE)
    summary = read_json_if_there(directory / SUMMARY_FILE)
    texts = {MODEL_FILE: source.read_bytes()}
    if record:
        texts[CONFIG_FILE] = json_bytes(without_paths(record))
    if summary:
        texts[SUMMARY_FILE] = json_bytes(without_paths(summary))
    texts[CARD_FILE] = model_card(
        player, record, summary, out.resolve().name, licence=licence
    ).encode()
    write_directory(out, texts)
    return player


def check_model(directory: Path) -> Player:
    """Whose weights a model directory from elsewhere holds. Nothing in it is run.

    Raises:
        UserError: if a file is a link, too large or damaged, or the weights are none of this
            package's, do not fit the network that they name, or are not finite.
    """
    for name in FILES:
        path = directory / name
        if path.is_symlink() or (path.exists() and not path.is_file()):
            raise UserError(f"{path} is no ordinary file")
        limit = _MAX_MODEL_BYTES if name == MODEL_FILE else _MAX_JSON_BYTES
        if path.exists() and path.stat().st_size > limit:
            raise UserError(f"{path} has more than {limit:,} bytes")
    source = model_path(directory)
    _, metadata = load_model(source)
    if ":" in metadata.get("env_id", ""):  # gymnasium would import the part before it
        raise UserError(f"{source} names the environment {metadata['env_id']!r}, which is refused")
    for name in (CONFIG_FILE, SUMMARY_FILE):
        read_json_if_there(directory / name)
    return player_of(source)


def write_directory(out: Path, files: Mapping[str, bytes]) -> None:
    """Makes a directory that appears with all of its files or not at all.

    Raises:
        UserError: if the disk refuses.
    """
    out = out.resolve()  # "." has no name of its own
    fresh = out.with_name(f".{out.name}.tmp-{os.getpid()}")
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        fresh.mkdir()
        for name, data in files.items():
            write_atomic(fresh / name, data)
        fresh.replace(out)
    except OSError as error:
        shutil.rmtree(fresh, ignore_errors=True)
        raise UserError(f"cannot write {out} ({error.strerror}): choose another --out") from error


def model_card(
    player: Player,
    record: Mapping[str, Any],
    summary: Mapping[str, Any],
    name: str,
    *,
    licence: str,
) -> str:
    """The card in Markdown, with the head that model hubs read; no figure that is not recorded."""
    lines = [
        "---",
        "library_name: classicrl",
        f"license: {json.dumps(licence)}",
        "tags:",
        "- reinforcement-learning",
        f"- {json.dumps(player.agent)}",
        f"- {json.dumps(player.env_id)}",
        "---",
        "",
        f"# {player.agent} on {player.env_id}",
        "",
        f"Weights after {player.step:,} "
        + ("updates" if player.env_id.startswith("cube3") else "steps")
        + ", trained with classicrl.",
        "",
        "| | |",
        "|---|---|",
        f"| environment | {player.env_id} |",
        f"| protocol | {player.protocol}: {protocol_in_words(player.protocol)} |",
        *(f"| {what} | {value} |" for what, value in _facts(summary)),
        "",
    ]
    if record.get("config"):
        command = command_of(player.agent, without_paths(dict(record)))
        lines += ["## Trained with", "", "```", command, "```", ""]
    trained_by = record.get("versions") or summary.get("versions") or {}
    if isinstance(trained_by, dict) and trained_by:
        known = [f"{key} {trained_by[key]}" for key in _VERSIONS if trained_by.get(key)]
        lines += [", ".join(known) + ".", ""]
        if trained_by.get("commit"):
            lines += [f"Commit {trained_by['commit']}.", ""]
    lines += ["## How to use it", "", "```", f"pip install {_package(player)}"]
    if player.env_id.startswith("cube3"):
        lines += [f'classicrl solve --network {name} --scramble "R U2 F"']
    else:
        lines += [f"classicrl evaluate {name} --episodes 30"]
    lines += [
        f"{_trains_on(player, record, name)}   # from the repository: trains on",
        "```",
        "",
        f"Licence of the weights: {licence}. Exported with classicrl {versions()['classicrl']}.",
    ]
    return "\n".join(lines) + "\n"


def _facts(summary: Mapping[str, Any]) -> list[tuple[str, str]]:
    """What the summary says of scores and training, in words."""
    scores, facts = summary.get("eval"), []
    if isinstance(scores, dict) and isinstance(scores.get("mean_return"), int | float):
        score = f"{scores['mean_return']:.2f}"
        if isinstance(scores.get("std_return"), int | float):
            score += f" +- {scores['std_return']:.2f}"
        score += f" over {scores.get('episodes')} games"
        returns = scores.get("returns")
        if isinstance(returns, list) and returns and all(map(_is_number, returns)):
            low, high = bootstrap_interval(returns)
            score += f", 95% interval of the mean [{low:.2f}, {high:.2f}]"
        facts.append(("return", score))
        facts.append(("played with", f"epsilon {scores.get('epsilon')}"))
    else:
        facts.append(("return", "not recorded: the run was not finished"))
    for name, words in (("seed", "seed"), ("machine", "machine")):
        if isinstance(summary.get(name), str | int):
            facts.append((words, str(summary[name])))
    if _is_number(summary.get("wall_seconds")):
        facts.append(("training", f"{summary['wall_seconds'] / 3600:.2f} hours"))
    return facts


def _trains_on(player: Player, record: Mapping[str, Any], name: str) -> str:
    """The command that begins with these weights, in the same environment and with a network like
    theirs."""
    script = player.agent.partition("-")[0]
    config = record.get("config")
    known = dict(config) if isinstance(config, dict) else {}
    if not player.env_id.startswith("cube3"):
        known["env_id"] = player.env_id
    kept = {key: known[key] for key in _OF_THE_NETWORK if known.get(key) is not None}
    settings = {**kept, "init_from": name}
    return command_of(script, {"config": settings})


def _package(player: Player) -> str:
    """What to install to play it."""
    for start, extra in (("ALE/", "atari"), ("MinAtar/", "minatar")):
        if player.env_id.startswith(start):
            return f'"classicrl[{extra}]"'
    # Of the continuous ones Pendulum alone needs no simulator.
    mujoco = player.protocol == "control" and not player.env_id.startswith("Pendulum")
    return '"classicrl[mujoco]"' if mujoco else "classicrl"


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and math.isfinite(value)
