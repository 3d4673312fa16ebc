"""A real store and broker, the app over both, and a small worker that speaks the real wire contract."""

from __future__ import annotations

import sys
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AsyncExitStack
from pathlib import Path

import pytest
import pytest_asyncio

from bot.app.settings import load_settings
from bot.domain.dto import Destination, Member
from bot.domain.feature import load_parts
from bot.pictures.uploads.upload_decoder import DecoderProcess
from bot.store import Store
from engine.bus.embedded_broker import Broker
from shared.app_harness import AppHarness
from shared.clock import wait_until as wait_for_condition
from shared.forked_decoders import DecoderForks, serve_decoders
from shared.migrated_database import make_migrated_database, put_migrated_database
from shared.postgres_server import Server, programs, serving


@pytest.fixture(scope="session")
def decoder_forks() -> Iterator[DecoderForks]:
    with serve_decoders() as forks:
        yield forks


@pytest.fixture(scope="session", autouse=True)
def features_are_found() -> None:
    """The settings of features: a bot looks for them on the disk before its loop runs."""
    load_parts("settings")


@pytest.fixture(scope="module", autouse=True)
def decoders_are_forks(request: pytest.FixtureRequest) -> Iterator[None]:
    """The decoder processes of this process's apps start quickly, except where they are tested themselves."""
    with pytest.MonkeyPatch.context() as patch:
        if request.path.name != "test_upload_decoder.py" and sys.platform == "linux":
            patch.setattr(DecoderProcess, "start", request.getfixturevalue("decoder_forks").start)
        yield


@pytest.fixture
def migrated_data(tmp_path: Path) -> Path:
    """A private data folder with an empty database, so that an app has no table to create."""
    return put_migrated_database(tmp_path / "data")


@pytest_asyncio.fixture
async def harness(tmp_path: Path, migrated_data: Path) -> AsyncIterator[AppHarness]:
    settings = load_settings(data=migrated_data)
    async with AsyncExitStack() as stack:
        broker = await stack.enter_async_context(Broker(tmp_path / "nats"))
        yield AppHarness(stack, broker, settings)


@pytest.fixture(scope="session")
def postgres() -> Iterator[Server]:
    """A private PostgreSQL server."""
    if (folder := programs()) is None:
        pytest.skip("PostgreSQL is not installed on this machine")
    with serving(folder) as server:
        yield server


@pytest.fixture(scope="session")
def new_database_url(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Callable[..., str]:
    """`new_database_url("sqlite")`, `new_database_url("postgres")`: the URL of an empty database.

    Tests use it one after another. `without_tables=True`: a new database without any table.
    """

    def new_url(kind: str, *, without_tables: bool = False) -> str:
        if kind == "postgres":
            server: Server = request.getfixturevalue("postgres")
            return server.url(server.database("template0") if without_tables else server.emptied())
        file = tmp_path_factory.mktemp("fresh") / "d.sqlite"
        if not without_tables:
            file.write_bytes(make_migrated_database())
        return f"sqlite:///{file}"

    return new_url


DATABASES = ["sqlite", pytest.param("postgres", marks=pytest.mark.slow)]


@pytest.fixture(params=DATABASES)
def database(request: pytest.FixtureRequest, new_database_url: Callable[..., str]) -> str:
    """The URL of an empty database with all current tables, SQLite or PostgreSQL."""
    return new_database_url(request.param)


@pytest.fixture(params=DATABASES)
def empty_database(request: pytest.FixtureRequest, new_database_url: Callable[..., str]) -> str:
    """The URL of a database without a table, SQLite or PostgreSQL."""
    return new_database_url(request.param, without_tables=True)


@pytest_asyncio.fixture
async def store(database: str) -> AsyncIterator[Store]:
    store = await Store.open(database)
    yield store
    await store.close()


@pytest_asyncio.fixture
async def sqlite_store(tmp_path: Path) -> AsyncIterator[Store]:
    """A SQLite store for tests with many crashes. Only our own code fails there, so a fast database is enough."""
    store = await Store.open(f"sqlite:///{tmp_path / 'local.sqlite'}")
    yield store
    await store.close()


@pytest.fixture
def wait_until() -> Callable[..., object]:
    """`await wait_until(lambda: condition)`."""
    return wait_for_condition


@pytest.fixture
def stored_names(tmp_path):
    """The names of all files in the picture store."""

    def names() -> set[str]:
        return {path.name for path in Path(tmp_path).rglob("sha256/*/*/*") if path.is_file()}

    return names


@pytest.fixture
def ann() -> Member:
    return Member("local:ann", "Ann", "local")


@pytest.fixture
def destination() -> Destination:
    return Destination("web", {"room": "1"})
