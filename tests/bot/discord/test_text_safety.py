"""Text from members is never more than text: no ping, format, link, embed or disguise, in any message of the bot.

First the escaping itself, against a list of attacks and random mixes of them; then the whole bot with all of them.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import discord
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bot.discord.cards import job_cards
from bot.discord.cards.job_cards import escape_code_block
from bot.discord.components import deletion
from bot.domain.dto import Member
from bot.domain.texts import MAX_MARKS, clean_text, escape_discord, shorten
from bot.pictures.image_codec import read_recipe_text

ATTACKS = {
    "everyone": "@everyone",
    "here": "@here",
    "user": "<@1>",
    "nick": "<@!1>",
    "role": "<@&2>",
    "channel": "<#3>",
    "command": "</imagine:1>",
    "subcommand": "</settings show:1>",
    "guild": "<id:browse>",
    "customize": "<id:customize>",
    "linked roles": "<id:linked-roles:1>",
    "emoji": "<:ok:1>",
    "moving emoji": "<a:ok:1>",
    "time": "<t:1:R>",
    "heading": "# big",
    "small": "-# small",
    "quote": "> quote",
    "long quote": ">>> quote",
    "list": "- item",
    "star list": "* item",
    "numbers": "1. item",
    "more numbers": "12) item",
    "bold": "**bold**",
    "italic": "*it*",
    "other italic": "_it_",
    "underline": "__under__",
    "strike": "~~no~~",
    "spoiler": "||secret||",
    "code": "`code`",
    "block": "```py\ncode\n```",
    "link": "[click](https://evil.example)",
    "hidden link": "[a](<https://evil.example>)",
    "address": "https://evil.example/a_b",
    "quiet address": "<https://evil.example>",
    "invite": "discord.gg/evil",
    "long invite": "https://discord.com/invite/evil",
    "bare invite": "discord.com/invite/evil",
    "app": "discord://-/x",
    "mail": "mailto:a@evil.example",
    "attachment": "attachment://x.png",
    "newline": "a\n# b\n> c",
    "return": "a\r# b",
    "separator": "a\u2028# b",
    "next line": "a\u0085# b",
    "override": "\u202egnp.exe",
    "isolate": "\u2067abc\u2069",
    "joiner": "@\u200deveryone",
    "zero width": "@\u200beveryone",
    "tag": "a\U000e0041\U000e007f",
    "escape": "\\",
    "escaped": "\\*x\\*",
    "escaped escape": "\\\\**x**",
    "null": "a\0b",
    "bell": "\x07\x1b[31m",
    "fill": "\u3164\u2800",
    "zalgo": "z\u0300\u0301\u0302\u0303\u0304\u0305\u0489\u20dda",
    "surrogate": "\ud800",
    "private": "\ue000\uf8ff",
    "ticks": "`````",
    "many ticks": "``" * 9,
    "long word": "w" * 1900,
}
LINK = r"https://discord\.com/channels/[@\d/me]+"
OWN_MARKUP = re.compile(rf"<t:\d+:[Rf]>|<@\d+>|</[a-z ]+:\d+>|\[open\]\({LINK}\)|{LINK}")

mixed_attacks = st.lists(st.sampled_from(sorted(ATTACKS.values())) | st.text(max_size=6), max_size=12).map("".join)
spaced_attacks = st.lists(st.sampled_from(sorted(ATTACKS.values())) | st.text(max_size=6), max_size=12).map(" ".join)
quick_settings = settings(deadline=None, max_examples=400)


def strip_escapes(text: str) -> str:
    """Removes escaped characters: a backslash disables any character but letters, digits and spaces."""
    return re.sub(r"\\[^0-9A-Za-z\s]", "·", text)


def check_plain(text: str) -> None:
    """Assert that the text holds nothing that Discord interprets."""
    assert text.isprintable() or "\u200b" in text
    stripped = strip_escapes(text)
    assert not re.search(r"[*_~`|<>#\[\]\\/]", stripped), stripped
    assert not re.search(r"@(?!\u200b)", stripped)
    assert not re.match(r"\s*(?:[-+*]|\d+[.)])\s", stripped), stripped
    assert not re.search(r"://|\bdiscord(?:app)?\.(?:gg|com)/", stripped)
    assert "\n" not in text
    for character in text.replace("\u200b", "").replace("\u200c", "").replace("\u200d", ""):
        assert unicodedata.category(character) not in ("Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp"), hex(ord(character))
    assert not re.search(rf"[\u0300-\u036f\u0489\u20d0-\u20f0]{{{MAX_MARKS + 1}}}", text)


@pytest.mark.parametrize("name", sorted(ATTACKS))
def test_no_attack_survives_being_quoted(name: str) -> None:
    for text in (ATTACKS[name], f"a {ATTACKS[name]} b", ATTACKS[name] * 2, f" \n{ATTACKS[name]}"):
        check_plain(escape_discord(text, 4000))
        for limit in range(1, 40):
            check_plain(escape_discord(text, limit))
            assert len(escape_discord(text, limit)) <= limit


@quick_settings
@given(mixed_attacks | spaced_attacks, st.integers(1, 300))
def test_no_mix_of_attacks_survives_being_quoted(text: str, limit: int) -> None:
    check_plain(escape_discord(text, limit))
    check_plain(escape_discord(text, 10_000))
    cleaned = clean_text(text)
    assert clean_text(cleaned) == cleaned
    assert cleaned.isprintable() or re.search("[\u200c\u200d]", cleaned)
    assert len(shorten(text, limit)) <= limit


@quick_settings
@given(mixed_attacks | spaced_attacks)
def test_a_quoted_text_reads_as_it_was_written(text: str) -> None:
    unescaped_text = re.sub(r"\\([^0-9A-Za-z\s])", r"\1", escape_discord(text, 100_000)).replace("@\u200b", "@")
    assert unescaped_text == clean_text(text)


@quick_settings
@given(st.text("`a\n\u200b", max_size=60) | mixed_attacks, st.integers(20, 200))
def test_nothing_ends_a_code_block(text: str, limit: int) -> None:
    assert "```" not in escape_code_block(clean_text(text), limit)
    assert "@everyone" not in escape_code_block(clean_text(text), limit)


# The whole bot

NAME = "**@everyone** <@&2> [x](https://evil.example) \u202e`x` ||y||"
HOSTILE = [" ".join(list(ATTACKS.values())[start : start + 9]) for start in range(0, 63, 9)]


def each_text(message: Any) -> Iterator[str]:
    """Every text of a message that Discord reads as markdown."""
    yield message.content

    def list_strings(part: Any) -> Iterator[str]:
        part = part if isinstance(part, dict) else part.to_dict()
        if "content" in part:
            yield part["content"]
        for inner in (*part.get("components", ()), *([part["accessory"]] if "accessory" in part else ())):
            yield from list_strings(inner)

    for part in message.components:
        yield from list_strings(part)


def check_harmless(message: Any) -> None:
    """Assert that a message, as Discord gets it, pings nobody, embeds nothing and links nowhere."""
    raw = getattr(message, "_message", message)  # the message of the simulated Discord for a response
    assert not raw.mention_everyone
    mention_fields = ("mentions", "role_mentions", "mention_user_ids", "mention_role_ids")
    assert not any(getattr(raw, name, None) for name in mention_fields)
    assert list(message.embeds) == []
    for text in each_text(message):
        stripped = strip_escapes(re.sub(r"```.*?```", "", OWN_MARKUP.sub("", text), flags=re.DOTALL))
        assert not re.search(r"@(?!\u200b)|<(?=[@#:/tai])|://|\]\(|\|\||~~|\bdiscord\.gg/", stripped), text
        assert not re.search(r"^(?:# |>>> |```)", stripped, re.MULTILINE), text
        assert not re.search("[\u202a-\u202e\u2066-\u2069\ud800-\udfff\ue000-\uf8ff\u0000-\u0009\u000b-\u001f]", text)
    for attachment in message.attachments:
        assert re.fullmatch(r"[A-Za-z0-9._-]{1,80}", attachment.filename)
        alt_text = attachment.description or ""
        assert len(alt_text) <= job_cards.MAX_ALT
        assert clean_text(alt_text) == alt_text


async def create_hostile_author(world: Any) -> Any:
    return world.guild.add_member(world.env.create_user("mallory", global_name=NAME[:32]), nick=NAME[:32])


@pytest.mark.sampled
@pytest.mark.asyncio
@pytest.mark.parametrize("prompt", HOSTILE, ids=range(len(HOSTILE)))
async def test_no_message_of_the_bot_obeys_a_hostile_prompt_or_name(open_world: Any, prompt: str) -> None:
    words = "fox " + re.sub(r"-#|[{}]|\ud800", " ", prompt)[:1500]  # the grammar would refuse these
    async with open_world() as world:
        hostile_author = await create_hostile_author(world)
        result = await hostile_author.slash(
            world.channel, "imagine", prompt=words, negative=prompt.replace("\ud800", "")[:900]
        )
        check_harmless(result.response)
        assert "fox" in result.response.content, result.response.content
        check_harmless(await world.wait_for_end(result))
        (view,) = await world.services.job_views.load_recent()
        for command, options in (("queue", {}), ("info", {}), ("info", {"job": view.id}), ("mine", {})):
            check_harmless((await world.bob.slash(world.channel, command, **options)).response)
            check_harmless((await hostile_author.slash(world.channel, command, **options)).response)
        for message in world.channel.history():
            check_harmless(message)
            for attachment in message.attachments:
                text = read_recipe_text(world.env.backend.cdn.get(attachment.url))
                assert not re.search(r"[\u0000-\u0009\u000b-\u001f\u007f\u202e\u200b]", text)


@pytest.mark.asyncio
async def test_a_refusal_that_quotes_a_prompt_is_harmless_and_ephemeral(open_world: Any) -> None:
    async with open_world() as world:
        hostile_author = await create_hostile_author(world)
        for typed_text in (
            "fox --steps @everyone",
            "fox --model <@&2>",
            "fox --ar [a](https://evil.example)",
            "fox --seed **b**||3||",
        ):
            reply = await hostile_author.slash(world.channel, "imagine", prompt=typed_text)
            assert reply.ephemeral
            check_harmless(reply.response)
        assert [message for message in world.channel.history() if "evil" in message.content] == []


@pytest.mark.asyncio
async def test_a_forbidden_word_is_named_to_its_author_alone(open_world: Any) -> None:
    async with open_world() as world:
        member = await create_alices_member(world)
        admin = replace(member, id="discord:1", name="Ada", is_moderator=True, is_admin=True)
        await world.app.services.rule_admin.set_rule(admin, "guild", "", "words", "gore")
        reply = await world.alice.slash(world.channel, "imagine", prompt="g.0.r.e, at night")
        assert reply.ephemeral
        assert reply.response.content == (
            "🚫 “gore” may not be in a prompt here: it is on the word list of this server's admins."
        )
        assert list(world.channel.history()) == []
        incident, *_ = await world.app.services.moderation.list_incidents(admin)
        assert (incident.kind, incident.actor_name) == ("word", "alice")
        accepted_reply = await world.alice.slash(world.channel, "imagine", prompt="a gorey fox, gored")
        assert not accepted_reply.ephemeral


@pytest.mark.asyncio
async def test_members_learn_nothing_of_jobs_in_channels_they_cannot_see(open_world: Any) -> None:
    async with open_world() as world:
        hidden_permissions = {world.guild.default_role: discord.PermissionOverwrite(view_channel=False)}
        moderator_channel = world.guild.create_text_channel(
            "crew", overwrites={**hidden_permissions, world.alice: discord.PermissionOverwrite(view_channel=True)}
        )
        role = world.guild.create_role("mod", permissions=discord.Permissions(manage_messages=True, view_channel=True))
        moderator = world.guild.add_member(world.env.create_user("mo"), roles=[role])
        world.painter.pause_step = 3
        await world.alice.slash(moderator_channel, "imagine", prompt="a secret fox")
        await world.wait_until(lambda: not world.painter.step_gate.is_set())
        (view,) = await world.services.job_views.load_recent()
        assert not view.is_private
        for reader in (world.bob, moderator):
            content = (await reader.slash(world.channel, "queue")).response.content
            assert "a private picture" in content
            assert "secret" not in content
            for command in ("info", "reproduce", "film"):
                reply = await reader.slash(world.channel, command, job=view.id)
                assert reply.response.content == "🚫 That job belongs to a channel that you cannot see."
        assert "secret" not in str(await moderator.autocomplete(world.channel, "cancel", "job", ""))
        assert "a secret fox" in (await world.alice.slash(world.channel, "queue")).response.content
        world.painter.pause_step = None
        reply = await moderator.slash(world.channel, "cancel", job=view.id)
        assert "Cancelling" in reply.response.content, "moderators can stop it all the same"
        assert "secret" not in reply.response.content
        world.painter.step_gate.set()


async def create_alices_member(world: Any) -> Any:
    """Returns Alice as the app knows her, from a job that it deletes again."""
    await world.wait_for_end(await world.alice.slash(world.channel, "imagine", prompt="a lamp"))
    (view,) = await world.services.job_views.load_recent()
    member = Member(view.member_id, view.member_name, view.guild)
    await world.app.services.moderation.delete_pictures(view.id, member)
    for message in list(world.channel.history()):
        await world.client.http.delete_message(world.channel.id, message.id)
    return member


@pytest.mark.slow
@pytest.mark.asyncio
async def test_others_see_only_that_a_private_job_exists(open_world: Any) -> None:
    async with open_world() as world:
        await world.app.services.preferences.set_preference(f"discord:{world.alice.id}", "results", "private")
        world.painter.pause_step = 3
        result = await world.alice.slash(world.channel, "imagine", prompt="a secret fox")
        assert result.ephemeral
        await world.wait_until(lambda: not world.painter.step_gate.is_set())
        content = (await world.bob.slash(world.channel, "queue")).response.content
        assert "a private picture" in content
        assert "secret" not in content
        assert "alice" not in content
        own_queue = (await world.alice.slash(world.channel, "queue")).response.content
        assert "a secret fox" in own_queue
        (view,) = await world.services.job_views.load_recent()
        for command, option in (("info", "job"), ("cancel", "job"), ("reproduce", "job"), ("film", "job")):
            offers = await world.bob.autocomplete(world.channel, command, option, "")
            assert "secret" not in str(offers)
            reply = await world.bob.slash(world.channel, command, **{option: view.id})
            assert reply.ephemeral
            assert "secret" not in str(list(each_text(reply.response)))
        assert "secret" not in str(await world.bob.autocomplete(world.channel, "imagine", "prompt", "a"))
        assert all(
            "secret" not in message.content for message in world.channel.history() if not message.flags.ephemeral
        )
        world.painter.pause_step = None
        world.painter.step_gate.set()


@pytest.mark.slow
@pytest.mark.asyncio
async def test_a_job_deleted_while_it_runs_is_not_posted_again(
    open_world: Any, caplog: pytest.LogCaptureFixture
) -> None:
    async with open_world() as world:
        world.painter.pause_step = 5
        result = await world.alice.slash(world.channel, "imagine", prompt="a fox")
        await world.wait_until(lambda: "step 4 of 20" in world.message(result.response.id).content)
        (view,) = await world.services.job_views.load_recent()
        member = Member(view.member_id, view.member_name, view.guild)
        await deletion.delete_job(world.client, view.id, member)
        world.painter.pause_step = None
        world.painter.step_gate.set()
        await world.wait_until(lambda: view.id not in world.app.queue.active_jobs.by_id)
        assert (await world.app.store.get_job(view.id)).state == "cancelled"
        second_reply = await world.alice.slash(world.channel, "imagine", prompt="a lamp", count=1)
        await world.wait_for_end(second_reply)
        assert ["fox" in message.content for message in world.channel.history()] == [False]
        assert [each.getMessage() for each in caplog.records if each.levelname in ("ERROR", "CRITICAL")] == []
