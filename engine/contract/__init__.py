"""The wire contract: every value that crosses a process boundary.

It defines how a value looks and how large it may be, and imports neither NATS, torch, SQL nor Discord. Every value is
frozen, tagged (`type`), versioned (`v`) and strict: unknown fields are refused. Every string, list and number is
bounded: bytes from another process are untrusted until `decode` has accepted them.

All public names can be imported from here, except `rejection.JobRejected` and `fields.AccountName`. They lie in these
files:

- `fields`: versions, limits, bounded field types, and the base of all messages.
- `samplers`: the samplers' names.
- `amendments`: what members change while a picture develops; `steering`: what that means at each step;
  `amendment_check`: why a change cannot be.
- `recipe`: the recipe and its parts. `recipe_images`: the recipe and noise of one image. `style_words`: whether a text
  names a style. `guidance`: its guided steps and network rows. `evaluations`: the steps at which the network is
  evaluated. `turbo`: a model's own LoRA for few steps.
- `job`: the job, its task and who pays for it. `cost`: what a recipe costs on a model.
- `edits`: which recipes edit a picture. `offered_parts`: whether a worker has a recipe's parts. `features`: whether a
  model can do what a recipe uses.
- `messages`: previews, results and control messages of a job. `keyframes`: ladders and snapshots.
- `presence`: what a worker announces. `requests`: what it answers at once, without a job.
- `codec`: bytes from and to values. `rejection`: the exception for a job that the engine refuses or fails.
"""

from __future__ import annotations

from engine.contract.amendment_check import find_amendment_problem, find_amendments_problem
from engine.contract.amendments import (
    Amendment,
    AmendmentNumber,
    Change,
    Concept,
    DropImages,
    SetConcepts,
    SetGuidance,
    SetNegative,
    SplitImage,
)
from engine.contract.codec import MalformedMessage, OtherVersion, convert, decode, decode_json, encode
from engine.contract.cost import count_row_steps, estimate_cost, estimate_decode_ms
from engine.contract.edits import is_edit
from engine.contract.embedding_names import compile_embedding_names, find_embeddings
from engine.contract.evaluations import (
    DRAFT_EVALUATIONS,
    MIN_EVALUATIONS,
    count_evaluations,
    count_requested_evaluations,
    count_usual_evaluations,
    find_borders,
    find_done_share,
    find_last_evaluation,
    find_next_evaluation,
    has_skipped_steps,
    is_draft,
    list_evaluated_steps,
)
from engine.contract.features import find_lacking_feature
from engine.contract.fields import (
    FULL_INTERVAL,
    MAX_AMENDMENTS,
    MAX_CANDIDATE_IMAGES,
    MAX_CANDIDATES,
    MAX_CONCEPTS,
    MAX_CONTROLS,
    MAX_COUNT,
    MAX_EMBEDDINGS,
    MAX_ESTIMATE_BYTES,
    MAX_FRAME_BYTES,
    MAX_INIT_IMAGES,
    MAX_INTERPOLATION_FRAMES,
    MAX_KEYFRAMES,
    MAX_LORAS,
    MAX_NOISINGS,
    MAX_REFERENCES,
    MAX_ROWS,
    MAX_STEPS,
    MAX_THUMBNAIL_BYTES,
    VERSION,
    Blame,
    ByteCount,
    CandidateText,
    Coordinate,
    Dtype,
    Epoch,
    Feature,
    Fraction,
    GuidanceKind,
    Id,
    Index,
    LatentBytes,
    Milliseconds,
    Name,
    Preprocessor,
    Quantization,
    Seconds,
    Seed,
    Sentence,
    Sha256,
    Side,
    SquaredError,
    Step,
    TensorSide,
    Text,
    UnixSeconds,
    UpscaleMethod,
    Verdict,
    Version,
    VersionedValue,
)
from engine.contract.guidance import (
    count_image_rows,
    count_rows,
    find_guidance_borders,
    find_guided_steps,
    has_negative_weight,
    is_guided,
    is_in_interval,
    needs_unconditional_row,
    pinned_bucket,
)
from engine.contract.job import BillingKey, Job, Task, UpscaleTask, required_blobs
from engine.contract.keyframes import AmendmentLog, Keyframe, Ladder, Snapshot
from engine.contract.messages import (
    MAX_AMENDMENTS_AT_ONCE,
    MAX_PACE_SECONDS,
    AmendJob,
    AmendmentRequest,
    ControlMessage,
    Frame,
    JobAmended,
    JobCancelled,
    JobFailed,
    JobFinished,
    JobHandedBack,
    JobModelLoading,
    JobStarted,
    PictureReady,
    Result,
)
from engine.contract.offered_parts import MissingPart, find_missing_part
from engine.contract.part_fields import make_part_fields
from engine.contract.presence import ControlModel, ModelProfile, ModelProgress, Presence
from engine.contract.recipe import (
    Branch,
    ControlImage,
    ImageToImage,
    InitImage,
    Interpolation,
    Lora,
    ModelPart,
    NoiseAncestor,
    Recipe,
    ReferenceImage,
)
from engine.contract.recipe_images import (
    add_style,
    candidate_index,
    find_style,
    keep_style,
    map_step,
    noise_seed,
    recipe_for_image,
)
from engine.contract.requests import (
    DecodeReply,
    DecodeRequest,
    DescribeReply,
    DescribeRequest,
    EmbedReply,
    EmbedRequest,
)
from engine.contract.samplers import PIPELINE_SAMPLERS, SAMPLER_TITLES, Sampler
from engine.contract.steering import (
    ImageLife,
    Timeline,
    count_ending_images,
    find_ancestor,
    find_life,
    is_snapshot_of_recipe,
    iterate_segments,
    iterate_states,
    list_final_images,
    list_followed_changes,
    list_lives,
    list_needed_lives,
    recipe_at_end,
    recipe_at_step,
    settle_amendments,
    settle_fades,
)
from engine.contract.style_words import has_style
from engine.contract.turbo import TURBO_GUIDANCE, TURBO_LORA, TURBO_SAMPLER, TURBO_STEPS, find_turbo, is_turbo

