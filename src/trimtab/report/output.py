"""Convert dataclasses to JSON, and rows to CSV."""

from __future__ import annotations

import csv
import io
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import fields
from enum import Enum
from typing import Any, cast

from trimtab.section import Rows


def plain(value: object) -> Any:
    """Return a value for JSON: dataclasses become objects, tuples become lists, NaN and infinity become null."""
    if hasattr(value, "__dataclass_fields__"):
        return {f.name: plain(getattr(value, f.name)) for f in fields(cast(Any, value))}
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in cast("Mapping[Any, Any]", value).items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in cast("Sequence[Any]", value)]
    if isinstance(value, Enum):
        return value.value
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, int) and not isinstance(value, bool):
        return int(value)
    return value


def json_text(results: dict[str, Any]) -> str:
    """Return the text of ``results.json``."""
    return json.dumps(results, indent=1, ensure_ascii=False, allow_nan=False) + "\n"


def csv_text(rows: Rows) -> str:
    """Return the text of ``results.csv``; an apostrophe precedes text that a spreadsheet would read as a formula."""
    output = io.StringIO()
    writer = csv.writer(output, lineterminator="\n")
    for row in (rows.columns, *rows.rows):
        writer.writerow([_cell(value) for value in row])
    return output.getvalue()


def _cell(value: object) -> object:
    if isinstance(value, str):
        return f"'{value}" if value[:1] in ("=", "+", "-", "@", "\t", "\r") else value
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return int(value) if isinstance(value, int) and not isinstance(value, bool) else value
