"""Student's t, paired differences over seeds and text, and the line through uncertain estimates."""

from __future__ import annotations

import math

import numpy as np
import pytest
from numpy.typing import NDArray

from trimtab.stats.paired import paired_difference
from trimtab.stats.student import t_cdf, t_quantile
from trimtab.stats.trend import linear_trend

Floats = NDArray[np.float64]
STUDIES = 200


@pytest.fixture
def fewer_resamples(monkeypatch: pytest.MonkeyPatch) -> None:
    """The bootstrap over text has no say in the interval over seeds and text, and takes most of the time."""
    monkeypatch.setattr("trimtab.stats.paired.RESAMPLES", 20)


# --- Student's t ------------------------------------------------------------------------------------------------------


def cdf_by_loop(t: float, degrees: float, pieces: int = 2000) -> float:
    """Simpson's rule over the density, in plain loops."""
    scale = math.gamma((degrees + 1) / 2) / (math.sqrt(degrees * math.pi) * math.gamma(degrees / 2))
    step = abs(t) / pieces
    total = 0.0
    for i in range(pieces + 1):
        weight = 1 if i in (0, pieces) else 4 if i % 2 else 2
        total += weight * (1 + (i * step) ** 2 / degrees) ** (-(degrees + 1) / 2)
    return 0.5 + math.copysign(scale * total * step / 3, t)


@pytest.mark.parametrize(
    ("probability", "degrees", "published"),
    [
        (0.975, 1, 12.7062), (0.975, 2, 4.30265), (0.975, 3, 3.18245), (0.975, 4, 2.77645), (0.975, 5, 2.57058),
        (0.975, 10, 2.22814), (0.975, 30, 2.04227), (0.975, 120, 1.97993), (0.975, math.inf, 1.95996),
        (0.8, 1, 1.37638), (0.8, 2, 1.06066), (0.8, 4, 0.94096), (0.8, 10, 0.87906), (0.8, math.inf, 0.84162),
        (0.95, 7, 1.89458), (0.995, 5, 4.03214), (0.9995, 3, 12.9240), (0.9995, 60, 3.46020),
    ],
)  # fmt: skip
def test_quantiles_are_those_of_the_tables(probability: float, degrees: float, published: float) -> None:
    assert t_quantile(probability, degrees) == pytest.approx(published, rel=2e-5)


@pytest.mark.parametrize("degrees", [1, 1.3, 2, 2.5, 3.7, 6, 17.25, 94, 150.5])
@pytest.mark.parametrize("t", [-7.0, -1.5, -0.01, 0.3, 1.0, 2.2, 12.0])
def test_the_distribution_is_the_integral_of_its_density(t: float, degrees: float) -> None:
    assert t_cdf(t, degrees) == pytest.approx(cdf_by_loop(t, degrees), abs=1e-9)


def test_the_quantile_at_two_and_a_half_degrees_lies_between_those_of_two_and_three() -> None:
    low, high = 3.0, 5.0
    for _ in range(40):
        middle = (low + high) / 2
        low, high = (middle, high) if cdf_by_loop(middle, 2.5) < 0.975 else (low, middle)
    assert t_quantile(0.975, 2.5) == pytest.approx(low, rel=1e-8)
    assert 3.18245 < low < 4.30265


@pytest.mark.parametrize("t", [-1e6, -3.0, 0.0, 0.5, 40.0, 1e8])
def test_one_and_two_degrees_have_their_closed_forms(t: float) -> None:
    assert t_cdf(t, 1) == pytest.approx(0.5 + math.atan(t) / math.pi, abs=1e-13)
    assert t_cdf(t, 2) == pytest.approx(0.5 + t / (2 * math.sqrt(2 + t * t)), abs=1e-13)


@pytest.mark.parametrize("degrees", [1, 2.5, 9, 60, math.inf])
def test_both_sides_are_alike_and_the_quantile_inverts_the_distribution(degrees: float) -> None:
    assert t_cdf(0.0, degrees) == 0.5
    for probability in (0.001, 0.025, 0.2, 0.5, 0.8, 0.975, 0.999):
        t = t_quantile(probability, degrees)
        assert t_cdf(t, degrees) == pytest.approx(probability, abs=1e-12)
        assert t_quantile(1 - probability, degrees) == pytest.approx(-t, rel=1e-9, abs=1e-12)
        assert t_cdf(-t, degrees) == pytest.approx(1 - probability, abs=1e-12)


