"""The estimator's gate: are the intervals of LR50 honest, and what does adaptive probing save?

Simulated studies of three arms; a run at log2 LR x fails with probability lapse + (1 - lapse) logistic((x - x50)/s).
The range is 9 octaves, x from -7 to 2, and x50, the same for the three arms (shift 0), is uniform on -4 to 0. The
model, the probes, the stop rule and the differences are the library's own. Designs:

* grid: every seed at 17 half-octave levels from -6 to 2.
* adaptive: one seed on a sweep of 10 whole octaves, then rounds of 3 probes per arm up to 40 runs; "early stop" closes
  an arm once its 95 % interval is under 0.7 octave.

Gate, per cell: coverage of the 95 % interval of LR50 at least 0.91 (more is reported, not failed), |bias| under 0.05
octave, and fewer than 8 % of the 95 % intervals of the difference of two equal arms without 0.

    python benchmarks/estimator.py [--studies N] [--out FILE]
"""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Iterable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import cache
from itertools import pairwise
from pathlib import Path

import numpy as np
from numpy.random import Generator, SeedSequence, default_rng

from trimtab.stats.comparison import difference
from trimtab.stats.posterior import EdgeEvidence, EdgeModel, EdgePosterior
from trimtab.study.edge import interval_width, propose

SEED = 20250214
LOW, HIGH = -7, 2
X50_RANGE = (-4.0, 0.0)
SWEEP = tuple(float(x) for x in range(LOW, HIGH + 1))
LEVELS = tuple(-6 + 0.5 * i for i in range(17))
PROBES, ENOUGH = 3, 0.7
EQUAL, UNEQUAL = (0.35, 0.35, 0.35), (0.15, 0.35, 0.7)
LEAST_COVERAGE, MOST_BIAS, MOST_FALSE_CLAIMS = 0.91, 0.05, 0.08
CHUNK = 50


@dataclass(frozen=True)
class Cell:
    """One line of the gate; ``runs`` are seeds per level for the grid, runs per arm for adaptive."""

    design: str
    runs: int
    lapse: float
    widths: tuple[float, ...]
    enough: float = 0.0

    @property
    def name(self) -> str:
        if self.design == "grid":
            design = f"grid, {self.runs} seeds"
        else:
            design = f"adaptive, {self.runs} runs" + (", early stop" if self.enough else "")
        return f"{design} | lapse {self.lapse:g} | s {'/'.join(f'{s:g}' for s in sorted(set(self.widths)))}"


def _gate_cells() -> tuple[Cell, ...]:
    designs = (("grid", 3, 0.0), ("grid", 5, 0.0), ("adaptive", 40, 0.0), ("adaptive", 40, ENOUGH))
    return tuple(
        Cell(design, runs, lapse, widths, enough)
        for design, runs, enough in designs
        for widths in (EQUAL, UNEQUAL)
        for lapse in (0.0, 0.03)
    )


GATE = _gate_cells()


@dataclass(frozen=True)
class Fact:
    """One arm of one simulated study; ``claim`` is None for the first arm, with which the others are compared."""

    arm: int
    runs: int
    error: float
    width: float
    covered: bool
    clear: bool  # the first sweep fails once and for good, as the library asks of an arm
    claim: bool | None


@dataclass(frozen=True)
class Summary:
    """What many studies of one cell came to; the standard errors are those of the simulation."""

    cell: Cell
    coverage: float
    arm_coverage: tuple[float, ...]
    clear_coverage: float
    unclear: float
    bias: float
    bias_error: float
    rmse: float
    width: float
    runs: float
    claims: float
    claims_error: float

    def failures(self, errors: float = 0.0) -> list[str]:
        """What the gate finds wrong; ``errors`` standard errors are added to the bounds of bias and claims."""
        found: list[str] = []
        if self.coverage < LEAST_COVERAGE:
            found.append(f"coverage {self.coverage:.3f} is under {LEAST_COVERAGE}")
        if abs(self.bias) >= MOST_BIAS + errors * self.bias_error:
            found.append(f"bias {self.bias:+.3f} octaves is not under {MOST_BIAS}")
        if self.claims >= MOST_FALSE_CLAIMS + errors * self.claims_error:
            found.append(f"{self.claims:.3f} false claims are not under {MOST_FALSE_CLAIMS}")
        return found


@cache
def model() -> EdgeModel:
    """One per process: it keeps the likelihood of every (LR, failed) it has met."""
    return EdgeModel(LOW, HIGH)


def run(rng: Generator, x: Iterable[float], x50: float, s: float, lapse: float) -> list[tuple[float, bool]]:
    """Simulated runs at each x."""
    return [(at, bool(rng.random() < lapse + (1 - lapse) / (1 + math.exp((x50 - at) / s)))) for at in x]


def fit(pairs: Sequence[Sequence[tuple[float, bool]]]) -> list[EdgePosterior]:
    """The library's posterior of every arm of a study."""
    return list(model().fit({str(arm): EdgeEvidence.of(own) for arm, own in enumerate(pairs)}).values())


