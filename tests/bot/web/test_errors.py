"""Every refusal: one sentence with the right status, and no change."""

from __future__ import annotations

import asyncio
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from bot.store import DatabaseUnavailable
from bot.web import answers

if TYPE_CHECKING:
    from shared.web_server import OpenServer, WebServer

pytestmark = pytest.mark.asyncio
SCRIPTS = tuple((Path(__file__).parents[3] / "bot" / "web" / "static").glob("*.js"))
UNKNOWN_JOB = "/api/jobs/01ARZ3NDEKTSV4RRFFQ69G5FAV"


async def send_refused(server: WebServer, method: str, path: str, **options: Any) -> tuple[int, str]:
    async with server.client.request(method, server.url + path, **options) as answer:
        assert answer.content_type == "application/json"
        reply = await answer.json()
        assert set(reply) == {"error"}
        assert reply["error"].endswith((".", "?"))
        return answer.status, reply["error"]


MALFORMED = [
    b"",
    b"{",
    b"[]",
    b'"terrier"',
    b"{}",
    b'{"prompt": 7}',
    b'{"prompt": "a", "steps": "40"}',
    b'{"prompt": "a", "steps": 4.5}',
    b'{"prompt": "a", "steps": true}',
    b'{"prompt": "a", "fast": "yes"}',
    b'{"prompt": "a", "turbo": "yes"}',
    b'{"prompt": "a", "stpes": 40}',
    b'{"prompt": "\xff"}',
    b'{"prompt": "a"} {}',
    b"[" * 60000,
]


async def test_a_malformed_request_is_400(server: WebServer, subtests: pytest.Subtests) -> None:
    for body in MALFORMED:
        with subtests.test(body=body[:40]):
            kind = {"Content-Type": "application/json"}
            status, _ = await send_refused(server, "POST", "/api/jobs", data=body, headers=kind)
            assert status == 400


async def test_a_compressed_body_that_cannot_be_decoded_is_400(server: WebServer) -> None:
    headers = {"Content-Type": "application/json", "Content-Encoding": "gzip"}
    status, _ = await send_refused(server, "POST", "/api/jobs", data=b"\x1f\x8b\x00\x00", headers=headers)
    assert status == 400


async def test_a_form_whose_parts_have_unreadable_headers_is_400(server: WebServer) -> None:
    headers = {"Content-Type": "multipart/form-data; boundary=b", "X-Darkroom": "1"}
    for line in (b'Content-Disposition: form-data; name="\x14"', b"no colon", b"X: " + b"a" * 20_000):
        body = b"--b\r\n" + line + b"\r\n\r\n{}\r\n--b--\r\n"
        status, _ = await send_refused(server, "POST", "/api/jobs", data=body, headers=headers)
        assert status == 400, line[:50]


async def test_an_unknown_field_is_named(server: WebServer) -> None:
    _, sentence = await send_refused(server, "POST", "/api/jobs", json={"prompt": "a", "stpes": 40})
    assert "stpes" in sentence


async def test_a_form_is_403(server: WebServer) -> None:
    status, sentence = await send_refused(server, "POST", "/api/jobs", data={"prompt": "a"})
    assert status == 403
    assert "application/json" in sentence


async def test_a_too_long_idempotency_key_is_400(server: WebServer) -> None:
    headers = {"Idempotency-Key": "k" * 201}
    status, _ = await send_refused(server, "POST", "/api/jobs", json={"prompt": "a"}, headers=headers)
    assert status == 400


FOREIGN = [
    {"Host": "evil.example"},
    {"Host": "evil.example:80"},
    {"Origin": "https://evil.example"},
    {"Origin": "null"},
    {"Sec-Fetch-Site": "cross-site"},
    {"Sec-Fetch-Site": "same-site", "Sec-Fetch-Mode": "cors"},
]


async def test_another_site_is_403_whatever_it_requests(server: WebServer, subtests: pytest.Subtests) -> None:
    for headers in FOREIGN:
        for method, path in (
            ("POST", "/api/jobs"),
            ("GET", "/api/jobs"),
            ("GET", "/api/events"),
            ("DELETE", UNKNOWN_JOB),
        ):
            with subtests.test(headers=headers, method=method, path=path):
                status, _ = await send_refused(server, method, path, headers=headers)
                assert status == 403
    _, reply = await server.request_json("GET", "/api/jobs")
    assert reply["jobs"] == []


async def test_our_own_page_may_send_requests(server: WebServer) -> None:
    headers = {"Origin": server.url, "Sec-Fetch-Site": "same-origin"}
    async with server.client.post(f"{server.url}/api/jobs", json={"prompt": "a"}, headers=headers) as answer:
        assert answer.status == 201