@pytest.mark.parametrize("degrees", [1, 4, 94, 1000, 20_000])
def test_the_distribution_never_falls_and_ends_at_one(degrees: float) -> None:
    values = [t_cdf(t, degrees) for t in (0, 0.1, 1, 2, 5, 20, 100, 1e4, 1e8, 1e18)]
    assert values == sorted(values)
    assert values[-1] == pytest.approx(1.0, abs=1e-9)


@pytest.mark.parametrize("probability", [0.0, 1.0, -0.1, 1.1, math.nan])
def test_a_probability_that_is_none_has_no_quantile(probability: float) -> None:
    with pytest.raises(ValueError, match="probability"):
        t_quantile(probability, 3)


@pytest.mark.parametrize("degrees", [0, 0.5, -1])
def test_too_few_degrees_of_freedom_are_refused(degrees: float) -> None:
    with pytest.raises(ValueError, match="degrees"):
        t_cdf(1.0, degrees)
    with pytest.raises(ValueError, match="degrees"):
        t_quantile(0.9, degrees)


# --- paired differences -----------------------------------------------------------------------------------------------


def parts_by_loop(table: Floats) -> tuple[float, float, float, float]:
    """Mean, and the shares of seeds, of text and of the residual in the variance of the mean."""
    num_seeds, num_blocks = table.shape
    rows = [sum(table[s, b] for b in range(num_blocks)) / num_blocks for s in range(num_seeds)]
    columns = [sum(table[s, b] for s in range(num_seeds)) / num_seeds for b in range(num_blocks)]
    mean = sum(rows) / num_seeds
    of_seeds = sum((row - mean) ** 2 for row in rows) / (num_seeds - 1) / num_seeds
    of_text = sum((column - mean) ** 2 for column in columns) / (num_blocks - 1) / num_blocks
    rest = 0.0
    for s in range(num_seeds):
        for b in range(num_blocks):
            rest += (table[s, b] - rows[s] - columns[b] + mean) ** 2
    return mean, of_seeds, of_text, rest / ((num_seeds - 1) * (num_blocks - 1)) / (num_seeds * num_blocks)


def simulated(
    rng: np.random.Generator, num_seeds: int, num_blocks: int, effects: tuple[float, float, float], true: float = 0.0
) -> Floats:
    """Differences with normal effects of seed, of text, and of both together."""
    of_seed, of_text, of_both = effects
    return (
        true
        + of_seed * rng.standard_normal((num_seeds, 1))
        + of_text * rng.standard_normal((1, num_blocks))
        + of_both * rng.standard_normal((num_seeds, num_blocks))
    )


@pytest.mark.parametrize(("num_seeds", "num_blocks"), [(2, 2), (3, 24), (5, 7)])
def test_the_interval_is_made_of_the_shares_that_plain_loops_find(num_seeds: int, num_blocks: int) -> None:
    table = simulated(np.random.default_rng(num_blocks), num_seeds, num_blocks, (0.3, 0.2, 0.1), 0.5)
    mean, of_seeds, of_text, of_rest = parts_by_loop(table)
    variance = max(of_seeds, of_text, of_seeds + of_text - of_rest)
    degrees = max(1.0, variance**2 / (of_seeds**2 / (num_seeds - 1) + of_text**2 / (num_blocks - 1)))
    half = t_quantile(0.975, degrees) * math.sqrt(variance)
    found = paired_difference(table)
    assert found.mean == pytest.approx(mean, rel=1e-12)
    assert (found.low, found.high) == pytest.approx((mean - half, mean + half), rel=1e-9)
    over_seeds = t_quantile(0.975, num_seeds - 1) * math.sqrt(of_seeds)
    assert (found.seed_low, found.seed_high) == pytest.approx((mean - over_seeds, mean + over_seeds), rel=1e-9)
    p_value = 2 * (1 - cdf_by_loop(abs(mean) / math.sqrt(variance), degrees))
    assert found.p_value == pytest.approx(p_value, abs=1e-8)
    assert found.visible == pytest.approx(half + t_quantile(0.8, degrees) * math.sqrt(variance), rel=1e-9)


