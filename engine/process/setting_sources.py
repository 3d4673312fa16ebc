"""Where operators' settings come from: the command line, else environment variables, else the file `darkroom.toml`.

A setting is a field with a description. `engine.process.settings` declares those of bot and worker; a feature declares
its own, and has a table of its name in the file. A wrong name or value gives one sentence, before anything starts.
"""

from __future__ import annotations

import difflib
import os
import stat
import tomllib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar, get_args

from pydantic import BaseModel, SecretStr, ValidationError

PREFIX = "DARKROOM_"
BARE_NAMES = ("discord_token", "database_url")  # the variables that hosting services set are called so
FILE_NAME = "darkroom.toml"
FILE_VARIABLE = "DARKROOM_CONFIG"
LIKENESS = 0.8  # from here on a variable's name is taken for a slip; other programs may have any other
OPTIONS = {  # those that the command line calls by another name
    "worker_name": "--name",
    "nats_token": "--token-file",
    "nats_key": "--key-file",
    "backend_size": "--size",
    "models": "--model",
    "pools": "--pool",
}
Kind = TypeVar("Kind", bound=BaseModel)


class SettingError(ValueError):
    """A setting is wrong; the text names it and says what is wrong with it."""


@dataclass(frozen=True)
class SettingsFile:
    """The values of `darkroom.toml`: of the core's settings, and of each feature's in its table."""

    path: Path = Path(FILE_NAME)
    values: Mapping[str, Any] = field(default_factory=dict[str, Any])
    tables: Mapping[str, Mapping[str, Any]] = field(default_factory=dict[str, Mapping[str, Any]])


def list_settings(kind: type[BaseModel]) -> tuple[str, ...]:
    """Return the names of the settings that a class declares."""
    return tuple(name for name, declared in kind.model_fields.items() if declared.description)


def list_secrets(kind: type[BaseModel]) -> tuple[str, ...]:
    """Return those that no log and no stranger may see."""
    return tuple(name for name in list_settings(kind) if _holds_secret(kind.model_fields[name].annotation))


def _holds_secret(annotation: object) -> bool:
    return annotation is SecretStr or any(map(_holds_secret, get_args(annotation)))


def name_variable(name: str, table: str = "") -> str:
    """Return the environment variable of a setting."""
    return name.upper() if name in BARE_NAMES else f"{PREFIX}{table and f'{table}_'}{name}".upper()


def read_file(data: Path, kinds: Sequence[type[BaseModel]]) -> SettingsFile:
    """Read the file that `DARKROOM_CONFIG` names, else the one of the data folder, if any; check the core's names.

    `kinds`: the classes of the core's settings. Raises `SettingError`.
    """
    named_path = os.environ.get(FILE_VARIABLE, "")
    path = (Path(named_path) if named_path else data / FILE_NAME).expanduser().absolute()
    try:
        with path.open("rb") as opened:
            is_public = bool(stat.S_IMODE(os.fstat(opened.fileno()).st_mode) & 0o007)
            entries = tomllib.load(opened)
    except FileNotFoundError:
        if named_path:
            raise SettingError(f"{FILE_VARIABLE} names {path}: there is no such file.") from None
        return SettingsFile(path)
    except (OSError, tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        problem = error.strerror if isinstance(error, OSError) else error
        raise SettingError(f"{path} cannot be read: {problem}.") from None
    tables: dict[str, dict[str, Any]] = {name: value for name, value in entries.items() if isinstance(value, dict)}
    values = {name: value for name, value in entries.items() if name not in tables}
    check_names(values, [name for kind in kinds for name in list_settings(kind)], path)
    if secrets := [name for kind in kinds for name in list_secrets(kind) if name in values and is_public]:
        raise SettingError(f"{path} holds {secrets[0]}, and everybody can read it: chmod 600 {path}.")
    if "data" in values and not named_path:
        raise SettingError(f"{path} lies in the data folder, so it cannot name another one: use DARKROOM_DATA.")
    return SettingsFile(path, values, tables)


def check_names(found: Iterable[str], names: Iterable[str], place: Path | str) -> None:
    """Raise `SettingError` for the first name that is none, with the nearest one."""
    known = {name.lower(): name for name in names}
    for name in found:
        if name not in known.values():
            nearest = difflib.get_close_matches(name.lower().removeprefix(PREFIX.lower()), known, 1, 0.0)
            hint = f"; the nearest is {known[nearest[0]]}" if nearest else ""
            raise SettingError(f"{place}: there is no setting “{name}”{hint}.")


def check_variables(variables: Iterable[str]) -> None:
    """Raise `SettingError` for a variable of the environment that is none of these, but nearly one."""
    known = {name.removeprefix(PREFIX): name for name in (*variables, FILE_VARIABLE)}
    for name in os.environ:
        if not name.startswith(PREFIX) or name in known.values():
            continue
        if nearest := difflib.get_close_matches(name.removeprefix(PREFIX), known, 1, LIKENESS):
            raise SettingError(f"There is no setting {name}; the nearest is {known[nearest[0]]}.")


def load(kind: type[Kind], arguments: Mapping[str, Any], file: SettingsFile, table: str = "") -> Kind:
    """Return the settings of a class. `arguments`: by name, from the command line; they win. Raises `SettingError`."""
    places = dict[str, str]()
    values = dict[str, Any]()
    entries = file.tables.get(table, {}) if table else file.values
    for name in list_settings(kind):
        if entries.get(name, "") != "":
            values[name] = entries[name]
            places[name] = f"{name} in {file.path}"
        if text := os.environ.get(name_variable(name, table)):
            values[name] = text
            places[name] = name_variable(name, table)
    try:
        return kind(**values | dict(arguments))
    except ValidationError as error:
        first = error.errors(include_input=False, include_url=False, include_context=False)[0]  # it may be a secret
    name = [part for part in first["loc"] if isinstance(part, str)][-1]
    option = OPTIONS.get(name, f"--{name.replace('_', '-')}")
    place = option if name in arguments else places.get(name, option)
    message = first["msg"].removeprefix("Value error, ")
    raise SettingError(f"{place} is not valid: {message[:1].lower()}{message[1:]}.")
