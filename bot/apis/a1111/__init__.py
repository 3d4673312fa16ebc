"""AUTOMATIC1111's API under `/sdapi/v1/`, over the services: programs that ask its web UI for pictures ask Darkroom.

`names` and `picture_options` map its names and fields to ours, `result_fields` maps results back; these are pure.
"""

from __future__ import annotations

from bot.domain.feature import Feature

FEATURE = Feature(title="AUTOMATIC1111's API")
