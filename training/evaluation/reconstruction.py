"""Measures the autoencoder on held-out drawings: PSNR inside the subject, SSIM of the whole picture."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np
import torch
from PIL import Image

from benchmarks.report.figure_row import FigureRow
from engine.process.model_words import WEIGHTS_FOLDER
from training.evaluation import goals
from training.evaluation.context import EvaluationContext
from training.evaluation.measures import masked_psnr
from training.pictures.artwork import Artwork, is_held_out
from training.pictures.variants import FIRST_VALIDATION_NUMBER, render_variant

UNKNOWN_TRAINING_NOTE = "held out if its autoencoder was trained with `darkroom train autoencoder`, else not known"
Trip = Callable[[np.ndarray], np.ndarray]


def check_reconstruction(context: EvaluationContext) -> list[FigureRow]:
    """Return the rows. Raises ValueError if the artwork is unavailable."""
    held_out = [drawing for drawing in context.artwork if is_held_out(drawing.key)]
    if not held_out:
        raise ValueError("None of the artwork is held out, so there is nothing to measure a reconstruction with.")
    real = np.stack([render_variant(drawing, FIRST_VALIDATION_NUMBER, context.seed).pixels for drawing in held_out])
    masks = np.stack([subject_mask(drawing, FIRST_VALIDATION_NUMBER, context.seed) for drawing in held_out])
    reconstructed = np.stack([_round_trip(context, picture) for picture in real])
    scores = masked_psnr(real, reconstructed, masks)
    training_note = "" if context.weights == WEIGHTS_FOLDER else f"; {UNKNOWN_TRAINING_NOTE}"
    note = (
        f"the mean of {len(scores)} of {len(held_out)} drawings; their median is "
        f"{float(scores.median()):.1f}{training_note}"
    )
    return [
        goals.PSNR.make_row(float(scores.mean()), note),
        _ssim_row(real, reconstructed, f"{len(held_out)} drawings{training_note}"),
    ]


def subject_mask(drawing: Artwork, number: int, seed: int) -> np.ndarray:
    """Return a variant's subject, bool [h, w]: the pixels that follow the drawing's colour, black or white."""
    alpha = drawing.pixels.getchannel("A")
    in_white, in_black = (
        render_variant(replace(drawing, pixels=_paint_silhouette(alpha, shade)), number, seed)
        .pixels[..., 0]
        .astype(int)
        for shade in (255, 0)
    )
    return in_white - in_black > 127


def _paint_silhouette(alpha: Image.Image, shade: int) -> Image.Image:
    silhouette = Image.new("RGBA", alpha.size, (shade, shade, shade, 0))
    silhouette.putalpha(alpha)
    return silhouette


def _round_trip(context: EvaluationContext, picture: np.ndarray) -> np.ndarray:
    """Send a picture through the autoencoder and back, with the engine's code."""
    family = context.sampler.family
    return np.asarray(family.decode(family.encode_image(Image.fromarray(picture))).convert("RGB"))


def _ssim_row(real: np.ndarray, reconstructed: np.ndarray, note: str) -> FigureRow:
    try:
        from torchmetrics.functional.image import structural_similarity_index_measure as ssim
    except ImportError:
        return goals.SSIM.make_row(None, "This needs torchmetrics: pip install 'darkroom-bot[train]'.")
    score = ssim(_to_tensor(reconstructed), _to_tensor(real), data_range=255.0)
    return goals.SSIM.make_row(float(torch.as_tensor(score[0] if isinstance(score, Sequence) else score)), note)


def _to_tensor(pictures: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(pictures).permute(0, 3, 1, 2).double()  # in fp32 a picture is 0.9995 like itself
