"""Prompts that begin with links, through the whole app: a server behind Discord's name, the page's own pictures."""

from __future__ import annotations

from functools import partial

import pytest
from aiohttp import web

from bot.cli.imagine.job_inputs import ImagineRequest
from bot.cli.imagine.local_engine import generate
from bot.domain.dto import Member
from bot.domain.errors import UserError
from bot.jobs.init_images import InitImages, JobImageRef, PageAddresses, RemoteFile, split_leading_urls
from bot.pictures.uploads import image_links
from bot.policy.permissions import OTHER_GUILD, PRIVATE_JOB
from engine.contract import InitImage
from shared.app_harness import wait_for_end
from shared.discord_files import ATTACHED, DECEPTIVE_URLS, certificate, serve_as_discord
from shared.picture_files import make_png

__all__ = ["certificate"]
BOB = Member("local:bob", "Bob", "local")
PAGE = "http://127.0.0.1:8189"
JOB = "01ARZ3NDEKTSV4RRFFQ69G5FAV"
OWN_PICTURE = f"{PAGE}/api/jobs/{JOB}/pictures/2.png"


def test_links_at_the_start_of_a_prompt_become_init_images() -> None:
    for text, urls, remaining_text in (
        (f"{ATTACHED} a lamp", [ATTACHED], "a lamp"),
        (f" {ATTACHED},\n<{OWN_PICTURE}>  a lamp --iw 1", [ATTACHED, OWN_PICTURE], "a lamp --iw 1"),
        (ATTACHED, [ATTACHED], ""),
        ("a lamp", [], "a lamp"),
        (f"a lamp {ATTACHED}", [], f"a lamp {ATTACHED}"),
        ("HTTP://evil.example", ["HTTP://evil.example"], ""),
        ("a://b", [], "a://b"),
        ("", [], ""),
    ):
        assert image_links.split_leading_links(text) == (urls, remaining_text)
    before = InitImages((b"a",), b"m", (1.0, 2.0, 3.0))
    remaining_text, init_images = split_leading_urls(
        f"{ATTACHED} {OWN_PICTURE} a lamp", before, ["https://other.example", PAGE]
    )
    assert (remaining_text, init_images) == (
        "a lamp",
        InitImages((b"a", RemoteFile(ATTACHED), JobImageRef(JOB, 1)), b"m", (1.0, 2.0, 3.0)),
    )
    assert split_leading_urls("a lamp", None, [PAGE]) == ("a lamp", None)
    for text in (OWN_PICTURE, f"{ATTACHED} http://evil.example a lamp"):
        with pytest.raises(UserError, match="Only pictures that were uploaded"):
            split_leading_urls(text, None, [])
    for deceptive_url in DECEPTIVE_URLS:
        if deceptive_url.lower().startswith("http") and "://" in deceptive_url and " " not in deceptive_url:
            with pytest.raises(UserError, match="Only pictures that were uploaded"):
                split_leading_urls(f"{deceptive_url} a lamp", None, [PAGE])


@pytest.mark.asyncio
@pytest.mark.may_block("the server in this process reads its certificate")
async def test_a_discord_link_is_fetched_and_becomes_the_init_image(
    harness, wait_until, ann, destination, certificate, free_port: int
):
    def answer(request: web.Request) -> object:
        if request.path == "/away":
            raise web.HTTPFound(f"{PAGE}/secret")
        return web.Response(body=b"<html>" if request.path == "/page" else make_png(64, 64))

    async with serve_as_discord(answer, certificate, free_port) as (session, resolver, _):
        app = await harness.open_app(fetch_upload=partial(image_links.fetch_file, session))
        await harness.start_worker()
        (accepted,) = await app.services.jobs.imagine(f"{ATTACHED} a lamp --iw 1", ann, destination, suffix="at night")
        view = await wait_for_end(app, accepted.job, wait_until)
        assert (view.state, view.action, view.prompt) == ("finished", "imagine", "a lamp at night --iw 1")
        assert (view.task.start.strength, len(view.task.start.pictures)) == (0.6, 1)
        (accepted,) = await app.services.jobs.imagine(ATTACHED, ann, destination, suffix="at night")
        assert (await app.services.job_views.load_view(accepted.job)).task.guidance == 1, (
            "without a prompt there is no suffix"
        )
        for path, sentence in (("away", "cannot be fetched from Discord"), ("page", "a format that is not supported")):
            with pytest.raises(UserError, match=sentence):
                await app.services.jobs.imagine(f"https://cdn.discordapp.com/{path} a lamp", ann, destination)
        with pytest.raises(UserError, match="One to 5 pictures"):
            await app.services.jobs.imagine(f"{ATTACHED} " * 6, ann, destination)
        assert set(resolver.asked_hosts) == {"cdn.discordapp.com"}


@pytest.mark.asyncio
async def test_links_to_the_pages_own_pictures_are_found_by_job_and_never_fetched(
    harness, wait_until, ann, destination
):
    async def fetch_from_server(url: str, max_bytes: int) -> bytes:
        raise AssertionError(url)

    app = await harness.open_app(fetch_upload=fetch_from_server)
    await harness.start_worker()
    app.services.get(PageAddresses).add(PAGE)

    async def make_job() -> str:
        (accepted,) = await app.services.jobs.imagine("a lamp --count 2", ann, destination)
        return (await wait_for_end(app, accepted.job, wait_until)).id

    def link_to(job: str, number: int = 2) -> str:
        return f"{PAGE}/api/jobs/{job}/pictures/{number}.png a cat"

    public_job = await make_job()
    picture = (await app.services.job_views.load_view(public_job)).pictures[1]
    (accepted,) = await app.services.jobs.imagine(link_to(public_job), BOB, destination)
    assert (await app.services.job_views.load_view(accepted.job)).task.start.pictures == (InitImage(picture.sha256),)
    await app.services.preferences.set_preference(ann.id, "results", "private")
    hidden_job = await make_job()
    for link, member, sentence in (
        (link_to(hidden_job), BOB, PRIVATE_JOB),
        (link_to(public_job), Member("discord:1", "Eve", "discord:2"), OTHER_GUILD),
        (link_to(public_job, 4), BOB, "no such picture"),
        (link_to(JOB), BOB, "no such job"),
    ):
        with pytest.raises(UserError, match=sentence):
            await app.services.jobs.imagine(link, member, destination)
    await app.services.jobs.imagine(link_to(hidden_job), ann, destination)


def test_the_command_line_without_a_bot_fetches_nothing(tmp_path) -> None:
    from rich.console import Console

    from bot.app.settings import load_settings
    from bot.cli.imagine.progress_display import ProgressDisplay
    from bot.cli.options import load_engine

    settings = load_settings(data=tmp_path)
    engine = load_engine(settings)
    with (
        ProgressDisplay(Console(quiet=True), 1) as screen,
        pytest.raises(UserError, match="Links need a running Darkroom"),
    ):
        generate(ImagineRequest(f"{ATTACHED} a cat", {}), settings, engine, screen)
