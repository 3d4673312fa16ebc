"""The members' commands over real services, store and broker."""

from __future__ import annotations

import io
import re
from typing import Any

import discord
import msgspec
import pytest
from PIL import Image

from bot.discord.declarations import list_help
from bot.domain.dto import Member
from bot.domain.errors import UserError
from bot.store import DatabaseUnavailable
from bot.store.members import preferences
from shared.discord_jobs import newest_view, text

pytestmark = pytest.mark.asyncio


def component_text(result: Any) -> str:
    """All text of a message that is made of components."""
    ids: list[str] = []

    def collect_ids(part: dict[str, Any]) -> None:
        if "content" in part:
            ids.append(part["content"])
        for inner in (*part.get("components", ()), *([part["accessory"]] if "accessory" in part else ())):
            collect_ids(inner)

    for part in result.response.components:
        collect_ids(part)
    return "\n".join(ids)


def buttons(result: Any) -> dict[str, bool]:
    """Lists the labels of a message's buttons, and whether each is enabled."""
    rows = [row for row in result.response.components if row["type"] == 1]
    return {
        one["label"]: not one.get("disabled", False) for row in rows for one in row["components"] if one["type"] == 2
    }


async def imagine(world: Any, member: Any = None, prompt: str = "red apple", **options: Any) -> Any:
    """Finish a job and return its message."""
    return await world.wait_for_end(
        await (member or world.alice).slash(world.channel, "imagine", prompt=prompt, **options)
    )


def create_moderator(world: Any, name: str = "carol") -> Any:
    role = world.guild.create_role("mod", permissions=discord.Permissions(manage_messages=True))
    return world.guild.add_member(world.env.create_user(name), roles=[role])


# /cancel


async def test_cancel_offers_the_members_open_jobs_and_cancels_one(open_world: Any) -> None:
    async with open_world() as world:
        world.painter.pause_step = 3
        result = await world.alice.slash(world.channel, "imagine", prompt="red apple")
        await world.wait_until(lambda: world.painter.step_gate.is_set() is False)
        (offer,) = await world.alice.autocomplete(world.channel, "cancel", "job", "")
        assert re.fullmatch(r"red apple · running, step \d+ of 20", offer["name"])
        assert await world.bob.autocomplete(world.channel, "cancel", "job", "") == []
        refusal = await world.bob.slash(world.channel, "cancel", job=offer["value"])
        assert refusal.ephemeral
        assert "Only alice and moderators" in text(refusal)
        reply = await world.alice.slash(world.channel, "cancel", job=offer["value"])
        assert reply.ephemeral
        assert "red apple" in text(reply)
        assert "Cancelling" in text(reply)
        assert "ancelled" in (await world.wait_for_end(result)).content
        late_reply = await world.alice.slash(world.channel, "cancel", job=offer["value"])
        assert "cancelled" in text(late_reply).lower()


async def test_cancel_all_cancels_all_jobs_of_the_member_and_no_others(open_world: Any) -> None:
    async with open_world() as world:
        reply_without_jobs = await world.alice.slash(world.channel, "cancel", job="all")
        assert "Nothing of yours" in text(reply_without_jobs)
        world.painter.pause_step = 1
        alice_replies = [await world.alice.slash(world.channel, "imagine", prompt=f"apple {n}") for n in range(4)]
        other = await world.bob.slash(world.channel, "imagine", prompt="pear")
        offers = await world.alice.autocomplete(world.channel, "cancel", "job", "")
        assert offers[0] == {"name": "All of mine: 4 jobs", "value": "all"}
        assert [choice["value"] for choice in await world.alice.autocomplete(world.channel, "cancel", "job", "2")] != []
        reply = await world.alice.slash(world.channel, "cancel", job="All")
        assert "4 jobs cancelled" in text(reply)
        for result in alice_replies:
            assert "ancelled" in (await world.wait_for_end(result)).content
        assert "Cancel" in world.labels(world.message(other.response.id))


