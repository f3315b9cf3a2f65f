"""Limits and their ratios, as estimates or as bounds where the limit is outside the tested range."""

from __future__ import annotations

from collections.abc import Mapping

from trimtab.kinds.max_lr.findings import Bound, Estimate, Limit
from trimtab.stats.comparison import difference
from trimtab.stats.posterior import EdgeEvidence, EdgePosterior

INTERVAL = (0.025, 0.5, 0.975)


def limit_of(posterior: EdgePosterior | None, trials: EdgeEvidence, without: Bound = "no_single_edge") -> Limit:
    """Return LR50 and LR10 of an arm; ``without`` is the reason why there is no posterior."""
    return Limit(_estimate(posterior, trials, 0.5, without), _estimate(posterior, trials, 0.1, without))


def _estimate(posterior: EdgePosterior | None, trials: EdgeEvidence, level: float, without: Bound) -> Estimate:
    if posterior is None:
        return Estimate(None, None, None, without)
    bound = _bound(posterior, trials, level)
    if bound == "no_data":
        return Estimate(None, None, None, bound)
    low, median, high = (float(x) for x in posterior.quantiles(INTERVAL, level))
    inside = [2.0**x if posterior.low <= x <= posterior.high else None for x in (low, high)]
    if bound == "above":
        return Estimate(2.0**posterior.high, inside[0], None, bound)
    if bound == "below":
        return Estimate(2.0**posterior.low, None, inside[1], bound)
    return Estimate(2.0**median, inside[0], inside[1])


def _bound(posterior: EdgePosterior, trials: EdgeEvidence, level: float) -> Bound | None:
    if len(trials.x) == 0:
        return "no_data"
    if not trials.failed.any():
        return "above"
    if trials.failed.all():
        return "below"
    median = float(posterior.quantiles((0.5,), level)[0])
    return "above" if median > posterior.high else "below" if median < posterior.low else None


# (bound of the arm, bound of the reference) -> bound of their ratio; a pair that is not listed is undetermined.
_RATIO_BOUNDS: Mapping[tuple[Bound | None, Bound | None], Bound | None] = {
    (None, None): None,
    ("above", None): "above",
    (None, "below"): "above",
    ("above", "below"): "above",
    ("below", None): "below",
    (None, "above"): "below",
    ("below", "above"): "below",
}


def told_apart(
    arm: str, other: str, posteriors: Mapping[str, EdgePosterior], trials: Mapping[str, EdgeEvidence]
) -> bool:
    """Whether the limits of two arms can differ on these data: not if both are bounds on the same side."""
    bounds = (_bound(posteriors[arm], trials[arm], 0.5), _bound(posteriors[other], trials[other], 0.5))
    return bounds in _RATIO_BOUNDS


def ratio_of(
    arm: str,
    reference: str,
    posteriors: Mapping[str, EdgePosterior],
    trials: Mapping[str, EdgeEvidence],
    comparable: bool,
) -> Limit:
    """Return the ratios of LR50 and LR10 to the reference; there is no ratio between different optimizers."""
    if not comparable:
        no_ratio = Estimate(None, None, None, "other_optimizer")
        return Limit(no_ratio, no_ratio)
    return Limit(*(_ratio(arm, reference, posteriors, trials, level) for level in (0.5, 0.1)))


def _ratio(
    arm: str,
    reference: str,
    posteriors: Mapping[str, EdgePosterior],
    trials: Mapping[str, EdgeEvidence],
    level: float,
) -> Estimate:
    if arm == reference:
        return Estimate(1.0, 1.0, 1.0)
    if arm not in posteriors or reference not in posteriors:
        return Estimate(None, None, None, "no_single_edge")
    bound_of_arm = _bound(posteriors[arm], trials[arm], level)
    bound_of_reference = _bound(posteriors[reference], trials[reference], level)
    if "no_data" in (bound_of_arm, bound_of_reference):
        return Estimate(None, None, None, "no_data")
    log2_ratio = difference(posteriors[arm], posteriors[reference], level)
    bound = _RATIO_BOUNDS.get((bound_of_arm, bound_of_reference), "undetermined")
    if bound == "undetermined":
        return Estimate(None, None, None, bound)
    # An end of the ratio is open if it depends on the end of an interval that leaves the tested range.
    (low, high), (low_other, high_other) = (
        posteriors[name].quantiles((0.025, 0.975), level) for name in (arm, reference)
    )
    tested, tested_other = posteriors[arm], posteriors[reference]
    open_above = high > tested.high or low_other < tested_other.low
    open_below = low < tested.low or high_other > tested_other.high
    if open_above and open_below:
        return Estimate(None, None, None, "undetermined")
    lower = None if open_below or bound == "below" else 2.0**log2_ratio.low
    upper = None if open_above or bound == "above" else 2.0**log2_ratio.high
    return Estimate(2.0**log2_ratio.median, lower, upper, bound)
