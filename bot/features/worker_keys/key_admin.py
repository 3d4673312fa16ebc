"""The work of `darkroom worker-key`: makes, lists and revokes the keys of workers on other machines.

The running broker of this data folder applies a change at once.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from bot.cli.up.broker_setup import BROKER_FOLDER, parse_listen_address
from bot.cli.up.startup import LOCAL_WORKER
from bot.domain.errors import UserError
from engine.bus import worker_keys
from engine.bus.embedded_broker import WorkerKeyAdmin
from engine.bus.worker_keys import KEY_FILE, BadKey, WorkerKey

if TYPE_CHECKING:
    from bot.app.settings import Settings
    from engine.bus.embedded_broker import ListenAddress

APPLIED_NOTE = "The running broker knows it already."
LOCAL_ONLY_NOTE = "It listens on this machine only; set DARKROOM_NATS_LISTEN to change that (docs/workers.md)."
NOT_RUNNING_NOTE = "The broker is not running here; it reads the keys when it starts."


def create_key(settings: Settings, name: str, pools: str, *, as_json: bool) -> str:
    """Make a key; return it as text for the person who starts that worker. Raise `UserError`."""
    if name == LOCAL_WORKER:
        raise UserError(f"{LOCAL_WORKER} is this machine's own worker, which needs no key: choose another name.", 400)
    pool_names = [pool.strip() for pool in pools.split(",") if pool.strip()]
    try:
        key, seed, applied = _open_enrolment(settings).add_key(name, pool_names, datetime.now(UTC).date().isoformat())
    except (BadKey, OSError) as error:
        raise UserError(str(error), 400) from error
    url, (owner, account) = broker_address(settings), worker_keys.build_account(key.public, key.name, key.pools)
    user = worker_keys.build_user(key.public, key.name, key.pools)
    command = f"DARKROOM_NATS_KEY={seed} {worker_command(key, url)}"
    if as_json:
        account_fields = {"user": user, "account": {owner: account}, "exports": worker_keys.build_exports()}
        return _to_json(_to_dict(key) | {"seed": seed, "command": command, **account_fields, "taken": applied})
    instructions = [
        f"The key of {key.name}, for {_describe_pools(key)}. It is shown only now, and stored nowhere:",
        f"  {seed}",
        "On the machine of that worker:",
        f"  {command}",
    ]
    if settings.nats:
        account_note = (
            f"{settings.nats} is not our own broker: add this to the accounts of its configuration, and reload that\n"
            "twice (nats-server --signal reload): a new account works from the second time on."
        )
        exports_note = (
            f"Its account {worker_keys.MAIN_ACCOUNT}, with the streams and the bot's user, needs this line "
            "(docs/workers.md):"
        )
        instructions += [
            account_note,
            f"  {json.dumps(owner)} {json.dumps(account)}",
            exports_note,
            f"  exports: {json.dumps(worker_keys.build_exports())}",
        ]
    else:
        instructions.append(APPLIED_NOTE if applied else NOT_RUNNING_NOTE)
        if _listen_address(settings).is_loopback:
            instructions[-1] += f"\n{LOCAL_ONLY_NOTE}"
    return "\n\n".join(instructions)


def revoke_key(settings: Settings, name: str, *, as_json: bool) -> str:
    """Revoke a key; return what happened. Raise `UserError` if there is no such key."""
    try:
        applied = _open_enrolment(settings).revoke_key(name)
    except (BadKey, OSError) as error:
        raise UserError(str(error), 404) from error
    if as_json:
        return _to_json({"name": name, "revoked": True, "taken": applied})
    if settings.nats:
        return f"The key of {name} is forgotten here: take its account out of {settings.nats}, too."
    closed_note = "The running broker has closed its connection; its jobs continue elsewhere."
    return f"The key of {name} is revoked. {closed_note if applied else NOT_RUNNING_NOTE}"


def list_keys(settings: Settings, *, as_json: bool) -> str:
    """List every key without its secret half."""
    try:
        keys = _open_enrolment(settings).list_keys()
    except BadKey as error:
        raise UserError(str(error), 400) from error
    if as_json:
        return _to_json([_to_dict(key) for key in keys])
    return (
        "\n".join(f"{key.name:<24} {key.created_on}  {','.join(key.pools)}" for key in keys) or "No worker has a key."
    )


def broker_address(settings: Settings) -> str:
    """Return the broker's address for such a worker, with HOST and PORT for what we do not know."""
    if settings.nats:
        return settings.nats
    listen_address = _listen_address(settings)
    host = (
        "HOST"
        if listen_address.is_loopback or listen_address.host != listen_address.local_host
        else f"[{listen_address.host}]"
        if ":" in listen_address.host
        else listen_address.host
    )
    scheme = "tls" if listen_address.certificate else "nats"
    return f"{scheme}://{host}:{'PORT' if listen_address.is_loopback else listen_address.port}"


def _listen_address(settings: Settings) -> ListenAddress:
    """Return where the running broker listens, whatever this shell's environment says; else where the next one will."""
    return _open_enrolment(settings).get_listen_address() or parse_listen_address(settings)


def worker_command(key: WorkerKey, url: str) -> str:
    """Return the command line of that worker, without its secret."""
    pools = "" if key.pools == ("default",) else "".join(f" --pool {pool}" for pool in key.pools)
    return f"darkroom engine --nats {url} --name {key.name}{pools}"


def _open_enrolment(settings: Settings) -> WorkerKeyAdmin:
    return WorkerKeyAdmin(settings.data / KEY_FILE, settings.data / BROKER_FOLDER)


def _describe_pools(key: WorkerKey) -> str:
    return f"the {'pool' if len(key.pools) == 1 else 'pools'} {', '.join(key.pools)}"


def _to_dict(key: WorkerKey) -> dict[str, Any]:
    return {"name": key.name, "public": key.public, "pools": list(key.pools), "made": key.created_on}


def _to_json(value: Sequence[Any] | dict[str, Any]) -> str:
    return json.dumps(value, indent=2)
