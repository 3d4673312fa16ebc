"""Messages of a job whose row is gone: an author may have everything deleted while its message is being edited."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, cast

import pytest

from bot.discord.delivery.final_messages import MessageSender
from bot.discord.delivery.tracked_messages import TrackedMessage
from bot.domain.dto import Delivery, Destination
from bot.domain.errors import UserError
from bot.domain.events import JobEvent, JobProgress, QueueMoved
from shared.sample_views import JOB, make_view


@pytest.mark.parametrize("event", [QueueMoved(JOB, 2, 5.0), JobProgress(JOB, 3, 10, 5.0)])
@pytest.mark.asyncio
async def test_of_a_deleted_job_nothing_is_shown_and_nothing_fails(event: JobEvent) -> None:
    async def refuse(*_: object) -> Any:
        raise UserError("There is no such job.", 404)

    async def edit(*_: object, **__: object) -> None:
        pytest.fail("it edited the message of a job that is gone")

    services = SimpleNamespace(
        deliveries=None, job_views=SimpleNamespace(load_view=refuse), steering=SimpleNamespace(load_outlook=refuse)
    )
    sender = MessageSender(cast(Any, services), cast(Any, SimpleNamespace(edit=edit)), lambda: 0.0, lambda: 0.0)
    message = TrackedMessage(make_view(), Destination("discord", {}), 0.0)
    await sender.show_progress(cast(Any, event), message, lambda: None)


@pytest.mark.parametrize("deliveries", [{}, {"answer": Delivery("answer", Destination("discord", {"message": "1"}))}])
@pytest.mark.asyncio
async def test_a_deleted_job_has_no_final_to_show(deliveries: dict[str, Delivery]) -> None:
    async def list_deliveries(_: str) -> dict[str, Delivery]:
        return deliveries

    async def refuse(*_: object) -> Any:
        raise UserError("There is no such job.", 404)

    services = SimpleNamespace(
        deliveries=SimpleNamespace(list_deliveries=list_deliveries), job_views=SimpleNamespace(load_view=refuse)
    )
    sender = MessageSender(cast(Any, services), cast(Any, None), lambda: 0.0, lambda: 0.0)
    message = TrackedMessage(make_view(), Destination("discord", {}), 0.0)
    assert await sender.next_destination(JOB, message) is None
