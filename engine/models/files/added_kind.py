"""Files that an operator adds to models, a folder for each kind: how they are found, and the checks that all share.

An entry is `NAME.safetensors`, or the folder `NAME/`. Only safetensors are accepted: a pickle can run code when it is
opened. No name and no link leads out of the folder. What is refused is logged once, as a sentence.
"""

from __future__ import annotations

import functools
import logging
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Generic, Literal, NamedTuple, Protocol, TypeVar

from safetensors import SafetensorError

from engine.contract import JobRejected, ModelPart
from engine.hub.catalogue import FOLDER_BY_KIND, PICKLE_SUFFIXES, SAFETENSORS_SUFFIX

log = logging.getLogger(__name__)

CONFIG_FILE = "config.json"
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")  # as `engine.contract.Name`

Form = Literal["file", "folder"]
File = TypeVar("File", bound="AddedFile")
Result = TypeVar("Result")


class AddedFile(Protocol):
    """What a kind reads of an entry. `revision` changes with its content."""

    @property
    def name(self) -> str: ...
    @property
    def revision(self) -> str: ...


class AddedEntry(NamedTuple):
    """What one name stands for: a file, or a folder of its own."""

    noun: str
    name: str
    folder: Path  # of all entries of the kind
    path: Path

    @property
    def is_folder(self) -> bool:
        return self.path.is_dir()

    def reject(self, reason: str) -> JobRejected:
        """Return the rejection that ends in `reason`."""
        return reject_added(self.noun, self.name, reason)

    def list_weights(self, pattern: str = "*") -> list[Path]:
        """Return the files of weights in sequence; none: there are none. Raises `JobRejected` for pickles alone."""
        if not self.is_folder:
            return [self.path]
        files = sorted(path for path in self.path.glob(f"{pattern}{SAFETENSORS_SUFFIX}") if path.is_file())
        if not files and any(path.suffix in PICKLE_SUFFIXES and path.is_file() for path in self.path.iterdir()):
            raise _reject_pickle(self.noun, self.name)
        return files

    def check_links(self, paths: Iterable[Path]) -> None:
        """Raise `JobRejected` where one of them leads out of the folder of the kind."""
        folder = self.folder.resolve()
        if not all(path.resolve().is_relative_to(folder) for path in paths):
            raise self.reject("is a link that leads out of the folder that it is in")

    def read_config(self, max_bytes: int) -> bytes:
        """Return the configuration in its folder. Raises `JobRejected` where there is none, or a large one."""
        path = self.path / CONFIG_FILE
        self.check_links([path])
        try:
            with path.open("rb") as file:
                content = file.read(max_bytes + 1)
        except OSError as error:
            raise self.reject_config() from error
        if len(content) > max_bytes:
            raise self.reject_config()
        return content

    def reject_config(self) -> JobRejected:
        """Return the rejection of a folder for its configuration."""
        return self.reject(f"has no {CONFIG_FILE} that can be read")


