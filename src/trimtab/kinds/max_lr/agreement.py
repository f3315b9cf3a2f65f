"""Compare the order of the arms at the edge of collapse with the order that a paper reports for divergence."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from trimtab.kinds.max_lr.analysis import limit_draws
from trimtab.kinds.max_lr.findings import LimitFindings
from trimtab.kinds.max_lr.reported import REPORTED
from trimtab.stats.rank import kendall_tau_b

TAU_DRAWS = 4000
LEAST_REPORTED = 4  # with fewer arms the order says too little


@dataclass(frozen=True, slots=True)
class TauB:
    """Kendall's tau-b: median and 95 % interval over resampled arms and draws from their posteriors."""

    estimate: float
    low: float
    high: float


@dataclass(frozen=True, slots=True)
class OrderAgreement:
    """The agreement between the reported order and the order in this study.

    Attributes:
        p_value: one-sided, by permutation of the reported limits over the arms.
        verdict: ``order agrees`` if the interval is above 0, ``order does not agree`` if it is below, else ``cannot
            tell``.
        arms: names of the compared arms.
        left_out: names of the arms with a reported limit that were not compared: accounts of the limit differ, or the
            arm has no limit in this study.
    """

    paper: str
    tau_b: TauB
    p_value: float
    verdict: Literal["order agrees", "order does not agree", "cannot tell"]
    arms: Sequence[str]
    left_out: Sequence[str]


def order_agreement(findings: LimitFindings) -> OrderAgreement | None:
    """Return the agreement; None if fewer than 4 arms have a reported limit."""
    known = {
        name: (arm, REPORTED[arm.method])
        for name, arm in findings.arms.items()
        if arm.method in REPORTED
        and arm.edges["collapse"].posterior.log2_lr50
        and not REPORTED[arm.method].disputed
        and findings.spec.comparable(name)  # the paper's learning rates are of one optimizer
    }
    if len(known) < LEAST_REPORTED:
        return None
    reported = np.array([row.trains_at for _, row in known.values()])
    rng = np.random.default_rng(0)
    draws = np.stack([limit_draws(arm, "collapse", TAU_DRAWS, rng) for arm, _ in known.values()], axis=1)
    chosen = rng.integers(0, len(known), draws.shape)
    taus = [_tau(reported[arms], draw[arms]) for draw, arms in zip(draws, chosen, strict=True)]
    low, high = np.nanquantile(taus, [0.025, 0.975])
    middle = float(np.median([_tau(reported, draw) for draw in draws]))
    medians = np.median(draws, axis=0)
    by_chance = [_tau(rng.permutation(reported), medians) for _ in range(TAU_DRAWS)]
    p_value = (1 + sum(tau >= _tau(reported, medians) for tau in by_chance)) / (1 + TAU_DRAWS)
    left_out = sorted(n for n, arm in findings.arms.items() if arm.method in REPORTED and n not in known)
    verdict = "order agrees" if low > 0 else "order does not agree" if high < 0 else "cannot tell"
    tau_b = TauB(middle, float(low), float(high))
    return OrderAgreement("arXiv 2410.16682", tau_b, p_value, verdict, list(known), left_out)


def _tau(first: np.ndarray, second: np.ndarray) -> float:
    return kendall_tau_b(first.tolist(), second.tolist())
