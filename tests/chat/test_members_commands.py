"""The members' commands, typed and pressed as members do, over a real studio, store and broker."""

from __future__ import annotations

import io
import re
from typing import Any

import discord
import msgspec
import pytest
from PIL import Image

from bot.refused import Refused
from bot.store import Unavailable, members
from bot.views import Member

pytestmark = pytest.mark.asyncio


def text(result: Any) -> str:
    assert result.response
    return result.response.content


def written(result: Any) -> str:
    """All text of a message of components."""
    found: list[str] = []

    def visit(part: dict[str, Any]) -> None:
        if "content" in part:
            found.append(part["content"])
        for inner in (*part.get("components", ()), *([part["accessory"]] if "accessory" in part else ())):
            visit(inner)

    for part in result.response.components:
        visit(part)
    return "\n".join(found)


def buttons(result: Any) -> dict[str, bool]:
    """The labels of a message's buttons, and whether each can be pressed."""
    rows = [row for row in result.response.components if row["type"] == 1]
    return {
        one["label"]: not one.get("disabled", False) for row in rows for one in row["components"] if one["type"] == 2
    }


async def draw(world: Any, who: Any = None, prompt: str = "red apple", **options: Any) -> Any:
    """The finished message of a job."""
    return await world.ended(await (who or world.alice).slash(world.channel, "imagine", prompt=prompt, **options))


async def newest(world: Any) -> Any:
    return (await world.studio.recent())[0]


def a_moderator(world: Any, name: str = "carol") -> Any:
    role = world.guild.create_role("mod", permissions=discord.Permissions(manage_messages=True))
    return world.guild.add_member(world.env.create_user(name), roles=[role])


# /cancel


async def test_cancel_offers_ones_own_open_jobs_and_takes_one_back(open_world: Any) -> None:
    async with open_world() as world:
        world.painter.stand_at = 3
        result = await world.alice.slash(world.channel, "imagine", prompt="red apple")
        await world.until(lambda: world.painter.going.is_set() is False)
        (offer,) = await world.alice.autocomplete(world.channel, "cancel", "job", "")
        assert re.fullmatch(r"red apple · running, step \d+ of 20", offer["name"])
        assert await world.bob.autocomplete(world.channel, "cancel", "job", "") == []
        refused = await world.bob.slash(world.channel, "cancel", job=offer["value"])
        assert refused.ephemeral
        assert "Only alice and moderators" in text(refused)
        done = await world.alice.slash(world.channel, "cancel", job=offer["value"])
        assert done.ephemeral
        assert "red apple" in text(done)
        assert "Cancelling" in text(done)
        assert "ancelled" in (await world.ended(result)).content
        late = await world.alice.slash(world.channel, "cancel", job=offer["value"])
        assert "cancelled" in text(late).lower()


async def test_cancel_all_takes_back_everything_of_ones_own_and_nothing_else(open_world: Any) -> None:
    async with open_world() as world:
        nothing = await world.alice.slash(world.channel, "cancel", job="all")
        assert "Nothing of yours" in text(nothing)
        world.painter.stand_at = 1
        theirs = [await world.alice.slash(world.channel, "imagine", prompt=f"apple {n}") for n in range(4)]
        other = await world.bob.slash(world.channel, "imagine", prompt="pear")
        offers = await world.alice.autocomplete(world.channel, "cancel", "job", "")
        assert offers[0] == {"name": "All of mine: 4 jobs", "value": "all"}
        assert [choice["value"] for choice in await world.alice.autocomplete(world.channel, "cancel", "job", "2")] != []
        done = await world.alice.slash(world.channel, "cancel", job="All")
        assert "4 jobs cancelled" in text(done)
        for result in theirs:
            assert "ancelled" in (await world.ended(result)).content
        assert world.labels(world.message(other.response.id)) == ["Cancel"]


async def test_moderators_cancel_others_jobs(open_world: Any) -> None:
    async with open_world() as world:
        world.painter.stand_at = 1
        result = await world.alice.slash(world.channel, "imagine", prompt="red apple")
        carol = a_moderator(world)
        (offer,) = await carol.autocomplete(world.channel, "cancel", "job", "apple")
        assert "by alice" in offer["name"]
        assert "🚫" not in text(await carol.slash(world.channel, "cancel", job=offer["value"]))
        assert "ancelled" in (await world.ended(result)).content


# /queue


async def test_the_queue_says_how_to_take_ones_own_back(open_world: Any) -> None:
    async with open_world() as world:
        world.painter.stand_at = 1
        await world.alice.slash(world.channel, "imagine", prompt="red apple")
        assert re.search(r"</cancel:\d+>", text(await world.alice.slash(world.channel, "queue")))
        assert "cancel" not in text(await world.bob.slash(world.channel, "queue"))


