"""The pipeline's gate: are the printed intervals honest when everything before them is estimated too?

`estimator.py` simulates labels. Here a study simulates *losses*, and everything else is the library's own: the sweep
and its extensions, the choice of the best, labels, lines, probes, posteriors, printed intervals. A cell is a kind of
edge:

* logistic, probit, skewed: P(loss of quality) by these curves; lapsing: 3 % of runs fail anywhere; correlated: half of
  the luck of a run belongs to its seed, which all arms share.
* slopes: the loss rises by 0.12 to 0.25 nats per octave with a wave, as QK-norm's does; no cliff.
* island: above a first edge lies a window of one octave in which runs are sound again.
* emulator: losses of a committed study: a local line over log2 LR, and residuals of near runs; resampled: the losses of
  near runs themselves; demo: the same emulator under the search of the demo.

Coverage is per arm and edge, of the first crossing of one half; for islands also of any crossing, and the share of arms
for which the study says "no single edge".

    python benchmarks/pipeline.py [--studies N] [--cells NAME ...] [--from studies/FOLDER]
"""

from __future__ import annotations

import argparse
import json
import math
import zlib
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from functools import cache, partial
from pathlib import Path

import numpy as np
from numpy.random import Generator, SeedSequence, default_rng

import trimtab
from trimtab.config import load_toml
from trimtab.kinds.max_lr import KIND
from trimtab.kinds.max_lr.findings import MAIN, LimitFindings
from trimtab.kinds.max_lr.spec import MaxLrSpec
from trimtab.kinds.max_lr.verdicts import claimed_above
from trimtab.run.folder import Outcome
from trimtab.study.kind import Evidence, read_any_study
from trimtab.study.trial import Results, Trial

SEED = 20261126
LOG_VOCAB, ENTROPY, BEST = math.log(256), 3.15, 2.08
LINE = ENTROPY - 0.2 * (ENTROPY - BEST)
MARGIN = 0.2
NOISE = 0.015
LEAST_COVERAGE = 0.91
GRID = np.arange(-12, 8, 1 / 64)
CHUNK = 10

Curve = Callable[[float], float]


@dataclass(frozen=True)
class Arm:
    """A simulated arm: the loss without failures, the chance of losing quality, the chance of collapse.

    Attributes:
        truth: log2 LR at which half of the runs fail, the first crossing, by edge.
        crossings: all crossings of the edge of quality.
    """

    loss: Curve
    quality: Curve
    collapse: Curve
    noise: float = NOISE
    shared: float = 0.0
    truth: Mapping[str, float] = field(default_factory=dict[str, float])
    crossings: Sequence[float] = ()

    def final(self, trial: Trial, rng: Generator, luck: float) -> float:
        """Draw the final loss of a run; ``luck`` is the part of its chance that belongs to its seed."""
        x = trial.tick.octave
        own = rng.random()
        chance = _mixed(own, luck, self.shared)
        if chance < self.collapse(x):
            return ENTROPY - 0.03 + 0.05 * float(rng.standard_normal())
        final = self.loss(x) + self.noise * float(rng.standard_normal())
        if chance < self.quality(x):
            return min(BEST + MARGIN + 0.02 + float(rng.exponential(0.3)), LINE - 0.01)
        return final


def logistic(centre: float, s: float) -> Curve:
    """Logistic chance of failure."""
    return lambda x: 1 / (1 + math.exp(min(500.0, (centre - x) / s)))


def probit(centre: float, s: float) -> Curve:
    """Normal chance of failure."""
    return lambda x: 0.5 * math.erfc((centre - x) / (1.7 * s) / math.sqrt(2))


def skewed(centre: float, s: float) -> Curve:
    """Complementary log-log: a long tail towards low rates; half at the centre."""
    return lambda x: 1 - math.exp(-math.log(2) * math.exp(min(50.0, (x - centre) / s)))


def bowl(best: float) -> Curve:
    """A loss with a minimum at ``best``: rising by 0.06 nats per octave below, by 0.01 above."""
    return lambda x: BEST + (0.06 * (best - x) if x < best else 0.01 * (x - best))


def sharp_arm(
    kind: Callable[[float, float], Curve], at: float, s: float, *, lapse: float = 0.0, shared: float = 0.0
) -> Arm:
    """An arm with a cliff at ``at`` and collapse two octaves above."""
    curve = kind(at, s)
    return with_truth(
        Arm(bowl(at - 2), lambda x: lapse + (1 - lapse) * curve(x), kind(at + 2, s), shared=shared), lapse
    )


