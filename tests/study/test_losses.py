"""Studies of losses at one learning rate, and of limits by size: reading, rounds, analysis, and from end to end."""

from __future__ import annotations

import csv
import io
import json
import math
import signal
import tomllib
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tomli_w

from trimtab import Study, cli, load_study
from trimtab.cli.commands import study_tables
from trimtab.config import ConfigError, dump_toml
from trimtab.kinds.loss_at_lr.analysis import analyse as analyse_losses
from trimtab.kinds.loss_at_lr.findings import Compared, LossFindings
from trimtab.kinds.loss_at_lr.rounds import not_bracketed
from trimtab.kinds.loss_at_lr.rounds import rounds as loss_rounds
from trimtab.kinds.loss_at_lr.savings import first_step_at
from trimtab.kinds.loss_at_lr.spec import LossStudySpec
from trimtab.kinds.max_lr.analysis import analyse as analyse_limits
from trimtab.kinds.max_lr.rounds import rounds as search_rounds
from trimtab.kinds.max_lr_by_size.analysis import SizedFindings
from trimtab.kinds.max_lr_by_size.analysis import analyse as analyse_sizes
from trimtab.kinds.max_lr_by_size.rounds import rounds as sized_rounds
from trimtab.kinds.max_lr_by_size.spec import SizedStudySpec
from trimtab.models.gpt import GPT
from trimtab.report import report_of, write_report
from trimtab.report.output import json_text
from trimtab.run.cost import cost_of
from trimtab.run.folder import Outcome
from trimtab.run.spec import UserCode
from trimtab.stats.paired import paired_difference
from trimtab.study.executors.contract import Job, Progress, train_job
from trimtab.study.executors.inline import InlineExecutor
from trimtab.study.kind import KINDS, Blocks, Evidence, Findings, read_any_study
from trimtab.study.round import Silence
from trimtab.study.specification import StudySpec
from trimtab.study.trial import Results, Tick, Trial

Raw = dict[str, Any]
Tables = Callable[..., Raw]
NAN = math.nan
T1, T2 = 12.7062047, 4.30265273  # of Student at 0.975, with one and two degrees of freedom
DEPTHS = {f"{n} deep": {"model": {"num_layers": n}} for n in (1, 2, 4)}


@pytest.fixture(scope="session")
def tables(tiny_tables: Tables) -> Tables:
    """The tables of a tiny study of either new kind: ``tables("loss_at_lr", comparison={"seeds": 2})``."""

    def make(kind: str = "loss_at_lr", /, **changes: Any) -> Raw:
        raw = tiny_tables(kind=kind, learning_rates={"low": "2^-9", "high": "2^-3", "octaves_apart": 3})
        if kind == "loss_at_lr":
            del raw["search"]
            raw["evaluation"] |= {"final_blocks": 4, "block_bytes": 64}
            raw["comparison"] = {"tune": "reference", "tuning_seeds": 1, "extensions": 0}
        else:
            raw |= {"sizes": {key: DEPTHS[key] for key in ("1 deep", "2 deep")}}
        for key, value in changes.items():
            merged = isinstance(value, dict) and isinstance(raw.get(key), dict) and key not in ("arms", "sizes", "data")
            raw[key] = {**raw[key], **value} if merged else value
        return raw

    return make


def read(raw: Raw) -> Any:
    return read_any_study(raw, "study.toml")


FIXED = {"tune": "fixed", "learning_rate": 2.0**-5}


# --- reading ----------------------------------------------------------------------------------------------------------

REFUSED: dict[str, tuple[str, Raw, tuple[str, ...]]] = {
    "a kind misspelt": ("loss_at_lr", {"kind": "loss_at_rl"}, ("kind", "did you mean 'loss_at_lr'")),
    "a kind that is no name": ("loss_at_lr", {"kind": 3}, ("kind", "3")),
    "a reference that is no arm": ("loss_at_lr", {"reference": "nobody"}, ("reference", "nobody", "qk_norm")),
    "an unknown size": (
        "loss_at_lr",
        {"sizes": DEPTHS, "comparison": {"at_size": "8 deep"}},
        ("comparison.at_size", "8 deep", "4 deep"),
    ),
    "a size where there are none": ("loss_at_lr", {"comparison": {"at_size": "1 deep"}}, ("comparison.at_size",)),
    "a rate beside a sweep": ("loss_at_lr", {"comparison": {"learning_rate": 0.1}}, ("comparison", "learning_rate")),
    "no rate and no sweep": ("loss_at_lr", {"comparison": {"tune": "fixed"}}, ("comparison", "learning_rate")),
    "an unknown tuner": ("loss_at_lr", {"comparison": {"tune": "everybody"}}, ("comparison.tune", "everybody")),
    "no seeds": ("loss_at_lr", {"comparison": {"seeds": 0}}, ("comparison", "seeds")),
    "no multiples": ("loss_at_lr", {"comparison": {"multiples": []}}, ("comparison", "multiples")),
    "multiples that are one": ("loss_at_lr", {"comparison": {"multiples": [1.0, 1.01]}}, ("multiples", "1/16")),
    "a negative multiple": ("loss_at_lr", {"comparison": {"multiples": [-1.0]}}, ("multiples", "positive")),
    "an unknown key of the comparison": ("loss_at_lr", {"comparison": {"sedes": 3}}, ("comparison", "sedes", "seeds")),
    "a search in a comparison": ("loss_at_lr", {"search": {}}, ("search",)),
    "no blocks": ("loss_at_lr", {"evaluation": {"final_blocks": 0}}, ("evaluation.final_blocks",)),
    "one block": ("loss_at_lr", {"evaluation": {"final_blocks": 1}}, ("evaluation.final_blocks",)),
    "no blocks at one size": (
        "loss_at_lr",
        {"sizes": DEPTHS | {"blind": {"evaluation": {"final_blocks": 0}}}},
        ("evaluation.final_blocks",),
    ),
    "no arms": ("loss_at_lr", {"arms": {}}, ("arms",)),
    "too many runs": (
        "loss_at_lr",
        {"comparison": {"seeds": 1000, "multiples": [1.0, 2.0, 4.0, 8.0, 16.0, 32.0]}},
        ("comparison", "10000"),
    ),
    "no sizes": ("max_lr_by_size", {"sizes": {}}, ("sizes",)),
    "too many trials": ("max_lr_by_size", {"search": {"most_runs": 4000}}, ("search", "10000")),
} | {
    f"{problem} of {kind}": (kind, changes, words)
    for kind in ("loss_at_lr", "max_lr_by_size")
    for problem, changes, words in (
        ("a size with a strange key", {"sizes": {"deep": {"layers": 3}}}, ("sizes.deep", "layers", "model")),
        ("a size with a learning rate", {"sizes": {"deep": {"learning_rates": {}}}}, ("sizes.deep", "learning_rates")),
        ("sizes that are a number", {"sizes": 3}, ("sizes", "3")),
        ("sizes that are a list", {"sizes": ["deep"]}, ("sizes", "deep")),
        ("a size that is a number", {"sizes": {"deep": 3}}, ("sizes.deep",)),
        ("an empty size", {"sizes": {"deep": {}}}, ("sizes.deep",)),
        ("a size without a name", {"sizes": {"": {"model": {"width": 32}}}}, ("sizes", "printable")),
        ("a size that would not show", {"sizes": {"\x1b[2J": {"model": {"width": 32}}}}, ("sizes", "printable")),
        ("a bad value in a size", {"sizes": {"deep": {"model": {"num_layers": 0}}}}, ("num_layers",)),
        (
            "names that collide",
            {
                "arms": {"a": {"method": "qk_norm"}, "a, b": {"method": "baseline"}},
                "reference": "a",
                "sizes": {"b, c": {"model": {"width": 32}}, "c": {"model": {"width": 64}}},
            },
            ("arms", "sizes", "a, b, c"),
        ),
        (
            "two sizes that are one",
            {"sizes": {"one": {"model": {"width": 32}}, "other": {"model": {"width": 32, "num_layers": 1}}}},
            ("one", "other"),
        ),
        (
            "arms that are one at a size",
            {
                "arms": {"baseline": {}, "deep": {"method": "baseline", "model": {"num_layers": 2}}},
                "sizes": {"2 deep": {"model": {"num_layers": 2}}},
            },
            ("baseline", "deep"),
        ),
    )
}


