"""The contract of kinds of study: it reads what it writes, its rounds follow from results, it is analysed at any time.

Nothing is trained: outcomes are simulated.
"""

from __future__ import annotations

import random
import tomllib
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any, ClassVar

from trimtab.config import ConfigError, Raw, dump_toml, merge, to_plain
from trimtab.report.output import json_text
from trimtab.report.report import Report, report_of
from trimtab.report.schema import schema
from trimtab.run.folder import Outcome
from trimtab.section import Rows
from trimtab.study.kind import KINDS, AnyKind, read_any_study
from trimtab.study.specification import StudySpec, settings_of
from trimtab.study.trial import Results, Trial
from trimtab.testing import simulated_study
from trimtab.testing.simulated_study import batches, evidence_on

WHERE = "the tables of the contract"


class KindContract(ABC):
    """Subclass, name the kind, fill in ``tables``, and let pytest collect the tests.

    Attributes:
        slug: of the kind.
    """

    slug: ClassVar[str]

    @abstractmethod
    def tables(self) -> Raw:
        """The tables of a tiny study of the kind, as they stand in its file; the key ``kind`` may be left out."""

    def outcome_of(self, spec: StudySpec, trial: Trial) -> Outcome | None:
        """The simulated outcome of a trial; override it where the kind needs others."""
        return simulated_study.outcome_of(spec, trial)

    def furnish(self, spec: StudySpec, results: Results, folder: Path) -> None:
        """Put into the study folder what an analysis reads from it beside outcomes, such as arrays kept of runs."""
        return

    def test_it_reads_what_it_writes(self) -> None:
        """The study is the same after a round trip through TOML."""
        text = dump_toml(self.spec.table())
        again = read_any_study(tomllib.loads(text), WHERE)
        assert again == self.spec, f"{self.slug}: another study is read from\n{text}"
        assert dump_toml(again.table()) == text, f"{self.slug}: the tables differ after a round trip"

    def test_what_is_fixed_leaves_out_free_settings_and_places(self) -> None:
        """A folder of results takes a study of more seeds, another name, or data that were moved."""
        fixed = self.spec.fixed()
        changes = [{"name": "another name"}, *free_changes(self.spec), *moved_data(self.spec)]
        for change in changes:
            try:
                changed = read_any_study(merge(self.spec.table(), change), WHERE)
            except ConfigError:
                continue  # not every number may be one more
            assert changed.fixed() == fixed, f"{self.slug}: {change} changes what is fixed"
        steps = {"training": {"steps": self.spec.protocol.training.steps + 1}}
        other = read_any_study(merge(self.spec.table(), steps), WHERE).fixed()
        assert other != fixed, f"{self.slug}: {steps} does not change what is fixed"

    def test_rounds_ask_for_each_trial_once_and_for_no_more_than_planned(self) -> None:
        """Every trial is of an arm of the study; the plan's numbers hold."""
        made, _ = self.rounds()
        asked = Counter(trial for batch in made for trial in batch)
        twice = [trial for trial, number in asked.items() if number > 1]
        assert not twice, f"{self.slug}: asks more than once for {twice[:3]}"
        assert all(made), f"{self.slug}: a round asks for nothing; end it instead"
        strange = {trial.arm for trial in asked} - set(self.spec.arms)
        assert not strange, f"{self.slug}: asks for runs of {sorted(strange)}, which are no arms"
        most, first = self.spec.most_runs(), self.spec.first_runs()
        assert len(asked) <= most, f"{self.slug}: asks for {len(asked)} runs, and most_runs() is {most}"
        if first:  # without a first phase there are none
            number = len(made[0])
            assert number <= first, f"{self.slug}: asks for {number} runs at first, and first_runs() is {first}"
        for batch in made:
            numbers = {trial.round for trial in batch}
            assert len(numbers) == 1, f"{self.slug}: one round holds trials of the rounds {sorted(numbers)}"
            assert self.kind.round_name(batch[0].round).strip(), f"{self.slug}: round {batch[0].round} has no name"

    def test_rounds_depend_on_results_alone(self) -> None:
        """A study that goes on asks for the same trials, in whatever order results came in."""
        expected, _ = self.rounds()
        again, _ = self.rounds()
        assert again == expected, f"{self.slug}: asks for other trials when it is asked again"
        for seed in range(3):
            shuffled, _ = batches(self.kind, self.spec, self.outcome_of, lambda results, s=seed: _shuffled(results, s))
            assert shuffled == expected, f"{self.slug}: asks for other trials when results come in another order"

    def test_rounds_end_without_any_outcome(self) -> None:
        """Where the machine failed every run, and where every run broke."""
        most = self.spec.most_runs()
        for of in (self.none_of, self.nan_of):
            made, _ = batches(self.kind, self.spec, of)
            number = sum(len(batch) for batch in made)
            assert number <= most, f"{self.slug}: asks for {number} runs, and most_runs() is {most}"

    def test_every_stage_has_a_report_that_follows_the_schema(self, tmp_path: Path) -> None:
        """Before the first run, after each round, and with outcomes that are missing or not finite."""
        try:
            from jsonschema import Draft202012Validator
        except ImportError as error:
            raise AssertionError("this test requires the package jsonschema: pip install jsonschema") from error
        validator = Draft202012Validator(schema(self.slug))
        for stage, (report, _) in self.stages(tmp_path).items():
            json_text(report.results)  # raises for a number that JSON has not
            wrong = next(iter(validator.iter_errors(report.results)), None)
            assert wrong is None, f"{self.slug}, {stage}: results.json at {wrong.json_path}: {wrong.message[:300]}"

    def test_every_stage_can_be_shown(self, tmp_path: Path) -> None:
        """Charts have slugs of their own, conclusions are text, and tables have as many cells as columns."""
        for stage, (report, _) in self.stages(tmp_path).items():
            where = f"{self.slug}, {stage}"
            slugs = Counter(chart.slug for section in report.sections for chart in section.charts)
            twice = [slug for slug, number in slugs.items() if number > 1]
            assert not twice, f"{where}: several charts have the slug {twice[0]!r}"
            texts = [report.lead, *report.results["study"]["verdicts"], *report.results["study"]["warnings"]]
            texts += [section.title for section in report.sections]
            texts += [line for section in report.sections for line in section.lines]
            assert all(isinstance(text, str) and text.strip() for text in texts), f"{where}: a line is empty: {texts}"
            tables = [(section.title, section.table) for section in report.sections if section.table is not None]
            for title, table in tables:
                uneven = [row for row in table.rows if len(row) != len(table.columns)]
                assert not uneven, f"{where}: in '{title}', {uneven[0]} has not the columns {table.columns}"

    def test_rows_of_the_csv_have_as_many_cells_as_columns(self, tmp_path: Path) -> None:
        """At every stage; no two columns have one title."""
        for stage, (_, rows) in self.stages(tmp_path).items():
            assert len(set(rows.columns)) == len(rows.columns), f"{self.slug}, {stage}: columns {rows.columns}"
            uneven = [row for row in rows.rows if len(row) != len(rows.columns)]
            assert not uneven, f"{self.slug}, {stage}: {uneven[0]} has not the columns {rows.columns}"

    def test_a_report_does_not_depend_on_the_order_of_results(self, tmp_path: Path) -> None:
        """Workers finish in any order."""
        results = self.rounds()[1]
        expected, _ = self.report(results, tmp_path)
        for seed in range(2):
            shuffled, _ = self.report(_shuffled(results, seed), tmp_path)
            for part in ("results", "csv", "sections"):
                same = _text(getattr(shuffled, part)) == _text(getattr(expected, part))
                assert same, f"{self.slug}: {part} differ where results come in another order"

    @property
    def kind(self) -> AnyKind:
        """The kind under test."""
        return KINDS.get(self.slug)

    @property
    def spec(self) -> StudySpec:
        """The study under test."""
        return read_any_study({**self.tables(), "kind": self.slug}, WHERE)

    def none_of(self, spec: StudySpec, trial: Trial) -> Outcome | None:
        """No outcome, whatever the trial."""
        return None

    def nan_of(self, spec: StudySpec, trial: Trial) -> Outcome:
        """A run that broke."""
        return simulated_study.outcome(spec, trial, float("nan"), stopped=True)

    def rounds(self) -> tuple[list[Sequence[Trial]], Results]:
        """The trials of each round, and all results."""
        return batches(self.kind, self.spec, self.outcome_of)

    def results_by_stage(self) -> Mapping[str, Results]:
        """What is known at each stage of a study, by a name for messages."""
        made, results = self.rounds()
        stages: dict[str, Results] = {"before the first run": {}}
        known: dict[Trial, Outcome | None] = {}
        for number, batch in enumerate(made):
            half = batch[: len(batch) // 2]
            stages[f"in round {number}"] = known | {trial: results[trial] for trial in half}
            known |= {trial: results[trial] for trial in batch}
            stages[f"after round {number}"] = dict(known)
        first = made[0][0]
        stages["with a missing outcome"] = {**results, first: None}
        stages["with a missing arm"] = {t: None if t.arm == first.arm else found for t, found in results.items()}
        stages["with every outcome missing"] = batches(self.kind, self.spec, self.none_of)[1]
        stages["with a loss that is not finite"] = {**results, first: self.nan_of(self.spec, first)}
        stages["with every loss not finite"] = batches(self.kind, self.spec, self.nan_of)[1]
        return stages

    def stages(self, folder: Path) -> Mapping[str, tuple[Report, Rows]]:
        """The report of each stage, and the rows of its CSV file; made once for all tests of a class."""
        known = type(self).__dict__.get("_stages")
        if known is None:
            known = {stage: self.report(results, folder, stage) for stage, results in self.results_by_stage().items()}
            type(self)._stages = known  # pyright: ignore[reportAttributeAccessIssue]
        return known

    def analysed(self, results: Results, folder: Path, stage: str = "at the end") -> Any:
        """The findings from results; whatever the analysis raises is a failure that names the stage."""
        spec = self.spec
        self.furnish(spec, results, folder)
        asked = [trial for batch in self.rounds()[0] for trial in batch]
        evidence = evidence_on(spec, folder, results, asked if set(results) <= set(asked) else results)
        try:
            return self.kind.analyse(spec, evidence)
        except Exception as error:
            raise AssertionError(f"{self.slug}, {stage}: no analysis: {type(error).__name__}: {error}") from error

    def report(self, results: Results, folder: Path, stage: str = "at the end") -> tuple[Report, Rows]:
        """The report on results and the rows of its CSV file; whatever raises is a failure that names the stage."""
        findings = self.analysed(results, folder, stage)
        try:
            return report_of(findings), self.kind.content(findings).rows
        except Exception as error:
            raise AssertionError(f"{self.slug}, {stage}: no report: {type(error).__name__}: {error}") from error


def free_changes(spec: StudySpec) -> list[Raw]:
    """Changes of each free setting of a kind, one at a time, as tables; some may not be possible."""
    changes: list[Raw] = []
    for setting in settings_of(type(spec)):
        value = getattr(spec, setting.name)
        if not hasattr(value, "__dataclass_fields__"):
            if setting.metadata.get("free", False):
                changes += [{setting.name: other} for other in _others(to_plain(value))]
            continue
        free = [f.name for f in fields(value) if setting.metadata.get("free", False) or f.metadata.get("free", False)]
        for name in free:
            changes += [{setting.name: {name: other}} for other in _others(to_plain(getattr(value, name)))]
    return changes


def moved_data(spec: StudySpec) -> list[Raw]:
    """The study with its data files at another place, as tables; none where its data are no files."""
    data: Any = spec.protocol.data
    moved: list[Raw] = []
    for one in fields(data):
        value = getattr(data, one.name)
        if not one.metadata.get("identity", True) and isinstance(value, str | tuple):
            elsewhere = "/elsewhere" if isinstance(value, str) else ["/elsewhere"]
            moved.append({"data": {type(data).slug(): {one.name: elsewhere}}})
    return moved


def _others(value: Any) -> list[Any]:
    if isinstance(value, bool):
        return [not value]
    if isinstance(value, int | float):
        return [value + 1, value / 2]
    return [value[:-1], value + value[-1:]] if isinstance(value, list) and value else []


def _shuffled(results: Results, seed: int) -> Results:
    order = list(results.items())
    random.Random(seed).shuffle(order)
    return dict(order)


def _text(value: object) -> str:
    """A text by which two parts of a report can be compared; NaN equals NaN."""
    if isinstance(value, Mapping):
        return json_text({key: one for key, one in sorted(value.items()) if key != "provenance"})
    return repr(value)
