"""The HTTP API of steering: change a job while it develops, and list what was changed. Images count from 1.

The steering service makes every decision.
"""

from __future__ import annotations

from typing import Annotated

import msgspec
from aiohttp import web

from bot.domain.steering import SteeringRequest
from bot.web.answers import Amendments, describe_amendments
from bot.web.api.jobs import Guidance, describe_range
from bot.web.middleware import member_of
from bot.web.request_body import idempotency_key_of, read_body
from bot.web.routes import Route, Shape, answer_json
from bot.web.sse import SERVICES, require_permitted
from engine.contract import MAX_CONCEPTS, MAX_COUNT, MAX_STEPS

ImageNumber = Annotated[int, msgspec.Meta(ge=1, le=MAX_COUNT)]
ImageNumbers = Annotated[list[ImageNumber], msgspec.Meta(max_length=MAX_COUNT)]
PartNumber = Annotated[str, msgspec.Meta(pattern=f"^[1-{MAX_CONCEPTS}]$")]


class SplitBody(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """An image, and how many it becomes in all."""

    image: ImageNumber
    into: Annotated[int, msgspec.Meta(ge=2, le=MAX_COUNT)]


class AmendBody(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The body of `POST /api/jobs/{id}/amend`; what is left out stays as it is.

    `weight` is that of `say`, which without it joins the first part of the prompt. `weights`: by the number of a part.
    """

    say: str = ""
    weight: Annotated[float | None, describe_range(-100, 100)] = None
    prompt: str | None = None
    weights: Annotated[dict[PartNumber, float], msgspec.Meta(max_length=MAX_CONCEPTS)] = {}
    negative: str | None = None
    guidance: Guidance = None
    interval: Annotated[list[float], msgspec.Meta(min_length=2, max_length=2)] | None = None
    keep: ImageNumbers = []
    drop: ImageNumbers = []
    split: SplitBody | None = None
    fade: Annotated[int, msgspec.Meta(ge=0, le=MAX_STEPS)] = 0

    def to_request(self) -> SteeringRequest:
        """Return it with images and parts counted from 0."""
        return SteeringRequest(
            say=self.say,
            say_weight=self.weight,
            prompt=self.prompt,
            negative=self.negative,
            guidance=self.guidance,
            weights={int(number) - 1: weight for number, weight in self.weights.items()},
            interval=None if self.interval is None else (self.interval[0], self.interval[1]),
            keep=tuple(number - 1 for number in self.keep),
            drop=tuple(number - 1 for number in self.drop),
            split=None if self.split is None else (self.split.image - 1, self.split.into),
            fade_steps=self.fade,
        )


async def amend(request: web.Request) -> web.Response:
    """Change a job from its next step on: its words, guidance or images. The answer says what waits for its worker."""
    view = await require_permitted(request, "steer")
    body = await read_body(request, AmendBody)
    reader = member_of(request)
    answer = await request.app[SERVICES].steering.amend(view.id, body.to_request(), reader, idempotency_key_of(request))
    return answer_json(describe_amendments(view.id, reader, answer.amendments, answer.outlook), 202)


async def list_amendments(request: web.Request) -> web.Response:
    """Return every change that was asked for of a job, in order, and what can be changed now."""
    view = await require_permitted(request, "details")
    reader = member_of(request)
    steering = request.app[SERVICES].steering
    views = await steering.list_amendments(view.id, reader)
    return answer_json(describe_amendments(view.id, reader, views, await steering.load_outlook(view.id, reader)))


TITLE = "Jobs"
ROUTES = (
    Route("POST", "/api/jobs/{id}/amend", amend, "steer", Shape(Amendments, 202, AmendBody)),
    Route("GET", "/api/jobs/{id}/amendments", list_amendments, "job", Shape(Amendments)),
)
