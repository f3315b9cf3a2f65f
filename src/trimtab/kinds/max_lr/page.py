"""The sections of the report of a study of limits."""

from __future__ import annotations

from trimtab.kinds.max_lr.agreement import OrderAgreement, order_agreement
from trimtab.kinds.max_lr.analysis import CRITERIA
from trimtab.kinds.max_lr.figures import label_map, limits, posteriors
from trimtab.kinds.max_lr.findings import LimitFindings
from trimtab.kinds.max_lr.loss_figures import loss_against_lr, loss_curves
from trimtab.kinds.max_lr.mover_charts import mover_sections
from trimtab.kinds.max_lr.movers import movements
from trimtab.kinds.max_lr.movers import results_of as movement_results
from trimtab.kinds.max_lr.results import facts_of, results_of, rows_of
from trimtab.kinds.max_lr.table import CAVEAT, limit, ratio, result_table, verdicts
from trimtab.report.text import number
from trimtab.section import Content, Section, Table

TITLES = {"half_d": "d / 2", "d": "d", "double_d": "2 d", "strict": "strict"}


def content(findings: LimitFindings) -> Content:
    """Return the content of the report."""
    moved = movements(findings)
    agreement = order_agreement(findings)
    spec = findings.spec
    sections = [
        answer(findings, agreement),
        *(Section(chart.title, charts=[chart]) for chart in (limits(findings), loss_against_lr(findings))),
        *(Section(chart.title, charts=[chart]) for chart in (label_map(findings), posteriors(findings))),
        Section("Loss curves by arm", CURVES, charts=loss_curves(findings), small=True),
    ]
    for index, (arm, movement) in enumerate(moved.items()):
        sections += mover_sections(index, arm, movement)
    sections += [_criteria(findings), _labels(findings), _certainty(findings)]
    return Content(
        lead=f"At which peak learning rate does training begin to fail? {len(findings.runs)} runs, "
        f"{len(findings.arms)} arms, {spec.protocol.training.steps} steps each, reference {spec.reference}.",
        sections=sections,
        verdicts=verdicts(findings, agreement),
        facts=facts_of(findings),
        results=results_of(findings, agreement, {arm: movement_results(movement) for arm, movement in moved.items()}),
        rows=rows_of(findings),
    )


CURVES = "Held-out loss against step for the runs of the first sweep. Blue: lowest learning rate. Red: highest."


def answer(findings: LimitFindings, agreement: OrderAgreement | None) -> Section:
    """Return the section with the result table and its conclusions."""
    note = (
        "LR50 is the peak learning rate at which half of the runs fail. LR10 is the peak learning rate at which a "
        "tenth of the runs fail. Brackets are 95 % intervals. A run fails if its final loss is more than "
        f"{findings.spec.criterion.margin} nats above the best loss, near or above chance level, or not finite. For "
        "LR10 and LR50, the best loss is that of the same arm; for 'usable up to', that of the reference arm. The "
        "signs > and < mark a bound: the limit is outside the tested range. Arms with different optimizers have no "
        "ratio, because their learning rates have different units."
    )
    lines = [
        *verdicts(findings, agreement),
        *(f"warning: {warning}" for warning in findings.warnings),
        CAVEAT,
    ]
    return Section("The answer", note, result_table(findings, agreement), lines, on_terminal=True)


def _criteria(findings: LimitFindings) -> Section:
    margin = findings.spec.criterion.margin
    rows: list[list[str]] = []
    for name, factor in CRITERIA.items():
        title = TITLES[name] if name == "strict" else f"{TITLES[name]} = {margin * factor:g} nats"
        for arm, results in findings.arms.items():
            criterion = results.criteria[name]
            cells = [limit(criterion.breaks.lr50), limit(criterion.usable.lr50), ratio(criterion.ratio.lr50)]
            rows.append([title, arm, *cells])
    columns = ["margin", "arm", "breaks at (LR50)", "usable up to", "ratio"]
    note = (
        "The same runs, labelled with other margins. With 'strict', only runs that exploded or became non-finite fail."
    )
    return Section("Does the answer depend on the criterion?", note, Table(columns, rows))


def _labels(findings: LimitFindings) -> Section:
    labels = list(next(iter(findings.arms.values())).counts)
    rows = [[name, *(str(count) for count in arm.counts.values())] for name, arm in findings.arms.items()]
    return Section("Labels", table=Table(["arm", *labels], rows))


def _certainty(findings: LimitFindings) -> Section:
    search = findings.spec.search
    spread = number(findings.seed_sd, ".3f")
    note = (
        "Standard deviation of the final loss between seeds at the same learning rate: "
        f"{'not measured' if spread == '-' else spread + ' nats'}. "
        f"Chance levels: {number(findings.log_vocab, '.3f')} nats for a uniform guess, "
        f"{number(findings.unigram_entropy, '.3f')} nats for unigram frequencies. "
        f"The stop rule was fixed in advance: an arm is finished after {search.most_runs} runs, or when its interval "
        f"of LR50 is narrower than {search.enough} octaves. Smallest visible shift: the smallest difference to the "
        "reference whose interval would exclude zero with power 0.8 in data like these."
    )
    rows: list[list[str]] = []
    for name, arm in findings.arms.items():
        width = arm.edge_width
        edge = "-" if width is None else f"{width.estimate:.2f} [{width.low:.2f}, {width.high:.2f}]"
        rows.append([name, number(arm.visible_shift, ".2f"), edge])
    columns = ["arm", "smallest visible shift (octaves)", "width of the edge (octaves)"]
    return Section("Certainty of the limits", note, Table(columns, rows))
