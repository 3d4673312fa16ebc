"""The field types, the limits and the contract's version that all values share."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Annotated, Literal

from msgspec import Meta, Struct, field

VERSION = 1  # of the contract: a process refuses values of any other
MAX_STEPS = 1000
MAX_COUNT = 4
MAX_CANDIDATE_IMAGES = 2 * MAX_COUNT  # of a job, from which the judge chooses
MAX_CONCEPTS = 8
MAX_FRAME_BYTES = 256 * 1024
MAX_KEYFRAMES = 48
MAX_ESTIMATE_BYTES = 128 * 1024  # a keyframe: 4 × 128 × 128 half floats, SDXL's at 1024 × 1024
MAX_THUMBNAIL_BYTES = 64 * 1024  # a keyframe that is decoded on request
MAX_LORAS = 4
MAX_AMENDMENTS = 64  # changes of one recipe while it develops
MAX_CONTROLS = 3  # control networks of one recipe
MAX_REFERENCES = 4  # reference pictures of one recipe
MAX_EMBEDDINGS = 8  # textual inversions of one recipe
MAX_INIT_IMAGES = 5
MAX_TEXT = 2000  # characters
MAX_STYLES = 8  # that the images of one recipe take in turn
MAX_INTERPOLATION_FRAMES = 16  # an interpolation, over as many jobs as it needs
MAX_ROWS = 1024  # a worker at once: four times the most that calibration tries
MAX_CANDIDATES = 64  # texts that one request scores against an image
MAX_NOISINGS = 16  # noisings of the image that each text is tried with

# \Z, not $, which would allow a trailing newline in a subject or a file name.
Id = Annotated[str, Meta(pattern=r"^[0-9A-HJKMNP-TV-Z]{26}\Z")]  # a ULID (github.com/ulid/spec)
Sha256 = Annotated[str, Meta(pattern=r"^[0-9a-f]{64}\Z")]
Name = Annotated[str, Meta(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}\Z")]  # safe as a file name; `subjects.token`
Text = Annotated[str, Meta(max_length=MAX_TEXT)]
Style = Annotated[str, Meta(min_length=1, max_length=64)]  # words that name a style, as in a prompt
Sentence = Annotated[str, Meta(max_length=500)]
Index = Annotated[int, Meta(ge=0, lt=MAX_COUNT)]
CandidateIndex = Annotated[int, Meta(ge=0, lt=MAX_CANDIDATE_IMAGES)]  # of an image that the engine draws
Step = Annotated[int, Meta(ge=0, le=MAX_STEPS)]
Seed = Annotated[int, Meta(ge=0, lt=2**32)]
# A lower bound refuses NaN, an upper bound infinity: so every float here has both.
Seconds = Annotated[float, Meta(ge=0, le=1e9)]
Milliseconds = Annotated[float, Meta(ge=0, le=1e9)]
UnixSeconds = Annotated[float, Meta(ge=0, le=1e12)]  # seconds since 1970
Coordinate = Annotated[float, Meta(ge=-1.01, le=1.01)]  # of a unit vector
CandidateText = Annotated[str, Meta(max_length=200)]  # a text that may describe a picture
SquaredError = Annotated[float, Meta(ge=0, le=1e9)]  # a mean squared error
LatentBytes = Annotated[bytes, Meta(max_length=8 * 1024 * 1024)]
TensorSide = Annotated[int, Meta(ge=1, le=65_536)]  # one dimension of a tensor
Side = Annotated[int, Meta(ge=16, le=4096)]
Epoch = Annotated[int, Meta(ge=0, le=2**62)]
AccountName = Annotated[str, Meta(max_length=64)]
Version = Annotated[int, Meta(ge=VERSION, le=VERSION)]
Fraction = Annotated[float, Meta(ge=0, le=1)]
ByteCount = Annotated[int, Meta(ge=0, le=10**15)]

Dtype = Literal["float32", "bfloat16", "float16"]
# How a network's weights are stored in memory. `llm_int8`: by bitsandbytes (Dettmers et al. 2022); `int8` is torchao's.
Quantization = Literal["none", "int8", "int4", "float8", "nf4", "gguf", "llm_int8"]
Preprocessor = Literal["none", "canny", "depth", "pose", "lineart"]  # makes a control image of a picture
GuidanceKind = Literal["rows", "network"]  # guidance by an extra unconditional row, or as an input of the network
# What a recipe may use beyond a prompt, and a model behind another server's API may lack (`find_lacking_feature`).
Feature = Literal[
    "weights",
    "negative",
    "steps",
    "guidance",
    "interval",
    "variation",
    "picture",
    "mask",
    "strength",
    "blend",
    "branch",
    "tile",
    "stop",
    "mix",
    "walk",
    "amendments",
    "evaluations",
]
Blame = Literal["member", "model", "worker", "us"]
UpscaleMethod = Literal["gan", "lanczos"]  # upscaling by the super-resolver, or without new detail
Verdict = Literal["unchecked", "passed", "flagged"]  # of the picture check; also unchecked where the check failed
FULL_INTERVAL = (0.0, 1.0)  # interval in which guidance holds at every step


class VersionedValue(Struct, frozen=True, kw_only=True, tag=True, forbid_unknown_fields=True):
    """The base of all messages: each carries its writer's version of the contract, and a reader refuses any other."""

    v: Version = field(default_factory=lambda: VERSION)  # so `omit_defaults` never leaves it out


