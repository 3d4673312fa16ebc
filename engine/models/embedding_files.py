"""Textual inversions: their files, which fit a model, and its pipeline with the words of a prompt.

A file holds one tensor `[vectors, features]` (Stable Diffusion 1.x and 2.x), or one for each CLIP of SDXL, called
`clip_l` and `clip_g`. Sizes are checked in the header before a tensor is read.
"""

from __future__ import annotations

import copy
import hashlib
from collections import OrderedDict
from collections.abc import Generator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, NamedTuple, cast

import torch
from safetensors import SafetensorError, safe_open

from engine.contract import JobRejected, ModelPart, compile_embedding_names
from engine.models.files.added_kind import AddedEntry, AddedKind, cache_while_unchanged, log_once, reject_added
from engine.models.files.pipeline_parts import read_header

NOUN = "textual inversion"
MAX_FILE_BYTES = 8 * 2**20  # 64 vectors of SDXL are 0.5 MB
MAX_VECTORS = 64  # of one word: a chunk of a prompt has 75 tokens
MAX_TENSORS = 4
_FLOAT_DTYPES = ("F16", "BF16", "F32")


class EmbeddingFile(NamedTuple):
    """One textual inversion. `widths`: the features of each tensor. `revision` changes with its content."""

    name: str
    path: Path
    revision: str
    widths: dict[str, int]


def find_embeddings(folder: Path | None) -> list[EmbeddingFile]:
    """Return every usable textual inversion by name; log the others."""
    by_name: dict[str, EmbeddingFile] = {}
    for embedding in EMBEDDING_KIND.find_all(folder):
        if by_name.setdefault(embedding.name.lower(), embedding) is not embedding:  # prompts name them in any case
            log_once(folder, f"left out: there is already a {NOUN} {embedding.name} in other capitals")
    return list(by_name.values())


def read_vectors(file: EmbeddingFile) -> dict[str, torch.Tensor]:
    """Return the vectors `[vectors, features]` of each tensor, float32. Raises `JobRejected`."""
    try:
        with cast(Any, safe_open)(file.path, framework="pt") as opened:
            tensors: dict[str, torch.Tensor] = {name: opened.get_tensor(name).float() for name in file.widths}
    except (OSError, SafetensorError) as error:
        raise reject_added(NOUN, file.name, "cannot be read as safetensors") from error
    if not all(bool(tensor.isfinite().all()) for tensor in tensors.values()):
        raise reject_added(NOUN, file.name, "holds numbers that are not finite")
    return {name: tensor.reshape(-1, tensor.shape[-1]) for name, tensor in tensors.items()}


def _read_embedding(entry: AddedEntry) -> EmbeddingFile:
    entry.check_links([entry.path])
    if entry.path.stat().st_size > MAX_FILE_BYTES:
        raise entry.reject(f"has more than {MAX_FILE_BYTES >> 20} MiB, so it is no textual inversion")
    revision, widths = _inspect(entry.path)
    return EmbeddingFile(entry.name, entry.path, revision, widths)


@cache_while_unchanged
def _inspect(path: Path) -> tuple[str, dict[str, int]]:
    """Return the revision (twelve hex digits over the file) and the tensors' widths.

    Raises `JobRejected`, OSError or `SafetensorError`.
    """
    widths = {name: _read_width(path.stem, *each) for name, each in read_header(path).items()}
    if not 1 <= len(widths) <= MAX_TENSORS:
        raise reject_added(NOUN, path.stem, "is no textual inversion")
    return hashlib.sha256(path.read_bytes()).hexdigest()[:12], widths


def _read_width(name: str, shape: torch.Size, dtype: str) -> int:
    vectors, features = (1, *shape)[-2:] if 1 <= len(shape) <= 2 else (0, 0)
    if dtype not in _FLOAT_DTYPES or not 1 <= vectors <= MAX_VECTORS or features < 1:
        raise reject_added(NOUN, name, f"is no textual inversion of at most {MAX_VECTORS} vectors")
    return features


EMBEDDING_KIND = AddedKind(NOUN, _read_embedding, forms=("file",))


class ExtendedEmbedding(torch.nn.Module):
    """Token embeddings: `original` below `first_id`, `vectors` `[tokens, features]` from it on."""

    def __init__(self, original: Any, first_id: int, vectors: torch.Tensor) -> None:
        super().__init__()
        self.original = original
        self._first_id = first_id
        self.register_buffer("vectors", vectors.to(original.weight.device, original.weight.dtype))

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        """Return `[…, features]` for token ids `[…]`, the same bits as a longer matrix would give."""
        known = self.original(ids.clamp(max=self._first_id - 1))
        new_ids = (ids - self._first_id).clamp(min=0).to(known.device)  # an offloaded original moves its own inputs
        added = torch.nn.functional.embedding(new_ids, self.get_buffer("vectors").to(known.device))
        return torch.where((ids >= self._first_id)[..., None].to(known.device), added, known)


@contextmanager
def added_tokens(encoder: Any, first_id: int, vectors: torch.Tensor) -> Generator[None]:
    """Add tokens, `vectors` `[tokens, features]`, to an encoder. Hold the lock on its pipeline meanwhile."""
    original = encoder.get_input_embeddings()
    encoder.set_input_embeddings(ExtendedEmbedding(original, first_id, vectors))
    try:
        yield
    finally:
        encoder.set_input_embeddings(original)


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
        return EMBEDDING_KIND.list_fitting(files, self.find_mismatch)[:MAX_ANNOUNCED]

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
            file = EMBEDDING_KIND.find(self.folder, part.name, part.revision)
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
            self.resolve(parts)
            vectors = {part.name: read_vectors(EMBEDDING_KIND.find(self.folder, part.name)) for part in parts}
            self._vocabularies[parts] = [self._make_vocabulary(slot, vectors) for slot in self._slots]
        self._vocabularies.move_to_end(parts)
        while len(self._vocabularies) > MAX_VOCABULARIES:
            self._vocabularies.popitem(last=False)
        return self._vocabularies[parts]

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
