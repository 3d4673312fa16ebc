"""A client that no message can make deaf: what others wrote reaches whoever reads it, however odd its first lines are.

For nats-py 2.16.0. Its read loop ends, and the connection still looks well, as soon as something in a message raises:
a subject or an inbox that is no UTF-8, a block of headers that is cut short. A subject with a vertical tab, which the
server takes for a letter and the library for a space, ends the connection. The stream keeps such a message and would
send it again for ever, so it must get as far as the decoder, which lays it aside like any other bad one.

Knows the library's private methods, which a later version may name otherwise; nothing of what is said.
"""

from __future__ import annotations

import asyncio
import logging
import re
from typing import Any

from nats.aio.client import Client
from nats.aio.msg import Msg
from nats.errors import NoRespondersError
from nats.protocol import parser

log = logging.getLogger(__name__)

ANSWERED = "Nats-Stream"  # the header by which an answer of the broker says whence it comes
STATUS = ("Status", "Description")
FLUSH_SECONDS = 10
PAUSES = (0.02, 0.1)  # seconds, until a request that nobody heard is said again
SUBJECT_CHARS = 512  # far more than any of ours; the server closes the connection of whoever sends a line of 4 KB
_SPACES = str.maketrans(dict.fromkeys("\v\f", "\N{REPLACEMENT CHARACTER}"))  # else no subject that may be sent
_NAME = rb"([^ \t\r\n]+)"  # the server ends a name at these alone
_HEAD = rb"[ \t]+" + _NAME + rb"[ \t]+" + _NAME + rb"[ \t]+(" + _NAME + rb"[ \t]+)?"


def answered(block: bytes) -> bool:
    """Whether this block of headers is an answer's. The broker adds them behind what the message had, as it was: an
    open line, or an empty one in the middle, could hide them from whoever reads line by line.
    """
    return f"{ANSWERED}:".lower().encode() in block.lower()


class Hearing(Client):
    """As its base, and never deaf."""

    async def _process_headers(self, headers: bytes | None) -> dict[str, str] | None:
        """Of a block that the library cannot read, the lines that can be read. An answer has no status: the one that
        stands in it is from whoever wrote the message that was asked for.
        """
        if not headers:
            return None
        block = bytes(headers)
        try:
            found = await super()._process_headers(block)
        except (ValueError, IndexError) as error:
            log.warning("broker: a message's headers cannot be read: %s", error)
            found = self._parse_header_lines(block.partition(b"\r\n")[2])
        if answered(block):
            found = {name: value for name, value in (found or {}).items() if name not in STATUS}
            found.setdefault(ANSWERED, "")
        return found

    async def flush(self, timeout: int = FLUSH_SECONDS) -> None:
        """As its base, whose ping overtakes what waits to be sent: then the answer would say nothing of that."""
        if self.is_connected and self._transport is not None and self._pending:
            self._transport.writelines(self._pending[:])
            self._pending, self._pending_data_size = [], 0
        await super().flush(timeout)

    async def request(
        self, subject: str, payload: bytes = b"", timeout: float = 0.5, old_style: bool = False,
        headers: dict[str, Any] | None = None,
    ) -> Msg:  # fmt: skip
        """As its base, but asks again where nobody was there to answer: while the server reads its configuration anew,
        the way from the account of a worker, who has an inbox of its own, to the house's is cut for an instant.
        """
        for pause in PAUSES if self._inbox_prefix.count(b".") else ():
            try:
                return await super().request(subject, payload, timeout, old_style, headers)
            except NoRespondersError:
                await asyncio.sleep(pause)
        return await super().request(subject, payload, timeout, old_style, headers)

    def _build_message(
        self, sid: int, subject: bytes, reply: bytes, data: bytes, headers: dict[str, str] | None
    ) -> Msg:  # fmt: skip
        """Under a subject that may be sent: a dead letter has it in its own."""
        return self.msg_class(
            subject=_readable(subject), reply=_readable(reply), data=data, headers=headers, _client=self, _sid=sid
        )


def _readable(name: bytes) -> str:
    return name.decode(errors="replace").translate(_SPACES)[:SUBJECT_CHARS]


def _split_as_the_server_does() -> None:
    """The parser has its patterns in its module, and there is no other way to give it better ones."""
    parser.MSG_RE = re.compile(rb"\AMSG" + _HEAD + rb"(\d+)\r\n")
    parser.HMSG_RE = re.compile(rb"\AHMSG" + _HEAD + rb"(\d+)[ \t]+(\d+)\r\n")


_split_as_the_server_does()