# /mine


async def test_mine_shows_ones_own_with_pictures_and_nobody_elses(open_world: Any) -> None:
    async with open_world() as world:
        message = await draw(world)
        await draw(world, world.bob, "green pear")
        result = await world.alice.slash(world.channel, "mine")
        assert result.ephemeral
        said = written(result)
        assert "1 job" in said
        assert "red apple" in said
        assert "pear" not in said
        assert message.jump_url in said
        (attachment,) = result.response.attachments
        picture = Image.open(io.BytesIO(world.env.backend.cdn.get(attachment.url)))
        assert max(picture.size) <= 320
        assert buttons(result) == {"All": False, "Favourites": True, "Waiting": True, "Not shown": True}


async def test_mine_turns_pages_after_a_restart(open_world: Any) -> None:
    async with open_world() as world:
        for n in range(7):
            await draw(world, prompt=f"apple {n}", count=1, steps=1)
        result = await world.alice.slash(world.channel, "mine")
        assert "page 1 of 2" in written(result)
        assert "apple 6" in written(result)
        assert "apple 1" not in written(result)
        assert (buttons(result)["← Newer"], buttons(result)["Older →"]) == (False, True)
        await world.restart()
        await world.alice.click(result.response, label="Older →")
        assert "page 2 of 2" in written(result)
        assert "apple 0" in written(result)
        assert "apple 6" not in written(result)
        assert len(result.response.attachments) == 2
        await world.alice.click(result.response, label="← Newer")
        assert "apple 6" in written(result)
        beyond = await world.alice.slash(world.channel, "mine", page=99)
        assert "page 2 of 2" in written(beyond)


async def test_mine_filters(open_world: Any) -> None:
    async with open_world() as world:
        await draw(world)
        job = (await newest(world)).id
        world.painter.stand_at = 1
        await world.alice.slash(world.channel, "imagine", prompt="blue plum")
        result = await world.alice.slash(world.channel, "mine", which="waiting")
        assert "blue plum" in written(result)
        assert "red apple" not in written(result)
        await world.alice.click(result.response, label="Favourites")
        assert "No picture is a favourite" in written(result)
        await world.house.store.write(members.favour, f"discord:{world.alice.id}", job, 2, 1.0)
        await world.alice.click(result.response, label="All")
        await world.alice.click(result.response, label="Favourites")
        assert "red apple" in written(result)
        assert "★3" in written(result)
        await world.alice.click(result.response, label="Not shown")
        assert "were shown where you asked" in written(result)

        reason = "Its channel was deleted."
        for role in ("answer", "direct"):
            await world.deliveries.add(job, role, await world.deliveries.place_of(job))
            await world.deliveries.delivered(job, role, reason)
        result = await world.alice.slash(world.channel, "mine", which="unshown")
        assert "red apple" in written(result)
        assert reason in written(result)
        assert "[open]" not in written(result)
        shown = await world.alice.select(result.response, [job], custom_id="mine:show")
        assert shown.ephemeral
        assert "red apple" in text(shown)
        assert world.labels(shown.response)[0] == "U1"
        assert len(shown.response.attachments) == 1


async def test_mine_in_a_direct_conversation_has_the_jobs_of_every_server(open_world: Any) -> None:
    async with open_world() as world:
        await draw(world)
        result = await world.alice.user.slash("mine")
        assert "red apple" in written(result)
        empty = await world.bob.user.slash("mine")
        assert "made nothing yet" in written(empty)


# /info


async def test_info_says_every_limit_and_how_the_house_stands(open_world: Any) -> None:
    async with open_world() as world:
        world.painter.stand_at = 1
        await world.alice.slash(world.channel, "imagine", prompt="red apple")
        await world.until(lambda: not world.painter.going.is_set())
        result = await world.alice.slash(world.channel, "info")
        assert result.ephemeral
        said = text(result)
        assert "Running: 1 of 3" in said
        assert "Waiting: 0 of 7" in said
        assert "Device time in 24 hours" in said
        assert "**Queue here**\n• 1 running, 0 waiting\n" in said
        assert "embedded" in said
        assert "Darkroom" in said


async def test_info_tells_the_models_in_memory_from_those_on_a_disk(open_world: Any) -> None:
    async with open_world() as world:
        mine = world.painter.model
        world.painter.models = (mine, msgspec.structs.replace(mine, name="large", loaded=False))
        await world.until(lambda: len(world.studio.models()) == 2)
        said = text(await world.alice.slash(world.channel, "info"))
        assert "• Models: embedded\n• Loaded on demand: large\n" in said
        models = await world.alice.autocomplete(world.channel, "imagine", "model", "")
        assert [one["name"] for one in models] == ["embedded", "large (loaded on demand)"]