@pytest.mark.parametrize("problem", list(REFUSED))
def test_bad_tables_are_refused_in_one_line_that_names_the_key(tables: Tables, problem: str) -> None:
    kind, changes, words = REFUSED[problem]
    with pytest.raises(ConfigError) as refused:
        read(tables(kind, **changes))
    message = str(refused.value)
    assert "\n" not in message
    assert message.startswith("study.toml: ")
    for word in words:
        assert word in message


def test_a_file_without_a_kind_is_a_study_of_limits(tiny_tables: Tables) -> None:
    assert read(tiny_tables()).kind == "max_lr"


def test_a_rate_fixed_by_nobody_is_fixed(tables: Tables) -> None:
    """Files of version 0.1.0 say so."""
    old, new = (read(tables(comparison=FIXED | {"tune": tune})) for tune in ("nobody", "fixed"))
    assert old == new
    assert old.table()["comparison"]["tune"] == "fixed"


def test_every_line_stands_at_every_size_with_the_size_laid_over_it(tables: Tables) -> None:
    arms = {"baseline": {}, "wide": {"method": "baseline", "model": {"width": 32, "num_layers": 3}}}
    spec = read(tables(arms=arms, sizes=DEPTHS))
    shapes = {name: (arm.protocol.model.width, arm.protocol.model.num_layers) for name, arm in spec.arms.items()}
    assert shapes == {f"{line}, {n} deep": (w, n) for n in (1, 2, 4) for line, w in (("baseline", 16), ("wide", 32))}
    assert all(name == arm.name for name, arm in spec.arms.items())


SHAPES: dict[str, tuple[str, Raw]] = {
    "plain": ("loss_at_lr", {}),
    "at one rate": ("loss_at_lr", {"comparison": FIXED | {"multiples": [1.0, 4.0], "seeds": 3}}),
    "with sizes": ("loss_at_lr", {"sizes": DEPTHS, "comparison": {"at_size": "2 deep", "tune": "arm"}}),
    "with arms of all sorts": (
        "loss_at_lr",
        {
            "sizes": {"wide": {"model": {"width": 32}, "training": {"steps": 30}}, "long": {"model": {"context": 16}}},
            "arms": {
                "baseline": {},
                "=a, b": {"method": [{"soft_cap": {"cap": 5.0}}, {"qk_norm": {}}]},
                "more": {"method": "qk_norm", "training": {"batch_size": 8}, "optimizer": {"weight_decay": 0.01}},
            },
        },
    ),
    "with a vocabulary of each size": (
        "loss_at_lr",
        {
            "data": {"zipf_markov": {"vocab_size": 16, "num_tokens": 10_000}},
            "sizes": {
                "16 words": {"model": {"width": 32}},
                "64 words": {"data": {"zipf_markov": {"vocab_size": 64}}},
            },
        },
    ),
    "with rates of its own": (
        "loss_at_lr",
        {
            "comparison": {"tune": "arm"},
            "arms": {"baseline": {}, "qk_norm": {"learning_rates": {"low": "2^-5", "high": "2^1", "octaves_apart": 2}}},
        },
    ),
    "with another optimizer": (
        "loss_at_lr",
        {"arms": {"baseline": {}, "muon": {"method": "baseline", "optimizer": {"muon": {"momentum": 0.9}}}}},
    ),
    "limits by size": ("max_lr_by_size", {"sizes": DEPTHS, "search": {"most_runs": 11}, "criterion": {"margin": 0.3}}),
    "limits by size with arms of all sorts": (
        "max_lr_by_size",
        {"arms": {"baseline": {}, "cap": {"method": [{"soft_cap": {"cap": 5.0}}], "training": {"batch_size": 8}}}},
    ),
}


@pytest.mark.parametrize("shape", list(SHAPES))
def test_a_study_is_the_same_when_read_from_its_own_table(tables: Tables, shape: str, tmp_path: Path) -> None:
    kind, changes = SHAPES[shape]
    spec = read(tables(kind, **changes))
    again = read(tomllib.loads(dump_toml(spec.table())))
    assert again.fixed() == spec.fixed()
    assert again.table() == spec.table()
    assert list(again.arms) == list(spec.arms)
    for name in spec.arms:
        assert again.arms[name] == spec.arms[name]
        assert again.arms[name].run(-32, 1).table() == spec.arms[name].run(-32, 1).table()
    assert again.places == spec.places
    (tmp_path / "study.toml").write_text(dump_toml(spec.table()))
    assert load_study(tmp_path).spec.table() == spec.table()


# --- rounds of a comparison of losses ---------------------------------------------------------------------------------


def outcome_of(curve: Sequence[tuple[int, float]], *, stopped: Any = None, steps: int | None = None) -> Outcome:
    final = NAN if stopped == "non_finite" else curve[-1][1]
    return Outcome(
        run_id="",
        stopped=stopped,
        steps=curve[-1][0] if steps is None else steps,
        initial_loss=curve[0][1],
        final_loss=final,
        norm_ratio=1.0,
        spike=0.0,
        log_vocab=math.log(8),
        unigram_entropy=math.log(8),
        bytes_per_token=2.0,
        held_out=tuple(curve),
        seconds=0.1,
    )


def driven(
    search: Any, outcome: Callable[[Trial], Outcome | None]
) -> tuple[list[list[Trial]], dict[Trial, Outcome | None]]:
    """Every round of a search whose runs come to what ``outcome`` says."""
    batches: list[list[Trial]] = []
    results: dict[Trial, Outcome | None] = {}
    batch = next(search)
    while True:
        batches.append(list(batch))
        results |= {trial: outcome(trial) for trial in batch}
        try:
            batch = search.send(dict(results))
        except StopIteration:
            return batches, results


def best_at(ticks: Mapping[str, int]) -> Callable[[Trial], Outcome]:
    """Losses that are lowest at a tick of each arm."""
    return lambda trial: outcome_of([(0, 5.0), (20, 1.0 + 0.01 * abs(trial.tick - ticks.get(trial.arm, -1000)))])


SWEEP = (-144, -96, -48)
AT_SIZES = {"sizes": {key: DEPTHS[key] for key in ("1 deep", "2 deep")}}


@pytest.mark.parametrize(
    ("changes", "tuned", "expected"),
    [
        ({}, ["baseline"], {"baseline": -96, "qk_norm": -96}),
        ({"comparison": {"tune": "arm"}}, ["baseline", "qk_norm"], {"baseline": -96, "qk_norm": -48}),
        (
            AT_SIZES,
            ["baseline, 1 deep", "baseline, 2 deep"],
            {"baseline, 1 deep": -96, "qk_norm, 1 deep": -96, "baseline, 2 deep": -144, "qk_norm, 2 deep": -144},
        ),
        (
            AT_SIZES | {"comparison": {"at_size": "2 deep"}},
            ["baseline, 2 deep"],
            dict.fromkeys(("baseline, 1 deep", "qk_norm, 1 deep", "baseline, 2 deep", "qk_norm, 2 deep"), -144),
        ),
        (
            AT_SIZES | {"comparison": {"at_size": "1 deep", "tune": "arm"}},
            ["baseline, 1 deep", "qk_norm, 1 deep"],
            {"baseline, 1 deep": -96, "qk_norm, 1 deep": -48, "baseline, 2 deep": -96, "qk_norm, 2 deep": -48},
        ),
    ],
)
def test_the_sweep_comes_first_and_decides_the_rate_of_every_pair(
    tables: Tables, changes: Raw, tuned: list[str], expected: dict[str, int]
) -> None:
    comparison = {"seeds": 3, "tuning_seeds": 2, "multiples": [1.0, 0.5, 4.0]} | changes.get("comparison", {})
    spec = read(tables(**(changes | {"comparison": comparison})))
    best = {"baseline": -96, "qk_norm": -48, "baseline, 1 deep": -96, "qk_norm, 1 deep": -48}
    best |= {"baseline, 2 deep": -144, "qk_norm, 2 deep": -96}
    (sweep, pairs), _ = driven(loss_rounds(spec), best_at(best))
    tuning_seeds = {trial.seed for trial in sweep}
    assert len(tuning_seeds) == 2
    assert Counter((t.arm, t.tick, t.seed) for t in sweep) == Counter(
        (arm, tick, seed) for arm in tuned for tick in SWEEP for seed in tuning_seeds
    )
    assert Counter((t.arm, t.tick, t.seed) for t in pairs) == Counter(
        (arm, tick + shift, seed) for arm, tick in expected.items() for shift in (0, -16, 32) for seed in range(3)
    )
    assert tuning_seeds.isdisjoint(trial.seed for trial in pairs)
    assert {trial.round for trial in sweep}.isdisjoint(trial.round for trial in pairs)
    seeds = [trial.seed for trial in pairs]
    assert seeds == sorted(seeds), "a study cut short would have no whole pairs"
    assert spec.first_runs() == len(sweep)
    assert spec.most_runs() == len(sweep) + len(pairs)