def slope_arm(best: float, slope: float, rng: Generator) -> Arm:
    """An arm whose loss rises steadily from ``best`` with a wave, and collapses five octaves above."""
    phase, amplitude = float(rng.uniform(0, 2 * math.pi)), 0.03

    def loss(x: float) -> float:
        wave = amplitude * math.sin(phase + 2.5 * x)
        return BEST + wave + (0.06 * (best - x) if x < best else slope * (x - best))

    return with_truth(Arm(loss, lambda x: 0.0, logistic(best + 5, 0.3), noise=0.05))


def island_arm(at: float, s: float) -> Arm:
    """An arm that is sound again in an octave above its first edge."""
    first, back, last = logistic(at, s), logistic(at + 1, s), logistic(at + 2, s)
    return with_truth(Arm(bowl(at - 2), lambda x: max(first(x) - back(x), last(x)), logistic(at + 3, s)))


def with_truth(arm: Arm, lapse: float = 0.0) -> Arm:
    """The arm with its true limits, of the curve without lapses."""
    best = min(arm.loss(x) for x in GRID)
    at_best = float(GRID[int(np.argmin([arm.loss(x) for x in GRID]))])

    def collapses(x: float) -> float:
        above = 0.5 * math.erfc((LINE - arm.loss(x)) / arm.noise / math.sqrt(2))
        return 1 - (1 - arm.collapse(x)) * (1 - above)

    def fails(x: float) -> float:
        above = 0.5 * math.erfc((best + MARGIN - arm.loss(x)) / arm.noise / math.sqrt(2))
        quality = max(0.0, arm.quality(x) - lapse) / (1 - lapse)
        kept = (1 - arm.collapse(x)) * (1 - quality) * (1 - above)
        return 1 - kept if x >= at_best else 0.0

    crossed = crossings(fails)
    truth = {"quality": crossed[0], "collapse": crossings(collapses)[0]}
    return Arm(arm.loss, arm.quality, arm.collapse, arm.noise, arm.shared, truth, crossed)


def crossings(curve: Curve) -> list[float]:
    """The points of the grid at which a curve crosses one half."""
    above = np.array([curve(float(x)) >= 0.5 for x in GRID])
    return [float(x) for x in GRID[1:][above[1:] != above[:-1]]]


def _mixed(own: float, luck: float, shared: float) -> float:
    """A uniform value of which a share belongs to the seed, by normal scores."""
    if not shared:
        return own
    score = math.sqrt(1 - shared) * _score(own) + math.sqrt(shared) * _score(luck)
    return 0.5 * math.erfc(-score / math.sqrt(2))


def _score(uniform: float) -> float:
    from statistics import NormalDist

    return NormalDist().inv_cdf(min(max(uniform, 1e-9), 1 - 1e-9))


def arms_of(cell: str, rng: Generator, source: Path | None) -> dict[str, Arm]:
    """The arms of a study of a cell; the reference is a sharp edge about 2^-3.5."""
    at = float(rng.uniform(-4, -3))
    further = [float(x) for x in at + np.array([0.0, 1.0, 2.0]) + rng.uniform(-0.3, 0.3, 3)]
    if cell in ("logistic", "probit", "skewed"):
        kind = {"logistic": logistic, "probit": probit, "skewed": skewed}[cell]
        widths = (0.15, 0.3, 0.45)
        others = [sharp_arm(kind, x, s) for x, s in zip(further, widths, strict=True)]
        return dict(zip(NAMES, [sharp_arm(kind, at, 0.2), *others], strict=True))
    if cell == "lapsing":
        return dict(zip(NAMES, [sharp_arm(logistic, x, 0.25, lapse=0.03) for x in (at, *further)], strict=True))
    if cell == "correlated":
        return dict(zip(NAMES, [sharp_arm(logistic, x, 0.25, shared=0.5) for x in (at, *further)], strict=True))
    if cell == "slopes":
        slopes = [slope_arm(x - 2, k, rng) for x, k in zip(further, (0.12, 0.18, 0.25), strict=True)]
        return dict(zip(NAMES, [sharp_arm(logistic, at, 0.2), *slopes], strict=True))
    if cell == "island":
        islands = [island_arm(x, s) for x, s in zip(further, (0.1, 0.2, 0.3), strict=True)]
        return dict(zip(NAMES, [sharp_arm(logistic, at, 0.2), *islands], strict=True))
    raise ValueError(f"no cell {cell}")