async def test_moderators_cancel_others_jobs(open_world: Any) -> None:
    async with open_world() as world:
        world.painter.pause_step = 1
        result = await world.alice.slash(world.channel, "imagine", prompt="red apple")
        moderator = create_moderator(world)
        (offer,) = await moderator.autocomplete(world.channel, "cancel", "job", "apple")
        assert "by alice" in offer["name"]
        assert "🚫" not in text(await moderator.slash(world.channel, "cancel", job=offer["value"]))
        assert "ancelled" in (await world.wait_for_end(result)).content


# /queue


async def test_the_queue_links_cancel_only_for_members_with_jobs(open_world: Any) -> None:
    async with open_world() as world:
        world.painter.pause_step = 1
        await world.alice.slash(world.channel, "imagine", prompt="red apple")
        assert re.search(r"</cancel:\d+>", text(await world.alice.slash(world.channel, "queue")))
        assert "cancel" not in text(await world.bob.slash(world.channel, "queue"))


# /mine


async def test_mine_shows_only_the_members_jobs_with_thumbnails(open_world: Any) -> None:
    async with open_world() as world:
        message = await imagine(world)
        await imagine(world, world.bob, "green pear")
        result = await world.alice.slash(world.channel, "mine")
        assert result.ephemeral
        content = component_text(result)
        assert "1 job" in content
        assert "red apple" in content
        assert "pear" not in content
        assert message.jump_url in content
        (attachment,) = result.response.attachments
        picture = Image.open(io.BytesIO(world.env.backend.cdn.get(attachment.url)))
        assert max(picture.size) <= 320
        assert buttons(result) == {"All": False, "Favourites": True, "Waiting": True, "Not shown": True}


@pytest.mark.slow
async def test_mine_turns_pages_after_a_restart(open_world: Any) -> None:
    async with open_world() as world:
        for n in range(7):
            await imagine(world, prompt=f"apple {n}", count=1, steps=1)
        result = await world.alice.slash(world.channel, "mine")
        assert "page 1 of 2" in component_text(result)
        assert "apple 6" in component_text(result)
        assert "apple 1" not in component_text(result)
        assert (buttons(result)["← Newer"], buttons(result)["Older →"]) == (False, True)
        await world.restart()
        await world.alice.click(result.response, label="Older →")
        assert "page 2 of 2" in component_text(result)
        assert "apple 0" in component_text(result)
        assert "apple 6" not in component_text(result)
        assert len(result.response.attachments) == 2
        await world.alice.click(result.response, label="← Newer")
        assert "apple 6" in component_text(result)
        last_page = await world.alice.slash(world.channel, "mine", page=99)
        assert "page 2 of 2" in component_text(last_page)


async def test_mine_filters_jobs(open_world: Any) -> None:
    async with open_world() as world:
        await imagine(world)
        job = (await newest_view(world)).id
        world.painter.pause_step = 1
        await world.alice.slash(world.channel, "imagine", prompt="blue plum")
        result = await world.alice.slash(world.channel, "mine", which="waiting")
        assert "blue plum" in component_text(result)
        assert "red apple" not in component_text(result)
        await world.alice.click(result.response, label="Favourites")
        assert "No picture is a favourite" in component_text(result)
        await world.app.store.write(preferences.toggle_favourite, f"discord:{world.alice.id}", job, 2, 1.0)
        await world.alice.click(result.response, label="All")
        await world.alice.click(result.response, label="Favourites")
        assert "red apple" in component_text(result)
        assert "★3" in component_text(result)
        await world.alice.click(result.response, label="Not shown")
        assert "were shown where you asked" in component_text(result)

        reason = "Its channel was deleted."
        for role in ("answer", "direct"):
            await world.deliveries.add_destination(job, role, await world.deliveries.answer_destination(job))
            await world.deliveries.mark_delivered(job, role, reason)
        result = await world.alice.slash(world.channel, "mine", which="unshown")
        assert "red apple" in component_text(result)
        assert reason in component_text(result)
        assert "[open]" not in component_text(result)
        reply = await world.alice.select(result.response, [job], custom_id="mine:show")
        assert reply.ephemeral
        assert "red apple" in text(reply)
        assert world.labels(reply.response)[0] == "U1"
        assert len(reply.response.attachments) == 1