def test_by_default_each_arm_is_tuned_at_each_size_on_two_seeds(tables: Tables) -> None:
    raw = tables(**AT_SIZES)
    del raw["comparison"]
    spec = read(raw)
    best = {"baseline, 1 deep": -96, "qk_norm, 1 deep": -112, "baseline, 2 deep": -80, "qk_norm, 2 deep": -64}
    batches, results = driven(loss_rounds(spec), best_at(best))
    sweep = [trial for trial in results if trial.round == 0]
    assert {trial.arm for trial in sweep} == set(spec.arms)
    assert len({trial.seed for trial in sweep}) == 2
    nearest = {arm: min(SWEEP, key=lambda tick: abs(tick - best[arm])) for arm in best}
    assert {(trial.arm, int(trial.tick)) for trial in batches[-1]} == set(nearest.items())


@pytest.mark.parametrize("middle", [-96 - 144, -96 + 144])
def test_a_sweep_that_starts_too_high_or_too_low_brackets_its_best_by_itself(tables: Tables, middle: int) -> None:
    spec = read(tables(comparison={"tune": "arm", "extensions": 4}))
    _, results = driven(loss_rounds(spec), best_at(dict.fromkeys(spec.arms, middle)))
    swept = {trial.tick for trial in results if trial.round == 0}
    assert min(swept) < middle < max(swept)
    assert not_bracketed(spec, results) == {}
    assert {trial.tick for trial in results if trial.round == 1} == {middle}


def test_a_best_that_stays_out_of_reach_is_named(tables: Tables, tmp_path: Path) -> None:
    """The planted confound: the best lies beyond every extension."""
    spec = read(tables(comparison={"tune": "arm", "extensions": 1, "seeds": 2}))
    _, results = driven(loss_rounds(spec), best_at(dict.fromkeys(spec.arms, 10_000)))
    assert {trial.tick for trial in results if trial.round == 0} == {*SWEEP, 0}
    blocks = {f"{trial}": {"a": [1.0 + trial.seed, 2.0]} for trial in results}
    evidence = Evidence(
        results=results,
        run_ids={trial: f"{trial}" for trial in results},
        folder=tmp_path,
        errors={},
        blocks=lambda name: blocks[name],
        cost=lambda name: cost_of(spec.arms[name].run(0, 0)),
        versions={},
    )
    findings = analyse_losses(spec, evidence)
    assert [one.bracketed for one in findings.compared] == [False, False]
    assert sum("best not bracketed: the best rate of" in warning for warning in findings.warnings) == 2
    results_json = write_report(findings)
    assert [one["bracketed"] for one in results_json["compared"]] == [False, False]
    assert "1 (not bracketed)" in (tmp_path / "report.html").read_text()


@pytest.mark.parametrize(
    ("comparison", "words"),
    [
        ({"tune": "reference", "tuning_seeds": 2}, ("tuned for 'baseline' alone",)),
        ({"tune": "arm", "tuning_seeds": 1}, ("tuned with one seed",)),
        ({"tune": "arm", "tuning_seeds": 2, "at_size": "2 deep"}, ("tuned at '2 deep' alone",)),
        (FIXED, ("not tuned",)),
        ({"tune": "arm", "tuning_seeds": 2}, ()),
    ],
)
def test_what_the_tuning_leaves_open_stands_on_the_page(
    tables: Tables, tmp_path: Path, comparison: Raw, words: tuple[str, ...]
) -> None:
    spec = read(tables(comparison=comparison, **AT_SIZES))
    runs = [one_run(name, seed, {"a": [1.0, 1.1 + seed]}) for name in spec.arms for seed in range(2)]
    tuning = [warning for warning in assess(spec, runs, tmp_path).warnings if "tuned" in warning]
    assert len(tuning) == len(words)
    for word, warning in zip(words, tuning, strict=True):
        assert word in warning


def test_the_mean_over_sizes_averages_the_differences_of_each_seed(tables: Tables, tmp_path: Path) -> None:
    spec = loss_spec(tables, 3, sizes=DEPTHS)
    gains = {"1 deep": -0.1, "2 deep": -0.2, "4 deep": -0.6}
    runs = [
        one_run(name, seed, {"a": [2.0 + 0.1 * seed + shift + (seed - 1) * 0.01 * bool(shift), 3.0 + shift]})
        for name in spec.arms
        for seed in range(3)
        for shift in [gains[spec.places[name].size] if spec.places[name].line == "qk_norm" else 0.0]
    ]
    (overall,) = assess(spec, runs, tmp_path).overall
    assert overall.mean.mean == pytest.approx(-0.3)
    assert overall.mean.high - overall.mean.mean == pytest.approx(T2 * 0.005 / math.sqrt(3), rel=1e-6)
    assert 0 < overall.visible < 0.05


def test_a_given_rate_asks_for_no_sweep_and_is_taken_to_the_nearest_sixteenth(tables: Tables) -> None:
    comparison = {"tune": "fixed", "learning_rate": 0.011, "seeds": 2, "multiples": [2.0]}
    spec = read(tables(comparison=comparison))
    (pairs,), _ = driven(loss_rounds(spec), best_at({}))
    assert {trial.tick for trial in pairs} == {round(16 * math.log2(0.011)) + 16}
    assert len(pairs) == 4 == spec.most_runs()
    assert spec.first_runs() == 0


def test_an_arm_with_rates_of_its_own_is_swept_over_those(tables: Tables) -> None:
    kind, changes = SHAPES["with rates of its own"]
    spec = read(tables(kind, **changes))
    (sweep, pairs), _ = driven(loss_rounds(spec), best_at({"baseline": -96, "qk_norm": -16}))
    swept = {arm: [trial.tick for trial in sweep if trial.arm == arm] for arm in spec.arms}
    assert swept == {"baseline": list(SWEEP), "qk_norm": [-80, -48, -16, 16]}
    assert spec.first_runs() == len(sweep)
    assert {(trial.arm, trial.tick) for trial in pairs} == {("baseline", -96), ("qk_norm", -16)}


def test_the_seeds_of_the_sweep_are_never_those_of_the_comparison(tables: Tables) -> None:
    try:
        spec = read(tables(comparison={"seeds": 1100, "tuning_seeds": 3}))
    except ConfigError:
        return
    (sweep, pairs), _ = driven(loss_rounds(spec), best_at({}))
    assert {trial.seed for trial in sweep}.isdisjoint(trial.seed for trial in pairs)


def test_a_sweep_of_which_nothing_came_back_leads_to_no_rate_outside_it(tables: Tables) -> None:
    spec = read(tables())
    batches, _ = driven(loss_rounds(spec), lambda trial: None)
    assert {trial.tick for trial in batches[-1]} <= set(range(SWEEP[0], SWEEP[-1] + 1))


# --- what a comparison of losses finds --------------------------------------------------------------------------------

TICK = Tick.nearest(2.0**-5)
CURVE = ((0, 3.0), (10, 2.0), (20, 1.0))


@dataclass(frozen=True)
class Made:
    """A run that nobody made."""

    trial: Trial
    run_id: str
    outcome: Outcome | None
    blocks: Blocks


def one_run(
    arm: str,
    seed: int,
    blocks: Mapping[str, Sequence[float]] | None,
    *,
    tick: Tick = TICK,
    curve: Sequence[tuple[int, float]] = CURVE,
    stopped: Any = None,
    lost: bool = False,
) -> Made:
    outcome = None if lost else outcome_of(curve, stopped=stopped)
    return Made(Trial(1, arm, tick, seed), f"{arm}/{tick}/{seed}", outcome, blocks or {})


def evidence_on(spec: StudySpec, results: Results, folder: Path, **facts: Any) -> Evidence:
    """Evidence of runs that nobody made; those without outcome were given up."""
    names = {trial: repr(trial) for trial in results}
    given: dict[str, Any] = {
        "run_ids": names,
        "errors": {names[trial]: "no luck" for trial, found in results.items() if found is None},
        "blocks": lambda name: {},
        "cost": lambda arm: cost_of(spec.arms[arm].run(0, 0)),
    }
    return Evidence(results=results, folder=folder, **(given | facts))


