"""The recipe: everything that decides the pixels of a job's images."""

from __future__ import annotations

from typing import Annotated

from msgspec import Meta, Struct

from engine.contract.fields import (
    MAX_AMENDMENTS,
    MAX_CANDIDATE_IMAGES,
    MAX_CONCEPTS,
    MAX_CONTROLS,
    MAX_COUNT,
    MAX_EMBEDDINGS,
    MAX_INIT_IMAGES,
    MAX_INTERPOLATION_FRAMES,
    MAX_LORAS,
    MAX_REFERENCES,
    MAX_STEPS,
    MAX_STYLES,
    CandidateIndex,
    Dtype,
    Fraction,
    GuidanceKind,
    Index,
    Name,
    Preprocessor,
    Quantization,
    Sampler,
    Seed,
    Sha256,
    Side,
    Style,
    Text,
    VersionedValue,
)


class NoiseAncestor(Struct, frozen=True, forbid_unknown_fields=True):
    """A noise stream that a variation started from; `strength` is how far the next generation moves away from it."""

    seed: Seed
    index: CandidateIndex
    strength: Fraction


class Lora(Struct, frozen=True, forbid_unknown_fields=True):
    """A low-rank addition to a model's weights (Hu et al. 2021): its name on the workers and its strength.

    `revision` changes with its weights. Empty: the one that the worker has.
    """

    name: Name
    weight: Annotated[float, Meta(ge=-4, le=4)] = 1.0
    revision: Annotated[str, Meta(max_length=64)] = ""


class ControlImage(Struct, frozen=True, forbid_unknown_fields=True):
    """A picture whose shapes an image follows: by ControlNet (Zhang et al. 2023) or T2I-Adapter (Mou et al. 2023).

    `name` and `revision` are the control network's on the workers. `picture` is the blob of the member's picture;
    `preprocessor` makes the control image of it. It holds between `start` and `stop`, fractions of the steps as in
    diffusers' pipelines.
    """

    name: Name
    picture: Sha256
    preprocessor: Preprocessor = "none"
    scale: Annotated[float, Meta(ge=0, le=2)] = 1.0
    start: Fraction = 0.0
    stop: Fraction = 1.0
    revision: Annotated[str, Meta(max_length=64)] = ""


class ReferenceImage(Struct, frozen=True, forbid_unknown_fields=True):
    """A picture whose content or style an image takes over, through an IP-Adapter (Ye et al. 2023).

    `name` and `revision` are the adapter's on the workers; `picture` is a blob.
    """

    name: Name
    picture: Sha256
    scale: Annotated[float, Meta(ge=0, le=2)] = 0.6
    revision: Annotated[str, Meta(max_length=64)] = ""


class ModelPart(Struct, frozen=True, forbid_unknown_fields=True):
    """A file that the operator adds to a model: a textual inversion (Gal et al. 2022) or an autoencoder."""

    name: Name
    revision: Annotated[str, Meta(max_length=64)] = ""


class InitImage(Struct, frozen=True, forbid_unknown_fields=True):
    """An init image: its SHA-256 in the blob bucket, and its weight among several."""

    sha256: Sha256
    weight: Annotated[float, Meta(gt=0, le=100)] = 1.0


class ImageToImage(Struct, frozen=True, tag=True, forbid_unknown_fields=True):
    """Start from init images, noised part of the way: x = alpha·z + sigma·noise (Ho et al. 2020, equation 4).

    z is the autoencoder's mean of the image; for several images, their spherical interpolation by weight. `strength` is
    the fraction of the steps still to run, as in diffusers' image-to-image pipelines: 1 keeps nothing. `mask` is a grey
    PNG of any size: white is painted anew, black restored after each evaluation (Lugmayr et al. 2022). A model that
    edits by words takes images at full strength without a mask: it starts from noise and sees them beside the prompt.
    """

    pictures: Annotated[tuple[InitImage, ...], Meta(min_length=1, max_length=MAX_INIT_IMAGES)]
    strength: Annotated[float, Meta(gt=0, le=1)]
    mask: Sha256 | None = None

    @property
    def has_whole_pictures(self) -> bool:
        """Whether it is at full strength without a mask: nothing of its pictures would remain as a start."""
        return self.strength == 1.0 and self.mask is None


class Branch(Struct, frozen=True, tag=True, forbid_unknown_fields=True):
    """Continue from a keyframe of another image, whose latents are in a `Ladder` (named by its SHA-256).

    `step` counts the recipe's steps. `ladder_step` counts the ladder's steps where their number differs (`map_step`).
    The noise of the following steps is the recipe's own. `has_new_noise` also draws the noise within the latents anew,
    x = alpha·x0 + sigma·noise, since many samplers draw none in their steps.
    """

    ladder: Sha256
    step: Annotated[int, Meta(ge=1, lt=MAX_STEPS)]
    has_new_noise: bool = False
    ladder_step: Annotated[int, Meta(ge=1, lt=MAX_STEPS)] | None = None

    @property
    def keyframe_step(self) -> int:
        """The keyframe's step, counted in the steps of the image that the branch leaves."""
        return self.step if self.ladder_step is None else self.ladder_step


