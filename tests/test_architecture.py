"""Checks the rules of the code: imports, loaded modules, lengths and names."""

from __future__ import annotations

import ast
import functools
import re
import subprocess
import sys
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
SOURCES = sorted(path for part in ("bot", "engine", "training", "benchmarks") for path in (ROOT / part).rglob("*.py"))

FEATURES = [
    f"bot.{folder}.{path.parent.name}"
    for folder in ("features", "apis")
    for path in sorted((ROOT / "bot" / folder).glob("*/__init__.py"))
]

MAX_LINES = 500  # a file is one idea with all of its parts
LONG_FILES: dict[str, str] = {}
IMPORTS_TESTS = re.compile(r"^\s*(?:from|import)\b.*\btests\b", re.MULTILINE)
DOTTED_NAME = re.compile(r"`((?:bot|engine|training|benchmarks|tools)(?:\.\w+)+)`")
VAGUE = {
    "utils",
    "util",
    "helpers",
    "helper",
    "manager",
    "handler",
    "handlers",
    "data",
    "info",
    "common",
    "misc",
    "base",
    "process",
}
PURE = [
    "bot.policy.permissions",
    "benchmarks.queue.figures",
    "bot.pictures.image_codec",
    "bot.pictures.moderation_status",
    "bot.domain.incidents",
    "bot.policy.fair_queue",
    "bot.jobs.active_jobs",
    "bot.pictures.ladder_film",
    "bot.pictures.grid",
    "bot.policy.limits",
    "bot.pictures.outpaint_canvas",
    "bot.pictures.animation",
    "bot.pictures.ladder_keyframes",
    "bot.prompt",
    "bot.prompt.concepts",
    "bot.prompt.flags",
    "bot.prompt.concepts",
    "bot.prompt.parsed_prompt",
    "bot.prompt.flag_values",
    "bot.domain.errors",
    "bot.domain.texts",
    "bot.domain.job_states",
    "bot.policy.rules",
    "bot.policy.rules.rule",
    "bot.policy.rules.planned_changes",
    "bot.policy.rules.value_parser",
    "bot.policy.rules.word_filter",
    "bot.policy.rules.explanations",
    "bot.policy.rules.effective_rules",
    "bot.policy.rules.lookalikes",
    "bot.domain.dto",
    "bot.prompt.flag_aliases",
    "bot.discord.delivery.edit_policy",
    "bot.discord.commands.command_limits",
    "bot.discord.cards.job_cards",
    "bot.discord.delivery.tracked_messages",
    "bot.discord.cards.button_layout",
    "bot.discord.settings.texts",
    "engine.batching.diffusion_classifier",
    "engine.contract",
    "engine.contract.messages",
    "engine.contract.presence",
    "engine.remote.drawing",
    "engine.contract.recipe_images",
    "engine.contract.fields",
    "engine.contract.recipe",
    "engine.sampling",
    "training.diffusion.latent_sampling",
    "engine.batching.scheduler",
    "engine.model_cache.loaded_models",
    "engine.batching.group",
    "benchmarks.simulated_day",
    "training.lab.tensor_math",
    "training.lab.word_sums",
]
IO = {
    "aiohttp",
    "asyncio",
    "nats",
    "obstore",
    "os",
    "pathlib",
    "requests",
    "shutil",
    "socket",
    "sqlalchemy",
    "sqlite3",
    "subprocess",
    "tempfile",
    "urllib",
}


@functools.cache
def _parse(path: Path) -> ast.Module:
    return ast.parse(path.read_text())


