"""Webhooks: signed messages about jobs to addresses that programs and the operator choose."""

from __future__ import annotations

from bot.domain.feature import Feature
from bot.domain.permission import Permission, Price

FEATURE = Feature(
    title="Webhooks",
    permissions={
        "webhook": Permission(
            "have webhooks", own_role="moderator", concerns_jobs=False, scope="webhooks", scope_suffices=True
        )
    },
    prices={"webhook": Price("change", 1.0)},
    secret_tables=("webhook_deliveries", "webhooks"),
    key_scopes=("webhooks",),
)
