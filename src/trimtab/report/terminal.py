"""Print a report on a terminal; names are printed as plain text."""

from __future__ import annotations

from collections.abc import Sequence

from rich.console import Console
from rich.table import Table
from rich.text import Text

from trimtab.config import printable
from trimtab.section import Section


def print_sections(name: str, sections: Sequence[Section], console: Console) -> None:
    """Print the tables and lines of the sections that are meant for a terminal."""
    for section in sections:
        if not section.on_terminal:
            continue
        if section.table is not None:
            table = Table(title=Text(printable(f"{name}: {section.title}")))
            for index, column in enumerate(section.table.columns):
                # By default rich cuts a long word, so that two arms may look the same.
                table.add_column(Text(printable(column)), justify="left" if index == 0 else "right", overflow="fold")
            for row in section.table.rows:
                table.add_row(*(Text(printable(cell)) for cell in row))
            console.print(table)
        for line in section.lines:
            console.print(Text(printable(line)))
