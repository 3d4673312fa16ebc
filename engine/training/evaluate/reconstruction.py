"""Measures the autoencoder on held-out drawings: PSNR inside the subject, SSIM of the whole picture."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np
import torch
from PIL import Image

from engine.bench.row import Row
from engine.families.embedded import WEIGHTS
from engine.training.evaluate import goals
from engine.training.evaluate.measures import masked_psnr
from engine.training.evaluate.scene import Scene
from engine.training.pictures.artwork import Artwork
from engine.training.pictures.heldout import artwork_held_out
from engine.training.pictures.variants import HELD_BACK, variant

FOREIGN = "held out if its autoencoder was trained with `darkroom train autoencoder`, else not known"
Trip = Callable[[np.ndarray], np.ndarray]


def rows(scene: Scene) -> list[Row]:
    """Return the rows. Raises ValueError if the artwork is unavailable."""
    kept = [art for art in scene.artwork if artwork_held_out(art.key)]
    if not kept:
        raise ValueError("None of the artwork is held out, so there is nothing to measure a reconstruction with.")
    real = np.stack([variant(art, HELD_BACK, scene.seed).pixels for art in kept])
    masks = np.stack([covered(art, HELD_BACK, scene.seed) for art in kept])
    made = np.stack([_trip(scene, picture) for picture in real])
    scores, known = masked_psnr(real, made, masks), "" if scene.weights == WEIGHTS else f"; {FOREIGN}"
    said = f"the mean of {len(scores)} of {len(kept)} drawings; their median is {float(scores.median()):.1f}{known}"
    return [goals.PSNR.row(float(scores.mean()), said), _ssim(real, made, f"{len(kept)} drawings{known}")]


def covered(art: Artwork, number: int, seed: int) -> np.ndarray:
    """Return a variant's subject, bool [h, w]: the pixels that follow the drawing's colour, black or white."""
    alpha = art.pixels.getchannel("A")
    in_white, in_black = (
        variant(replace(art, pixels=_painted(alpha, shade)), number, seed).pixels[..., 0].astype(int)
        for shade in (255, 0)
    )
    return in_white - in_black > 127


def _painted(alpha: Image.Image, shade: int) -> Image.Image:
    plain = Image.new("RGBA", alpha.size, (shade, shade, shade, 0))
    plain.putalpha(alpha)
    return plain


def _trip(scene: Scene, picture: np.ndarray) -> np.ndarray:
    """Send a picture through the autoencoder and back, with the engine's code."""
    family = scene.painter.family
    return np.asarray(family.decode(family.encode_image(Image.fromarray(picture))).convert("RGB"))


def _ssim(real: np.ndarray, made: np.ndarray, note: str) -> Row:
    try:
        from torchmetrics.functional.image import structural_similarity_index_measure as ssim
    except ImportError:
        return goals.SSIM.row(None, "This needs torchmetrics: pip install 'darkroom-bot[train]'.")
    score = ssim(_planes(made), _planes(real), data_range=255.0)
    return goals.SSIM.row(float(torch.as_tensor(score[0] if isinstance(score, Sequence) else score)), note)


def _planes(pictures: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(pictures).permute(0, 3, 1, 2).float()
