"""The permission matrix through the real code: every role presses every button, form, menu and command.

`bot.policy.permissions` and the roles written down here say what each press must give. The whole bot is closed for new
pictures, so an allowed press stops at the next check: one world serves all presses.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import discord
import pytest
from simcord.backend.errors import SetupError
from simcord.builders import ChannelHandle
from simcord.components import walk_components
from simcord.enums import ChannelType

from bot.discord.cards.button_layout import Button
from bot.discord.cards.job_cards import render_refusal
from bot.discord.components import buttons
from bot.discord.declarations import list_commands
from bot.discord.responses import CHANNEL_HIDDEN, INTERNAL_ERROR, THREAD_HIDDEN
from bot.discord.settings.responses import HANDLERS
from bot.domain.dto import Member
from bot.domain.feature import load_features
from bot.policy.permissions import ACTIONS, PRIVATE_JOB, Action, JobRef, forbidden_reason
from shared.discord_staff import Staff, create_staff
from shared.feature_rows import read_feature_rows
from shared.picture_files import make_png

pytestmark = pytest.mark.asyncio

REFUSALS = (  # the beginnings of the permission table's refusals, as members see them
    "Only ",
    "That job belongs to another server",
    "That job is private",
    "This one is yours",
    "That belongs to a",
    "That job belongs to a channel",
)
PICTURE_PRESSES: tuple[str, ...] = (
    "up",
    "vary",
    "subtle",
    "strong",
    "favour",
    "approve",
    "deny",
    "zoomsome",
    "zoomtwice",
    "panleft",
    "panright",
    "panup",
    "pandown",
    "edit",
    "branch",
    "square",
    "compare",
)
MAX_BUTTONS = 25  # buttons of a message
DESTRUCTIVE: tuple[str, ...] = ("erase",)

# The action of each button and each form.
BUTTONS: dict[str, Action] = {
    "up": "upscale",
    "vary": "vary",
    "subtle": "vary",
    "strong": "vary",
    "reroll": "reroll",
    "remix": "remix",
    "film": "film",
    "favour": "favourite",
    "report": "report",
    "delete": "delete",
    "erase": "delete",
    "cancel": "cancel",
    "look": "approve",
    "approve": "approve",
    "deny": "deny",
    "show": "approve",
    "dismiss": "dismiss",
    "more": "details",
    "zoomsome": "zoom",
    "zoomtwice": "zoom",
    "panleft": "pan",
    "panright": "pan",
    "panup": "pan",
    "pandown": "pan",
    "edit": "edit",
    "branch": "branch",
    "square": "zoom",
    "compare": "details",
    "walk": "walk",
    "finish": "finish",
    "keep": "steer",
    "say": "steer",
    "again": "reproduce",
}
for row in read_feature_rows("buttons"):
    kind, BUTTONS[kind], *index = row.split()
    PICTURE_PRESSES += (kind,) if index else ()
FEATURE_FORMS = dict(row.split() for row in read_feature_rows("forms"))
FORMS: Mapping[str, Action] = {
    "remix": "remix",
    "report": "report",
    "edit": "edit",
    "branch": "branch",
    "say": "steer",
    **FEATURE_FORMS,
}
# The action of each command, with the options that it gets. {job} stands for the job, {picture} for a picture.
COMMANDS: dict[str, tuple[Action, Mapping[str, Any]]] = {
    "imagine": ("imagine", {"prompt": "apple"}),
    "blend": ("blend", {"image1": ("a.png", make_png(8, 8)), "image2": ("b.png", make_png(8, 8))}),
    "edit": ("edit", {"picture": ("a.png", make_png(8, 8)), "words": "make it red"}),
    "mix": ("imagine", {"first": "apple", "second": "pear"}),
    "walk": ("imagine", {"from": "apple", "to": "pear", "frames": 4}),
    "fast": ("prefer", {}),
    "relax": ("prefer", {}),
    "turbo": ("prefer", {}),
    "stealth": ("prefer", {}),
    "public": ("prefer", {}),
    "queue": ("queue", {}),
    "mine": ("mine", {}),
    "info": ("info", {}),
    "prefer show": ("prefer", {}),
    "prefer set": ("prefer", {"name": "speed", "value": "fast"}),
    "prefer suffix": ("prefer", {}),
    "prefer remix": ("prefer", {}),
    "prefer auto_dm": ("prefer", {}),
    "help": ("help", {}),
    "cancel": ("cancel", {"job": "{job}"}),
    "reproduce": ("reproduce", {"job": "{job}"}),
    "film": ("film", {"job": "{job}"}),
    "settings show": ("settings", {}),
    "settings set": ("set", {"setting": "running", "value": "3"}),
    "settings unset": ("set", {"setting": "running"}),
    "settings explain": ("explain", {"member": "{member}"}),
    "settings preset": ("set", {"name": "small server"}),
    "settings log": ("settings", {}),
    "settings undo": ("set", {}),
    "settings export": ("settings", {}),
    "settings import": ("set", {"file": ("rules.yaml", b"rules: {}")}),
    "settings close": ("close", {}),
    "settings open": ("close", {}),
    "settings budget": ("budget", {"guild": "1", "running": "5"}),
    "moderation words": ("set", {}),
    "moderation block": ("set", {"member": "{member}"}),
    "moderation unblock": ("set", {"member": "{member}"}),
    "moderation reports": ("set", {}),
    "moderation incidents": ("settings", {}),
    "moderation held": ("approve", {}),
    "moderation check": ("set", {"switch": "off"}),
}
for row in read_feature_rows("commands"):
    head, _, options = row.partition(" {")
    name, action = head.rsplit(" ", 1)
    COMMANDS[name] = (action, json.loads(f"{{{options}"))
MENUS: Mapping[str, Action] = {
    "Reproduce": "reproduce",
    "Use as prompt": "prompt",
    "Details": "details",
    "Report": "report",
}
# The action of each press on a settings card.
CARDS: Mapping[str, Action] = {
    "show": "settings",
    "page": "settings",
    "explain": "explain",
    "log": "settings",
    "change": "set",
    "add": "set",
    "save": "set",
    "undo": "set",
    "back": "set",
    "presets": "set",
    "preset": "set",
    "apply": "set",
    "export": "settings",
    "bring": "set",
    "leave": "set",
    "close": "close",
    "closed": "close",
    "open": "close",
    "incidents": "settings",
    "shut": "settings",
    "words": "set",
    "reword": "set",
}
OPEN_TO_ALL = {"dismiss": "it takes a card away that one has, and changes nothing"}


@dataclass(frozen=True)
class Actor:
    """A clicking user, their channel, and the `Member` that the permission table must see."""

    name: str
    handle: Any
    member: Member
    channel: Any
    direct: bool = False
    cannot_see_channel: bool = False  # cannot see the channel of the jobs
    in_thread: bool = False  # acts inside the private thread of the last job


@dataclass(frozen=True)
class Scene:
    """All actors, and the jobs that they act on."""

    world: Any
    staff: Staff
    actors: tuple[Actor, ...]
    subjects: Mapping[str, JobRef]  # by job
    thread_jobs: frozenset[str] = frozenset()  # those of the private thread

    @property
    def public_job(self) -> str:
        return next(job for job, one in self.subjects.items() if not one.is_private and job not in self.thread_jobs)

    def find_forbidden_reason(self, action: Action, actor: Actor, job: str | None) -> str | None:
        subject = None if job is None else self.subjects[job]
        is_of_thread = job in self.thread_jobs
        is_hidden = actor.cannot_see_channel or (is_of_thread and not actor.in_thread)
        if subject is None or not is_hidden or subject.is_private:
            return forbidden_reason(action, actor.member, subject, in_direct_message=actor.direct)
        reason = forbidden_reason(
            action, actor.member, replace(subject, is_private=True), in_direct_message=actor.direct
        )
        hidden_text = THREAD_HIDDEN if is_of_thread else CHANNEL_HIDDEN
        return hidden_text if reason == PRIVATE_JOB else reason

    async def send_board(self, actor: Actor, ids: list[str]) -> discord.Message:
        """Send a message with these buttons to the actor's channel: permissions hold on any card."""
        view = discord.ui.View(timeout=None)
        for each in ids:
            view.add_item(discord.ui.Button(label=each[:40], custom_id=each))
        view.stop()
        if actor.direct:
            channel = await self.world.client.create_dm(discord.Object(actor.handle.id))
        else:
            channel = self.world.client.get_partial_messageable(actor.channel.id, guild_id=actor.handle.guild.id)
        return await channel.send("everything at once", view=view)

    async def send_boards(self, actor: Actor, ids: list[str]) -> dict[str, discord.Message]:
        """Send as many messages as all buttons need, and return the message of each button."""
        parts = [ids[start : start + MAX_BUTTONS] for start in range(0, len(ids), MAX_BUTTONS)]
        return {each: card for part in parts for card in [await self.send_board(actor, part)] for each in part}


