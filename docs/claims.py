"""The claims of both papers against our measurements, from the committed results: rows of the generated table.

A claim is judged at the edge that it speaks of, and a verdict needs a 95 % interval. *Agrees*: the interval lies on the
side of the claim. *Does not agree*: it lies on the other side, or excludes the reported size. Otherwise *cannot tell*,
with the smallest effect that the data would have shown with power 0.8.
"""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from trimtab.kinds.signals.traces import load_traces
from trimtab.stats.intervals import welch
from trimtab.stats.student import t_quantile

STUDIES = Path(__file__).resolve().parent.parent / "studies"
AGREES = "agrees"
DISAGREES = "does not agree"
UNCLEAR = "cannot tell"
TOO_FEW = "no claim: too few runs"
Raw = Mapping[str, Any]


@dataclass(frozen=True)
class Row:
    """One claim and one measurement of it."""

    claim: str
    edge: str
    study: str
    measured: str
    verdict: str
    power: str


@cache
def results(study: str) -> Raw:
    return json.loads((STUDIES / study / "results.json").read_text(encoding="utf-8"))


def table(root: str) -> str:
    """All rows, a section for each paper; ``root`` is the path from the page to the root of the project."""
    head = "| claim | edge, size | we measure | verdict | smallest visible |\n|---|---|---|---|---|"
    parts: list[str] = []
    for title, rows in (
        ("Methods of improving LLM training stability ([2410.16682](https://arxiv.org/abs/2410.16682))", stability()),
        ("MLRA and Token Embedding Variability ([2409.07787](https://arxiv.org/abs/2409.07787))", variability()),
        ("AdaGC ([2502.11034](https://arxiv.org/abs/2502.11034))", clipping()),
    ):
        lines = [
            f"| {row.claim} | {row.edge} | {row.measured} ([data]({root}studies/{row.study})) | {row.verdict} "
            f"| {row.power} |"
            for row in rows
        ]
        parts.append("\n".join([f"**{title}**", "", head, *lines]))
    return "\n\n".join(parts)


# Paper 1


def stability() -> Iterator[Row]:
    methods = ("qk_norm", "qkv_norm", "qk_norm_cap", "soft_cap", "layer_scale")
    yield from (higher("2026-11-26_collapse", arm, "41 thousand parameters") for arm in methods)
    rest = ("sigma_reparam", "soft_temp", "soft_clip", "qk_fc_norm")
    yield from (higher("2026-11-22_paper-table", arm, "41 thousand parameters, few runs at this edge") for arm in rest)
    for arm in ("qk_norm", "qkv_norm", "qk_norm_cap"):
        yield higher("2026-11-26_collapse-64", arm, "0.22 million parameters")
    yield higher("2026-11-26_gpu-10m", "qk_norm", "10 million parameters, on a GPU")
    for study, size in (("2026-11-26_collapse", "41 thousand"), ("2026-11-26_collapse-64", "0.22 million")):
        for arm in ("qkv_norm", "qk_norm_cap"):
            yield one_and_a_half(study, arm, f"collapse, {size} parameters")
    yield order("2026-11-26_collapse")
    yield order("2026-11-22_paper-table")
    yield from growth()
    yield from perplexity()


def higher(study: str, arm: str, size: str) -> Row:
    found = results(study)["arms"][arm]
    criterion, shift = found["criteria"]["collapse"], found["edges"]["collapse"]["visible_shift"]
    ratio, p = criterion["ratio"]["lr50"], criterion["p_holm"]
    told = p is not None and p < 0.05
    verdict = UNCLEAR if not told else AGREES if ratio["estimate"] > 1 else DISAGREES
    measured = f"{ratio_text(ratio)} of the baseline" + ("" if p is None else f", p {p:.2g}")
    claim = f"`{arm}` diverges at a higher learning rate than the baseline"
    return Row(claim, f"collapse, {size}", study, measured, verdict, "-" if shift is None else f"{2**shift:.2g}x")


