"""Textual inversions of one model: which fit, and its pipeline with the words of a prompt.

Its name in a text of the recipe (`engine.contract.compile_embedding_names`) is the token `<NAME>`. Tokens and vectors
are what diffusers' `load_textual_inversion` makes of the same file; but that would change every prompt's tokenizer and
text encoder.
"""

from __future__ import annotations

import copy
import logging
from collections import OrderedDict
from collections.abc import Generator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import torch

from engine.contract import ModelPart, compile_embedding_names
from engine.contract.rejection import JobRejected
from engine.models.textual_inversion.added_tokens import added_tokens
from engine.models.textual_inversion.embedding_files import EMBEDDING_KIND, EmbeddingFile, find_embeddings, read_vectors

log = logging.getLogger(__name__)

MAX_ANNOUNCED = 256  # the limit of `engine.contract.ModelProfile`
MAX_VOCABULARIES = 8  # combinations of words whose tokenizers are kept


class EmbeddingSlot(NamedTuple):
    """The tensor that a text encoder takes from a file (empty: the file's only one), and the pipeline's attributes."""

    tensor: str
    tokenizer: str
    encoder: str


class _Vocabulary(NamedTuple):
    """A slot's tokenizer with the words, the id of the first added token, and the vectors `[tokens, features]`."""

    tokenizer: Any
    first_id: int
    vectors: torch.Tensor


class EmbeddingCollection:
    """The textual inversions in `folder` for one pipeline. None: there is no such folder."""

    def __init__(self, pipeline: Any, slots: Sequence[EmbeddingSlot], model_name: str) -> None:
        self.folder: Path | None = None
        self._pipeline = pipeline
        self._slots = slots
        self._model_name = model_name
        self._widths = [int(getattr(pipeline, slot.encoder).config.hidden_size) for slot in slots]
        self._vocabularies: OrderedDict[tuple[ModelPart, ...], list[_Vocabulary]] = OrderedDict()

    def list_fitting(self) -> tuple[ModelPart, ...]:
        """Return all that fit this model."""
        files = find_embeddings(self.folder) if self._slots else []
        mismatches = [self.find_mismatch(file) for file in files]
        for file, mismatch in zip(files, mismatches, strict=True):
            if mismatch:
                log.info("left out: the textual inversion %s does not fit: %s", file.name, mismatch)
        fitting = [file for file, mismatch in zip(files, mismatches, strict=True) if not mismatch]
        return tuple(ModelPart(file.name, file.revision) for file in fitting[:MAX_ANNOUNCED])

    def find_mismatch(self, file: EmbeddingFile) -> str:
        """Return why a file does not fit, as the end of a sentence; empty: it fits."""
        if not self._slots:
            return f"{self._model_name} takes no textual inversions"
        names = [slot.tensor or next(iter(file.widths)) for slot in self._slots]
        if sorted(names) != sorted(file.widths):
            wanted = " and ".join(slot.tensor or "one tensor" for slot in self._slots)
            return f"{self._model_name} needs {wanted}, and the file has {', '.join(sorted(file.widths))[:80]}"
        for name, width in zip(names, self._widths, strict=True):
            if file.widths[name] != width:
                return f"its vectors have {file.widths[name]} numbers, and those of {self._model_name} have {width}"
        return ""

    def resolve(self, parts: Sequence[ModelPart]) -> tuple[ModelPart, ...]:
        """Return the same with revisions. Raises `JobRejected` where one is missing, unfit or of another revision."""
        resolved: dict[str, ModelPart] = {}
        for part in parts:
            file = EMBEDDING_KIND.find(self.folder, part.name)
            if part.revision not in ("", file.revision):
                raise JobRejected(f"This worker has another version of the textual inversion {part.name}.", "worker")
            if mismatch := self.find_mismatch(file):
                raise JobRejected(f"The textual inversion {part.name} does not fit this model: {mismatch}.", "model")
            resolved.setdefault(part.name.lower(), ModelPart(part.name, file.revision))
        return tuple(resolved.values())

    def with_tokenizers(self, pipeline: Any, parts: tuple[ModelPart, ...]) -> Any:
        """Return the pipeline with tokenizers that know the words of `parts`. Raises `JobRejected`."""
        if not parts:
            return pipeline
        extended = copy.copy(pipeline)
        for slot, vocabulary in zip(self._slots, self._get_vocabularies(parts), strict=True):
            vars(extended)[slot.tokenizer] = vocabulary.tokenizer
        return extended

    @contextmanager
    def with_words(self, pipeline: Any, parts: tuple[ModelPart, ...]) -> Generator[Any]:
        """Yield the pipeline with the words of `parts` in tokenizers and text encoders, under its lock."""
        with ExitStack() as stack:
            for slot, vocabulary in zip(self._slots, self._get_vocabularies(parts) if parts else (), strict=False):
                encoder = getattr(pipeline, slot.encoder)
                stack.enter_context(added_tokens(encoder, vocabulary.first_id, vocabulary.vectors))
            yield self.with_tokenizers(pipeline, parts)

    def _get_vocabularies(self, parts: tuple[ModelPart, ...]) -> list[_Vocabulary]:
        if parts not in self._vocabularies:
            vectors = {part.name: read_vectors(self._find_file(part)) for part in parts}
            self._vocabularies[parts] = [self._make_vocabulary(slot, vectors) for slot in self._slots]
        self._vocabularies.move_to_end(parts)
        while len(self._vocabularies) > MAX_VOCABULARIES:
            self._vocabularies.popitem(last=False)
        return self._vocabularies[parts]

    def _find_file(self, part: ModelPart) -> EmbeddingFile:
        self.resolve((part,))
        return EMBEDDING_KIND.find(self.folder, part.name)

    def _make_vocabulary(self, slot: EmbeddingSlot, vectors: dict[str, dict[str, torch.Tensor]]) -> _Vocabulary:
        tokenizer = copy.deepcopy(getattr(self._pipeline, slot.tokenizer))
        first_id = len(tokenizer)
        rows = list[torch.Tensor]()
        for name, tensors in vectors.items():
            rows.append(tensors[slot.tensor or next(iter(tensors))])
            tokenizer.add_tokens([make_token(name), *(f"{make_token(name)}_{i}" for i in range(1, len(rows[-1])))])
        if len(tokenizer) != first_id + sum(map(len, rows)):
            raise JobRejected(f"The words of this prompt cannot be added to {self._model_name}.", "model")
        return _Vocabulary(tokenizer, first_id, torch.cat(rows))


def make_token(name: str) -> str:
    """Return the word that stands for a textual inversion in a prompt."""
    return f"<{name}>"


def spell_words(text: str, parts: Sequence[ModelPart]) -> str:
    """Return the text with each name of a textual inversion as its token, as diffusers looks for it."""
    tokens = {part.name.lower(): make_token(part.name) for part in parts}
    names = compile_embedding_names(tuple(part.name for part in parts))
    return names.sub(lambda match: tokens[(match[1] or match[2]).lower()], text)