NAMES = ("baseline", "qk_norm", "qkv_norm", "qk_norm_cap")
EMULATED = ("emulator", "resampled", "demo")
COLLAPSED = 3.3  # nats; a higher loss is drawn as this, which is above every line
LINE_WIDTH = 0.4  # octaves; bandwidth of the local line
DRAW_WIDTH = 0.2  # octaves; a residual belongs to runs nearer than an edge is wide
JITTER = 0.01  # nats; noise of a drawn loss
ECONOMIES: Mapping[str, Mapping[str, object]] = {
    "before": {},
    "losses": {"evidence": "losses"},
    "stride": {"stride": 2},
    "both": {"evidence": "losses", "stride": 2},
}
CELLS = ("logistic", "probit", "skewed", "lapsing", "correlated", "slopes", "island")


class Emulator:
    """Losses of a committed study, drawn again: a local line through the runs of an arm, and residuals of near runs.

    With ``smooth`` false a draw is the loss of a near run itself. Between two rates with few runs this is a mixture of
    two distant losses, which no run would have.
    """

    def __init__(self, folder: Path, *, smooth: bool = True) -> None:
        rows = [json.loads(line) for line in (folder / "outcomes.jsonl").read_text().splitlines() if line]
        known = [row for row in rows if row.get("final_loss") is not None]
        self.smooth = smooth
        self._drawn: dict[tuple[str, float], tuple[np.ndarray, np.ndarray]] = {}
        self.arms = tuple(dict.fromkeys(row["arm"] for row in known))
        self.rates = {arm: np.array([math.log2(row["lr"]) for row in known if row["arm"] == arm]) for arm in self.arms}
        self.losses = {
            arm: np.array([min(row["final_loss"], COLLAPSED) for row in known if row["arm"] == arm])
            for arm in self.arms
        }
        self.residuals = {
            arm: self.losses[arm] - np.array([self.middle(arm, x) for x in self.rates[arm]]) for arm in self.arms
        }

    def weights(self, arm: str, x: float, bandwidth: float) -> np.ndarray:
        """Weight of every run at a log2 LR; the nearest run has some, however far it is."""
        squares = (self.rates[arm] - x) ** 2
        weight = np.exp(-0.5 * (squares - squares.min()) / bandwidth**2)
        return weight / weight.sum()

    def middle(self, arm: str, x: float) -> float:
        """The local line at a log2 LR; 0 if losses are drawn themselves."""
        if not self.smooth:
            return 0.0
        root = np.sqrt(self.weights(arm, x, LINE_WIDTH))
        design = np.stack([np.ones_like(root), self.rates[arm] - x], 1)
        line, *_ = np.linalg.lstsq(design * root[:, None], self.losses[arm] * root, rcond=1e-6)
        return float(line[0])

    def draws(self, arm: str, x: float) -> tuple[np.ndarray, np.ndarray]:
        """The possible losses at a log2 LR, before noise, and the chance of each."""
        if (arm, x) not in self._drawn:  # studies ask for the same rates again
            losses = self.middle(arm, x) + self.residuals[arm]
            self._drawn[arm, x] = losses, self.weights(arm, x, DRAW_WIDTH)
        return self._drawn[arm, x]

    def chance(self, arm: str, x: float, line: float) -> float:
        """Chance that the loss at a log2 LR is above a line."""
        losses, weights = self.draws(arm, x)
        above = np.array([0.5 * math.erfc((line - loss) / JITTER / math.sqrt(2)) for loss in losses])
        return float(weights @ above)

    def mean(self, arm: str, x: float) -> float:
        """Mean loss at a log2 LR."""
        losses, weights = self.draws(arm, x)
        return float(weights @ losses)


def outcome_of(final: float) -> Outcome:
    """An outcome with a final loss, and a curve that fails, if it fails, early."""
    return Outcome(
        run_id="simulated",
        stopped=None,
        steps=400,
        initial_loss=LOG_VOCAB,
        final_loss=final,
        norm_ratio=1.5,
        spike=0.0,
        log_vocab=LOG_VOCAB,
        unigram_entropy=ENTROPY,
        bytes_per_token=1.0,
        held_out=((0, LOG_VOCAB), (200, final), (400, final)),
        seconds=1.0,
    )


