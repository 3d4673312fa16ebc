"""The catalogue of well-known models: complete, consistent, and its estimates near what is known of some."""

from __future__ import annotations

import pytest

from engine.hub.catalogue import CatalogueEntry, find_entry, read_catalogue, search_catalogue, suggest_names

ENTRIES = read_catalogue()
NAMES = [entry.name for entry in ENTRIES]
FREE = ("Apache 2.0", "MIT")


def test_names_and_hub_ids_are_unique_and_there_are_about_twenty() -> None:
    assert len({entry.name for entry in ENTRIES}) == len({entry.hub_id for entry in ENTRIES}) == len(ENTRIES)
    assert 18 <= len(ENTRIES) <= 30
    revisions = [entry.revision for entry in ENTRIES if entry.revision]
    assert len(set(revisions)) == len(revisions) >= 15


@pytest.mark.parametrize("entry", ENTRIES, ids=NAMES)
def test_a_licence_asks_unless_it_is_free_and_then_says_what_it_restricts(entry: CatalogueEntry) -> None:
    assert entry.asks == (entry.licence not in FREE) == bool(entry.restrictions)
    assert entry.name == entry.name.lower()


@pytest.mark.parametrize("entry", ENTRIES, ids=NAMES)
def test_fewer_bits_need_less_memory(entry: CatalogueEntry) -> None:
    full, int8, int4 = (entry.estimate_memory(kind) for kind in ("none", "int8", "int4"))
    assert full > int8 > int4 > 0
    assert entry.download_bytes >= 0.99 * full or entry.stored_bytes < 2


def test_estimates_of_sdxl_and_flux_are_near_their_known_sizes() -> None:
    sdxl = find_entry("sdxl")
    flux = find_entry("black-forest-labs/FLUX.1-DEV")
    assert sdxl is not None
    assert sdxl.download_bytes == pytest.approx(6.94e9, rel=0.02)
    assert flux is not None
    assert flux.name == "flux-dev"
    assert flux.estimate_memory("none") == pytest.approx(33.7e9, rel=0.02)


def test_words_and_mistyped_names_are_found() -> None:
    assert {"sdxl", "sdxl-turbo"} <= {entry.name for entry in search_catalogue("SDXL")}
    assert search_catalogue("nothing like it") == []
    assert suggest_names("flux-schnel", NAMES)[0] == "flux-schnell"
    assert suggest_names("qqqqqqq", NAMES) == []