async def test_mine_in_a_direct_message_lists_the_jobs_of_every_server(open_world: Any) -> None:
    async with open_world() as world:
        await imagine(world)
        result = await world.alice.user.slash("mine")
        assert "red apple" in component_text(result)
        empty = await world.bob.user.slash("mine")
        assert "made nothing yet" in component_text(empty)


# /info


async def test_info_shows_the_members_limits_and_the_queue(open_world: Any) -> None:
    async with open_world() as world:
        world.painter.pause_step = 1
        await world.alice.slash(world.channel, "imagine", prompt="red apple")
        await world.wait_until(lambda: not world.painter.step_gate.is_set())
        result = await world.alice.slash(world.channel, "info")
        assert result.ephemeral
        content = text(result)
        assert "Running: 1 of 3" in content
        assert "Waiting: 0 of 7" in content
        assert "Device time in 24 hours" in content
        assert "**Queue here**\n• 1 running, 0 waiting\n" in content
        assert "embedded" in content
        assert "Darkroom" in content


async def test_info_separates_models_in_memory_from_models_on_disk(open_world: Any) -> None:
    async with open_world() as world:
        profile = world.painter.model
        world.painter.models = (profile, msgspec.structs.replace(profile, name="large", loaded=False))
        await world.wait_until(lambda: len(world.services.catalog.list_profiles()) == 2)
        content = text(await world.alice.slash(world.channel, "info"))
        assert "• Models: embedded\n• Loaded on demand: large\n" in content
        models = await world.alice.autocomplete(world.channel, "imagine", "model", "")
        assert [one["name"] for one in models] == [
            "embedded (about 0.0 s a picture)",
            "large (about 0.0 s a picture, loaded on demand)",
        ]


async def test_info_of_a_job_has_parameters_to_copy(open_world: Any) -> None:
    async with open_world() as world:
        message = await imagine(world, prompt="red `apple` ```x --no fog", seed=7)
        view = await newest_view(world)
        result = await world.bob.slash(world.channel, "info", job=message.jump_url)
        assert result.ephemeral
        content = text(result)
        assert content.count("```") == 2, "nothing that a member wrote ends the block"
        assert "Negative prompt: fog" in content
        assert "Seed: 7" in content
        assert "Size: 64x64" in content
        assert view.id in content
        assert "asked for <t:" in content
        (offer,) = await world.alice.autocomplete(world.channel, "info", "job", "APPLE")
        assert offer["value"] == view.id


# /prefer


async def test_prefer_shows_sets_and_resets_a_preference(open_world: Any) -> None:
    async with open_world() as world:
        reply = await world.alice.slash(world.channel, "prefer show")
        assert reply.ephemeral
        assert "`ping` **on**" in text(reply)
        assert "`speed` **fast**" in text(reply)
        change = await world.alice.slash(world.channel, "prefer set", name="speed", value="Relaxed")
        assert "**relaxed**" in text(change)
        assert (await world.app.services.preferences.load_preference(f"discord:{world.alice.id}")).speed == "relaxed"
        assert "**fast**" in text(await world.bob.slash(world.channel, "prefer set", name="speed"))
        default_reply = await world.alice.slash(world.channel, "prefer set", name="speed")
        assert "**fast**" in text(default_reply)
        invalid_reply = await world.alice.slash(world.channel, "prefer set", name="ping", value="perhaps")
        assert "🚫" in text(invalid_reply)
        assert "on or off" in text(invalid_reply)


async def test_prefer_suggests_the_values_of_the_chosen_preference(open_world: Any) -> None:
    async with open_world() as world:

        async def suggest(name: str, typed_text: str = "") -> list[str]:
            choices = await world.alice.autocomplete(world.channel, "prefer set", "value", typed_text, name=name)
            return [choice["value"] for choice in choices]

        assert await suggest("speed") == ["fast", "relaxed"]
        assert await suggest("ping") == ["on", "off"]
        assert await suggest("variation", "str") == ["strong"]
        assert await suggest("suffix") == []


