"""Writes what the documentation repeats of the code: `python -m tools.write_docs`; with `--check` it only compares.

A page is made whole, or has blocks between `<!-- begin NAME -->` and `<!-- end NAME -->`; what stands around them is
written by hand.
"""

from __future__ import annotations

import itertools
import re
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType

from pydantic import BaseModel, SecretStr

from bot.app.settings import list_tables
from bot.domain.dto import Member
from bot.policy.permissions import ACTIONS, PERMISSIONS, ROLE_TITLES, ROLES, JobRef, Role, forbidden_reason
from bot.policy.rules.catalogue import DEFAULT_RULES, MEMBER_SCOPES, SETTINGS, Setting, SettingKind
from bot.policy.rules.presets import PRESETS
from bot.policy.rules.value_parser import format_setting_value
from engine.contract.fields import SAMPLER_ROWS
from engine.process.setting_sources import FILE_NAME, FILE_VARIABLE, list_secrets, list_settings, name_variable
from engine.process.settings import BotSettings, SharedSettings, WorkerSettings

ROOT = Path(__file__).parents[1]
HERE = "discord:1"
SETTING_GROUPS: Mapping[str, type[BaseModel]] = MappingProxyType(
    {"Bot and worker": SharedSettings, "Bot": BotSettings, "Worker": WorkerSettings}
)
VALUES: Mapping[SettingKind, str] = MappingProxyType(
    {
        "size": "`512x512` or `512`",
        "names": "names, `all`, `none`",
        "switch": "on, off",
        "text": "a reason",
        "texts": "a list",
        "seconds": "seconds",
        "channel": "a channel",
    }
)
SETTINGS_INTRO = f"""\
# Settings of the operator

Everything here has a default: `darkroom up` needs no setting. `darkroom up --help` lists options that override some.

**Environment variables** are named in the tables. Lists are separated by commas. An empty variable counts as none.

**The file `{FILE_NAME}`** lies in the data folder, or where `{FILE_VARIABLE}` says. Only in the latter case it may
name the data folder. Bot and worker read the same file. A variable overrides a line of it, and an option both.

```toml
public_url = "https://pictures.example"
keep_days = 90
memory = "12GB"
```

A file that holds a secret must be closed to others: mode 600, or 640 with a group of its own. Secrets are marked
with 🔑. A wrong name or value is refused before anything starts, in one sentence with the nearest name.

What admins set for their servers is on [another page](limits.md).
"""


def list_groups() -> Iterator[tuple[str, str, type[BaseModel], list[str]]]:
    """Yield title, table, class and names of each group of settings."""
    shared = list_settings(SharedSettings)
    for title, kind in SETTING_GROUPS.items():
        own = [name for name in list_settings(kind) if kind is SharedSettings or name not in shared]
        yield title, "", kind, own
    for table, kind in list_tables():
        if table:
            yield table.replace("_", " ").capitalize(), table, kind, list(list_settings(kind))


def render_settings() -> str:
    """Return docs/settings.md."""
    parts = [SETTINGS_INTRO]
    for title, table, kind, names in list_groups():
        place = f" In the file they are in the table `[{table}]`." if table else ""
        rows = [
            f"| `{name}` | `{name_variable(name, table)}` | {_format_default(kind, name)} "
            f"| {'🔑 ' if name in list_secrets(kind) else ''}{kind.model_fields[name].description} |"
            for name in names
        ]
        head = f"| in the file | variable | default | {title.lower() if table else 'what it sets'} |\n|---|---|---|---|"
        parts.append("\n".join([f"## {title}\n", *([place.strip() + "\n"] if place else []), head, *rows, ""]))
    return "\n".join(parts)


def render_environment() -> str:
    """Return .env.example."""
    lines = ["# Every setting with its default, for the environment of a service. Made by tools/write_docs.py."]
    for title, table, kind, names in list_groups():
        lines += ["", f"# {title}"]
        for name in names:
            description = str(kind.model_fields[name].description)
            default = _format_default(kind, name).strip("`")
            lines += [f"# {description}", f"# {name_variable(name, table)}={default}"]
    return "\n".join([*lines, ""])


def _format_default(kind: type[BaseModel], name: str) -> str:
    """Return a default as the environment has it; empty where there is none."""
    default = kind.model_fields[name].default
    if kind.model_fields[name].default_factory or isinstance(default, SecretStr) or default in (None, "", ()):
        return ""
    if isinstance(default, bool):
        return f"`{int(default)}`"
    return f"`{default:.15g}`" if isinstance(default, float) else f"`{default}`"


