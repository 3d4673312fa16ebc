"""Runs the benchmark's programs in forks of one process that has imported what they need, which takes most of a run.

Each program still has a process of its own, so that what it measures is its own memory.
"""

from __future__ import annotations

import json
import os
import runpy
import subprocess
import sys
import traceback
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path
from typing import Any, TextIO, cast

from benchmarks.models.processes import OutputLine, clean_environment, read_last_line

IMPORTED: dict[str, tuple[str, ...]] = {  # modules, and what of them is imported when it is first used
    "torchao.quantization": (),
    "transformers": ("CLIPTextModel", "CLIPTextModelWithProjection", "CLIPTokenizer", "Gemma2Model"),
    "diffusers": ("StableDiffusionPipeline", "StableDiffusionXLPipeline", "Lumina2Pipeline"),
    "benchmarks.models.control_run": (),
    "benchmarks.models.engine_run": (),
    "benchmarks.models.family_memory": (),
    "benchmarks.models.tiling_run": (),
}


class ForkedPrograms:
    """Starts the process with the first program, and ends it with the block."""

    def __init__(self) -> None:
        self._process: subprocess.Popen[str] | None = None

    def __enter__(self) -> ForkedPrograms:
        return self

    def __exit__(self, *_: object) -> None:
        if self._process is not None:
            self._process.communicate(timeout=60)

    def run_and_collect(self, command: Sequence[str], log_path: Path) -> list[OutputLine]:
        """Run `python -m MODULE …` like `benchmarks.models.processes.run_and_collect`; lines have no time."""
        python, option, *arguments = command
        assert (python, option) == (sys.executable, "-m")
        output_path = log_path.with_name(f"{log_path.name}.out")
        process = self._process = self._process or self._start()
        order = {"arguments": arguments, "output": str(output_path), "log": str(log_path)}
        cast(TextIO, process.stdin).write(f"{json.dumps(order)}\n")
        cast(TextIO, process.stdin).flush()
        if (exit_code := cast(TextIO, process.stdout).readline().strip()) != "0":
            raise RuntimeError(f"{' '.join(arguments)} ended with {exit_code}: {read_last_line(log_path)}")
        return [OutputLine(0.0, json.loads(line)) for line in output_path.read_text().splitlines()]

    def _start(self) -> subprocess.Popen[str]:
        command = [sys.executable, "-m", "tests.shared.forked_programs"]
        return subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=clean_environment()
        )


def main() -> None:
    for name, attributes in IMPORTED.items():
        module = import_module(name)
        for attribute in attributes:
            getattr(module, attribute)
    for line in sys.stdin:
        process_id = os.fork()
        if process_id == 0:
            os._exit(_run_program(json.loads(line)))
        print(os.waitstatus_to_exitcode(os.waitpid(process_id, 0)[1]), flush=True)


def _run_program(order: dict[str, Any]) -> int:
    for path, descriptor in ((order["output"], 1), (order["log"], 2)):
        os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), descriptor)
    module, *_ = sys.argv = order["arguments"]
    sys.modules.pop(module, None)  # it runs as the main module
    try:
        runpy.run_module(module, run_name="__main__", alter_sys=True)
    except Exception:
        traceback.print_exc()
        return 1
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
    return 0


if __name__ == "__main__":
    main()
