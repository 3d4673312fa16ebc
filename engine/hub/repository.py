"""What the hub says of a model: its revision, its licence, and its files with sizes and checksums."""

from __future__ import annotations

import errno
import hashlib
import logging
import os
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path, PurePosixPath
from typing import Any, cast

MAX_FILES = 20_000  # files of a repository that are looked at
MAX_PATH_CHARS = 300
TIMEOUT_SECONDS = 30.0
SEARCH_RESULTS = 10
LIBRARY_NAME = "darkroom"  # what the hub is told of the caller
_COMMIT = re.compile(r"[0-9a-f]{40}")


@dataclass(frozen=True)
class RepositoryFile:
    """A file on the hub. `sha256`: of its content, where it is stored by Git LFS; else `git_sha1`, its Git blob id.

    `target`: its path here, if that is another one.
    """

    path: str
    size: int
    sha256: str = ""
    git_sha1: str = ""
    target: str = ""

    @property
    def has_checksum(self) -> bool:
        return bool(self.sha256 or self.git_sha1)

    @property
    def local_path(self) -> str:
        return self.target or self.path


@dataclass(frozen=True)
class Repository:
    """A model at one revision. `licence`: as its card names it; `is_gated`: the hub asks for an accepted account."""

    hub_id: str
    revision: str
    files: tuple[RepositoryFile, ...]
    licence: str = ""
    licence_link: str = ""
    is_gated: bool = False


def fetch_repository(hub_id: str, revision: str | None = None) -> Repository:
    """Ask the hub for a model; `revision` is a commit, branch or tag. Raises `HubError`."""
    _require_client()
    try:
        info = _make_api().model_info(hub_id, revision=revision, files_metadata=True, timeout=TIMEOUT_SECONDS)
    except Exception as error:
        raise explain_error(error, hub_id, revision) from error
    commit = str(info.sha or "")
    if not _COMMIT.fullmatch(commit):
        raise HubError(f"The hub does not say which revision of {hub_id} it has.")
    card = _read_card(info)
    name = str(card.get("license_name") or card.get("license") or "")
    link = str(card.get("license_link") or "")
    files = tuple(_read_file(each) for each in list(info.siblings or ())[:MAX_FILES] if is_safe(str(each.rfilename)))
    return Repository(hub_id, commit, files, name[:100], link[:300], bool(info.gated))


def search_hub(word: str) -> list[str]:
    """Return hub ids of text-to-image models that match the word, the most downloaded first. Raises `HubError`."""
    parameters = {
        "search": word,
        "pipeline_tag": "text-to-image",
        "filter": "diffusers",
        "sort": "downloads",
        "limit": SEARCH_RESULTS,
    }
    _require_client()
    from huggingface_hub.utils import build_hf_headers, get_session, hf_raise_for_status

    try:  # one request: `list_models` tries five times, and somebody waits
        session = cast(Any, get_session)()
        headers = cast(Any, build_hf_headers)(library_name=LIBRARY_NAME)
        url = f"{get_endpoint()}/api/models"
        response = session.get(url, params=parameters, headers=headers, timeout=TIMEOUT_SECONDS)
        cast(Any, hf_raise_for_status)(response)
        models = cast(list[dict[str, Any]], response.json())
        return [str(model["id"]) for model in models[:SEARCH_RESULTS]]
    except Exception as error:
        raise explain_error(error, word, None) from error


def _require_client() -> None:
    """Raise `HubError` where the client is not installed, as in a bot without an engine."""
    if find_spec("huggingface_hub") is None:
        raise HubError("This needs huggingface_hub: pip install 'darkroom-bot[all]'.")
    logging.getLogger("huggingface_hub").setLevel(logging.ERROR)  # its warnings of each new try are no sentences


def _make_api() -> Any:
    from huggingface_hub import HfApi

    return cast(Any, HfApi)(endpoint=get_endpoint(), library_name=LIBRARY_NAME)


def _read_card(info: Any) -> dict[str, Any]:
    card = info.card_data
    return cast(dict[str, Any], card.to_dict()) if card is not None else {}


def _read_file(sibling: Any) -> RepositoryFile:
    lfs = sibling.lfs
    size = int((lfs.size if lfs is not None else sibling.size) or 0)
    sha256 = str(lfs.sha256) if lfs is not None else ""
    return RepositoryFile(str(sibling.rfilename), size, sha256, "" if sha256 else str(sibling.blob_id or ""))


def is_safe(path: str) -> bool:
    """Whether a file's path stays inside the folder it is written to."""
    parts: Sequence[str] = PurePosixPath(path).parts
    return (
        len(parts) > 0
        and len(path) <= MAX_PATH_CHARS
        and path.isprintable()
        and "\\" not in path
        and not path.startswith("/")
        and not any(part in ("..", ".") or part.startswith(".") for part in parts)
    )


