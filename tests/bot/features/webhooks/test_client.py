"""The client of webhooks: every address that a name resolves to is checked, and the connection goes to that one."""

from __future__ import annotations

import socket
import time
from collections.abc import Sequence

import pytest
from aiohttp import web
from aiohttp.abc import AbstractResolver, ResolveResult
from standardwebhooks import Webhook as Verifier

from bot.features.webhooks.client import Answer, WebhookClient, sign_message
from bot.features.webhooks.rules import PrivateHosts, unreachable_error
from bot.features.webhooks.store import Webhook

pytestmark = pytest.mark.asyncio
SECRET = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"


class Names(AbstractResolver):
    """Resolves every name to these addresses."""

    def __init__(self, *addresses: str) -> None:
        self._addresses: Sequence[str] = addresses

    async def resolve(
        self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_INET
    ) -> list[ResolveResult]:
        return [
            ResolveResult(hostname=host, host=address, port=port, family=socket.AF_INET, proto=0, flags=0)
            for address in self._addresses
        ]

    async def close(self) -> None:
        """Nothing is open."""


def make_webhook(url: str) -> Webhook:
    return Webhook("01", url, "", ("job.finished",), SECRET, 0.0)


@pytest.mark.parametrize("addresses", [("127.0.0.1",), ("1.1.1.1", "10.0.0.1"), ("::1",), ("169.254.169.254",)])
async def test_a_name_that_resolves_to_a_private_address_is_not_called(addresses: tuple[str, ...]) -> None:
    client = WebhookClient(PrivateHosts(), Names(*addresses))
    try:
        answer = await client.post(make_webhook("https://hooks.example/"), "msg_1", b"{}", time.time())
    finally:
        await client.close()
    assert answer.status == 0
    assert answer.error == unreachable_error("hooks.example").sentence
    assert not any(address in answer.error for address in addresses), "it would tell the operator's own names"


async def test_a_name_that_does_not_resolve_gets_the_sentence_of_a_private_one() -> None:
    class NoNames(Names):
        async def resolve(
            self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_INET
        ) -> list[ResolveResult]:
            raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

    client = WebhookClient(PrivateHosts(), NoNames())
    try:
        answer = await client.post(make_webhook("https://hooks.example/"), "msg_1", b"{}", time.time())
    finally:
        await client.close()
    assert answer == Answer(0, unreachable_error("hooks.example").sentence)


async def test_a_listed_name_is_called_at_the_address_that_was_checked() -> None:
    received = list[tuple[dict[str, str], bytes]]()

    async def receive(request: web.Request) -> web.Response:
        received.append((dict(request.headers), await request.read()))
        return web.Response(status=503, headers={"Retry-After": "120"}, text="later " * 100_000)

    app = web.Application()
    app.router.add_post("/", receive)
    runner = web.AppRunner(app)
    await runner.setup()
    client = WebhookClient(PrivateHosts.parse(["hooks.lan"]), Names("127.0.0.1"))
    try:
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        url = f"http://hooks.lan:{runner.addresses[0][1]}/"
        answer = await client.post(make_webhook(url), "msg_1", b'{"a":1}', time.time())
    finally:
        await client.close()
        await runner.cleanup()
    assert (answer.status, answer.retry_after) == (503, 120.0)
    ((headers, body),) = received
    assert Verifier(SECRET).verify(body, headers) == {"a": 1}
    assert "Cookie" not in headers


async def test_the_signature_is_that_of_the_standard() -> None:
    """The values are the example of the Standard Webhooks' libraries."""
    headers = sign_message(SECRET, "msg_p5jXN8AQM9LWM0D4loKWxJek", b'{"test": 2432232314}', 1614265330.9)
    assert headers == {
        "webhook-id": "msg_p5jXN8AQM9LWM0D4loKWxJek",
        "webhook-timestamp": "1614265330",
        "webhook-signature": "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE=",
    }
