"""What every page is made with: its template, its files, and charts as text that is safe inside it."""

from __future__ import annotations

import json
from collections.abc import Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any

from jinja2 import Environment, FunctionLoader, StrictUndefined, Template, select_autoescape

from trimtab.section import Chart


def page_template(name: str) -> Template:
    """A template by its file name, in which names are escaped and a missing value is an error."""
    environment = Environment(
        loader=FunctionLoader(lambda wanted: resource(f"templates/{wanted}")),
        autoescape=select_autoescape(default=True, default_for_string=True, enabled_extensions=("j2",)),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template(name)


def specification_of(chart: Chart) -> str:
    """A chart as the text of its script element."""
    return script_safe({"data": list(chart.data), "layout": chart.layout})


def script_safe(chart: dict[str, Any]) -> str:
    """JSON that cannot close the script element it stands in."""
    text = json.dumps(chart, allow_nan=False)
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def environment_of(folder: Path, run_ids: Sequence[str]) -> str:
    """What the first run that says so ran on; also beside a study whose runs are gone."""
    beside_runs = (folder / "runs" / run_id / "environment.json" for run_id in run_ids)
    for file in (*beside_runs, folder / "environment.json"):
        if file.is_file():
            return file.read_text(encoding="utf-8", errors="replace")
    return "not recorded"


def resource(name: str) -> str:
    """A file that comes with the report, as text."""
    return (files("trimtab") / "report" / name).read_text(encoding="utf-8")
