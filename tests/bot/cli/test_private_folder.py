"""Files and folders of ours are closed to other users of the machine."""

from __future__ import annotations

import stat
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from bot.cli.instance_lock import make_folder_private
from bot.domain.errors import UserError


def read_mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


@pytest.mark.parametrize("mode", [0o755, 0o750, 0o777, 0o701])
def test_an_open_folder_of_ours_is_closed_with_a_sentence(tmp_path: Path, mode: int) -> None:
    tmp_path.chmod(mode)
    assert "open to other users" in make_folder_private(tmp_path)
    assert read_mode(tmp_path) == 0o700
    assert make_folder_private(tmp_path) == ""


def test_a_shared_folder_is_refused(tmp_path: Path) -> None:
    tmp_path.chmod(0o1777)
    with pytest.raises(UserError, match="all users share"):
        make_folder_private(tmp_path)
    assert read_mode(tmp_path) == 0o1777


@pytest.mark.parametrize(("mode", "is_refused"), [(0o777, True), (0o775, True), (0o2770, False), (0o700, False)])
def test_a_folder_of_another_user_may_be_open_to_its_group_only(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, mode: int, is_refused: bool
) -> None:
    tmp_path.chmod(mode)
    other_user = SimpleNamespace(st_mode=tmp_path.stat().st_mode, st_uid=tmp_path.stat().st_uid + 1)

    def read_status(path: Path) -> SimpleNamespace:
        return other_user

    monkeypatch.setattr(Path, "stat", read_status)
    if is_refused:
        with pytest.raises(UserError, match="chmod o-rwx"):
            make_folder_private(tmp_path)
    else:
        assert make_folder_private(tmp_path) == ""


@pytest.mark.parametrize(("module", "arguments"), [("bot", ["jobs", "list"]), ("engine", ["serve", "--help"])])
def test_our_processes_make_private_files(module: str, arguments: list[str], tmp_path: Path) -> None:
    script = (
        (
            "import atexit, os, sys, runpy\n"
            "os.umask(0o022)\n"
            "atexit.register(lambda: print('umask', oct(os.umask(0))))\n"
            f"sys.argv = ['x', *{arguments!r}]\n"
            f"import {module}.__main__ as start\n"
            "start.main()\n"
        )
        if module == "bot"
        else (
            "import os\n"
            "os.umask(0o022)\n"
            f"import {module}.__main__ as start\n"
            f"start.main({arguments!r})\n"
            "print('umask', oct(os.umask(0)))\n"
        )
    )
    result = subprocess.run(
        [sys.executable, "-c", script],
        capture_output=True,
        text=True,
        check=False,
        env={"DARKROOM_DATA": str(tmp_path / "data"), "PATH": "/usr/bin:/bin"},
    )
    assert "umask 0o77\n" in result.stdout, result.stderr
