"""One bot per data folder, and how other processes find it."""

from __future__ import annotations

import json
import os
import socket
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from bot.app.settings import load_settings
from bot.cli.instance_lock import (
    RunningInstance,
    announce_instance,
    check_port_free,
    find_instance,
    lock_data_folder,
    withdraw_instance,
)
from bot.cli.up.startup import announce_address
from bot.domain.errors import UserError


def test_an_announced_bot_is_found_until_it_withdraws(tmp_path: Path) -> None:
    instance = RunningInstance("http://127.0.0.1:8189", 42)
    announce_instance(tmp_path, instance)
    assert find_instance(tmp_path) == instance
    assert json.loads((tmp_path / "running.json").read_text()) == {"url": instance.url, "pid": 42}
    assert stat.S_IMODE((tmp_path / "running.json").stat().st_mode) == 0o600
    withdraw_instance(tmp_path)
    assert find_instance(tmp_path) is None
    withdraw_instance(tmp_path)  # twice is no error
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "text", ["", "{", "[]", "null", '"x"', "{}", '{"url": "http://x"}', '{"url": "x", "pid": "y"}']
)
def test_a_damaged_announcement_counts_as_none(tmp_path: Path, text: str) -> None:
    (tmp_path / "running.json").write_text(text)
    assert find_instance(tmp_path) is None


def test_a_second_bot_on_a_folder_is_refused_in_one_sentence(tmp_path: Path) -> None:
    announce_instance(tmp_path, RunningInstance("http://127.0.0.1:9", 42))
    with lock_data_folder(tmp_path):
        with (
            pytest.raises(UserError, match=r"already runs on .* at http://127.0.0.1:9 \(process 42\)"),
            lock_data_folder(tmp_path),
        ):
            pass
        with pytest.raises(UserError), lock_data_folder(tmp_path):
            pass
    with lock_data_folder(tmp_path):  # the lock is free again
        pass


def test_the_lock_ends_with_its_process(tmp_path: Path) -> None:
    code = f"""
import os, sys; from pathlib import Path; from bot.cli.instance_lock import lock_data_folder
with lock_data_folder(Path({str(tmp_path)!r})): print('held', flush=True); sys.stdin.read()
"""
    other = subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    with other:
        assert other.stdout is not None
        assert other.stdout.readline() == b"held\n"
        with pytest.raises(UserError), lock_data_folder(tmp_path):
            pass
        other.kill()
        other.wait()
    with lock_data_folder(tmp_path):
        pass


def test_an_impossible_folder_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="cannot be used"), lock_data_folder(tmp_path / "file" / "inside"):
        pass


def test_only_its_owner_may_read_the_data_folder(tmp_path: Path) -> None:
    with lock_data_folder(tmp_path / "new"):
        assert stat.S_IMODE((tmp_path / "new").stat().st_mode) == 0o700


def test_a_port_in_use_is_refused_in_one_sentence(free_port: int) -> None:
    check_port_free("127.0.0.1", free_port)
    with socket.create_server(("127.0.0.1", free_port)):
        with pytest.raises(UserError) as error:
            check_port_free("127.0.0.1", free_port)
        assert error.value.sentence == f"Port {free_port} is taken on 127.0.0.1: choose another with --port."
    check_port_free("127.0.0.1", free_port)


def test_an_address_in_brackets_is_accepted(free_port: int) -> None:
    check_port_free("[127.0.0.1]", free_port)
    with socket.create_server(("127.0.0.1", free_port)), pytest.raises(UserError, match=f"Port {free_port} is taken"):
        check_port_free("[127.0.0.1]", free_port)


@pytest.mark.parametrize(
    ("host", "url"),
    [
        ("[::1]", "http://[::1]:7"),
        ("::1", "http://[::1]:7"),
        ("[::]", "http://127.0.0.1:7"),
        ("::", "http://127.0.0.1:7"),
    ],
)
def test_a_bot_is_found_whatever_address_it_binds(tmp_path: Path, host: str, url: str) -> None:
    with announce_address(load_settings(data=tmp_path, host=host), 7):
        assert find_instance(tmp_path) == RunningInstance(url, os.getpid())
    assert find_instance(tmp_path) is None


def test_a_foreign_address_is_refused(free_port: int) -> None:
    with pytest.raises(UserError, match="Nobody can listen"):
        check_port_free("192.0.2.1", free_port)  # nobody uses TEST-NET-1 (RFC 5737)


@pytest.mark.skipif(os.name != "posix", reason="named ports are a matter of this system")
def test_an_unknown_host_name_is_refused() -> None:
    with pytest.raises(UserError, match="Nobody can listen"):
        check_port_free("no such host", 8189)


def test_an_open_data_folder_is_closed_and_a_shared_one_is_refused(tmp_path: Path) -> None:
    tmp_path.chmod(0o755)
    sentences: list[str] = []
    with lock_data_folder(tmp_path, None, sentences.append):
        assert stat.S_IMODE(tmp_path.stat().st_mode) == 0o700
    assert len(sentences) == 1
    assert "open to other users" in sentences[0]
    tmp_path.chmod(0o1777)
    with pytest.raises(UserError, match="all users share"), lock_data_folder(tmp_path):
        pass
