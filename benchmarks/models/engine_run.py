"""Measures our engine on one job in its own process: step time, decode time and memory.

python -m benchmarks.models.engine_run RUN_SPEC.json

It reads the same file as `diffusers_run` and prints the same facts. Nobody watches the job, so there are no previews.
"""

from __future__ import annotations

import hashlib
import json
import sys
import time
from concurrent.futures import Future
from pathlib import Path
from typing import Any, cast

import torch

from benchmarks.fixtures.jobs import make_job, make_recipe
from benchmarks.models.diffusers_run import print_output_line, read_memory, synchronize_gpu
from benchmarks.models.memory_run import count_stored_bytes
from engine import models
from engine.batching.engine import Engine, JobFailure, LatentsDone
from engine.calibration.calibration import calibrate
from engine.contract import Job, ModelProfile, Quantization, ReferenceImage
from engine.device.memory import choose_device
from engine.models.autoencoder import autoencoder
from engine.models.families.diffusers_family import DiffusersFamily
from engine.models.family import Family
from engine.models.files.model_source import find_model
from engine.models.loading.memory_estimate import estimate_bytes
from engine.models.loading.pipeline_loader import FormatChooser
from engine.models.quantization import PartQuantization
from engine.output.decode_worker import DecodeWorker


def main(run_spec: dict[str, Any]) -> None:
    data_folder = Path(run_spec["data"])
    if "tiles" in run_spec:
        _fix_decode_memory(0 if run_spec["tiles"] else sys.maxsize)
    how = cast(Quantization, run_spec.get("quantization", "none"))
    quantization = PartQuantization(how, how)
    family = models.load_model(run_spec["folder"], data_folder, device=choose_device(), quantization=quantization)
    model_profile = calibrate(family, data_folder / "calibration.json").to_model_profile(family)
    chooser = FormatChooser(choose_device(), quantization=quantization)
    print_output_line(
        loaded=read_memory(),
        dtype=model_profile.dtype,
        stored=count_stored_bytes(cast(Any, family).pipeline),
        predicted=estimate_bytes(find_model(run_spec["folder"], data_folder), chooser),
    )
    references, blobs = _use_reference(family, run_spec["reference"]) if "reference" in run_spec else ((), {})
    for number in range(run_spec["pictures"]):
        job = _make_job(run_spec, family, model_profile, number, references)
        _run_job(run_spec, family, job, blobs)


def _fix_decode_memory(free_bytes: int) -> None:
    """Let decodes have `free_bytes`, whatever this machine has: a comparison needs tiles, or none."""

    def return_free_bytes(device: torch.device) -> int:
        return free_bytes

    autoencoder.memory_for_pictures = return_free_bytes


def _use_reference(family: Family, reference: dict[str, Any]) -> tuple[tuple[ReferenceImage, ...], dict[str, bytes]]:
    """Let the family find the adapter; return the recipe's reference and its blob."""
    assert isinstance(family, DiffusersFamily)
    adapter = Path(reference["adapter"])
    content = Path(reference["picture"]).read_bytes()
    family.use_data_folder(adapter.parents[1])
    sha256 = hashlib.sha256(content).hexdigest()
    return (ReferenceImage(adapter.name, sha256, reference["scale"]),), {sha256: content}


def _run_job(run_spec: dict[str, Any], family: Family, job: Job, blobs: dict[str, bytes]) -> None:
    """Draw one picture and print when its steps and its decode ended."""
    engine = Engine({family.name: family})
    decode_worker = DecodeWorker({family.name: family})
    step_ends = list[float]()
    pictures = list[Future[bytes]]()
    started_at = time.perf_counter()
    try:
        engine.add(job, (), None, decode_worker.prepare_pictures(job, blobs).result())
        while not engine.is_idle:
            for event in engine.step():
                if isinstance(event, JobFailure):
                    raise RuntimeError(event.reason)
                if isinstance(event, LatentsDone):
                    pictures.append(decode_worker.render_picture(event, job))
            synchronize_gpu()
            step_ends.append(time.perf_counter())
        png = pictures[0].result()
        finished_at = time.perf_counter()
        (Path(run_spec["out"]) / f"ours-{job.id}.png").write_bytes(png)
    finally:
        engine.close()
        decode_worker.close()
    step_seconds = (step_ends[-1] - step_ends[0]) / (len(step_ends) - 1) if len(step_ends) > 1 else None
    print_output_line(
        picture=finished_at - started_at, step=step_seconds, decode=finished_at - step_ends[-1], memory=read_memory()
    )


def _make_job(
    run_spec: dict[str, Any], family: Family, profile: ModelProfile, seed: int, references: tuple[ReferenceImage, ...]
) -> Job:
    recipe = make_recipe(
        family,
        run_spec["prompt"],
        sampler=run_spec["sampler"] or profile.sampler,
        steps=run_spec["steps"],
        seed=seed,
        guidance=run_spec["guidance"],
        width=run_spec["side"],
        height=run_spec["side"],
        dtype=profile.dtype,
        references=references,
        quantization=profile.quantization,
    )
    return make_job(recipe, seed)


if __name__ == "__main__":
    torch.set_grad_enabled(False)
    main(json.loads(Path(sys.argv[1]).read_text()))
