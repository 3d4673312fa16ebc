"""The work of `darkroom worker-key`: makes, lists and revokes the keys of workers on other machines.

The running broker of this data folder applies a change at once.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from bot.cli.broker import FOLDER, listening
from bot.cli.up import HERE
from bot.refused import Refused
from engine.bus import rights
from engine.bus.enrolment import Enrolment
from engine.bus.keys import FILE, BadKey, WorkerKey

if TYPE_CHECKING:
    from bot.config import Settings
    from engine.bus.server import Listening

AT_ONCE = "The running broker knows it already."
ALONE = "It listens on this machine only; set DARKROOM_NATS_LISTEN to change that (docs/workers.md)."
LATER = "The broker is not running here; it reads the keys when it starts."


def make(settings: Settings, name: str, pools: str, *, as_json: bool) -> str:
    """Make a key; return it as text for the person who starts that worker. Raise `Refused`."""
    if name == HERE:
        raise Refused(f"{HERE} is this machine's own worker, which needs no key: choose another name.", 400)
    wanted = [one.strip() for one in pools.split(",") if one.strip()]
    try:
        made, seed, taken = _enrolment(settings).enrol(name, wanted, datetime.now(UTC).date().isoformat())
    except (BadKey, OSError) as error:
        raise Refused(str(error), 400) from error
    url, (owner, account) = address(settings), rights.account(made.public, made.name, made.pools)
    user = rights.user(made.public, made.name, made.pools)
    command = f"DARKROOM_NATS_KEY={seed} {started(made, url)}"
    if as_json:
        own = {"user": user, "account": {owner: account}, "exports": rights.exports()}
        return _written(_plain(made) | {"seed": seed, "command": command, **own, "taken": taken})
    lines = [
        f"The key of {made.name}, for {_pools(made)}. It is shown only now, and stored nowhere:", "", f"  {seed}", "",
        "On the machine of that worker:", "", f"  {command}", "",
    ]  # fmt: skip
    if settings.nats:
        lines += [
            f"{settings.nats} is not our own broker: add this to the accounts of its configuration, and reload that",
            "twice (nats-server --signal reload): a new account works from the second time on.",
            "",
            f"  {json.dumps(owner)} {json.dumps(account)}",
            "",
            f"Its account {rights.HOUSE}, with the streams and the bot's user, needs this line (docs/workers.md):",
            "",
            f"  exports: {json.dumps(rights.exports())}",
        ]
    else:
        lines += [AT_ONCE if taken else LATER, *([ALONE] if _listening(settings).alone else [])]
    return "\n".join(lines)


def revoke(settings: Settings, name: str, *, as_json: bool) -> str:
    """Revoke a key; return what happened. Raise `Refused` if there is no such key."""
    try:
        taken = _enrolment(settings).revoke(name)
    except (BadKey, OSError) as error:
        raise Refused(str(error), 404) from error
    if as_json:
        return _written({"name": name, "revoked": True, "taken": taken})
    if settings.nats:
        return f"The key of {name} is forgotten here: take its account out of {settings.nats}, too."
    closed = "The running broker has closed its connection; its jobs continue elsewhere."
    return f"The key of {name} is revoked. {closed if taken else LATER}"


def listed(settings: Settings, *, as_json: bool) -> str:
    """List every key without its secret half."""
    try:
        known = _enrolment(settings).known()
    except BadKey as error:
        raise Refused(str(error), 400) from error
    if as_json:
        return _written([_plain(one) for one in known])
    return "\n".join(f"{one.name:<24} {one.made}  {','.join(one.pools)}" for one in known) or "No worker has a key."


def address(settings: Settings) -> str:
    """Return the broker's address for such a worker, with HOST and PORT for what we do not know."""
    if settings.nats:
        return settings.nats
    at = _listening(settings)
    host = "HOST" if at.alone or at.host != at.near else f"[{at.host}]" if ":" in at.host else at.host
    return f"{'tls' if at.certificate else 'nats'}://{host}:{'PORT' if at.alone else at.port}"


def _listening(settings: Settings) -> Listening:
    """Return where the running broker listens, whatever this shell's environment says; else where the next one will."""
    return _enrolment(settings).listens() or listening(settings)


def started(key: WorkerKey, url: str) -> str:
    """Return the command line of that worker, without its secret."""
    pools = "" if key.pools == ("default",) else "".join(f" --pool {pool}" for pool in key.pools)
    return f"darkroom engine --nats {url} --name {key.name}{pools}"


def _enrolment(settings: Settings) -> Enrolment:
    return Enrolment(settings.data / FILE, settings.data / FOLDER)


def _pools(key: WorkerKey) -> str:
    return f"the {'pool' if len(key.pools) == 1 else 'pools'} {', '.join(key.pools)}"


def _plain(key: WorkerKey) -> dict[str, Any]:
    return {"name": key.name, "public": key.public, "pools": list(key.pools), "made": key.made}


def _written(value: Sequence[Any] | dict[str, Any]) -> str:
    return json.dumps(value, indent=2)