def grid_study(rng: Generator, cell: Cell, x50: float) -> list[list[tuple[float, bool]]]:
    """Every seed at every level."""
    return [run(rng, LEVELS * cell.runs, x50, s, cell.lapse) for s in cell.widths]


def adaptive_study(rng: Generator, cell: Cell, x50: float) -> list[list[tuple[float, bool]]]:
    """A sweep, then rounds of probes at every open arm, computed from the rounds before."""
    pairs = [run(rng, SWEEP, x50, s, cell.lapse) for s in cell.widths]
    while True:
        probed = False
        for arm, posterior in enumerate(fit(pairs)):
            left = min(PROBES, cell.runs - len(pairs[arm]))
            if left > 0 and interval_width(posterior) >= cell.enough:
                at = [tick / 16 for tick in propose(posterior, left)]
                pairs[arm] += run(rng, at, x50, cell.widths[arm], cell.lapse)
                probed = True
        if not probed:
            return pairs


def one_study(cell: Cell, seed: SeedSequence) -> list[Fact]:
    """Simulate and judge one study."""
    rng = default_rng(seed)
    x50 = rng.uniform(*X50_RANGE)
    pairs = (grid_study if cell.design == "grid" else adaptive_study)(rng, cell, x50)
    posteriors = fit(pairs)
    facts: list[Fact] = []
    for arm, (own, posterior) in enumerate(zip(pairs, posteriors, strict=True)):
        low, median, high = (float(q) for q in posterior.quantiles((0.025, 0.5, 0.975)))
        first = [failed for _, failed in own[: len(SWEEP)]]
        claim = None
        if arm > 0:
            shift = difference(posterior, posteriors[0])
            claim = shift.low > 0 or shift.high < 0
        clear = cell.design == "grid" or first == sorted(first)
        facts.append(Fact(arm, len(own), median - x50, high - low, low <= x50 <= high, clear, claim))
    return facts


def some_studies(cell: Cell, seeds: Sequence[SeedSequence]) -> list[Fact]:
    """The facts of several studies, in order."""
    return [fact for seed in seeds for fact in one_study(cell, seed)]


def seeds_of(studies: int) -> list[SeedSequence]:
    """The committed seeds; every cell uses the same, so that cells can be compared."""
    return SeedSequence(SEED).spawn(studies)


def summarise(cell: Cell, facts: Sequence[Fact]) -> Summary:
    """Means over arms and studies."""
    errors = np.array([fact.error for fact in facts])
    by_study = errors.reshape(-1, len(cell.widths)).mean(1)  # arms share x50, so studies are what is independent
    claims = [fact.claim for fact in facts if fact.claim is not None]
    share = sum(claims) / len(claims)
    arms = range(len(cell.widths))
    return Summary(
        cell=cell,
        coverage=_share(fact.covered for fact in facts),
        arm_coverage=tuple(_share(fact.covered for fact in facts if fact.arm == arm) for arm in arms),
        clear_coverage=_share(fact.covered for fact in facts if fact.clear),
        unclear=1 - _share(fact.clear for fact in facts),
        bias=float(errors.mean()),
        bias_error=float(by_study.std(ddof=1) / math.sqrt(len(by_study))),
        rmse=float(np.sqrt((errors**2).mean())),
        width=float(np.mean([fact.width for fact in facts])),
        runs=float(np.mean([fact.runs for fact in facts])),
        claims=share,
        claims_error=math.sqrt(max(share * (1 - share), MOST_FALSE_CLAIMS * (1 - MOST_FALSE_CLAIMS)) / len(claims)),
    )


def simulate(cell: Cell, studies: int) -> Summary:
    """One cell in this process."""
    return summarise(cell, some_studies(cell, seeds_of(studies)))


def simulate_all(cells: Sequence[Cell], studies: int, pool: ProcessPoolExecutor) -> list[Summary]:
    """Every cell, in chunks over the pool; the numbers do not depend on the pool."""
    seeds = seeds_of(studies)
    chunks = [seeds[i : i + CHUNK] for i in range(0, studies, CHUNK)]
    jobs = {cell: [pool.submit(some_studies, cell, chunk) for chunk in chunks] for cell in cells}
    return [summarise(cell, [fact for job in jobs[cell] for fact in job.result()]) for cell in cells]


# --- search economy ---------------------------------------------------------------------------------------------------

ADAPTIVE_RUNS, GRID_SEEDS = (12, 16, 20, 28, 40), (1, 2, 3, 5, 8)
ECONOMY_WIDTHS = (0.35, 0.15)


def economy_cells(s: float) -> tuple[Cell, ...]:
    """Adaptive and grid designs of growing size; three arms of the same s, no lapse."""
    widths = (s, s, s)
    return (
        *(Cell("adaptive", runs, 0.0, widths) for runs in ADAPTIVE_RUNS),
        *(Cell("grid", seeds, 0.0, widths) for seeds in GRID_SEEDS),
    )