def test_the_interval_over_text_alone_is_about_that_of_the_means_of_blocks() -> None:
    table = simulated(np.random.default_rng(0), 3, 200, (0.5, 0.3, 0.1))
    blocks = [sum(table[s, b] for s in range(3)) / 3 for b in range(200)]
    mean = sum(blocks) / 200
    error = math.sqrt(sum((block - mean) ** 2 for block in blocks) / 199 / 200)
    found = paired_difference(table)
    assert found.text_low == pytest.approx(mean - 1.96 * error, abs=0.25 * error)
    assert found.text_high == pytest.approx(mean + 1.96 * error, abs=0.25 * error)


def test_the_other_sign_gives_the_mirrored_answer() -> None:
    table = simulated(np.random.default_rng(1), 4, 12, (0.2, 0.2, 0.2), 0.3)
    one, other = paired_difference(table), paired_difference(-table)
    mirrored = (-other.mean, -other.high, -other.low, -other.seed_high, -other.text_high, other.p_value, other.visible)
    assert (one.mean, one.low, one.high, one.seed_low, one.text_low, one.p_value, one.visible) == pytest.approx(
        mirrored
    )


CELLS = [
    (num_seeds, num_blocks, effects)
    for num_seeds in (3, 5)
    for num_blocks in (24, 48)
    for effects in (
        (0.02, 0.05, 0.05),  # all three
        (0.0, 0.05, 0.05),  # no effect of the seed
        (0.02, 0.0, 0.05),  # none of the text
        (0.0, 0.0, 0.05),
    )
]


@pytest.mark.usefixtures("fewer_resamples")
@pytest.mark.parametrize(("num_seeds", "num_blocks", "effects"), CELLS)
def test_the_interval_covers_the_truth_and_no_effect_is_rarely_claimed(
    num_seeds: int, num_blocks: int, effects: tuple[float, float, float]
) -> None:
    rng = np.random.default_rng(7)
    covered = claimed = 0
    for _ in range(STUDIES):
        table = simulated(rng, num_seeds, num_blocks, effects)
        found = paired_difference(table)
        covered += found.low <= 0 <= found.high
        claimed += found.p_value < 0.05
        assert (found.p_value < 0.05) == (not found.low <= 0 <= found.high)
    assert covered >= 0.91 * STUDIES
    assert claimed <= 0.08 * STUDIES


@pytest.mark.usefixtures("fewer_resamples")
@pytest.mark.parametrize(
    ("num_seeds", "num_blocks", "effects"), [cell for cell in CELLS if cell[1] == 24 and any(cell[2][:2])]
)
def test_an_effect_called_visible_is_seen_in_about_four_studies_of_five(
    num_seeds: int, num_blocks: int, effects: tuple[float, float, float]
) -> None:
    rng = np.random.default_rng(11)
    squares = [paired_difference(simulated(rng, num_seeds, num_blocks, effects)).visible ** 2 for _ in range(STUDIES)]
    effect = math.sqrt(sum(squares) / STUDIES)  # each study knows its spread but roughly
    seen = sum(
        paired_difference(simulated(rng, num_seeds, num_blocks, effects, effect)).low > 0 for _ in range(STUDIES)
    )
    assert 0.7 <= seen / STUDIES <= 0.9


def test_one_seed_gives_an_interval_over_text_and_no_other() -> None:
    found = paired_difference(np.array([[0.1, 0.2, 0.3, 0.2]]))
    assert found.mean == pytest.approx(0.2)
    assert 0.1 <= found.text_low < 0.2 < found.text_high <= 0.3
    others = (found.low, found.high, found.seed_low, found.seed_high, found.p_value, found.visible)
    assert all(math.isnan(value) for value in others)


@pytest.mark.parametrize("shape", [(3, 1), (1, 1), (0, 5), (3, 0)])
def test_too_few_seeds_or_blocks_are_refused(shape: tuple[int, int]) -> None:
    with pytest.raises(ValueError, match="too few"):
        paired_difference(np.ones(shape))


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_a_difference_that_is_not_finite_is_refused(value: float) -> None:
    table = np.zeros((3, 4))
    table[1, 2] = value
    with pytest.raises(ValueError, match="finite"):
        paired_difference(table)


def test_equal_differences_leave_no_doubt_and_none_at_all_no_claim() -> None:
    sure = paired_difference(np.full((3, 4), 0.25))
    assert (sure.mean, sure.low, sure.high, sure.p_value, sure.visible) == (0.25, 0.25, 0.25, 0.0, 0.0)
    nothing = paired_difference(np.zeros((3, 4)))
    assert (nothing.mean, nothing.low, nothing.high, nothing.p_value) == (0.0, 0.0, 0.0, 1.0)


