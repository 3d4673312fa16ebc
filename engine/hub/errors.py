"""What the hub, the network or the disk refuses, as one sentence with the mend."""

from __future__ import annotations

import errno
import os
from typing import Any

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