def assess(spec: LossStudySpec, runs: Sequence[Made], folder: Path, **facts: Any) -> LossFindings:
    """What a comparison of these runs finds."""
    by_id = {run.run_id: run for run in runs}
    assert len(by_id) == len(runs)
    names = {run.trial: run.run_id for run in runs}
    errors = {run.run_id: "no luck" for run in runs if run.outcome is None}
    own = {"run_ids": names, "errors": errors, "blocks": lambda name: by_id[name].blocks}
    results = {run.trial: run.outcome for run in runs}
    return analyse_losses(spec, evidence_on(spec, results, folder, **(own | facts)))


def loss_spec(tables: Tables, num_seeds: int, **changes: Any) -> LossStudySpec:
    comparison = FIXED | {"seeds": num_seeds} | changes.pop("comparison", {})
    return read(tables(comparison=comparison, **changes))


def found_of(findings: LossFindings, name: str, multiple: float = 1.0) -> Compared:
    (one,) = [one for one in findings.compared if (one.name, one.multiple) == (name, multiple)]
    return one


BASE = [[1.0, 2.0, 1.5], [1.1, 2.1, 1.4], [0.9, 2.2, 1.6]]
OWN = [[0.9, 1.8, 1.4], [1.0, 2.0, 1.2], [0.9, 2.0, 1.5]]


def table_runs(arm: str, table: Sequence[Sequence[float]], **more: Any) -> list[Made]:
    return [one_run(arm, seed, {"a": row[:2], "b": row[2:]}, **more) for seed, row in enumerate(table)]


def test_a_difference_is_the_arms_loss_minus_that_of_the_reference(tables: Tables, tmp_path: Path) -> None:
    spec = loss_spec(tables, 3)
    findings = assess(spec, [*table_runs("baseline", BASE), *table_runs("qk_norm", OWN)], tmp_path)
    own, base = found_of(findings, "qk_norm"), found_of(findings, "baseline")
    gaps = [[OWN[s][b] - BASE[s][b] for b in range(3)] for s in range(3)]
    means = [sum(row) / 3 for row in gaps]
    mean = sum(means) / 3
    assert own.difference is not None
    assert own.difference.mean == pytest.approx(mean)
    assert mean < 0, "the arm was made to be better"
    half = T2 * math.sqrt(sum((one - mean) ** 2 for one in means) / 2 / 3)
    assert (own.difference.seed_low, own.difference.seed_high) == pytest.approx((mean - half, mean + half))
    losses = [sum(row) / 3 for row in OWN]
    loss = sum(losses) / 3
    half = T2 * math.sqrt(sum((one - loss) ** 2 for one in losses) / 2 / 3)
    assert (own.loss.mean, own.loss.low, own.loss.high) == pytest.approx((loss, loss - half, loss + half))
    assert own.perplexity == pytest.approx(math.exp(loss))
    assert own.bits_per_byte == pytest.approx(loss / math.log(2) / 2.0)
    assert own.by_text == pytest.approx({"a": sum(sum(row[:2]) for row in OWN) / 6, "b": sum(r[2] for r in OWN) / 3})
    assert set(own.difference_by_text) == {"a"}, "one block has no spread over text"
    assert own.difference_by_text["a"].mean == pytest.approx(sum(sum(row[:2]) for row in gaps) / 6)
    assert own.learning_rate == 2.0**-5
    assert (base.difference, base.p_holm, base.saving, base.difference_by_text) == (None, None, None, {})


def test_parts_are_matched_by_name_whatever_their_order(tables: Tables, tmp_path: Path) -> None:
    spec = loss_spec(tables, 2)
    base = [one_run("baseline", seed, {"a": [1.0, 2.0], "b": [5.0]}) for seed in range(2)]
    own = [one_run("qk_norm", seed, {"b": [5.0], "a": [1.0, 2.0]}) for seed in range(2)]
    found = found_of(assess(spec, [*base, *own], tmp_path), "qk_norm")
    assert found.difference is not None
    assert (found.difference.mean, found.difference.visible) == (0.0, 0.0)


@pytest.mark.parametrize("broken_arm", ["baseline", "qk_norm"])
@pytest.mark.parametrize(
    "fault", [{"stopped": "exploded"}, {"stopped": "non_finite"}, {"blocks": {"a": [1.0, NAN], "b": [1.0]}}]
)
def test_a_pair_with_a_broken_run_is_left_out_and_counted(
    tables: Tables, tmp_path: Path, broken_arm: str, fault: Raw
) -> None:
    spec = loss_spec(tables, 3)
    runs = [*table_runs("baseline", BASE), *table_runs("qk_norm", OWN)]
    place = next(i for i, run in enumerate(runs) if run.trial.arm == broken_arm and run.trial.seed == 1)
    runs[place] = one_run(broken_arm, 1, fault.get("blocks"), stopped=fault.get("stopped"))
    findings = assess(spec, runs, tmp_path)
    kept = np.subtract([OWN[0], OWN[2]], [BASE[0], BASE[2]])
    own = found_of(findings, "qk_norm")
    assert own.difference == paired_difference(kept)
    assert own.difference.mean == pytest.approx(sum(kept.flatten().tolist()) / 6)
    assert found_of(findings, broken_arm).broken == 1
    assert sum(one.broken for one in findings.compared) == 1
    assert sum(one.missing for one in findings.compared) == 0
    everything = {"baseline": BASE, "qk_norm": OWN}
    for name, table in everything.items():
        losses = [sum(row) / 3 for seed, row in enumerate(table) if (name, seed) != (broken_arm, 1)]
        assert found_of(findings, name).loss.mean == pytest.approx(sum(losses) / len(losses))
    assert any(broken_arm in warning and "1 of 3" in warning for warning in findings.warnings)


def test_a_run_without_outcome_is_missing_and_not_broken(tables: Tables, tmp_path: Path) -> None:
    spec = loss_spec(tables, 3)
    runs = [*table_runs("baseline", BASE), *table_runs("qk_norm", OWN)[:2], one_run("qk_norm", 2, None, lost=True)]
    findings = assess(spec, runs, tmp_path)
    own = found_of(findings, "qk_norm")
    assert (own.broken, own.missing) == (0, 1)
    assert own.difference == paired_difference(np.subtract(OWN[:2], BASE[:2]))
    assert findings.evidence.errors == {runs[-1].run_id: "no luck"}
    assert [one["id"] for one in write_report(findings)["excluded"]] == [runs[-1].run_id]


@pytest.mark.parametrize(("above", "broken"), [(0.099, 0), (0.101, 1)])
@pytest.mark.parametrize("margin", [None, 0.5])
def test_a_run_worse_than_a_uniform_guess_is_broken(
    tables: Tables, tmp_path: Path, above: float, broken: int, margin: float | None
) -> None:
    own = {} if margin is None else {"evaluation": {"explosion_margin": margin}}
    spec = loss_spec(tables, 3, **own)
    runs = [*table_runs("baseline", BASE), *table_runs("qk_norm", OWN)[:2]]
    final = math.log(8) + above - 0.1 + (margin or 0.1)
    runs.append(one_run("qk_norm", 2, {"a": OWN[2][:2], "b": OWN[2][2:]}, curve=((0, 2.1), (20, final))))
    found = found_of(assess(spec, runs, tmp_path), "qk_norm")
    assert (found.broken, found.missing) == (broken, 0)
    kept = 3 - broken
    assert found.difference == paired_difference(np.subtract(OWN[:kept], BASE[:kept]))


def test_a_run_that_is_not_made_yet_is_missing(tables: Tables, tmp_path: Path) -> None:
    spec = loss_spec(tables, 3)
    runs = [*table_runs("baseline", BASE), *table_runs("qk_norm", OWN)[:2]]
    findings = assess(spec, runs, tmp_path, complete=False, pending=1)
    own = found_of(findings, "qk_norm")
    assert (own.broken, own.missing) == (0, 1)
    assert own.difference == paired_difference(np.subtract(OWN[:2], BASE[:2]))
    assert len(findings.runs) == 5
    assert findings.evidence.errors == {}
    results = write_report(findings)
    assert (results["study"]["complete"], results["study"]["pending"]) == (False, 1)


@pytest.mark.parametrize("lost", [True, False])
def test_an_arm_of_which_nothing_is_left_has_no_difference(tables: Tables, tmp_path: Path, lost: bool) -> None:
    spec = loss_spec(tables, 3)
    gone = [one_run("qk_norm", seed, None, lost=lost, stopped=None if lost else "exploded") for seed in range(3)]
    findings = assess(spec, [*table_runs("baseline", BASE), *gone], tmp_path)
    own = found_of(findings, "qk_norm")
    assert own.difference is None
    assert (own.broken, own.missing) == ((0, 3) if lost else (3, 0))
    assert math.isnan(own.loss.mean)
    assert write_report(findings)["compared"][1]["difference"] is None