class Interpolation(Struct, frozen=True, forbid_unknown_fields=True):
    """Interpolation: image `i` is frame `first + i` of `total_frames` evenly spaced frames (`recipe_for_image`).

    With `end_prompt`, the frames go from the recipe's prompt to this one, between their embeddings. With `noises`, they
    go from seed to seed, along an arc between neighbours. Without `noises`, all frames share the recipe's noise.
    """

    end_prompt: Text | None
    first: Annotated[int, Meta(ge=0, lt=MAX_INTERPOLATION_FRAMES)]
    total_frames: Annotated[int, Meta(ge=2, le=MAX_INTERPOLATION_FRAMES)]
    noises: Annotated[tuple[Seed, ...], Meta(max_length=MAX_COUNT)] = ()


class Recipe(VersionedValue, frozen=True, kw_only=True, omit_defaults=True):
    """Everything that decides pixels, and nothing else.

    What calibration measured (`dtype`, default `steps`) is frozen here when the recipe is made, so load never changes
    pixels.

    - `seed`: image `i` draws its noise from `torch.Generator().manual_seed(seed + i)`, as a diffusers user would; an
      interpolation differs (`noise_seed`).
    - `lineage`: the noise streams of a variation's ancestors, oldest first. Every draw (initial and per step) is the
      spherical interpolation along that chain, which ends in the recipe's own stream.
    - `bucket`: pins the batch shape (`exact` mode).
    - `evaluations`: at how many of the steps the network is evaluated (`evaluations`); 0: at all.
    - `guidance_start`, `guidance_stop`: guidance holds between them, as fractions of the steps. Outside, the prompt
      alone is predicted, which takes fewer rows (Kynkäänniemi et al. 2024; fractions as in diffusers' guiders).
    - `guidance_kind`: how the model takes guidance. `start`: what replaces the initial noise.
    - `stop_at`: the fraction of the steps after which it stops and returns the x0 of that step. `tile`: edges match.
    - `mixed`: the concepts become one text, the weighted mean of their embeddings, in place of a composition of
      predictions; all weights are above 0.
    - `chaos`: how far apart the images' guidance scales lie; `interpolation`: what they are frames of.
    - `candidate_count`: how many candidates are drawn, of which the model's judge chooses `count`; 0: all are shown.
    - `quantization`: how the network's weights are stored in memory; another one draws other pixels.
    - `controls`, `references`: pictures beside the prompt.
    - `embeddings`: the textual inversions whose names occur in the prompts. `autoencoder`: in place of the model's own.
    - `clip_skip`: how many last layers of CLIP are left out, as in diffusers' pipelines; 0: none.
    - `chosen_candidates`: what it chose: image `i` is candidate `chosen_candidates[i]`, and no other is drawn.
    - `amendments`: what was changed while it developed, in order (`steering`).
    - `styles`: words that the images take in turn, behind each text of positive weight (`recipe_for_image`).
    """

    concepts: Annotated[tuple[Concept, ...], Meta(min_length=1, max_length=MAX_CONCEPTS)]
    negative: Text = ""
    model: Name
    revision: Annotated[str, Meta(max_length=64)] = ""
    sampler: Sampler
    steps: Annotated[int, Meta(ge=1, le=MAX_STEPS)]
    evaluations: Annotated[int, Meta(ge=0, le=MAX_STEPS)] = 0
    eta: Annotated[float, Meta(ge=0, le=1)] = 0.0
    seed: Seed
    guidance: Annotated[float, Meta(ge=1, le=30)]
    width: Side
    height: Side
    count: Annotated[int, Meta(ge=1, le=MAX_COUNT)] = 4
    dtype: Dtype
    bucket: Annotated[int, Meta(ge=1, le=256)] | None = None
    lineage: Annotated[tuple[NoiseAncestor, ...], Meta(max_length=8)] = ()
    guidance_start: Fraction = 0.0
    guidance_stop: Fraction = 1.0
    guidance_kind: GuidanceKind = "rows"
    loras: Annotated[tuple[Lora, ...], Meta(max_length=MAX_LORAS)] = ()
    start: ImageToImage | Branch | None = None
    stop_at: Annotated[float, Meta(gt=0, le=1)] = 1.0
    tile: bool = False
    mixed: bool = False
    chaos: Fraction = 0.0
    interpolation: Interpolation | None = None
    candidate_count: Annotated[int, Meta(ge=0, le=MAX_CANDIDATE_IMAGES)] = 0
    chosen_candidates: Annotated[tuple[CandidateIndex, ...], Meta(max_length=MAX_COUNT)] = ()
    quantization: Quantization = "none"
    controls: Annotated[tuple[ControlImage, ...], Meta(max_length=MAX_CONTROLS)] = ()
    references: Annotated[tuple[ReferenceImage, ...], Meta(max_length=MAX_REFERENCES)] = ()
    embeddings: Annotated[tuple[ModelPart, ...], Meta(max_length=MAX_EMBEDDINGS)] = ()
    autoencoder: ModelPart | None = None
    clip_skip: Annotated[int, Meta(ge=0, le=12)] = 0
    amendments: Annotated[tuple[Amendment, ...], Meta(max_length=MAX_AMENDMENTS)] = ()
    styles: Annotated[tuple[Style, ...], Meta(max_length=MAX_STYLES)] = ()

    @property
    def drawn_count(self) -> int:
        """How many images the engine draws: all candidates, until the judge has chosen."""
        return self.count if self.chosen_candidates else max(self.count, self.candidate_count)

    @property
    def needs_choice(self) -> bool:
        """Whether the judge has yet to choose among its candidates."""
        return self.drawn_count > self.count

    def shows_image(self, image: int) -> bool:
        """Return whether an image is shown while it develops: of candidates only the first, one for each picture."""
        return not self.needs_choice or image < self.count

    @property
    def guidance_interval(self) -> tuple[float, float]:
        """The fractions of the steps between which guidance holds."""
        return self.guidance_start, self.guidance_stop

    @property
    def first_step(self) -> int:
        """The first step that runs."""
        if isinstance(self.start, Branch):
            return self.start.step
        if isinstance(self.start, ImageToImage):
            return self.steps - min(self.steps, max(1, int(self.steps * self.start.strength)))
        return 0

    @property
    def end_step(self) -> int:
        """The step before which it ends: `steps`, unless `stop_at` stops it earlier."""
        return max(1, round(self.steps * self.stop_at))

    @property
    def required_blobs(self) -> tuple[str, ...]:
        """The SHA-256 of each blob that the recipe needs."""
        pictures = tuple(each.picture for each in (*self.controls, *self.references))
        if isinstance(self.start, Branch):
            return (self.start.ladder, *pictures)
        if isinstance(self.start, ImageToImage):
            init_images = tuple(image.sha256 for image in self.start.pictures)
            return (*init_images, *filter(None, (self.start.mask,)), *pictures)
        return pictures


