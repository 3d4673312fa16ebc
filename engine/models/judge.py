"""The judge: a small convolutional classifier that says what a picture of 64×64 pixels shows.

It was trained on the real artwork only, so it cannot have learnt the habits of the model that it evaluates. A folder
has `judge.safetensors` (fp16) and `labels.json`. `PromptJudge` compares pictures with a prompt.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from PIL import Image
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn import functional as F

from engine.models.text_embedder import embed_texts

WEIGHTS_FILE = "judge.safetensors"
LABELS_FILE = "labels.json"
DEFAULT_WIDTHS = (64, 128, 256)
# the fifth stage has one position
MAX_STAGES = 5
MAX_WIDTH = 4096
BOTTLENECK_CHANNELS = 64
FEATURE_COUNT = 320
SENTENCE_DIMENSIONS = 384  # the width of MiniLM's sentence vectors
SIDE = 64  # of the pictures that it sees, in pixels
BATCH = 128


class ConvLayer(nn.Sequential):
    """Convolution, batch normalisation, ReLU."""

    def __init__(self, in_channels: int, out_channels: int, kernel: int = 3, stride: int = 1) -> None:
        convolution = nn.Conv2d(in_channels, out_channels, kernel, stride, (kernel - 1) // 2, bias=False)
        super().__init__(convolution, nn.BatchNorm2d(out_channels), nn.ReLU())


class ResidualBlock(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.layer = ConvLayer(width, width)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.layer(x)


class JudgeNetwork(nn.Module):
    """Maps pictures in -1 … 1 `[n, 3, 64, 64]` to label scores, MiniLM's sentence vector, and features.

    The last 4×4 positions are not averaged: the position helps to name a thing, and training takes a third of the time.
    """

    def __init__(self, label_count: int, widths: Sequence[int] = DEFAULT_WIDTHS) -> None:
        super().__init__()
        layers: list[nn.Module] = [ConvLayer(3, widths[0], kernel=6, stride=4), ResidualBlock(widths[0])]
        for in_channels, out_channels in pairwise(widths):
            layers += [ConvLayer(in_channels, out_channels, stride=2), ResidualBlock(out_channels)]
        position_count = (SIDE // 4 // 2 ** (len(widths) - 1)) ** 2
        bottleneck = [
            nn.Conv2d(widths[-1], BOTTLENECK_CHANNELS, 1),
            nn.Flatten(),
            nn.Linear(BOTTLENECK_CHANNELS * position_count, FEATURE_COUNT, bias=False),
        ]
        self.body = nn.Sequential(*layers, *bottleneck, nn.BatchNorm1d(FEATURE_COUNT))
        self.heads = nn.ModuleDict(
            {"label": nn.Linear(FEATURE_COUNT, label_count), "sentence": nn.Linear(FEATURE_COUNT, SENTENCE_DIMENSIONS)}
        )

    @property
    def stages(self) -> list[nn.Module]:
        """Return the stages: each convolution that reduces the picture, and its successor; 1/4, 1/8, 1/16 of a side."""
        layers = list(self.body)[:-4]  # the last four make one vector of all positions
        return [nn.Sequential(*layers[start : start + 2]) for start in range(0, len(layers), 2)]

    def forward(self, pictures: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        features = self.body(pictures.contiguous(memory_format=torch.channels_last))
        return self.heads["label"](features), self.heads["sentence"](features), features


@dataclass(frozen=True)
class JudgeOutput:
    """The judge's output for n pictures: `scores` [n, labels], `features` [n, width], and `sentences` of length 1."""

    scores: Tensor
    sentences: Tensor
    features: Tensor

    def top_labels(self, count: int) -> Tensor:
        """Return the numbers of the best labels, best first: [n, count]."""
        return self.scores.topk(min(count, self.scores.size(1)), dim=1).indices


@dataclass(frozen=True)
class LabelJudge:
    """A trained network and its labels. `own_scores` are its scores on real pictures at the end of its training."""

    network: JudgeNetwork
    labels: tuple[str, ...]
    own_scores: Mapping[str, float]

    @torch.inference_mode()
    def judge_pictures(self, pictures: np.ndarray) -> JudgeOutput:
        """Judge uint8 [n, h, w, 3] of any side; resizes to 64 px."""
        pictures = resize_pictures(pictures)
        device = next(self.network.parameters()).device
        batches = (as_images(pictures[start : start + BATCH]).to(device) for start in range(0, len(pictures), BATCH))
        outputs = zip(*(self.network(batch) for batch in batches), strict=True)
        scores, sentences, features = (torch.cat(parts).cpu() for parts in outputs)
        return JudgeOutput(scores, F.normalize(sentences, dim=1), features)