Sampler = Literal[
    "ddpm",
    "ddim",
    "euler",
    "euler_karras",
    "euler_ancestral",
    "dpmpp_2m",
    "dpmpp_2m_karras",
    "dpmpp_2m_sde",
    "lcm",
    "heun",
    "unipc",
    "kdpm2",
    "dpmpp_3m",
    "native",
]
SchedulerName = tuple[str, Mapping[str, object]]  # a class of diffusers, and the configuration that the sampler fixes


@dataclass(frozen=True)
class SamplerRow:
    """A sampler.

    `title`: as AUTOMATIC1111's web UI writes it, where it has it: pictures carry their recipe in that format.
    `noise`, `flow`: its scheduler for models trained by noise and by flow matching; None where it does not work.
    `other_names`: of other programs, in the form in which they are compared: small letters and digits, p for +, without
    "sample" and "scheduler". Its own name and title need not be there. `comfyui`: ComfyUI's method and spacing of the
    noise levels. `pipeline_reason`: why a step is no row of a table; empty where it is one. `is_second_order`: a step
    evaluates the network twice, but the last: 2N - 1 times in N steps.
    """

    name: Sampler
    title: str
    advice: str
    noise: SchedulerName | None = None
    flow: SchedulerName | None = None
    other_names: tuple[str, ...] = ()
    comfyui: tuple[str, str] | None = None
    pipeline_reason: str = ""
    is_second_order: bool = False


_NO_OTHER_SIGMAS: dict[str, object] = {"use_exponential_sigmas": False, "use_beta_sigmas": False}
_KARRAS = _NO_OTHER_SIGMAS | {"use_karras_sigmas": True}
_2M: dict[str, object] = {"solver_order": 2, "algorithm_type": "dpmsolver++"}
# With Karras or similar noise levels diffusers ignores that a flow's levels end at 1.
_FLOW = _NO_OTHER_SIGMAS | {"use_karras_sigmas": False, "use_flow_sigmas": True, "prediction_type": "flow_prediction"}
_MULTISTEP = "DPMSolverMultistepScheduler"

