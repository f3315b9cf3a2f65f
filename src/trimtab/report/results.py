"""Findings as ``results.json`` and ``results.csv``.

Everything that may differ between two equal studies (times, versions, paths) stands under ``provenance``.
"""

from __future__ import annotations

import csv
import hashlib
import io
import json
import math
import platform
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from importlib.resources import files
from typing import Any, cast

import numpy as np
import torch

from trimtab import __version__
from trimtab.config import canonical
from trimtab.report.movers import Movement, as_json, movements
from trimtab.report.reported import REPORTED
from trimtab.run.folder import Outcome
from trimtab.stats.rank import kendall_tau_b
from trimtab.study.analysis import ArmFindings, Findings, limit_draws

SCHEMA = 1
TAU_DRAWS = 4000
LEAST_REPORTED = 4  # arms with a reported limit below which two orders are not worth comparing


def results_of(
    findings: Findings, moved: Mapping[str, Movement] | None = None, seeds: Sequence[Mapping[str, Any]] = ()
) -> dict[str, Any]:
    """The JSON content; numbers that are not finite are null.

    Args:
        findings: what the study found.
        moved: what ``movements`` says of these findings, where it is known already.
        seeds: the view of seeds, where there is one.
    """
    moved = movements(findings) if moved is None else moved
    spec = findings.spec
    content = {
        "schema": SCHEMA,
        "study": {
            "name": spec.name,
            "spec_hash": spec_hash(findings),
            "reference": spec.reference,
            "learned": findings.learned,
            "reference_loss": findings.reference_loss,
            "unigram_entropy": findings.unigram_entropy,
            "log_vocab": findings.log_vocab,
            "seed_sd": findings.seed_sd,
            "criterion": asdict(spec.criterion),
            "steps": spec.protocol.training.steps,
            "threads": spec.protocol.training.threads,
            "stop_rule": {"most_runs": spec.search.most_runs, "enough": spec.search.enough, "fixed_in_advance": True},
            "warnings": list(findings.warnings),
            "spec": spec.table(),
        },
        "arms": {name: _arm(arm) for name, arm in findings.arms.items()},
        "runs": [
            {
                "id": run.run_id,
                "arm": run.trial.arm,
                "lr": run.trial.learning_rate,
                "seed": run.trial.seed,
                "round": run.trial.round,
                "label": run.label.value,
                "final_loss": run.outcome.final_loss if run.outcome else None,
                "steps": run.outcome.steps if run.outcome else 0,
                "stopped": run.outcome.stopped if run.outcome else None,
            }
            for run in findings.runs
        ],
        "excluded": [{"id": run_id, "reason": reason} for run_id, reason in sorted(findings.errors.items())],
        "reported": order_agreement(findings),
        "movers": {arm: as_json(movement) for arm, movement in moved.items()},
        "seeds": [dict(group) for group in seeds],
        "provenance": provenance([run.outcome for run in findings.runs]),
    }
    return cast("dict[str, Any]", finite(content))


def provenance(outcomes: Sequence[Outcome | None]) -> dict[str, Any]:
    """What may differ between two equal studies: versions, and the time that the runs took."""
    return {
        "trimtab": __version__,
        "torch": torch.__version__,
        "numpy": np.__version__,
        "python": platform.python_version(),
        "system": f"{platform.system()} {platform.machine()}",
        "training_seconds": sum(outcome.seconds for outcome in outcomes if outcome is not None),
    }


def heading(spec: Any, warnings: Sequence[str], verdicts: Sequence[str], **more: object) -> dict[str, Any]:
    """What every page of sections says of its study under ``study``; ``more`` is of its kind."""
    table = spec.table()
    return {
        "name": spec.name,
        "spec_hash": spec_hash_of(table),
        "steps": spec.protocol.training.steps,
        "threads": spec.protocol.training.threads,
        **more,
        "warnings": list(warnings),
        "verdicts": list(verdicts),
        "spec": table,
    }


def spec_hash(findings: Findings) -> str:
    """16 hexadecimal digits of the complete specification."""
    return spec_hash_of(findings.spec.table())


def spec_hash_of(table: Mapping[str, Any]) -> str:
    """16 hexadecimal digits of a specification."""
    return hashlib.sha256(canonical(table).encode()).hexdigest()[:16]


def order_agreement(findings: Findings) -> dict[str, Any] | None:
    """Kendall's tau-b between the reported order and ours, with an interval over our posteriors; None if too few."""
    known = {
        name: (arm, REPORTED[arm.method])
        for name, arm in findings.arms.items()
        if arm.method in REPORTED and arm.posterior and not REPORTED[arm.method].disputed
    }
    if len(known) < LEAST_REPORTED:
        return None
    reported = [row.trains_at for _, row in known.values()]
    rng = np.random.default_rng(0)
    draws = np.stack([limit_draws(arm, findings.spec, TAU_DRAWS, rng) for arm, _ in known.values()], axis=1)
    taus = [kendall_tau_b(reported, draw.tolist()) for draw in draws]
    low, median, high = np.quantile(taus, [0.025, 0.5, 0.975])
    left_out = sorted(n for n, arm in findings.arms.items() if arm.method in REPORTED and n not in known)
    return {
        "paper": "arXiv 2410.16682",
        "tau_b": {"estimate": float(median), "low": float(low), "high": float(high)},
        "arms": list(known),
        "left_out": left_out,
    }


def csv_of(results: dict[str, Any]) -> str:
    """One row an arm; a cell that a spreadsheet would run as a formula is disarmed."""
    output = io.StringIO()
    writer = csv.writer(output, lineterminator="\n")
    limits = [(question, level) for question in ("breaks", "usable", "ratio") for level in ("lr50", "lr10")]
    parts = ("estimate", "low", "high", "bound")
    labels = list(next(iter(results["arms"].values()))["counts"])
    writer.writerow(
        ["arm", "method", "best_loss", "best_lr", "lr_sensitivity"]
        + [f"{question}_{level}_{part}" for question, level in limits for part in parts]
        + ["p_value", "p_holm", *labels]
    )
    for name, arm in results["arms"].items():
        main = arm["criteria"]["d"]
        writer.writerow(
            [disarmed(name), arm["method"], arm["best_loss"], arm["best_lr"], arm["lr_sensitivity"]]
            + [main[question][level][part] for question, level in limits for part in parts]
            + [main["p_value"], main["p_holm"], *arm["counts"].values()]
        )
    return output.getvalue()


def dump(results: dict[str, Any]) -> str:
    """The text of ``results.json``."""
    return json.dumps(results, indent=1, ensure_ascii=False, allow_nan=False) + "\n"


def schema() -> dict[str, Any]:
    """The JSON Schema that ``results.json`` follows."""
    return json.loads((files("trimtab") / "report" / "results.schema.json").read_text(encoding="utf-8"))


def _arm(arm: ArmFindings) -> dict[str, Any]:
    table = asdict(arm)
    table["posterior"] = {"log2_lr50": [x for x, _ in arm.posterior], "probability": [p for _, p in arm.posterior]}
    return table


def finite(value: Any) -> Any:
    """A value for JSON: numbers that are not finite as None, keys as text, tuples as lists."""
    if isinstance(value, dict):
        return {str(key): finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [finite(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value


def disarmed(text: str) -> str:
    """A cell that no spreadsheet takes for a formula."""
    return f"'{text}" if text[:1] in ("=", "+", "-", "@", "\t", "\r") else text
