"""Proves that features can be taken out: `python tools/removable.py [NAME …] [--some COUNT --seed N]`.

Each named feature, else every one, is deleted with its tests from a copy of the working tree. What is left must pass
lint, import rules, types and the core's quick tests. `backends` names every backend, `backends/openai` one of them.
`--some 3 --seed 7` takes three, chosen by the seed; `--brief` runs only the tests that have tables of all features.
"""

from __future__ import annotations

import argparse
import os
import random
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).parents[1]
FEATURES = (Path("bot/features"), Path("bot/apis"), Path("engine/backends"))
API_PAGE = "docs/api-reference.md"
CORE_TESTS = ("tests/test_architecture.py", "tests/bot")
BACKEND_TESTS = (
    "tests/test_architecture.py",
    "tests/bot/cli/test_startup.py",
    "tests/bot/web/test_darkroom_behind_darkroom.py",
    "tests/engine/backends",
    "tests/engine/process",
    "tests/engine/remote",
)
BRIEF_TESTS = (
    "tests/test_architecture.py",
    "tests/bot/policy",
    "tests/bot/discord/test_rates.py",
    "tests/bot/discord/commands/test_command_tree.py",
    "tests/bot/discord/commands/test_translations.py",
    "tests/bot/store/test_api_keys.py",
    "tests/bot/store/test_migration.py",
    "tests/bot/web/test_api_reference.py",
    "tests/bot/web/test_openapi.py",
    "tests/bot/web/test_route_permissions.py",
)


def main() -> int:
    """Take out each feature, one at a time; return 1 if anything fails on the rest."""
    options = parse_options()
    known = sorted(
        f"{folder.name}/{path.parent.name}" for folder in FEATURES for path in (ROOT / folder).glob("*/__init__.py")
    )
    for name in options.names:
        if not any(is_named(each, name) for each in known):
            print(f"There is no feature {name!r}: there are {', '.join(known)}.", file=sys.stderr)
            return 2
    names = [each for each in known if not options.names or any(is_named(each, name) for name in options.names)]
    if options.some:
        names = random.Random(options.seed).sample(names, min(options.some, len(names)))
    failed = [name for name in names if not is_removable(name, is_brief=options.brief)]
    print(
        f"{len(names) - len(failed)} of {len(names)} can be taken out"
        + (f"; not: {', '.join(failed)}" if failed else "")
    )
    return 1 if failed else 0


def parse_options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("names", nargs="*", metavar="NAME")
    parser.add_argument("--some", type=int, default=0, metavar="COUNT")
    parser.add_argument("--seed", default="", help="any text, such as a commit")
    parser.add_argument("--brief", action="store_true")
    return parser.parse_args()


def is_named(feature: str, name: str) -> bool:
    """Whether `name` is this FOLDER/NAME, or either half of it."""
    return name in (feature, *feature.split("/"))


def is_removable(name: str, *, is_brief: bool) -> bool:
    """Delete one feature, FOLDER/NAME, from a copy of the tree, and check the rest."""
    home = next(folder for folder in FEATURES if folder.name == name.partition("/")[0])
    place = home / name.partition("/")[2]
    with tempfile.TemporaryDirectory(prefix=f"without-{place.name}-") as folder:
        tree = Path(folder)
        copy_tree(tree)
        for path in (tree / place, tree / "tests" / place):
            shutil.rmtree(path, ignore_errors=True)
        if home.parts[0] == "engine":
            steps = list_steps("engine", BACKEND_TESTS)
        else:
            steps = [*list_page_steps(), *list_steps("bot", BRIEF_TESTS if is_brief else CORE_TESTS)]
        return all(run_step(name, step, command, tree) for step, command in steps)


def copy_tree(target: Path) -> None:
    """Copy what git tracks or would track, as it is now. The virtual environment is shared."""
    command = ["git", "ls-files", "--cached", "--others", "--exclude-standard", "-z"]
    listing = subprocess.run(command, cwd=ROOT, capture_output=True, check=True).stdout
    for file in filter(None, listing.decode().split("\0")):
        if (ROOT / file).is_file():
            (target / file).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(ROOT / file, target / file)
    (target / ".venv").symlink_to(Path(sys.prefix))


def list_page_steps() -> list[tuple[str, list[str]]]:
    """Return the commands that write the generated pages anew, since the code has fewer rows now."""
    script = f"{sys.executable} tests/bot/web/test_api_reference.py > {API_PAGE}.new && mv {API_PAGE}.new {API_PAGE}"
    return [("write tables", [sys.executable, "-m", "tools.write_docs"]), (f"write {API_PAGE}", ["sh", "-c", script])]


def list_steps(package: str, core_tests: Sequence[str]) -> list[tuple[str, list[str]]]:
    """Return the checks of what is left of a package, in order."""
    programs = Path(sys.prefix) / "bin"
    tests = [sys.executable, "-m", "pytest", "-q", "-n", "2", "--dist", "loadfile", "-m", "not slow"]
    return [
        ("lint", [str(programs / "ruff"), "check", "."]),
        ("imports", [str(programs / "lint-imports")]),
        ("collect", [sys.executable, "-m", "pytest", "-q", "--collect-only", f"tests/{package}"]),
        ("types", [str(programs / "basedpyright"), package]),
        ("tests", [*tests, *core_tests]),
    ]


def run_step(name: str, step: str, command: list[str], tree: Path) -> bool:
    """Run a check in the tree; print what it says if it fails."""
    started_at = time.monotonic()
    environment = os.environ | {"PYTHONPATH": f"{tree}{os.pathsep}{tree / 'tests'}"}
    done = subprocess.run(command, cwd=tree, env=environment, capture_output=True, text=True, check=False)
    outcome = "FAILS" if done.returncode else "passes"
    print(f"without {name}: {step} {outcome} ({time.monotonic() - started_at:.0f} s)", flush=True)
    if done.returncode:
        print((done.stdout + done.stderr)[-6000:])
    return not done.returncode


if __name__ == "__main__":
    sys.exit(main())
