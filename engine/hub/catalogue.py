"""The catalogue of well-known models: what each is, its licence, its size and what memory it needs. Only text.

`catalogue.yaml` beside this module has the entries.
"""

from __future__ import annotations

import functools
from collections.abc import Iterable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Annotated, Literal, get_args

import msgspec
from msgspec import Meta, Struct
from rapidfuzz import fuzz, process

from engine.contract import Name, Quantization, Sampler

CATALOGUE_FILE = Path(__file__).with_name("catalogue.yaml")
PARTS_FILE = Path(__file__).with_name("parts.yaml")
HALF_BYTES = 2.0  # bytes a parameter of text encoders and autoencoder, and of a network that is not quantised
# Bytes a parameter of a quantised network, its scales included.
BYTES_BY_QUANTIZATION: Mapping[Quantization, float] = MappingProxyType(
    {"none": HALF_BYTES, "int8": 1.02, "float8": 1.02, "int4": 0.57, "nf4": 0.57}
)
MIN_LIKENESS = 60.0  # of 100: names less like the one typed are no suggestion
Billions = Annotated[float, Meta(ge=0, le=1000)]


class ParameterCounts(Struct, frozen=True, forbid_unknown_fields=True):
    """Parameters in thousand millions, rounded."""

    network: Billions
    text_encoders: Billions
    autoencoder: Billions

    @property
    def total(self) -> float:
        return self.network + self.text_encoders + self.autoencoder


class CatalogueEntry(Struct, frozen=True, forbid_unknown_fields=True):
    """A well-known model. `revision` is a commit; empty where none is known: the newest is taken and remembered.

    Defaults that are None are the model's own.
    """

    name: Name
    hub_id: Annotated[str, Meta(pattern=r"^[A-Za-z0-9._-]+/[A-Za-z0-9._-]+\Z", max_length=96)]
    title: str
    licence: str
    parameters: ParameterCounts
    stored_bytes: Annotated[float, Meta(ge=0.5, le=8)]
    steps: Annotated[int, Meta(ge=1, le=1000)]
    guidance: Annotated[float, Meta(ge=1, le=30)]
    size: Annotated[int, Meta(ge=64, le=4096)]  # recommended width and height in pixels
    sampler: Sampler | None = None
    restrictions: str = ""
    asks: bool = False  # the licence must be accepted
    revision: Annotated[str, Meta(pattern=r"^([0-9a-f]{40})?\Z")] = ""

    @property
    def download_bytes(self) -> int:
        """The size of the download in bytes: an estimate."""
        return round(self.parameters.total * 1e9 * self.stored_bytes)

    def estimate_memory(self, quantization: Quantization) -> int:
        """Return the bytes of the model in memory: an estimate from its parameters, without running pictures."""
        others = self.parameters.text_encoders + self.parameters.autoencoder
        return round(1e9 * (self.parameters.network * BYTES_BY_QUANTIZATION[quantization] + others * HALF_BYTES))


class PartEntry(Struct, frozen=True, forbid_unknown_fields=True):
    """A well-known part that models take. `path`: its file in the repository; empty: the whole.

    `fits`: which models take it, in words. `size`: megabytes to download, rounded.
    """

    name: Name
    kind: PartKind
    hub_id: Annotated[str, Meta(pattern=r"^[A-Za-z0-9._-]+/[A-Za-z0-9._-]+\Z", max_length=96)]
    revision: Annotated[str, Meta(pattern=r"^[0-9a-f]{40}\Z")]
    title: str
    fits: str
    licence: str
    size: Annotated[int, Meta(ge=1, le=100_000)]
    path: str = ""
    encoder: str = ""  # the folder of an IP-Adapter's image encoder, if it is not beside its file
    restrictions: str = ""
    asks: bool = False  # the licence must be accepted

    @property
    def download_bytes(self) -> int:
        """The size of the download in bytes: an estimate."""
        return self.size * 10**6


@functools.cache
def read_part_catalogue() -> tuple[PartEntry, ...]:
    """Return all well-known parts."""
    return msgspec.yaml.decode(PARTS_FILE.read_bytes(), type=tuple[PartEntry, ...])


def find_part_entry(name: str) -> PartEntry | None:
    """Return the part of this name, whatever its case; None where there is none."""
    return next((entry for entry in read_part_catalogue() if entry.name == name.casefold()), None)


def search_part_catalogue(word: str) -> list[PartEntry]:
    """Return the parts whose name, kind, title or hub id contains the word."""
    key = word.casefold()
    return [
        each
        for each in read_part_catalogue()
        if key in f"{each.name} {each.kind} {each.title} {each.hub_id} {each.fits}".casefold()
    ]


@functools.cache
def read_catalogue() -> tuple[CatalogueEntry, ...]:
    """Return all entries, smaller models first as the file has them."""
    return msgspec.yaml.decode(CATALOGUE_FILE.read_bytes(), type=tuple[CatalogueEntry, ...])


def find_entry(name: str) -> CatalogueEntry | None:
    """Return the entry of this name or hub id, whatever its case; None where there is none."""
    key = name.casefold()
    return next((entry for entry in read_catalogue() if key in (entry.name, entry.hub_id.casefold())), None)


def search_catalogue(word: str) -> list[CatalogueEntry]:
    """Return the entries whose name, title or hub id contains the word."""
    key = word.casefold()
    return [each for each in read_catalogue() if key in f"{each.name} {each.title} {each.hub_id}".casefold()]


def suggest_names(name: str, known_names: Iterable[str]) -> list[str]:
    """Return at most three known names that look like this one, the likest first."""
    matches = process.extract(
        name.casefold(), list(known_names), scorer=fuzz.WRatio, score_cutoff=MIN_LIKENESS, limit=3
    )
    return [str(match[0]) for match in matches]


SAFETENSORS_SUFFIX = ".safetensors"
GGUF_SUFFIX = ".gguf"
WEIGHT_SUFFIXES = (SAFETENSORS_SUFFIX, GGUF_SUFFIX)  # of models and parts that are one file
PICKLE_SUFFIXES = (".bin", ".ckpt", ".pt", ".pth", ".pkl")  # which can run code when they are opened

PartKind = Literal["model", "controlnet", "ip-adapter", "vae", "lora", "embedding"]
PART_KINDS: tuple[PartKind, ...] = get_args(PartKind)
FOLDER_BY_KIND: Mapping[PartKind, str] = MappingProxyType(
    {
        "model": "models",
        "controlnet": "controlnets",
        "ip-adapter": "ip-adapters",
        "vae": "vaes",
        "lora": "loras",
        "embedding": "embeddings",
    }
)
TITLES: Mapping[PartKind, str] = MappingProxyType(
    {
        "model": "model",
        "controlnet": "control network",
        "ip-adapter": "reference adapter",
        "vae": "autoencoder",
        "lora": "LoRA",
        "embedding": "textual inversion",
    }
)
