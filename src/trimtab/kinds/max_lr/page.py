"""The page of a study of limits, in sections."""

from __future__ import annotations

from trimtab.kinds.max_lr.agreement import OrderAgreement, order_agreement
from trimtab.kinds.max_lr.analysis import CRITERIA
from trimtab.kinds.max_lr.figures import label_map, limits, loss_against_lr, loss_curves, posteriors
from trimtab.kinds.max_lr.findings import LimitFindings
from trimtab.kinds.max_lr.mover_charts import mover_sections
from trimtab.kinds.max_lr.movers import movements
from trimtab.kinds.max_lr.movers import results_of as movement_results
from trimtab.kinds.max_lr.results import facts_of, results_of, rows_of
from trimtab.kinds.max_lr.table import CAVEAT, limit, ratio, result_table, verdicts
from trimtab.report.text import number
from trimtab.section import Content, Section, Table

TITLES = {"half_d": "d / 2", "d": "d", "double_d": "2 d", "strict": "strict"}


def content(findings: LimitFindings) -> Content:
    """Everything that is shown of a study of limits."""
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
        lead=f"How far can the learning rate be pushed before training breaks? {len(findings.runs)} runs, "
        f"{len(findings.arms)} arms, {spec.protocol.training.steps} steps each, reference {spec.reference}.",
        sections=sections,
        verdicts=verdicts(findings, agreement),
        facts=facts_of(findings),
        results=results_of(findings, agreement, {arm: movement_results(one) for arm, one in moved.items()}),
        rows=rows_of(findings),
    )


CURVES = "Held-out loss over the run, for the runs of the sweep; blue is the lowest learning rate, red the highest."


def answer(findings: LimitFindings, agreement: OrderAgreement | None) -> Section:
    """The result table with its conclusions."""
    note = (
        "LR50 is the peak learning rate at which half of the runs fail, LR10 at which a tenth do; brackets are 95 % "
        "intervals. Breaks measures a run against its own arm's best loss, usable against the reference's. A run "
        "fails when "
        f"it ends more than {findings.spec.criterion.margin} nats above that, near or above chance level, or "
        "non-finite. A "
        "sign > or < marks a bound: the edge lies outside the tested range. Learning rates of different "
        "optimizers are in "
        "different units and have no ratio."
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
        for arm, one in findings.arms.items():
            criterion = one.criteria[name]
            cells = [limit(criterion.breaks.lr50), limit(criterion.usable.lr50), ratio(criterion.ratio.lr50)]
            rows.append([title, arm, *cells])
    columns = ["margin", "arm", "breaks at (LR50)", "usable up to", "ratio"]
    note = "The same runs, labelled by other margins. Strict counts only runs that exploded or became non-finite."
    return Section("Does the answer depend on the criterion?", note, Table(columns, rows))


def _labels(findings: LimitFindings) -> Section:
    labels = list(next(iter(findings.arms.values())).counts)
    rows = [[name, *(str(count) for count in arm.counts.values())] for name, arm in findings.arms.items()]
    return Section("Labels", table=Table(["arm", *labels], rows))


def _certainty(findings: LimitFindings) -> Section:
    search = findings.spec.search
    spread = number(findings.seed_sd, ".3f")
    note = (
        f"Spread between seeds at one learning rate: {'not measured' if spread == '-' else spread + ' nats'}. "
        "Chance levels: "
        f"{number(findings.log_vocab, '.3f')} nats for a uniform guess, "
        f"{number(findings.unigram_entropy, '.3f')} for unigram "
        f"frequencies. The stop rule was fixed in advance: at most {search.most_runs} runs an arm, or an "
        "interval under "
        f"{search.enough} octaves. Smallest visible shift: the difference to the reference that data like these "
        "would show, "
        "with power 0.8, by an interval that excludes no difference."
    )
    rows: list[list[str]] = []
    for name, arm in findings.arms.items():
        width = arm.edge_width
        edge = "-" if width is None else f"{width.estimate:.2f} [{width.low:.2f}, {width.high:.2f}]"
        rows.append([name, number(arm.visible_shift, ".2f"), edge])
    columns = ["arm", "smallest visible shift (octaves)", "width of the edge (octaves)"]
    return Section("How sure is this?", note, Table(columns, rows))