def make_member(handle: Any, name: str, guild: str, flags: Sequence[str]) -> Member:
    return replace(Member(f"discord:{handle.id}", name, guild), **{f"is_{flag}": True for flag in flags})


async def set_up(world: Any, *, count: int = 3) -> Scene:
    """Finish public jobs of the author, a private one, and one in a private thread; then close the whole bot."""
    outside_guild = world.guild
    outside_channel = world.channel
    staff = await create_staff(world)
    world.painter.speed = 0.0
    bob, tenant = (
        staff.guild.add_member(world.env.create_user(name), roles=[staff.member_role]) for name in ("bert", "tess")
    )
    full_permissions = discord.PermissionOverwrite(manage_messages=True, manage_channels=True)
    room = staff.guild.create_text_channel("tess's room", overwrites={tenant: full_permissions})
    hidden_permissions = {tenant: discord.PermissionOverwrite(view_channel=False)}
    staff.channel = world.channel = staff.guild.create_text_channel("not for tess", overwrites=hidden_permissions)
    guild_id = f"discord:{staff.guild.id}"
    author = staff.member
    prompt = "{" + ",".join(f"apple {number}" for number in range(count - 2)) + "} --count 1 --steps 2"
    await staff.slash(author, "imagine", prompt=prompt)
    await world.client.services.preferences.set_preference(f"discord:{author.id}", "results", "private")
    await staff.slash(author, "imagine", prompt="secret --count 1 --steps 2")
    await world.client.services.preferences.set_preference(f"discord:{author.id}", "results", "public")
    thread = create_private_thread(world, staff.channel, author, bob)
    await author.slash(thread, "imagine", prompt="in a thread --count 1 --steps 2")
    await world.wait_until(lambda: len(world.painter.finished_jobs) == count)
    while await world.deliveries.list_undelivered("discord"):
        await world.wait_until(lambda: True)
    views = await world.services.job_views.load_recent()
    operator_everywhere = Member(f"discord:{staff.operator.id}", "keeper", "*", is_operator=True)
    await world.client.services.rule_admin.close_guild(operator_everywhere, "for the test")

    def in_server(handle: Any, name: str, *flags: str) -> Actor:
        return Actor(name, handle, make_member(handle, name, guild_id, flags), staff.channel)

    def in_other_server(handle: Any, name: str, *flags: str) -> Actor:
        return Actor(
            f"{name} elsewhere",
            handle,
            make_member(handle, name, f"discord:{outside_guild.id}", flags),
            outside_channel,
        )

    def in_direct_message(handle: Any, name: str, *flags: str) -> Actor:
        member = make_member(handle, name, f"discord:dm:{handle.id}", flags)
        return Actor(f"{name} alone with the bot", handle.user, member, None, direct=True)

    actors = (
        in_server(author, "author"),
        in_server(bob, "member"),
        replace(in_server(bob, "member in the thread"), channel=thread, in_thread=True),
        in_server(staff.moderator, "moderator", "moderator"),
        in_server(staff.admin, "admin", "moderator", "admin"),
        in_server(staff.owner, "owner", "moderator", "admin", "owner"),
        in_server(staff.operator, "operator", "operator"),
        replace(in_server(tenant, "member in a room of their own"), channel=room, cannot_see_channel=True),
        in_other_server(outside_guild.add_member(author.user), "author"),
        in_other_server(world.alice, "stranger"),
        in_other_server(outside_guild.add_member(staff.operator.user), "operator", "operator"),
        in_direct_message(author, "author"),
        in_direct_message(bob, "member"),
        in_direct_message(staff.operator, "operator", "operator"),
    )
    subjects = {view.id: JobRef(view.member_id, view.member_name, view.guild, view.is_private) for view in views}
    assert {subject.author for subject in subjects.values()} == {f"discord:{author.id}"}
    thread_jobs = frozenset(view.id for view in views if "in a thread" in view.prompt)
    assert len(thread_jobs) == 1
    return Scene(world, staff, actors, subjects, thread_jobs)


