"""Compare the order of the arms by their limits with the order that a paper reports."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from trimtab.kinds.max_lr.analysis import limit_draws
from trimtab.kinds.max_lr.findings import LimitFindings
from trimtab.kinds.max_lr.reported import REPORTED
from trimtab.stats.rank import kendall_tau_b

TAU_DRAWS = 4000
LEAST_REPORTED = 4  # with fewer arms the order says too little


@dataclass(frozen=True, slots=True)
class TauB:
    """Kendall's tau-b: median and 95 % interval over draws from the posteriors of this study."""

    estimate: float
    low: float
    high: float


@dataclass(frozen=True, slots=True)
class OrderAgreement:
    """The agreement between the reported order and the order in this study.

    Attributes:
        arms: names of the compared arms.
        left_out: names of the arms with a reported limit that were not compared: accounts of the limit differ, or the
            arm has no limit in this study.
    """

    paper: str
    tau_b: TauB
    arms: Sequence[str]
    left_out: Sequence[str]


def order_agreement(findings: LimitFindings) -> OrderAgreement | None:
    """Return the agreement; None if fewer than 4 arms have a reported limit."""
    known = {
        name: (arm, REPORTED[arm.method])
        for name, arm in findings.arms.items()
        if arm.method in REPORTED
        and arm.posterior.log2_lr50
        and not REPORTED[arm.method].disputed
        and findings.spec.comparable(name)  # the paper's learning rates are of one optimizer
    }
    if len(known) < LEAST_REPORTED:
        return None
    reported = [row.trains_at for _, row in known.values()]
    rng = np.random.default_rng(0)
    draws = [limit_draws(arm, findings.spec, name, TAU_DRAWS, rng) for name, (arm, _) in known.items()]
    taus = [kendall_tau_b(reported, draw.tolist()) for draw in np.stack(draws, axis=1)]
    low, median, high = np.quantile(taus, [0.025, 0.5, 0.975])
    left_out = sorted(n for n, arm in findings.arms.items() if arm.method in REPORTED and n not in known)
    return OrderAgreement("arXiv 2410.16682", TauB(float(median), float(low), float(high)), list(known), left_out)
