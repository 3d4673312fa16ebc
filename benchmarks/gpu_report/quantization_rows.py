"""Each quantisation on this device, with small models of random weights: parity with the pipeline, and its bytes.

The pipeline is loaded with the same quantisation of the same weights.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import torch

from benchmarks.fixtures.reference_pipeline import call_pipeline, load_quantized_pipeline
from benchmarks.fixtures.wide_pipelines import WIDE_BUILDERS, save_pipeline
from benchmarks.gpu_report.pipeline_parity import make_recipe, run_engine
from benchmarks.models.weight_bytes import count_stored_bytes
from benchmarks.report.errors import describe_error
from benchmarks.report.figure_row import FigureRow
from engine import models
from engine.contract import Dtype, Quantization
from engine.models.families.diffusers_family import DiffusersFamily
from engine.models.family import TORCH_DTYPES
from engine.models.files.model_source import ModelSource
from engine.models.loading.memory_estimate import InspectedModel
from engine.models.loading.number_formats import FormatChooser
from engine.models.quantization.choice import PartQuantization
from engine.models.quantization.stored_quantization import find_obstacle

QUANTIZATIONS: tuple[Quantization, ...] = ("int8", "float8", "int4", "nf4")
PARITY_GOAL = "≤ 1e-4"
PREDICTION_GOAL = "≤ 1.11"


def measure_quantization_rows(
    device: torch.device, print_progress: Callable[[str], None], kinds: tuple[str, ...] = tuple(WIDE_BUILDERS)
) -> list[FigureRow]:
    """Return two rows for each kind and quantisation; what this device lacks, or what fails, says so."""
    with tempfile.TemporaryDirectory(prefix="darkroom-report-") as temp_folder:
        rows = list[FigureRow]()
        for kind in kinds:
            save_pipeline(kind, Path(temp_folder) / kind)
            for quantization in QUANTIZATIONS:
                print_progress(f"{kind} as {quantization}")
                rows += _measure(kind, quantization, Path(temp_folder) / kind, device)
        return rows


def _measure(kind: str, quantization: Quantization, folder: Path, device: torch.device) -> Iterator[FigureRow]:
    parity_name = f"{kind} as {quantization}: latents against the pipeline"
    bytes_name = f"{kind} as {quantization}: bytes of the weights, predicted and measured, the larger ÷ the smaller"
    if obstacle := find_obstacle(quantization, device):
        yield from (FigureRow(name, None, None, "", obstacle) for name in (parity_name, bytes_name))
        return
    dtype: Dtype = (
        "bfloat16" if quantization == "int4" and device.type == "cuda" else "float32"
    )  # all that its kernel has
    try:
        family = models.load_folder(
            str(folder), kind, device, quantization=PartQuantization(quantization, quantization)
        )
        assert isinstance(family, DiffusersFamily)
        family.get_network(dtype)
        yield _compare_latents(parity_name, family, folder, dtype)
        yield _compare_bytes(bytes_name, family, folder, dtype)
    except Exception as error:  # the report is for finding what fails here; the others go on
        yield FigureRow(parity_name, None, PARITY_GOAL, "", describe_error(error))


def _compare_latents(name: str, family: DiffusersFamily, folder: Path, dtype: Dtype) -> FigureRow:
    quantization = PartQuantization(family.quantization, family.quantization)
    pipeline = load_quantized_pipeline(folder, quantization, family.device.type, TORCH_DTYPES[dtype])
    recipe = make_recipe(family, "euler", dtype)
    ours = run_engine(family, recipe)
    theirs = call_pipeline(pipeline, family, recipe)[0].float()
    difference = float((ours - theirs).abs().max()) / max(1.0, float(theirs.abs().max()))
    # The pipeline keeps its latents in the network's format, the engine in float32: only float32 can be compared.
    return FigureRow(name, difference, PARITY_GOAL if dtype == "float32" else None, "", f"computed in {dtype}")


def _compare_bytes(name: str, family: DiffusersFamily, folder: Path, dtype: Dtype) -> FigureRow:
    quantization = PartQuantization(family.quantization, family.quantization)
    inspected = InspectedModel.from_source(ModelSource(folder.name, folder))
    predicted = inspected.count_bytes_by_format(FormatChooser(family.device, quantization=quantization))[dtype]
    ratio = predicted / count_stored_bytes(family.pipeline)
    return FigureRow(name, max(ratio, 1 / ratio), PREDICTION_GOAL, "×", f"predicted {predicted / 1e6:.2f} MB")