def create_private_thread(world: Any, channel: Any, author: Any, member: Any) -> ChannelHandle:
    """Create a private thread of these two, with the bot in it."""
    backend = world.env.backend
    thread = backend.create_thread(channel.id, "whispers", author.id, type=ChannelType.PRIVATE_THREAD)
    for user in (member.id, world.client.user.id):
        backend.add_thread_member(thread.id, user)
    return ChannelHandle(world.env, world.guild, thread)


def all_text(result: Any) -> str:
    """All text of the bot's answer and its followups."""
    messages = [result.response, *result.followups]
    nodes = [node for one in messages if one for node in walk_components(one.components)]
    return "\n".join(
        [one.content for one in messages if one] + [node["content"] for node in nodes if node["type"] == 10]
    )


def check_answer(expected: str | None, result: Any, description: str) -> None:
    """Expect this refusal, ephemeral; or, with None, no refusal of the permission table."""
    assert result.acknowledged, description
    content = all_text(result)
    assert INTERNAL_ERROR not in content, description
    if expected is not None:
        assert content == render_refusal(expected), description
        assert all(one.ephemeral for one in (result.response, *result.followups) if one), description
    else:
        assert not any(f"{start}" in content for start in REFUSALS), f"{description}: {content}"


def button_ids(job: str, kinds: tuple[str, ...]) -> Iterator[tuple[str, str]]:
    for kind in kinds:
        index = 0 if kind in PICTURE_PRESSES else 999 if kind == "dismiss" else None
        yield kind, Button(kind, job, index=index).custom_id


