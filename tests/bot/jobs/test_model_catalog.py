"""Presences describe a pool: how fast its super-resolvers are, and which models it has."""

from __future__ import annotations

from typing import cast

import msgspec
import pytest

from bot.domain.errors import UserError
from bot.jobs.model_catalog import SHIPPED_MODEL, ModelCatalog, group_by_pool
from bot.store import Store
from engine.contract import ControlImage, ControlModel, ModelPart, ModelProfile, Presence
from shared.stored_jobs import RECIPE


def presence(worker: str, ms: float, pool: str = "default") -> Presence:
    return Presence(
        worker=worker, pools=(pool,), models=(), device="", rows=8, free=8, software_build="", upscale_ms=ms
    )


def test_the_slowest_super_resolver_of_a_pool_counts() -> None:
    workers: dict[str, Presence] = {}
    models = ModelCatalog(cast("Store", None), lambda: workers, lambda: 0.0)
    assert models.upscale_ms("default") is None
    workers["a"] = presence("a", 100.0)
    workers["b"] = presence("b", 300.0)
    assert models.upscale_ms("default") == 300.0
    workers["c"] = presence("c", 500.0, pool="elsewhere")
    assert models.upscale_ms("default") == 300.0


def presence_with(worker: str, *models: ModelProfile) -> Presence:
    return msgspec.structs.replace(presence(worker, 0.0), models=models)


@pytest.mark.asyncio
async def test_a_model_on_disk_is_offered_and_counts_as_loaded_once_any_worker_has_it_in_memory(store: Store) -> None:
    cold = msgspec.structs.replace(SHIPPED_MODEL, name="large", loaded=False, samplers=("ddim", "heun"))
    workers = {"a": presence_with("a", SHIPPED_MODEL, cold)}
    models = ModelCatalog(store, lambda: workers, lambda: 0.0)
    await models.refresh()
    assert [(one.profile.name, one.profile.loaded, one.is_live) for one in models.entries()] == [
        ("embedded", True, True),
        ("large", False, True),
    ]
    version = store.version
    workers["b"] = presence_with("b", msgspec.structs.replace(cold, loaded=True, steps=7))
    assert models.find_entry("large").profile == msgspec.structs.replace(cold, loaded=True), (
        "the first worker's description counts"
    )
    await models.refresh()
    assert store.version == version, "loading a model into memory writes nothing"
    workers.clear()
    second_catalog = ModelCatalog(store, lambda: workers, lambda: 0.0)
    await second_catalog.load()
    assert {one.profile.name: one.is_live for one in second_catalog.entries()} == {"embedded": False, "large": False}
    assert second_catalog.find_entry("large").profile.samplers == ("ddim", "heun")


def test_the_operators_default_model_is_taken_for_those_who_name_none() -> None:
    large = msgspec.structs.replace(SHIPPED_MODEL, name="large")
    workers = {"a": presence_with("a", SHIPPED_MODEL, large)}
    models = ModelCatalog(cast("Store", None), lambda: workers, lambda: 0.0, "large")
    assert models.find_entry(None).profile.name == "large"
    workers["a"] = presence_with("a", SHIPPED_MODEL)
    assert models.find_entry(None).profile.name == "embedded", "the default is not live"
    assert ModelCatalog(cast("Store", None), lambda: workers, lambda: 0.0).find_entry(None).profile.name == "embedded"


def test_a_pool_is_full_for_a_model_when_every_worker_that_has_it_is_full() -> None:
    large = msgspec.structs.replace(SHIPPED_MODEL, name="large")
    busy_worker = msgspec.structs.replace(presence_with("a", SHIPPED_MODEL), free=0)
    idle_worker = presence_with("b", large)
    pool_workers = group_by_pool({"a": busy_worker, "b": idle_worker})["default"]
    assert pool_workers.free_rows == 8
    assert [pool_workers.is_full(model) for model in ("embedded", "large", "", "unknown")] == [
        True,
        False,
        False,
        False,
    ]
    pool_workers = group_by_pool({"a": busy_worker, "b": idle_worker, "c": presence_with("c", SHIPPED_MODEL)})[
        "default"
    ]
    assert not pool_workers.is_full("embedded")
    pool_workers = group_by_pool({"a": busy_worker})["default"]
    assert [pool_workers.is_full(model) for model in ("embedded", "", "unknown")] == [True, True, True]


def test_a_job_with_candidates_goes_to_a_pool_with_a_judge_though_another_is_cheaper() -> None:
    old_model = msgspec.structs.replace(SHIPPED_MODEL, row_ms=1.0, has_judge=False)
    old = msgspec.structs.replace(presence_with("a", old_model), pools=("cheap",))
    new = msgspec.structs.replace(presence_with("b", SHIPPED_MODEL), pools=("judged",))
    models = ModelCatalog(cast("Store", None), lambda: {"a": old, "b": new}, lambda: 0.0)
    entry = models.find_entry(None)
    best = msgspec.structs.replace(RECIPE, candidate_count=8)
    assert entry.profile.has_judge, "the first worker by name is an old one"
    assert (entry.pool_for(RECIPE), entry.pool_for(best)) == ("cheap", "judged")
    only_old = ModelCatalog(cast("Store", None), lambda: {"a": old}, lambda: 0.0)
    assert not only_old.find_entry(None).profile.has_judge
    assert only_old.choose_pool("embedded", recipe=best) is None