# In the order of `Sampler`: those with a table come first.
SAMPLER_ROWS: tuple[SamplerRow, ...] = (
    SamplerRow("ddpm", "DDPM", "the full chain", noise=("DDPMScheduler", {}), comfyui=("ddpm", "normal")),
    SamplerRow("ddim", "DDIM", "even steps", noise=("DDIMScheduler", {}), comfyui=("ddim", "ddim_uniform")),
    SamplerRow(
        "euler",
        "Euler",
        "quick",
        noise=("EulerDiscreteScheduler", {}),
        flow=("FlowMatchEulerDiscreteScheduler", {}),
        other_names=("eulerdiscrete",),
        comfyui=("euler", "normal"),
    ),
    SamplerRow(
        "euler_karras",
        "Euler Karras",
        "quick, with more of its steps for detail",
        noise=("EulerDiscreteScheduler", _KARRAS),
        comfyui=("euler", "karras"),
    ),
    SamplerRow(
        "euler_ancestral",
        "Euler a",
        "lively: new noise at each step",
        noise=("EulerAncestralDiscreteScheduler", {}),
        other_names=("eulera", "eulerancestraldiscrete"),
        comfyui=("euler_ancestral", "normal"),
    ),
    SamplerRow(
        "dpmpp_2m",
        "DPM++ 2M",
        "good in 30 steps",
        noise=(_MULTISTEP, _2M),
        flow=(_MULTISTEP, _2M | _FLOW),
        other_names=("dpmsolverpp", "dpmsolvermultistep"),
        comfyui=("dpmpp_2m", "normal"),
    ),
    SamplerRow(
        "dpmpp_2m_karras",
        "DPM++ 2M Karras",
        "good in 20 to 30 steps",
        noise=(_MULTISTEP, _2M | _KARRAS),
        comfyui=("dpmpp_2m", "karras"),
    ),
    SamplerRow(
        "dpmpp_2m_sde",
        "DPM++ 2M SDE",
        "good in 30 steps, with new noise at each",
        noise=(_MULTISTEP, _2M | {"algorithm_type": "sde-dpmsolver++"}),
        comfyui=("dpmpp_2m_sde", "normal"),
    ),
    SamplerRow(
        "lcm", "LCM", "4 to 8 steps, for models made for it", noise=("LCMScheduler", {}), comfyui=("lcm", "sgm_uniform")
    ),
    SamplerRow(
        "heun",
        "Heun",
        "each step twice: slow and exact",
        noise=("HeunDiscreteScheduler", {}),
        flow=("FlowMatchHeunDiscreteScheduler", {}),
        other_names=("heundiscrete",),
        comfyui=("heun", "normal"),
        pipeline_reason="Heun's method runs the network twice a step, which cannot be batched by step.",
        is_second_order=True,
    ),
    SamplerRow(
        "unipc",
        "UniPC",
        "good in few steps",
        noise=("UniPCMultistepScheduler", {}),
        flow=("UniPCMultistepScheduler", _FLOW),
        other_names=("unipcbh2", "unipcmultistep"),
        comfyui=("uni_pc", "normal"),
        pipeline_reason="UniPC corrects its previous step afterwards, which cannot be batched by step.",
    ),
    SamplerRow(
        "kdpm2",
        "DPM2",
        "each step twice",
        noise=("KDPM2DiscreteScheduler", {}),
        other_names=("dpm2", "kdpm2discrete"),
        comfyui=("dpm_2", "normal"),
        pipeline_reason="KDPM2 runs the network twice a step, which cannot be batched by step.",
        is_second_order=True,
    ),
    SamplerRow(
        "dpmpp_3m",
        "DPM++ 3M",
        "third order, for many steps",
        noise=(_MULTISTEP, _2M | {"solver_order": 3}),
        flow=(_MULTISTEP, _2M | _FLOW | {"solver_order": 3}),
        pipeline_reason="A solver of third order looks back two steps, which cannot be batched by step.",
    ),
    SamplerRow(
        "native",
        "the model's own scheduler",
        "as the model comes",
        other_names=("own",),
        pipeline_reason="A model's own scheduler may do anything, which cannot be batched by step.",
    ),
)
# The image runs through the unmodified pipeline; it shares forwards but cannot move to another worker midway.
PIPELINE_SAMPLERS: tuple[Sampler, ...] = tuple(row.name for row in SAMPLER_ROWS if row.pipeline_reason)
SECOND_ORDER_SAMPLERS: tuple[Sampler, ...] = tuple(row.name for row in SAMPLER_ROWS if row.is_second_order)
SAMPLER_TITLES: Mapping[Sampler, str] = MappingProxyType({row.name: row.title for row in SAMPLER_ROWS})


class JobRejected(Exception):
    """`sentence` is shown as it is; `blame` decides the charge, and whether another worker may try."""

    def __init__(self, sentence: str, blame: Blame) -> None:
        super().__init__(sentence)
        self.sentence = sentence
        self.blame: Blame = blame
