"""Qwen-Image: a language model's states in their own length, latents packed two by two, an autoencoder for films.

Its pipeline scales the guided prediction to the norm of the prompt's own, for each packed latent.
"""

from __future__ import annotations

from typing import Any, cast

import torch
from diffusers.pipelines.qwenimage.pipeline_qwenimage_edit_plus import calculate_dimensions
from PIL import Image
from torch.nn.functional import avg_pool2d, interpolate, pad

from engine.contract import MAX_INIT_IMAGES, Recipe
from engine.models.autoencoder.autoencoder import StillAutoencoder
from engine.models.families.diffusers_family import choose_guidance
from engine.models.families.flow_matching import FlowMatchingFamily
from engine.models.families.picture_editing import EditedPictures, NeedsPicture, split_pictures
from engine.models.family import Conditioning
from engine.models.prompt_chunks import PromptKey
from engine.prompt.emphasis import strip_emphasis

GUIDANCE = 4.0  # the pipeline's own default
TOKENS = 1024
PATCH = 2
PLUS_SIDE = 384  # pixels along a side of the area at which the Plus pipelines' language model sees a picture


class QwenImage(FlowMatchingFamily):
    """Conditions: the text's states, padded to one length so that texts share a batch, and the unpadded length.

    The length stays on the CPU: a forward is as long as its longest text.
    """

    pipelines = ("QwenImagePipeline",)
    unsupported_samplers = ("heun", "unipc", "dpmpp_3m")

    def __init__(
        self, pipeline: Any, name: str, revision: str, device: torch.device | str = "cpu", guidance: float | None = None
    ) -> None:
        super().__init__(pipeline, name, revision, device, guidance or choose_guidance(name, GUIDANCE))
        self.tokens = TOKENS
        self.size = int(pipeline.default_sample_size) * self.pixels_per_latent
        self.multiple = PATCH * self.pixels_per_latent
        # text lengths vary inside, and a packed copy or a graph would fix them
        self.forward_runner.disable_optimizations()

    def _adapt_autoencoder(self, autoencoder: Any) -> StillAutoencoder:
        return StillAutoencoder(autoencoder)

    def _encode_text(self, pipeline: Any, prompt: PromptKey) -> Conditioning:
        states, _ = pipeline.encode_prompt(prompt.text, device=self.device, max_sequence_length=TOKENS)
        return self._pad_states(states[0])

    def _pad_states(self, states: torch.Tensor) -> Conditioning:
        """Pad to a multiple of the tokens of a text alone: a picture that the language model sees takes more."""
        return pad(states.float(), (0, 0, 0, -len(states) % TOKENS)), torch.tensor(len(states))

    def _make_prompt_arguments(self, conditions: Conditioning) -> dict[str, Any]:
        states, length = conditions
        mask = torch.ones(1, int(length), dtype=torch.long, device=states.device)
        return {"prompt_embeds": states[None, : int(length)], "prompt_embeds_mask": mask}

    def measure_norm(self, prediction: torch.Tensor) -> torch.Tensor:
        """Return the norms of packed latents of `[images, channels, height, width]`: `[images, 1, height, width]`."""
        mean_squares = avg_pool2d(prediction.square().sum(dim=1, keepdim=True), PATCH)
        return interpolate(torch.sqrt(mean_squares * PATCH**2), scale_factor=PATCH)

    def _run_network(self, net: Any, x: torch.Tensor, t: torch.Tensor, conditioning: Conditioning) -> torch.Tensor:
        texts, pictures = split_pictures(conditioning)
        states, lengths = texts
        longest = max(1, int(lengths.max()))
        is_text = torch.arange(longest) < lengths.reshape(len(x), 1)
        parts = [x, *pictures]
        tokens = [_pack(self.pipeline, part) for part in parts]
        out = net(
            hidden_states=torch.cat(tokens, dim=1),
            encoder_hidden_states=states[:, :longest],
            encoder_hidden_states_mask=None if bool(is_text.all()) else is_text.to(states.device),
            timestep=t.to(x.dtype) / 1000,
            img_shapes=[[_count_patches(part) for part in parts]] * len(x),
            return_dict=False,
        )[0]
        height, width = (side * self.pixels_per_latent for side in x.shape[-2:])
        return self._unpack(out[:, : tokens[0].shape[1]], width, height)

    def _unpack(self, latents: torch.Tensor, width: int, height: int) -> torch.Tensor:
        unpack = cast(Any, type(self.pipeline))._unpack_latents
        return unpack(latents, height, width, self.pixels_per_latent)[:, :, 0]


class QwenImageEdit(NeedsPicture, QwenImage):
    """Qwen-Image-Edit: the language model sees the picture, too.

    The picture is encoded at the size of the new one; its pipelines scale it to their native area.
    """

    pipelines = ("QwenImageEditPipeline",)
    max_edit_pictures = 1

    unsupported_samplers = (*QwenImage.unsupported_samplers, "native")  # a whole pipeline gets no picture

    def encode_edit(
        self, text: str, recipe: Recipe, pictures: EditedPictures, *, negative: bool = False
    ) -> Conditioning:
        shown = self._show([picture.image for picture in pictures])
        with torch.inference_mode(), self.pipeline_lock:
            states, _ = self.get_text_pipeline(recipe.loras).encode_prompt(
                strip_emphasis(text), image=shown, device=self.device
            )
        return (*self._pad_states(states[0]), *(picture.latents for picture in pictures))

    def _show(self, images: list[Image.Image]) -> Any:
        """Return what the language model sees."""
        return images[0]


class QwenImageEditPlus(QwenImageEdit):
    """The versions that take several pictures. The language model sees them smaller."""

    pipelines = ("QwenImageEditPlusPipeline",)
    max_edit_pictures = MAX_INIT_IMAGES

    def _show(self, images: list[Image.Image]) -> Any:
        return [_fit_area(image, PLUS_SIDE**2) for image in images]


def _pack(pipeline: Any, latents: torch.Tensor) -> torch.Tensor:
    """Return latents as tokens `[rows, tokens, features]`."""
    return cast(Any, type(pipeline))._pack_latents(latents, *latents.shape)


def _count_patches(latents: torch.Tensor) -> tuple[int, int, int]:
    """Return frames, rows and columns of packed latents."""
    return 1, latents.shape[-2] // PATCH, latents.shape[-1] // PATCH


def _fit_area(image: Image.Image, pixels: int) -> Image.Image:
    """Return the image at about this area, as the Plus pipelines show it to the language model."""
    size = cast(tuple[int, int], cast(Any, calculate_dimensions)(pixels, image.width / image.height))
    return image.resize(size, Image.Resampling.LANCZOS)