def test_differences_that_scatter_are_never_certain() -> None:
    # The means of seeds and of blocks happen to agree; what is left scatters all the same.
    found = paired_difference(np.array([[1.5, -0.5], [-0.5, 1.5]]))
    assert found.low < found.mean < found.high
    assert found.p_value > 0


# --- a line through uncertain estimates -------------------------------------------------------------------------------

SIX = np.array([10.0, 11.0, 12.5, 13.0, 15.0, 16.0])


def line(x: Floats) -> Floats:
    return np.stack([np.ones(len(x)), x], 1)


def test_points_on_a_line_give_back_the_line() -> None:
    draws = np.tile(-2.0 - 0.5 * SIX, (100, 1))
    trend = linear_trend(line(SIX), draws, line(np.array([20.0, 0.0])))
    np.testing.assert_allclose(trend.coefficients, [[-2.0] * 3, [-0.5] * 3], atol=1e-4)
    np.testing.assert_allclose(trend.predictions, [[-12.0] * 3, [-2.0] * 3], atol=1e-4)


def test_points_on_a_plane_give_back_both_slopes() -> None:
    design = np.array([[1.0, a, b] for a in (5.0, 6.0, 7.0) for b in (1.0, 2.0)])
    draws = np.tile(design @ np.array([1.0, -0.7, 0.2]), (50, 1))
    trend = linear_trend(design, draws, np.zeros((0, 3)))
    np.testing.assert_allclose(trend.coefficients, [[1.0] * 3, [-0.7] * 3, [0.2] * 3], atol=1e-4)
    assert trend.predictions.shape == (0, 3)


@pytest.mark.parametrize(("scatter", "error"), [(0.2, 0.0), (0.2, 0.1), (0.1, 0.3), (0.0, 0.2)])
def test_coefficients_and_new_values_are_covered(scatter: float, error: float) -> None:
    rng = np.random.default_rng(3)
    covered = [0, 0, 0]
    for study in range(STUDIES):
        truth = 1.0 - 0.5 * SIX + scatter * rng.standard_normal(6)
        measured = truth + error * rng.standard_normal(6)
        draws = measured + error * rng.standard_normal((800, 6))
        trend = linear_trend(line(SIX), draws, line(np.array([19.0])), seed=study)
        new = 1.0 - 0.5 * 19.0 + scatter * rng.standard_normal()
        for index, (value, (low, _, high)) in enumerate(
            zip((1.0, -0.5, new), (*trend.coefficients, *trend.predictions), strict=True)
        ):
            covered[index] += low <= value <= high
    assert min(covered) >= 0.91 * STUDIES, covered


def test_the_error_of_the_points_counts_once() -> None:
    error = 0.3
    rng = np.random.default_rng(5)
    known = 2 * 1.96 * error / np.sqrt(((SIX - SIX.mean()) ** 2).sum())  # of the slope, if nothing else scatters
    widths: list[float] = []
    for study in range(60):
        draws = -0.5 * SIX + error * rng.standard_normal(6) + error * rng.standard_normal((800, 6))
        low, _, high = linear_trend(line(SIX), draws, line(SIX), seed=study).coefficients[1]
        widths.append(high - low)
    assert known < np.median(widths) < 1.6 * known


def test_a_line_far_beyond_its_points_is_less_sure() -> None:
    draws = -0.5 * SIX + np.random.default_rng(0).normal(0, 0.1, (500, 6))
    trend = linear_trend(line(SIX), draws, line(np.array([13.0, 19.0, 30.0])))
    widths = [high - low for low, _, high in trend.predictions]
    assert widths == sorted(widths)


def test_the_same_draws_give_the_same_trend() -> None:
    draws = np.random.default_rng(0).normal(size=(300, 6))
    one, other = (linear_trend(line(SIX), draws, line(SIX)) for _ in range(2))
    assert np.array_equal(one.coefficients, other.coefficients)
    assert np.array_equal(one.predictions, other.predictions)


@pytest.mark.parametrize("points", [0, 1, 2])
def test_no_more_points_than_coefficients_are_refused(points: int) -> None:
    with pytest.raises(ValueError, match="points"):
        linear_trend(line(SIX[:points]), np.zeros((10, points)), line(SIX))


def test_points_that_do_not_tell_coefficients_apart_are_refused() -> None:
    with pytest.raises(ValueError, match="apart"):
        linear_trend(line(np.full(6, 12.0)), np.zeros((10, 6)), line(SIX))
