"""`darkroom commands`: prints Discord's commands as registered, counted against its limits. Needs no token."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Mapping, Sequence
from typing import Any

KINDS = {1: "/", 2: "member: ", 3: "message: "}
NESTED = (1, 2)  # types of options that are subcommands


def report(*, as_json: bool) -> tuple[str, bool]:
    """Return the text to print, and whether everything is within its limit."""
    from bot.chat.commands.counted import rows
    from bot.chat.commands.registered import registered

    tree = asyncio.run(registered())
    counted = rows(tree)
    passed = all(row.passed for row in counted)
    if as_json:
        found = {"commands": tree, "rows": [row.plain() for row in counted]}
        return json.dumps(found, indent=1, ensure_ascii=False), passed
    lines = [line for command in tree for line in _lines(command, KINDS[command.get("type", 1)])]
    lines += [
        f"{'ok  ' if row.passed else 'MISS'} {row.name}: {row.figure} {row.unit} (at most {row.most})"
        for row in counted
    ]
    return "\n".join(lines), passed


def _lines(command: Mapping[str, Any], before: str) -> Sequence[str]:
    """Return one line for each command or subcommand, with its options."""
    options = command.get("options") or []
    inner = [option for option in options if option["type"] in NESTED]
    name = f"{before}{command['name']}"
    if inner:
        return [line for option in inner for line in _lines(option, f"{name} ")]
    given = " ".join(one["name"] if one.get("required") else f"[{one['name']}]" for one in options)
    about = f"  {command['description']}" if command.get("description") else ""
    return [f"{name} {given}".rstrip() + about]
