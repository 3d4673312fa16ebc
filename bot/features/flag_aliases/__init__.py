"""Flag aliases: `--mine` in a member's prompts stands for words and flags that they saved before."""

from __future__ import annotations

from bot.domain.feature import Feature

FEATURE = Feature(title="Flag aliases")
