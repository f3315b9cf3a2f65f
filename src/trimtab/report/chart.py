"""Parts of charts, as plotly specifications: colours, layouts, reference lines.

Plotly reads text as markup. Every name must therefore be escaped before it is put into a chart.
"""

from __future__ import annotations

import html
from typing import Any

from trimtab.study.labels import Label

# The palette of Okabe and Ito, which colour-blind readers can distinguish, then further colours.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#8C6D31", "#7B5EA7", "#767676", "#005A32")
LABEL_COLOURS = {
    Label.STABLE: "#009E73",
    Label.RECOVERED: "#56B4E9",
    Label.UNDERTRAINED: "#999999",
    Label.NOT_LEARNED: "#BBBBBB",
    Label.DEGRADED: "#E69F00",
    Label.STUCK: "#CC79A7",
    Label.EXPLODED: "#D55E00",
    Label.NON_FINITE: "#7A0019",
    Label.NO_OUTCOME: "#DDDDDD",
}
DOTTED = {"dash": "dot", "width": 1, "color": "#888"}


def escape(name: str) -> str:
    """Return markup that plotly shows as the name."""
    return html.escape(name, quote=False)  # plotly does not decode the entities of quotes


def colour(index: int) -> str:
    """Return the colour of a line by its number; colours repeat after ten lines."""
    return COLOURS[index % len(COLOURS)]


def chart_layout(x_title: str, y_title: str, height: int) -> dict[str, Any]:
    """Return a layout with margins, axis titles and a legend above the plot."""
    return {
        "height": height,
        "margin": {"l": 60, "r": 20, "t": 20, "b": 60},
        # Above the plot, plotly makes room for any number of legend rows.
        "legend": {"orientation": "h", "x": 0, "y": 1.02, "yanchor": "bottom"},
        "hovermode": "closest",
        "xaxis": {"title": {"text": x_title}},
        "yaxis": {"title": {"text": y_title}},
    }


def horizontal_line(y: float) -> dict[str, Any]:
    """Return a dotted horizontal line across the plot."""
    return {"type": "line", "xref": "paper", "x0": 0, "x1": 1, "y0": y, "y1": y, "line": DOTTED}


def vertical_line(x: float) -> dict[str, Any]:
    """Return a dotted vertical line across the plot."""
    return {"type": "line", "yref": "paper", "x0": x, "x1": x, "y0": 0, "y1": 1, "line": DOTTED}


def category_axis(names: list[str]) -> dict[str, Any]:
    """Return an axis with a row for each name, the first name on top."""
    return {
        "autorange": "reversed",
        "automargin": True,
        "type": "category",
        "categoryorder": "array",
        "categoryarray": names,
    }