def test_one_block_in_all_leaves_no_difference(tables: Tables, tmp_path: Path) -> None:
    spec = loss_spec(tables, 2)
    runs = [one_run(arm, seed, {"a": [1.0 + seed]}) for arm in ("baseline", "qk_norm") for seed in range(2)]
    assert found_of(assess(spec, runs, tmp_path), "qk_norm").difference is None


def test_a_loss_of_hundreds_of_nats_is_reported(tables: Tables, tmp_path: Path) -> None:
    spec = loss_spec(tables, 2)
    base = [one_run("baseline", seed, {"a": [1.0, 2.0]}) for seed in range(2)]
    own = [one_run("qk_norm", seed, {"a": [900.0, 901.0]}) for seed in range(2)]
    findings = assess(spec, [*base, *own], tmp_path)
    assert found_of(findings, "qk_norm").perplexity == math.inf
    assert write_report(findings)["compared"][1]["perplexity"] is None


def test_one_seed_cannot_tell_and_says_so(tables: Tables, tmp_path: Path) -> None:
    spec = loss_spec(tables, 1, sizes=DEPTHS)
    runs = [one_run(name, 0, {"a": [1.0, 1.1 + 0.1 * i, 1.3]}) for i, name in enumerate(spec.arms)]
    findings = assess(spec, runs, tmp_path)
    own = found_of(findings, "qk_norm, 2 deep")
    assert own.difference is not None
    assert own.difference.text_low <= own.difference.mean <= own.difference.text_high
    assert own.p_holm is None
    results = write_report(findings)
    verdicts = results["study"]["verdicts"]
    assert len(verdicts) == 5, "three differences, their mean, and their trend with depth"
    assert all("cannot tell" in verdict for verdict in verdicts)
    assert not any("nan" in verdict for verdict in verdicts), verdicts


def holm_by_loop(p_values: Mapping[str, float]) -> dict[str, float]:
    adjusted = {}
    for name in p_values:
        bounds = []
        for other, p in p_values.items():
            if p <= p_values[name]:
                bounds.append(min(1.0, p * sum(q >= p for q in p_values.values())))
            assert other == name or p != p_values[name], "no ties here"
        adjusted[name] = max(bounds)
    return adjusted


def test_p_values_are_adjusted_over_the_arms_of_one_size_and_rate(tables: Tables, tmp_path: Path) -> None:
    arms = {"baseline": {}, "qk_norm": {}, "soft_cap": {}, "layer_scale": {}}
    spec = loss_spec(tables, 3, arms=arms, comparison={"multiples": [1.0, 2.0]}, **AT_SIZES)
    chance = np.random.default_rng(0)
    runs = [
        one_run(name, seed, {"a": list(1.0 + 0.05 * i + 0.1 * chance.standard_normal(6))}, tick=Tick(TICK + shift))
        for i, name in enumerate(spec.arms)
        for shift in (0, 16)
        for seed in range(3)
    ]
    findings = assess(spec, runs, tmp_path)
    for size in ("1 deep", "2 deep"):
        for multiple in (1.0, 2.0):
            family = {f"{line}, {size}": found_of(findings, f"{line}, {size}", multiple) for line in arms}
            p_values = {name: one.difference.p_value for name, one in family.items() if one.difference is not None}
            assert len(p_values) == 3
            expected = holm_by_loop(p_values)
            for name, one in family.items():
                assert one.p_holm == (pytest.approx(expected[name]) if name in expected else None)


def test_a_slope_is_that_of_the_differences_over_doublings_of_depth(tables: Tables, tmp_path: Path) -> None:
    spec = loss_spec(tables, 3, sizes=DEPTHS)
    gaps = {0: [0.1, -0.1, -0.2], 1: [0.0, -0.3, -0.2], 2: [9.0, 9.0, 9.0]}
    runs: list[Made] = []
    for place, size in enumerate(DEPTHS):
        for seed, gap in gaps.items():
            runs.append(one_run(f"baseline, {size}", seed, {"a": [1.0, 3.0]}))
            broken = seed == 2 and place == 1  # such a seed has no whole line
            own = one_run(f"qk_norm, {size}", seed, {"a": [1.0 + gap[place], 3.0 + gap[place]]})
            runs.append(one_run(f"qk_norm, {size}", seed, None, stopped="exploded") if broken else own)
    (slope,) = assess(spec, runs, tmp_path).slopes
    per_seed = []
    for seed in (0, 1):
        x, y = [0.0, 1.0, 2.0], gaps[seed]  # log2 of 1, 2 and 4 blocks
        middle_x, middle_y = sum(x) / 3, sum(y) / 3
        across = sum((a - middle_x) * (b - middle_y) for a, b in zip(x, y, strict=True))
        per_seed.append(across / sum((a - middle_x) ** 2 for a in x))
    mean = sum(per_seed) / 2
    half = T1 * abs(per_seed[0] - per_seed[1]) / 2  # the standard error of two values is half their distance
    assert (slope.line, slope.multiple) == ("qk_norm", 1.0)
    assert (slope.mean.mean, slope.mean.low, slope.mean.high) == pytest.approx((mean, mean - half, mean + half))


@pytest.mark.parametrize("sizes", [{}, {key: {"model": {"width": w}} for key, w in (("a", 16), ("b", 32))}])
def test_there_is_no_slope_over_one_depth(tables: Tables, tmp_path: Path, sizes: Raw) -> None:
    spec = loss_spec(tables, 2, sizes=sizes)
    runs = [one_run(name, seed, {"a": [1.0, 2.0 + seed]}) for name in spec.arms for seed in range(2)]
    assert assess(spec, runs, tmp_path).slopes == []


@pytest.mark.parametrize(
    ("curve", "loss", "step"),
    [
        ([(0, 3.0), (10, 2.0), (20, 1.0)], 1.5, 15.0),
        ([(0, 3.0), (10, 2.0), (20, 1.0)], 2.0, 10.0),
        ([(0, 3.0), (10, 2.0), (20, 1.0)], 1.0, 20.0),
        ([(0, 3.0), (10, 2.0), (20, 1.0)], 0.99, None),
        ([(0, 3.0), (10, 2.0)], 3.5, 0.0),
        ([(0, 3.0), (10, 2.0)], 3.0, 0.0),
        ([(0, 3.0), (10, NAN), (20, 1.0)], 2.0, 10.0),  # a straight line from the last finite one
        ([(0, 3.0), (10, math.inf), (20, 1.0)], 2.0, 10.0),
        ([(0, NAN), (10, 1.0)], 2.0, 10.0),
        ([(0, 3.0), (10, NAN), (20, NAN)], 2.0, None),
        ([(0, 3.0), (10, 1.0), (20, 2.5), (30, 0.5)], 1.5, 7.5),  # the first time counts
        ([(0, 2.0), (10, 3.0), (20, 1.0)], 1.5, 17.5),
        ([], 2.0, None),
        ([(0, 3.0), (10, 2.0)], NAN, None),
    ],
)
def test_the_first_step_at_a_loss_lies_on_the_straight_line_between_evaluations(
    curve: list[tuple[int, float]], loss: float, step: float | None
) -> None:
    assert first_step_at(curve, loss) == (None if step is None else pytest.approx(step))


def test_savings_are_shares_of_the_references_tokens_and_compute(tables: Tables, tmp_path: Path) -> None:
    spec = loss_spec(tables, 3, arms={"baseline": {}, "gated_attention": {}})
    base = [one_run("baseline", seed, {"a": [1.0, 1.5]}) for seed in range(3)]  # ends at 1.0 after 20 steps
    curves = [((0, 3.0), (10, 1.0), (20, 0.8)), ((0, 3.0), (10, 2.0), (20, 0.0)), ((0, 3.0), (10, 2.0), (20, 1.1))]
    own = [one_run("gated_attention", seed, {"a": [1.0, 1.5]}, curve=curve) for seed, curve in enumerate(curves)]
    saving = found_of(assess(spec, [*base, *own], tmp_path), "gated_attention").saving
    assert saving is not None
    assert (saving.reached, saving.seeds) == (2, 3)
    saved = [1 - 10 / 20, 1 - 15 / 20]
    assert saving.tokens.mean == pytest.approx(sum(saved) / 2)
    assert saving.tokens.high - saving.tokens.mean == pytest.approx(T1 * (saved[0] - saved[1]) / 2)
    # Width 16, one block, context 8, 8 ids: a gate has 16 x 16 more; all linears 12 x 16 x 16, head 16 x 8.
    plain = 2 * 12 * 16 * 16 + 4 * 8 * 16 + 2 * 16 * 8
    dearer = (plain + 2 * 16 * 16) / plain
    assert saving.compute.mean == pytest.approx(sum(1 - (1 - one) * dearer for one in saved) / 2)


