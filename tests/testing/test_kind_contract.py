"""The contract of kinds of study holds for ours and for one of another package, and catches each way to be wrong."""

from __future__ import annotations

import copy
import shutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typing_extensions import override

from trimtab import registry
from trimtab.config import Raw
from trimtab.kinds.signals.analysis import TRACES
from trimtab.kinds.signals.traces import Trace, save_traces
from trimtab.study.kind import KINDS
from trimtab.study.seed_facts import SPIKES, SeedFacts, save_facts
from trimtab.study.seed_groups import FACTS
from trimtab.study.specification import StudySpec
from trimtab.study.trial import Results
from trimtab.testing import KindContract
from trimtab.testing.simulated_study import run_id_of

SIZED = {"1 deep": {"model": {"num_layers": 1}}, "2 deep": {"model": {"num_layers": 2}}}
TINY: Raw = {
    "name": "tiny",
    "data": {"token_files": {"train": "train.bin", "held_out": "held_out.bin", "vocab_size": 256}},
    "model": {"width": 16, "num_layers": 1, "num_heads": 2, "context": 8},
    "training": {"steps": 40, "batch_size": 4},
    "schedule": {"warmup_steps": 2},
    "evaluation": {"evaluations": 4, "final_evaluations": 2, "num_sequences": 8},
    "arms": {"baseline": {}, "qk_norm": {}},
}
SEARCH: Raw = {
    "learning_rates": {"low": "2^-6", "high": "2^2", "octaves_apart": 2},
    "search": {"replicates": 1, "probes_per_round": 2, "most_runs": 10},
}


@pytest.fixture(scope="module", autouse=True)
def outside_kinds(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """A package with kinds of study, sound ones and others, installed beside trimtab."""
    site = tmp_path_factory.mktemp("site")
    here = Path(__file__).parent
    shutil.copy(here.parent / "outside" / "additions.py", site / "trimtab_contract_additions.py")
    shutil.copy(here / "broken_kinds.py", site / "trimtab_contract_broken_kinds.py")
    info = site / "trimtab_contract_additions-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: trimtab-contract-additions\nVersion: 1.0\n")
    points = ["one_rate = trimtab_contract_additions:one_rate"]
    points += [f"{slug} = trimtab_contract_broken_kinds:{slug}" for slug in (*CAUGHT, *REMEMBERS)]
    (info / "entry_points.txt").write_text("\n".join(["[trimtab.kinds]", *points]))
    sys.path.insert(0, str(site))
    registry._entry_points.cache_clear()
    yield
    sys.path.remove(str(site))
    registry._entry_points.cache_clear()


def tables(**changes: Any) -> Raw:
    raw = copy.deepcopy(TINY)
    for key, value in changes.items():
        raw[key] = {**raw[key], **value} if isinstance(raw.get(key), dict) and key != "arms" else value
    return raw


class TestMaxLr(KindContract):
    slug = "max_lr"

    @override
    def tables(self) -> Raw:
        return tables(**SEARCH)


class TestMaxLrOnAGrid(KindContract):
    slug = "max_lr"

    @override
    def tables(self) -> Raw:
        return tables(**{**SEARCH, "search": {"design": "grid", "replicates": 1, "most_runs": 11}})


class TestMaxLrBySize(KindContract):
    slug = "max_lr_by_size"

    @override
    def tables(self) -> Raw:
        return tables(**SEARCH, sizes=SIZED)


class TestLossAtLr(KindContract):
    slug = "loss_at_lr"

    @override
    def tables(self) -> Raw:
        return tables(
            learning_rates={"low": "2^-6", "high": "2^0", "octaves_apart": 3},
            evaluation={"final_blocks": 4, "block_bytes": 64},
            comparison={"seeds": 3, "multiples": [0.5, 1.0], "tune": "arm"},
            sizes=SIZED,
        )


class TestLossAtAFixedLr(KindContract):
    slug = "loss_at_lr"

    @override
    def tables(self) -> Raw:
        comparison = {"seeds": 5, "tune": "fixed", "learning_rate": 2.0**-4}
        return tables(evaluation={"final_blocks": 4, "block_bytes": 64}, comparison=comparison)


