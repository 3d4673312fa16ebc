"""`darkroom steer`: changes a picture while it develops; it asks the running `darkroom up`, and waits for the answer.

Standard output carries only the changes, or JSON.
"""

from __future__ import annotations

import asyncio
import json
from typing import TYPE_CHECKING, Annotated, Any, cast

import typer

from bot.cli.options import AsJson, Data, list_given
from bot.domain.errors import UserError

if TYPE_CHECKING:
    from collections.abc import Sequence

NOT_RUNNING = "No Darkroom is running on this data folder, so no picture develops."
ANSWER_SECONDS = 15.0
POLL_SECONDS = 0.25


def steer(
    job: Annotated[str, typer.Argument(metavar="JOB", help="The job's id, or its beginning.")],
    say: Annotated[str, typer.Option(metavar="WORDS", help="Add words to the prompt.")] = "",
    weight: Annotated[float | None, typer.Option(help="Their weight, as a part of their own.")] = None,
    prompt: Annotated[
        str | None, typer.Option(metavar="WORDS", help="Replace the prompt; it may have weights and --no.")
    ] = None,
    weigh: Annotated[
        list[str] | None, typer.Option(metavar="PART=WEIGHT", help="Weigh a part of the prompt anew, as in 2=0.6.")
    ] = None,
    no: Annotated[str | None, typer.Option(metavar="WORDS", help="What to steer away from.")] = None,
    guidance: Annotated[float | None, typer.Option(help="How closely to follow the prompt, 1 to 30.")] = None,
    interval: Annotated[
        str | None, typer.Option(metavar="FROM-TO", help="In which part of the steps guidance holds.")
    ] = None,
    keep: Annotated[list[int] | None, typer.Option(metavar="N", help="Keep only this picture; repeatable.")] = None,
    drop: Annotated[list[int] | None, typer.Option(metavar="N", help="Drop this picture; repeatable.")] = None,
    split: Annotated[
        str | None, typer.Option(metavar="N:COUNT", help="Go on with a picture as so many, as in 2:3.")
    ] = None,
    fade: Annotated[int, typer.Option(metavar="STEPS", help="Go over to the new words within so many steps.")] = 0,
    as_json: AsJson = False,
    data: Data = None,
) -> None:
    """Change a picture while it develops: its words, guidance, or which pictures go on."""
    from bot.app.settings import load_settings
    from bot.cli.imagine.http_client import find_running
    from bot.cli.imagine.result import GenerationError

    body = list_given(
        {
            "say": say or None,
            "weight": weight,
            "prompt": prompt,
            "weights": parse_weights(weigh or ()) or None,
            "negative": no,
            "guidance": guidance,
            "interval": parse_interval(interval),
            "keep": keep or None,
            "drop": drop or None,
            "split": parse_split(split),
            "fade": fade or None,
        }
    )
    running = asyncio.run(find_running(load_settings(data).data))
    if running is None:
        raise UserError(NOT_RUNNING)
    try:
        answer = asyncio.run(send_changes(*running, job, body))
    except GenerationError as error:
        typer.echo(f"darkroom: {error}", err=True)
        raise typer.Exit(1) from None
    typer.echo(json.dumps(answer, ensure_ascii=False) if as_json else "\n".join(map(format_change, answer["changes"])))
    if any(change["state"] == "refused" for change in answer["changes"]):
        raise typer.Exit(1)


async def send_changes(url: str, key: str, prefix: str, body: dict[str, object]) -> dict[str, Any]:
    """Ask for the changes, and return them as the worker answers, or as they wait after a while."""
    from bot.cli.imagine.http_client import open_session, send_request

    async with open_session(url, key) as session:
        job = choose_job(prefix, (await send_request(session, "GET", "/api/jobs"))["jobs"])
        path = f"/api/jobs/{job}"
        changes = (await send_request(session, "POST", f"{path}/amend", body))["amendments"]
        numbers = {change["number"] for change in changes}
        end = asyncio.get_running_loop().time() + ANSWER_SECONDS
        while any(change["state"] == "waiting" for change in changes) and asyncio.get_running_loop().time() < end:
            await asyncio.sleep(POLL_SECONDS)
            known = (await send_request(session, "GET", f"{path}/amendments"))["amendments"]
            changes = [change for change in known if change["number"] in numbers]
    return {"id": job, "changes": changes}


def choose_job(prefix: str, jobs: Sequence[dict[str, Any]]) -> str:
    """Return the id of the only job that begins so; a full id is taken as it is. Raises `UserError`."""
    found = [str(job["id"]) for job in jobs if str(job["id"]).startswith(prefix.upper())]
    if len(found) > 1:
        raise UserError(f"{len(found)} jobs begin with {prefix}: give more of the id.")
    return found[0] if found else prefix.upper()


def parse_weights(arguments: Sequence[str]) -> dict[str, float]:
    """Return `2=0.6` as `{"2": 0.6}`. Raises `UserError`."""
    weights: dict[str, float] = {}
    for argument in arguments:
        part, _, weight = argument.partition("=")
        try:
            weights[part.strip()] = float(weight)
        except ValueError:
            raise UserError(f"--weigh takes a part's number and its weight, as in 2=0.6, not {argument}.") from None
    return weights


def parse_interval(argument: str | None) -> list[float] | None:
    """Return `0.2-0.8` as its two fractions. Raises `UserError`."""
    from bot.prompt.flag_values import parse_value

    return None if argument is None else list(cast("tuple[float, float]", parse_value("interval", argument, ())))


def parse_split(argument: str | None) -> dict[str, int] | None:
    """Return `2:3` as the picture and how many it becomes. Raises `UserError`."""
    if argument is None:
        return None
    image, _, count = argument.partition(":")
    if not (image.isdecimal() and count.isdecimal()):
        raise UserError(f"--split takes a picture and how many it becomes, as in 2:3, not {argument}.")
    return {"image": int(image), "into": int(count)}


def format_change(change: dict[str, Any]) -> str:
    """Return a change on one line, with what became of it."""
    outcome = {
        "made": f"from step {change['step']} of {change['total_steps']} on",
        "refused": f"refused: {change['reason']}",
        "waiting": "waits for a worker",
    }
    return f"{change['text']}: {outcome[change['state']]}"