@pytest.mark.slow
async def test_every_role_presses_every_button_on_public_and_private_jobs(open_world: Any) -> None:
    async with open_world() as world:
        scene = await set_up(world)
        assert set(buttons.BUTTONS) == set(BUTTONS)
        kinds = tuple(kind for kind in BUTTONS if kind not in DESTRUCTIVE)
        for actor in scene.actors:
            for job in scene.subjects:
                ids = dict(button_ids(job, kinds))
                cards = await scene.send_boards(actor, list(ids.values()))
                for kind, custom_id in ids.items():
                    subject_job = None if kind == "dismiss" else job
                    expected = scene.find_forbidden_reason(BUTTONS[kind], actor, subject_job)
                    result = await actor.handle.click(cards[custom_id], custom_id=custom_id)
                    check_answer(expected, result, f"{kind} by {actor.name}, private: {scene.subjects[job].is_private}")


@pytest.mark.slow
async def test_every_role_presses_the_last_button_of_a_deletion(open_world: Any) -> None:
    async with open_world() as world:
        scene = await set_up(world, count=10)
        left = list(scene.subjects)
        for actor in scene.actors:
            card = await scene.send_board(actor, [f"erase:{left[0]}"])
            expected = scene.find_forbidden_reason("delete", actor, left[0])
            check_answer(
                expected, await actor.handle.click(card, custom_id=f"erase:{left[0]}"), f"erase by {actor.name}"
            )
            remaining_ids = {view.id for view in await world.services.job_views.load_recent()}
            assert (left[0] in remaining_ids) == (expected is not None), actor.name
            left = [job for job in left if job in remaining_ids]
        assert len(left) == 1, "the author and this bot's operator in three places each, moderator, admin, owner"


async def test_a_sent_form_is_checked_like_its_button(open_world: Any) -> None:
    """Roles may change between the button and the form."""
    async with open_world() as world:
        scene = await set_up(world)
        public_job = scene.public_job
        member = next(actor for actor in scene.actors if actor.name == "member")
        card = await scene.send_board(member, [f"remix:{public_job}", f"report:{public_job}", f"edit:{public_job}"])
        assert {kind for kind, row in buttons.BUTTONS.items() if row.submit} == set(FORMS)
        words = {"prompt": "pear", "negative": ""}
        for form, opener_kind, values in (
            ("remix", "remix", words),
            ("report", "report", {"reason": "rude"}),
            ("branch", "remix", words),
            ("edit", "edit", {"mask": ("mask.png", make_png(8, 8))}),
            ("say", "remix", words),
            *((form, "remix", words) for form in FEATURE_FORMS),
        ):
            for job, subject in scene.subjects.items():
                opening = await member.handle.click(card, custom_id=f"{opener_kind}:{public_job}")
                forged_id = (
                    opening.modal["custom_id"].replace(public_job, job).replace(f"{opener_kind}-form", f"{form}-form")
                )
                opening._interaction.modal["custom_id"] = forged_id
                reply = await member.handle.submit_modal(opening, values)
                expected = scene.find_forbidden_reason(FORMS[form], member, job)
                check_answer(expected, reply, f"{form}, private: {subject.is_private}")


