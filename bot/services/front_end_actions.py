"""What services ask of a front end: to post reports and to delete messages. It connects once it is logged in."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from bot.domain.dto import Delivery

DeleteMessage = Callable[[str, Delivery], Awaitable[bool]]
PostReport = Callable[["Report"], Awaitable[bool]]


@dataclass(frozen=True)
class Report:
    """A member's report, for the channel that the server's admins chose. Its texts come from members."""

    incident: int
    guild: str
    channel: str
    job: str
    author: str
    reporter: str
    reason: str


class FrontEndActions:
    """The front end's functions; None until it connects.

    `post_report` puts a report into its channel, and returns whether it is there. `delete_message` deletes a message of
    a job: it returns False if the message must stay, and raises ConnectionError if that has to wait.
    """

    def __init__(self) -> None:
        self.post_report: PostReport | None = None
        self.delete_message: DeleteMessage | None = None

    def connect(self, post_report: PostReport | None = None, delete_message: DeleteMessage | None = None) -> None:
        """Use these functions from now on; None keeps what is there."""
        self.post_report = post_report or self.post_report
        self.delete_message = delete_message or self.delete_message