class TestSignals(KindContract):
    slug = "signals"

    @override
    def tables(self) -> Raw:
        return tables(
            learning_rates={"low": "2^-6", "high": "2^2", "octaves_apart": 4},
            signals={"seeds": 2, "fractions": [0.25, 0.5]},
            probes={"named": ["tev", "variance"], "every": 5},
            training={"accumulate": 2},
            arms={"baseline": {}, "qk_norm": {}, "soft_cap": {}},
        )

    @override
    def furnish(self, spec: StudySpec, results: Results, folder: Path) -> None:
        steps = np.arange(0, 45, 5)
        traces: dict[str, Trace] = {}
        for trial, outcome in results.items():
            if outcome is not None:
                chance = np.random.default_rng([trial.seed, trial.tick + 1000])
                names = ("loss", "grad_norm", "tev_mean", "tev_std", "variance", "variance_embedding")
                signals = {name: np.exp(chance.normal(size=len(steps))) for name in names}
                traces[run_id_of(trial)] = Trace(steps, signals, np.zeros((0, 3, 57)), {"step": 0.1, "tables": 0.01})
        save_traces(traces, folder / TRACES)


class TestSeeds(KindContract):
    slug = "seeds"

    @override
    def tables(self) -> Raw:
        return tables(seeds={"learning_rate": "2^-6", "init": 3, "data": 2})

    @override
    def furnish(self, spec: StudySpec, results: Results, folder: Path) -> None:
        facts: dict[str, SeedFacts] = {}
        for trial, outcome in results.items():
            if outcome is not None:
                chance = np.random.default_rng([trial.seed, trial.data_seed or 0])
                predictions = chance.integers(0, 8, 64).astype(np.uint32)
                table = np.cumsum(chance.normal(size=(8, 2)), axis=0)
                names = ("all_weights/model/rms", "all_weights/model/l2_norm")
                spikes = tuple(chance.random(len(SPIKES)))
                facts[run_id_of(trial)] = SeedFacts(predictions, np.arange(8), names, table, spikes)
        save_facts(facts, folder / FACTS)


class TestAKindOfAnotherPackage(KindContract):
    slug = "one_rate"

    @override
    def tables(self) -> Raw:
        return tables()


# --- kinds that are wrong ---------------------------------------------------------------------------------------------


def failures(slug_of_it: str, tmp_path: Path) -> set[str]:
    class Contract(KindContract):
        slug = slug_of_it

        @override
        def tables(self) -> Raw:
            return tables(seeds=2)

    failed: set[str] = set()
    contract = Contract()
    for name in dir(contract):
        if name.startswith("test_"):
            test: Callable[..., None] = getattr(contract, name)
            folder = tmp_path / name
            folder.mkdir()
            try:
                test(*([folder] if "tmp_path" in test.__annotations__ else []))
            except AssertionError:
                failed.add(name)
    return failed


READS = "test_it_reads_what_it_writes"
FIXED = "test_what_is_fixed_leaves_out_free_settings_and_places"
ONCE = "test_rounds_ask_for_each_trial_once_and_for_no_more_than_planned"
ALONE = "test_rounds_depend_on_results_alone"
END = "test_rounds_end_without_any_outcome"
SCHEMA = "test_every_stage_has_a_report_that_follows_the_schema"
SHOWN = "test_every_stage_can_be_shown"
CSV = "test_rows_of_the_csv_have_as_many_cells_as_columns"
ORDER = "test_a_report_does_not_depend_on_the_order_of_results"
CAUGHT = {
    "sound": set[str](),
    "asks_twice": {ONCE},
    "depends_on_order": {ALONE},
    "exceeds_most_runs": {ONCE, END},
    "lacks_a_key": {SCHEMA},
    "text_for_number": {SCHEMA},
    "needs_outcomes": {SCHEMA, SHOWN, CSV},
    "needs_runs": {SCHEMA, SHOWN, CSV},
    "reports_in_order": {ORDER},
    "two_charts": {SHOWN},
    "empty_verdict": {SHOWN},
    "short_rows": {CSV},
    "loses_a_setting": {READS},
    "holds_what_is_free": {FIXED},
    "holds_nothing": {FIXED},
}
REMEMBERS = {"remembers": ALONE, "waits_for_outcomes": END}


@pytest.mark.parametrize("slug", CAUGHT)
def test_the_contract_catches(slug: str, tmp_path: Path) -> None:
    assert failures(slug, tmp_path) == CAUGHT[slug]


def test_the_contract_catches_rounds_that_remember_and_rounds_that_never_end(tmp_path: Path) -> None:
    for slug, test in REMEMBERS.items():
        folder = tmp_path / slug
        folder.mkdir()
        assert test in failures(slug, folder)


def test_every_kind_of_ours_is_held_to_the_contract() -> None:
    held = {contract.slug for contract in KindContract.__subclasses__() if hasattr(contract, "slug")}
    assert set(KINDS.ours()) <= held