__all__ = [
    "DRAFT_EVALUATIONS", "FULL_INTERVAL", "MAX_AMENDMENTS", "MAX_AMENDMENTS_AT_ONCE", "MAX_CANDIDATES",
    "MAX_CANDIDATE_IMAGES", "MAX_CONCEPTS", "MAX_CONTROLS", "MAX_COUNT", "MAX_EMBEDDINGS", "MAX_ESTIMATE_BYTES",
    "MAX_FRAME_BYTES", "MAX_INIT_IMAGES", "MAX_INTERPOLATION_FRAMES", "MAX_KEYFRAMES", "MAX_LORAS", "MAX_NOISINGS",
    "MAX_PACE_SECONDS", "MAX_REFERENCES", "MAX_ROWS", "MAX_STEPS", "MAX_THUMBNAIL_BYTES", "MIN_EVALUATIONS",
    "PIPELINE_SAMPLERS", "SAMPLER_TITLES", "TURBO_GUIDANCE", "TURBO_LORA", "TURBO_SAMPLER", "TURBO_STEPS",
    "VERSION", "AmendJob", "Amendment", "AmendmentLog", "AmendmentNumber", "AmendmentRequest", "BillingKey",
    "Blame", "Branch", "ByteCount", "CandidateText", "Change", "Concept", "ControlImage", "ControlMessage",
    "ControlModel", "Coordinate", "DecodeReply", "DecodeRequest", "DescribeReply", "DescribeRequest", "DropImages",
    "Dtype", "EmbedReply", "EmbedRequest", "Epoch", "Feature", "Fraction", "Frame", "GuidanceKind", "Id",
    "ImageLife", "ImageToImage", "Index", "InitImage", "Interpolation", "Job", "JobAmended", "JobCancelled",
    "JobFailed", "JobFinished", "JobHandedBack", "JobModelLoading", "JobStarted", "Keyframe", "Ladder",
    "LatentBytes", "Lora", "MalformedMessage", "Milliseconds", "MissingPart", "ModelPart", "ModelProfile",
    "ModelProgress", "Name", "NoiseAncestor", "OtherVersion", "PictureReady", "Preprocessor", "Presence",
    "Quantization", "Recipe", "ReferenceImage", "Result", "Sampler", "Seconds", "Seed", "Sentence", "SetConcepts",
    "SetGuidance", "SetNegative", "Sha256", "Side", "Snapshot", "SplitImage", "SquaredError", "Step", "Task",
    "TensorSide", "Text", "Timeline", "UnixSeconds", "UpscaleMethod", "UpscaleTask", "Verdict", "Version",
    "VersionedValue", "add_style", "candidate_index", "compile_embedding_names", "convert", "count_ending_images",
    "count_evaluations", "count_image_rows", "count_requested_evaluations", "count_row_steps", "count_rows",
    "count_usual_evaluations", "decode", "decode_json", "encode", "estimate_cost", "estimate_decode_ms",
    "find_amendment_problem", "find_amendments_problem", "find_ancestor", "find_borders", "find_done_share",
    "find_embeddings", "find_guidance_borders", "find_guided_steps", "find_lacking_feature", "find_last_evaluation",
    "find_life", "find_missing_part", "find_next_evaluation", "find_style", "find_turbo", "has_negative_weight",
    "has_skipped_steps", "has_style", "is_draft", "is_edit", "is_guided", "is_in_interval", "is_snapshot_of_recipe",
    "is_turbo", "iterate_segments", "iterate_states", "keep_style", "list_evaluated_steps", "list_final_images",
    "list_followed_changes", "list_lives", "list_needed_lives", "make_part_fields", "map_step",
    "needs_unconditional_row", "noise_seed", "pinned_bucket", "recipe_at_end", "recipe_at_step", "recipe_for_image",
    "required_blobs", "settle_amendments", "settle_fades",
]  # fmt: skip