@cache
def spec_of(arms: tuple[str, ...], most_runs: int, demo: bool = False, economy: str = "before") -> MaxLrSpec:
    """The specification of a simulated study: the search of the preset `collapse`, or that of the demo."""
    search = {"replicates": 2, "probes_per_round": 2, "enough": 0.7}
    if demo:
        search = load_toml(Path(trimtab.__file__).parent / "presets" / "demo.toml")["search"]
    table = {
        "arms": {arm: {} for arm in arms},
        "learning_rates": {"low": "2^-6", "high": "2^1"},
        "criterion": {"margin": MARGIN},
        "training": {"steps": 400},
        "search": search | ECONOMIES[economy] | {"most_runs": most_runs},
    }
    spec = read_any_study(table, "simulated")
    assert isinstance(spec, MaxLrSpec)
    return spec


def carry_out(spec: MaxLrSpec, final: Callable[[Trial], float]) -> LimitFindings:
    """Run a whole study on simulated losses."""
    search = KIND.rounds(spec)
    results: dict[Trial, Outcome | None] = {}
    batch: Sequence[Trial] = next(search)
    while True:
        results |= {trial: outcome_of(final(trial)) for trial in batch}
        try:
            batch = search.send(results)
        except StopIteration:
            return KIND.analyse(spec, evidence_of(results))


def evidence_of(results: Results) -> Evidence:
    """The evidence of simulated runs."""
    names = {trial: f"{index}" for index, trial in enumerate(results)}
    return Evidence(results, names, Path(), {}, lambda name: {}, _no_cost)


def _no_cost(arm: str) -> object:
    raise AssertionError("limits at one size ask for no cost")


@dataclass(frozen=True)
class Fact:
    """One edge of one arm of one study.

    Attributes:
        printed: None for an estimate, else the reason why there is none, or the side of a bound.
        first, any_crossing: whether the interval holds the first crossing, or any crossing.
    """

    arm: str
    edge: str
    printed: str | None
    first: bool
    any_crossing: bool
    width: float
    error: float
    pooled: bool
    runs: int


def one_study(
    cell: str, most_runs: int, source: Path | None, economy: str, seed: SeedSequence
) -> tuple[list[Fact], dict[str, list[str]]]:
    """Simulate a study; returns facts on every edge, and the arms claimed above the reference by edge."""
    rng = default_rng(seed)
    if cell in EMULATED:
        assert source is not None
        emulator = emulator_of(source, smooth=cell != "resampled")
        arms = NAMES if cell == "demo" else emulator.arms
        spec = spec_of(arms, most_runs, demo=cell == "demo", economy=economy)
        truths = {arm: emulated_truth(source, arm, smooth=cell != "resampled") for arm in arms}

        def final(trial: Trial) -> float:
            losses, weights = emulator.draws(trial.arm, trial.tick.octave)
            return float(rng.choice(losses, p=weights)) + JITTER * float(rng.standard_normal())
    else:
        simulated = arms_of(cell, rng, source)
        spec = spec_of(tuple(simulated), most_runs, economy=economy)
        truths = {arm: (dict(it.truth), list(it.crossings)) for arm, it in simulated.items()}
        salt = int(rng.integers(2**31))

        def final(trial: Trial) -> float:
            luck = default_rng([salt, trial.seed]).random()
            return simulated[trial.arm].final(trial, rng, luck)

    findings = carry_out(spec, final)
    facts = [
        fact_of(findings, arm, edge, truth[edge], crossed if edge == "quality" else [truth[edge]])
        for arm, (truth, crossed) in truths.items()
        for edge in MAIN
        if edge in truth
    ]
    return facts, {edge: claimed_above(findings, edge) for edge in MAIN}


@cache
def emulator_of(source: Path, *, smooth: bool) -> Emulator:
    """The emulator of a committed study."""
    return Emulator(source, smooth=smooth)


@cache
def emulated_truth(source: Path, arm: str, *, smooth: bool) -> tuple[dict[str, float], list[float]]:
    """True limits of an emulated arm; an edge that is never crossed inside the data is left out."""
    emulator = emulator_of(source, smooth=smooth)
    low, high = emulator.rates[arm].min(), emulator.rates[arm].max()
    grid = [float(x) for x in GRID if low <= x <= high]
    means = [emulator.mean(arm, x) for x in grid]
    best, at = min(means), grid[int(np.argmin(means))]
    floor = min(emulator.mean("baseline", x) for x in grid if x < -3)
    line = min(floor + 1.0, ENTROPY - 0.2 * (ENTROPY - floor))
    lines = {"quality": min(best + MARGIN, line), "collapse": line}

    def failing(edge: str) -> Curve:
        return lambda x: emulator.chance(arm, x, lines[edge]) if at <= x <= high else 0.0

    crossed = {edge: crossings(failing(edge)) for edge in lines}
    truth = {edge: found[0] for edge, found in crossed.items() if found and found[0] < high - 0.1}
    return truth, crossed["quality"]