class PromptJudge:
    """Says how near pictures are to a prompt. It loads its network at the first call.

    `tokenizer` and `encoder` are MiniLM's, in use by the model too; `lock` guards the tokenizer. One thread calls it.
    """

    def __init__(self, folder: Path, tokenizer: Any, encoder: Any, lock: AbstractContextManager[Any]) -> None:
        self._folder = folder
        self._tokenizer = tokenizer
        self._encoder = encoder
        self._lock = lock
        self._judge: LabelJudge | None = None

    def score_pictures(self, pictures: Sequence[Image.Image], prompt: str) -> list[float]:
        """Return the cosine of each picture's sentence vector with that of the prompt; the higher, the nearer."""
        if self._judge is None:
            self._judge = load_judge(self._folder)
        with self._lock:
            prompt_vector = embed_texts(self._tokenizer, self._encoder, [prompt])[0].cpu()
        pixels = resize_pictures(np.stack([np.asarray(picture.convert("RGB")) for picture in pictures]))
        return cast("list[float]", (self._judge.judge_pictures(pixels).sentences @ prompt_vector).tolist())


def save_judge(judge: LabelJudge, folder: Path) -> None:
    """Write the network in fp16 and the labels."""
    folder.mkdir(parents=True, exist_ok=True)
    tensors = {
        name: tensor.half() if tensor.is_floating_point() else tensor
        for name, tensor in judge.network.state_dict().items()
    }
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, folder / WEIGHTS_FILE)
    listing = {"widths": layer_widths(judge.network), "own": dict(judge.own_scores), "labels": list(judge.labels)}
    (folder / LABELS_FILE).write_text(json.dumps(listing, ensure_ascii=False, indent=0) + "\n")


def load_judge(folder: Path) -> LabelJudge:
    """Load a judge. Raises FileNotFoundError if there is none, ValueError if the two files do not match."""
    listing = _read_listing(folder)
    network = JudgeNetwork(len(listing["labels"]), listing["widths"])
    try:
        network.load_state_dict(load_file(folder / WEIGHTS_FILE))
    except (RuntimeError, SafetensorError):
        raise ValueError(f"{WEIGHTS_FILE} and {LABELS_FILE} in {folder.name} do not belong to one judge") from None
    network.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]  (torch's overloads leave it out)
    return LabelJudge(network.eval(), tuple(listing["labels"]), listing["own"])


def read_labels(folder: Path) -> tuple[str, ...]:
    """Read a judge's labels without its weights. Raises ValueError if there is none."""
    try:
        return tuple(_read_listing(folder)["labels"])
    except FileNotFoundError:
        raise ValueError(f"The judge's {LABELS_FILE} is missing: `darkroom train judge` writes it.") from None


def _read_listing(folder: Path) -> dict[str, Any]:
    try:
        listing = json.loads((folder / LABELS_FILE).read_text())
        labels, widths, own_scores = (listing[part] for part in ("labels", "widths", "own"))
        is_complete = all(isinstance(item, str) for item in labels) and {"at_1", "at_5"} <= own_scores.keys()
        has_stages = 0 < len(widths) <= MAX_STAGES and all(0 < int(item) <= MAX_WIDTH for item in widths)
        if not (labels and is_complete and has_stages):
            raise ValueError
    except (ValueError, TypeError, KeyError, AttributeError):
        raise ValueError(f"{LABELS_FILE} in {folder.name} is no list of a judge's labels") from None
    return listing


def layer_widths(network: JudgeNetwork) -> list[int]:
    """Return the widths that a network was built with."""
    layers = [layer for layer in network.body if isinstance(layer, ConvLayer)]
    return [cast(nn.Conv2d, layer[0]).weight.size(0) for layer in layers]


def resize_pictures(pictures: np.ndarray) -> np.ndarray:
    """Return uint8 [n, h, w, 3] at the judge's side, 64 px."""
    if pictures.shape[1:3] == (SIDE, SIDE):
        return pictures
    size = (SIDE, SIDE)
    return np.stack([np.asarray(Image.fromarray(one).resize(size, Image.Resampling.LANCZOS)) for one in pictures])


def as_images(pictures: np.ndarray) -> Tensor:
    """Convert uint8 [n, h, w, 3] to fp32 [n, 3, h, w] from -1 to 1, channels last."""
    images = torch.from_numpy(np.ascontiguousarray(pictures)).permute(0, 3, 1, 2).float().div_(127.5).sub_(1.0)
    return images.contiguous(memory_format=torch.channels_last)