def one_and_a_half(study: str, arm: str, edge: str) -> Row:
    pair = next(p for p in results(study)["pairs"]["collapse"] if {p["arm"], p["other"]} == {arm, "qk_norm"})
    ratio = pair["ratio"] if pair["arm"] == arm else inverse(pair["ratio"])
    low, high = ratio["low"] or 0.0, ratio["high"] or float("inf")
    verdict = UNCLEAR if low <= 1.5 <= high and low <= 1 else AGREES if low <= 1.5 <= high else DISAGREES
    claim = f"`{arm}` diverges at 1.5x the rate of `qk_norm`"
    return Row(claim, edge, study, ratio_text(ratio), verdict, f"{2 ** pair['visible_shift']:.2g}x")


def order(study: str) -> Row:
    found = results(study)["reported"]
    tau, arms = found["tau_b"], len(found["arms"])
    measured = f"Kendall's tau-b {tau['estimate']:.2f} [{tau['low']:.2f}, {tau['high']:.2f}] over {arms} arms"
    verdict = {"order agrees": AGREES, "order does not agree": DISAGREES}.get(found["verdict"], UNCLEAR)
    claim = "the order of the methods by the rate at which they diverge"
    return Row(claim, "collapse, 41 thousand parameters", study, measured, verdict, "-")


CELLS = ("32-cosine", "32-constant", "64-cosine", "64-constant")
OUTPUTS = {"qkv_output/*/l2_norm": "QKV", "proj_output/*/l2_norm": "Proj", "fc2_output/*/l2_norm": "FC2"}
INPUTS = {"qkv_input_grad/*/l2_norm": "QKV", "fc1_input_grad/*/l2_norm": "FC1"}


LEAST_RUNS = 6  # collapsed and other runs that a cell needs for a claim; fixed in the plan of the study


def growth() -> Iterator[Row]:
    """Ratios of collapsed to other runs of one rate, in four cells."""
    study = "2026-11-26_growth"
    moved = [results(f"{study}/{cell}")["movers"]["baseline"] for cell in CELLS]
    runs = "runs: " + ", ".join(f"{m['failing_runs']} and {m['sound_runs']}" for m in moved)
    for quantity, name in (*OUTPUTS.items(), *INPUTS.items()):
        grown = [next(g for g in m["growth"] if g["quantity"] == quantity) for m in moved]
        enough = [min(m["failing_runs"], m["sound_runs"]) >= LEAST_RUNS for m in moved]
        if quantity in OUTPUTS:
            claim = f"the output of {name} more than doubles in a diverging run"
            verdicts = [{"yes": AGREES, "no": DISAGREES}.get(g["doubled"], UNCLEAR) for g in grown]
        else:
            claim = f"the gradient at the input of {name} explodes in a diverging run"
            verdicts = [above(g["low"], g["high"], 1) for g in grown]
        judged = [verdict if one else TOO_FEW for verdict, one in zip(verdicts, enough, strict=True)]
        yield Row(claim, EQUAL_RATE, study, grown_text(grown), counted(judged), runs)


EQUAL_RATE = "collapse, equal rate and step; widths 32, 64; cosine, constant"


def grown_text(grown: Sequence[Raw]) -> str:
    return "; ".join(f"{g['ratio']:.2g}x [{number(g['low'])}, {number(g['high'])}]" for g in grown)


def counted(verdicts: Sequence[str]) -> str:
    """One verdict for all cells, or how many have each."""
    kinds = dict.fromkeys(verdicts)
    if len(kinds) == 1:
        return f"{verdicts[0]} ({len(verdicts)} of {len(verdicts)} cells)"
    return ", ".join(f"{kind} ({verdicts.count(kind)} of {len(verdicts)})" for kind in kinds)