MISSING = [
    ("GET", "/api/nothing"),
    ("GET", UNKNOWN_JOB),
    ("GET", "/api/jobs/x"),
    ("GET", "/api/jobs/%00"),
    ("DELETE", UNKNOWN_JOB),
    ("POST", f"{UNKNOWN_JOB}/reroll"),
    ("POST", f"{UNKNOWN_JOB}/vary/1"),
    ("POST", f"{UNKNOWN_JOB}/upscale/1"),
    ("GET", f"{UNKNOWN_JOB}/events"),
    ("GET", f"{UNKNOWN_JOB}/pictures/1.png"),
    ("GET", f"{UNKNOWN_JOB}/grid.png"),
    ("GET", f"{UNKNOWN_JOB}/film.webp"),
    ("GET", f"{UNKNOWN_JOB}/keyframes"),
    ("GET", f"{UNKNOWN_JOB}/keyframes/0.webp"),
]


async def test_unknown_paths_and_jobs_are_404(server: WebServer, subtests: pytest.Subtests) -> None:
    for method, path in MISSING:
        with subtests.test(method=method, path=path):
            status, _ = await send_refused(server, method, path)
            assert status == 404


async def test_pictures_of_an_unfinished_job_are_404(server: WebServer) -> None:
    server.workers[0].step_gate.clear()
    job = await server.imagine("terrier")
    for path in ("pictures/1.png", "grid.png", "film.webp", "keyframes", "keyframes/0.webp"):
        status, _ = await send_refused(server, "GET", f"/api/jobs/{job}/{path}")
        assert status == 404, path
    for path in ("vary/1", "upscale/1"):
        async with server.client.post(f"{server.url}/api/jobs/{job}/{path}") as answer:
            assert answer.status in {404, 422}
    await server.request_json("DELETE", f"/api/jobs/{job}")


async def test_a_wrong_method_is_405_and_names_the_allowed_ones(server: WebServer, subtests: pytest.Subtests) -> None:
    for method, path in (("PUT", "/api/jobs"), ("POST", "/api/events"), ("PATCH", UNKNOWN_JOB)):
        with subtests.test(method=method, path=path):
            status, sentence = await send_refused(server, method, path)
            assert status == 405
            assert "GET" in sentence


async def test_a_large_body_is_413(server: WebServer) -> None:
    status, _ = await send_refused(server, "POST", "/api/jobs", json={"prompt": "a" * 70_000})
    assert status == 413


INVALID: list[dict[str, object]] = [
    {"prompt": ""},
    {"prompt": "terrier --sede 4"},
    {"prompt": "terrier --steps 99999"},
    {"prompt": "terrier", "steps": 0},
    {"prompt": "terrier", "steps": -1},
    {"prompt": "terrier", "steps": 10**30},
    {"prompt": "terrier", "seed": -1},
    {"prompt": "terrier", "seed": 2**40},
    {"prompt": "terrier", "guidance": 1e300},
    {"prompt": "terrier", "guidance": -3},
    {"prompt": "terrier", "count": 5},
    {"prompt": "terrier", "sampler": "magic"},
    {"prompt": "terrier", "model": "nobody"},
    {"prompt": "terrier", "ar": "wide"},
    {"prompt": "terrier", "negative": "a" * 5000},
    {"prompt": "a" * 60_000},
    {"prompt": "\x00"},
]


async def test_an_invalid_prompt_or_option_is_422(server: WebServer, subtests: pytest.Subtests) -> None:
    for body in INVALID:
        with subtests.test(body=str(body)[:60]):
            status, _ = await send_refused(server, "POST", "/api/jobs", json=body)
            assert status == 422


async def test_the_nearest_flag_is_named(server: WebServer) -> None:
    _, sentence = await send_refused(server, "POST", "/api/jobs", json={"prompt": "terrier --sede 4"})
    assert "--seed" in sentence


async def test_more_jobs_than_the_limit_are_429_and_name_it(server: WebServer) -> None:
    server.workers[0].step_gate.clear()
    for _ in range(40):
        async with server.client.post(f"{server.url}/api/jobs", json={"prompt": "terrier"}) as answer:
            if answer.status != 201:
                assert answer.status == 429
                assert any(digit.isdigit() for digit in (await answer.json())["error"])
                break
    else:
        pytest.fail("no limit in forty jobs")


