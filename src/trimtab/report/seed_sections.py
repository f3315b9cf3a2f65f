"""The sections of the view of seeds, for a study of any kind."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from trimtab.report.seed_figures import sources, spaghetti, training_map_chart, variance_bars
from trimtab.section import Chart, Section, Table
from trimtab.stats.components import Component, Components
from trimtab.study.seed_facts import SPIKES
from trimtab.study.seed_groups import NOT_READ, SeedGroup, SeedRun
from trimtab.watching import MetricKey

MOST_DRAWN = 6
NO_REPEATS = "without repeated runs, numerics can pose as interaction; set seeds.repeats"
SINGULAR = "all_weights/model/singular_variance"
NOTE = (
    "Runs of an arm at the same learning rate, which differ in their seeds only. An outlier has a final loss more "
    "than 2 standard deviations from the mean. For normally distributed losses, 1 run in 22 is an outlier by chance; "
    "in a group of 5 runs, no run can be one. Kappa: Cohen's kappa of two runs for the most likely next token of "
    "held-out text, mean over pairs of runs, with a 95 % jackknife interval over runs. Spikes: share of steps whose "
    "loss is more than 7 standard deviations from the mean of the last 1,000 steps, in percent; and number of steps "
    "whose loss is more than 0.1 nats above the rolling median, per 10,000 steps. Both are means over runs; the "
    "largest value is in parentheses."
)


def verdicts(groups: Sequence[SeedGroup]) -> list[str]:
    """Return the conclusions on each group, in sentences."""
    lines: list[str] = []
    for group in groups:
        name = f"{group.arm} at LR {group.learning_rate:.3g}"
        for run in group.outliers:
            beyond = "more" if abs(run.score) > group.limit else "not more"
            lines.append(
                f"{name}: {run.name} is an outlier: its final loss is {run.loss:.3f} nats, {run.score:+.2f} standard "
                f"deviations from the mean, {beyond} than the 5 % critical value of {group.limit:.2f} for the largest "
                f"of {len(group.runs)}{_singular(group, run)}{_forked(run)}"
            )
        if group.components is not None:
            lines += _shares(name, group.components)
        if group.map is None and group.why_no_map != NOT_READ:
            lines.append(f"warning: {name}: no training map: {group.why_no_map}")
        if group.map is not None:
            forked = [run.name for run in group.runs if run.fork is not None]
            lines.append(
                f"{name}: the training map has {group.map.states} states"
                f"{' (the largest number that was tried)' if group.map.states == len(group.map.bic) else ''}; "
                f"runs that leave the path of the other runs: {', '.join(forked) if forked else 'none'}"
            )
    return lines


def view_sections(
    groups: Sequence[SeedGroup], warnings: Sequence[str] = (), *, on_terminal: bool = True
) -> list[Section]:
    """Return the sections of the view of seeds; without groups, only the warnings."""
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
            "Variance of the final loss due to the initial weights, to the order of the data, and to their interaction "
            "and to numerics: runs with equal seeds and other rounding differ too. Only repeated runs tell these two "
            "apart."
        )
        sections.append(Section("Sources of the variance", note, charts=bars))
    sections += [_map_section(group, chart) for group, chart in zip([g for g in drawn if g.map], maps, strict=True)]
    return sections


def _table(groups: Sequence[SeedGroup]) -> Table:
    columns = ["arm", "LR", "runs", "final loss", "sd", "outliers", "kappa", *SPIKES]
    rows: list[list[str]] = []
    for group in groups:
        kappa = "-"
        if group.agreement is not None:
            kappa = f"{group.agreement.mean:.3f} [{group.agreement.low:.3f}, {group.agreement.high:.3f}]"
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
    training_map = group.map
    names = max((run.facts.names for run in group.runs), key=len)
    steps = max((run.facts.steps for run in group.runs), key=len)  # a run that ended early has fewer
    rows: list[list[str]] = []
    for state in range(training_map.states):
        inside = [int((path == state).sum()) for path in training_map.paths]
        entered = [int(np.flatnonzero(path == state)[0]) for path in training_map.paths if (path == state).any()]
        first = f"{int(np.median([steps[at] for at in entered]))}" if entered else "-"
        change = (
            training_map.means[state] - training_map.means[state - 1] if state else np.zeros(len(training_map.features))
        )
        largest = np.argsort(-np.abs(change))[:3]
        moved = ", ".join(f"{_short(names[training_map.features[place]])} {change[place]:+.2f}" for place in largest)
        rows.append([str(state), str(len(entered)), first, str(sum(inside)), moved if state else "-"])
    columns = ["state", "runs", "median step of entry", "checkpoints", "largest changes from the previous state"]
    note = (
        "The states of a hidden Markov model of the 14 weight statistics. The state of a checkpoint is inferred from "
        "the checkpoint and the earlier ones. Changes are in standard deviations over all checkpoints. BIC by number "
        "of states: "
        + ", ".join(f"{number}: {value:.0f}" for number, value in enumerate(training_map.bic, start=1))
        + f". Up to {len(training_map.bic)} states were tried."
    )
    return Section(
        f"Training map: {group.arm} at LR {group.learning_rate:.3g}", note, Table(columns, rows), charts=[chart]
    )


def _short(name: str) -> str:
    """Return 'singular_variance', or 'mean of biases' for a statistic of the biases."""
    what, _, statistic = MetricKey.parse(name)
    return statistic if what == "all_weights" else f"{statistic} of biases"


def _drawn_note(groups: Sequence[SeedGroup]) -> str:
    if len(groups) <= MOST_DRAWN:
        return ""
    return (
        f"The charts show {MOST_DRAWN} of the {len(groups)} groups: first those with a two-way design or a training "
        "map, then those with the most outliers."
    )


def _shares(name: str, components: Components) -> list[str]:
    """Return the shares of the variance, and what repeats say about the interaction of the two kinds of seeds."""
    titles = sources(components)
    shares = (f"{title} {_share(getattr(components, part))}" for part, title in titles.items())
    lines = [f"{name}: shares of the variance of the final loss: {'; '.join(shares)}"]
    if components.p_interaction is None:
        return [*lines, f"warning: {name}: {NO_REPEATS}"]
    shown = components.p_interaction < 0.05
    lines.append(
        f"{name}: interaction of initial weights and order of the data {'shown' if shown else 'not shown'}: F-test of "
        f"the residual against {components.repeats} repeated runs, p {components.p_interaction:.2g}"
    )
    return lines


def _share(part: Component) -> str:
    return f"{part.share:.0%} [{part.share_low:.0%}, {part.share_high:.0%}]"


def _forked(run: SeedRun) -> str:
    step = run.fork_step
    return "" if step is None else f"; on the training map it leaves the path of the other runs at step {step}"


def _singular(group: SeedGroup, run: SeedRun) -> str:
    """Return the score of the variance of the outlier's singular values, on whose sign publications disagree."""
    column = run.facts.names.index(SINGULAR) if SINGULAR in run.facts.names else -1
    last = [float(r.facts.statistics[-1, column]) for r in group.runs if column >= 0 and len(r.facts.statistics)]
    finite = [value for value in last if math.isfinite(value)]
    of_run = float(run.facts.statistics[-1, column]) if column >= 0 and len(run.facts.statistics) else math.nan
    deviation = float(np.std(finite, ddof=1)) if len(finite) > 2 else 0.0
    if not deviation or not math.isfinite(of_run):
        return ""
    score = (of_run - float(np.mean(finite))) / deviation
    return f"; the variance of its singular values is {score:+.1f} standard deviations from the mean"