def test_a_loss_that_is_never_reached_saves_nothing(tables: Tables, tmp_path: Path) -> None:
    spec = loss_spec(tables, 2)
    base = [one_run("baseline", seed, {"a": [1.0, 1.5]}) for seed in range(2)]
    curve = ((0, 3.0), (10, 2.0), (20, 1.2))
    own = [one_run("qk_norm", seed, {"a": [1.2, 1.7]}, curve=curve) for seed in range(2)]
    findings = assess(spec, [*base, *own], tmp_path)
    saving = found_of(findings, "qk_norm").saving
    assert saving is not None
    assert (saving.reached, saving.seeds) == (0, 2)
    assert math.isnan(saving.tokens.mean)
    assert write_report(findings)["compared"][1]["saving"]["tokens"]["mean"] is None


def test_an_arm_with_larger_batches_is_charged_for_its_tokens(tables: Tables, tmp_path: Path) -> None:
    arms = {"baseline": {}, "large": {"method": "baseline", "training": {"batch_size": 8}}}
    spec = loss_spec(tables, 2, arms=arms)  # the reference has batches of 4
    base = [one_run("baseline", seed, {"a": [1.0, 1.5]}) for seed in range(2)]
    curve = ((0, 3.0), (10, 1.0), (20, 0.8))
    own = [one_run("large", seed, {"a": [1.0, 1.5]}, curve=curve) for seed in range(2)]
    saving = found_of(assess(spec, [*base, *own], tmp_path), "large").saving
    assert saving is not None
    # 10 steps of 8 sequences are as many tokens as 20 steps of 4.
    assert (saving.tokens.mean, saving.compute.mean) == pytest.approx((0.0, 0.0))


def test_arms_that_would_be_judged_on_other_blocks_are_refused_before_they_train(
    tables: Tables, tmp_path: Path
) -> None:
    arms = {"baseline": {}, "more": {"method": "qk_norm", "evaluation": {"final_blocks": 7}}}
    with pytest.raises(ConfigError, match="blocks"):
        Study.of(loss_spec(tables, 2, arms=arms)).run(tmp_path / "study", workers=0)


def test_text_too_short_for_a_block_is_refused_before_it_is_trained_on(tables: Tables, tmp_path: Path) -> None:
    spec = loss_spec(tables, 2, evaluation={"block_bytes": 1_000_000})
    with pytest.raises(ConfigError, match="block"):
        Study.of(spec).run(tmp_path / "study", workers=0)


# --- limits by size ---------------------------------------------------------------------------------------------------


def limits_at(edges: Callable[[Trial], float]) -> Callable[[Trial], Outcome]:
    """Runs that explode above an edge in log2 LR and learn below it, best two octaves under it."""

    def outcome(trial: Trial) -> Outcome:
        beyond = trial.tick / 16 - edges(trial)
        start, steps = math.log(8), 20
        if beyond > 0:
            return outcome_of([(0, start), (steps, start + 1.0)], stopped="exploded")
        return outcome_of([(0, start), (10, 1.0), (steps, 0.5 + 0.01 * abs(beyond + 2) + 0.001 * trial.seed % 0.01)])

    return outcome


def sized_spec(tables: Tables, sizes: Raw, **changes: Any) -> SizedStudySpec:
    rates = {"low": "2^-9", "high": "2^1", "octaves_apart": 2}
    search = {"most_runs": 20, "probes_per_round": 3, "enough": 0.3, "extensions": 0}
    return read(tables("max_lr_by_size", sizes=sizes, **({"learning_rates": rates, "search": search} | changes)))


def place_edge(spec: SizedStudySpec, edge: Callable[[int, int], float]) -> Callable[[Trial], float]:
    def of(trial: Trial) -> float:
        model = spec.arms[trial.arm].protocol.model
        return edge(model.width, model.num_layers) + (1.0 if spec.places[trial.arm].line != "baseline" else 0.0)

    return of


def sized_findings(spec: SizedStudySpec, edge: Callable[[int, int], float], folder: Path) -> SizedFindings:
    _, results = driven(sized_rounds(spec), limits_at(place_edge(spec, edge)))
    return analyse_sizes(spec, evidence_on(spec, results, folder))


def test_the_rounds_of_all_sizes_are_those_of_each_by_itself(tables: Tables) -> None:
    # One size is answered sooner: its edge lies outside the tested range.
    spec = sized_spec(tables, DEPTHS)
    outcome = limits_at(place_edge(spec, lambda width, depth: -2.0 - 2 * math.log2(depth) + 20 * (depth == 2)))
    together, results = driven(sized_rounds(spec), outcome)
    alone = {size: driven(search_rounds(study), outcome)[0] for size, study in spec.studies.items()}
    assert len({len(batches) for batches in alone.values()}) > 1, "all sizes took as many rounds"
    for number, batch in enumerate(together):
        own = {size: [trial for trial in batch if spec.places[trial.arm].size == size] for size in DEPTHS}
        assert own == {size: list(b[number]) if number < len(b) else [] for size, b in alone.items()}
    assert sum(map(len, together)) == sum(len(batch) for batches in alone.values() for batch in batches)
    assert len(results) <= spec.most_runs()
    assert len(together[0]) + len(together[1]) == spec.first_runs()


def test_a_size_that_never_learned_does_not_hold_up_the_others(tables: Tables) -> None:
    spec = sized_spec(tables, DEPTHS)

    def outcome(trial: Trial) -> Outcome | None:
        return None if "2 deep" in trial.arm else limits_at(lambda trial: -3.0)(trial)

    together, _ = driven(sized_rounds(spec), outcome)
    rounds_of = {size: {t.round for b in together for t in b if size in t.arm} for size in DEPTHS}
    assert max(rounds_of["2 deep"]) == 1
    assert min(max(rounds_of["1 deep"]), max(rounds_of["4 deep"])) >= 2


def test_the_findings_of_a_size_are_those_of_that_size_alone(tables: Tables, tmp_path: Path) -> None:
    spec = sized_spec(tables, DEPTHS)
    outcome = limits_at(place_edge(spec, lambda width, depth: -2.0 - math.log2(depth)))
    _, results = driven(sized_rounds(spec), outcome)
    together = analyse_sizes(spec, evidence_on(spec, results, tmp_path))
    assert list(together.by_size) == list(DEPTHS)
    for size, study in spec.studies.items():
        _, own = driven(search_rounds(study), outcome)
        alone = analyse_limits(study, evidence_on(study, own, tmp_path))
        both = [without_provenance(report_of(one).results) for one in (together.by_size[size], alone)]
        assert both[0] == both[1]
    assert len(together.runs) == len(results)


def without_provenance(results: Raw) -> str:
    def bare(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: bare(item) for key, item in value.items() if key != "provenance"}
        return [bare(item) for item in value] if isinstance(value, list) else value

    return json_text(bare(results))


WIDTHS = {f"width {w}": {"model": {"width": w}} for w in (8, 16, 32, 64, 128)}


def test_points_are_at_the_parameters_of_the_blocks(tables: Tables, tmp_path: Path) -> None:
    sizes = {"small": {"model": {"width": 16}}, "wide": {"model": {"width": 64, "tied": True}}}
    sizes |= {"deep": {"model": {"num_layers": 3, "positions": "rotary"}}}
    spec = sized_spec(tables, sizes, arms={"baseline": {}})
    trend = sized_findings(spec, lambda width, depth: -3.0, tmp_path).trends[0]
    for point in trend.points:
        model = GPT(spec.arms[point.arm].protocol.model)
        assert (point.width, point.num_layers) == (model.config.width, model.config.num_layers)
        assert point.parameters == sum(parameter.numel() for parameter in model.blocks.parameters()), point.size


