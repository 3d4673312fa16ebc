"""`darkroom commands`: prints Discord's commands as registered, counted against its limits. Needs no token."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Mapping, Sequence
from typing import Any

TYPE_PREFIXES = {1: "/", 2: "member: ", 3: "message: "}
SUBCOMMAND_TYPES = (1, 2)  # types of options that are subcommands


def check_commands(*, as_json: bool) -> tuple[str, bool]:
    """Return the text to print, and whether everything is within its limit."""
    from bot.discord.commands.command_limits import check_limits
    from bot.discord.commands.command_tree import build_payload

    tree = asyncio.run(build_payload())
    limit_rows = check_limits(tree)
    all_passed = all(row.is_within for row in limit_rows)
    if as_json:
        output = {"commands": tree, "rows": [row.to_json() for row in limit_rows]}
        return json.dumps(output, indent=1, ensure_ascii=False), all_passed
    lines = [line for command in tree for line in _format_command(command, TYPE_PREFIXES[command.get("type", 1)])]
    lines += [
        f"{'ok  ' if row.is_within else 'MISS'} {row.name}: {row.value} {row.unit} (at most {row.limit})"
        for row in limit_rows
    ]
    return "\n".join(lines), all_passed


def _format_command(command: Mapping[str, Any], prefix: str) -> Sequence[str]:
    """Return one line for each command or subcommand, with its options."""
    options: Sequence[Mapping[str, Any]] = command.get("options") or []
    subcommands = [option for option in options if option["type"] in SUBCOMMAND_TYPES]
    name = f"{prefix}{command['name']}"
    if subcommands:
        return [line for option in subcommands for line in _format_command(option, f"{name} ")]
    options_text = " ".join(option["name"] if option.get("required") else f"[{option['name']}]" for option in options)
    description = f"  {command['description']}" if command.get("description") else ""
    return [f"{name} {options_text}".rstrip() + description]
