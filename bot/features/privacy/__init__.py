"""Privacy: members get a copy of their data, and have it deleted; the operator does either for them."""

from __future__ import annotations

from bot.domain.feature import Feature
from bot.domain.permission import Permission, Price

FEATURE = Feature(
    title="Privacy",
    permissions={
        "export": Permission("export their data", concerns_jobs=False),
        "forget": Permission("have all their data deleted", concerns_jobs=False),
    },
    prices=dict.fromkeys(("export", "forget"), Price("change", 20.0)),
)
