"""The page of a comparison of losses, in sections."""

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
NOTE = "warning: losses of small models after few steps need not carry over"


def verdicts(findings: LossFindings) -> list[str]:
    """Each arm against the reference in one sentence, with the smallest effect that could have been seen."""
    reference = findings.spec.reference
    lines: list[str] = []
    for one in findings.compared:
        if one.difference is None and one.place.line != reference:
            lines.append(f"{_named(findings, one)}: cannot tell: in no seed did both it and {reference} end well")
        if one.difference is not None:
            found = one.difference
            lines.append(
                f"{_named(findings, one)}: {_signed(found)} nats against {reference}: {_verdict(found, one.p_holm)} "
                f"(smallest visible effect {number(found.visible, '.3f')})"
            )
    for slope in findings.slopes:
        mean = slope.mean
        if math.isnan(mean.mean):
            continue  # no seed is whole at every size
        lines.append(
            f"{slope.line}{_at(findings, slope.multiple)}: with each doubling of depth the difference to {reference} "
            f"changes by {mean.mean:+.3f} {_range(mean.low, mean.high)} nats: {_direction(mean)}"
        )
    return lines


def _verdict(found: PairedDifference, p_holm: float | None) -> str:
    if math.isnan(found.low):
        return "one seed, cannot tell"
    if found.low <= 0 <= found.high:
        return "cannot tell"
    side = "lower loss" if found.high < 0 else "higher loss"
    return side if p_holm is not None and p_holm < SURE else f"{side} by itself, not after Holm's correction"


def _direction(mean: Mean) -> str:
    if math.isnan(mean.low):
        return "one seed, cannot tell"
    return "better the deeper" if mean.high < 0 else "worse the deeper" if mean.low > 0 else "cannot tell"


def content(findings: LossFindings) -> Content:
    """Everything that is shown of a comparison of losses."""
    spec = findings.spec
    return Content(
        lead=f"Which arm ends at the lowest loss, and how sure is that? {len(findings.runs)} runs, "
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
            "Final loss on held-out text, mean over seeds; differences are paired by seed and block of text. Brackets "
            "are 95 % intervals over seeds and text together. p is two-sided, after Holm's correction over the arms of "
            "one size and rate. Tokens saved: the share of the reference's tokens that an arm does without until its "
            "held-out loss, which at that point is not annealed, reaches the reference's final one.",
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
                "Reported: Table 4 of arXiv 2410.16682, 830M parameters, one seed, interval of 0.1 in perplexity; "
                "as a difference of ln perplexity. Ours counts where it stands after Holm's correction.",
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
            "How sure is each difference?",
            "Over seeds: these texts, other seeds. Over text: these very runs, other blocks. Visible: the "
            "effect that such data would show with power 0.8.",
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
                *(one.place.line, *size, f"{one.learning_rate:.3g}", interval(one.loss), perplexity, bits),
                *(difference, p_value, _saved(one.saving), f"{cost.parameters:,}", f"{cost.flops_per_token:.3g}"),
                f"{one.broken}" if one.broken else "",
            ]
        )
    return Table(columns, rows)


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


# (sign that the paper reports, sign that stands here) -> what becomes of its claim
AGREEMENT = {
    (-1, -1): "holds",
    (-1, 0): "cannot tell",
    (-1, 1): "does not hold: the opposite",
    (0, -1): "no difference there, lower loss here",
    (0, 0): "no difference seen in either",
    (0, 1): "no difference there, higher loss here",
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
    """'2.134 [2.120, 2.148]'."""
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