def fact_of(findings: LimitFindings, arm: str, edge: str, truth: float, crossed: Sequence[float]) -> Fact:
    """What a study printed for an edge, against the truth."""
    of_arm = findings.arms[arm]
    estimate = of_arm.criteria["d" if edge == "quality" else "collapse"].breaks.lr50
    low = -math.inf if estimate.low is None else math.log2(estimate.low)
    high = math.inf if estimate.high is None else math.log2(estimate.high)
    lowest, highest = (math.log2(rate) for rate in of_arm.tested)
    middle = math.nan if estimate.estimate is None else math.log2(estimate.estimate)
    return Fact(
        arm,
        edge,
        estimate.bound,
        low <= truth <= high,
        any(low <= x <= high for x in crossed),
        min(high, highest) - max(low, lowest),
        middle - truth,
        of_arm.edges["quality" if edge == "quality" else "collapse"].pooled,
        sum(of_arm.counts.values()),
    )


def some_studies(
    cell: str, most_runs: int, source: Path | None, economy: str, seeds: Sequence[SeedSequence]
) -> list[tuple[list[Fact], dict[str, list[str]]]]:
    """Several studies, in order."""
    return [one_study(cell, most_runs, source, economy, seed) for seed in seeds]


def simulate(
    cell: str,
    studies: int,
    most_runs: int,
    source: Path | None,
    pool: ProcessPoolExecutor | None,
    economy: str = "before",
) -> list[tuple[list[Fact], dict[str, list[str]]]]:
    """All studies of a cell; the numbers do not depend on the pool."""
    seeds = SeedSequence([SEED, zlib.crc32(cell.encode())]).spawn(studies)
    chunks = [seeds[i : i + CHUNK] for i in range(0, studies, CHUNK)]
    job = partial(some_studies, cell, most_runs, source, economy)
    done = map(job, chunks) if pool is None else pool.map(job, chunks)
    return [study for chunk in done for study in chunk]


def rows_of(cell: str, studies: Sequence[tuple[Sequence[Fact], object]]) -> list[list[object]]:
    """One row per arm and edge: printed share, coverage, width, bias."""
    facts = [fact for found, _ in studies for fact in found]
    rows: list[list[object]] = []
    for arm in dict.fromkeys(fact.arm for fact in facts):
        for edge in MAIN:
            those = [fact for fact in facts if fact.arm == arm and fact.edge == edge]
            refused = [fact for fact in those if fact.printed not in (None, "above", "below")]
            printed = [fact for fact in those if fact not in refused]
            if not printed:
                continue
            estimates = [fact for fact in printed if fact.printed is None]
            rows.append(
                [
                    cell,
                    arm,
                    edge,
                    len(refused) / len(those),
                    np.mean([fact.first for fact in printed]),
                    np.mean([fact.any_crossing for fact in printed]),
                    np.median([fact.width for fact in printed]),
                    math.sqrt(np.mean([fact.error**2 for fact in estimates])) if estimates else math.nan,
                    np.median([fact.error for fact in estimates]) if estimates else math.nan,
                    np.mean([fact.pooled for fact in printed]),
                    np.mean([fact.runs for fact in printed]),
                ]
            )
    return rows


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--studies", type=int, default=1000)
    parser.add_argument("--most-runs", type=int, default=25)
    parser.add_argument("--cells", nargs="*", default=list(CELLS))
    parser.add_argument("--from", dest="source", type=Path)
    parser.add_argument("--economy", choices=ECONOMIES, default="before")
    parser.add_argument("--workers", type=int, default=2)
    given = parser.parse_args()
    print("| cell | arm | edge | refused | first crossing | any crossing | width | RMSE | bias | pooled | runs |")
    print("|---|---|---|---|---|---|---|---|---|---|---|")
    with ProcessPoolExecutor(given.workers) as pool:
        for cell in given.cells:
            studies = simulate(cell, given.studies, given.most_runs, given.source, pool, given.economy)
            for row in rows_of(cell, studies):
                print("| " + " | ".join(f"{v:.3f}" if isinstance(v, float) else str(v) for v in row) + " |", flush=True)


if __name__ == "__main__":
    main()
