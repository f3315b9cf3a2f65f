"""The sections of the report of a comparison of losses."""

from __future__ import annotations

import math

from trimtab.kinds.loss_at_lr.figures import curves, differences, losses_by_size
from trimtab.kinds.loss_at_lr.findings import Compared, LossFindings, Mean, Saving
from trimtab.kinds.loss_at_lr.reported import REPORTED_PERPLEXITY, REPORTED_PERPLEXITY_HALF_WIDTH
from trimtab.kinds.loss_at_lr.results import facts_of, results_of, rows_of
from trimtab.report.text import number
from trimtab.section import Content, Section, Table
from trimtab.stats.paired import PairedDifference

SURE = 0.05
LEAST_REPORTED = 3
NOTE = "warning: the order of small models after few steps may differ from the order of larger models"


def verdicts(findings: LossFindings) -> list[str]:
    """Return a sentence on each arm against the reference, with the smallest effect that these data can detect."""
    reference = findings.spec.reference
    lines: list[str] = []
    for one in findings.compared:
        if one.difference is None and one.place.line != reference:
            lines.append(
                f"{_named(findings, one)}: cannot tell: in no seed did both this arm and {reference} train to the end"
            )
        if one.difference is not None:
            found = one.difference
            lines.append(
                f"{_named(findings, one)}: {_signed(found)} nats against {reference}: {_verdict(found, one.p_holm)} "
                f"(smallest visible effect {number(found.visible, '.3f')})"
            )
    for overall in findings.overall:
        mean = overall.mean
        if math.isnan(mean.mean):
            continue  # no seed has sound runs at every size
        lines.append(
            f"{overall.line}{_at(findings, overall.multiple)}: mean over all sizes {mean.mean:+.3f} "
            f"{_range(mean.low, mean.high)} nats against {reference}: {_sign(mean, 'lower loss', 'higher loss')} "
            f"(smallest visible effect {number(overall.visible, '.3f')})"
        )
    for slope in findings.slopes:
        mean = slope.mean
        if math.isnan(mean.mean):
            continue  # no seed has sound runs at every size
        lines.append(
            f"{slope.line}{_at(findings, slope.multiple)}: with each doubling of depth the difference to {reference} "
            f"changes by {mean.mean:+.3f} {_range(mean.low, mean.high)} nats: "
            f"{_sign(mean, 'better with more depth', 'worse with more depth')} "
            f"(smallest visible change {number(slope.visible, '.3f')})"
        )
    return lines


def _verdict(found: PairedDifference, p_holm: float | None) -> str:
    if math.isnan(found.low):
        return "cannot tell from a single seed"
    if found.low <= 0 <= found.high:
        return "cannot tell"
    side = "lower loss" if found.high < 0 else "higher loss"
    return side if p_holm is not None and p_holm < SURE else f"{side} before Holm's correction, cannot tell after it"


def _sign(mean: Mean, negative: str, positive: str) -> str:
    """Return the words for a mean whose interval is below or above 0."""
    if math.isnan(mean.low):
        return "cannot tell from a single seed"
    return negative if mean.high < 0 else positive if mean.low > 0 else "cannot tell"


def content(findings: LossFindings) -> Content:
    """Return the content of the report."""
    spec = findings.spec
    return Content(
        lead=f"Which arm reaches the lowest final loss, and with what certainty? {len(findings.runs)} runs, "
        f"{len(spec.arms)} arms, "
        f"{spec.comparison.seeds} paired seeds, {spec.protocol.training.steps} steps each, reference {spec.reference}.",
        sections=_sections(findings),
        verdicts=verdicts(findings),
        facts=facts_of(findings),
        results=results_of(findings),
        rows=rows_of(findings),
    )


def _sections(findings: LossFindings) -> list[Section]:
    reference = findings.spec.reference
    sections = [
        Section(
            "The answer",
            "Final loss on held-out text, mean over seeds. Differences are paired by seed and by block of text. The "
            "brackets of a difference are its 95 % interval over seeds and text. The p-value is two-sided and "
            "corrected by Holm's method over the arms of the same size and learning rate. Tokens saved: the share of "
            "the reference's tokens that the arm does not need to reach the final loss of the reference. At the step "
            "at which the arm reaches that loss, its LR has not decayed fully.",
            _main_table(findings),
            [*verdicts(findings), *(f"warning: {warning}" for warning in findings.warnings), NOTE],
            on_terminal=True,
        )
    ]
    reported = _reported_table(findings)
    if reported is not None:
        sections.append(
            Section(
                "Against the paper",
                "Reported: Table 4 of arXiv 2410.16682, with 830M parameters, one seed and an interval of +-0.1 in "
                "perplexity. The reported difference is a difference of ln perplexity. A difference of this study "
                "counts only if p after Holm's correction is below 0.05.",
                reported,
                on_terminal=True,
            )
        )
    by_size = losses_by_size(findings)
    if by_size:
        sections.append(Section("Loss against depth", charts=by_size))
    sections += [
        Section(f"Differences to {reference}", charts=[differences(findings)]),
        Section(
            "Certainty of each difference",
            "Over seeds: interval for other seeds on the same text. Over text: interval for other text with the same "
            "runs. Visible: the smallest effect that such data can detect with power 0.8.",
            _intervals_table(findings),
        ),
        Section("Differences by held-out text", "In nats, 95 % intervals over seeds and text.", _text_table(findings)),
        Section("Loss against tokens", charts=curves(findings, compute=False)),
        Section("Loss against compute", charts=curves(findings, compute=True)),
    ]
    return sections