@pytest.mark.slow
async def test_every_role_types_every_command(open_world: Any) -> None:
    async with open_world() as world:
        scene = await set_up(world)
        names = {command.qualified_name for command in world.client.tree.walk_commands() if is_leaf(command)}
        assert names == set(COMMANDS)
        for actor in scene.actors:
            for name, (action, options) in COMMANDS.items():
                subject_jobs = scene.subjects if "{job}" in options.values() else [None]
                for job in subject_jobs:
                    expected = scene.find_forbidden_reason(action, actor, job)
                    result = await type_command(scene, actor, name, options, job)
                    if result is not None:
                        check_answer(expected, result, f"/{name} by {actor.name}")
                        own_place = (
                            actor.in_thread if job in scene.thread_jobs else actor.channel is scene.staff.channel
                        )
                        is_other_channel = name == "film" and not own_place
                        assert not is_other_channel or result.ephemeral, (
                            f"a public film from another channel, by {actor.name}"
                        )
                    else:
                        assert actor.direct or "elsewhere" in actor.name, "all staff see every command"


def is_leaf(command: Any) -> bool:
    return not hasattr(command, "walk_commands")


async def type_command(scene: Scene, actor: Actor, name: str, options: Mapping[str, Any], job: str | None) -> Any:
    """Type the command; None where Discord does not offer it."""
    placeholders = {"{job}": job, "{member}": scene.world.bob.user, "{picture}": ("a.png", make_png(8, 8))}
    arguments = {
        option: placeholders.get(value, value) if isinstance(value, str) else value for option, value in options.items()
    }
    try:
        if actor.direct:
            return await actor.handle.slash(name, **arguments)
        return await actor.handle.slash(actor.channel, name, **arguments)
    except SetupError:
        return None


@pytest.mark.slow
async def test_every_role_opens_every_menu_of_a_visible_message(open_world: Any) -> None:
    async with open_world() as world:
        scene = await set_up(world)
        assert {menu.name for menu in world.client.tree.get_commands(type=discord.AppCommandType.message)} == set(MENUS)
        public_job = scene.public_job
        message_id = (await world.deliveries.answer_destination(public_job)).address["message"]
        message = next(each for each in scene.staff.channel.history() if str(each.id) == message_id)
        for actor in scene.actors:
            if actor.channel is not scene.staff.channel:
                continue
            for name, action in MENUS.items():
                result = await actor.handle.context_menu(actor.channel, name, message)
                check_answer(scene.find_forbidden_reason(action, actor, public_job), result, f"{name} by {actor.name}")


@pytest.mark.slow
async def test_every_role_presses_every_button_of_the_settings(open_world: Any) -> None:
    async with open_world() as world:
        scene = await set_up(world)
        assert set(CARDS) | set(OPEN_TO_ALL) == set(HANDLERS)
        for actor in scene.actors:
            refused_verbs = [
                verb for verb, action in CARDS.items() if scene.find_forbidden_reason(action, actor, None) is not None
            ]
            if not refused_verbs:
                continue
            card = await scene.send_board(actor, [f"settings:{verb}:1:1" for verb in refused_verbs])
            for verb in refused_verbs:
                result = await actor.handle.click(card, custom_id=f"settings:{verb}:1:1")
                check_answer(
                    scene.find_forbidden_reason(CARDS[verb], actor, None), result, f"settings:{verb} by {actor.name}"
                )


async def test_the_matrix_has_every_command_and_menu() -> None:
    """The fast part of the slow tests: a new command that is missing here fails at once."""
    commands = [command for command in list_commands() if not isinstance(command, discord.app_commands.ContextMenu)]
    assert set(list_leaf_names(commands)) == set(COMMANDS)
    assert {command.name for command in list_commands()} - {command.name for command in commands} == set(MENUS)


def list_leaf_names(commands: Iterable[Any]) -> Iterator[str]:
    for command in commands:
        if is_leaf(command):
            yield command.qualified_name
        else:
            yield from (inner.qualified_name for inner in command.walk_commands() if is_leaf(inner))


async def test_every_action_of_the_permission_table_is_covered() -> None:
    actions = {
        *BUTTONS.values(),
        *FORMS.values(),
        *MENUS.values(),
        *CARDS.values(),
        *(action for action, _ in COMMANDS.values()),
    }
    commands = {row.action for row in list_commands().values()}
    other_actions = {action for feature in load_features().values() for action in feature.permissions} - commands
    without_command = {"describe"} - commands  # the core's row for whatever feature suggests prompts
    assert set(ACTIONS) - actions - other_actions == {"envelope", "pause"} | without_command
