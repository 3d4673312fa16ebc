"""Forms and cards about a job against Discord's schema, for any text of members; and the parsing of a sent form."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import discord
import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from simcord.components import validate_components, validate_modal, walk_components

from bot.discord.cards import button_layout, job_cards
from bot.discord.components import review_buttons
from bot.discord.components.branches import KeyframeMenu, build_branch_form
from bot.discord.components.buttons import PictureMenu, build_view
from bot.discord.components.forms import FormSubmission, form_id, parse_submission
from bot.discord.components.picture_actions import FORM_TITLES, build_edit_form, build_remix_form
from bot.discord.components.steering import KeepSelect, build_say_form, read_say_form
from bot.discord.responses import UploadedFile
from bot.domain.dto import PictureRef
from bot.domain.errors import UserError
from bot.domain.steering import SteeringRequest
from bot.prompt import parse
from bot.prompt.concepts import clean_prompt
from bot.prompt.permutations import escape_braces
from bot.services.front_end_actions import Report
from bot.services.moderation.moderation import MAX_REASON
from engine.contract import UpscaleTask
from shared.sample_views import JOB, make_recipe, make_view
from tools.loopback.known_deviations import find_unexplained
from tools.loopback.openapi import FILE, RequestValidator

NASTY = "@everyone <@5> **x** {a, b} \\{c\\} [a](http://b.c) `y` \u202e"
words = st.text(max_size=2000) | st.text(alphabet="{},\\ab -:", max_size=200)


@settings(max_examples=50, deadline=None)
@given(words, words, st.sampled_from(sorted(FORM_TITLES)), st.sampled_from([None, 0, 3]))
def test_a_remix_form_is_within_discords_limits(
    prompt: str, negative_prompt: str, form_kind: Any, index: int | None
) -> None:
    recipe = make_recipe(4)
    view = make_view(prompt=prompt, task=type(recipe)(**{**fields_of(recipe), "negative": negative_prompt[:2000]}))
    modal = build_remix_form(view, form_kind, index).to_dict()
    validate_modal(modal)
    assert len(modal["title"]) <= 45
    for node in walk_components(modal["components"]):
        assert len(node.get("value") or "") <= 2000
        assert len(node.get("label") or "") <= 45
        assert len(node.get("description") or "") <= 100


def fields_of(recipe: Any) -> dict[str, Any]:
    return {name: getattr(recipe, name) for name in recipe.__struct_fields__}


@settings(max_examples=200, deadline=None)
@given(words)
def test_a_prompt_in_a_form_is_taken_literally(text: str) -> None:
    """A prompt that is sent unchanged is one job with the same words."""
    cleaned_text = (
        clean_prompt(text).replace("--", "").replace("::", "").replace("—", "").replace("–", "").replace("―", "")
    )
    if (
        not cleaned_text.strip()
        or len(escape_braces(cleaned_text)) > 2000
        or "\\" in cleaned_text
        or clean_prompt(cleaned_text) != cleaned_text
    ):
        return  # a second repair of garbled text may change more
    parsed = parse(escape_braces(cleaned_text), None)
    assert len(parsed.prompts) == 1
    assert parsed.prompts[0].words == " ".join(cleaned_text.split())


def make_report(**changes: str) -> Report:
    values = {"author": NASTY, "reporter": NASTY, "reason": "x" * MAX_REASON, **changes}
    return Report(12, "discord:1", "5", JOB, values["author"], values["reporter"], values["reason"])


@pytest.mark.skipif(not FILE.exists(), reason="Discord's OpenAPI file is not here")
@pytest.mark.asyncio
async def test_every_form_and_card_fits_discords_openapi_schema() -> None:
    judge = RequestValidator()
    callback = f"/interactions/{10**17}/token/callback"
    for form_kind in FORM_TITLES:
        judge.check_request(
            "POST", callback, {}, {"type": 9, "data": build_remix_form(make_view(prompt=NASTY), form_kind, 0).to_dict()}
        )
    other_forms = (
        review_buttons.build_report_form(JOB),
        build_edit_form(make_view(prompt=NASTY), 3),
        build_branch_form(make_view(prompt=NASTY), 3, 1000),
        build_say_form(JOB),
    )
    for modal in other_forms:
        validate_modal(modal.to_dict())
        judge.check_request("POST", callback, {}, {"type": 9, "data": modal.to_dict()})
    pictures = tuple(PictureRef(index, "0" * 64, 64, 64, verdict="flagged") for index in range(4))
    grid_view = make_view(needs_check=True, pictures=pictures, ladder_images=(0, 1, 2, 3), prompt=NASTY)
    upscale = make_view(task=UpscaleTask(source="0" * 64), pictures=pictures[:1], action="upscale", prompt=NASTY)
    modals = [
        job_cards.render_ended(grid_view),
        job_cards.render_ended(upscale),
        review_buttons.render_report(make_report(), "https://discord.com/1"),
    ]
    for items in (
        [PictureMenu(JOB, index) for index in range(4)],
        [KeyframeMenu(JOB, 3, range(1, 13), 12)],
        [KeepSelect(JOB, range(4))],
    ):
        menus = discord.ui.View(timeout=None)
        for item in items:
            menus.add_item(item)
        validate_components(menus.to_components(), flags=0)
        body = {"content": "which", "components": menus.to_components(), "allowed_mentions": {"parse": []}}
        judge.check_request("POST", callback, {}, {"type": 4, "data": body})
        menus.stop()
    for card in [*modals, job_cards.Card("Delete?", button_layout.build_confirm_rows(JOB))]:
        view = build_view(card)
        assert view
        validate_components(view.to_components(), flags=0)
        assert len(card.content) <= job_cards.MAX_CONTENT
        body = {"content": card.content, "components": view.to_components(), "allowed_mentions": {"parse": []}}
        judge.check_request("POST", callback, {}, {"type": 4, "data": body})
        view.stop()
    assert find_unexplained(judge.findings) == []


def test_a_report_card_quotes_members_without_harm() -> None:
    content = review_buttons.render_report(make_report(reason=NASTY), "").content
    for hostile_text in ("@everyone", "<@5>", "**x**", "\u202e"):
        assert hostile_text not in content


def make_interaction(custom_id: str, kind: discord.InteractionType = discord.InteractionType.modal_submit) -> Any:
    node = {"type": 18, "component": {"type": 4, "custom_id": "prompt", "value": "pear"}}
    return SimpleNamespace(type=kind, data={"custom_id": custom_id, "components": [node]})


def test_a_sent_form_is_read_by_its_id() -> None:
    assert parse_submission(make_interaction(form_id("remix", JOB, "subtle", 3))) == FormSubmission(
        "remix", JOB, "subtle", 3, {"prompt": "pear"}
    )
    assert parse_submission(make_interaction(form_id("report", JOB))) == FormSubmission(
        "report", JOB, "", None, {"prompt": "pear"}
    )
    at_a_keyframe = FormSubmission("branch", JOB, "", 3, {"prompt": "pear"}, 1000)
    assert parse_submission(make_interaction(form_id("branch", JOB, "", 3, 1000))) == at_a_keyframe
    for other in (f"remix:{JOB}", f"remix-form:{JOB[:-1]}:same", f"remix-form:{JOB}:same:x", "settings:save", ""):
        assert parse_submission(make_interaction(other)) is None
    assert parse_submission(make_interaction(form_id("remix", JOB), discord.InteractionType.component)) is None


def test_a_form_reads_only_its_own_file_with_url_and_size() -> None:
    interaction = make_interaction(form_id("edit", JOB, index=1))
    interaction.data["components"] = [
        {"type": 18, "component": {"type": 19, "custom_id": "mask", "values": ["7", "8"]}}
    ]
    attachment = {"id": "7", "url": "https://cdn.example/7", "size": 12, "filename": "m.png"}
    interaction.data["resolved"] = {"attachments": {"7": attachment, "9": attachment}}
    form = parse_submission(interaction)
    assert form is not None
    assert form.files == {"mask": (UploadedFile("https://cdn.example/7", 12, "m.png"),)}
    assert form.fields == {"mask": ""}


def test_a_form_reads_what_was_chosen() -> None:
    interaction = make_interaction(form_id("say", JOB))
    interaction.data["components"].append(
        {"type": 18, "component": {"type": 3, "custom_id": "guidance", "values": ["less"]}}
    )
    form = parse_submission(interaction)
    assert form is not None
    assert (form.choices, form.files) == ({"guidance": "less"}, {})


def make_words(words: str = "", weight: str = "", guidance: str = "same") -> FormSubmission:
    return FormSubmission("say", JOB, "", None, {"words": words, "weight": weight}, choices={"guidance": guidance})


def test_words_their_weight_and_guidance_are_read_from_the_form() -> None:
    recipe = make_recipe()  # its guidance is 3
    assert read_say_form(make_words(" blue "), recipe) == SteeringRequest(say="blue")
    assert read_say_form(make_words("blue", "−0,5", "more"), recipe) == SteeringRequest(
        say="blue", say_weight=-0.5, guidance=4.5
    )
    assert read_say_form(make_words(weight="7", guidance="less"), recipe) == SteeringRequest(guidance=2.0)
    raised = msgspec.structs.replace(recipe, guidance=29.0)
    assert read_say_form(make_words(guidance="more"), raised).guidance == 30.0


@pytest.mark.parametrize(
    ("form", "sentence"),
    [
        (make_words(), "Nothing to change"),
        (make_words(guidance="forged"), "Nothing to change"),
        (make_words("blue", "a lot"), "“a lot” is no weight"),
        (make_words("blue", "100.5"), "from -100 to 100"),
        (make_words("blue", "nan"), "“nan” is no weight"),
    ],
)
def test_a_form_that_says_nothing_useful_is_refused(form: FormSubmission, sentence: str) -> None:
    with pytest.raises(UserError, match=sentence):
        read_say_form(form, make_recipe())