def _main_table(findings: LossFindings) -> Table:
    sized = len(findings.spec.size_names) > 1
    columns = ["arm", *(["size"] if sized else []), "LR", "final loss", "perplexity", "bits/byte"]
    columns += ["difference", "p (Holm)", "tokens saved", "parameters", "FLOPs/token", "broken"]
    rows: list[list[str]] = []
    for one in findings.compared:
        cost = findings.costs[one.name]
        size = [one.place.size] if sized else []
        perplexity, bits = (number(value, ".3f") for value in (one.perplexity, one.bits_per_byte))
        difference = "" if one.difference is None else _signed(one.difference)
        p_value = "" if one.p_holm is None else f"{one.p_holm:.2g}"
        rows.append(
            [
                *(one.place.line, *size, _rate(one), interval(one.loss), perplexity, bits),
                *(difference, p_value, _saved(one.saving), f"{cost.parameters:,}", f"{cost.flops_per_token:.3g}"),
                f"{one.broken}" if one.broken else "",
            ]
        )
    return Table(columns, rows)


def _rate(one: Compared) -> str:
    return f"{one.learning_rate:.3g}" + (" (not bracketed)" if one.bracketed is False else "")


def _reported_table(findings: LossFindings) -> Table | None:
    spec = findings.spec
    if spec.arms[next(iter(spec.arms))].method != "baseline" or spec.sizes:
        return None
    rows: list[list[str]] = []
    base = REPORTED_PERPLEXITY["baseline"]
    for one in findings.compared:
        reported = REPORTED_PERPLEXITY.get(spec.arms[one.name].method)
        if reported is None or one.difference is None:
            continue
        theirs = 0 if abs(reported - base) <= REPORTED_PERPLEXITY_HALF_WIDTH else 1 if reported > base else -1
        sure = one.p_holm is not None and one.p_holm < SURE
        ours = 0 if not sure else 1 if one.difference.mean > 0 else -1
        shown = f"{math.log(reported / base):+.3f}"
        rows.append([_named(findings, one), _signed(one.difference), f"{reported:.2f}", shown, AGREEMENT[theirs, ours]])
    if len(rows) < LEAST_REPORTED:
        return None
    return Table(["arm", "difference", "reported perplexity", "reported difference", "the paper's claim"], rows)


# (sign of the reported difference, sign of the difference in this study) -> the verdict on the paper's claim
AGREEMENT = {
    (-1, -1): "holds",
    (-1, 0): "cannot tell",
    (-1, 1): "does not hold: the opposite",
    (0, -1): "paper: no difference; this study: lower loss",
    (0, 0): "no difference in paper or study",
    (0, 1): "paper: no difference; this study: higher loss",
    (1, -1): "does not hold: the opposite",
    (1, 0): "cannot tell",
    (1, 1): "holds",
}


def _intervals_table(findings: LossFindings) -> Table:
    rows = [
        [
            _named(findings, one),
            _signed(one.difference),
            _range(one.difference.seed_low, one.difference.seed_high),
            _range(one.difference.text_low, one.difference.text_high),
            number(one.difference.visible, ".4f"),
        ]
        for one in findings.compared
        if one.difference is not None
    ]
    return Table(["arm", "difference", "over seeds", "over text", "visible"], rows)


def _text_table(findings: LossFindings) -> Table:
    texts = sorted({text for one in findings.compared for text in one.difference_by_text})
    rows = [
        [_named(findings, one)]
        + [_signed(one.difference_by_text[text]) if text in one.difference_by_text else "-" for text in texts]
        for one in findings.compared
        if one.difference is not None
    ]
    return Table(["arm", *texts], rows)


def _named(findings: LossFindings, one: Compared) -> str:
    return f"{one.name}{_at(findings, one.multiple)}"


def _at(findings: LossFindings, multiple: float) -> str:
    return f" at {multiple:g}x the LR" if len(findings.spec.comparison.multiples) > 1 else ""


def interval(mean: Mean) -> str:
    """Return '2.134 [2.120, 2.148]'."""
    if math.isnan(mean.mean):
        return "-"
    return f"{mean.mean:.3f}" + ("" if math.isnan(mean.low) else f" [{mean.low:.3f}, {mean.high:.3f}]")


def _signed(found: PairedDifference) -> str:
    return f"{found.mean:+.3f}{'' if math.isnan(found.low) else ' ' + _range(found.low, found.high)}"


def _range(low: float, high: float) -> str:
    return "-" if math.isnan(low) else f"[{low:+.3f}, {high:+.3f}]"


def _saved(saving: Saving | None) -> str:
    if saving is None:
        return ""
    if saving.reached == 0:
        return f"not reached (0 of {saving.seeds})"
    tokens = saving.tokens
    bracket = "" if math.isnan(tokens.low) else f" [{tokens.low:.0%}, {tokens.high:.0%}]"
    return f"{tokens.mean:.0%}{bracket} ({saving.reached} of {saving.seeds})"
