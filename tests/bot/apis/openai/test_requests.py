"""What OpenAI's fields become, without a server."""

from __future__ import annotations

from typing import Any, cast

import msgspec
import pytest

from bot.apis.openai.bodies import DrawBody, decode_fields
from bot.apis.openai.errors import FieldError
from bot.apis.openai.picture_requests import build_request, count_pictures, parse_size
from bot.jobs.init_images import InitImages
from bot.jobs.model_catalog import ModelCatalog
from engine.contract import Presence
from tools.painter import make_profile

PICTURE = InitImages((b"a picture",))


def make_catalog(*, edits: bool, max_edit_pictures: int = 1) -> ModelCatalog:
    profiles = tuple(
        msgspec.structs.replace(
            make_profile(), name=name, edits=edits and name == "editor", max_edit_pictures=max_edit_pictures
        )
        for name in ("embedded", "editor")
    )
    presence = Presence(
        worker="one", pools=("default",), device="none", models=profiles, rows=8, free=8, software_build=""
    )
    return ModelCatalog(cast(Any, None), lambda: {"one": presence}, lambda: 0.0)


def build_options(catalog: ModelCatalog, images: InitImages | None = None, **fields: Any) -> dict[str, Any]:
    return dict(build_request(DrawBody(**{"prompt": "a dog", **fields}), catalog, images).options)


@pytest.mark.parametrize(
    ("images", "fields", "is_edit"),
    [
        (PICTURE, {}, True),
        (PICTURE, {"model": "editor"}, True),
        (PICTURE, {"model": "embedded"}, False),
        (PICTURE, {"strength": 0.5}, False),
        (InitImages((b"a", b"b")), {}, False),
        (InitImages((b"a",), b"a mask"), {}, False),
        (None, {}, False),
    ],
)
def test_one_picture_alone_is_edited_by_words_where_a_model_can(
    images: InitImages | None, fields: dict[str, Any], is_edit: bool
) -> None:
    assert bool(build_options(make_catalog(edits=True), images, **fields).get("edit")) == is_edit
    if "model" not in fields:
        assert not build_options(make_catalog(edits=False), images, **fields).get("edit")


def test_several_pictures_are_edited_by_words_where_a_model_takes_as_many() -> None:
    catalog = make_catalog(edits=True, max_edit_pictures=2)
    two = InitImages((b"a", b"b"))
    three = InitImages((b"a", b"b", b"c"))
    assert build_options(catalog, two)["edit"]
    assert build_options(catalog, two, model="editor")["edit"]
    assert not any(
        build_options(catalog, images, **fields).get("edit")
        for images, fields in ((three, {}), (two, {"model": "embedded"}), (two, {"strength": 0.5}))
    )


@pytest.mark.parametrize("n", range(1, 11))
def test_any_number_of_pictures_is_jobs_of_one_size(n: int) -> None:
    jobs = count_pictures(DrawBody(prompt="", n=n))
    assert jobs["count"] * jobs["repeat"] == n
    assert jobs["count"] <= 4


@pytest.mark.parametrize(
    ("size", "ratio"), [(None, None), ("auto", None), ("1536x1024", "3:2"), ("1024x1792", "4:7"), ("512x512", "1:1")]
)
def test_a_size_is_a_shape(size: str | None, ratio: str | None) -> None:
    assert parse_size(size) == ratio


@pytest.mark.parametrize("model", ["gpt-image-2-2026-04-21", "dall-e-3", "auto", "DARKROOM", "Editor", None])
def test_names_of_openais_models_mean_the_default_one(model: str | None) -> None:
    options = build_options(make_catalog(edits=False), model=model, quality="low")
    assert options.get("model") == ("editor" if model == "Editor" else None)
    assert options["quality"] == 0.5


def test_a_text_of_a_form_is_read_as_its_field() -> None:
    fields = decode_fields({"prompt": "a dog", "n": "2", "stream": "true", "strength": "0.5", "new": "x"}, DrawBody)
    assert (fields.n, fields.stream, fields.strength) == (2, True, 0.5)
    with pytest.raises(FieldError) as refusal:
        decode_fields({"prompt": "a dog", "n": "two"}, DrawBody)
    assert refusal.value.param == "n"
