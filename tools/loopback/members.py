"""Members who act over the wire: commands, buttons, menus, modals, reactions, in servers and direct messages.

simcord checks that a real member could do it. Each act records when it was sent and first answered, and its outcome.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from simcord.results import InteractionResult, ResponseMessage

from tools.loopback.server import Loopback, wait_until

if TYPE_CHECKING:
    from simcord.actors import MemberActor
    from simcord.backend.models import Interaction, Message
    from simcord.builders import ChannelHandle, GuildHandle, RoleHandle, UserHandle

ANSWER_TIMEOUT = 3.0  # seconds that Discord waits for a first answer


@dataclass
class Act:
    """One interaction."""

    loopback: Loopback
    result: InteractionResult
    sent_at: float

    @property
    def record(self) -> Interaction:
        return self.result._interaction

    @property
    def answered_at(self) -> float | None:
        """The time at which Discord accepted the first answer, by the server's clock."""
        return self.loopback.first_answer_times.get(self.record.id)

    @property
    def message(self) -> Message | None:
        """The answer in its current state."""
        response = self.result.response
        return response._message if response else None

    async def wait_for_message(self, seconds: float = 30.0) -> Message:
        """Waits for the first answer and returns it."""
        return await wait_until(lambda: self.message, seconds)

    async def wait_for_response(self, seconds: float = 30.0) -> Act:
        """Waits for an answer of any kind and returns itself."""
        await wait_until(lambda: self.record.responded, seconds)
        return self


class Person:
    """A member of one server (`guild`), or without one a user who sends the bot direct messages."""

    def __init__(
        self,
        loopback: Loopback,
        name: str,
        guild: GuildHandle | None = None,
        *,
        answer_timeout: float = ANSWER_TIMEOUT,
        roles: Sequence[RoleHandle] = (),
        **fields: Any,
    ) -> None:
        """`fields`: fields that differ in this member's interactions, like `locale` or `attachment_size_limit`."""
        self.loopback = loopback
        self.answer_timeout = answer_timeout
        self.user: UserHandle = loopback.world.create_user(name)
        self.actor: MemberActor | UserHandle = guild.add_member(self.user, roles=list(roles)) if guild else self.user
        self.guild = guild
        loopback.world.member_fields[self.user.id] = fields

    @property
    def id(self) -> int:
        return self.user.id

    @property
    def dm(self) -> int:
        """The channel of the direct messages."""
        return self.user.dm_channel.id

    async def slash(self, channel: ChannelHandle | None, name: str, /, **options: Any) -> Act:
        """Type `/name`. `channel` is None in direct messages."""
        channels = () if self.guild is None else (channel,)
        return self._record_act(await self.actor.slash(*channels, name, **options))  # pyright: ignore

    async def autocomplete(
        self, channel: ChannelHandle, name: str, option: str, typed_text: str, /, **filled_options: Any
    ) -> Act:
        """Type into an option. After `wait_for_response()` the choices are in `result.autocomplete_choices`."""
        from simcord.actors import _autocomplete_result

        return self._record_act(
            await _autocomplete_result(self.actor, channel, name, option, typed_text, filled_options)
        )

    async def press(self, message: Message, *, label: str | None = None, custom_id: str | None = None) -> Act:
        return self._record_act(await self.actor.click(self._as_response(message), label=label, custom_id=custom_id))

    async def select(self, message: Message, values: Sequence[Any], *, custom_id: str | None = None) -> Act:
        return self._record_act(await self.actor.select(self._as_response(message), values, custom_id=custom_id))

    async def submit(self, form: Act, values: Mapping[str, Any]) -> Act:
        """Fill in the modal that answered an act."""
        return self._record_act(await self.actor.submit_modal(form.result, dict(values)))

    async def use_menu(self, channel: ChannelHandle, name: str, target: Message | Person) -> Act:
        """Use a context menu command on a message or a person."""
        handle: Any = target.actor if isinstance(target, Person) else self._as_response(target)
        return self._record_act(await self.actor.context_menu(channel, name, handle))  # pyright: ignore

    async def react(self, message: Message, emoji: str) -> None:
        await self.actor.set_reaction(self._as_response(message), emoji, reacted=True)

    async def send(self, channel: ChannelHandle, text: str) -> Message:
        sent_message = await self.actor.send(channel, text)  # pyright: ignore
        return self.loopback.world.backend.get_message(channel.id, sent_message.id)

    def _as_response(self, message: Message) -> Any:
        return ResponseMessage(self.loopback.world, message)

    def _record_act(self, result: InteractionResult) -> Act:
        act = Act(self.loopback, result, self.loopback.clock())
        act.record.initial_response_deadline = self.loopback.world.backend.iso_after(self.answer_timeout)
        return act
