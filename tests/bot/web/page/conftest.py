"""One browser for all tests of a file, which share an event loop. Each test has its own server and contexts."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from typing import TYPE_CHECKING

import pytest
import pytest_asyncio
from playwright.async_api import Browser, Page

from shared.web_server import launch_browser, open_clean_page, start_broker

if TYPE_CHECKING:
    from engine.bus.embedded_broker import Broker
    from shared.web_server import OpenServer, WebServer


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def running_browser(
    find_program: Callable[..., str], tmp_path_factory: pytest.TempPathFactory
) -> AsyncIterator[Browser]:
    async with launch_browser(find_program, tmp_path_factory) as browser:
        yield browser


@pytest_asyncio.fixture(loop_scope="module")
async def browser(running_browser: Browser) -> AsyncIterator[Browser]:
    """The file's browser. What a test opened in it is closed after the test, cookies and caches with it."""
    yield running_browser
    for context in running_browser.contexts:
        await context.close()


@pytest_asyncio.fixture(loop_scope="module")
async def page(browser: Browser) -> AsyncIterator[Page]:
    """An empty page. An error or warning in its console fails the test, except for answers of 4xx."""
    async with open_clean_page(browser) as page:
        yield page


@pytest_asyncio.fixture(loop_scope="module")
async def broker(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Broker]:
    async with start_broker(tmp_path_factory) as broker:
        yield broker


@pytest_asyncio.fixture(loop_scope="module")
async def server(open_server: OpenServer) -> AsyncIterator[WebServer]:
    """A web page with one worker."""
    async with open_server() as server:
        yield server
