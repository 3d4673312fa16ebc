"""Checks that strict type checks hold everywhere, and that their exceptions only get fewer.

Each number here is the number of exceptions that are left: write the smaller one when you remove one.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[1]
CONFIG: Mapping[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["basedpyright"]
PRODUCT_ROOMS = ("bot", "engine", "training", "benchmarks")
PRODUCT_SOURCES = sorted(path for room in PRODUCT_ROOMS for path in (ROOT / room).rglob("*.py"))

IGNORED_LINES = 13  # lines of the product that ignore one rule
LOOSE_TEST_FILES = 414  # files of tests and tools that are not strict
# Each library that leaves its types open: a file that would fail without the exception, and what is open there.
UNTYPED_LIBRARIES = {
    "av": ("bot/pictures/animation.py", "mux"),
    "diffusers": ("engine/models/families/flow_matching.py", "calculate_shift"),
    "huggingface_hub": ("engine/models/loading/single_file.py", "snapshot_download"),
    "nats": ("engine/bus/subjects.py", "add_stream"),
    "nkeys": ("engine/bus/worker_keys.py", "from_seed"),
    "obstore": ("bot/pictures/picture_store.py", "list"),
    "peft": ("training/commands/run_lora.py", "get_peft_model_state_dict"),
    "re2": ("bot/policy/rules/word_filter.py", "re2"),
    "safetensors": ("engine/models/judge.py", "load_file"),
    "spandrel": ("engine/upscaling/super_resolver.py", "spandrel"),
    "torch": ("training/core/learner.py", "norm"),
    "transformers": ("engine/models/families/embedded.py", "from_pretrained"),
}
FIXED_SETTINGS = {
    "include": [*PRODUCT_ROOMS, "tests", "tools"],
    "extraPaths": ["tests"],
    "exclude": ["**/__pycache__"],
    "pythonVersion": "3.11",
    "typeCheckingMode": "standard",  # of tests outside the strict folders
    "reportUnnecessaryTypeIgnoreComment": True,  # so no ignored line outlives its reason
}


def test_every_file_of_the_product_is_strict() -> None:
    assert set(PRODUCT_ROOMS) <= set(CONFIG["strict"])
    assert CONFIG.keys() == FIXED_SETTINGS.keys() | {"strict", "allowedUntypedLibraries"}, "no rule is switched off"
    assert {name: CONFIG[name] for name in FIXED_SETTINGS} == FIXED_SETTINGS


def test_no_file_lowers_its_own_checks() -> None:
    lowering = re.compile(r"#\s*(pyright:\s*(basic|standard|off|report\w+\s*=)|type:\s*ignore)")
    found = [path.relative_to(ROOT).as_posix() for path in PRODUCT_SOURCES if lowering.search(path.read_text())]
    assert found == []


def test_ignored_lines_name_their_rule_and_get_fewer() -> None:
    lines = [line for path in PRODUCT_SOURCES for line in path.read_text().splitlines() if "pyright: ignore" in line]
    assert [line for line in lines if not re.search(r"# pyright: ignore\[report\w+(, report\w+)*\]", line)] == []
    assert len(lines) == IGNORED_LINES


def test_files_of_tests_without_strict_checks_get_fewer() -> None:
    files = [path.relative_to(ROOT) for folder in ("tests", "tools") for path in (ROOT / folder).rglob("*.py")]
    strict = [Path(entry) for entry in CONFIG["strict"]]
    loose = [file for file in files if not any(file.is_relative_to(entry) for entry in strict)]
    assert len(loose) == LOOSE_TEST_FILES, sorted(map(str, loose))


def test_untyped_libraries_are_listed_with_their_reason() -> None:
    assert CONFIG["allowedUntypedLibraries"] == sorted(UNTYPED_LIBRARIES)


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_every_untyped_library_still_leaves_types_open(tmp_path: Path) -> None:
    """Checks one file for each library, without the exceptions."""
    settings = {
        "include": sorted({str(ROOT / file) for file, _ in UNTYPED_LIBRARIES.values()}),
        "extraPaths": [str(ROOT)],
        "pythonVersion": "3.11",
        "typeCheckingMode": "strict",
    }
    (tmp_path / "pyrightconfig.json").write_text(json.dumps(settings))
    command = [sys.executable, "-m", "basedpyright", "--project", str(tmp_path), "--outputjson"]
    command += ["--pythonpath", sys.executable]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    problems = [(Path(one["file"]), str(one["message"])) for one in json.loads(done.stdout)["generalDiagnostics"]]
    typed = [
        library
        for library, (file, name) in UNTYPED_LIBRARIES.items()
        if not any(path == ROOT / file and f'"{name}' in message for path, message in problems)
    ]
    assert typed == [], "no exception is needed any more"