def perplexity() -> Iterator[Row]:
    study = "2026-11-22_table-4"
    for arm, lower in (
        ("qk_norm", True),
        ("qkv_norm", True),
        ("qk_fc_norm", True),
        ("qk_norm_cap", True),
        ("soft_cap", False),
    ):
        one = next(c for c in results(study)["compared"] if c["name"] == arm)
        found, p = one["difference"], one["p_holm"]
        told = p is not None and p < 0.05
        if lower:
            verdict = UNCLEAR if not told else AGREES if found["mean"] < 0 else DISAGREES
            claim = f"`{arm}` reaches a lower loss than the baseline at one rate"
        else:
            verdict = DISAGREES if told and found["mean"] < 0 else UNCLEAR
            claim = f"`{arm}` reaches no lower loss than the baseline at one rate"
        measured = f"{signed(found)} nats, p {p:.2g}"
        yield Row(
            claim, "loss at one rate, 0.22 million parameters", study, measured, verdict, f"{found['visible']:.3f} nats"
        )


# Paper 2


def variability() -> Iterator[Row]:
    yield from depth()
    yield from tev()
    yield from lowest_tev()


def depth() -> Iterator[Row]:
    study = "2026-11-26_depth"
    for one in results(study)["compared"]:
        if one["place"]["line"] != "mlra" or one["difference"] is None:
            continue
        found = one["difference"]
        verdict = below(found["low"], found["high"])
        claim = "`mlra` reaches a lower loss than the baseline at every depth"
        edge = f"loss at the best rate of each, {one['place']['size']}, width 32"
        yield Row(claim, edge, study, f"{signed(found)} nats", verdict, f"{found['visible']:.3f} nats")
    for part, claim, edge in (
        ("overall", "`mlra` reaches a lower loss than the baseline", "loss, mean of all depths"),
        ("slopes", "the gain of `mlra` grows with depth", "loss, per doubling of depth"),
    ):
        one = next(row for row in results(study)[part] if row["line"] == "mlra")
        mean = one["mean"]
        verdict = below(mean["low"], mean["high"])
        yield Row(claim, edge, study, f"{signed(mean)} nats", verdict, f"{one['visible']:.3f} nats")


STAND_IN = 0.3  # the correlation that a stand-in would need at least


def tev() -> Iterator[Row]:
    for study, edge in (
        ("2026-11-26_tev", "no edge: one rate below all; 41 thousand parameters, 12 arms"),
        ("2026-11-22_signals", "arm, rate and step fixed; 0.2 to 0.9 million parameters, four rates"),
    ):
        for signal, name in (("tev_mean", "mean"), ("tev_std", "spread")):
            keys = ("", signal, "variance")
            one = next(r for r in results(study)["related"] if (r["runs"], r["signal"], r["against"]) == keys)
            found = one["within"]
            verdict = AGREES if found["low"] > 0 else DISAGREES if found["high"] < STAND_IN else UNCLEAR
            measured = (
                f"rank correlation {found['estimate']:+.2f} [{found['low']:+.2f}, {found['high']:+.2f}] "
                f"over {found['units']} seeds"
            )
            claim = f"TEV ({name}) stands for the gradient variance"
            yield Row(claim, edge, study, measured, verdict, f"{found['visible']:.2f}")
    study = "2026-11-22_signals"
    for one in results(study)["predicted"]:
        if one["predictor"] == "TEV" and one["fraction"] == 0.5:
            area = one["area_within"]
            measured = (
                f"area {area['estimate']:.2f} [{area['low']:.2f}, {area['high']:.2f}], {area['pairs']} pairs of one arm"
            )
            claim = "a high TEV marks a run that will fail (half-way)"
            verdict = f"{UNCLEAR}: best not bracketed"
            yield Row(claim, "quality, four rates", study, measured, verdict, f"0.5 +- {area['visible']:.2f}")


def lowest_tev() -> Iterator[Row]:
    study = "2026-11-22_signals"
    traces = load_traces(STUDIES / study / "traces.npz")
    lowest = min(run["lr"] for run in results(study)["runs"])
    ends: dict[str, list[float]] = {}
    for run in results(study)["runs"]:
        if run["lr"] == lowest:
            ends.setdefault(run["arm"], []).append(float(traces[run["id"]].signals["tev_mean"][-1]))
    for layers in (4, 8):
        for other in ("baseline", "sigma_reparam"):
            own, theirs = (np.log(ends[f"{arm}, {layers} layers"]).tolist() for arm in ("mlra", other))
            found = welch(own, theirs)
            ratio, low, high = np.exp([found.difference, found.low, found.high])
            measured = f"{ratio:.2f}x [{low:.2f}, {high:.2f}] of `{other}`"
            claim = f"`mlra` has a lower TEV than `{other}`"
            edge = f"no edge: the lowest rate, {layers} layers"
            yield Row(claim, edge, study, measured, below(found.low, found.high), f"{np.exp(found.visible):.2f}x")