async def test_a_suffix_is_added_to_the_prompt_and_announced(open_world: Any) -> None:
    async with open_world() as world:
        await world.alice.slash(world.channel, "prefer set", name="suffix", value="pale, at dawn --no fog")
        result = await world.alice.slash(world.channel, "imagine", prompt="red apple --no worm --seed 5")
        assert "Your suffix was added" in text(result)
        await world.wait_for_end(result)
        view = await newest_view(world)
        assert view.prompt == "red apple pale, at dawn --no fog --no worm --seed 5"
        assert view.task.negative == "worm", "what is typed wins"
        second_reply = await world.alice.slash(world.channel, "imagine", prompt=view.prompt)
        assert "suffix" not in text(second_reply), "it is there already"
        other = await world.bob.slash(world.channel, "imagine", prompt="red apple")
        assert "suffix" not in text(other)


async def test_preference_commands_have_the_names_of_midjourney(open_world: Any) -> None:
    async with open_world() as world:
        preferences = world.app.services.preferences
        alice_id = f"discord:{world.alice.id}"
        for command, name in (("prefer remix", "remix"), ("prefer auto_dm", "direct")):
            for is_on in (True, False):
                result = await world.alice.slash(world.channel, command)
                assert result.ephemeral
                assert ("**on**" if is_on else "**off**") in text(result)
                assert getattr(await preferences.load_preference(alice_id), name) is is_on
        await world.alice.slash(world.channel, "prefer suffix", value="pale")
        assert (await preferences.load_preference(alice_id)).suffix == "pale"
        assert "**none**" in text(await world.alice.slash(world.channel, "prefer suffix"))


# /reproduce


@pytest.mark.slow
async def test_reproduce_by_link_seed_id_and_choice(open_world: Any) -> None:
    async with open_world() as world:
        message = await imagine(world, seed=41, prompt="red apple --no worm")
        first = await newest_view(world)
        footer = next(line for line in message.content.split("\n") if "seed" in line)
        (offer,) = await world.bob.autocomplete(world.channel, "reproduce", "job", "apple")
        assert offer["value"] == first.id
        assert "by alice" in offer["name"]
        for reference in (message.jump_url, footer, "41", first.id.lower(), offer["value"]):
            result = await world.bob.slash(world.channel, "reproduce", job=reference)
            assert not result.ephemeral, text(result)
            await world.wait_for_end(result)
            copy = await newest_view(world)
            assert copy.action == "reproduce"
            assert copy.member_name == "bob"
            assert (copy.task.seed, copy.task.steps, copy.task.concepts) == (41, 20, first.task.concepts)
            assert copy.task.bucket, "exact"


async def test_a_reference_without_a_job_is_refused_with_a_reason(open_world: Any) -> None:
    async with open_world() as world:
        plain_message = await world.bob.send(world.channel, "hello")
        for reference, content in (
            ("an apple", "names no job"),
            ("seed 99", "none has the seed 99"),
            (plain_message.jump_url, "shows no job"),
            ("01ARZ3NDEKTSV4RRFFQ69G5FAV", "no such job"),
        ):
            result = await world.alice.slash(world.channel, "reproduce", job=reference)
            assert result.ephemeral
            assert content in text(result)


