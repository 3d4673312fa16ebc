"""Measures the unmodified diffusers pipeline as its users run it: load a folder, call it, save the picture.

    python rival.py ORDER.json

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

MEMORY = {"rest": "VmRSS", "peak": "VmHWM"}  # as Linux names them


def main(order: dict[str, Any]) -> None:
    pipeline = import_module("diffusers").DiffusionPipeline.from_pretrained(
        order["folder"], dtype=getattr(torch, order["dtype"])
    )
    if torch.cuda.is_available():
        pipeline.to("cuda")
    pipeline.set_progress_bar_config(disable=True)
    if order["sampler"] == "dpmpp_2m":
        sampler = import_module("diffusers").DPMSolverMultistepScheduler
        pipeline.scheduler = sampler.from_config(pipeline.scheduler.config)
    print_fact(loaded=memory())
    for number in range(order["pictures"]):
        begun = time.perf_counter()
        steps = StepClock()
        picture = pipeline(
            order["prompt"], num_inference_steps=order["steps"], guidance_scale=order["guidance"],
            height=order["side"], width=order["side"], generator=torch.Generator().manual_seed(number),
            callback_on_step_end=steps,
        ).images[0]  # fmt: skip
        picture.save(Path(order["out"]) / f"{number}.png")
        print_fact(picture=time.perf_counter() - begun, step=steps.seconds(), memory=memory())
    for _ in range(order["decodes"]):
        print_fact(decode=time_decode(pipeline, order["side"]))


class StepClock:
    """Records the end of each step."""

    def __init__(self) -> None:
        self._ends: list[float] = []

    def __call__(self, pipeline: Any, step: int, timestep: Any, values: dict[str, Any]) -> dict[str, Any]:
        wait_for_card()
        self._ends.append(time.perf_counter())
        return values

    def seconds(self) -> float | None:
        """Return the mean seconds of a step, from the first end to the last."""
        return (self._ends[-1] - self._ends[0]) / (len(self._ends) - 1) if len(self._ends) > 1 else None


def time_decode(pipeline: Any, side: int) -> float:
    """Return the seconds from random latents to a PNG."""
    vae, processor = pipeline.vae, pipeline.image_processor
    side //= 2 ** (len(vae.config.block_out_channels) - 1)
    latents = torch.randn(1, vae.config.latent_channels, side, side, generator=torch.Generator().manual_seed(0))
    latents = latents.to(vae.device, vae.dtype)
    begun = time.perf_counter()
    with torch.no_grad():
        picture = processor.postprocess(vae.decode(latents, return_dict=False)[0], output_type="pil")[0]
    picture.save(io.BytesIO(), "PNG")
    return time.perf_counter() - begun


def memory() -> dict[str, float]:
    """Return MB of this process now and at its peak, if the system tells; with CUDA, the device's too."""
    found = dict[str, float]()
    status = Path("/proc/self/status")
    if status.exists():
        lines = dict(line.split(":", 1) for line in status.read_text().splitlines())
        found |= {key: int(lines[name].split()[0]) / 1024 for key, name in MEMORY.items()}
    if torch.cuda.is_available():
        wait_for_card()
        found |= {
            "card": torch.cuda.memory_allocated() / 2**20, "card_peak": torch.cuda.max_memory_allocated() / 2**20
        }  # fmt: skip
    return found


def wait_for_card() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def print_fact(**fields: Any) -> None:
    print(json.dumps(fields), flush=True)  # noqa: T201 - the benchmark reads this


if __name__ == "__main__":
    main(json.loads(Path(sys.argv[1]).read_text()))
