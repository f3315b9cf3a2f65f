"""Templates and files of a page, and the JSON of charts in a form that is safe inside a script element."""

from __future__ import annotations

import json
from collections.abc import Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any

from jinja2 import Environment, FunctionLoader, StrictUndefined, Template, select_autoescape

from trimtab.section import Chart


def page_template(name: str) -> Template:
    """Return a template by its file name; values are escaped, and a missing value is an error."""
    environment = Environment(
        loader=FunctionLoader(lambda wanted: resource(f"templates/{wanted}")),
        autoescape=select_autoescape(default=True, default_for_string=True, enabled_extensions=("j2",)),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template(name)


def specification_of(chart: Chart) -> str:
    """Return the text of the script element of a chart."""
    return script_safe({"data": list(chart.data), "layout": chart.layout})


def script_safe(chart: dict[str, Any]) -> str:
    """Return JSON that cannot close the script element around it."""
    text = json.dumps(chart, allow_nan=False)
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def environment_of(folder: Path, run_ids: Sequence[str]) -> str:
    """Return the recorded environment of the first run; without run folders, that of the study folder."""
    beside_runs = (folder / "runs" / run_id / "environment.json" for run_id in run_ids)
    for file in (*beside_runs, folder / "environment.json"):
        if file.is_file():
            return file.read_text(encoding="utf-8", errors="replace")
    return "not recorded"


def resource(name: str) -> str:
    """Return the text of a file of this package."""
    return (files("trimtab") / "report" / name).read_text(encoding="utf-8")
