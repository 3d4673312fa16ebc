"""The validator finds faults: for each rule a request that breaks it, and requests that break none."""

from __future__ import annotations

from copy import deepcopy
from typing import Any

import pytest

from tools.loopback.known_deviations import DEVIATIONS, Deviation, find_unexplained
from tools.loopback.openapi import Finding, RequestValidator

POST = ("POST", "/channels/1/messages")
EDIT = ("PATCH", "/channels/1/messages/2")
BY_TOKEN = ("PATCH", "/webhooks/1/token/messages/@original")
ANSWER = ("POST", "/interactions/1/token/callback")
COMMANDS = ("PUT", "/applications/1/commands")
BUTTON = {"type": 2, "style": 2, "label": "U1", "custom_id": "up:1:0"}
GALLERY = {"type": 12, "items": [{"media": {"url": "attachment://a.png"}}]}


@pytest.fixture(scope="module")
def judge() -> RequestValidator:
    return RequestValidator()


def rows(*rows: list[Any]) -> dict[str, Any]:
    return {"components": [{"type": 1, "components": row} for row in rows]}


def command(**other: Any) -> list[dict[str, Any]]:
    return [{"name": "imagine", "description": "Turn words into pictures", "options": [], **other}]


def option(name: str, **other: Any) -> dict[str, Any]:
    return {"name": name, "description": "a word", "type": 3, **other}


def list_faults(judge: RequestValidator, call: tuple[str, str], body: Any, files: int = 0, **query: str) -> list[str]:
    return [f"{each.location}: {each.problem}" for each in judge.check_request(*call, query, body, files)]


VALID: list[tuple[tuple[str, str], Any]] = [
    (POST, {"content": "hello", "nonce": "a", "enforce_nonce": True, "flags": 0}),
    (POST, {"attachments": [{"id": "0", "filename": "a.png", "description": "a picture"}], "flags": 1 << 15, **rows()}),
    (POST, {"flags": 1 << 15, "components": [GALLERY, {"type": 10, "content": "a"}, *rows([BUTTON])["components"]]}),
    (EDIT, {"content": "hello", **rows([BUTTON], [{**BUTTON, "custom_id": "b"}])}),
    (BY_TOKEN, {"content": None, "attachments": []}),
    (ANSWER, {"type": 4, "data": {"content": "hello", "flags": 64}}),
    (ANSWER, {"type": 8, "data": {"choices": [{"name": "a", "value": "a"}]}}),
    (COMMANDS, command(options=[option("prompt", required=True, autocomplete=True), option("seed", type=4)])),
    (COMMANDS, [{"name": "Look at it", "type": 3}]),
    (("GET", "/channels/1/messages"), None),
    (("GET", "/oauth2/applications/@me"), None),
    (("PUT", "/channels/1/messages/2/reactions/%F0%9F%91%8D/@me"), None),
]


@pytest.mark.parametrize(("call", "body"), VALID)
def test_a_valid_request_has_no_finding(judge: RequestValidator, call: tuple[str, str], body: Any) -> None:
    assert list_faults(judge, call, body) == []


