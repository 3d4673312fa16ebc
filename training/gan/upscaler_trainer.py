"""Trains and evaluates the super-resolver ×4, in an architecture that spandrel loads ("RealESRGAN Compact").

Its pairs are large pictures, and small ones, scaled down or decoded by our autoencoder. They are built once, by seed,
so a step costs only the network. A share of them are charts: steps, lines, flat patches and plain shapes, with cleaner
edges than any artwork. All randomness is a function of (seed, step).

The loss contains the errors that flat artwork shows at once: ringing, shifted colours, patterns on flat areas. It
measures them by the steps between neighbours, the means of areas, and values outside the target's range nearby.

Shi 2016 (the last layer); Wang 2021 (Real-ESRGAN, whose compact network this is); Ledig 2017 (a GAN for upscaling).
"""

from __future__ import annotations

import io
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
from PIL import Image, ImageDraw
from spandrel import ModelLoader
from spandrel.architectures.Compact import Compact
from torch import Tensor, nn

from engine.device.memory import copy_to_device
from engine.models.judge import as_images
from engine.upscaling.super_resolver import CLAMP_METADATA
from training.core import checkpoint
from training.core.learner import mixed_precision, spread_rows
from training.core.run import Metrics
from training.gan.gan_learner import GanSettings, GanTrainer
from training.gan.latent_coding import decode_images
from training.gan.losses import gradient_loss, overshoot_loss, psnr, pyramid_loss, ssim
from training.pictures.artwork import Artwork
from training.pictures.masked_pictures import ProgressCallback, as_pictures, write_picture_sheet
from training.pictures.variants import BACKGROUND_COLOURS, USUAL_SCALE


@dataclass(frozen=True)
class UpscalerSettings(GanSettings):
    """The settings that stay the same for a whole run."""

    rate: float = 2e-3
    gan_weight: float = 0.05
    crop: int = 32  # pixels a side of the small picture
    edges: float = 0.5
    ringing: float = 2.0
    mended: float = 0.3  # share of the small pictures that come from the autoencoder


def build_upscaler(seed: int, width: int = 48, depth: int = 12) -> nn.Module:
    """Build an untrained network: it repeats each pixel four times four."""
    torch.manual_seed(seed)
    network = Compact(num_feat=width, num_conv=depth, upscale=UPSCALE_FACTOR, act_type="prelu")
    last_layer = network.body[-1]
    for parameter in last_layer.parameters():
        nn.init.zeros_(parameter)
    return network


def load_upscaler(path: Path) -> nn.Module:
    """Load a network of this architecture, fp32. Raises ValueError for another architecture or file."""
    try:
        if path.suffix.lower() != ".safetensors":  # the loader accepts pickles, too
            raise ValueError(path.suffix)
        descriptor = ModelLoader().load_from_file(path)
    except Exception as error:  # the loader parses untrusted files and fails in many ways
        raise ValueError(f"{path} is no super-resolver in safetensors that spandrel knows.") from error
    if not isinstance(descriptor.model, Compact) or descriptor.scale != UPSCALE_FACTOR:
        kind = f"RealESRGAN Compact that enlarges {UPSCALE_FACTOR} times"
        raise ValueError(f"{path} is no {kind}: only these are trained.")
    return descriptor.model.float()


def export_upscaler(network: nn.Module, path: Path, *, flat: bool = True) -> None:
    """Write the network in fp16; `spandrel.ModelLoader().load_from_file` infers the rest from names and shapes.

    `flat` marks a network trained on artwork: an upscale with it clamps colours to the range nearby.
    """
    half_tensors = {name: tensor.half().contiguous() for name, tensor in network.state_dict().items()}
    checkpoint.save(path, half_tensors, {}, CLAMP_METADATA if flat else {})


def is_inner_matrix(name: str, parameter: Tensor) -> bool:
    """Tell whether a parameter is a matrix between layers of the same width, which Muon updates."""
    return parameter.ndim == 4 and parameter.size(0) == parameter.size(1)


