"""Facts about the machine: device, driver, versions, number formats, attention. No model."""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
import time
from importlib.metadata import PackageNotFoundError, version
from typing import Any, cast

import torch

from benchmarks.report.figure_row import describe_error
from engine.calibration.calibration import read_device_name
from engine.models.family import TORCH_DTYPES

PACKAGES = ("torch", "diffusers", "transformers", "safetensors", "triton", "peft")
# of the matrices that are multiplied
GPU_MATRIX_SIDE = 8192
CPU_MATRIX_SIDE = 1024
ROUNDS = 5


def describe_device(device: torch.device) -> dict[str, Any]:
    """Return the facts as plain values."""
    facts: dict[str, Any] = {
        "device": read_device_name(device),
        "kind": device.type,
        "system": platform.platform(),
        "python": platform.python_version(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "C++ compiler": next((name for name in ("g++", "clang++") if shutil.which(name)), None),
    }
    facts |= {package: _package_version(package) for package in PACKAGES}
    facts |= _describe_gpu(device) if device.type == "cuda" else {"processor": torch.backends.cpu.get_cpu_capability()}
    return facts | {
        f"{dtype}, TFLOP/s": _measure_tflops(device, torch_dtype) for dtype, torch_dtype in TORCH_DTYPES.items()
    }


def _package_version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _describe_gpu(device: torch.device) -> dict[str, Any]:
    properties: Any = cast(Any, torch.cuda).get_device_properties(device)
    return {
        "driver": _read_driver_version(),
        "CUDA": torch.version.cuda,
        "HIP": torch.version.hip,
        "cuDNN": torch.backends.cudnn.version(),
        "capability": f"{properties.major}.{properties.minor}",
        "memory, GB": round(properties.total_memory / 2**30, 1),
        "multiprocessors": properties.multi_processor_count,
        "GPUs": torch.cuda.device_count(),
        "bfloat16 in hardware": torch.cuda.is_bf16_supported(False),
        "TF32 in matmul": torch.backends.cuda.matmul.allow_tf32,
        "TF32 in cuDNN": torch.backends.cudnn.allow_tf32,
        "flash attention": torch.backends.cuda.flash_sdp_enabled(),
        "memory-efficient attention": torch.backends.cuda.mem_efficient_sdp_enabled(),
    }


def _read_driver_version() -> str | None:
    """Return the driver's version as `nvidia-smi` reports it."""
    command = ("nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader")
    try:
        process = subprocess.run(command, capture_output=True, text=True, timeout=20, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    return process.stdout.strip().partition("\n")[0] or None


def _measure_tflops(device: torch.device, torch_dtype: torch.dtype) -> float | str:
    """Return TFLOP/s of a large matrix product, or the error."""
    side = GPU_MATRIX_SIDE if device.type == "cuda" else CPU_MATRIX_SIDE
    try:
        a, b = (torch.randn(side, side, device=device).to(torch_dtype) for _ in range(2))
        return round(2 * side**3 / min(_time_matmul(a, b) for _ in range(ROUNDS)) / 1e12, 3)
    except RuntimeError as error:
        return f"fails: {describe_error(error)}"


def _time_matmul(a: torch.Tensor, b: torch.Tensor) -> float:
    started_at = time.perf_counter()
    torch.matmul(a, b)
    if a.device.type == "cuda":
        torch.cuda.synchronize(a.device)
    return time.perf_counter() - started_at
