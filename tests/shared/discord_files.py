"""A server that answers as Discord's own file hosts."""

from __future__ import annotations

import asyncio
import socket
import ssl
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import aiohttp
import pytest
from aiohttp import web
from aiohttp.abc import AbstractResolver, ResolveResult

HOSTS = ("cdn.discordapp.com", "media.discordapp.net")


ATTACHED = "https://cdn.discordapp.com/attachments/1/2/cat.png?ex=65&is=66&hm=aa&"


DECEPTIVE_URLS = """
http://cdn.discordapp.com/a.png
HTTPS://cdn.discordapp.com/a.png
https://CDN.discordapp.com/a.png
https://cdn.discordapp.com
https://cdn.discordapp.com./a.png
https://cdn.discordapp.com@evil.example/a.png
https://evil.example@cdn.discordapp.com/a.png
https://cdn.discordapp.com:pw@evil.example/a.png
https://cdn.discordapp.com:443@evil.example/a.png
https://cdn.discordapp.com:80/a.png
https://cdn.discordapp.com:0443/a.png
https://cdn.discordapp.com:/a.png
https://cdn.discordapp.com\\@evil.example/a.png
https://cdn.discordapp.com\\a.png
https:\\\\cdn.discordapp.com/a.png
https:/cdn.discordapp.com/a.png
https:///cdn.discordapp.com/a.png
//cdn.discordapp.com/a.png
https://cdn.discordapp.com.evil.example/a.png
https://evil.example/cdn.discordapp.com/a.png
https://evil.example#https://cdn.discordapp.com/a.png
https://evil.example?https://cdn.discordapp.com/a.png
https://cdn.discordapp.com#@evil.example/a.png
https://cdn.discordapp.com/a.png#b
https://cdn.discordapp.com?@evil.example/a.png
https://cdn-discordapp.com/a.png
https://xcdn.discordapp.com/a.png
https://discordapp.com/a.png
https://cdn.discordapp.net/a.png
https://сdn.discordapp.com/a.png
https://cdn。discordapp。com/a.png
https://xn--dn-jlc.discordapp.com/a.png
https://cdn.discordapp.com%2eevil.example/a.png
https://cdn%2ediscordapp.com/a.png
https://cdn.discordapp.com%00.evil.example/a.png
https://cdn.discordapp.com/%
https://cdn.discordapp.com/a b.png
https://cdn.discordapp.com/ä.png
https://127.0.0.1/a.png
https://[::1]/a.png
https://[::ffff:127.0.0.1]/a.png
https://[cdn.discordapp.com]/a.png
https://2130706433/a.png
https://0x7f.1/a.png
https://169.254.169.254/latest/meta-data
https://localhost/a.png
file:///etc/passwd
file://cdn.discordapp.com/etc/passwd
data:image/png;base64,AAAA
ftp://cdn.discordapp.com/a.png
gopher://cdn.discordapp.com/_x
javascript:alert(1)
jar:https://cdn.discordapp.com/a.png!/
/api/jobs/01ARZ3NDEKTSV4RRFFQ69G5FAV/pictures/1.png
../a.png
""".strip().splitlines()


SENT = web.AppKey("SENT", list[int])


class LocalResolver(AbstractResolver):
    """Resolves every name to this machine and the server's port; the URL stays unchanged, TLS included."""

    def __init__(self, port: int) -> None:
        self.port = port
        self.asked_hosts = list[str]()

    async def resolve(
        self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_INET
    ) -> list[ResolveResult]:
        self.asked_hosts.append(host)
        return [ResolveResult(hostname=host, host="127.0.0.1", port=self.port, family=socket.AF_INET, proto=0, flags=0)]

    async def close(self) -> None:
        pass


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory, find_program: Callable[..., str]) -> Path:
    """A key and a certificate for Discord's names, trusted only by this test."""
    import subprocess

    key_file = tmp_path_factory.mktemp("tls") / "both.pem"
    command = [
        find_program("openssl"),
        "req",
        "-x509",
        "-newkey",
        "ec",
        "-pkeyopt",
        "ec_paramgen_curve:prime256v1",
        "-nodes",
    ]
    command += ["-days", "2", "-subj", "/CN=test", "-keyout", str(key_file), "-out", str(key_file) + ".crt"]
    command += ["-addext", "subjectAltName=" + ",".join(f"DNS:{host}" for host in HOSTS)]
    subprocess.run(command, check=True, capture_output=True)
    return key_file


@asynccontextmanager
async def serve_as_discord(
    answer: Callable[[web.Request], object], certificate: Path, free_port: int
) -> AsyncIterator[tuple[aiohttp.ClientSession, LocalResolver, list[int]]]:
    async def answer_and_count(request: web.Request) -> web.StreamResponse:
        response = answer(request)
        return await response if asyncio.iscoroutine(response) else response  # pyright: ignore[reportReturnType]

    app = web.Application()
    app[SENT] = [0]
    app.router.add_get("/{path:.*}", answer_and_count)
    runner = web.AppRunner(app, shutdown_timeout=0.1)
    await runner.setup()
    server_tls = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    client_tls = ssl.create_default_context()
    await asyncio.to_thread(server_tls.load_cert_chain, str(certificate) + ".crt", str(certificate))
    await asyncio.to_thread(client_tls.load_verify_locations, str(certificate) + ".crt")
    await web.TCPSite(runner, "127.0.0.1", free_port, ssl_context=server_tls).start()
    resolver = LocalResolver(free_port)
    try:
        async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(resolver=resolver, ssl=client_tls)) as session:
            yield session, resolver, app[SENT]
    finally:
        await runner.cleanup()
