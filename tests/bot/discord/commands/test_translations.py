"""The catalogues in `bot/discord/locale/`: each is complete and within Discord's limits. How any catalogue is read."""

from __future__ import annotations

import asyncio
import json
import logging
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import discord
import pytest
from discord import Locale, app_commands
from discord.app_commands import TranslationContext, TranslationContextLocation, locale_str

from bot.discord.commands.command_limits import check_limits
from bot.discord.commands.command_tree import (
    LOCALE_FOLDER,
    CatalogueError,
    CommandTranslator,
    DarkroomCommandTree,
    list_locale_folders,
    load_catalogues,
    read_catalogue,
)
from bot.discord.commands.imagine import SAMPLER_ADVICE, sampler_choices
from bot.discord.declarations import list_commands
from bot.discord.job_choice import MAX_CHOICE_CHARS, MAX_CHOICES
from engine.contract import SAMPLER_TITLES, Sampler

CATALOGUES = [path for folder in list_locale_folders() for path in sorted(folder.glob("*.po"))]
LANGUAGES = sorted({path.stem for path in CATALOGUES})
PLACEHOLDERS = re.compile(r"\{[^}]*\}|--[a-z]+")  # fields and flags
HEADER = 'msgid ""\nmsgstr ""\n"Content-Type: text/plain; charset=UTF-8\\n"\n\n'
each_catalogue = pytest.mark.parametrize("path", CATALOGUES, ids=lambda path: f"{path.parents[1].name}-{path.stem}")
Text = tuple[str, str]  # location and English text


class RecordingTranslator(app_commands.Translator):
    """Records what discord.py asks to translate. Members type the names of commands and options: these may stay."""

    def __init__(self) -> None:
        self.texts: set[Text] = {("other", advice) for advice in SAMPLER_ADVICE.values()}
        self.typed_names: set[Text] = set()

    async def translate(self, string: locale_str, locale: Locale, context: Any) -> None:
        location = context.location.name
        is_typed = location in ("command_name", "group_name", "parameter_name")
        is_menu = isinstance(context.data, app_commands.ContextMenu)
        (self.typed_names if is_typed and not is_menu else self.texts).add((location, string.message))


async def build_tree(translator: app_commands.Translator) -> DarkroomCommandTree:
    tree = DarkroomCommandTree(cast(Any, discord.Client(intents=discord.Intents(guilds=True))))
    await tree.set_translator(translator)
    for command in list_commands():
        tree.add_command(command)
    return tree


async def build_payload(translator: app_commands.Translator) -> list[dict[str, Any]]:
    return await (await build_tree(translator)).build_payload()


def record_texts() -> RecordingTranslator:
    translator = RecordingTranslator()
    asyncio.run(build_payload(translator))
    return translator


def test_there_is_a_german_catalogue() -> None:
    assert "de" in {path.stem for path in CATALOGUES}


@pytest.mark.parametrize("language", LANGUAGES)
def test_every_text_is_translated(language: str) -> None:
    """The failure's message is what the catalogues lack."""
    paths = [path for path in CATALOGUES if path.stem == language]
    catalogue = {key: text for path in paths for key, text in read_catalogue(path).items()}
    missing = dict[str, list[str]]()
    for where, text in sorted(record_texts().texts):
        if (where, text) not in catalogue and (None, text) not in catalogue:
            missing.setdefault(text, []).append(where)
    entries = (
        f'#. {", ".join(places)}\nmsgid {json.dumps(text, ensure_ascii=False)}\nmsgstr ""\n'
        for text, places in missing.items()
    )
    if missing:
        pytest.fail(f"{language}.po lacks these texts:\n\n" + "\n".join(entries), pytrace=False)


@each_catalogue
def test_no_translation_is_stale(path: Path) -> None:
    recorded = record_texts()
    known = recorded.texts | recorded.typed_names
    known_texts = {text for _, text in known}
    stale = [key for key in read_catalogue(path) if key not in known and (key[0] or key[1] not in known_texts)]
    assert stale == [], "no command has this text"


@each_catalogue
def test_no_text_is_there_twice(path: Path) -> None:
    keys = re.findall(r"^(?:msgctxt (.*)\n)?msgid (.*(?:\n\".*)*)", path.read_text(), re.MULTILINE)
    assert [key for key in keys if keys.count(key) > 1] == []