def _path_of(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def _module_of(path: Path) -> str:
    return _path_of(path).removesuffix(".py").removesuffix("/__init__").replace("/", ".")


@functools.cache
def _find_imports(path: Path, *, typing_too: bool = False) -> frozenset[str]:
    """Every module that a file imports, at its top or inside. Leaves out imports for type checkers."""
    imports: set[str] = set()

    def visit_node(node: ast.AST) -> None:
        if isinstance(node, ast.If) and not typing_too and "TYPE_CHECKING" in ast.dump(node.test):
            return
        if isinstance(node, ast.Import):
            imports.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            imports.add(node.module)
            imports.update(f"{node.module}.{alias.name}" for alias in node.names)
        for child in ast.iter_child_nodes(node):
            if isinstance(child, ast.stmt | ast.excepthandler | ast.match_case):  # expressions hold no import
                visit_node(child)

    visit_node(_parse(path))
    return frozenset(imports)


def _is_in_package(module: str, package: str) -> bool:
    return module == package or module.startswith(package + ".")


def test_import_contracts_hold() -> None:
    completed = subprocess.run(
        [sys.executable, "-c", "from importlinter.cli import lint_imports_command; lint_imports_command()"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert completed.returncode == 0, completed.stdout + completed.stderr
    assert "Contracts:" in completed.stdout


def test_no_test_imports_another() -> None:
    """What several tests need is in `tests/shared`, or in a module beside them."""
    importers = [
        f"{_path_of(path)} imports {module}"
        for folder in ("tests", "tools")
        for path in sorted((ROOT / folder).rglob("*.py"))
        if IMPORTS_TESTS.search(path.read_text())  # few do, and parsing takes long
        for module in sorted(_find_imports(path, typing_too=True))
        if module.startswith("tests.") and re.search(r"\.(conftest|test_\w+)\b", module)
    ]
    assert importers == []


def test_no_modules_import_each_other_in_a_circle() -> None:
    """Counts imports for type checkers too, which import-linter leaves out."""
    modules = {_module_of(path): path for path in SOURCES}
    imports = {
        name: set(_find_imports(path, typing_too=True) & modules.keys() - {name}) for name, path in modules.items()
    }
    for name, imported in imports.items():  # `from package import module` names the package too, but needs the module
        imported -= {
            one
            for one in imported
            if name.startswith(one + ".") or any(other.startswith(one + ".") for other in imported)
        }
    assert list(TopologicalSorter(imports).static_order())


def test_the_bot_never_loads_torch() -> None:
    """Imports every module of the bot in a fresh process, the most that `darkroom bot` can load."""
    modules = [
        _module_of(path) for path in SOURCES if _path_of(path).startswith("bot/") and "migrations" not in path.parts
    ]
    modules = [module for module in modules if module not in EDGES]
    code = f"import importlib, sys\nfor name in {modules!r}: importlib.import_module(name)\n"
    code += "loaded = {name.partition('.')[0] for name in sys.modules}\n"
    code += "print(sorted(loaded & {'torch', 'torchvision', 'diffusers', 'transformers'}))"
    completed = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert completed.returncode == 0, completed.stderr
    assert completed.stdout.strip() == "[]"


def test_the_command_loads_nothing_heavy_before_it_parses_arguments() -> None:
    code = "import sys, bot.__main__; print(sorted({name.partition('.')[0] for name in sys.modules}))"
    completed = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    loaded_modules = set(ast.literal_eval(completed.stdout))
    assert loaded_modules.isdisjoint({"aiohttp", "discord", "sqlalchemy", "nats", "PIL", "pydantic", "msgspec"})


EDGES = {"bot.cli.imagine.local_engine": "`darkroom imagine` without a running house is an engine in this process"}


def test_the_bot_imports_only_the_contract_of_the_engine() -> None:
    """The bot imports of the engine only the wire contract, the bus, log lines, size texts, settings and the operator's
    choices for models. Modules that start an engine, or fetch models for it, may import more.
    """
    allowed_modules = {
        "engine.contract",
        "engine.bus",
        "engine.process.backend_kinds",
        "engine.process.log_format",
        "engine.process.load_progress",
        "engine.process.model_settings",
        "engine.prompt.style_guide",
        "engine.process.memory_requests",
        "engine.process.setting_sources",
        "engine.process.settings",
    }
    entry_points = {
        "bot.cli.up.startup": {
            "engine.bus.embedded_broker",
            "engine.hub.added_models",
            "engine.process.load_progress",
            "engine.process.system",
        },
        "bot.cli.doctor": {"engine.bus.embedded_broker", "engine.worker.doctor"},
        **{edge: {"engine"} for edge in EDGES},
    }
    violations = []
    for path in SOURCES:
        if not _path_of(path).startswith("bot/"):
            continue
        allowed_here = allowed_modules | entry_points.get(_module_of(path), set())
        if _is_in_package(_module_of(path), "bot.cli.models"):
            allowed_here = allowed_here | {"engine.hub"}
        for module in sorted(_find_imports(path)):
            if (
                _is_in_package(module, "engine")
                and module != "engine"
                and not any(_is_in_package(module, one) for one in allowed_here)
            ):
                violations.append(f"{_path_of(path)} imports {module}")
    assert violations == []


@pytest.mark.sampled
@pytest.mark.parametrize(
    ("package", "home_modules"),
    [
        ("discord", ("bot.discord", "*.discord")),
        ("sqlalchemy", ("bot.store", "bot.migrations", "benchmarks.queue.job_picking", "*.store")),
        ("alembic", ("bot.store", "bot.migrations", "*.store")),
        ("aiohttp.web", ("bot.web", "bot.apis", "*.web")),
        ("torch", ("engine", "training", "benchmarks")),
        ("nats", ("engine",)),
    ],
)
def test_each_library_is_imported_only_in_its_home(package: str, home_modules: tuple[str, ...]) -> None:
    """`*.store` is the module of that name in each feature."""
    homes = [home.replace("*", feature) for home in home_modules for feature in FEATURES]
    other_importers = [
        _path_of(path)
        for path in SOURCES
        if any(_is_in_package(module, package) for module in _find_imports(path))
        and not any(_is_in_package(_module_of(path), home) for home in homes)
    ]
    assert other_importers == []


@pytest.mark.parametrize(
    "module", [*PURE, *(_module_of(path) for path in SOURCES if path.match("features/*/rules.py"))]
)
def test_pure_modules_do_no_io(module: str) -> None:
    path = next(path for path in SOURCES if _module_of(path) == module)
    io_modules = {module for module in _find_imports(path) if module.partition(".")[0] in IO}
    assert io_modules == set()
    calls = {
        node.func.id
        for node in ast.walk(_parse(path))
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name)
    }
    assert calls.isdisjoint({"open", "print", "input", "exec", "eval"})


def test_files_are_short() -> None:
    long_files = {_path_of(path): len(path.read_text().splitlines()) for path in SOURCES}
    assert {name: lines for name, lines in long_files.items() if lines > MAX_LINES and name not in LONG_FILES} == {}
    assert [name for name in LONG_FILES if long_files.get(name, 0) <= MAX_LINES] == [], (
        "no exception is needed any more"
    )


def test_names_in_docstrings_resolve() -> None:
    """A dotted name of ours, such as `engine.sampling.probe`, is a module, or what a module defines."""
    lost: dict[str, str] = {}
    for path in [*SOURCES, *(ROOT / "tools").rglob("*.py")]:
        for node in ast.walk(_parse(path)):
            if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
                names = DOTTED_NAME.findall(ast.get_docstring(node) or "")
                lost |= {name: _path_of(path) for name in names if not _is_defined(name)}
    assert lost == {}


@functools.cache
def _is_defined(dotted_name: str) -> bool:
    """Return whether the name is a package, a module, or an attribute of one, also in a class. Imports nothing."""
    parts = dotted_name.split(".")
    for length in range(len(parts), 0, -1):
        folder = ROOT.joinpath(*parts[:length])
        file = folder / "__init__.py" if folder.is_dir() else folder.with_suffix(".py")
        if file.is_file():
            body: list[ast.stmt] = _parse(file).body
            for name in parts[length:]:
                names = _list_definitions(body)
                if name not in names:
                    return False
                body = getattr(names[name], "body", [])
            return True
    return False


def _list_definitions(body: list[ast.stmt]) -> dict[str, ast.stmt]:
    """Return the statement of each name that a module or a class defines or imports."""
    names: dict[str, ast.stmt] = {}
    for node in body:
        if isinstance(node, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            names[node.name] = node
        elif isinstance(node, ast.Assign | ast.AnnAssign):
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            names |= {one.id: node for target in targets for one in ast.walk(target) if isinstance(one, ast.Name)}
        elif isinstance(node, ast.Import | ast.ImportFrom):
            names |= {alias.asname or alias.name: node for alias in node.names}
    return names


@pytest.mark.slow
def test_a_constructed_constant_is_defined_only_once() -> None:
    """For example the one for "this pings nobody": a change of one copy would take effect in one place only."""
    places_of: dict[str, list[str]] = {}
    for path in SOURCES:
        for node in _parse(path).body:
            constant = re.fullmatch(r"[A-Z][A-Z_]+ = .*", ast.unparse(node), re.DOTALL)
            if constant and isinstance(node, ast.Assign) and isinstance(node.value, ast.Call):
                places_of.setdefault(ast.unparse(node), []).append(_path_of(path))
    assert {line: places for line, places in places_of.items() if len(places) > 1} == {}


def test_modules_and_classes_have_no_vague_names() -> None:
    vague_names = []
    for path in SOURCES:
        if path.stem in VAGUE:
            vague_names.append(_path_of(path))
        for node in ast.walk(_parse(path)):
            if isinstance(node, ast.ClassDef) and any(
                node.name.lower().endswith(word) for word in ("manager", "handler", "helper", "utils", "info")
            ):
                vague_names.append(f"{_path_of(path)}:{node.name}")
    assert vague_names == []


def test_every_module_has_a_docstring() -> None:
    texts = {_path_of(path): path.read_text() for path in SOURCES}
    assert [name for name, text in texts.items() if text and not ast.get_docstring(ast.parse(text))] == []


def test_no_source_has_an_unfinished_mark() -> None:
    marks = ("TODO", "FIXME", "XXX", "NotImplementedError")
    assert [_path_of(path) for path in SOURCES if any(mark in path.read_text() for mark in marks)] == []
