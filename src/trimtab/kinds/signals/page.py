"""The page of a study of signals, in sections."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from trimtab.kinds.signals.analysis import BAR, EVERY_LINE, PREDICTORS, TEV
from trimtab.kinds.signals.figures import layers, prediction_curves, ridgelines, scatters
from trimtab.kinds.signals.findings import Predicted, Related, SignalFindings
from trimtab.kinds.signals.results import RELATIONS, facts_of, results_of, rows_of
from trimtab.section import Content, Section, Table
from trimtab.stats.prediction import Area
from trimtab.stats.rank import Correlation
from trimtab.study.labels import Label

# What stands in tables for the names of signals.
NAMES: Mapping[str, str] = {
    "tev_mean": "TEV, mean",
    "tev_std": "TEV, spread",
    "tev_over_norm": "TEV over row norm",
    "tev_over_init": "TEV over init",
    "tev_frequent": "TEV, frequent tokens",
    "tev_rare": "TEV, rare tokens",
    "tev_unseen": "TEV, tokens never seen",
    "variance": "gradient variance",
    "variance_embedding": "gradient variance, embedding",
}


def verdicts(findings: SignalFindings) -> list[str]:
    """What the study says, in sentences."""
    lines: list[str] = []
    for one in findings.related:
        if one.runs == EVERY_LINE and one.signal in TEV[:2]:
            for relation, shown in RELATIONS.items():
                found: Correlation = getattr(one, relation)
                if math.isfinite(found.estimate):
                    lines.append(
                        f"{NAMES[one.signal]} against {NAMES[one.against]}, {shown}: {_signed(found)}: "
                        f"{_strength(found)} (smallest visible {_number(found.visible)}, {found.runs} runs)"
                    )
    for fraction in findings.spec.signals.fractions:
        for name in ("TEV", "loss, gradient norm and TEV", "gradient variance"):
            told = _at(findings, name, fraction)
            if told is not None and told.area.pairs:
                lines.append(
                    f"at {fraction:.0%} of the run, {name}: area {_plain(told.area)}, {_signed(told.gain)} against "
                    f"{BAR}: {_better(told.gain)}; of these very methods {_same(told.gain)}: {_better_same(told.gain)} "
                    f"(smallest visible {_number(told.gain.visible)}, {told.area.pairs} pairs)"
                )
    return lines


def content(findings: SignalFindings) -> Content:
    """Everything that is shown of a study of signals."""
    spec = findings.spec
    return Content(
        lead="Does token embedding variability (TEV) stand in for gradient variance, and does it tell early how "
        "a run ends? "
        f"{len(findings.runs)} runs, {len(spec.arms)} arms, {len(spec.ticks())} learning rates, {spec.signals.seeds} "
        f"seeds, {spec.protocol.training.steps} steps each.",
        sections=_sections(findings),
        verdicts=verdicts(findings),
        facts=facts_of(findings),
        results=results_of(findings),
        rows=rows_of(findings),
    )


def _sections(findings: SignalFindings) -> list[Section]:
    spec = findings.spec
    return [
        Section(
            "Does TEV go with gradient variance?",
            "Spearman's rank correlations with 95 % intervals that resample whole runs. Over time: mean over runs of "
            "the correlation over the readings of a run; of changes: of the changes between readings, in which a "
            f"common trend is no agreement. Across runs: of one size and text at equal step, at {_fractions(findings)} "
            "and at the end; the last column holds learning rate and weight decay fixed as well.",
            _related_table([one for one in findings.related if one.runs == EVERY_LINE]),
            on_terminal=True,
        ),
        Section(
            "Does it tell how a run will end?",
            "Area under the ROC curve for failing against sound runs of the same size, text, learning rate and weight "
            "decay: 0.5 is guessing. Which of a pair looks worse is said by a model fitted to runs of other methods "
            "and other seeds. In brackets 95 % intervals over methods, for what others may show; the lines below have "
            f"those of these very methods, over seeds, too. The gain, on the same pairs, is over {BAR}.",
            _predicted_table(findings),
            [*verdicts(findings), *(f"warning: {warning}" for warning in findings.warnings), *_labels(findings)],
            on_terminal=True,
        ),
        Section("Prediction over the run", charts=[prediction_curves(findings)]),
        Section("TEV against gradient variance", charts=scatters(findings)),
        Section(
            "Each arm by itself", "As above.", _related_table([o for o in findings.related if o.runs != EVERY_LINE])
        ),
        Section(
            "TEV over training",
            f"Each line is the histogram of TEV at one reading, the first at the bottom. Frequent tokens make up "
            f"{spec.signals.frequent_share:.0%} of the training text, rare ones the rest of it.",
            charts=ridgelines(findings),
        ),
        Section("Gradient variance by layer", charts=layers(findings)),
        Section(
            "What the signals cost",
            "Time of one reading as a share of an ordinary step of the same run, and spread over all steps; medians "
            "over runs, as the host sees them, beside whatever else the machine did.",
            _costs_table(findings),
        ),
    ]


def _related_table(related: Sequence[Related]) -> Table:
    rows = [
        [
            one.runs or "all runs",
            NAMES[one.signal],
            NAMES[one.against],
            *(_signed(getattr(one, relation)) for relation in RELATIONS),
        ]
        for one in related
    ]
    return Table(["runs", "signal", "against", *RELATIONS.values()], rows)


def _predicted_table(findings: SignalFindings) -> Table:
    fractions = findings.spec.signals.fractions
    columns = ["from"] + [f"{what} {fraction:.0%}" for fraction in fractions for what in ("area at", "gain at")]
    rows: list[list[str]] = []
    for name in PREDICTORS:
        cells: list[str] = []
        for fraction in fractions:
            found = _at(findings, name, fraction)
            cells += ["-", "-"] if found is None else [_plain(found.area), "" if name == BAR else _signed(found.gain)]
        rows.append([name, *cells])
    return Table(columns, rows)


def _costs_table(findings: SignalFindings) -> Table:
    rows = [
        [
            *(arm, f"{1000 * cost.step:.1f} ms", f"{cost.tev:.2%}", f"{cost.tev_amortised:.3%}"),
            *(f"{cost.variance:.1%}", f"{cost.variance_amortised:.2%}"),
        ]
        for arm, cost in findings.costs.items()
    ]
    columns = ["arm", "a step", "a reading of TEV", "spread", "a reading of gradient variance", "spread"]
    return Table(columns, rows)


def _labels(findings: SignalFindings) -> list[str]:
    counts = {one: sum(run.outcome_label is one for run in findings.runs) for one in Label}
    return ["labels: " + ", ".join(f"{count} {one.value}" for one, count in counts.items() if count)]


def _at(findings: SignalFindings, predictor: str, fraction: float) -> Predicted | None:
    found = (one for one in findings.predicted if (one.predictor, one.fraction) == (predictor, fraction))
    return next(found, None)


def _fractions(findings: SignalFindings) -> str:
    return ", ".join(f"{fraction:.0%}" for fraction in findings.spec.signals.fractions)


def _strength(found: Correlation) -> str:
    if math.isnan(found.low) or found.low <= 0 <= found.high:
        return "cannot tell"
    return "they go together" if found.low > 0 else "they go against each other"


def _better(found: Area) -> str:
    if math.isnan(found.low) or found.low <= 0 <= found.high:
        return "cannot tell"
    return "better" if found.low > 0 else "worse"


def _better_same(found: Area) -> str:
    if math.isnan(found.same_low) or found.same_low <= 0 <= found.same_high:
        return "cannot tell"
    return "better" if found.same_low > 0 else "worse"


def _same(found: Area) -> str:
    return "-" if math.isnan(found.same_low) else f"[{found.same_low:+.2f}, {found.same_high:+.2f}]"


def _signed(found: Correlation | Area) -> str:
    if math.isnan(found.estimate):
        return "-"
    return f"{found.estimate:+.2f}" + ("" if math.isnan(found.low) else f" [{found.low:+.2f}, {found.high:+.2f}]")


def _plain(found: Area) -> str:
    if math.isnan(found.estimate):
        return "-"
    return f"{found.estimate:.2f}" + ("" if math.isnan(found.low) else f" [{found.low:.2f}, {found.high:.2f}]")


def _number(value: float) -> str:
    return f"{value:.2f}" if math.isfinite(value) else "-"