INVALID: list[tuple[tuple[str, str], Any, str]] = [
    # the description, strictly
    (POST, {"contents": "hello"}, "contents: there is no such property"),
    (POST, {"content": 7}, "content: int is not ['string', 'null']"),
    (POST, rows([{**BUTTON, "colour": 1}]), "components[].components[].colour: there is no such property"),
    (POST, {"components": [{"type": 99}]}, "components[]: type 99 is none of"),
    (POST, rows([{"type": 2, "label": "x", "custom_id": "x"}]), "components[].components[]: style is missing"),
    (POST, {"embeds": [{"title": "a" * 257}]}, "embeds[].title: maxLength 256 does not hold"),
    (POST, {"embeds": [{}] * 11}, "embeds: maxItems 10 does not hold"),
    (EDIT, {"attachments": [{"id": 0}]}, "attachments[].id: int is not string"),
    (ANSWER, {"type": 77}, ": type 77 is none of"),
    (COMMANDS, command(options=[option("a", type=77)]), "[].options[]: type 77 is none of"),
    (COMMANDS, command(options=[{"name": "a", "type": 3}]), "[].options[]: description is missing"),
    (POST, None, ": needs a body"),
    (("GET", "/channels/1/messages"), {}, ": takes no body"),
    (("GET", "/chanels/1"), None, ": there is no such operation"),
    # rules that the description lacks: messages
    (POST, {"content": "a" * 2001}, "content: longer than 2000 characters"),
    (POST, {"attachments": [{"id": "0", "description": "a" * 1025}]}, "attachments[].description: longer than 1024"),
    (EDIT, {"attachments": [{"id": str(each)} for each in range(11)]}, "attachments: more than 10"),
    (POST, {"embeds": [{"description": "a" * 4000}] * 2}, "embeds: more than 6000 characters in all"),
    (POST, rows([BUTTON], [BUTTON]), "components: the same custom_id twice"),
    (POST, rows([{**BUTTON, "custom_id": "a" * 101}]), "components: a custom_id that has not 1 to 100 characters"),
    (POST, rows([{**BUTTON, "custom_id": str(each)} for each in range(6)]), "components: a row holds 1 to 5 buttons"),
    (POST, rows([{"type": 5, "custom_id": "a"}, BUTTON]), "components: a row holds 1 to 5 buttons or one menu"),
    (POST, rows(*[[{**BUTTON, "custom_id": str(each)}] for each in range(6)]), "components: without the flag"),
    (POST, {"components": [GALLERY]}, "components: without the flag for layouts"),
    (POST, {"flags": 1 << 15, "components": [{"type": 10, "content": "a"}] * 41}, "components: more than 40 in all"),
    (POST, {"flags": 1 << 15, "components": [{"type": 10, "content": "a" * 2100}] * 2}, "components: more than 4000"),
    (POST, {"flags": 1 << 15, "content": "a", "components": [GALLERY]}, "flags: a layout has no content"),
    (POST, rows([{"type": 2, "style": 1, "custom_id": "a"}]), "components: a button with neither label nor emoji"),
    (POST, rows([{"type": 2, "style": 1, "label": "a"}]), "components: a button has a custom_id, or a link"),
    (POST, rows([{"type": 3, "custom_id": "a", "options": []}]), "components: a menu has 1 to 25 options"),
    (BY_TOKEN, {"content": "a" * 2001}, "content: longer than 2000 characters"),
    (ANSWER, {"type": 4, "data": {"content": "a" * 2001}}, "data.content: longer than 2000 characters"),
    (ANSWER, {"type": 8, "data": {"choices": [{"name": "a", "value": "a"}] * 26}}, "data.choices: more than 25"),
    (ANSWER, {"type": 9, "data": {"custom_id": "a", "title": "a" * 46, "components": []}}, "data.title: not 1 to 45"),
    # commands
    (COMMANDS, command(name="Imagine"), "[].name: not 1 to 32 lower-case letters"),
    (COMMANDS, command(name="two words"), "[].name: not 1 to 32 lower-case letters"),
    (COMMANDS, command(description=""), "[].description: not 1 to 100 characters"),
    (COMMANDS, [{"name": "Look", "type": 3, "description": "x"}], "[].description: only a slash command has one"),
    (COMMANDS, command(options=[option("Prompt")]), "[].options[].name: not 1 to 32 lower-case letters"),
    (COMMANDS, command(options=[option("a"), option("b", required=True)]), "[].options: a required option after one"),
    (COMMANDS, command(options=[option("a"), option("a")]), "[].options: the same name twice"),
    (COMMANDS, command(options=[option(f"a{each}") for each in range(26)]), "[].options: more than 25"),
    (COMMANDS, command(options=[option("a", autocomplete=True, choices=[{"name": "a", "value": "a"}])]), "beside auto"),
    (COMMANDS, command(options=[option("a", choices=[{"name": "a", "value": "a"}] * 26)]), "choices: more than 25"),
    (COMMANDS, command(name_localizations={"xx": "bild"}), "[].name_localizations: unknown locale xx"),
    (
        COMMANDS,
        command(
            options=[
                option(
                    f"a{each}",
                    description="a" * 100,
                    choices=[{"name": "n" * 100, "value": f"{number}" * 100} for number in range(3)],
                )
                for each in range(12)
            ]
        ),
        "[]: more than 8000 characters in all",
    ),
    (COMMANDS, [{**command()[0], "name": f"a{each}"} for each in range(101)], "more than 100 commands of type 1"),
]


@pytest.mark.parametrize(("call", "body", "words"), INVALID)
def test_an_invalid_request_has_a_finding_that_names_the_fault(
    judge: RequestValidator, call: tuple[str, str], body: Any, words: str
) -> None:
    before = deepcopy(body)
    assert any(words in each for each in list_faults(judge, call, body)), list_faults(judge, call, body)
    assert body == before


def test_query_parameters_and_the_number_of_files_are_validated(judge: RequestValidator) -> None:
    assert list_faults(judge, ("GET", "/channels/1/messages"), None, limit="x") == ["?limit: is no integer"]
    assert list_faults(judge, ("GET", "/channels/1/messages"), None, limit="5", later="x") == [
        "?later: there is no such parameter"
    ]
    assert list_faults(judge, ANSWER, {"type": 1}, with_response="1") == ["?with_response: is neither true nor false"]
    assert list_faults(judge, POST, {"content": "a"}, files=11) == ["attachments: more than 10"]


def test_equal_findings_are_counted_as_one_value() -> None:
    judge = RequestValidator()
    for number in range(3):
        judge.check_request("POST", f"/channels/{number}/messages", {}, {"embeds": [{"x": number}, {"x": "y"}]})
    assert dict(judge.findings) == {
        Finding("POST /channels/{channel_id}/messages", "embeds[].x", "there is no such property"): 6
    }


def test_a_habit_explains_only_its_own_findings() -> None:
    operation = "PATCH /channels/{channel_id}/messages/{message_id}"
    known_finding = Finding(operation, "attachments[].id", "int is not string")
    other = [
        Finding(operation, "attachments[].id", "float is not string"),
        Finding(operation, "content", "int is not string"),
    ]
    assert find_unexplained([known_finding, *other]) == sorted(other)
    assert not Deviation("GET *", "x", "y", "").matches(Finding("GET /", "x[]", "y"))
    assert all(deviation.reason for deviation in DEVIATIONS)