async def test_the_number_of_open_streams_is_limited(server: WebServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("bot.web.sse.MAX_STREAMS", 1)
    async with server.client.get(f"{server.url}/api/events") as first:
        assert first.status == 200
        status, _ = await send_refused(server, "GET", "/api/events")
        assert status == 429


async def test_one_guest_cannot_use_up_all_streams(open_server: OpenServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("bot.web.sse.MAX_VISITOR_STREAMS", 1)
    async with open_server(host="0.0.0.0") as server:
        one, other = [{"Cookie": await server.start_session("guest")} for _ in "ab"]
        async with server.client.get(f"{server.url}/api/events", headers=one) as first:
            assert first.status == 200
            status, _ = await send_refused(server, "GET", "/api/events", headers=one)
            assert status == 429
            async with server.client.get(f"{server.url}/api/events", headers=other) as second:
                assert second.status == 200


async def test_an_idle_connection_is_closed(open_server: OpenServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("bot.web.app.KEEPALIVE_SECONDS", 0.2)
    async with open_server(workers=0) as server:
        reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
        async with asyncio.timeout(10):
            assert await reader.read() == b""
        writer.close()


@pytest.mark.slow
async def test_a_body_that_does_not_arrive_is_408(server: WebServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("bot.web.request_body.BODY_TIMEOUT", 0.2)
    reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
    head = f"POST /api/jobs HTTP/1.1\r\nHost: 127.0.0.1:{server.port}\r\nContent-Type: application/json\r\n"
    writer.write(f"{head}Content-Length: 50\r\n\r\n{{".encode())
    async with asyncio.timeout(10):
        reply = await reader.read()  # until the connection is closed
    writer.close()
    assert reply.startswith(b"HTTP/1.1 408 ")
    assert b"took too long" in reply


async def test_a_missing_page_is_answered_with_a_page(server: WebServer) -> None:
    async with server.client.get(f"{server.url}/<script>") as answer:
        assert answer.status == 404
        assert answer.content_type == "text/html"
        assert "<script>" not in await answer.text()


async def test_an_internal_error_is_500_and_reveals_nothing(server: WebServer, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object, **__: object) -> None:
        raise RuntimeError("secret detail")

    monkeypatch.setattr(answers, "describe_workers", fail)
    status, sentence = await send_refused(server, "GET", "/api/workers")
    assert status == 500
    assert "secret" not in sentence


async def test_an_unreachable_database_is_503_and_reported(
    server: WebServer, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    async def fail(*_: object) -> None:
        raise DatabaseUnavailable("The database cannot be used now: secret detail.")

    monkeypatch.setattr(server.services.job_views, "load_recent", fail)
    status, sentence = await send_refused(server, "GET", "/api/jobs")
    assert status == 503
    assert "database" in sentence
    assert "secret" not in sentence
    _ = [event async for event in server.events("/api/events")]  # the stream ends by itself
    assert "a live stream ended: The database cannot be used now" in caplog.text


async def test_every_answer_has_security_headers(server: WebServer) -> None:
    for path in (
        "/",
        "/discord",
        "/healthz",
        "/static/chatroom.js",
        "/api/jobs",
        "/nothing",
        "/api/nothing",
        "/api/events",
    ):
        async with server.client.get(server.url + path) as answer:
            policy = answer.headers["Content-Security-Policy"]
            assert "default-src 'none'" in policy
            assert "frame-ancestors 'none'" in policy
            assert "unsafe" not in policy
            assert answer.headers["X-Content-Type-Options"] == "nosniff"
            assert answer.headers["Referrer-Policy"] == "no-referrer"
            assert "aiohttp" not in answer.headers["Server"].lower()


async def test_static_files_stay_in_their_folder(server: WebServer) -> None:
    for path in ("/static/../app.py", "/static/..%2fapp.py", "/static/%2e%2e/app.py", "/static/"):
        async with server.client.get(server.url + path) as answer:
            assert answer.status in {403, 404}


async def test_a_guest_cannot_cancel_a_job_of_another_visitor(open_server: OpenServer) -> None:
    async with open_server(host="0.0.0.0") as server:
        owner = await server.start_session("operator")
        guest = await server.start_session("guest")
        server.workers[0].step_gate.clear()
        job = (await server.request_json("POST", "/api/jobs", {"prompt": "terrier"}, Cookie=owner))[1]["id"]
        status, reply = await server.request_json("DELETE", f"/api/jobs/{job}", Cookie=guest)
        assert status == 403, reply
        status, _ = await server.request_json("DELETE", f"/api/jobs/{job}", Cookie=owner)
        assert status == 200


async def test_the_only_redirect_leads_to_the_icon(server: WebServer) -> None:
    url = f"{server.url}/favicon.ico?next=https://elsewhere.example"
    async with server.client.get(url, allow_redirects=False) as answer:
        assert (answer.status, answer.headers["Location"]) == (302, "/static/icon.svg")


async def test_scripts_keep_nothing_in_the_storage_of_the_browser() -> None:
    scripts = {path.name: await asyncio.to_thread(path.read_text) for path in SCRIPTS}
    assert "chatroom.js" in scripts
    found = [
        name for name, text in scripts.items() if re.search(r"localStorage|sessionStorage|indexedDB|\.cookie", text)
    ]
    assert found == []
