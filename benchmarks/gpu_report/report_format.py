"""Formats a report as JSON for programs and as Markdown for an issue. Measures nothing."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from benchmarks.report.errors import FAILED
from benchmarks.report.figure_row import FigureRow

Sections = Mapping[str, Sequence[FigureRow]]


def format_json(facts: Mapping[str, Any], sections: Sections) -> str:
    rows = {title: [row.to_dict() for row in section_rows] for title, section_rows in sections.items()}
    return json.dumps({"device": dict(facts), "sections": rows}, indent=1, ensure_ascii=False)


def format_markdown(facts: Mapping[str, Any], sections: Sections) -> str:
    lines = [f"# Darkroom on {facts['device']}", ""]
    if facts["kind"] != "cuda":
        lines += ["There is no GPU here: all figures are of the processor.", ""]
    lines += [
        "| | |",
        "|---|---|",
        *(f"| {_format_cell(name)} | {_format_cell(value)} |" for name, value in facts.items()),
    ]
    for title, rows in sections.items():
        lines += ["", f"## {title}", "", "| | what | figure | goal | note |", "|---|---|---|---|---|"]
        lines += [_format_row(row) for row in rows]
    return "\n".join(lines) + "\n"


def _format_row(row: FigureRow) -> str:
    missing_mark = "**failed**" if row.goal or row.note.startswith(FAILED) else "–"
    mark = missing_mark if row.figure is None else "ok" if row.meets_goal else "**miss**"
    return f"| {mark} | {_format_cell(row.name)} | {row.figure_text} | {row.goal or ''} | {_format_cell(row.remark)} |"


def _format_cell(value: object) -> str:
    return "–" if value is None else str(value).replace("|", "\\|").replace("\n", " ")
