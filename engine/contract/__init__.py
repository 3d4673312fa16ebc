"""The wire contract: every value that crosses a process boundary.

It defines how a value looks and how large it may be, and imports neither NATS, torch, SQL nor Discord. Every value is
frozen, tagged (`type`), versioned (`v`) and strict: unknown fields are refused. Every string, list and number is
bounded: bytes from another process are untrusted until `decode` has accepted them.

All public names can be imported from here, except `fields.AccountName`; `as` marks them as exported. They lie in these
files:

- `fields`: versions, limits, bounded field types, and the base of all messages. `samplers`: the samplers' names.
- `amendments`: what members change while a picture develops; `steering`: what that means at each step, and why a change
  cannot be.
- `recipe`: the recipe and its parts. `recipe_images`: what follows from it for one image, and names in its texts.
  `evaluations`: the steps at which its network is evaluated or guided. `cost`: what it costs on a model.
- `messages`: the job, its previews, results and control messages, its stored states, requests without a job.
- `presence`: what a worker announces, and whether a model has what a recipe uses.
- `codec`: bytes from and to values. `rejection`: the exception for a job that the engine refuses or fails.
"""

from __future__ import annotations

from engine.contract.amendments import Amendment as Amendment
from engine.contract.amendments import AmendmentNumber as AmendmentNumber
from engine.contract.amendments import Change as Change
from engine.contract.amendments import Concept as Concept
from engine.contract.amendments import DropImages as DropImages
from engine.contract.amendments import SetConcepts as SetConcepts
from engine.contract.amendments import SetGuidance as SetGuidance
from engine.contract.amendments import SetNegative as SetNegative
from engine.contract.amendments import SplitImage as SplitImage
from engine.contract.codec import MalformedMessage as MalformedMessage
from engine.contract.codec import OtherVersion as OtherVersion
from engine.contract.codec import convert as convert
from engine.contract.codec import decode as decode
from engine.contract.codec import decode_json as decode_json
from engine.contract.codec import encode as encode
from engine.contract.cost import count_row_steps as count_row_steps
from engine.contract.cost import estimate_cost as estimate_cost
from engine.contract.cost import estimate_decode_ms as estimate_decode_ms
from engine.contract.evaluations import DRAFT_EVALUATIONS as DRAFT_EVALUATIONS
from engine.contract.evaluations import MIN_EVALUATIONS as MIN_EVALUATIONS
from engine.contract.evaluations import count_evaluations as count_evaluations
from engine.contract.evaluations import count_image_rows as count_image_rows
from engine.contract.evaluations import count_requested_evaluations as count_requested_evaluations
from engine.contract.evaluations import count_rows as count_rows
from engine.contract.evaluations import count_usual_evaluations as count_usual_evaluations
from engine.contract.evaluations import find_borders as find_borders
from engine.contract.evaluations import find_done_share as find_done_share
from engine.contract.evaluations import find_guidance_borders as find_guidance_borders
from engine.contract.evaluations import find_guided_steps as find_guided_steps
from engine.contract.evaluations import find_last_evaluation as find_last_evaluation
from engine.contract.evaluations import find_next_evaluation as find_next_evaluation
from engine.contract.evaluations import has_negative_weight as has_negative_weight
from engine.contract.evaluations import has_skipped_steps as has_skipped_steps
from engine.contract.evaluations import is_draft as is_draft
from engine.contract.evaluations import is_guided as is_guided
from engine.contract.evaluations import is_in_interval as is_in_interval
from engine.contract.evaluations import list_evaluated_steps as list_evaluated_steps
from engine.contract.evaluations import needs_unconditional_row as needs_unconditional_row
from engine.contract.evaluations import pinned_bucket as pinned_bucket
from engine.contract.fields import FULL_INTERVAL as FULL_INTERVAL
from engine.contract.fields import MAX_AMENDMENTS as MAX_AMENDMENTS
from engine.contract.fields import MAX_CANDIDATE_IMAGES as MAX_CANDIDATE_IMAGES
from engine.contract.fields import MAX_CANDIDATES as MAX_CANDIDATES
from engine.contract.fields import MAX_CONCEPTS as MAX_CONCEPTS
from engine.contract.fields import MAX_CONTROLS as MAX_CONTROLS
from engine.contract.fields import MAX_COUNT as MAX_COUNT
from engine.contract.fields import MAX_EMBEDDINGS as MAX_EMBEDDINGS
from engine.contract.fields import MAX_ESTIMATE_BYTES as MAX_ESTIMATE_BYTES
from engine.contract.fields import MAX_FRAME_BYTES as MAX_FRAME_BYTES
from engine.contract.fields import MAX_INIT_IMAGES as MAX_INIT_IMAGES
from engine.contract.fields import MAX_INTERPOLATION_FRAMES as MAX_INTERPOLATION_FRAMES
from engine.contract.fields import MAX_KEYFRAMES as MAX_KEYFRAMES
from engine.contract.fields import MAX_LORAS as MAX_LORAS
from engine.contract.fields import MAX_NOISINGS as MAX_NOISINGS
from engine.contract.fields import MAX_REFERENCES as MAX_REFERENCES
from engine.contract.fields import MAX_ROWS as MAX_ROWS
from engine.contract.fields import MAX_STEPS as MAX_STEPS
from engine.contract.fields import MAX_THUMBNAIL_BYTES as MAX_THUMBNAIL_BYTES
from engine.contract.fields import VERSION as VERSION
from engine.contract.fields import Blame as Blame
from engine.contract.fields import ByteCount as ByteCount
from engine.contract.fields import CandidateText as CandidateText
from engine.contract.fields import Coordinate as Coordinate
from engine.contract.fields import Dtype as Dtype
from engine.contract.fields import Epoch as Epoch
from engine.contract.fields import Feature as Feature
from engine.contract.fields import Fraction as Fraction
from engine.contract.fields import GuidanceKind as GuidanceKind
from engine.contract.fields import Id as Id
from engine.contract.fields import Index as Index
from engine.contract.fields import LatentBytes as LatentBytes
from engine.contract.fields import Milliseconds as Milliseconds
from engine.contract.fields import Name as Name
from engine.contract.fields import Preprocessor as Preprocessor
from engine.contract.fields import Quantization as Quantization
from engine.contract.fields import Seconds as Seconds
from engine.contract.fields import Seed as Seed
from engine.contract.fields import Sentence as Sentence
from engine.contract.fields import Sha256 as Sha256
from engine.contract.fields import Side as Side
from engine.contract.fields import SquaredError as SquaredError
from engine.contract.fields import Step as Step
from engine.contract.fields import TensorSide as TensorSide
from engine.contract.fields import Text as Text
from engine.contract.fields import UnixSeconds as UnixSeconds
from engine.contract.fields import UpscaleMethod as UpscaleMethod
from engine.contract.fields import Verdict as Verdict
from engine.contract.fields import Version as Version
from engine.contract.fields import VersionedValue as VersionedValue
from engine.contract.messages import MAX_AMENDMENTS_AT_ONCE as MAX_AMENDMENTS_AT_ONCE
from engine.contract.messages import MAX_PACE_SECONDS as MAX_PACE_SECONDS
from engine.contract.messages import AmendJob as AmendJob
from engine.contract.messages import AmendmentLog as AmendmentLog
from engine.contract.messages import AmendmentRequest as AmendmentRequest
from engine.contract.messages import BillingKey as BillingKey
from engine.contract.messages import ControlMessage as ControlMessage
from engine.contract.messages import DecodeReply as DecodeReply
from engine.contract.messages import DecodeRequest as DecodeRequest
from engine.contract.messages import DescribeReply as DescribeReply
from engine.contract.messages import DescribeRequest as DescribeRequest
from engine.contract.messages import EmbedReply as EmbedReply
from engine.contract.messages import EmbedRequest as EmbedRequest
from engine.contract.messages import Frame as Frame
from engine.contract.messages import Job as Job
from engine.contract.messages import JobAmended as JobAmended
from engine.contract.messages import JobCancelled as JobCancelled
from engine.contract.messages import JobFailed as JobFailed
from engine.contract.messages import JobFinished as JobFinished
from engine.contract.messages import JobHandedBack as JobHandedBack
from engine.contract.messages import JobModelLoading as JobModelLoading
from engine.contract.messages import JobStarted as JobStarted
from engine.contract.messages import Keyframe as Keyframe
from engine.contract.messages import Ladder as Ladder
from engine.contract.messages import PictureReady as PictureReady
from engine.contract.messages import Result as Result
from engine.contract.messages import Snapshot as Snapshot
from engine.contract.messages import Task as Task
from engine.contract.messages import UpscaleTask as UpscaleTask
from engine.contract.messages import required_blobs as required_blobs
from engine.contract.presence import TURBO_GUIDANCE as TURBO_GUIDANCE
from engine.contract.presence import TURBO_LORA as TURBO_LORA
from engine.contract.presence import TURBO_SAMPLER as TURBO_SAMPLER
from engine.contract.presence import TURBO_STEPS as TURBO_STEPS
from engine.contract.presence import ControlModel as ControlModel
from engine.contract.presence import MissingPart as MissingPart
from engine.contract.presence import ModelProfile as ModelProfile
from engine.contract.presence import ModelProgress as ModelProgress
from engine.contract.presence import Presence as Presence
from engine.contract.presence import find_lacking_feature as find_lacking_feature
from engine.contract.presence import find_missing_part as find_missing_part
from engine.contract.presence import find_turbo as find_turbo
from engine.contract.presence import is_edit as is_edit
from engine.contract.presence import is_turbo as is_turbo
from engine.contract.recipe import Branch as Branch
from engine.contract.recipe import ControlImage as ControlImage
from engine.contract.recipe import ImageToImage as ImageToImage
from engine.contract.recipe import InitImage as InitImage
from engine.contract.recipe import Interpolation as Interpolation
from engine.contract.recipe import Lora as Lora
from engine.contract.recipe import ModelPart as ModelPart
from engine.contract.recipe import NoiseAncestor as NoiseAncestor
from engine.contract.recipe import Recipe as Recipe
from engine.contract.recipe import ReferenceImage as ReferenceImage
from engine.contract.recipe_images import add_style as add_style
from engine.contract.recipe_images import candidate_index as candidate_index
from engine.contract.recipe_images import compile_embedding_names as compile_embedding_names
from engine.contract.recipe_images import find_embeddings as find_embeddings
from engine.contract.recipe_images import find_style as find_style
from engine.contract.recipe_images import has_style as has_style
from engine.contract.recipe_images import keep_style as keep_style
from engine.contract.recipe_images import make_part_fields as make_part_fields
from engine.contract.recipe_images import map_step as map_step
from engine.contract.recipe_images import noise_seed as noise_seed
from engine.contract.recipe_images import recipe_for_image as recipe_for_image
from engine.contract.rejection import JobRejected as JobRejected
from engine.contract.samplers import PIPELINE_SAMPLERS as PIPELINE_SAMPLERS
from engine.contract.samplers import SAMPLER_TITLES as SAMPLER_TITLES
from engine.contract.samplers import Sampler as Sampler
from engine.contract.steering import ImageLife as ImageLife
from engine.contract.steering import Timeline as Timeline
from engine.contract.steering import count_ending_images as count_ending_images
from engine.contract.steering import find_amendment_problem as find_amendment_problem
from engine.contract.steering import find_amendments_problem as find_amendments_problem
from engine.contract.steering import find_ancestor as find_ancestor
from engine.contract.steering import find_life as find_life
from engine.contract.steering import is_snapshot_of_recipe as is_snapshot_of_recipe
from engine.contract.steering import iterate_segments as iterate_segments
from engine.contract.steering import iterate_states as iterate_states
from engine.contract.steering import list_final_images as list_final_images
from engine.contract.steering import list_followed_changes as list_followed_changes
from engine.contract.steering import list_lives as list_lives
from engine.contract.steering import list_needed_lives as list_needed_lives
from engine.contract.steering import recipe_at_end as recipe_at_end
from engine.contract.steering import recipe_at_step as recipe_at_step
from engine.contract.steering import settle_amendments as settle_amendments
from engine.contract.steering import settle_fades as settle_fades
