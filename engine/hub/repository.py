"""What the hub says of a model: its revision, its licence, and its files with sizes and checksums."""

from __future__ import annotations

import logging
import re
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import PurePosixPath
from typing import Any, cast

from engine.hub.errors import HubError, explain_error, get_endpoint

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
