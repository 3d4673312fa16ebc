"""The compose files: valid, confined, each service with its own secrets, and a broker that bot and engine reach."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parents[1]
COMPOSE_SECRETS = {
    "DARKROOM_NATS_TOKEN": "a-token",
    "DARKROOM_ENGINE_KEY": "a-seed",
    "DARKROOM_ENGINE_PUBLIC": "a-public-key",
}


def test_the_compose_file_is_valid(find_program: Callable[..., str]) -> None:
    program = find_program("docker-compose")
    env = os.environ | COMPOSE_SECRETS
    completed = subprocess.run([program, "config"], cwd=ROOT, env=env, capture_output=True, text=True, check=False)
    assert completed.returncode == 0, completed.stderr
    services = yaml.safe_load(completed.stdout)["services"]
    assert set(services) == {"nats", "bot", "engine"}
    assert all(port["host_ip"] == "127.0.0.1" for port in services["bot"]["ports"])
    assert "ports" not in services["nats"]
    for service in ("bot", "engine"):
        assert (ROOT / services[service]["build"]["dockerfile"]).is_file()


def test_the_postgres_compose_file_adds_a_database(find_program: Callable[..., str]) -> None:
    files = ["-f", "docker-compose.yml", "-f", "docker/postgres.yml", "config"]
    command = [find_program("docker-compose"), *files]
    env = os.environ | COMPOSE_SECRETS
    without_password = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, check=False)
    assert "POSTGRES_PASSWORD" in without_password.stderr
    env |= {"POSTGRES_PASSWORD": "secret"}
    completed = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, check=False)
    assert completed.returncode == 0, completed.stderr
    services = yaml.safe_load(completed.stdout)["services"]
    assert set(services) == {"nats", "bot", "engine", "postgres"}
    assert services["bot"]["environment"]["DATABASE_URL"] == "postgresql://darkroom:secret@postgres/darkroom"
    assert services["bot"]["depends_on"]["postgres"]["condition"] == "service_healthy"
    assert "ports" not in services["postgres"]
    assert services["postgres"]["healthcheck"]["test"][:2] == ["CMD", "pg_isready"]


def test_the_compose_file_requires_its_secrets_and_gives_each_service_its_own() -> None:
    raw = yaml.safe_load((ROOT / "docker-compose.yml").read_text())
    secrets = {
        name: {key for key, value in service["environment"].items() if ":?" in str(value)}
        for name, service in raw["services"].items()
    }
    assert secrets == {
        "nats": {"DARKROOM_NATS_TOKEN", "DARKROOM_ENGINE_PUBLIC"},
        "bot": {"DARKROOM_NATS_TOKEN"},
        "engine": {"DARKROOM_NATS_KEY"},
    }
    assert "DARKROOM_NATS_TOKEN" not in raw["services"]["engine"]["environment"]


@pytest.mark.parametrize("files", [[], ["-f", "docker-compose.yml", "-f", "docker/postgres.yml"]])
def test_every_container_is_confined(files: list[str], find_program: Callable[..., str]) -> None:
    env = os.environ | COMPOSE_SECRETS | {"POSTGRES_PASSWORD": "secret"}
    command = [find_program("docker-compose"), *files, "config"]
    completed = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, check=False)
    for name, service in yaml.safe_load(completed.stdout)["services"].items():
        assert service["read_only"] is True, name
        assert service["cap_drop"] == ["ALL"], name
        assert service["security_opt"] == ["no-new-privileges:true"], name
        assert int(service["mem_limit"]) > 0, name


def test_the_broker_of_the_compose_file_is_the_tested_version() -> None:
    from engine.bus.embedded_broker import find_server

    version = subprocess.run([str(find_server()), "--version"], capture_output=True, text=True, check=True).stdout
    raw = yaml.safe_load((ROOT / "docker-compose.yml").read_text())
    assert raw["services"]["nats"]["image"] == f"nats:{version.split()[-1].lstrip('v')}-alpine"


def test_the_broker_of_the_compose_file_syncs_and_knows_two_accounts() -> None:
    from engine.bus import worker_keys

    text = (ROOT / "docker" / "nats.conf").read_text()
    assert "sync_interval: always" in text
    assert f"exports: {json.dumps(worker_keys.build_exports())}\n" in text
    name, account = worker_keys.build_account("PUBLIC", "engine", ["default"])
    assert f"{json.dumps(name)} {json.dumps(account)}\n".replace('"PUBLIC"', "$DARKROOM_ENGINE_PUBLIC") in text
    assert 'users: [ { user: "darkroom", password: $DARKROOM_NATS_TOKEN } ]' in text


def make_secrets() -> dict[str, str]:
    script = [sys.executable, "docker/make_env.py"]
    env = os.environ | {"PYTHONPATH": str(ROOT)}
    printed = subprocess.run(script, cwd=ROOT, env=env, capture_output=True, text=True, check=True)
    return dict(line.split("=", 1) for line in printed.stdout.splitlines())


@pytest.mark.asyncio
async def test_bot_and_engine_reach_the_broker_of_the_compose_file_with_its_secrets(tmp_path: Path) -> None:
    from engine.bus import BrokerUnreachable, Bus
    from engine.bus.embedded_broker import find_free_port, find_server

    env = await asyncio.to_thread(make_secrets)
    assert env.keys() == COMPOSE_SECRETS.keys()
    port = find_free_port()
    config = tmp_path / "nats.conf"
    text = await asyncio.to_thread((ROOT / "docker" / "nats.conf").read_text)
    text = text.replace("0.0.0.0", "127.0.0.1").replace("4222", str(port))
    await asyncio.to_thread(config.write_text, text.replace("/data", str(tmp_path / "data")))
    program = str(await asyncio.to_thread(find_server))
    server = await asyncio.create_subprocess_exec(program, "-c", str(config), env=os.environ | env)
    try:
        url = f"nats://127.0.0.1:{port}"
        bot = await Bus.connect(url, f"darkroom:{env['DARKROOM_NATS_TOKEN']}", timeout=20)
        await bot.declare(["default"])
        engine = await Bus.connect(url, key=env["DARKROOM_ENGINE_KEY"], name="engine", timeout=20)
        assert await engine.get_snapshots("01JZ0000000000000000000001") == []
        await engine.close()
        await bot.close()
        with pytest.raises(BrokerUnreachable):
            await Bus.connect(url, env["DARKROOM_NATS_TOKEN"], timeout=2)
    finally:
        server.terminate()
        await server.wait()
