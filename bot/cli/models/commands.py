"""`darkroom models`: add models of the hub, list, check and delete them, and choose their defaults.

Works on the data folder, with or without a running bot; that offers a new model after its next start. Slow imports
happen inside the commands.
"""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Annotated

import typer

from bot.cli.options import AsJson, Data, print_json
from bot.domain.errors import UserError

if TYPE_CHECKING:
    from pathlib import Path

app = typer.Typer(
    add_completion=False,
    rich_markup_mode=None,
    help="Models of the hub: search, add, list, verify, remove them, and choose defaults (docs/models.md).",
)

ModelName = Annotated[str, typer.Argument(metavar="NAME", help="A model's name, as `darkroom models list` shows it.")]
Quantize = Annotated[
    str, typer.Option(metavar="KIND", help="How its network is kept in memory: auto, none, int8, int4, nf4 or fp8.")
]
Yes = Annotated[bool, typer.Option("--yes", help="Do not ask.")]


@app.command("list")
def list_models(as_json: AsJson = False, data: Data = None) -> None:
    """List models and added parts here: size, licence, defaults, and what the running Darkroom does with them."""
    from dataclasses import asdict

    from bot.cli.models import listing

    with _data_folder(data) as folder:
        rows = listing.list_rows(folder)
    if as_json:
        print_json([asdict(row) for row in rows])
    else:
        listing.print_models(rows)


@app.command()
def search(
    word: Annotated[str, typer.Argument(help="Part of a name; without it, the whole catalogue.")] = "",
    as_json: AsJson = False,
) -> None:
    """Search the catalogue, and the names on the hub."""
    from bot.cli.models import listing
    from engine.hub.catalogue import search_catalogue, search_part_catalogue

    entries = search_catalogue(word)
    parts = search_part_catalogue(word)
    hub_ids, note = listing.search_hub_names(word, entries) if word else ([], "")
    if as_json:
        catalogue, part_rows = ([*map(listing.entry_to_dict, found)] for found in (entries, parts))
        print_json({"catalogue": catalogue, "parts": part_rows, "hub": hub_ids, "note": note})
    else:
        listing.print_search(entries, parts, hub_ids, note)


@app.command()
def add(
    name: Annotated[
        str, typer.Argument(metavar="NAME", help="A name of the catalogue, owner/name on the hub, or owner/name:FILE.")
    ],
    called: Annotated[str, typer.Option("--name", metavar="NAME", help="What it is called here.")] = "",
    quantize: Quantize = "",
    accept_licence: Annotated[
        bool, typer.Option("--accept-licence", "--accept-license", help="Accept its licence without a question.")
    ] = False,
    revision: Annotated[str, typer.Option(help="A commit, branch or tag, in place of the pinned one.")] = "",
    kind: Annotated[
        str,
        typer.Option(
            "--as", metavar="KIND", help="model, controlnet, ip-adapter, vae, lora or embedding; else as it looks."
        ),
    ] = "",
    encoder: Annotated[
        str, typer.Option("--image-encoder", metavar="FOLDER", help="Of an IP-Adapter, in its repository.")
    ] = "",
    pipeline: Annotated[
        str, typer.Option(metavar="NAME", help="Of a file that is only a network: where the rest comes from.")
    ] = "",
    as_json: AsJson = False,
    data: Data = None,
) -> None:
    """Download a model or a part, check it, and offer it from the next start on. Run it again if it was interrupted."""
    from bot.cli.models.addition import AddRequest, add_model

    with _data_folder(data) as folder:
        request = AddRequest(name, called, quantize, accept_licence, revision, as_json, kind, encoder, pipeline)
        result = add_model(request, folder)
    if as_json:
        print_json(result)


@app.command()
def verify(
    names: Annotated[list[str] | None, typer.Argument(metavar="NAME …", help="Else every added model.")] = None,
    repair: Annotated[bool, typer.Option("--repair", help="Download damaged files again.")] = False,
    as_json: AsJson = False,
    data: Data = None,
) -> None:
    """Compare every file of the added models with the hub's checksums. Reads all bytes."""
    from bot.cli.models.upkeep import verify_models

    with _data_folder(data) as folder:
        damaged = verify_models(folder, names or [], repair=repair, quiet=as_json)
    if as_json:
        print_json(damaged)
    raise typer.Exit(1 if any(damaged.values()) else 0)


@app.command()
def remove(name: ModelName, yes: Yes = False, data: Data = None) -> None:
    """Delete an added model and its settings, or an added part, from this machine."""
    from bot.cli.models.upkeep import remove_added

    with _data_folder(data) as folder:
        typer.echo(remove_added(folder, name, confirmed=yes))


@app.command()
def default(
    name: Annotated[str, typer.Argument(metavar="NAME", help="A model here; without it, show the default.")] = "",
    steps: Annotated[int | None, typer.Option(min=1, max=1000, help="Its default steps.")] = None,
    sampler: Annotated[str, typer.Option(help="Its default sampler.")] = "",
    guidance: Annotated[float | None, typer.Option(min=1, max=30, help="Its default guidance.")] = None,
    quantize: Quantize = "",
    reset: Annotated[bool, typer.Option("--reset", help="Forget what was chosen for it.")] = False,
    data: Data = None,
) -> None:
    """Make a model the one that is drawn with if nobody names another; with options, choose its defaults instead."""
    from bot.cli.models.upkeep import DefaultsRequest, choose_defaults

    with _data_folder(data) as folder:
        typer.echo(choose_defaults(DefaultsRequest(name, steps, sampler, guidance, quantize, reset), folder))


@contextmanager
def _data_folder(data: Path | None) -> Generator[Path]:
    """Yield the data folder. What the hub, a file or a setting refuses becomes the command line's one sentence."""
    from bot.app.settings import load_settings
    from engine.contract import JobRejected
    from engine.hub.repository import HubError
    from engine.process.model_settings import ModelSettingsError

    try:
        yield load_settings(data).data
    except (HubError, JobRejected) as error:
        raise UserError(error.sentence) from error
    except ModelSettingsError as error:
        raise UserError(str(error)) from error
