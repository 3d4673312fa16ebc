"""Features: each folder of `bot.features` and `bot.apis` adds one thing; deleting the folder takes it out again.

A folder declares in `FEATURE` what it adds to the core's tables. Its other parts are modules that the core finds by
name and loads where it needs them, so the shell starts without SQL and HTTP:

- `store`: its SQL tables and its SQL, with functions that the core calls inside a transaction (`load_hooks`).
- `settings`: `SETTINGS`, the class of what its operator sets (`bot.app.settings`).
- `service`: `open_service`, an async context manager over the wired application that yields a `RunningFeature`.
- `discord`: its commands, lasting buttons and more (`bot.discord.declarations`). `cli`:
  `COMMANDS`, its shell commands by name, with `CONTEXT_SETTINGS`.
- `web`: `ROUTES`, and what its addresses need (`bot.web.routes`).

The core names no feature, and no feature imports another.
"""

from __future__ import annotations

import pkgutil
from abc import ABC, abstractmethod
from collections.abc import Callable, Coroutine, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from importlib import import_module
from importlib.util import find_spec
from types import ModuleType
from typing import TYPE_CHECKING, Any, Literal, TypeVar

from bot.domain.permission import Permission, Price

if TYPE_CHECKING:
    from bot.domain.dto import Member

K = TypeVar("K")
V = TypeVar("V")
PACKAGES = ("bot.features", "bot.apis")
Part = Literal["store", "settings", "service", "discord", "web", "cli"]


@dataclass(frozen=True)
class MemberLimit:
    """A number that rules limit for members, as the core's settings do (`bot.policy.rules.rule`).

    `title`: on cards. `description`: what is limited, for sentences; `details`: what docs/limits.md adds. `default`:
    where no rule says another.
    """

    name: str
    title: str
    description: str
    unit: str
    minimum: int
    maximum: int
    default: int
    details: str = ""


@dataclass(frozen=True)
class Feature:
    """What a feature adds to the core's tables.

    `title`: over its operations in the API's description. `permissions`, `prices`: rows for its own actions.
    `secret_tables`: SQL tables that a backup leaves out, each before those that it refers to. `key_scopes`: what API
    keys can be made for besides the core's scopes. `limitable_commands`: actions that admins may forbid.
    `member_limits`: settings of its own for rules.
    """

    title: str
    permissions: Mapping[str, Permission] = field(default_factory=dict[str, Permission])
    prices: Mapping[str, Price] = field(default_factory=dict[str, Price])
    secret_tables: tuple[str, ...] = ()
    key_scopes: tuple[str, ...] = ()
    limitable_commands: tuple[str, ...] = ()
    member_limits: tuple[MemberLimit, ...] = ()


@dataclass(frozen=True)
class RunningFeature:
    """A feature over the wired application: the service that front ends get, and its tasks by name."""

    service: object
    tasks: Mapping[str, Callable[[], Coroutine[Any, Any, None]]] = field(default_factory=dict[str, Any])


class PromptSuggester(ABC):
    """A service that suggests prompts for a picture. Whoever wants one asks for this class (`Services.list_all`)."""

    @abstractmethod
    async def list_prompts(self, picture: bytes, member: Member, model: str) -> Sequence[str]:
        """Return prompts that fit a picture file, the best first. Raises `UserError`."""


class SideWork(ABC):
    """A service that works for members beside their jobs: `/cancel all` ends that too."""

    @abstractmethod
    def cancel(self, member: str) -> str:
        """Cancel the member's work. Return a sentence about it; empty if there is none."""


@cache
def load_features() -> Mapping[str, Feature]:
    """Return every feature by the name of its folder."""
    return {name: import_module(path).FEATURE for name, path in _find_packages().items()}


@cache
def load_parts(part: Part) -> Mapping[str, ModuleType]:
    """Return the modules of this name by their feature, of those features that have one."""
    paths = {name: f"{package}.{part}" for name, package in _find_packages().items()}
    return {name: import_module(path) for name, path in paths.items() if find_spec(path) is not None}


def _find_packages() -> dict[str, str]:
    """Return the package of each feature by the name of its folder."""
    folders = [
        {each.name: f"{package}.{each.name}" for each in pkgutil.iter_modules(import_module(package).__path__)}
        for package in PACKAGES
    ]
    return merge_rows(*folders)


def load_hooks(name: str) -> list[Callable[..., Any]]:
    """Return the functions of this name in the features' `store` modules."""
    return [getattr(module, name) for module in load_parts("store").values() if hasattr(module, name)]


def merge_rows(core: Mapping[K, V], *added: Mapping[K, V]) -> dict[K, V]:
    """Return the core's rows and those of features. Raises ValueError where two have one key: none replaces another."""
    rows = dict(core)
    for part in added:
        if both := rows.keys() & part.keys():
            raise ValueError(f"two rows for {', '.join(map(str, both))}")
        rows |= part
    return rows