def render_permissions() -> str:
    """Return the table of docs/access.md."""
    names = {**ROLE_TITLES, "member": "everyone"}

    def cell(least_role: Role | None) -> str:
        return "–" if least_role is None else names[least_role].partition(" (")[0]

    columns = (
        "may",
        "nothing in particular, or an own job",
        "another's job in this server",
        "another's private job",
        "a job of another server",
        "in a conversation with the bot",
        "scope of a key",
    )
    lines = [f"| {' | '.join(columns)} |", "|---" * len(columns) + "|"]
    for permission in PERMISSIONS.values():
        elsewhere = "this bot's operator" if permission.operator_elsewhere else "–"
        others = [cell(permission.others_role), cell(permission.private_role), elsewhere]
        cells = [
            permission.phrase,
            cell(permission.own_role),
            *(others if permission.concerns_jobs else ["", "", ""]),
            "yes" if permission.in_direct_messages else "no",
            (permission.scope or "–") + (", without the role" if permission.scope_suffices else ""),
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def render_refusals() -> str:
    """Return every sentence that refuses an action, with “the author” in place of a name."""
    sentences = set[str]()
    flags: dict[str, dict[str, bool]] = {role: {f"is_{role}": True} for role in ROLES if role != "member"}
    for action, role, direct in itertools.product(ACTIONS, ROLES, (False, True)):
        place = "discord:dm:1" if direct else HERE
        member = replace(Member("discord:1", "Bob", place), **flags.get(role, {}))
        subjects: list[JobRef | None] = [None]
        if PERMISSIONS[action].concerns_jobs:
            subjects = [
                JobRef(author, "*the author*", guild, is_private)
                for author in (member.id, "discord:2")
                for guild in (place, "discord:2")
                for is_private in (False, True)
            ]
        reasons = (forbidden_reason(action, member, subject, in_direct_message=direct) for subject in subjects)
        sentences |= {reason for reason in reasons if reason}
    return "\n".join(f"- {sentence}" for sentence in sorted(sentences))


def render_limits() -> str:
    """Return the table of docs/limits.md."""
    lines = ["| setting | value | without a rule | for | what it limits |", "|---" * 5 + "|"]
    words = {"guild": "server", "operator": "ceiling"}
    for name, setting in SETTINGS.items():
        scopes = [words.get(scope, scope) for scope in setting.scopes]
        default = DEFAULT_RULES.get(name)
        default_text = "no limit" if default is None else format_setting_value(setting, default)
        cells = [
            f"`{name}`",
            _format_values(setting),
            "–" if default in ("", ()) else default_text,
            "all" if setting.scopes == MEMBER_SCOPES else ", ".join(scopes),
            f"{setting.description}{f' ({setting.details})' if setting.details else ''}",
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def _format_values(setting: Setting) -> str:
    """Return how an admin types a value."""
    match setting.kind:
        case "number":
            return f"{setting.minimum}–{setting.maximum}"
        case "cost":
            return "`30 min`, `2 h`, `1800`, `no limit`"
        case "choices":
            return f"{', '.join(setting.choices)}, `all`, `none`"
        case "choice":
            return ", ".join(setting.choices)
        case _:
            return VALUES[setting.kind]


def render_presets() -> str:
    """Return the presets of docs/limits.md."""
    rows = [
        f"| {preset.name} | {', '.join(f'{name} {text}' for name, text in preset.values.items())} |"
        for preset in PRESETS.values()
    ]
    return "\n".join(["| preset | sets |", "|---|---|", *rows])


def render_samplers() -> str:
    """Return the table of docs/prompts.md."""
    lines = ["| `--sampler` | title | in short | models | changes while a picture develops |", "|---" * 5 + "|"]
    for row in SAMPLER_ROWS:
        kinds = [kind for kind, scheduler in (("noise", row.noise), ("flow", row.flow)) if scheduler]
        steers = "no" if row.pipeline_reason else "yes"
        lines.append(f"| `{row.name}` | {row.title} | {row.advice} | {' and '.join(kinds) or 'all'} | {steers} |")
    return "\n".join(lines)


PAGES: Mapping[str, Callable[[], str]] = MappingProxyType(
    {"docs/settings.md": render_settings, ".env.example": render_environment}
)
BLOCKS: Mapping[str, Mapping[str, Callable[[], str]]] = MappingProxyType(
    {
        "docs/access.md": {"permissions": render_permissions, "refusals": render_refusals},
        "docs/limits.md": {"presets": render_presets, "limits": render_limits},
        "docs/prompts.md": {"samplers": render_samplers},
    }
)


def render_all() -> dict[str, str]:
    """Return the text of each page as the code has it now."""
    texts = {page: render() for page, render in PAGES.items()}
    for page, blocks in BLOCKS.items():
        texts[page] = (ROOT / page).read_text(encoding="utf-8")
        for name, render in blocks.items():
            pattern = re.compile(rf"(<!-- begin {name} -->\n\n).*?(\n\n<!-- end {name} -->)", re.DOTALL)
            block = render()
            texts[page], count = pattern.subn(lambda match, block=block: match[1] + block + match[2], texts[page])
            assert count == 1, f"{page} needs one block {name}"
    return texts


def find_outdated() -> list[str]:
    """Return the pages that differ from the code."""
    texts = render_all()
    paths = {page: ROOT / page for page in texts}
    return [page for page, path in paths.items() if not path.is_file() or path.read_text("utf-8") != texts[page]]


def main(arguments: list[str]) -> int:
    outdated = find_outdated()
    if "--check" in arguments:
        for page in outdated:
            print(f"{page} differs from the code: run `make write-docs`.")
        return int(bool(outdated))
    texts = render_all()
    for page in outdated:
        (ROOT / page).write_text(texts[page], encoding="utf-8")
        print(f"written: {page}")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
