"""What schemathesis does before each request. It loads this file itself."""

from __future__ import annotations

import uuid
from typing import Any, cast

import schemathesis

KEY_HEADER = "Idempotency-Key"
MAX_LENGTH = 200


def before_call(context: object, case: Any, **kwargs: object) -> None:
    """Makes each valid Idempotency-Key a new one: with one that was sent before, a request is not looked at."""
    headers = cast("dict[str, str]", case.headers or {})
    key = headers.get(KEY_HEADER, "")
    if key and key.isascii() and key.isprintable() and len(key) <= MAX_LENGTH:
        headers[KEY_HEADER] = f"{uuid.uuid4()}{key}"[:MAX_LENGTH]


cast(Any, schemathesis).hook(before_call)