@dataclass(frozen=True)
class AddedKind(Generic[File]):
    """A kind of added files. `read` inspects an entry; None: it holds nothing of the kind.

    `read` may raise `JobRejected`, OSError or `SafetensorError`. `forms`: what an entry may be, the first wins.
    """

    noun: str
    read: Callable[[AddedEntry], File | None]
    forms: tuple[Form, ...] = ("file", "folder")

    def find_all(self, folder: Path | None, names: Iterable[str] | None = None) -> list[File]:
        """Return every usable entry by name, of these `names` if given; log the others, each once."""
        found: list[File] = []
        for name in self.list_names(folder) if names is None else names:
            try:
                found.append(self.find(folder, name))
            except JobRejected as rejection:
                log_once(folder, f"left out: {rejection.sentence}")
        return found

    def list_fitting(self, files: Iterable[File], find_mismatch: Callable[[File], str]) -> tuple[ModelPart, ...]:
        """Return the files that fit a model; log why others do not."""
        fitting = list[ModelPart]()
        for file in files:
            if mismatch := find_mismatch(file):
                log.info("left out: the %s %s does not fit: %s", self.noun, file.name, mismatch)
            else:
                fitting.append(ModelPart(file.name, file.revision))
        return tuple(fitting)

    def find(self, folder: Path | None, name: str, revision: str = "") -> File:
        """Return the entry of this name, and revision if one is given. Raises `JobRejected`."""
        if folder is None or not _NAME.fullmatch(name):
            raise self._reject_missing(name)
        try:
            file = self.read(self._locate(folder, name))
        except SafetensorError as error:
            raise self.reject(name, "cannot be read as safetensors") from error
        except OSError as error:
            log.warning("the %s %s: %s", self.noun, name, error)
            raise self.reject(name, "cannot be read") from error
        if file is None:
            raise self._reject_missing(name)
        if revision and revision != file.revision:
            raise JobRejected(f"This worker has another version of the {self.noun} {name}.", "worker")
        return file

    def list_names(self, folder: Path | None) -> list[str]:
        """Return the names of all that looks like an entry, pickles included, so that their refusal is logged."""
        try:
            paths = list(folder.iterdir()) if folder is not None and folder.is_dir() else []
            names = {path.name if path.is_dir() else path.stem for path in paths if self._is_candidate(path)}
        except OSError as error:
            log.warning("the folder of %ss cannot be read: %s", self.noun, error)
            return []
        return sorted(name for name in names if _NAME.fullmatch(name))

    def reject(self, name: str, reason: str) -> JobRejected:
        """Return the rejection of an entry that ends in `reason`."""
        return reject_added(self.noun, name, reason)

    def _locate(self, folder: Path, name: str) -> AddedEntry:
        for form in self.forms:
            path = folder / (f"{name}{SAFETENSORS_SUFFIX}" if form == "file" else name)
            if path.is_file() if form == "file" else path.is_dir():
                return AddedEntry(self.noun, name, folder, path)
        if "file" in self.forms and any((folder / f"{name}{suffix}").is_file() for suffix in PICKLE_SUFFIXES):
            raise _reject_pickle(self.noun, name)
        raise self._reject_missing(name)

    def _is_candidate(self, path: Path) -> bool:
        if path.is_dir():
            return "folder" in self.forms
        return "file" in self.forms and path.suffix in (SAFETENSORS_SUFFIX, *PICKLE_SUFFIXES)

    def _reject_missing(self, name: str) -> JobRejected:
        return JobRejected(f"This worker has no {self.noun} called {name[:64]}.", "worker")


def reject_added(noun: str, name: str, reason: str) -> JobRejected:
    """Return the rejection of an added file, one sentence that ends in `reason`."""
    return JobRejected(f"The {noun} {name[:64]} {reason}.", "worker")


def cache_while_unchanged(inspect: Callable[[Path], Result]) -> Callable[[Path], Result]:
    """Return `inspect` with its results cached while a file's size and modification time are the same."""

    @functools.lru_cache(maxsize=1024)
    def inspect_once(path: Path, size: int, mtime_ns: int) -> Result:
        return inspect(path)

    @functools.wraps(inspect)
    def inspect_unchanged(path: Path) -> Result:
        stat = path.stat()
        return inspect_once(path, stat.st_size, stat.st_mtime_ns)

    return inspect_unchanged


@functools.lru_cache(maxsize=1024)
def log_once(folder: Path | None, sentence: str) -> None:
    """Log a sentence about a folder, unless it was logged before: every model looks through the folder."""
    log.warning("%s", sentence)


def _reject_pickle(noun: str, name: str) -> JobRejected:
    reason = "exists only as a pickle, which can run code when it is opened: convert it to safetensors"
    return reject_added(noun, name, reason)


LORA_FOLDER = FOLDER_BY_KIND["lora"]
EMBEDDING_FOLDER = FOLDER_BY_KIND["embedding"]  # textual inversions
AUTOENCODER_FOLDER = FOLDER_BY_KIND["vae"]
CONTROL_FOLDER = FOLDER_BY_KIND["controlnet"]  # ControlNets and T2I-Adapters
PREPROCESSOR_FOLDER = "preprocessors"  # networks that make control images
REFERENCE_FOLDER = FOLDER_BY_KIND["ip-adapter"]  # for reference pictures