class UpscalerTrainer(GanTrainer[nn.Module]):
    """Trains a network with a discriminator. `samples` counts crops seen."""

    def __init__(self, network: nn.Module, pairs: UpscalerPairs, settings: UpscalerSettings) -> None:
        self.pairs = pairs
        self.settings = settings
        super().__init__(network, settings, settings.batch, is_inner_matrix)

    def step(self, progress: float) -> Metrics:
        """Train one batch at this share of the run. Raises ValueError if the loss is not a number."""
        small, large = (copy_to_device(crops, self.device) for crops in self._random_crops())
        with mixed_precision(self.device):
            output = self.network(small / 2 + 0.5) * 2 - 1
        settings = self.settings

        def measure_loss(image: Tensor) -> Tensor:
            loss = pyramid_loss(image, large) + settings.edges * gradient_loss(image, large)
            return loss + settings.ringing * overshoot_loss(image, large)

        losses = self.learner.update(output, large, measure_loss, progress)
        self.steps += 1
        return losses

    def _random_crops(self) -> tuple[Tensor, Tensor]:
        """Return random crops, rotated and mirrored, small and large, from −1 to 1."""
        rng = np.random.default_rng([self.settings.seed, self.steps])
        crop_side = self.settings.crop
        small = list[np.ndarray]()
        large = list[np.ndarray]()
        for number in rng.integers(0, len(self.pairs), self.settings.batch):
            source = self.pairs.decoded if rng.random() < self.settings.mended else self.pairs.clean
            top, left = (int(offset) for offset in rng.integers(0, source.shape[1] - crop_side + 1, 2))
            quarter_turns = int(rng.integers(4))
            mirrored = rng.random() < 0.5
            for crops, pixels, scale in ((small, source, 1), (large, self.pairs.large, UPSCALE_FACTOR)):
                rows, columns = (slice(start * scale, (start + crop_side) * scale) for start in (top, left))
                patch = np.rot90(pixels[number, rows, columns], quarter_turns)
                crops.append(patch[:, ::-1] if mirrored else patch)
        return as_images(np.stack(small)), as_images(np.stack(large))


UPSCALE_FACTOR = 4
LARGE_SIDE = 256
SMALL_SIDE = LARGE_SIDE // UPSCALE_FACTOR
CHART_SHARE = 0.2  # share of the pictures
MIN_DETAILED_SIDE = 192  # smallest side of a drawing in px; a smaller one would be blurred and teach blur
MAX_NOISE = 0.6  # the most noise, as a share of the posterior's deviation, as in the decoder's training
JPEG_SHARE = 0.2
DOWNSCALE_FILTERS = (Image.Resampling.BOX, Image.Resampling.BICUBIC, Image.Resampling.LANCZOS)


@dataclass(frozen=True)
class UpscalerPairs:
    """uint8 pictures: `large` [n, 256, 256, 3]; `clean` and `decoded` [n, 64, 64, 3] are small versions of them."""

    large: np.ndarray
    clean: np.ndarray
    decoded: np.ndarray

    def __len__(self) -> int:
        return len(self.large)


def render_large(drawing: Artwork, rng: np.random.Generator) -> np.ndarray:
    """Render a drawing on one colour, uint8 [256, 256, 3]; at random, exchange its colour channels."""
    scale = USUAL_SCALE if rng.random() < 0.5 else float(rng.uniform(0.6, 1.0))
    longest = max(drawing.pixels.size)
    width, height = (max(1, round(side * scale * LARGE_SIDE / longest)) for side in drawing.pixels.size)
    resized = drawing.pixels.resize((width, height), Image.Resampling.LANCZOS)
    base_colour = BACKGROUND_COLOURS[str(rng.choice(list(BACKGROUND_COLOURS)))]
    shade = np.clip(base_colour + rng.integers(-20, 21, 3), 0, 255)
    colour = (255, 255, 255) if rng.random() < 0.3 else (int(shade[0]), int(shade[1]), int(shade[2]))
    layer = Image.new("RGBA", (LARGE_SIDE, LARGE_SIDE), (0, 0, 0, 0))
    margin = np.array([LARGE_SIDE - width, LARGE_SIDE - height])
    left, top = (margin * (0.5 if rng.random() < 0.5 else rng.random(2))).astype(int)
    layer.paste(resized, (int(left), int(top)))
    composite = Image.alpha_composite(Image.new("RGBA", (LARGE_SIDE, LARGE_SIDE), (*colour, 255)), layer)
    pixels = np.asarray(composite.convert("RGB"))
    return pixels[..., rng.permutation(3)] if rng.random() < 0.25 else pixels


