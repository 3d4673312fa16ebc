"""A published report describes errors without the folders of the machine."""

from __future__ import annotations

import pytest

from benchmarks.report.figure_row import describe_error


@pytest.mark.parametrize(
    ("error", "text"),
    [
        (
            FileNotFoundError(2, "No such file or directory", "/home/ada lovelace/it's/unet.bin"),
            'FileNotFoundError: [Errno 2] No such file or directory: "<path>"',
        ),
        (
            OSError(18, "Cross-device link", "/a/b", None, "/c d/e"),
            "OSError: [Errno 18] Cross-device link: '<path>' -> '<path>'",
        ),
        (
            RuntimeError("no config in /home/ada/x, nor in ~/y:\nsee file:///tmp/z."),
            "RuntimeError: no config in <path>, nor in <path>: see <path>.",
        ),
        (RuntimeError(r"C:\Users\ada\model is broken"), "RuntimeError: <path> is broken"),
        (RuntimeError("1/2 of 3 / 4, https://example.org/a"), "RuntimeError: 1/2 of 3 / 4, https://example.org/a"),
        (
            RuntimeError("g++ -I/home/ada/.venv/include '-L/home/ada/lib' -O2"),
            "RuntimeError: g++ -I<path> '-L<path>' -O2",
        ),
        (ValueError(), "ValueError"),
    ],
)
def test_an_error_names_no_path(error: Exception, text: str) -> None:
    assert describe_error(error) == text


def test_a_long_error_is_cut() -> None:
    assert len(describe_error(RuntimeError("x" * 999))) == 300
