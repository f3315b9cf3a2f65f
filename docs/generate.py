"""Write the generated parts of README and docs; with --check, fail if one of them is stale."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from trimtab.cli import EXIT_CODES
from trimtab.intervention import Source
from trimtab.interventions import catalogue as interventions
from trimtab.methods import catalogue as methods

ROOT = Path(__file__).resolve().parent.parent
TARGETS = (ROOT / "README.md", ROOT / "docs" / "methods.md")


def link(source: Source) -> str:
    return f"[{source.arxiv}](https://arxiv.org/abs/{source.arxiv})" if source.arxiv else source.title


def method_table() -> str:
    rows = ["| method | what it does | paper |", "|---|---|---|"]
    for slug, method in methods().items():
        source = method.source
        rows.append(f"| `{slug}` | {cell(source.equation)} | {link(source)}, {cell(source.place)} |")
    return "\n".join(rows)


def method_details() -> str:
    parts: list[str] = []
    for slug, method in methods().items():
        source = method.source
        names = ", ".join(f"`{type(i).slug()}`" for i in method.interventions) or "nothing"
        heading = f"### `{slug}`\n\n{source.title}, {link(source)}, {source.place}."
        parts.append(f"{heading}\n\n    {source.equation}\n\nInstalls {names}.")
        if source.deviations:
            parts.append("Choices where the paper is silent, uncertain, or not followed:\n")
            parts[-1] += "\n" + "\n".join(f"- {deviation}" for deviation in source.deviations)
    return "\n\n".join(parts)


def intervention_table() -> str:
    rows = ["| intervention | kind | settings | equation |", "|---|---|---|---|"]
    for slug, kind in interventions().items():
        made = kind()
        fields = getattr(kind, "__dataclass_fields__", {})
        settings = ", ".join(f"`{name} = {getattr(made, name)}`" for name, f in fields.items() if f.init)
        base = next(b.__name__ for b in kind.__mro__ if b.__module__ == "trimtab.intervention")
        rows.append(f"| `{slug}` | {base} | {settings or 'none'} | {cell(kind.source.equation)} |")
    return "\n".join(rows)


def exit_codes() -> str:
    return "```\n" + EXIT_CODES.split("\n", 1)[1] + "\n```"


def cell(text: str) -> str:
    return text.replace("|", "\\|")


BLOCKS = {
    "method-table": method_table,
    "method-details": method_details,
    "intervention-table": intervention_table,
    "exit-codes": exit_codes,
}


def fill(text: str) -> str:
    for name, content in BLOCKS.items():
        begin, end = f"<!-- generated: {name} -->\n", f"<!-- end: {name} -->"
        if begin in text:
            before, rest = text.split(begin, 1)
            _, after = rest.split(end, 1)
            text = f"{before}{begin}\n{content()}\n\n{end}{after}"
    return text


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true")
    check = parser.parse_args().check
    stale = [
        target for target in TARGETS if target.read_text(encoding="utf-8") != fill(target.read_text(encoding="utf-8"))
    ]
    if check and stale:
        print(f"stale: {', '.join(str(t.relative_to(ROOT)) for t in stale)}; run 'make tables'", file=sys.stderr)
        return 1
    for target in stale:
        target.write_text(fill(target.read_text(encoding="utf-8")), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