def render_drawings(drawings: Sequence[Artwork], count: int, rng: np.random.Generator) -> Iterator[np.ndarray]:
    """Render `count` large pictures of the drawings with enough detail, in turn. Raises ValueError if none has it."""
    detailed = [drawing for drawing in drawings if max(drawing.pixels.size) >= MIN_DETAILED_SIDE]
    if not detailed:
        raise ValueError(f"no drawing has {MIN_DETAILED_SIDE} pixels a side: there is nothing to learn detail from")
    order: list[int] = rng.permutation(len(detailed)).tolist()
    return (render_large(detailed[order[number % len(detailed)]], rng) for number in range(count))


def cut_squares(pictures: Iterable[Image.Image], rng: np.random.Generator) -> Iterator[np.ndarray]:
    """Cut a square of 256 px out of each picture of any size: the whole picture or a part of it."""
    for source in pictures:
        picture = source.convert("RGB")
        shorter = min(picture.size)
        side = min(shorter, max(LARGE_SIDE, round(shorter * float(rng.uniform(0.4, 1.0)))))
        left, top = (int(rng.integers(0, length - side + 1)) for length in picture.size)
        crop = picture.crop((left, top, left + side, top + side))
        yield np.asarray(crop.resize((LARGE_SIDE, LARGE_SIDE), Image.Resampling.LANCZOS))


def build_pairs(
    large: Iterator[np.ndarray],
    count: int,
    autoencoder: AutoencoderKL | None,
    seed: int,
    chart_share: float = CHART_SHARE,
    on_progress: ProgressCallback = lambda finished, total: None,
) -> UpscalerPairs:
    """Build pairs of `count` pictures, a share `chart_share` of them charts; the same for the same seed."""
    rng = np.random.default_rng([seed, 256])
    is_chart = rng.random(count) < chart_share
    pictures = [draw_chart(rng, LARGE_SIDE) if chosen else next(large) for chosen in is_chart]
    clean = [_downscale(each, rng, use_box_filter=chosen) for each, chosen in zip(pictures, is_chart, strict=True)]
    decoded_pictures: list[np.ndarray] = []
    for start in range(0, count, 32):
        batch = np.stack(clean[start : start + 32])
        decoded_batch = batch if autoencoder is None else _decode_noisy(autoencoder, batch, (seed << 32) + start)
        decoded_pictures += [_compress_at_random(chosen, rng) for chosen in decoded_batch]
        on_progress(min(start + 32, count), count)
    compressed = [_compress_at_random(chosen, rng) for chosen in clean]
    return UpscalerPairs(np.stack(pictures), np.stack(compressed), np.stack(decoded_pictures))


def _downscale(picture: np.ndarray, rng: np.random.Generator, *, use_box_filter: bool) -> np.ndarray:
    """Scale down; with `use_box_filter` by the mean of each area, the only way that keeps a chart's edges clean."""
    resampling = DOWNSCALE_FILTERS[0 if use_box_filter else int(rng.integers(len(DOWNSCALE_FILTERS)))]
    return np.asarray(Image.fromarray(picture).resize((SMALL_SIDE, SMALL_SIDE), resampling))