def bisection_error(s: float, votes: int, probes: int, seed: SeedSequence) -> float:
    """Error of plain bisection, each point decided by the majority of ``votes`` runs."""
    rng = default_rng(seed)
    x50 = rng.uniform(*X50_RANGE)
    low, high = float(LOW), float(HIGH)
    for _ in range(probes):
        middle = (low + high) / 2
        failures = sum(failed for _, failed in run(rng, [middle] * votes, x50, s, 0.0))
        low, high = (low, middle) if 2 * failures > votes else (middle, high)
    return (low + high) / 2 - x50


def bisection_rmse(s: float, votes: int, studies: int, probes: int = 6) -> float:
    """RMSE over simulated searches."""
    return math.sqrt(np.mean([bisection_error(s, votes, probes, seed) ** 2 for seed in seeds_of(studies)]))


def grid_runs_at(rmse: float, curve: Sequence[tuple[float, float]]) -> float:
    """Runs of a grid with this RMSE, straight lines in log-log; nan outside the (runs, RMSE) that were simulated."""
    for (runs, error), (more, less) in pairwise(curve):
        if less <= rmse <= error and less < error:
            share = math.log(error / rmse) / math.log(error / less)
            return math.exp(math.log(runs) + share * math.log(more / runs))
    return math.nan


# --- tables -----------------------------------------------------------------------------------------------------------


def gate_table(summaries: Sequence[Summary]) -> list[str]:
    """Markdown of the gate."""
    lines = [
        "| design | lapse | s | runs per arm | coverage | coverage by arm | bias | RMSE | interval width "
        "| false claims | no clear boundary | coverage of the others | gate |",
        "|---" * 13 + "|",
    ]
    for one in summaries:
        design, lapse, s = one.cell.name.split(" | ")
        adaptive = one.cell.design == "adaptive"
        lines.append(
            f"| {design} | {lapse.removeprefix('lapse ')} | {s.removeprefix('s ')} | {one.runs:.1f} "
            f"| {one.coverage:.3f} | {', '.join(f'{c:.3f}' for c in one.arm_coverage)} | {one.bias:+.3f} "
            f"| {one.rmse:.3f} | {one.width:.2f} | {one.claims:.3f} "
            f"| {f'{one.unclear:.3f}' if adaptive else '-'} | {f'{one.clear_coverage:.3f}' if adaptive else '-'} "
            f"| {'; '.join(one.failures()) or 'pass'} |"
        )
    return lines


def economy_table(s: float, summaries: Sequence[Summary], studies: int) -> list[str]:
    """Markdown of RMSE against runs, and what a grid needs for the RMSE of adaptive probing."""
    rows = [(f"adaptive, {one.cell.runs} runs", one.runs, one) for one in summaries if one.cell.design == "adaptive"]
    grid = [(f"grid, {one.cell.runs} seeds", one.runs, one) for one in summaries if one.cell.design == "grid"]
    curve = [(runs, one.rmse) for _, runs, one in grid]
    lines = [
        f"s = {s:g}",
        "",
        "| search | runs per arm | RMSE | bias | coverage | interval width | grid runs for this RMSE | ratio |",
        "|---" * 8 + "|",
    ]
    for name, runs, one in (*rows, *grid):
        needed = grid_runs_at(one.rmse, curve) if one.cell.design == "adaptive" else math.nan
        outside = "fewer than 17" if one.rmse > curve[0][1] else f"more than {curve[-1][0]:.0f}"
        text, ratio = (f"{needed:.0f}", f"{needed / runs:.1f}") if math.isfinite(needed) else (outside, "-")
        if one.cell.design == "grid":
            text = ratio = "-"
        lines.append(
            f"| {name} | {runs:.0f} | {one.rmse:.3f} | {one.bias:+.3f} | {one.coverage:.3f} | {one.width:.2f} "
            f"| {text} | {ratio} |"
        )
    for votes in (1, 3):
        rmse = bisection_rmse(s, votes, 3 * studies)
        lines.append(f"| bisection, majority of {votes} | {6 * votes} | {rmse:.3f} | - | - | none | - | - |")
    return lines


def _share(flags: Iterable[bool]) -> float:
    known = list(flags)
    return sum(known) / len(known) if known else math.nan


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="Is the estimator honest?")
    parser.add_argument("--studies", type=int, default=1000, help="simulated studies per cell")
    parser.add_argument("--out", type=Path, help="also write the tables to this file")
    given = parser.parse_args(arguments)
    lines: list[str] = []

    def tell(*more: str) -> None:
        print(*more, sep="\n", flush=True)
        lines.extend(more)

    with ProcessPoolExecutor(2) as pool:
        gate = simulate_all(GATE, given.studies, pool)
        failed = sum(bool(one.failures()) for one in gate)
        tell(f"## Gate: {given.studies} studies of 3 arms per cell", "", *gate_table(gate), "")
        tell(f"{failed} of {len(gate)} cells fail." if failed else "Every cell passes.", "")
        tell(f"## Search economy: {given.studies} studies of 3 arms per line, no lapse", "")
        for s in ECONOMY_WIDTHS:
            tell(*economy_table(s, simulate_all(economy_cells(s), given.studies, pool), given.studies), "")
    if given.out:
        given.out.write_text("\n".join(lines).rstrip() + "\n", encoding="utf-8")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
