"""Model directories to and from the Hugging Face Hub; thin, and only where it is asked for.

Whose account it is, and how it is proved, is ``huggingface_hub``'s own business.
"""

import tempfile
from pathlib import Path
from typing import Any

from classicrl.errors import UserError
from classicrl.experiment import MODEL_FILE
from classicrl.model_directory import CARD_FILE, FILES, check_model, write_directory
from classicrl.reports.players import Player


def push(directory: Path, name: str, *, private: bool = False) -> str:
    """Uploads a model directory, its four files and nothing else.

    Args:
        directory: of :func:`classicrl.model_directory.export_model`.
        name: ``owner/name`` on the hub; made if absent.
        private: whether others may not see it, if it is made now.

    Returns:
        Where it is.

    Raises:
        UserError: if it is no model directory, ``huggingface_hub`` is missing or the hub refuses.
    """
    hub = _hub()
    _require_name(name)
    if not (directory / CARD_FILE).exists():
        raise UserError(
            f"{directory} has no {CARD_FILE}: make a model directory with classicrl export first"
        )
    check_model(directory)
    try:
        api = hub.HfApi()
        api.create_repo(name, private=private, exist_ok=True)
        api.upload_folder(
            repo_id=name,
            folder_path=str(directory),
            allow_patterns=list(FILES),
            commit_message="Model directory of classicrl",
        )
    except Exception as error:  # of many kinds: network, account, quota
        raise UserError(f"the hub did not take {name}: {_reason(error)}") from error
    return f"https://huggingface.co/{name}"


def pull(name: str, out: Path, *, revision: str | None = None) -> Player:
    """Downloads a model directory and checks it before it gets its name.

    Args:
        name: ``owner/name`` on the hub.
        out: the directory to make; it must not exist, or be empty.
        revision: a commit, which cannot change behind one's back; None for the newest.

    Returns:
        Whose weights they are.

    Raises:
        UserError: if ``huggingface_hub`` is missing, the hub has no such model, or the files are
            not what :func:`classicrl.model_directory.check_model` takes.
    """
    hub = _hub()
    _require_name(name)
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise UserError(f"{out} exists: choose another --out, or take it away")
    with tempfile.TemporaryDirectory() as temporary:
        try:
            hub.snapshot_download(
                name, revision=revision, local_dir=temporary, allow_patterns=list(FILES)
            )
        except Exception as error:
            raise UserError(f"the hub did not give {name}: {_reason(error)}") from error
        here = Path(temporary)
        if not (here / MODEL_FILE).exists():
            raise UserError(f"{name} holds no {MODEL_FILE}: it is no model of classicrl")
        player = check_model(here)
        write_directory(
            out, {name: (here / name).read_bytes() for name in FILES if (here / name).exists()}
        )
    return player


def _hub() -> Any:
    try:
        import huggingface_hub

        huggingface_hub.HfApi  # noqa: B018  # a mere folder of that name can be imported, too
    except (ImportError, AttributeError) as error:
        raise UserError(
            'this needs huggingface_hub, which is not installed: pip install "classicrl[hub]"'
        ) from error
    return huggingface_hub


def _require_name(name: str) -> None:
    owner, _, model = name.partition("/")
    if not owner or not model or "/" in model:
        raise UserError(f"{name!r} is not of the form OWNER/NAME")


def _reason(error: Exception) -> str:
    return " ".join(f"{type(error).__name__}: {error}".split())[:300]
