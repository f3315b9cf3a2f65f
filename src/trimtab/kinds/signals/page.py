"""The sections of the report of a study of signals."""

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

# The names of signals in tables.
NAMES: Mapping[str, str] = {
    "tev_mean": "TEV, mean",
    "tev_std": "TEV, spread",
    "tev_over_norm": "TEV over row norm",
    "tev_over_init": "TEV over init",
    "tev_frequent": "TEV, frequent tokens",
    "tev_rare": "TEV, rare tokens",
    "tev_unseen": "TEV, tokens not in the training text",
    "variance": "gradient variance",
    "variance_embedding": "gradient variance, embedding",
}


def verdicts(findings: SignalFindings) -> list[str]:
    """Return the conclusions in sentences."""
    lines: list[str] = []
    for one in findings.related:
        if one.runs == EVERY_LINE and one.signal in TEV[:2]:
            for relation, shown in RELATIONS.items():
                correlation: Correlation = getattr(one, relation)
                if math.isfinite(correlation.estimate):
                    lines.append(
                        f"{NAMES[one.signal]} against {NAMES[one.against]}, {shown}: {_signed(correlation)}: "
                        f"{_strength(correlation)} (smallest visible {_number(correlation.visible)}, "
                        f"{correlation.units} independent seeds or arms)"
                    )
    for fraction in findings.spec.signals.fractions:
        for name in ("TEV", "loss, gradient norm and TEV", "gradient variance"):
            predicted = _at(findings, name, fraction)
            if predicted is not None and predicted.area.pairs:
                gain = predicted.gain
                lines.append(
                    f"at {fraction:.0%} of the run, {name}: area {_plain(predicted.area)}, gain {_signed(gain)} over "
                    f"{BAR}: {_better(gain)}; interval for the methods of this study {_same(gain)}: "
                    f"{_better_same(gain)} (smallest visible {_number(gain.visible)}, {predicted.area.pairs} pairs)"
                )
    return lines


def content(findings: SignalFindings) -> Content:
    """Return the content of the report."""
    spec = findings.spec
    return Content(
        lead="Can token embedding variability (TEV) replace gradient variance, and does it predict early whether a run "
        "fails? "
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
            "Does TEV correlate with gradient variance?",
            "Spearman's rank correlations from "
            f"{spec.signals.from_fraction:.0%} of the run on: the start of every run is a transient. The 95 % "
            "intervals resample seeds, as all runs of a seed begin with the same draws and see the same data; where "
            "arms are compared, also arms. First column: "
            "between runs of the same arm and learning rate at the same step, which differ in their seeds alone. Over "
            "time: over the readings of a run, mean over runs. Of changes: of the changes between consecutive "
            "readings, which a common trend does not affect. Across runs: between runs of the same size and text at "
            "the same step; these also compare arms and learning rates. In the last column, the runs have the same "
            "learning rate and weight decay, and different arms.",
            _related_table([one for one in findings.related if one.runs == EVERY_LINE]),
            on_terminal=True,
        ),
        *_prediction(findings),
        Section("TEV against gradient variance", charts=scatters(findings)),
        Section(
            "Each arm separately",
            "The columns are those of the first table.",
            _related_table([o for o in findings.related if o.runs != EVERY_LINE]),
        ),
        Section(
            "TEV over training",
            "Each line is the histogram of TEV at a reading; the first reading is at the bottom. Frequent tokens are "
            f"the fewest tokens that make up {spec.signals.frequent_share:.0%} of the training text; the other tokens "
            "of the text are rare.",
            charts=ridgelines(findings),
        ),
        Section("Gradient variance by layer", charts=layers(findings)),
        Section(
            "Cost of the signals",
            "Time of a reading as a share of the time of a step without a reading, and averaged over all steps. "
            "Values are medians over runs, measured on the host. Other load on the machine affects them.",
            _costs_table(findings),
        ),
    ]


def _prediction(findings: SignalFindings) -> list[Section]:
    """The sections on prediction; sentences alone if the study has one rate and no pair to predict."""
    lines = [*verdicts(findings), *(f"warning: {warning}" for warning in findings.warnings), *_labels(findings)]
    if len(findings.spec.ticks()) == 1 and not any(one.area.pairs for one in findings.predicted):
        return [Section("Conclusions", lines=lines, on_terminal=True)]
    return [
        Section(
            "Do the signals predict whether a run fails?",
            "Area under the ROC curve for pairs of a failing and a sound run with the same size, text, learning rate "
            "and weight decay. A random guess has an area of 0.5. A model that is fitted to runs of other methods "
            "and other seeds predicts which run of a pair fails. Brackets are 95 % intervals over methods; they "
            "apply to methods that were not studied. The sentences below also give intervals over seeds, which apply "
            f"to the methods of this study. The gain is the area minus the area of {BAR} on the same pairs. Pairs of "
            "two arms also say how well a signal tells arms apart. Pairs within one arm are in the next table.",
            _predicted_table(findings, within=False),
            lines,
            on_terminal=True,
        ),
        Section(
            "Pairs within one arm",
            _within_note(findings),
            _predicted_table(findings, within=True),
            on_terminal=True,
        ),
        Section("Prediction over the run", charts=[prediction_curves(findings)]),
    ]


def _within_note(findings: SignalFindings) -> str:
    """Return the number of pairs within one arm and of all pairs; it is the same for every signal and fraction."""
    for one in findings.predicted:
        return f"{one.area_within.pairs} of {one.area.pairs} pairs are of one arm. Columns: as in the table above."
    return ""


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


def _predicted_table(findings: SignalFindings, *, within: bool) -> Table:
    fractions = findings.spec.signals.fractions
    columns = ["signals"] + [f"{what} {fraction:.0%}" for fraction in fractions for what in ("area at", "gain at")]
    rows: list[list[str]] = []
    for name in PREDICTORS:
        cells: list[str] = []
        for fraction in fractions:
            predicted = _at(findings, name, fraction)
            if predicted is None:
                cells += ["-", "-"]
            else:
                area = predicted.area_within if within else predicted.area
                gain = predicted.gain_within if within else predicted.gain
                cells += [_plain(area), "" if name == BAR else _signed(gain)]
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
    columns = [
        "arm",
        "step",
        "TEV, per reading",
        "TEV, averaged",
        "gradient variance, per reading",
        "gradient variance, averaged",
    ]
    return Table(columns, rows)


def _labels(findings: SignalFindings) -> list[str]:
    counts = {label: sum(run.outcome_label is label for run in findings.runs) for label in Label}
    return ["labels: " + ", ".join(f"{count} {label.value}" for label, count in counts.items() if count)]


def _at(findings: SignalFindings, predictor: str, fraction: float) -> Predicted | None:
    matching = (one for one in findings.predicted if (one.predictor, one.fraction) == (predictor, fraction))
    return next(matching, None)


def _strength(found: Correlation) -> str:
    if math.isnan(found.low) or found.low <= 0 <= found.high:
        return "cannot tell"
    return "positive correlation" if found.low > 0 else "negative correlation"


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


def _signed(value: Correlation | Area) -> str:
    if math.isnan(value.estimate):
        return "-"
    return f"{value.estimate:+.2f}" + ("" if math.isnan(value.low) else f" [{value.low:+.2f}, {value.high:+.2f}]")


def _plain(found: Area) -> str:
    if math.isnan(found.estimate):
        return "-"
    return f"{found.estimate:.2f}" + ("" if math.isnan(found.low) else f" [{found.low:.2f}, {found.high:.2f}]")


def _number(value: float) -> str:
    return f"{value:.2f}" if math.isfinite(value) else "-"