def test_a_limit_that_falls_with_width_gives_that_trend(tables: Tables, tmp_path: Path) -> None:
    spec = sized_spec(tables, WIDTHS)
    findings = sized_findings(spec, lambda width, depth: -1.5 - 1.2 * math.log2(width / 8), tmp_path)
    largest = sum(p.numel() for p in GPT(spec.arms["baseline, width 128"].protocol.model).parameters())
    assert [trend.measure for trend in findings.trends] == ["quality"] * 2 + ["collapse"] * 2 + ["lr_sensitivity"] * 2
    for trend, above in zip(findings.trends[:4], (-1.5, -0.5) * 2, strict=True):
        assert [point.used for point in trend.points] == [True] * 5
        for point in trend.points:
            assert point.limit.estimate is not None
            assert abs(math.log2(point.limit.estimate) - (above - 1.2 * math.log2(point.width / 8))) < 0.4
        assert trend.per_doubling is not None
        low, middle, high = trend.per_doubling
        # Parameters of blocks grow by a little less than 4 for each doubling of width.
        assert low < -0.6 < high
        assert middle == pytest.approx(-0.62, abs=0.08)
        assert trend.per_width is None, "width alone cannot be told from depth at one depth"
        assert trend.per_depth is None
        assert trend.predicted is not None
        assert 8 * largest < trend.predicted_parameters < 10 * largest
        expected = above - 1.2 * 4 - 0.6 * math.log2(10)
        assert math.log2(trend.predicted[0]) < expected < math.log2(trend.predicted[2])
        assert math.log2(trend.predicted[1]) == pytest.approx(expected, abs=0.5)


def test_width_and_depth_are_told_apart(tables: Tables, tmp_path: Path) -> None:
    sizes = {
        f"{w} x {n}": {"model": {"width": w, "num_layers": n}} for w in (16, 32, 64) for n in (1, 2, 4) if w + n != 68
    }
    spec = sized_spec(tables, sizes, arms={"baseline": {}})
    edge = lambda width, depth: -1.0 - 1.0 * math.log2(width / 16) + 0.5 * math.log2(depth)  # noqa: E731
    trend = sized_findings(spec, edge, tmp_path).trends[0]
    assert trend.per_width is not None
    assert trend.per_depth is not None
    assert trend.per_width[0] < -1.0 < trend.per_width[2] < 0
    assert 0 < trend.per_depth[0] < 0.5 < trend.per_depth[2]


def test_a_limit_that_is_but_a_bound_stays_out_of_the_trend(tables: Tables, tmp_path: Path) -> None:
    spec = sized_spec(tables, WIDTHS)
    findings = sized_findings(spec, lambda w, depth: 20.0 if w == 32 else -1.5 - math.log2(w / 8), tmp_path)
    for trend in findings.trends[:4]:
        assert [point.used for point in trend.points] == [True, True, False, True, True]
        assert trend.points[2].limit.bound == "above"
        assert trend.per_doubling is not None
        assert trend.per_doubling[1] == pytest.approx(-0.52, abs=0.1)


@pytest.mark.parametrize("limited", [0, 1, 2])
def test_too_few_limits_make_no_trend(tables: Tables, tmp_path: Path, limited: int) -> None:
    spec = sized_spec(tables, DEPTHS, arms={"baseline": {}})
    depths = (1, 2, 4)[:limited]
    findings = sized_findings(spec, lambda width, depth: -3.0 if depth in depths else 20.0, tmp_path)
    trend = findings.trends[0]
    assert sum(point.used for point in trend.points) == limited
    assert (trend.per_doubling, trend.per_width, trend.per_depth, trend.predicted) == (None,) * 4
    results = write_report(findings)
    assert f"only {limited} of 3 sizes" in results["study"]["verdicts"][0]


# --- from end to end --------------------------------------------------------------------------------------------------

ARMED = ("=cmd()", "+deep")
LOSSES: Raw = {
    "arms": {"baseline": {}, "=cmd()": {"method": "qk_norm"}},
    "sizes": {"1 deep": {"model": {"num_layers": 1}}, "+deep": {"model": {"num_layers": 2}}},
    "comparison": {"seeds": 2, "at_size": "1 deep"},
    "training": {"steps": 12},
}
LIMITS: Raw = {
    "arms": {"baseline": {}, "=cmd()": {"method": "qk_norm"}},
    "sizes": {"1 deep": {"model": {"num_layers": 1}}, "+deep": {"model": {"num_layers": 2}}},
    "learning_rates": {"low": "2^-6", "high": "2^3", "octaves_apart": 3},
    "search": {"replicates": 0, "most_runs": 6},
    "training": {"steps": 15},
}
WHOLE = {"loss_at_lr": LOSSES, "max_lr_by_size": LIMITS}
both = pytest.mark.parametrize("kind", list(WHOLE))


class Trained:
    """A task that notes what it trains."""

    def __init__(self) -> None:
        self.names: list[str] = []

    def __call__(self, job: Job, progress: Progress) -> None:
        train_job(job, progress)
        self.names.append(job.name)


class Impatient(Silence):
    """Presses Ctrl-C after some runs."""

    def __init__(self, runs: int) -> None:
        self.left = runs

    def finished(self, trial: Trial, outcome: Outcome | None, message: str) -> None:
        self.left -= 1
        if self.left == 0:
            raise KeyboardInterrupt


def strict(file: Path) -> Raw:
    def refuse(name: str) -> None:
        raise AssertionError(f"{name} in {file.name}")

    return json.loads(file.read_text(encoding="utf-8"), parse_constant=refuse)


@pytest.fixture(scope="module")
def carried_out(tables: Tables, tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[StudySpec, Findings]]:
    """Both tiny studies, each in a folder with its report."""
    done: dict[str, tuple[StudySpec, Findings]] = {}
    for kind, changes in WHOLE.items():
        study = Study.of(read(tables(kind, **changes)))
        findings = study.run(tmp_path_factory.mktemp("whole") / kind, workers=0)
        write_report(findings)
        done[kind] = (study.spec, findings)
    return done


Whole = dict[str, tuple[StudySpec, Findings]]


@both
def test_a_finished_study_has_a_report_without_nan(carried_out: Whole, kind: str) -> None:
    spec, findings = carried_out[kind]
    results = strict(findings.evidence.folder / "results.json")
    assert results["kind"] == kind
    assert results["study"]["verdicts"]
    assert (findings.evidence.folder / "report.html").stat().st_size > 1_000_000
    assert len(findings.runs) == len({run.run_id for run in findings.runs})
    assert {path.name for path in (findings.evidence.folder / "runs").iterdir()} == {
        run.run_id for run in findings.runs
    }
    assert len(findings.runs) <= spec.most_runs()
    assert not findings.evidence.errors
    assert findings.evidence.complete
    assert findings.evidence.pending == 0


@both
def test_what_may_differ_between_equal_studies_stands_in_one_place(carried_out: Whole, kind: str) -> None:
    _, findings = carried_out[kind]
    text = (findings.evidence.folder / "results.json").read_text(encoding="utf-8")
    assert text.count('"provenance"') == 1
    assert text.count('"training_seconds"') == 1


def test_the_losses_reported_are_those_that_the_runs_kept(carried_out: Whole) -> None:
    spec, findings = carried_out["loss_at_lr"]
    results = strict(findings.evidence.folder / "results.json")
    assert len(results["runs"]) == 3 + 2 * 2 * 2 == spec.most_runs()
    by_arm: dict[str, dict[int, float]] = {}
    for run in results["runs"]:
        if run["round"] == 1:
            texts = strict(findings.evidence.folder / "runs" / run["id"] / "texts.json")
            losses = [loss for some in texts.values() for loss in some]
            assert len(losses) == 4
            by_arm.setdefault(run["arm"], {})[run["seed"]] = sum(losses) / 4
    for one in results["compared"]:
        own = by_arm[one["name"]]
        assert one["loss"]["mean"] == pytest.approx((own[0] + own[1]) / 2)
        if one["place"]["line"] != "baseline":
            other = by_arm[f"baseline, {one['place']['size']}"]
            gap = (own[0] - other[0] + own[1] - other[1]) / 2
            assert one["difference"]["mean"] == pytest.approx(gap, abs=1e-12)
            assert one["difference"]["mean"] != 0, "the method did nothing"


@both
def test_no_cell_of_the_csv_is_a_formula(carried_out: Whole, kind: str) -> None:
    _, findings = carried_out[kind]
    text = (findings.evidence.folder / "results.csv").read_text(encoding="utf-8")
    rows = list(csv.reader(io.StringIO(text, newline="")))
    assert len(rows) == 1 + (12 if kind == "max_lr_by_size" else 4)
    assert len({len(row) for row in rows}) == 1
    assert {"'=cmd()", "'+deep"} <= {cell for row in rows for cell in row}
    for row in rows:
        for cell in row:
            starts = cell[:1] in ("=", "+", "@", "\t", "\r", "-")
            assert not starts or float(cell) < 0, f"armed: {cell!r}"