TOKEN_MEND = "then set HF_TOKEN to a token of that account, or sign in with `hf auth login`"  # noqa: S105 - a sentence


class HubError(Exception):
    """A request that cannot be answered. `sentence` says why, and what mends it."""

    def __init__(self, sentence: str) -> None:
        super().__init__(sentence)
        self.sentence = sentence


def explain_error(error: Exception, hub_id: str, revision: str | None) -> HubError:
    """Return the sentence for an error of `huggingface_hub`, of the network under it, or of the disk."""
    from huggingface_hub import errors

    if isinstance(error, HubError):
        return error
    if isinstance(error, errors.OfflineModeIsEnabled):
        return HubError("The hub is not asked, since HF_HUB_OFFLINE or TRANSFORMERS_OFFLINE is set: unset it.")
    if isinstance(error, errors.GatedRepoError):
        return _explain_gate(hub_id)
    if isinstance(error, errors.RevisionNotFoundError):
        return HubError(
            f"The hub has no revision {revision or 'main'} of {hub_id} any more: `--revision main` takes the newest."
        )
    if isinstance(error, errors.RepositoryNotFoundError):
        return _explain_missing_repository(error, hub_id)
    if isinstance(error, errors.EntryNotFoundError):
        return HubError(f"A file of {hub_id} is gone from the hub: try another --revision.")
    if isinstance(error, errors.HFValidationError):
        return HubError(f"{hub_id[:100]!r} is no name on the hub: one such as owner/name is needed.")
    if isinstance(error, errors.HfHubHTTPError):
        return _explain_status(error, hub_id)
    return _explain_other(error, hub_id)


def explain_disk_error(error: OSError, folder: object) -> HubError:
    """Return the sentence for an error of the disk."""
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return HubError(
            f"The disk of {folder} is full: free some space and run the same command again; it goes on from here."
        )
    return HubError(f"{folder} cannot be written: {(error.strerror or str(error)).lower()}.")


def get_endpoint() -> str:
    """Return the hub's address: HF_ENDPOINT, else the usual one, without a slash at its end."""
    return (os.environ.get("HF_ENDPOINT") or "https://huggingface.co").rstrip("/")


def _explain_gate(hub_id: str) -> HubError:
    return HubError(
        f"The authors of {hub_id} ask for an account that has accepted their conditions: accept them at "
        f"{get_endpoint()}/{hub_id}, {TOKEN_MEND}."
    )


def _explain_missing_repository(error: Any, hub_id: str) -> HubError:
    """The hub answers 401 for a name that does not exist, too, so that private names stay private."""
    private = "" if _read_status(error) == 404 else f", or it is private: {TOKEN_MEND.removeprefix('then ')}"
    return HubError(f"The hub has no model {hub_id}{private}.")


def _explain_status(error: Any, hub_id: str) -> HubError:
    status = _read_status(error)
    if status in (401, 403):
        return HubError(f"The hub refuses {hub_id} to this account ({status}): check HF_TOKEN and {_page(hub_id)}.")
    if status == 429:
        return HubError("The hub asks for a pause (429): run the same command again in some minutes; it goes on then.")
    return HubError(f"The hub answers {status or 'with an error'}: run the same command later; it goes on then.")


def _explain_other(error: Exception, hub_id: str) -> HubError:
    if isinstance(error, OSError) and error.errno is not None:
        return explain_disk_error(error, "The data folder")
    if type(error).__module__.partition(".")[0] in ("httpx", "httpx2", "httpcore", "httpcore2"):
        return HubError(
            f"The hub at {get_endpoint()} cannot be reached: check the network or a proxy, and run it again."
        )
    return HubError(f"The download of {hub_id} ended early: run the same command again; it goes on from here.")


def _page(hub_id: str) -> str:
    return f"{get_endpoint()}/{hub_id}"


def _read_status(error: Any) -> int:
    return int(getattr(getattr(error, "response", None), "status_code", 0) or 0)


CHUNK_BYTES = 2**22


def is_intact(path: Path, file: RepositoryFile, on_bytes: Callable[[int], None] = lambda _: None) -> bool:
    """Whether the file at `path` is the hub's, byte by byte. Calls `on_bytes` with each count of bytes that it read.

    Raises OSError where the file cannot be read.
    """
    if path.stat().st_size != file.size:
        return False
    if not file.has_checksum:
        return True  # the hub said no more than the size
    digest = hashlib.sha256() if file.sha256 else hashlib.sha1(f"blob {file.size}\0".encode(), usedforsecurity=False)
    with path.open("rb") as content:
        while chunk := content.read(CHUNK_BYTES):
            digest.update(chunk)
            on_bytes(len(chunk))
    return digest.hexdigest() == (file.sha256 or file.git_sha1)