AmendmentNumber = Annotated[int, Meta(ge=1, le=1_000_000)]


class Concept(Struct, frozen=True, forbid_unknown_fields=True):
    """One weighted part of a prompt. A negative weight steers away (Liu et al. 2022, composable diffusion)."""

    text: Text
    weight: Annotated[float, Meta(ge=-10, le=10)] = 1.0


class SetConcepts(Struct, frozen=True, tag=True, forbid_unknown_fields=True, omit_defaults=True):
    """The prompt from now on. Over `fade_steps` steps each weight goes evenly from the old to the new one.

    `mixed`: as in a recipe.
    """

    concepts: Annotated[tuple[Concept, ...], Meta(min_length=1, max_length=MAX_CONCEPTS)]
    mixed: bool = False
    fade_steps: Annotated[int, Meta(ge=0, le=MAX_STEPS)] = 0


class SetNegative(Struct, frozen=True, tag=True, forbid_unknown_fields=True):
    """The negative prompt from now on."""

    negative: Text


class SetGuidance(Struct, frozen=True, tag=True, forbid_unknown_fields=True, omit_defaults=True):
    """The guidance scale from now on, and the fractions of all steps between which guidance holds."""

    guidance: Annotated[float, Meta(ge=1, le=30)]
    start: Fraction = 0.0
    stop: Fraction = 1.0


class DropImages(Struct, frozen=True, tag=True, forbid_unknown_fields=True):
    """These images develop no further, and no pictures are made of them."""

    images: Annotated[tuple[Index, ...], Meta(min_length=1, max_length=MAX_COUNT - 1)]


class SplitImage(Struct, frozen=True, tag=True, forbid_unknown_fields=True):
    """One image goes on as several: as itself, and in free places with fresh noise at the same noise level.

    A new image in place i starts with x = alpha·x0 + sigma·noise, x0 by the step of the split (Ho et al. 2020, equation
    4). Its noise is that of `seed` + i.
    """

    image: Index
    places: Annotated[tuple[Index, ...], Meta(min_length=1, max_length=MAX_COUNT - 1)]
    seed: Seed


Change = SetConcepts | SetNegative | SetGuidance | DropImages | SplitImage


class Amendment(Struct, frozen=True, forbid_unknown_fields=True):
    """A change that holds from step `step` on. `number` counts the changes that were asked for of one job."""

    number: AmendmentNumber
    step: Annotated[int, Meta(ge=0, lt=MAX_STEPS)]
    change: Change
