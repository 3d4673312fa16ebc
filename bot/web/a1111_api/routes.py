"""All routes of AUTOMATIC1111's API."""

from __future__ import annotations

from aiohttp import web

from bot.web.a1111_api import generation, listings, models, picture_texts, progress, upscaling


def routes() -> list[web.RouteDef]:
    parts = (generation, upscaling, picture_texts, progress, models, listings)
    return [route for part in parts for route in part.routes()]