@both
def test_an_interrupted_study_goes_on_to_the_same_results_and_trains_nothing_twice(
    carried_out: Whole, kind: str, tmp_path: Path
) -> None:
    spec, undisturbed = carried_out[kind]
    before, after = Trained(), Trained()
    with pytest.raises(KeyboardInterrupt):
        Study.of(spec).run(tmp_path / "study", executor=InlineExecutor(before), display=Impatient(3))
    assert len(before.names) == 3
    findings = Study.of(spec).run(tmp_path / "study", executor=InlineExecutor(after))
    assert Counter(before.names + after.names) == Counter(run.run_id for run in undisturbed.runs)
    assert without_provenance(write_report(findings)) == without_provenance(
        strict(undisturbed.evidence.folder / "results.json")
    )
    again = Trained()
    Study.of(spec).run(tmp_path / "study", executor=InlineExecutor(again))
    assert again.names == []


def test_more_seeds_and_rates_reuse_every_run(carried_out: Whole, tables: Tables, tmp_path: Path) -> None:
    _, undisturbed = carried_out["loss_at_lr"]
    small = LOSSES | {"comparison": {"seeds": 1, "at_size": "1 deep"}}
    Study.of(read(tables(**small))).run(tmp_path / "study", workers=0)
    first = {path.name for path in (tmp_path / "study" / "runs").iterdir()}
    trained = Trained()
    findings = Study.of(read(tables(**LOSSES))).run(tmp_path / "study", executor=InlineExecutor(trained))
    assert first | set(trained.names) == {run.run_id for run in undisturbed.runs}
    assert len(trained.names) == 4
    assert without_provenance(write_report(findings)) == without_provenance(
        strict(undisturbed.evidence.folder / "results.json")
    )


def test_another_kind_of_study_is_refused_by_name(
    carried_out: Whole, tables: Tables, contents: Callable[[Path], Any]
) -> None:
    _, losses = carried_out["loss_at_lr"]
    before = contents(losses.evidence.folder)
    with pytest.raises(ConfigError, match=r"kind loss_at_lr, this is max_lr_by_size"):
        Study.of(read(tables("max_lr_by_size", **LIMITS))).run(losses.evidence.folder, workers=0)
    after = contents(losses.evidence.folder)
    assert {k: v for k, v in after.items() if k != ".lock"} == {k: v for k, v in before.items() if k != ".lock"}


def test_a_comparison_whose_arm_was_lost_ends_in_a_report(tables: Tables, tmp_path: Path) -> None:
    def lose(job: Job, progress: Progress) -> None:
        if job.spec.method:
            raise RuntimeError("no luck")
        train_job(job, progress)

    study = Study.of(loss_spec(tables, 2, training={"steps": 5}))
    findings = study.run(tmp_path / "study", executor=InlineExecutor(lose))
    assert {run.trial.arm for run in findings.runs if run.outcome is None} == {"qk_norm"}
    results = write_report(findings)
    assert len(results["excluded"]) == 2
    assert all("no luck" in one["reason"] for one in results["excluded"])


@pytest.fixture
def trimtab(capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """The command line in this process, in an empty folder: code, output, errors."""
    monkeypatch.chdir(tmp_path)
    handler = signal.getsignal(signal.SIGTERM)

    def call(*arguments: str | Path) -> tuple[int, str, str]:
        capsys.readouterr()
        code = cli.main([str(argument) for argument in arguments])
        return code, *capsys.readouterr()

    yield call
    signal.signal(signal.SIGTERM, handler)


@both
def test_the_report_command_says_the_same_again(carried_out: Whole, kind: str, trimtab: Any) -> None:
    _, findings = carried_out[kind]
    files = [findings.evidence.folder / name for name in ("results.json", "results.csv")]
    before = [file.read_text() for file in files]
    for file in files:
        file.unlink()
    code, out, err = trimtab("report", findings.evidence.folder)
    assert (code, err) == (0, "")
    assert [file.read_text() for file in files] == before
    for verdict in strict(files[0])["study"]["verdicts"]:
        assert verdict.split(":")[0] in out


@both
def test_a_study_file_can_be_planned(tables: Tables, kind: str, trimtab: Any, tmp_path: Path) -> None:
    raw = tables(kind, **WHOLE[kind])
    (tmp_path / "study.toml").write_text(tomli_w.dumps(raw), encoding="utf-8")
    code, out, err = trimtab("study", tmp_path / "study.toml", "--plan", "--workers", "2")
    assert (code, err) == (0, "")
    spec = read(raw)
    assert f"{spec.first_runs()} in the first phase, at most {spec.most_runs()} in all" in out
    assert [path.name for path in tmp_path.iterdir()] == ["study.toml"]


@pytest.mark.parametrize("preset", ["depth", "depth-demo", "table-4", "scale"])
def test_the_presets_are_read_and_can_be_read_again(preset: str) -> None:
    raw, _ = study_tables(cli.make_parser().parse_args(["study", "--preset", preset]))
    spec = read(raw)
    assert spec.kind in WHOLE
    again = read(tomllib.loads(dump_toml(spec.table())))
    assert again.table() == spec.table()
    assert {name: arm.run(0, 0).table() for name, arm in again.arms.items()} == {
        name: arm.run(0, 0).table() for name, arm in spec.arms.items()
    }


def test_limits_of_models_of_ones_own_are_compared_by_size(tables: Tables, user_code: Any, tmp_path: Path) -> None:
    raw = tables("max_lr_by_size", **(LIMITS | {"arms": {"baseline": {}}, "sizes": WIDTHS}))
    spec = read_any_study(raw, "study.toml", UserCode(model=user_code.build_bigram))
    findings = sized_findings(spec, lambda width, depth: -3.0, tmp_path)
    for point in findings.trends[0].points:
        assert point.parameters > 0, "such a model knows nothing of a width, and has parameters all the same"
    write_report(findings)


def test_every_kind_knows_its_rounds(tables: Tables) -> None:
    assert set(KINDS.all()) == {"max_lr", "seeds", "signals", *WHOLE}
    for kind, changes in WHOLE.items():
        spec = read(tables(kind, **changes))
        first = next(KINDS.get(kind).rounds(spec))
        assert len(first) == spec.first_runs()


def test_results_of_no_run_at_all_are_no_error(tables: Tables, tmp_path: Path) -> None:
    for kind, changes in WHOLE.items():
        spec = read(tables(kind, **changes))
        _, results = driven(KINDS.get(kind).rounds(spec), lambda trial: None)
        findings = KINDS.get(kind).analyse(spec, evidence_on(spec, dict.fromkeys(results), tmp_path))
        report = write_report(findings)
        assert report["kind"] == kind
        assert len(report["excluded"]) == len(findings.runs) == len(results)


@both
@pytest.mark.parametrize("share", [0.0, 0.1, 0.4, 0.7, 0.95])
def test_a_study_that_is_not_finished_has_a_report(tables: Tables, tmp_path: Path, kind: str, share: float) -> None:
    spec = read(tables(kind, **WHOLE[kind]))
    _, results = driven(KINDS.get(kind).rounds(spec), limits_at(lambda trial: -2.0))
    made = dict(list(results.items())[: int(share * len(results))])
    pending = len(results) - len(made)
    blocks = {"held_out": [1.0, 1.1, 1.2, 1.3]}
    evidence = evidence_on(spec, made, tmp_path, blocks=lambda name: blocks, complete=False, pending=pending)
    report = write_report(KINDS.get(kind).analyse(spec, evidence))
    assert (report["study"]["complete"], report["study"]["pending"]) == (False, pending)
    assert report["excluded"] == []
    page = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert "this study is unfinished" in page


def test_what_an_arm_costs_is_asked_of_the_evidence(tables: Tables, tmp_path: Path) -> None:
    for kind, changes in WHOLE.items():
        spec = read(tables(kind, **changes))
        _, results = driven(KINDS.get(kind).rounds(spec), limits_at(lambda trial: -2.0))
        asked: list[str] = []

        def cost(arm: str, spec: Any = spec, asked: list[str] = asked) -> Any:
            asked.append(arm)
            return cost_of(spec.arms[arm].run(0, 0))

        KINDS.get(kind).analyse(spec, evidence_on(spec, results, tmp_path, cost=cost))
        assert set(asked) == set(spec.arms)