# AdaGC


def clipping() -> Iterator[Row]:
    """Loss and spikes with ``ada_gc`` less those with global clipping, on batches with planted faults."""
    study = "2026-11-27_clipping/losses"
    compared = results(study)["compared"]
    rate = {(c["name"], c["multiple"]): c["learning_rate"] for c in compared}
    one = next(c for c in compared if c["name"] == "ada_gc" and c["multiple"] == 1)
    found = one["difference"]
    where = "41 thousand parameters, beta2 0.999, planted bad batches"
    yield Row(
        "`ada_gc` reaches a lower loss than global clipping",
        f"loss at the best rate of each, {where}",
        study,
        f"{signed(found)} nats, p {one['p_holm']:.2g}",
        below(found["low"], found["high"]),
        f"{found['visible']:.3f} nats",
    )
    with (STUDIES / study).parent.joinpath("spikes.csv").open(encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    for multiple, words in ((1.0, "at the best rate of each"), (4.0, "at four times the best rate of each")):
        each = {
            arm: {r["seed"]: float(r["spikes"]) for r in rows if r["arm"] == arm and float(r["learning_rate"]) == lr}
            for arm, lr in ((arm, rate[arm, multiple]) for arm in ("ada_gc", "clip"))
        }
        seeds = [str(seed) for seed in range(8)]  # those of the tuning are 1000 and 1001
        differences = np.array([each["ada_gc"][seed] - each["clip"][seed] for seed in seeds])
        mean = float(differences.mean())
        error = float(differences.std(ddof=1) / len(seeds) ** 0.5)
        half = t_quantile(0.975, len(seeds) - 1) * error
        visible = half + t_quantile(0.8, len(seeds) - 1) * error
        clip = np.mean([each["clip"][seed] for seed in seeds])
        yield Row(
            "`ada_gc` has fewer spikes than global clipping",
            f"spikes per 1,000 steps {words}, {where}",
            study,
            f"{mean:+.0f} [{mean - half:+.0f}, {mean + half:+.0f}] of {clip:.0f}",
            below(mean - half, mean + half),
            f"{visible:.0f} per 1,000",
        )


# Verdicts


def above(low: float, high: float, line: float = 0.0) -> str:
    """The verdict on a claim that a value is above a line."""
    return AGREES if low > line else DISAGREES if high < line else UNCLEAR


def below(low: float, high: float, line: float = 0.0) -> str:
    """The verdict on a claim that a value is below a line."""
    return AGREES if high < line else DISAGREES if low > line else UNCLEAR


# Text


def inverse(ratio: Raw) -> Raw:
    def over(value: float | None) -> float | None:
        return None if value is None else 1 / value

    bound = {"above": "below", "below": "above"}.get(ratio["bound"], ratio["bound"])
    return {"estimate": over(ratio["estimate"]), "low": over(ratio["high"]), "high": over(ratio["low"]), "bound": bound}


def ratio_text(ratio: Raw) -> str:
    if ratio["estimate"] is None:
        return str(ratio["bound"]).replace("_", " ")
    sign = {"above": "> ", "below": "< "}.get(ratio["bound"], "")
    return f"{sign}{ratio['estimate']:.2g}x [{number(ratio['low'])}, {number(ratio['high'])}]"


def number(value: float | None) -> str:
    return "-" if value is None else f"{value:.2g}"


def signed(found: Raw) -> str:
    return f"{found['mean']:+.3f} [{found['low']:+.3f}, {found['high']:+.3f}]"