async def test_info_of_a_job_has_parameters_to_copy(open_world: Any) -> None:
    async with open_world() as world:
        message = await draw(world, prompt="red `apple` ```x --no fog", seed=7)
        view = await newest(world)
        result = await world.bob.slash(world.channel, "info", job=message.jump_url)
        assert result.ephemeral
        said = text(result)
        assert said.count("```") == 2, "nothing that a member wrote ends the block"
        assert "Negative prompt: fog" in said
        assert "Seed: 7" in said
        assert "Size: 64x64" in said
        assert view.id in said
        assert "asked for <t:" in said
        (offer,) = await world.alice.autocomplete(world.channel, "info", "job", "APPLE")
        assert offer["value"] == view.id


# /prefer


async def test_prefer_shows_sets_and_sets_back(open_world: Any) -> None:
    async with open_world() as world:
        shown = await world.alice.slash(world.channel, "prefer show")
        assert shown.ephemeral
        assert "`ping` **on**" in text(shown)
        assert "`speed` **fast**" in text(shown)
        chosen = await world.alice.slash(world.channel, "prefer set", name="speed", value="Relaxed")
        assert "**relaxed**" in text(chosen)
        assert (await world.house.desk.preferences.of(f"discord:{world.alice.id}")).speed == "relaxed"
        assert "**fast**" in text(await world.bob.slash(world.channel, "prefer set", name="speed"))
        back = await world.alice.slash(world.channel, "prefer set", name="speed")
        assert "**fast**" in text(back)
        wrong = await world.alice.slash(world.channel, "prefer set", name="ping", value="perhaps")
        assert "🚫" in text(wrong)
        assert "on or off" in text(wrong)


async def test_prefer_offers_what_the_chosen_one_can_be(open_world: Any) -> None:
    async with open_world() as world:

        async def offered(name: str, typed: str = "") -> list[str]:
            found = await world.alice.autocomplete(world.channel, "prefer set", "value", typed, name=name)
            return [choice["value"] for choice in found]

        assert await offered("speed") == ["fast", "relaxed"]
        assert await offered("ping") == ["on", "off"]
        assert await offered("variation", "str") == ["strong"]
        assert await offered("suffix") == []


async def test_a_suffix_goes_behind_the_words_and_is_said(open_world: Any) -> None:
    async with open_world() as world:
        await world.alice.slash(world.channel, "prefer set", name="suffix", value="pale, at dawn --no fog")
        result = await world.alice.slash(world.channel, "imagine", prompt="red apple --no worm --seed 5")
        assert "Your suffix was added" in text(result)
        await world.ended(result)
        view = await newest(world)
        assert view.prompt == "red apple pale, at dawn --no fog --no worm --seed 5"
        assert view.recipe.negative == "worm", "what is typed wins"
        again = await world.alice.slash(world.channel, "imagine", prompt=view.prompt)
        assert "suffix" not in text(again), "it is there already"
        other = await world.bob.slash(world.channel, "imagine", prompt="red apple")
        assert "suffix" not in text(other)


async def test_switches_and_a_suffix_are_called_as_in_midjourney(open_world: Any) -> None:
    async with open_world() as world:
        preferences, me = world.house.desk.preferences, f"discord:{world.alice.id}"
        for command, name in (("prefer remix", "remix"), ("prefer auto_dm", "direct")):
            for on in (True, False):
                result = await world.alice.slash(world.channel, command)
                assert result.ephemeral
                assert ("**on**" if on else "**off**") in text(result)
                assert getattr(await preferences.of(me), name) is on
        await world.alice.slash(world.channel, "prefer suffix", value="pale")
        assert (await preferences.of(me)).suffix == "pale"
        assert "**none**" in text(await world.alice.slash(world.channel, "prefer suffix"))


