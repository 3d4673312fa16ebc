"""Measures the unmodified diffusers pipeline as its users run it: load a folder, call it, save the picture.

python diffusers_run.py RUN_SPEC.json

Imports nothing of this project. Prints one line of JSON for each measured fact.
"""

from __future__ import annotations

import io
import json
import sys
import time
from importlib import import_module
from pathlib import Path
from typing import Any

import torch

MEMORY_FIELDS = {"rest": "VmRSS", "peak": "VmHWM"}  # as Linux names them


def main(run_spec: dict[str, Any]) -> None:
    pipeline = import_module("diffusers").DiffusionPipeline.from_pretrained(
        run_spec["folder"], dtype=getattr(torch, run_spec["dtype"])
    )
    if torch.cuda.is_available():
        pipeline.to("cuda")
    pipeline.set_progress_bar_config(disable=True)
    if run_spec["sampler"] == "dpmpp_2m":
        scheduler_class = import_module("diffusers").DPMSolverMultistepScheduler
        pipeline.scheduler = scheduler_class.from_config(pipeline.scheduler.config)
    reference_arguments = add_reference(pipeline, run_spec["reference"]) if "reference" in run_spec else {}
    print_output_line(loaded=read_memory())
    for number in range(run_spec["pictures"]):
        started_at = time.perf_counter()
        step_clock = StepClock()
        picture = pipeline(
            run_spec["prompt"],
            num_inference_steps=run_spec["steps"],
            guidance_scale=run_spec["guidance"],
            height=run_spec["side"],
            width=run_spec["side"],
            generator=torch.Generator().manual_seed(number),
            callback_on_step_end=step_clock,
            **reference_arguments,
        ).images[0]
        picture.save(Path(run_spec["out"]) / f"{number}.png")
        print_output_line(
            picture=time.perf_counter() - started_at, step=step_clock.mean_seconds(), memory=read_memory()
        )
    for _ in range(run_spec["decodes"]):
        print_output_line(decode=time_decode(pipeline, run_spec["side"]))


def add_reference(pipeline: Any, reference: dict[str, Any]) -> dict[str, Any]:
    """Load an IP-Adapter into the pipeline; return the arguments of its call with a reference picture."""
    adapter = Path(reference["adapter"])
    pipeline.load_ip_adapter(str(adapter), subfolder="", weight_name=next(adapter.glob("*.safetensors")).name)
    pipeline.set_ip_adapter_scale(reference["scale"])
    return {"ip_adapter_image": import_module("PIL.Image").open(reference["picture"]).convert("RGB")}


class StepClock:
    """Records the end of each step."""

    def __init__(self) -> None:
        self._step_ends: list[float] = []

    def __call__(self, pipeline: Any, step: int, timestep: Any, values: dict[str, Any]) -> dict[str, Any]:
        synchronize_gpu()
        self._step_ends.append(time.perf_counter())
        return values

    def mean_seconds(self) -> float | None:
        """Return the mean seconds of a step, from the first end to the last."""
        return (
            (self._step_ends[-1] - self._step_ends[0]) / (len(self._step_ends) - 1)
            if len(self._step_ends) > 1
            else None
        )


def time_decode(pipeline: Any, image_side: int) -> float:
    """Return the seconds from random latents to a PNG."""
    vae = pipeline.vae
    image_processor = pipeline.image_processor
    image_side //= 2 ** (len(vae.config.block_out_channels) - 1)
    latents = torch.randn(
        1, vae.config.latent_channels, image_side, image_side, generator=torch.Generator().manual_seed(0)
    )
    latents = latents.to(vae.device, vae.dtype)
    started_at = time.perf_counter()
    with torch.no_grad():
        picture = image_processor.postprocess(vae.decode(latents, return_dict=False)[0], output_type="pil")[0]
    picture.save(io.BytesIO(), "PNG")
    return time.perf_counter() - started_at


def read_memory() -> dict[str, float]:
    """Return MB of this process now and at its peak, if the system tells; with CUDA, the device's too."""
    megabytes = dict[str, float]()
    status_file = Path("/proc/self/status")
    if status_file.exists():
        lines = dict(line.split(":", 1) for line in status_file.read_text().splitlines())
        megabytes |= {key: int(lines[name].split()[0]) / 1024 for key, name in MEMORY_FIELDS.items()}
    if torch.cuda.is_available():
        synchronize_gpu()
        megabytes |= {
            "gpu": torch.cuda.memory_allocated() / 2**20,
            "gpu_peak": torch.cuda.max_memory_allocated() / 2**20,
        }
    return megabytes


def synchronize_gpu() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def print_output_line(**fields: Any) -> None:
    print(json.dumps(fields), flush=True)  # noqa: T201 - the benchmark reads this


if __name__ == "__main__":
    main(json.loads(Path(sys.argv[1]).read_text()))
