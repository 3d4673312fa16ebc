"""The embedded broker, with the real server: it needs a token, restarts after a crash, has its folder to itself."""

from __future__ import annotations

import asyncio
import os
import signal
import stat
import sys
from pathlib import Path

import pytest

from engine.bus import BrokerUnreachable, Bus
from engine.bus.embedded_broker import Broker, BrokerError
from shared.clock import wait_until


@pytest.mark.asyncio
async def test_the_broker_requires_its_token(tmp_path: Path) -> None:
    async with Broker(tmp_path) as broker:
        bus = await Bus.connect(broker.url, broker.token)
        await bus.declare()
        assert bus.client.max_payload == 8 * 1024 * 1024
        await bus.close()
        with pytest.raises(BrokerUnreachable, match="Authorization"):
            await Bus.connect(broker.url, "wrong", timeout=3.0)
        with pytest.raises(BrokerUnreachable):
            await Bus.connect(broker.url, "", timeout=1.0)


@pytest.mark.asyncio
async def test_the_brokers_files_are_private_to_their_owner(tmp_path: Path) -> None:
    async with Broker(tmp_path / "nats") as broker:
        config = tmp_path / "nats" / "nats.conf"
        assert stat.S_IMODE(config.stat().st_mode) == 0o600
        assert stat.S_IMODE((tmp_path / "nats").stat().st_mode) == 0o700
        text = await asyncio.to_thread(config.read_text)
        assert "sync_interval: always" in text
        assert 'host: "127.0.0.1"' in text
        user, _, password = broker.token.partition(":")
        assert f'user: "{user}", password: "{password}"' in text
        assert password not in " ".join(await asyncio.to_thread(_read_command_line, broker.pid))


def _read_command_line(pid: int | None) -> list[str]:
    return Path(f"/proc/{pid}/cmdline").read_bytes().decode().split("\0")


@pytest.mark.asyncio
async def test_a_killed_server_restarts_with_its_store(tmp_path: Path) -> None:
    async with Broker(tmp_path) as broker:
        bus = await Bus.connect(broker.url, broker.token)
        await bus.declare()
        sha = await bus.put_blob(b"kept through a crash")
        first = broker.pid
        assert first is not None
        os.kill(first, signal.SIGKILL)
        await wait_until(lambda: broker.restarts == 1 and broker.pid != first)
        await wait_until(lambda: bus.is_connected)
        assert await bus.get_blob(sha, 100) == b"kept through a crash"
        await bus.close()


@pytest.mark.asyncio
async def test_a_failed_restart_of_the_server_is_tried_again(tmp_path: Path) -> None:
    async with Broker(tmp_path) as broker:
        program = broker._server
        broker._server = tmp_path / "no such program"
        assert broker.pid is not None
        os.kill(broker.pid, signal.SIGKILL)
        await wait_until(lambda: broker.restarts == 2)
        broker._server = program
        bus = await Bus.connect(broker.url, broker.token)
        await bus.close()


@pytest.mark.asyncio
async def test_a_folder_allows_one_broker(tmp_path: Path) -> None:
    async with Broker(tmp_path):
        with pytest.raises(BrokerError, match="already running"):
            await Broker(tmp_path).__aenter__()
    async with Broker(tmp_path) as second_broker:
        assert second_broker.pid is not None


@pytest.mark.asyncio
async def test_an_orphaned_server_is_stopped_before_a_new_one_starts(tmp_path: Path) -> None:
    broker = Broker(tmp_path)
    await asyncio.to_thread(broker._prepare)
    orphan_server = await asyncio.create_subprocess_exec(str(broker._server), "-c", str(broker.folder / "nats.conf"))
    await wait_until((tmp_path / "nats.pid").exists)
    assert broker._lock is not None
    os.close(broker._lock)
    async with Broker(tmp_path, port=broker.port) as next_broker:
        assert orphan_server.returncode is not None or await asyncio.wait_for(orphan_server.wait(), 5) is not None
        assert next_broker.pid != orphan_server.pid


@pytest.mark.asyncio
async def test_another_process_with_the_old_pid_is_left_alone(tmp_path: Path) -> None:
    process = await asyncio.create_subprocess_exec(sys.executable, "-c", "import time; time.sleep(60)")
    try:
        (tmp_path / "nats.pid").write_text(str(process.pid))
        async with Broker(tmp_path):
            assert process.returncode is None
    finally:
        process.kill()
        await process.wait()


@pytest.mark.asyncio
async def test_a_port_in_use_is_reported_in_one_line(tmp_path: Path) -> None:
    server = await asyncio.start_server(lambda reader, writer: writer.close(), "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    with pytest.raises(BrokerError, match="address already in use"):
        await Broker(tmp_path, port=port).__aenter__()
    server.close()
    await server.wait_closed()


BROKER_OF_A_PARENT = """
import asyncio, sys
from pathlib import Path
from engine.bus.embedded_broker import Broker
async def serve():
    async with Broker(Path(sys.argv[1])) as broker:
        print(broker.pid, flush=True)
        await asyncio.sleep(60)
asyncio.run(serve())
"""


@pytest.mark.asyncio
@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere the next start ends it")
async def test_the_server_inherits_no_secret_and_ends_with_a_killed_parent(tmp_path: Path) -> None:
    secrets = {
        "DISCORD_TOKEN": "leaked",
        "DATABASE_URL": "leaked",
        "DARKROOM_PICTURES_URL": "leaked",
        "ANY_OTHER": "leaked",
    }
    parent = await asyncio.create_subprocess_exec(
        sys.executable,
        "-c",
        BROKER_OF_A_PARENT,
        str(tmp_path),
        env=dict(os.environ) | secrets,
        stdout=asyncio.subprocess.PIPE,
    )
    assert parent.stdout is not None
    server = int(await asyncio.wait_for(parent.stdout.readline(), 30))
    environment = await asyncio.to_thread(Path(f"/proc/{server}/environ").read_bytes)
    assert b"leaked" not in environment
    assert str(tmp_path / "nats.conf") in await asyncio.to_thread(_read_command_line, server)
    parent.kill()
    await parent.wait()
    await wait_until(lambda: not Path(f"/proc/{server}/exe").exists())
    async with Broker(tmp_path) as next_broker:
        assert next_broker.pid != server