async def test_flags_of_ones_own_are_set_listed_used_and_deleted(open_world: Any) -> None:
    async with open_world() as world:
        none = await world.alice.slash(world.channel, "prefer option list")
        assert none.ephemeral
        assert "no flag alias yet" in text(none)
        chosen = await world.alice.slash(
            world.channel, "prefer option set", name="mine", value="pale `one` --seed 5 --count 1"
        )
        assert chosen.ephemeral
        assert "From now on: `--mine` stands for **pale" in text(chosen)
        result = await world.alice.slash(world.channel, "imagine", prompt="red apple --mine")
        assert "--mine stands for" in text(result)
        await world.ended(result)
        view = await newest(world)
        assert (view.prompt, view.recipe.seed) == ("red apple pale `one` --seed 5 --count 1", 5)
        assert "no flag --mine" in text(await world.bob.slash(world.channel, "imagine", prompt="red apple --mine"))
        (offer,) = await world.alice.autocomplete(world.channel, "prefer option set", "name", "mi")
        assert offer["value"] == "mine"
        assert "`--mine`" in text(await world.alice.slash(world.channel, "prefer option list"))
        wrong = await world.alice.slash(world.channel, "prefer option set", name="other", value="--steps 9999")
        assert "--steps 9999 is not possible" in text(wrong)
        gone = await world.alice.slash(world.channel, "prefer option set", name="mine")
        assert "`--mine` is deleted" in text(gone)
        assert "no option --mine" in text(await world.alice.slash(world.channel, "prefer option set", name="mine"))


# /reproduce


async def test_reproduce_by_link_seed_id_and_choice(open_world: Any) -> None:
    async with open_world() as world:
        message = await draw(world, seed=41, prompt="red apple --no worm")
        first = await newest(world)
        footer = next(line for line in message.content.split("\n") if "seed" in line)
        (offer,) = await world.bob.autocomplete(world.channel, "reproduce", "job", "apple")
        assert offer["value"] == first.id
        assert "by alice" in offer["name"]
        for named in (message.jump_url, footer, "41", first.id.lower(), offer["value"]):
            result = await world.bob.slash(world.channel, "reproduce", job=named)
            assert not result.ephemeral, text(result)
            await world.ended(result)
            made = await newest(world)
            assert made.action == "reproduce"
            assert made.member_name == "bob"
            assert (made.recipe.seed, made.recipe.steps, made.recipe.concepts) == (41, 20, first.recipe.concepts)
            assert made.recipe.bucket, "exact"


async def test_what_names_no_job_is_refused_in_words(open_world: Any) -> None:
    async with open_world() as world:
        hello = await world.bob.send(world.channel, "hello")
        for named, said in (
            ("an apple", "names no job"),
            ("seed 99", "none has the seed 99"),
            (hello.jump_url, "shows no job"),
            ("01ARZ3NDEKTSV4RRFFQ69G5FAV", "no such job"),
        ):
            result = await world.alice.slash(world.channel, "reproduce", job=named)
            assert result.ephemeral
            assert said in text(result)


async def test_anothers_private_job_and_another_servers_are_out_of_reach(open_world: Any) -> None:
    async with open_world() as world:
        message = await draw(world)
        job = (await newest(world)).id
        elsewhere = world.env.create_guild("Elsewhere")
        dora = elsewhere.add_member(world.env.create_user("dora"))
        room = elsewhere.create_text_channel("pictures")
        for command in ("reproduce", "film", "info", "cancel"):
            refused = await dora.slash(room, command, job=job)
            assert refused.ephemeral
            assert "another server" in text(refused)
            assert "apple" not in text(refused)
        assert await dora.autocomplete(room, "reproduce", "job", "") == []
        await world.alice.slash(world.channel, "prefer set", name="results", value="private")
        hidden = await world.alice.slash(world.channel, "imagine", prompt="secret plum")
        await world.until(lambda: len(world.painter.done) == 2)
        secret = await newest(world)
        assert secret.private
        assert hidden.ephemeral
        assert [choice["value"] for choice in await world.bob.autocomplete(world.channel, "info", "job", "")] == [job]
        for command in ("reproduce", "film", "info"):
            refused = await world.bob.slash(world.channel, command, job=secret.id)
            assert "private" in text(refused)
            assert "plum" not in text(refused)
        assert message


# /film


async def test_film_is_posted_with_words_for_those_who_cannot_see_it(open_world: Any) -> None:
    async with open_world() as world:
        await draw(world)
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


async def test_a_film_fits_where_it_is_shown_or_is_refused(open_world: Any) -> None:
    async with open_world() as world:
        await draw(world)
        job = (await newest(world)).id
        whole = await world.studio.film(job)
        smaller = await world.studio.film(job, len(whole) - 1)
        assert len(smaller) < len(whole)
        with pytest.raises(Refused, match="too large"):
            await world.studio.film(job, 10)


async def test_what_has_no_film_says_so(open_world: Any) -> None:
    async with open_world() as world:
        world.painter.stand_at = 1
        await world.alice.slash(world.channel, "imagine", prompt="red apple")
        refused = await world.alice.slash(world.channel, "film", job=(await newest(world)).id)
        assert refused.ephemeral
        assert "no film" in text(refused)


# /help