@each_catalogue
def test_translations_keep_placeholders_and_flags(path: Path) -> None:
    for (_, text), translation in read_catalogue(path).items():
        assert sorted(PLACEHOLDERS.findall(translation)) == sorted(PLACEHOLDERS.findall(text)), translation


@each_catalogue
def test_translated_commands_are_within_discords_limits(path: Path, tmp_path: Path) -> None:
    (tmp_path / path.name).write_bytes(path.read_bytes())
    payload = asyncio.run(build_payload(CommandTranslator(tmp_path)))
    assert [row.to_json() for row in check_limits(payload) if not row.is_within] == []
    for command in payload:
        if command["type"] != 3:
            assert command["name_localizations"] == {}, "people tell each other the names of commands"


def translate_advice(path: Path) -> dict[Sampler, str]:
    catalogue = read_catalogue(path)
    return {name: catalogue.get((None, text), text) for name, text in SAMPLER_ADVICE.items()}


@each_catalogue
def test_advice_on_samplers_fits_and_differs_in_every_language(path: Path) -> None:
    advice = translate_advice(path)
    choices = sampler_choices(None, "", advice)
    assert [one.value for one in choices] == list(SAMPLER_TITLES)
    assert all(one.name.endswith(advice[name]) for name, one in zip(SAMPLER_TITLES, choices, strict=True))
    assert all(len(one.name) <= MAX_CHOICE_CHARS for one in choices)
    assert len({one.name for one in choices}) == len(choices) <= MAX_CHOICES


def test_german_advice_is_searched_in_german() -> None:
    advice = translate_advice(LOCALE_FOLDER / "de.po")
    choices = sampler_choices(None, "rauschen", advice)
    assert [one.value for one in choices] == [name for name in SAMPLER_TITLES if "Rauschen" in advice[name]]
    assert "euler_ancestral" in [one.value for one in choices]


@pytest.fixture
def write(tmp_path: Path) -> Callable[[str, str], Path]:
    def write_catalogue(name: str, entries: str) -> Path:
        path = tmp_path / name
        path.write_text(HEADER + entries)
        return path

    return write_catalogue


def translate(folder: Path, text: str, locale: Locale, location: str = "command_description") -> str | None:
    translator = CommandTranslator(folder)
    asyncio.run(translator.load())
    context = cast(Any, TranslationContext)(getattr(TranslationContextLocation, location), None)
    return asyncio.run(translator.translate(locale_str(text), locale, context))


def test_a_file_is_enough_for_a_new_language(write: Callable[[str, str], Path]) -> None:
    folder = write("fr.po", 'msgid "The picture"\nmsgstr "L’image"\n').parent
    assert translate(folder, "The picture", Locale.french) == "L’image"
    assert translate(folder, "The picture", Locale.german) is None
    assert translate(folder, "What to show", Locale.french) is None


def test_a_language_without_region_serves_every_region(write: Callable[[str, str], Path]) -> None:
    write("es.po", 'msgid "The picture"\nmsgstr "La imagen"\n\nmsgid "All"\nmsgstr "Todos"\n')
    folder = write("es-ES.po", 'msgid "All"\nmsgstr "Todas"\n').parent
    assert translate(folder, "All", Locale.spain_spanish) == "Todas"
    assert translate(folder, "The picture", Locale.spain_spanish) == "La imagen"
    assert translate(folder, "All", Locale.latin_american_spanish) == "Todos"


def test_a_context_separates_two_translations_of_one_text(write: Callable[[str, str], Path]) -> None:
    entries = 'msgid "all"\nmsgstr "tout"\n\nmsgctxt "choice_name"\nmsgid "all"\nmsgstr "tous"\n'
    folder = write("fr.po", entries).parent
    assert translate(folder, "all", Locale.french, "choice_name") == "tous"
    assert translate(folder, "all", Locale.french, "parameter_description") == "tout"


