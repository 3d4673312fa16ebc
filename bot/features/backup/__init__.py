"""Backups: database and pictures in one file while the bot runs, and a data folder made of such a file."""

from __future__ import annotations

from bot.domain.feature import Feature

FEATURE = Feature(title="Backups")