async def test_private_jobs_and_jobs_of_other_servers_are_out_of_reach(open_world: Any) -> None:
    async with open_world() as world:
        message = await imagine(world)
        job = (await newest_view(world)).id
        other_guild = world.env.create_guild("Elsewhere")
        other_member = other_guild.add_member(world.env.create_user("dora"))
        room = other_guild.create_text_channel("pictures")
        for command in ("reproduce", "film", "info", "cancel"):
            refusal = await other_member.slash(room, command, job=job)
            assert refusal.ephemeral
            assert "another server" in text(refusal)
            assert "apple" not in text(refusal)
        assert await other_member.autocomplete(room, "reproduce", "job", "") == []
        await world.alice.slash(world.channel, "prefer set", name="results", value="private")
        private_reply = await world.alice.slash(world.channel, "imagine", prompt="secret plum")
        await world.wait_until(lambda: len(world.painter.finished_jobs) == 2)
        secret = await newest_view(world)
        assert secret.is_private
        assert private_reply.ephemeral
        assert [choice["value"] for choice in await world.bob.autocomplete(world.channel, "info", "job", "")] == [job]
        for command in ("reproduce", "film", "info"):
            refusal = await world.bob.slash(world.channel, command, job=secret.id)
            assert "private" in text(refusal)
            assert "plum" not in text(refusal)
        assert message


# /film


async def test_a_film_is_posted_with_alt_text(open_world: Any) -> None:
    async with open_world() as world:
        await imagine(world)
        (offer,) = await world.bob.autocomplete(world.channel, "film", "job", "")
        result = await world.bob.slash(world.channel, "film", job=offer["value"])
        assert not result.ephemeral
        assert "red apple" in text(result)
        assert "alice" in text(result)
        (attachment,) = result.response.attachments
        assert attachment.filename.endswith("-film.webp")
        assert "red apple" in (attachment.description or "")
        film = Image.open(io.BytesIO(world.env.backend.cdn.get(attachment.url)))
        assert film.format == "WEBP"


async def test_a_film_is_made_smaller_to_fit_or_is_refused(open_world: Any) -> None:
    async with open_world() as world:
        await imagine(world)
        job = (await newest_view(world)).id
        full_film = await world.services.gallery.render_film(job)
        smaller_film = await world.services.gallery.render_film(job, len(full_film) - 1)
        assert len(smaller_film) < len(full_film)
        with pytest.raises(UserError, match="too large"):
            await world.services.gallery.render_film(job, 10)


@pytest.mark.slow
async def test_a_job_without_a_film_is_refused(open_world: Any) -> None:
    async with open_world() as world:
        world.painter.pause_step = 1
        await world.alice.slash(world.channel, "imagine", prompt="red apple")
        refusal = await world.alice.slash(world.channel, "film", job=(await newest_view(world)).id)
        assert refusal.ephemeral
        assert "no film" in text(refusal)


# /help


async def read_help(member: Any, channel: Any) -> str:
    """Read the text, which is one message or two."""
    result = await member.slash(channel, "help")
    return text(result) + "".join(each.content for each in result.followups)


async def test_help_links_commands_and_tells_staff_more(open_world: Any) -> None:
    async with open_world() as world:
        content = await read_help(world.alice, world.channel)
        assert {*list_help()} < {*re.findall(r"</([a-z -]+):\d+>", content)}
        assert "settings" not in content
        assert re.search(r"</settings show:\d+>", await read_help(create_moderator(world), world.channel))


# menus


@pytest.mark.slow
async def test_the_menus_of_a_message_by_the_bot(open_world: Any) -> None:
    async with open_world() as world:
        message = await imagine(world, seed=5)
        details = await world.bob.context_menu(world.channel, "Details", message)
        assert details.ephemeral
        assert "Seed: 5" in text(details)
        reproduced = await world.bob.context_menu(world.channel, "Reproduce", message)
        assert not reproduced.ephemeral
        assert (await newest_view(world)).task.seed == 5
        reply = await world.bob.context_menu(world.channel, "Use as prompt", message)
        assert reply.modal["components"][0]["component"]["value"] == "red apple"
        await world.restart()
        accepted = await world.bob.submit_modal(reply, {"prompt": "red apple, at dawn"})
        assert "red apple, at dawn" in text(accepted)
        assert (await newest_view(world)).member_name == "bob"
        invalid_reply = await world.bob.context_menu(world.channel, "Use as prompt", message)
        refusal = await world.bob.submit_modal(invalid_reply, {"prompt": "red apple --stepps 5"})
        assert refusal.ephemeral
        assert "steps" in text(refusal)


