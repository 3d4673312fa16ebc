"""Shared by every test: skips that fail in CI, a check for blocking calls, a free port. Knows no part of Darkroom."""

from __future__ import annotations

import gc
import logging
import os
import shutil
import socket
import sys
from collections import Counter
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
from blockbuster import BlockBuster, blockbuster_ctx
from hypothesis import settings

from shared.forked_workers import serve_forks

PROCESS_FOLDERS = {"end_to_end", "chaos", "attack", "loopback", "delivery"}  # their tests wait for processes and clocks
REQUIRE_ALL = os.environ.get("REQUIRE_ALL", "") not in ("", "0")
os.environ.setdefault("OMP_NUM_THREADS", "1")  # before torch is imported: the tests' networks are too small for more
settings.register_profile("darkroom", deadline=None)  # a busy machine is no fault of the code
settings.load_profile("darkroom")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")  # else tokenizers warn after every fork


def _fail_if_skipped(report: Any) -> None:
    """In CI no test may be skipped: a skip becomes a failure that names what is missing."""
    if REQUIRE_ALL and report.skipped and not hasattr(report, "wasxfail"):
        reason = report.longrepr[2] if isinstance(report.longrepr, tuple) else str(report.longrepr)
        report.outcome = "failed"
        report.longrepr = f"REQUIRE_ALL is set, and this was left out: {reason}"


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport() -> Generator[None, Any, Any]:
    report = yield
    _fail_if_skipped(report)
    return report


@pytest.hookimpl(wrapper=True)
def pytest_make_collect_report() -> Generator[None, Any, Any]:
    report = yield
    _fail_if_skipped(report)
    return report


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_setupnodes(config: pytest.Config, specs: Sequence[Any]) -> None:
    """The workers are forks. Elsewhere than on Linux, a process with threads of its system cannot be forked safely."""
    if sys.platform == "linux":
        stack = ExitStack()
        config.add_cleanup(stack.close)
        command = stack.enter_context(serve_forks())
        for spec in specs:
            spec.python = command


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Sample the tables, if the slow tests are left out; then put the files that take longest first."""
    if config.getoption("markexpr") == "not slow":
        _sample_tables(config, items)
    _put_long_files_first(items)


def pytest_collection_finish() -> None:
    """The garbage collector leaves out what stays to the end: with torch and diffusers each full pass takes 0.3 s."""
    gc.freeze()


def _sample_tables(config: pytest.Config, items: list[pytest.Item]) -> None:
    """A table marked `sampled` keeps its first case alone."""
    tables = set[str]()
    deselected = list[pytest.Item]()
    selected = list[pytest.Item]()
    for item in items:
        table = item.nodeid.partition("[")[0]
        (deselected if "sampled" in item.keywords and table in tables else selected).append(item)
        tables.add(table)
    config.hook.pytest_deselected(items=deselected)
    items[:] = selected


def _put_long_files_first(items: list[pytest.Item]) -> None:
    """Workers take whole files in this order, so that no long file is left when the other workers have nothing to do.

    First the folders whose tests wait for processes, then the files with the most tests; a slow test counts as ten.
    """
    weights = Counter[Path]()
    for item in items:
        weights[item.path] += 10 if "slow" in item.keywords else 1
    items.sort(key=lambda item: (PROCESS_FOLDERS.isdisjoint(item.path.parts), -weights[item.path], str(item.path)))


@pytest.fixture(scope="session")
def find_program() -> Callable[..., str]:
    """`find_program("chromium", "chromium-browser")`: the path of the first one installed, or skips the test."""

    def find_or_skip(*programs: str) -> str:
        for program in programs:
            if path := shutil.which(program):
                return path
        pytest.skip(f"{programs[0]} is not installed on this machine")

    return find_or_skip


@pytest.fixture(autouse=True)
def log_levels_stay() -> Iterator[None]:
    """A program that a test runs in its own process may set levels; the next test has them as they were."""
    loggers = [logging.getLogger(name) for name in (None, "bot", "engine")]
    before = [(logger.level, logger.propagate, logger.disabled) for logger in loggers]
    yield
    for logger, (level, propagates, is_disabled) in zip(loggers, before, strict=True):
        logger.setLevel(level)
        logger.propagate = propagates
        logger.disabled = is_disabled


@pytest.fixture(autouse=True)
def event_loop_stays_free(request: pytest.FixtureRequest) -> Iterator[BlockBuster | None]:
    """A blocking call of our code on a running event loop fails the test (`@pytest.mark.may_block` allows it)."""
    if "asyncio" not in request.keywords or "may_block" in request.keywords:
        yield None
        return
    with blockbuster_ctx(["bot", "engine", "training", "benchmarks"]) as watch:
        yield watch


@pytest.fixture
def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
