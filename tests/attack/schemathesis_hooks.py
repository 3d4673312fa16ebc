"""What schemathesis does before each request. It loads this file itself."""

from __future__ import annotations

import uuid
from typing import Any

import schemathesis

KEY_HEADER, MAX_LENGTH = "Idempotency-Key", 200


@schemathesis.hook
def before_call(context: schemathesis.HookContext, case: schemathesis.Case, **_: Any) -> None:
    """Makes each valid Idempotency-Key a new one: with one that was sent before, a request is not looked at."""
    key = case.headers.get(KEY_HEADER) if case.headers else None
    if key and key.isascii() and key.isprintable() and len(key) <= MAX_LENGTH:
        case.headers[KEY_HEADER] = f"{uuid.uuid4()}{key}"[:MAX_LENGTH]
