"""Prompts on a model hub: what ``push_to_hub`` sends, and the folder that ``from_pretrained("owner/name")`` reads.

All calls go through huggingface_hub, which transformers brings; it is imported where it is used, and nothing is asked
of a hub before one of the two functions is called. Its own variables are heeded: ``HF_ENDPOINT`` (another hub),
``HF_HOME`` (where files are kept), ``HF_HUB_OFFLINE`` and ``HF_TOKEN``.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from dplearn.checkpoint import CARD, CARD_MARK, CONFIG, EXPECTED, OURS
from dplearn.checks import shown
from dplearn.version import __version__

LIBRARY = {"library_name": "dplearn", "library_version": __version__}


# --- reading ---


def located(
    folder: str | os.PathLike,
    *,
    revision: str | None = None,
    token: str | bool | None = None,
    cache_dir: str | os.PathLike | None = None,
    local_files_only: bool = False,
) -> Path:
    """The folder of a checkpoint: ``folder`` itself, or where the files of the repository of that name lie.

    A string of the form "owner/name" that is no folder here is a repository. Of it come ``prompt_config.json`` and the
    one file of tensors that it names, both of one commit, and no more. Files that are in the cache of huggingface_hub
    already are not fetched again; without a connection, the cache alone is read.

    Parameters
    ----------
    revision : branch, tag or commit of the repository; None: its main branch.
    token : what a private repository asks for; None: the one of ``hf auth login`` or ``HF_TOKEN``.
    cache_dir : where files are kept; None: the cache of huggingface_hub.
    local_files_only : read the cache and ask nobody.

    Raises
    ------
    FileNotFoundError : no such repository, revision or file, or not in the cache while the hub cannot be reached.
    PermissionError : the hub wants a token, or does not take this one.
    ValueError : ``revision`` is given for a folder.
    """
    if not is_repository(folder):
        if revision is not None:
            raise ValueError(
                f"revision={revision!r} is one of a repository, but folder={str(folder)!r} is a folder: expected "
                "revision=None, or folder='owner/name'"
            )
        return Path(folder)
    from huggingface_hub import hf_hub_download

    options: dict[str, Any] = dict(
        token=token, cache_dir=cache_dir, local_files_only=local_files_only, **LIBRARY
    )
    with _explained(str(folder), revision):
        config = Path(hf_hub_download(folder, CONFIG, revision=revision, **options))
        name = _tensor_file(config)
        if name is not None:  # of the same commit: the name of a snapshot's folder
            hf_hub_download(folder, name, revision=config.parent.name, **options)
    return config.parent


def is_repository(folder: str | os.PathLike) -> bool:
    """Whether a name is that of a repository on a hub: a string "owner/name" that is no folder here.

    >>> is_repository("someone/some-prompt"), is_repository("my-prompt"), is_repository("./runs/my-prompt")
    (True, False, False)
    """
    from huggingface_hub.utils import HFValidationError, validate_repo_id

    if not isinstance(folder, str) or folder.count("/") != 1 or os.path.lexists(folder):
        return False
    try:
        validate_repo_id(folder)
    except HFValidationError:
        return False
    return True


def _tensor_file(config: Path) -> str | None:
    """The file of tensors that settings name, where that is a name of ours; :mod:`dplearn.checkpoint` judges others."""
    try:
        name = json.loads(config.read_bytes())["weights"]["file"]
    except (KeyError, RecursionError, TypeError, ValueError):
        return None
    return name if isinstance(name, str) and OURS.fullmatch(name) else None


@contextmanager
def _explained(folder: str, revision: str | None) -> Iterator[None]:
    """The errors of a download in words that name the argument."""
    from huggingface_hub import errors

    named = f"folder={folder!r}"
    try:
        yield
    except errors.GatedRepoError:
        raise PermissionError(
            f"{named} is a repository that one has to be admitted to: ask on its page, then give token="
        ) from None
    except errors.RepositoryNotFoundError:
        raise FileNotFoundError(
            f"{named} is no folder here and no repository on the hub that this token may see, expected {EXPECTED}, "
            "or 'owner/name' of a prompt that push_to_hub wrote (of a private one: with token=)"
        ) from None
    except errors.RevisionNotFoundError:
        raise FileNotFoundError(
            f"revision={revision!r} is unknown in {named}, expected a branch, a tag or a commit of it"
        ) from None
    except errors.LocalEntryNotFoundError as error:
        raise FileNotFoundError(
            f"{named} is no folder here, and as a repository it is not in the cache while the hub cannot be asked "
            f"(no connection, HF_HUB_OFFLINE, or local_files_only=True): expected {EXPECTED}"
        ) from error
    except errors.EntryNotFoundError:
        raise FileNotFoundError(
            f"{named} is a repository without {CONFIG} or the tensors that it names, expected one that push_to_hub "
            "wrote"
        ) from None
    except errors.HfHubHTTPError as error:
        raise _refused(named, error) from error


def _refused(named: str, error: Any) -> Exception:
    """The error for an answer of the hub that is neither yes nor "not there"."""
    status = error.response.status_code
    if status in (401, 403):
        return PermissionError(
            f"{named}: the hub does not allow it (HTTP {status}), expected a token that may: give token=, or log in "
            "once with 'hf auth login'"
        )
    return ConnectionError(f"{named}: the hub answered HTTP {status}: {shown(str(error))}")


# --- writing ---


def upload(
    repo_id: str,
    files: Mapping[str, bytes],
    *,
    private: bool | None = None,
    token: str | bool | None = None,
    revision: str | None = None,
    commit_message: str | None = None,
    create_pr: bool = False,
) -> str:
    """Send the files of a checkpoint in one commit; the address of that commit.

    The repository is made where it is missing. Tensor files of earlier commits leave in the same commit, and a
    README.md that dplearn did not write stays as it is.

    Raises
    ------
    ValueError : ``repo_id`` is no name of a repository.
    PermissionError : there is no token, or it may not write there.
    """
    from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi, errors

    check_name(repo_id)
    api = HfApi(token=token, **LIBRARY)
    try:
        repo_id = api.create_repo(repo_id, private=private, exist_ok=True).repo_id
        if revision is not None and not create_pr:
            api.create_branch(repo_id, branch=revision, exist_ok=True)
        there = api.list_repo_files(repo_id, revision=revision)
        keeps = CARD in there and not _is_ours(api.hf_hub_download(repo_id, CARD, revision=revision))
        operations = [
            CommitOperationAdd(name, data) for name, data in files.items() if name != CARD or not keeps
        ]
        old = [name for name in there if OURS.fullmatch(name) and name not in files]
        operations += [CommitOperationDelete(name) for name in old]
        commit = api.create_commit(
            repo_id,
            operations,
            commit_message=commit_message or f"A prompt, by dplearn {__version__}",
            revision=revision,
            create_pr=create_pr,
        )
    except errors.HfHubHTTPError as error:
        raise _refused(f"repo_id={repo_id!r}", error) from error
    return commit.pr_url or commit.commit_url


def check_name(repo_id: str) -> None:
    """Raise ValueError where ``repo_id`` is no name that a repository can have."""
    from huggingface_hub.utils import HFValidationError, validate_repo_id

    try:
        validate_repo_id(repo_id)
    except HFValidationError as error:
        raise ValueError(
            f"repo_id={shown(repo_id)}, expected the name of a repository, 'owner/name': {error}"
        ) from None


def _is_ours(card: str) -> bool:
    return CARD_MARK.encode() in Path(card).read_bytes()