def test_a_recipe_goes_to_a_pool_that_has_its_parts_and_stores_weights_as_it_says() -> None:
    canny = ControlModel("canny", "c1", "canny")
    quick = msgspec.structs.replace(SHIPPED_MODEL, row_ms=1.0)
    controlled = msgspec.structs.replace(SHIPPED_MODEL, controls=(canny,), preprocessors=("none", "canny"))
    small = msgspec.structs.replace(SHIPPED_MODEL, row_ms=0.1, quantization="int8")
    workers = {
        name: msgspec.structs.replace(presence_with(name, profile), pools=(name,))
        for name, profile in (("a-quick", quick), ("b-controlled", controlled), ("c-small", small))
    }
    models = ModelCatalog(cast("Store", None), lambda: workers, lambda: 0.0)
    entry = models.find_entry(None)
    assert entry.profile.controls == (canny,), "the first worker by name has none"
    control = ControlImage(name="canny", picture="a" * 64, preprocessor="canny", revision="c1")
    followed = msgspec.structs.replace(RECIPE, controls=(control,))
    assert (entry.pool_for(RECIPE), entry.pool_for(followed)) == ("a-quick", "b-controlled")
    assert models.choose_pool("embedded", recipe=followed) == "b-controlled"
    other = msgspec.structs.replace(control, revision="c2")
    assert models.choose_pool("embedded", recipe=msgspec.structs.replace(RECIPE, controls=(other,))) is None
    stored = msgspec.structs.replace(RECIPE, quantization="int8")
    stored_entry = models.find_entry_for(stored)
    assert stored_entry is not None
    assert stored_entry.pool_for(stored) == "c-small"
    whole = models.find_profile_for(RECIPE)
    assert whole is not None
    assert whole.quantization == "none"
    gone = msgspec.structs.replace(RECIPE, quantization="nf4")
    assert models.find_entry_for(gone) == entry, "nobody has it so: a note says that it will differ"


def test_parts_that_no_single_worker_has_are_refused() -> None:
    word = ModelPart("toy", "t1")
    controlled = msgspec.structs.replace(SHIPPED_MODEL, controls=(ControlModel("canny", "c1"),))
    worded = msgspec.structs.replace(SHIPPED_MODEL, embeddings=(word,))
    workers = {name: presence_with(name, profile) for name, profile in (("a", controlled), ("b", worded))}
    entry = ModelCatalog(cast("Store", None), lambda: workers, lambda: 0.0).find_entry(None)
    control = ControlImage(name="canny", picture="a" * 64, revision="c1")
    for fields in ({"controls": (control,)}, {"embeddings": (word,)}):
        assert entry.pool_for(msgspec.structs.replace(RECIPE, **fields)) == "default"
    with pytest.raises(UserError, match="No single worker has everything that this needs of embedded"):
        entry.pool_for(msgspec.structs.replace(RECIPE, controls=(control,), embeddings=(word,)))


def test_an_allowed_editor_goes_before_one_that_does_nothing_else() -> None:
    edits, only_edits = (
        msgspec.structs.replace(SHIPPED_MODEL, name=name, edits=True, required=required)
        for name, required in (("flux2", ""), ("kontext", "picture"))
    )
    models = ModelCatalog(
        cast("Store", None), lambda: {"a": presence_with("a", SHIPPED_MODEL, edits, only_edits)}, lambda: 0.0
    )
    editors = [
        models.find_editor(),
        models.find_editor(lambda name: name == "flux2"),
        models.find_editor(lambda name: False),
    ]
    assert [entry and entry.profile.name for entry in editors] == ["kontext", "flux2", "kontext"]
    several = msgspec.structs.replace(edits, max_edit_pictures=5)
    models = ModelCatalog(cast("Store", None), lambda: {"a": presence_with("a", several, only_edits)}, lambda: 0.0)
    editors = [models.find_editor(pictures=count) for count in (1, 2, 5)]
    assert [entry and entry.profile.name for entry in editors] == ["kontext", "flux2", "flux2"]


def test_a_call_reads_the_workers_equally_often_for_many_models() -> None:
    workers = dict[str, Presence]()
    reads = list[int]()

    def read_workers() -> dict[str, Presence]:
        reads[-1] += 1
        return workers

    models = ModelCatalog(cast("Store", None), read_workers, lambda: 0.0)
    for count in (1, 30):
        profiles = [msgspec.structs.replace(SHIPPED_MODEL, name=f"model-{number}") for number in range(count)]
        workers |= {name: presence_with(name, *profiles) for name in "abc"}
        reads.append(0)
        assert [len(entry.offers) for entry in models.entries()] == [3] * count
    assert reads[0] == reads[1]
