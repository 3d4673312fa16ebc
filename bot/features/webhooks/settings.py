"""What an operator sets for webhooks."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict, Field

from engine.process.settings import Words


class WebhookSettings(BaseModel):
    """The table `[webhooks]`."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    hosts: Words = Field((), description="names, addresses and networks of the local network that webhooks may reach")


SETTINGS = WebhookSettings