def _compress_at_random(picture: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    if rng.random() >= JPEG_SHARE:
        return picture
    buffer = io.BytesIO()
    Image.fromarray(picture).save(buffer, "JPEG", quality=int(rng.integers(70, 96)))
    return np.asarray(Image.open(buffer).convert("RGB"))


@torch.inference_mode()
def _decode_noisy(autoencoder: AutoencoderKL, pictures: np.ndarray, seed: int) -> np.ndarray:
    """Encode, add noise of any strength up to `MAX_NOISE`, and decode."""
    generator = torch.Generator().manual_seed(seed)
    device = next(autoencoder.parameters()).device
    with mixed_precision(device):
        posterior = autoencoder.encode(as_images(pictures).to(device), return_dict=False)[0]
        mean = posterior.mean.float()
        deviation = posterior.std.float()
        strength = torch.rand((len(mean), 1, 1, 1), generator=generator) * MAX_NOISE
        noise = torch.randn(mean.shape, generator=generator)
        images = decode_images(autoencoder, mean + strength.to(device) * deviation * noise.to(device))
    return as_pictures(images)


GREY_STEPS = ((64, 192), (96, 160), (112, 144))  # mid greys, so that clipping does not hide overshoot


@torch.inference_mode()
def upscale_batch(network: nn.Module, small: np.ndarray) -> np.ndarray:
    """Upscale uint8 [n, h, w, 3] to uint8 [n, 4h, 4w, 3], one after the other."""
    device = next(network.parameters()).device
    outputs = [network(as_images(picture[None]).to(device) / 2 + 0.5)[0] for picture in small]
    return torch.stack(outputs).mul(255).round().clamp(0, 255).byte().permute(0, 2, 3, 1).cpu().numpy()


def upscale_with_lanczos(small: np.ndarray) -> np.ndarray:
    """Upscale by Lanczos, without a network."""
    height, width = (side * UPSCALE_FACTOR for side in small.shape[1:3])
    return np.stack(
        [np.asarray(Image.fromarray(picture).resize((width, height), Image.Resampling.LANCZOS)) for picture in small]
    )


def measure_ringing(network: nn.Module, side: int = 64, border: int = 16) -> float:
    """Return the worst overshoot of a step between two mid greys, vertical or horizontal, in steps of 255."""
    charts = np.empty((2 * len(GREY_STEPS), side, side, 3), np.uint8)
    for number, (low, high) in enumerate(GREY_STEPS):
        charts[2 * number : 2 * number + 2] = low
        charts[2 * number, :, side // 2 :] = high
        charts[2 * number + 1, side // 2 :] = high
    upscaled = upscale_batch(network, charts)[:, border:-border, border:-border].astype(np.int16)
    grey_ranges = np.repeat(np.array(GREY_STEPS), 2, axis=0)
    overshoot = upscaled.max(axis=(1, 2, 3)) - grey_ranges[:, 1]
    undershoot = grey_ranges[:, 0] - upscaled.min(axis=(1, 2, 3))
    return float(max(overshoot.max(), undershoot.max(), 0))


def measure_upscaler(network: nn.Module, held_out: UpscalerPairs) -> Metrics:
    """Return PSNR and SSIM on clean and decoded pictures, their gain over Lanczos, and the overshoot."""
    metrics: dict[str, float] = {}
    targets = as_images(held_out.large)
    for name, small in (("clean", held_out.clean), ("mended", held_out.decoded)):
        upscaled = as_images(upscale_batch(network, small))
        baseline = as_images(upscale_with_lanczos(small))
        metrics[f"psnr_{name}"] = float(psnr(upscaled, targets).mean())
        metrics[f"psnr_{name}_gain"] = float((psnr(upscaled, targets) - psnr(baseline, targets)).mean())
        metrics[f"ssim_{name}"] = float(ssim(upscaled, targets).mean())
        metrics[f"ssim_{name}_gain"] = float((ssim(upscaled, targets) - ssim(baseline, targets)).mean())
    return {**metrics, "overshoot": measure_ringing(network)}


@dataclass(frozen=True)
class UpscalerEvaluator:
    """Evaluates the averaged network of `trainer` on drawings that were never trained on."""

    trainer: UpscalerTrainer
    held_out: UpscalerPairs
    picture_count: int = 8

    def evaluate(self) -> Metrics:
        return measure_upscaler(self.trainer.average, self.held_out)

    def draw_sheet(self, path: Path) -> None:
        """Write a line for each picture: Lanczos and ours of the clean one, the same of the decoded one, the target."""
        index = spread_rows(len(self.held_out), self.picture_count)
        small = self.held_out.clean[index], self.held_out.decoded[index]
        columns = [draw(each) for each in small for draw in (upscale_with_lanczos, self._upscale)]
        columns.append(self.held_out.large[index])
        pictures = [picture for row in zip(*columns, strict=True) for picture in row]
        write_picture_sheet(path, pictures, columns=len(columns), zoom=1)

    def _upscale(self, small: np.ndarray) -> np.ndarray:
        return upscale_batch(self.trainer.average, small)


OVERSAMPLING = 4
CHART_KINDS = ("step", "step", "aligned", "aligned", "aligned", "lines", "shapes", "shapes", "flat")


def draw_chart(rng: np.random.Generator, side: int) -> np.ndarray:
    """Draw one chart, uint8 [side, side, 3]."""
    kind = str(rng.choice(CHART_KINDS))
    if kind == "aligned":
        return _draw_aligned_steps(rng, side)
    canvas = Image.new("RGB", (side * OVERSAMPLING, side * OVERSAMPLING), _random_colour(rng))
    draw = ImageDraw.Draw(canvas)
    if kind == "step":
        _draw_step(draw, rng, canvas.width)
    elif kind == "lines":
        _draw_lines(draw, rng, canvas.width)
    elif kind == "shapes":
        _draw_shapes(draw, rng, canvas.width)
    return np.asarray(canvas.resize((side, side), Image.Resampling.BOX))


def _random_colour(rng: np.random.Generator) -> tuple[int, int, int]:
    """Draw any colour, or a grey: errors show most at a step between two greys."""
    red, green, blue = (int(part) for part in rng.integers(0, 256, 3))
    return (red, red, red) if rng.random() < 0.4 else (red, green, blue)


def _draw_aligned_steps(rng: np.random.Generator, side: int) -> np.ndarray:
    """Draw steps on pixel borders of the small picture: the edge is hard in both sizes."""
    small = np.empty((side // 4, side // 4, 3), np.uint8)
    small[:] = _random_colour(rng)
    small[:, int(rng.integers(4, side // 4 - 4)) :] = _random_colour(rng)
    if rng.random() < 0.3:
        small[int(rng.integers(4, side // 4 - 4)) :] = _random_colour(rng)
    large = small.repeat(4, axis=0).repeat(4, axis=1)
    return large.transpose(1, 0, 2).copy() if rng.random() < 0.5 else large


def _draw_step(draw: ImageDraw.ImageDraw, rng: np.random.Generator, side: int) -> None:
    angle = rng.uniform(0, 2 * np.pi)
    along = np.array([np.cos(angle), np.sin(angle)])
    across = np.array([-np.sin(angle), np.cos(angle)])
    middle = rng.uniform(0.3, 0.7, 2) * side
    extent = 2 * side
    edge = (middle + along * extent, middle - along * extent)
    corners = (*edge, edge[1] + across * extent * 2, edge[0] + across * extent * 2)
    draw.polygon([(float(x), float(y)) for x, y in corners], fill=_random_colour(rng))


def _draw_lines(draw: ImageDraw.ImageDraw, rng: np.random.Generator, side: int) -> None:
    for _ in range(int(rng.integers(3, 9))):
        x0, y0, x1, y1 = (float(coordinate) for coordinate in rng.uniform(0, side, 4))
        draw.line((x0, y0, x1, y1), fill=_random_colour(rng), width=int(rng.integers(2, 12)) * OVERSAMPLING)


def _draw_shapes(draw: ImageDraw.ImageDraw, rng: np.random.Generator, side: int) -> None:
    for _ in range(int(rng.integers(2, 9))):
        x, y = (float(coordinate) for coordinate in rng.uniform(0, side, 2))
        half_width, half_height = (float(half_side) for half_side in rng.uniform(0.02, 0.3, 2) * side)
        box = (x - half_width, y - half_height, x + half_width, y + half_height)
        kind = rng.integers(4)
        if kind == 0:
            draw.ellipse(box, fill=_random_colour(rng))
        elif kind == 1:
            draw.ellipse(box, outline=_random_colour(rng), width=int(rng.integers(2, 10)) * OVERSAMPLING)
        elif kind == 2:
            draw.rounded_rectangle(box, float(rng.uniform(0, min(half_width, half_height))), fill=_random_colour(rng))
        else:
            corners = rng.uniform(-1, 1, (3, 2))
            points = [(x + float(dx) * half_width, y + float(dy) * half_height) for dx, dy in corners]
            draw.polygon(points, fill=_random_colour(rng))
