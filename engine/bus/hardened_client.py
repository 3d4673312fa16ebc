"""NATS client hardened against malformed messages: they reach the decoder, which dead-letters them.

For nats-py 2.16.0. Its read loop ends silently when a message raises: a subject or inbox that is not UTF-8, or
truncated headers. A subject with a vertical tab, a letter to the server and a space to the library, ends the
connection. The stream would send such a message again for ever, so it must reach the decoder.

Overrides private methods of the library, which a later version may rename.
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

REPLY_HEADER = "Nats-Stream"  # header of a broker reply: the stream that it comes from
STATUS_HEADERS = ("Status", "Description")
FLUSH_SECONDS = 10
RETRY_PAUSES = (0.02, 0.1)  # seconds before a request without responders is sent again
SUBJECT_CHARS = 512  # far more than any of ours; the server closes a connection that sends a 4 KB line
_SPACES = str.maketrans(dict.fromkeys("\v\f", "\N{REPLACEMENT CHARACTER}"))  # which no valid subject contains
_NAME = rb"([^ \t\r\n]+)"  # the server ends a name only at these
_HEAD = rb"[ \t]+" + _NAME + rb"[ \t]+" + _NAME + rb"[ \t]+(" + _NAME + rb"[ \t]+)?"


def has_reply_header(block: bytes) -> bool:
    """Whether this header block belongs to a broker reply.

    The broker appends its headers to the message's own. An open or empty line in these could hide them from a line
    parser, so the whole block is searched.
    """
    return f"{REPLY_HEADER}:".lower().encode() in block.lower()


class HardenedClient(Client):
    """A NATS client whose read loop survives malformed messages."""

    async def _process_headers(self, headers: bytes | None) -> dict[str, str] | None:
        """Parse headers; keep the readable lines of a malformed block.

        A broker reply has no status: one that stands in it was written by the author of the stored message.
        """
        if not headers:
            return None
        block = bytes(headers)
        try:
            parsed = await super()._process_headers(block)
        except (ValueError, IndexError) as error:
            log.warning("broker: a message's headers cannot be read: %s", error)
            parsed = self._parse_header_lines(block.partition(b"\r\n")[2])
        if has_reply_header(block):
            parsed = {name: value for name, value in (parsed or {}).items() if name not in STATUS_HEADERS}
            parsed.setdefault(REPLY_HEADER, "")
        return parsed

    async def flush(self, timeout: int = FLUSH_SECONDS) -> None:
        """Flush pending bytes first: the base class sends its ping ahead of them, so the pong would not cover them."""
        if self.is_connected and self._transport is not None and self._pending:
            self._transport.writelines(self._pending[:])
            self._pending = []
            self._pending_data_size = 0
        await super().flush(timeout)

    async def request(
        self,
        subject: str,
        payload: bytes = b"",
        timeout: float = 0.5,
        old_style: bool = False,
        headers: dict[str, Any] | None = None,
    ) -> Msg:
        """Send a request again where nobody responds and we have our own inbox.

        While the server reloads its configuration, the route from a worker's account to the main account is cut for an
        instant.
        """
        for pause in RETRY_PAUSES if self._inbox_prefix.count(b".") else ():
            try:
                return await super().request(subject, payload, timeout, old_style, headers)
            except NoRespondersError:
                await asyncio.sleep(pause)
        return await super().request(subject, payload, timeout, old_style, headers)

    def _build_message(
        self, sid: int, subject: bytes, reply: bytes, data: bytes, headers: dict[str, str] | None
    ) -> Msg:
        """Build a message with a publishable subject: its dead letter's subject contains it."""
        return self.msg_class(
            subject=_to_readable(subject), reply=_to_readable(reply), data=data, headers=headers, _client=self, _sid=sid
        )


def _to_readable(name: bytes) -> str:
    return name.decode(errors="replace").translate(_SPACES)[:SUBJECT_CHARS]


def _patch_parser() -> None:
    """Replace the parser's module-level patterns: it has no other hook."""
    parser.MSG_RE = re.compile(rb"\AMSG" + _HEAD + rb"(\d+)\r\n")
    parser.HMSG_RE = re.compile(rb"\AHMSG" + _HEAD + rb"(\d+)[ \t]+(\d+)\r\n")


_patch_parser()
