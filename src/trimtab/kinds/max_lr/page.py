"""The sections of the report of a study of limits."""

from __future__ import annotations

from trimtab.kinds.max_lr.agreement import OrderAgreement, order_agreement
from trimtab.kinds.max_lr.criteria import RULES
from trimtab.kinds.max_lr.figures import label_map, limits, posteriors
from trimtab.kinds.max_lr.findings import MAIN, LimitFindings
from trimtab.kinds.max_lr.loss_figures import loss_against_lr, loss_curves
from trimtab.kinds.max_lr.mover_charts import mover_sections, refusal
from trimtab.kinds.max_lr.movers import movements
from trimtab.kinds.max_lr.movers import results_of as movement_results
from trimtab.kinds.max_lr.results import facts_of, results_of, rows_of
from trimtab.kinds.max_lr.table import CAVEAT, edge_table, limit, pair_table, ratio, result_table
from trimtab.kinds.max_lr.verdicts import verdicts
from trimtab.report.text import number
from trimtab.section import Content, Section, Table

TITLES = {
    "half_d": "quality, d / 2",
    "d": "quality, d",
    "double_d": "quality, 2 d",
    "collapse": "collapse",
    "collapse_at_entropy": "collapse, at the unigram entropy",
    "strict": "strict",
}


def content(findings: LimitFindings) -> Content:
    """Return the content of the report."""
    moved = movements(findings)
    agreement = order_agreement(findings)
    spec = findings.spec
    sections = [
        answer(findings, agreement),
        *(Section(chart.title, charts=[chart]) for chart in (limits(findings), loss_against_lr(findings))),
        *(Section(chart.title, charts=[chart]) for chart in (label_map(findings), *posteriors(findings))),
        Section("Loss curves by arm", CURVES, charts=loss_curves(findings), small=True),
    ]
    for index, (arm, movement) in enumerate(moved.by_arm.items()):
        sections += mover_sections(index, arm, movement)
    if moved.refused:
        sections.append(refusal(moved.refused))
    sections += [_edges(findings), *_pairs(findings), _criteria(findings), _labels(findings)]
    return Content(
        lead=f"At which peak learning rate does training begin to fail? {len(findings.runs)} runs, "
        f"{len(findings.arms)} arms, {spec.protocol.training.steps} steps each, reference {spec.reference}.",
        sections=sections,
        verdicts=verdicts(findings, agreement),
        facts=facts_of(findings),
        results=results_of(findings, agreement, {arm: movement_results(one) for arm, one in moved.by_arm.items()}),
        rows=rows_of(findings),
    )


CURVES = "Held-out loss against step for the runs of the first sweep. Blue: lowest learning rate. Red: highest."


def answer(findings: LimitFindings, agreement: OrderAgreement | None) -> Section:
    """Return the section with the result table and its conclusions."""
    spec = findings.spec
    note = (
        "Two edges of the peak learning rate. LR50: half of the runs fail. Quality: the final loss is more than "
        f"{spec.criterion.margin} nats above the best loss of the arm, or the run collapses. Collapse: the final loss "
        f"is above {number(findings.collapse_line, '.3f')} nats, the same line for all arms, or not finite. Both hold "
        f"within {spec.protocol.training.steps} steps. 'Usable up to' compares with the best loss of the reference. "
        "Brackets are 95 % intervals. Arms without a common letter differ, familywise 5 % over all pairs. The signs > "
        "and < mark a bound: the limit is outside the tested range. Arms with different optimizers have no ratio. LR "
        "sensitivity is the mean excess loss over three decades of learning rates about the best."
    )
    lines = [
        *verdicts(findings, agreement),
        *(f"warning: {warning}" for warning in findings.warnings),
        CAVEAT,
    ]
    return Section("The answer", note, result_table(findings, agreement), lines, on_terminal=True)


def _edges(findings: LimitFindings) -> Section:
    search = findings.spec.search
    margin = findings.spec.criterion.margin
    spread = number(findings.seed_sd, ".3f")
    note = (
        f"A cliff rises by more than {2 * margin:g} nats per octave within an octave of LR50; a slope by less, and its "
        "limit depends on the margin. Spread: standard deviation about the line through the runs within an octave of "
        "LR50 that have not collapsed. Between seeds near the best rate it is "
        f"{'not measured' if spread == '-' else spread + ' nats'}. "
        f"Horizon: {findings.spec.protocol.training.steps} steps; late failures began in the last fifth of them. "
        f"Chance levels: {number(findings.log_vocab, '.3f')} nats for a uniform guess, "
        f"{number(findings.unigram_entropy, '.3f')} nats for unigram frequencies. "
        f"The stop rule was fixed in advance: at most {search.most_runs} runs of an arm, of which the edge of collapse "
        f"gets {search.share_collapse:.0%} after the sweep; an edge is finished when its interval of LR50 is narrower "
        f"than {search.enough} octaves. Smallest visible shift: the smallest difference to the reference whose "
        "interval would exclude zero with power 0.8 in data like these."
    )
    return Section("The two edges in detail", note, edge_table(findings))


def _pairs(findings: LimitFindings) -> list[Section]:
    note = (
        "A / B: ratio of LR50 with a 95 % interval, for a single pair that was chosen before. P(A > B): posterior "
        "probability that A fails at a higher learning rate than B. The p-values are corrected for all pairs of the "
        "table."
    )
    return [
        Section(f"All pairs, edge of {edge}", note, pair_table(findings, edge)) for edge in MAIN if findings.pairs[edge]
    ]


def _criteria(findings: LimitFindings) -> Section:
    margin = findings.spec.criterion.margin
    rows: list[list[str]] = []
    for name, rule in RULES.items():
        title = (
            f"{TITLES[name]} = {margin * rule.margin:g} nats" if TITLES[name].startswith("quality") else TITLES[name]
        )
        for arm, results in findings.arms.items():
            criterion = results.criteria[name]
            cells = [limit(criterion.breaks.lr50), limit(criterion.usable.lr50), ratio(criterion.ratio.lr50)]
            rows.append([title, arm, *cells])
    columns = ["criterion", "arm", "breaks at (LR50)", "usable up to", "ratio"]
    note = (
        "The same runs, judged by other criteria. 'At the unigram entropy': a run collapses only if it ends no better "
        "than unigram frequencies. 'Strict': only runs that exploded or became non-finite fail."
    )
    return Section("Does the answer depend on the criterion?", note, Table(columns, rows))


def _labels(findings: LimitFindings) -> Section:
    labels = list(next(iter(findings.arms.values())).counts)
    rows = [[name, *(str(count) for count in arm.counts.values())] for name, arm in findings.arms.items()]
    return Section("Labels", table=Table(["arm", *labels], rows))