def test_unfinished_and_unchanged_texts_stay_english(write: Callable[[str, str], Path]) -> None:
    unfinished = 'msgid "a"\nmsgstr ""\n\n#, fuzzy\nmsgid "b"\nmsgstr "B"\n\n'
    entries = f'{unfinished}msgid "WebP"\nmsgstr "WebP"\n\n#~ msgid "d"\n#~ msgstr "D"\n'
    path = write("fr.po", entries)
    assert read_catalogue(path) == {(None, "WebP"): "WebP"}
    for text in ("a", "b", "WebP", "d"):
        assert translate(path.parent, text, Locale.french) is None


def test_byte_order_mark_and_windows_line_ends_do_no_harm(tmp_path: Path) -> None:
    path = tmp_path / "fr.po"
    path.write_bytes(b"\xef\xbb\xbf" + (HEADER + 'msgid "a \\"b\\""\nmsgstr "é"\n').replace("\n", "\r\n").encode())
    assert read_catalogue(path) == {(None, 'a "b"'): "é"}


@pytest.mark.parametrize(
    ("entries", "line", "reason"),
    [
        ('msgid "a"\nmsgstr "b\n', 6, "double quotes"),
        ('msgid "a"\nmsgstr "b" c"\n', 6, "double quotes"),
        ('mgsid "a"\nmsgstr "b"\n', 5, "expected a comment, or a keyword"),
        ("<<<<<<< HEAD\n", 5, "expected a comment, or a keyword"),
        ('msgid "a"\n\nmsgid "b"\nmsgstr "c"\n', 5, "missing msgstr for msgid 'a'"),
        ('msgid "a"\n', 5, "missing msgstr for msgid 'a'"),
        ('msgid "a"\nmsgid_plural "as"\nmsgstr[0] "b"\nmsgstr[7] "c"\n', 5, "more translations than num_plurals"),
        ('#-#-#-#-#  one.po  #-#-#-#-#\nmsgid "a"\nmsgstr "b"\n', 5, "conflicts"),
        ("# \udce9\n", 5, "utf-8"),
    ],
)
def test_a_malformed_file_is_named_with_its_line(tmp_path: Path, entries: str, line: int, reason: str) -> None:
    path = tmp_path / "fr.po"
    path.write_bytes((HEADER + entries).encode(errors="surrogateescape"))
    with pytest.raises(CatalogueError) as caught:
        read_catalogue(path)
    assert str(caught.value).startswith(f"{path}, line {line}: ")
    assert reason in str(caught.value)
    assert not re.search(r" on \d+$", str(caught.value)), "Babel counts lines from 0"


def test_bad_files_are_logged_and_the_others_serve(
    write: Callable[[str, str], Path], caplog: pytest.LogCaptureFixture
) -> None:
    write("fr.po", "nonsense\n")
    write("pt_BR.po", 'msgid "All"\nmsgstr "Todos"\n')
    folder = write("de.po", 'msgid "All"\nmsgstr "Alle"\n').parent
    with caplog.at_level(logging.ERROR):
        assert load_catalogues(folder) == {"de": {(None, "All"): "Alle"}}
    assert [record.getMessage().partition(":")[0] for record in caplog.records] == [
        f"{folder / 'fr.po'}, line 5",
        f"{folder / 'pt_BR.po'}",
    ]
    assert "Discord has no language pt_BR, only bg" in caplog.text
    assert "see English" in caplog.text


@pytest.mark.asyncio
async def test_a_translation_that_discord_refuses_leaves_the_commands_english(
    write: Callable[[str, str], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """A new file may break limits; the bot then starts all the same, and asks Discord only once."""
    tree = await build_tree(CommandTranslator(write("fr.po", 'msgid "The picture"\nmsgstr "x"\n').parent))
    synced: list[bool] = []

    async def sync() -> list[Any]:
        synced.append(tree.translator is not None)
        if tree.translator:
            response = type("Response", (), {"status": 400, "reason": "Bad Request"})()
            failure = discord.HTTPException(cast(Any, response), {"code": 50035, "message": "Invalid Form Body"})
            raise app_commands.CommandSyncFailure(failure, [])
        return []

    monkeypatch.setattr(tree, "sync", sync)
    with caplog.at_level(logging.ERROR):
        await tree.sync_if_changed(tmp_path / "state.json")
    assert synced == [True, False]
    assert "registered in English only" in caplog.text
    await tree.set_translator(CommandTranslator(tmp_path))
    await tree.sync_if_changed(tmp_path / "state.json")
    assert synced == [True, False]
