"""The view of seeds as sections of a page, of a study of any kind."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from trimtab.report.seed_figures import SOURCES, spaghetti, training_map_chart, variance_bars
from trimtab.section import Chart, Section, Table
from trimtab.stats.components import Component
from trimtab.study.seed_facts import SPIKES
from trimtab.study.seed_groups import NOT_READ, SeedGroup, SeedRun
from trimtab.watching import MetricKey

MOST_DRAWN = 6
SINGULAR = "all_weights/model/singular_variance"
NOTE = (
    "Runs of one arm at one learning rate that differ in nothing but their seeds. Outliers lie beyond 2 standard "
    "deviations of the mean, which 1 normal run in 22 does by chance; with 5 runs none can. Kappa: agreement of two "
    "runs in the likeliest next token of held-out text, beyond chance, mean over pairs, 95 % jackknife interval over "
    "runs. Spikes: share of steps 7 standard deviations from the mean of the last 1,000, in percent; and steps 0.1 "
    "nats above the rolling median, per 10,000; mean over runs, and the largest."
)


def verdicts(groups: Sequence[SeedGroup]) -> list[str]:
    """What each group says, in sentences."""
    lines: list[str] = []
    for group in groups:
        name = f"{group.arm} at LR {group.learning_rate:.3g}"
        for run in group.outliers:
            beyond = "beyond" if abs(run.score) > group.limit else "within"
            lines.append(
                f"{name}: {run.name} is an outlier, final loss {run.loss:.3f}, {run.score:+.2f} standard deviations "
                f"({beyond} the {group.limit:.2f} that the most extreme of {len(group.runs)} exceeds by chance in "
                f"5 % of cases){_singular(group, run)}{_forked(run)}"
            )
        if group.components is not None:
            shares = (f"{SOURCES[part]} {_share(getattr(group.components, part))}" for part in SOURCES)
            lines.append(f"{name}: of the variance of the final loss, {'; '.join(shares)}")
        if group.map is None and group.why_no_map != NOT_READ:
            lines.append(f"warning: {name}: no training map: {group.why_no_map}")
        if group.map is not None:
            forked = [run.name for run in group.runs if run.fork is not None]
            lines.append(
                f"{name}: training map of {group.map.states} states"
                f"{' (as many as were tried)' if group.map.states == len(group.map.bic) else ''}; "
                f"{', '.join(forked) if forked else 'no run'} leaves the others"
            )
    return lines


def view_sections(
    groups: Sequence[SeedGroup], warnings: Sequence[str] = (), *, on_terminal: bool = True
) -> list[Section]:
    """The view of seeds for a page of any kind; nothing where no arm has 5 seeds at one rate."""
    if not groups:
        return [Section("Seeds", lines=[f"warning: {warning}" for warning in warnings])] if warnings else []
    lines = [*verdicts(groups), *(f"warning: {warning}" for warning in warnings)]
    drawn = sorted(groups, key=lambda group: (group.components is None, group.map is None, -len(group.outliers)))
    drawn = drawn[:MOST_DRAWN]
    curves = [spaghetti(index, group) for index, group in enumerate(drawn)]
    bars = [chart for index, group in enumerate(drawn) if (chart := variance_bars(index, group))]
    maps = [chart for index, group in enumerate(drawn) if (chart := training_map_chart(index, group))]
    sections = [
        Section("Seeds", NOTE, _table(groups), lines, on_terminal=on_terminal),
        Section("Loss curves by seed", _drawn_note(groups), charts=curves),
    ]
    if bars:
        note = (
            "Of the final loss: what initial weights, what the order of the data, what only the two together explain."
        )
        sections.append(Section("Where the variance comes from", note, charts=bars))
    sections += [_map_section(group, chart) for group, chart in zip([g for g in drawn if g.map], maps, strict=True)]
    return sections


def _table(groups: Sequence[SeedGroup]) -> Table:
    columns = ["arm", "LR", "runs", "final loss", "sd", "outliers", "kappa", *SPIKES]
    rows: list[list[str]] = []
    for group in groups:
        found = group.agreement
        kappa = "-" if found is None else f"{found.mean:.3f} [{found.low:.3f}, {found.high:.3f}]"
        outliers = ", ".join(run.name for run in group.outliers) or "none"
        rows.append(
            [
                *(group.arm, f"{group.learning_rate:.3g}", str(len(group.runs)), f"{group.mean:.3f}"),
                *(f"{group.deviation:.3f}", outliers, kappa, *_spikes(group)),
            ]
        )
    return Table(columns, rows)


def _spikes(group: SeedGroup) -> list[str]:
    cells: list[str] = []
    for place in range(len(SPIKES)):
        scores = [run.facts.spikes[place] for run in group.runs if math.isfinite(run.facts.spikes[place])]
        cells.append(f"{sum(scores) / len(scores):.3g} (at most {max(scores):.3g})" if scores else "-")
    return cells


def _map_section(group: SeedGroup, chart: Chart) -> Section:
    assert group.map is not None
    found = group.map
    names = max((run.facts.names for run in group.runs), key=len)
    steps = max((run.facts.steps for run in group.runs), key=len)  # one that ended early has fewer
    rows: list[list[str]] = []
    for state in range(found.states):
        inside = [int((path == state).sum()) for path in found.paths]
        entered = [int(np.flatnonzero(path == state)[0]) for path in found.paths if (path == state).any()]
        first = f"{int(np.median([steps[at] for at in entered]))}" if entered else "-"
        change = found.means[state] - found.means[state - 1] if state else np.zeros(len(found.features))
        largest = np.argsort(-np.abs(change))[:3]
        moved = ", ".join(f"{_short(names[found.features[place]])} {change[place]:+.2f}" for place in largest)
        rows.append([str(state), str(len(entered)), first, str(sum(inside)), moved if state else "-"])
    columns = ["state", "runs", "median step of entry", "checkpoints", "what changes most from the state before"]
    note = (
        "A hidden Markov model of the 14 weight statistics: phases that runs pass through. The state of a checkpoint "
        "is said from it and those before. Changes in standard deviations over all checkpoints. BIC by number of "
        "states: "
        + ", ".join(f"{number}: {value:.0f}" for number, value in enumerate(found.bic, start=1))
        + f". Tried up to {len(found.bic)}."
    )
    return Section(
        f"Training map: {group.arm} at LR {group.learning_rate:.3g}", note, Table(columns, rows), charts=[chart]
    )


def _short(name: str) -> str:
    """'singular_variance', or 'mean of biases'."""
    what, _, statistic = MetricKey.parse(name)
    return statistic if what == "all_weights" else f"{statistic} of biases"


def _drawn_note(groups: Sequence[SeedGroup]) -> str:
    if len(groups) <= MOST_DRAWN:
        return ""
    return f"{MOST_DRAWN} of the {len(groups)} groups: those with a two-way design or a map, then those with outliers."


def _share(part: Component) -> str:
    return f"{part.share:.0%} [{part.share_low:.0%}, {part.share_high:.0%}]"


def _forked(run: SeedRun) -> str:
    step = run.fork_step
    return "" if step is None else f"; on the training map it leaves the others at step {step}"


def _singular(group: SeedGroup, run: SeedRun) -> str:
    """Whether the outlier's singular values vary more or less than the others', on which accounts differ."""
    column = run.facts.names.index(SINGULAR) if SINGULAR in run.facts.names else -1
    last = [float(one.facts.statistics[-1, column]) for one in group.runs if column >= 0 and len(one.facts.statistics)]
    sound = [value for value in last if math.isfinite(value)]
    own = float(run.facts.statistics[-1, column]) if column >= 0 and len(run.facts.statistics) else math.nan
    deviation = float(np.std(sound, ddof=1)) if len(sound) > 2 else 0.0
    if not deviation or not math.isfinite(own):
        return ""
    score = (own - float(np.mean(sound))) / deviation
    return f", its singular values' variance {score:+.1f} standard deviations from the mean"