async def test_help_can_be_tapped_and_tells_staff_more(open_world: Any) -> None:
    async with open_world() as world:
        said = text(await world.alice.slash(world.channel, "help"))
        assert len(re.findall(r"</[a-z ]+:\d+>", said)) == 13
        assert "settings" not in said
        assert re.search(r"</settings show:\d+>", text(await a_moderator(world).slash(world.channel, "help")))


# menus


async def test_the_menus_of_a_message_of_ours(open_world: Any) -> None:
    async with open_world() as world:
        message = await draw(world, seed=5)
        details = await world.bob.context_menu(world.channel, "Details", message)
        assert details.ephemeral
        assert "Seed: 5" in text(details)
        again = await world.bob.context_menu(world.channel, "Reproduce", message)
        assert not again.ephemeral
        assert (await newest(world)).recipe.seed == 5
        shown = await world.bob.context_menu(world.channel, "Use as prompt", message)
        assert shown.modal["components"][0]["component"]["value"] == "red apple"
        await world.restart()
        taken = await world.bob.submit_modal(shown, {"prompt": "red apple, at dawn"})
        assert "red apple, at dawn" in text(taken)
        assert (await newest(world)).member_name == "bob"
        wrong = await world.bob.context_menu(world.channel, "Use as prompt", message)
        refused = await world.bob.submit_modal(wrong, {"prompt": "red apple --stepps 5"})
        assert refused.ephemeral
        assert "steps" in text(refused)


async def test_a_message_is_reported_by_its_menu(open_world: Any) -> None:
    async with open_world() as world:
        message = await draw(world)
        own = await world.alice.context_menu(world.channel, "Report", message)
        assert own.ephemeral
        assert "delete it instead" in text(own)
        shown = await world.bob.context_menu(world.channel, "Report", message)
        done = await world.bob.submit_modal(shown, {"reason": "too red"})
        assert done.ephemeral
        assert "Reported" in text(done)
        (incident,) = await world.house.desk.moderation.incidents(a_moderators_standing(world))
        assert incident.said == "too red"


def a_moderators_standing(world: Any) -> Member:
    return Member("discord:1", "carol", f"discord:{world.guild.id}", moderator=True)


async def test_the_menus_of_anybodys_message(open_world: Any) -> None:
    async with open_world() as world:
        message = await world.bob.send(world.channel, "a dog\non the moon")
        shown = await world.alice.context_menu(world.channel, "Use as prompt", message)
        assert shown.modal["components"][0]["component"]["value"] == "a dog on the moon"
        for menu in ("Details", "Reproduce"):
            refused = await world.alice.context_menu(world.channel, menu, message)
            assert refused.ephemeral
            assert "shows no job" in text(refused)
        bare = await world.bob.send(world.channel, "", attachments=[("a.png", b"x")])
        assert "no words" in text(await world.alice.context_menu(world.channel, "Use as prompt", bare))


# the rules of a server


async def test_what_a_server_does_not_allow_is_refused(open_world: Any) -> None:
    async with open_world() as world:
        await draw(world)
        owner = world.env.create_user("owner")
        admin = world.guild.add_member(
            owner, roles=[world.guild.create_role("admin", permissions=discord.Permissions(manage_guild=True))]
        )
        await admin.slash(world.channel, "settings set", setting="commands", value="imagine")
        job = (await newest(world)).id
        refused = await world.alice.slash(world.channel, "film", job=job)
        assert refused.ephemeral
        assert "may not use film" in text(refused)
        assert "may not use queue" in text(await world.alice.slash(world.channel, "queue"))
        assert "🚫" in text(await world.alice.slash(world.channel, "reproduce", job=job))
        assert "🚫" not in text(await world.alice.slash(world.channel, "info"))


async def test_an_error_of_ours_is_apologised_for(open_world: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    async with open_world() as world:

        async def broken(*_: object, **__: object) -> None:
            raise Unavailable("The database cannot be used now.")

        with monkeypatch.context() as broken_rules:
            broken_rules.setattr(world.house.desk.administration, "allowed", broken)
            at_the_door = await world.alice.slash(world.channel, "queue")
        assert at_the_door.ephemeral
        assert "Something broke on our side" in text(at_the_door)
        monkeypatch.setattr(world.house.desk.shelf, "page", broken)
        listed = await world.alice.slash(world.channel, "mine", which="all")
        assert "Something broke" in "".join(each.content for each in listed.followups)
        (told,) = world.env.errors
        assert isinstance(told, discord.app_commands.CommandInvokeError)


# registering


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
        (world.folder / "synced").write_text("0" * 64)  # as an older version left it
        await world.restart()
        assert registrations() == 2