async def test_a_message_is_reported_by_its_menu(open_world: Any) -> None:
    async with open_world() as world:
        message = await imagine(world)
        own_report = await world.alice.context_menu(world.channel, "Report", message)
        assert own_report.ephemeral
        assert "delete it instead" in text(own_report)
        form = await world.bob.context_menu(world.channel, "Report", message)
        reply = await world.bob.submit_modal(form, {"reason": "too red"})
        assert reply.ephemeral
        assert "Reported" in text(reply)
        (incident,) = await world.app.services.moderation.list_incidents(make_moderator(world))
        assert incident.text == "too red"


def make_moderator(world: Any) -> Member:
    return Member("discord:1", "carol", f"discord:{world.guild.id}", is_moderator=True)


async def test_the_menus_of_a_members_message(open_world: Any) -> None:
    async with open_world() as world:
        message = await world.bob.send(world.channel, "a dog\non the moon")
        reply = await world.alice.context_menu(world.channel, "Use as prompt", message)
        assert reply.modal["components"][0]["component"]["value"] == "a dog on the moon"
        for menu in ("Details", "Reproduce"):
            refusal = await world.alice.context_menu(world.channel, menu, message)
            assert refusal.ephemeral
            assert "shows no job" in text(refusal)
        message_without_text = await world.bob.send(world.channel, "", attachments=[("a.png", b"x")])
        assert "no words" in text(await world.alice.context_menu(world.channel, "Use as prompt", message_without_text))


# the rules of a server


async def test_a_command_that_the_server_forbids_is_refused(open_world: Any) -> None:
    async with open_world() as world:
        await imagine(world)
        owner = world.env.create_user("owner")
        admin = world.guild.add_member(
            owner, roles=[world.guild.create_role("admin", permissions=discord.Permissions(manage_guild=True))]
        )
        await admin.slash(world.channel, "settings set", setting="commands", value="imagine")
        job = (await newest_view(world)).id
        refusal = await world.alice.slash(world.channel, "film", job=job)
        assert refusal.ephemeral
        assert "may not use film" in text(refusal)
        assert "may not use queue" in text(await world.alice.slash(world.channel, "queue"))
        assert "🚫" in text(await world.alice.slash(world.channel, "reproduce", job=job))
        assert "🚫" not in text(await world.alice.slash(world.channel, "info"))


async def test_an_internal_error_gives_an_apology(open_world: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    async with open_world() as world:

        async def raise_error(*_: object, **__: object) -> None:
            raise DatabaseUnavailable("The database cannot be used now.")

        with monkeypatch.context() as broken_rules:
            broken_rules.setattr(world.app.services.rule_admin, "check_command", raise_error)
            at_the_door = await world.alice.slash(world.channel, "queue")
        assert at_the_door.ephemeral
        assert "Something broke on our side" in text(at_the_door)
        monkeypatch.setattr(world.app.services.history, "load_page", raise_error)
        listing = await world.alice.slash(world.channel, "mine", which="all")
        assert "Something broke" in "".join(each.content for each in listing.followups)
        (error,) = world.env.errors
        assert isinstance(error, discord.app_commands.CommandInvokeError)


# registration of commands


async def test_the_tree_is_registered_once_and_its_ids_are_remembered(open_world: Any) -> None:
    async with open_world() as world:

        def registrations() -> int:
            return sum(each.path.endswith("/commands") for each in world.env.http_requests if each.method == "PUT")

        assert registrations() == 1
        await world.restart()
        assert registrations() == 1
        assert re.fullmatch(r"</queue:\d+>", world.client.tree.mention("queue"))
        assert world.client.tree.mention("settings show").startswith("</settings show:")
        assert world.client.tree.mention("unknown") == "`/unknown`"
        (world.folder / "synced").write_text("0" * 64)  # no state of ours
        await world.restart()
        assert registrations() == 2
