from __future__ import annotations

import json
import multiprocessing
import os
import shutil
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import pytest

from trimtab import Study, load_study, methods
from trimtab.config import ConfigError
from trimtab.data import CorpusError
from trimtab.interventions import SoftCap
from trimtab.method import Method
from trimtab.report import write_report
from trimtab.run.files import IntegrityError
from trimtab.study import driver, failures
from trimtab.study.executors.contract import Job, Progress, train_job
from trimtab.study.executors.inline import InlineExecutor
from trimtab.study.executors.processes import ProcessExecutor, _Worker
from trimtab.study.folder import StorageError
from trimtab.study.index import load_index
from trimtab.study.kind import Findings
from trimtab.study.labels import Label
from trimtab.study.lease import StudyLockedError
from trimtab.study.lock import StudyLock
from trimtab.study.stored import load_stored
from trimtab.testing.executor_contract import children

Make = Callable[..., Study]
Text = Callable[[Findings], str]
Contents = Callable[[Path], dict[str, tuple[int, str]]]


class Trained:
    """A task that notes what it trains."""

    def __init__(self) -> None:
        self.names: list[str] = []

    def __call__(self, job: Job, progress: Progress) -> None:
        self.names.append(job.name)
        train_job(job, progress)


def found_in(folder: Path) -> Any:
    """The findings of a stored study, of whatever kind."""
    return load_stored(folder).findings()


# The same study, however it is carried out.


def test_the_tiny_study_learns_and_breaks(tiny: Make, finished: Path) -> None:
    findings = found_in(finished)
    labels = {run.label for run in findings.runs}
    assert findings.learned
    assert Label.STABLE in labels
    assert labels & {Label.EXPLODED, Label.DEGRADED, Label.STUCK}
    assert max(run.trial.round for run in findings.runs) >= 2, "the search never probed"


@pytest.mark.parametrize("workers", [1, 2])
def test_results_are_the_same_on_any_number_of_workers(
    tiny: Make, finished: Path, tmp_path: Path, text_of: Text, workers: int
) -> None:
    study = tiny()
    assert text_of(study.run(tmp_path / "study", workers=workers)) == text_of(found_in(finished))


def test_results_file_is_the_same_byte_for_byte_outside_provenance(tiny: Make, finished: Path, tmp_path: Path) -> None:
    texts: list[str] = []
    for folder in (finished, tmp_path / "again"):
        write_report(tiny().run(folder, workers=0))
        lines = (folder / "results.json").read_text().split('"provenance"')
        assert len(lines) == 2
        texts.append(lines[0])
    assert texts[0] == texts[1]


def test_running_again_trains_nothing(tiny: Make, finished: Path, contents: Contents, text_of: Text) -> None:
    before = contents(finished / "runs")
    trained = Trained()
    findings = tiny().run(finished, executor=InlineExecutor(trained))
    assert trained.names == []
    assert contents(finished / "runs") == before
    assert text_of(findings) == text_of(found_in(finished))


def test_a_further_arm_reuses_every_run_of_the_first_phase(
    tiny: Make, finished: Path, tmp_path: Path, text_of: Text
) -> None:
    first_phase = {run.run_id for run in found_in(finished).runs if run.trial.round <= 1}
    more = tiny(arms={"baseline": {}, "qk_norm": {}, "soft_cap": {}})
    trained = Trained()
    extended = more.run(finished, executor=InlineExecutor(trained))
    assert len(trained.names) == len(set(trained.names))
    assert not first_phase & set(trained.names)
    assert text_of(extended) == text_of(more.run(tmp_path / "fresh", workers=0))


def test_more_runs_an_arm_reuse_every_whole_round(tiny: Make, finished: Path, tmp_path: Path, text_of: Text) -> None:
    before = {run.run_id for run in found_in(finished).runs}
    more = tiny(search={"replicates": 1, "probes_per_round": 2, "most_runs": 11})
    trained = Trained()
    extended = more.run(finished, executor=InlineExecutor(trained))
    assert trained.names
    assert not before & set(trained.names)
    assert before <= {run.run_id for run in extended.runs}
    assert text_of(extended) == text_of(more.run(tmp_path / "fresh", workers=0))


def test_an_interrupted_study_goes_on_to_the_same_results(
    tiny: Make, finished: Path, tmp_path: Path, text_of: Text
) -> None:
    def interrupted(job: Job, progress: Progress) -> None:
        if len(list(job.runs.iterdir())) == 4:
            raise KeyboardInterrupt
        train_job(job, progress)

    with pytest.raises(KeyboardInterrupt):
        tiny().run(tmp_path / "study", executor=InlineExecutor(interrupted))
    findings = tiny().run(tmp_path / "study", workers=0)
    assert text_of(findings) == text_of(found_in(finished))


def test_a_half_written_run_is_trained_again(tiny: Make, finished: Path, text_of: Text) -> None:
    expected = text_of(found_in(finished))
    victim = sorted((finished / "runs").iterdir())[0]
    (victim / "outcome.json").unlink()
    steps = victim / "steps.jsonl"
    steps.write_bytes(steps.read_bytes()[:-7])
    trained = Trained()
    assert text_of(tiny().run(finished, executor=InlineExecutor(trained))) == expected
    assert trained.names == [victim.name]


def test_a_grid_study_without_room_for_another_sweep_ends(tiny: Make, tmp_path: Path) -> None:
    findings = tiny(search={"design": "grid", "most_runs": 6}).run(tmp_path / "study", workers=0)
    assert len(findings.runs) == 10


def test_a_grid_study_repeats_its_sweep(tiny: Make, tmp_path: Path) -> None:
    findings = tiny(search={"design": "grid", "most_runs": 9}).run(tmp_path / "study", workers=0)
    assert len(findings.runs) == 18


def test_a_study_whose_reference_never_learns_says_so_and_spends_no_probes(
    tiny: Make, tiny_tables: Any, tmp_path: Path
) -> None:
    rates = {"low": "2^-20", "high": "2^-16", "octaves_apart": 2}
    # Half of the vocabulary never occurs, so a model that learned nothing is far above unigram entropy.
    data = {"token_files": {**tiny_tables()["data"]["token_files"], "vocab_size": 16}}
    findings = tiny(learning_rates=rates, data=data).run(tmp_path / "study", workers=0)
    assert not findings.learned
    assert max(run.trial.round for run in findings.runs) == 1
    assert "never learned" in findings.warnings[0]
    assert write_report(findings)["study"]["learned"] is False


# Folders that must not be touched.


@pytest.mark.parametrize(
    ("change", "key"),
    [
        ({"training": {"steps": 21}}, "training.steps"),
        ({"model": {"width": 32}}, "model.width"),
        ({"learning_rates": {"high": "2^4"}}, "learning_rates.high"),
        ({"criterion": {"margin": 0.3}}, "criterion.margin"),
        ({"search": {"replicates": 2}}, "search.replicates"),
        ({"reference": "qk_norm"}, "reference"),
        ({"common": []}, "common"),
    ],
)
def test_another_protocol_is_refused_by_the_name_of_the_key(
    tiny: Make, finished: Path, contents: Contents, change: dict[str, Any], key: str
) -> None:
    before = contents(finished)
    with pytest.raises(ConfigError, match=key):
        tiny(**change).run(finished, workers=0)
    assert contents(finished) == before


def test_a_folder_of_other_things_is_refused(tiny: Make, tmp_path: Path, contents: Contents) -> None:
    folder = tmp_path / "thesis"
    folder.mkdir()
    (folder / "chapter.txt").write_text("irreplaceable")
    before = contents(folder)
    with pytest.raises(ConfigError, match=r"chapter\.txt"):
        tiny().run(folder, workers=0)
    assert contents(folder) == before


def test_a_file_in_the_way_is_refused(tiny: Make, tmp_path: Path) -> None:
    (tmp_path / "study").write_text("a file")
    with pytest.raises(ConfigError, match="in the way"):
        tiny().run(tmp_path / "study", workers=0)
    assert (tmp_path / "study").read_text() == "a file"


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-5])


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(bytes(content))


def lower_final_loss(path: Path) -> None:
    record = json.loads(path.read_text())
    record["final_loss"] = 0.001
    path.write_text(json.dumps(record, indent=1))


@pytest.mark.parametrize(
    ("file", "harm"),
    [
        ("outcome.json", cut),
        ("outcome.json", lambda path: path.write_bytes(b"")),
        ("outcome.json", lower_final_loss),
        ("steps.jsonl", cut),
        ("steps.jsonl", flip),
        ("steps.jsonl", Path.unlink),
    ],
    ids=["outcome cut", "outcome empty", "outcome edited", "steps cut", "steps flipped", "steps missing"],
)
def test_a_damaged_run_is_refused_by_name(tiny: Make, finished: Path, file: str, harm: Callable[[Path], None]) -> None:
    victim = sorted((finished / "runs").iterdir())[3]
    harm(victim / file)
    with pytest.raises(IntegrityError, match=victim.name):
        tiny().run(finished, workers=0)
    with pytest.raises(IntegrityError, match=victim.name):
        found_in(finished)


def test_a_second_driver_is_refused_by_the_owners_process_number(tiny: Make, finished: Path) -> None:
    with StudyLock(finished), pytest.raises(StudyLockedError, match=str(os.getpid())):
        tiny().run(finished, workers=0)


def test_a_second_driver_is_refused_while_the_first_starts(tiny: Make, tmp_path: Path) -> None:
    folder = tmp_path / "study"
    folder.mkdir()
    with StudyLock(folder), pytest.raises(StudyLockedError):
        tiny().run(folder, workers=0)


def test_a_study_killed_while_it_claims_its_folder_can_go_on(
    tiny: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class KilledError(BaseException):
        pass

    def die(*_: object) -> None:
        raise KilledError

    with monkeypatch.context() as patch:
        patch.setattr(driver, "write_study", die)
        with pytest.raises(KilledError):
            tiny().run(tmp_path / "study", workers=0)
    assert len(tiny().run(tmp_path / "study", workers=0).runs) == 18


# The machine's faults.


@pytest.mark.parametrize("workers", [0, 2])
def test_a_run_that_raises_is_tried_three_times_and_the_others_go_on(
    tiny: Make, user_code: Any, tmp_path: Path, workers: int
) -> None:
    task = user_code.raise_for_one_arm
    executor = ProcessExecutor(workers, task=task) if workers else InlineExecutor(task)
    findings = tiny().run(tmp_path / "study", executor=executor)
    missing = [run for run in findings.runs if run.label is Label.NO_OUTCOME]
    assert missing
    assert {run.trial.arm for run in missing} == {"qk_norm"}
    for run in findings.runs:
        tries = len((tmp_path / "marks" / run.run_id).read_bytes())
        assert tries == (3 if run in missing else 1), run
    assert {run.run_id for run in missing} == set(findings.evidence.errors)
    assert all("no luck" in reason for reason in findings.evidence.errors.values())
    assert findings.arms["qk_norm"].counts["no_outcome"] == len(missing)
    assert write_report(findings)["excluded"]


def test_a_run_without_outcome_gets_another_chance_when_the_study_is_run_again(
    tiny: Make, user_code: Any, tmp_path: Path, finished: Path, text_of: Text
) -> None:
    folder = tmp_path / "study"
    tiny().run(folder, executor=InlineExecutor(user_code.raise_for_one_arm))
    findings = tiny().run(folder, workers=0)
    assert not findings.evidence.errors
    assert text_of(findings) == text_of(found_in(finished))


def test_a_study_in_which_no_run_has_an_outcome_still_ends_in_a_report(
    tiny: Make, user_code: Any, tmp_path: Path
) -> None:
    findings = tiny().run(tmp_path / "study", executor=InlineExecutor(user_code.raise_always))
    assert all(run.label is Label.NO_OUTCOME for run in findings.runs)
    results = write_report(findings)
    assert all("no luck" in one["reason"] for one in results["excluded"])


def test_a_missing_file_of_the_users_is_no_disk_failure(tiny: Make, user_code: Any, tmp_path: Path) -> None:
    executor = InlineExecutor(user_code.missing_file_for_one_arm)
    findings = tiny().run(tmp_path / "study", executor=executor)
    assert all("table.npy" in reason for reason in findings.evidence.errors.values())


def test_a_killed_worker_is_replaced_and_its_run_repeated(
    tiny: Make, user_code: Any, tmp_path: Path, finished: Path, text_of: Text
) -> None:
    folder = tmp_path / "study"
    findings = tiny().run(folder, executor=ProcessExecutor(2, task=user_code.die_once))
    assert (tmp_path / "marks" / "died").exists(), "the fault never fired"
    assert text_of(findings) == text_of(found_in(finished))


@pytest.mark.slow
@pytest.mark.timeout(900)  # every kill costs the start of a worker
def test_a_run_that_always_kills_its_worker_is_given_up(
    tiny: Make, user_code: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(failures, "MOST_KILLS", 3)
    rates = {"low": "2^-3", "high": "2^3", "octaves_apart": 6}
    search = {"replicates": 0, "most_runs": 2}
    study = tiny(learning_rates=rates, search=search)
    findings = study.run(tmp_path / "study", executor=ProcessExecutor(1, task=user_code.die_always))
    assert len((tmp_path / "marks" / "died").read_bytes()) == 3
    assert [run.trial.arm for run in findings.runs if run.label is Label.NO_OUTCOME] == ["qk_norm"]


def test_no_child_process_is_left(tiny: Make, user_code: Any, tmp_path: Path) -> None:
    before = children()  # other tests' libraries keep processes of their own, such as inductor's compilers
    tiny().run(tmp_path / "study", executor=ProcessExecutor(2))
    assert multiprocessing.active_children() == []
    with pytest.raises(StorageError):
        tiny().run(tmp_path / "other", executor=ProcessExecutor(2, task=user_code.fill_disk))
    deadline = time.monotonic() + 5
    while set(children()) - set(before) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not set(children()) - set(before)


@pytest.mark.parametrize("workers", [0, 2])
def test_a_full_disk_stops_the_study_and_room_lets_it_go_on(
    tiny: Make, user_code: Any, tmp_path: Path, finished: Path, text_of: Text, workers: int
) -> None:
    folder = tmp_path / "study"
    task = user_code.fill_disk
    executor = ProcessExecutor(workers, task=task) if workers else InlineExecutor(task)
    with pytest.raises(StorageError, match="No space left"):
        tiny().run(folder, executor=executor)
    findings = tiny().run(folder, workers=0)
    assert text_of(findings) == text_of(found_in(finished))


@pytest.mark.parametrize("name", ["a#b", "a?b", "a%20b", "a b", "ä"])
def test_a_study_folder_may_have_any_name(tiny: Make, finished: Path, name: str, text_of: Text) -> None:
    expected = text_of(found_in(finished))
    moved = Path(shutil.move(finished, finished.parent / name))
    beside = sorted(moved.parent.iterdir())
    assert text_of(found_in(moved)) == expected
    assert sorted(moved.parent.iterdir()) == beside, "something was written outside the study folder"


# A study of one's own.


def test_own_model_optimizer_and_workers_go_together(tiny: Make, user_code: Any, tmp_path: Path, text_of: Text) -> None:
    rates = {"low": "2^-9", "high": "2^6", "octaves_apart": 5}
    settings = {"learning_rates": rates, "arms": {"baseline": {}}, "training": {"steps": 30}}
    study = tiny(build_model=user_code.build_bigram, build_optimizer=user_code.sgd, **settings)
    inline = study.run(tmp_path / "inline", workers=0)
    assert inline.learned
    assert text_of(inline) == text_of(study.run(tmp_path / "workers", workers=1))


def test_own_method_is_compared_under_its_own_name(tiny: Make, user_code: Any, tmp_path: Path) -> None:
    method = user_code.own_method()
    study = tiny(arms={"baseline": {}, "mine": {"method": method}})
    findings = study.run(tmp_path / "study", workers=1)
    assert findings.arms["mine"].method == "halved"
    losses = {(run.trial.arm, run.trial.tick): run.outcome for run in findings.runs if run.trial.round == 0}
    mine, base = (losses[arm, -48] for arm in ("mine", "baseline"))
    assert mine is not None
    assert base is not None
    assert mine.final_loss != base.final_loss, "the method did nothing"


def test_a_named_method_keeps_its_name_when_the_study_is_read_from_its_folder(
    tiny: Make, tmp_path: Path, text_of: Text
) -> None:
    source = methods.soft_cap.source
    method = Method("tight_cap", (SoftCap(cap=5.0),), source)
    study = tiny(arms={"baseline": {}, "capped": {"method": method}})
    findings = study.run(tmp_path / "study", workers=0)
    assert text_of(found_in(tmp_path / "study")) == text_of(findings)


def test_study_takes_model_settings_from_python_as_from_a_file(tiny_tables: Any, tmp_path: Path) -> None:
    tables = tiny_tables()
    study = Study(**{**tables, "arms": ["baseline", "qk_norm"]})
    assert study.spec.protocol.model.width == 16


def test_own_model_learns_its_context_from_the_settings(tiny_tables: Any, user_code: Any) -> None:
    tables = tiny_tables(arms=["baseline"])
    context = tables.pop("model")["context"]
    study = Study(**tables, model=user_code.build_bigram)
    assert study.spec.protocol.model.vocab_size == 8
    arms = {"baseline": {"method": "baseline", "model": {"context": context}}}
    study = Study(**{**tables, "arms": arms}, model=user_code.build_bigram)
    assert study.spec.arms["baseline"].protocol.model.context == context


def test_a_lambda_is_refused_with_workers_and_fine_without(tiny: Make, user_code: Any, tmp_path: Path) -> None:
    study = tiny(
        arms={"baseline": {}},
        learning_rates={"low": "2^-6", "high": "2^0", "octaves_apart": 6},
        build_model=lambda config: user_code.Bigram(config.vocab_size),
    )
    with pytest.raises(ConfigError, match="workers=0"):
        study.run(tmp_path / "study", workers=2)
    assert not (tmp_path / "study").exists()
    assert not study.run(tmp_path / "study", workers=0).evidence.errors


def test_a_lambda_among_other_arguments_is_fine(tiny: Make, user_code: Any, tmp_path: Path) -> None:
    rates = {"low": "2^-6", "high": "2^0", "octaves_apart": 6}
    # fmt: off
    study = tiny(
        arms={"baseline": {}}, build_model=lambda config: user_code.Bigram(config.vocab_size),
        learning_rates=rates,
    )
    # fmt: on
    assert not study.run(tmp_path / "study", workers=0).evidence.errors


def test_runs_of_other_user_code_are_not_mixed_in_unless_told(
    tiny: Make, user_code: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rates = {"low": "2^-6", "high": "2^0", "octaves_apart": 6}
    study = tiny(build_model=user_code.build_bigram, arms={"baseline": {}}, learning_rates=rates)
    folder = tmp_path / "study"
    first = study.run(folder, workers=0)
    monkeypatch.setattr(user_code, "WIDTH", 4)
    with pytest.raises(ConfigError, match="the code of the model differs"):
        study.run(folder, workers=0)
    trained = Trained()
    kept = study.run(folder, executor=InlineExecutor(trained), on_change="keep")
    assert trained.names == []
    assert any("the code of the model differs" in note for note in kept.evidence.notes)
    assert any("code of the model differs" in line for line in write_report(kept)["study"]["notes"])
    again = study.run(folder, executor=InlineExecutor(trained))
    assert {run.run_id for run in again.runs} == {run.run_id for run in first.runs}


def test_ids_of_kept_unfinished_runs_are_those_of_the_new_code_also_after_a_second_stop(
    tiny: Make, user_code: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rates = {"low": "2^-6", "high": "2^0", "octaves_apart": 6}
    study = tiny(build_model=user_code.build_bigram, arms={"baseline": {}}, learning_rates=rates)
    folder = tmp_path / "study"
    study.run(folder, workers=0)
    index = load_index(folder)
    (lost, old) = next(iter(index.runs.items()))
    shutil.rmtree(folder / "runs" / old)
    monkeypatch.setattr(user_code, "WIDTH", 4)
    with monkeypatch.context() as patch:
        patch.setattr(driver._Search, "carry_out", stopped)  # the index is written, and no trial is planned
        with pytest.raises(KeyboardInterrupt):
            study.run(folder, workers=0, on_change="keep")
    study.run(folder, workers=0)
    assert load_index(folder).runs[lost] != old
    assert not (folder / "runs" / old).exists()


def stopped(_: object) -> None:
    raise KeyboardInterrupt


def test_runs_of_other_user_code_are_made_again_when_told(
    tiny: Make, user_code: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rates = {"low": "2^-6", "high": "2^0", "octaves_apart": 6}
    study = tiny(build_model=user_code.build_bigram, arms={"baseline": {}}, learning_rates=rates)
    first = study.run(tmp_path / "study", workers=0)
    monkeypatch.setattr(user_code, "WIDTH", 4)
    second = study.run(tmp_path / "study", workers=0, on_change="retrain")
    assert {run.run_id for run in second.runs}.isdisjoint(run.run_id for run in first.runs)
    assert second.evidence.notes == ()


def test_builders_that_captured_other_values_have_other_runs(tiny: Make, tmp_path: Path, user_code: Any) -> None:
    def builder(width: int) -> Any:
        def build(config: Any) -> Any:
            model = user_code.Bigram(config.vocab_size)
            model.embedding.weight.data.mul_(width)
            return model

        return build

    rates = {"low": "2^-6", "high": "2^0", "octaves_apart": 6}
    settings = {"arms": {"baseline": {}}, "learning_rates": rates}
    tiny(build_model=builder(1), **settings).run(tmp_path / "study", workers=0)
    with pytest.raises(ConfigError, match="code of the model"):
        tiny(build_model=builder(100), **settings).run(tmp_path / "study", workers=0)


def test_a_study_of_the_users_own_code_is_reported_from_its_folder_and_not_trained_from_it(
    tiny: Make, user_code: Any, tmp_path: Path, text_of: Text
) -> None:
    rates = {"low": "2^-6", "high": "2^0", "octaves_apart": 6}
    arms = {"sgd": {"method": "baseline", "optimizer": user_code.sgd}, "adamw": {"method": "baseline"}}
    study = tiny(arms=arms, learning_rates=rates, reference="adamw")
    findings = study.run(tmp_path / "study", workers=1)
    finals = {run.trial.arm: run.outcome.final_loss for run in findings.runs if run.outcome and run.trial.tick == -96}
    assert finals["sgd"] != finals["adamw"], "the arm's own optimizer was not used"
    assert findings.arms["sgd"].criteria["d"].ratio.lr50.bound == "other_optimizer"
    assert text_of(found_in(tmp_path / "study")) == text_of(findings)
    with pytest.raises(ConfigError, match=r"arms\.sgd.*your own code \(sgd\)"):
        load_study(tmp_path / "study").run(tmp_path / "elsewhere", workers=0)


def test_data_shorter_than_the_context_is_refused_before_anything_is_written(
    tiny: Make, tiny_tables: Any, tmp_path: Path
) -> None:
    text = tmp_path / "short.txt"
    text.write_text("abcdefgh" * 400)
    data = {"text_files": {"paths": [str(text)]}}
    study = tiny(data=data, model={"context": 512}, arms={"baseline": {}})
    with pytest.raises((ConfigError, CorpusError), match=r"context|sequence"):
        study.run(tmp_path / "study", workers=0)
    assert not (tmp_path / "study").exists()


def test_text_changed_between_two_studies_of_one_process_is_noticed(tiny: Make, tmp_path: Path) -> None:
    text = tmp_path / "text.txt"
    text.write_text("abcdefgh" * 400)
    settings = {"data": {"text_files": {"paths": [str(text)]}}, "arms": {"baseline": {}}, "training": {"steps": 10}}
    first = tiny(**settings).run(tmp_path / "study", workers=0)
    text.write_text("hgfedcba" * 400)
    with pytest.raises(ConfigError, match=r"baseline: other data .*--keep.*--retrain"):
        tiny(**settings).run(tmp_path / "study", workers=0)
    second = tiny(**settings).run(tmp_path / "study", workers=0, on_change="retrain")
    assert {run.run_id for run in second.runs}.isdisjoint(run.run_id for run in first.runs)
    assert not second.evidence.errors


def test_moved_text_renames_no_run(tiny: Make, tmp_path: Path) -> None:
    settings = {"arms": {"baseline": {}}, "training": {"steps": 10}}
    text = tmp_path / "text.txt"
    text.write_text("abcdefgh" * 400)
    tiny(data={"text_files": {"paths": [str(text)]}}, **settings).run(tmp_path / "study", workers=0)
    moved = text.rename(tmp_path / "moved.txt")
    trained = Trained()
    study = tiny(data={"text_files": {"paths": [str(moved)]}}, **settings)
    study.run(tmp_path / "study", executor=InlineExecutor(trained))
    assert trained.names == []
    moved.unlink()
    assert found_in(tmp_path / "study").evidence.complete, "a report needs no data"


def test_arms_that_share_their_runs_share_run_folders(tiny: Make, tmp_path: Path) -> None:
    for name in ("one", "two"):
        (tmp_path / f"{name}.txt").write_text("abcdefgh" * 400)
    arms = {name: {"method": "baseline", "data": {"text_files": {"paths": [str(tmp_path / f"{name}.txt")]}}}
            for name in ("one", "two")}  # fmt: skip
    trained = Trained()
    study = tiny(data={"text_files": {"paths": [str(tmp_path / "one.txt")]}}, arms=arms, reference="one")
    findings = study.run(tmp_path / "study", executor=InlineExecutor(trained))
    assert len(trained.names) == len(set(trained.names))
    assert len(set(findings.evidence.run_ids.values())) == len(trained.names) < len(findings.runs)
    assert findings.arms["one"].best_loss == findings.arms["two"].best_loss


def test_text_changed_during_a_study_does_not_silently_lose_runs(tiny: Make, tmp_path: Path) -> None:
    text = tmp_path / "text.txt"
    text.write_text("abcdefgh" * 400)

    def meddle(job: Job, progress: Progress) -> None:
        if len(list(job.runs.iterdir())) == 3:
            text.write_text("hgfedcba" * 400)
        train_job(job, progress)

    settings = {"data": {"text_files": {"paths": [str(text)]}}, "arms": {"baseline": {}}, "training": {"steps": 10}}
    try:
        findings = tiny(**settings).run(tmp_path / "study", executor=InlineExecutor(meddle))
    except (ConfigError, IntegrityError, CorpusError) as error:
        assert "changed" in str(error)  # noqa: PT017
    else:
        assert all("changed" in reason for reason in findings.evidence.errors.values()), findings.evidence.errors
    stored = {path.name for path in (tmp_path / "study" / "runs").iterdir()}
    planned = set(load_index(tmp_path / "study").runs.values())
    assert stored <= planned, "a run was trained under a name that nobody asked for"


def test_code_that_a_worker_cannot_find_is_refused_at_once(tiny_tables: Any, tmp_path: Path) -> None:
    tables = tiny_tables(arms={"baseline": {}}, learning_rates={"low": "2^-6", "high": "2^0", "octaves_apart": 6})
    del tables["model"]
    # As in a notebook: functions in a main module that no file holds.
    cell = "from torch import nn\ndef build(config):\n    return nn.Sequential(nn.Embedding(8, 4), nn.Linear(4, 8))\n"
    script = textwrap.dedent(
        f"""
        import linecache
        cell = {cell!r}
        linecache.cache["<cell>"] = (len(cell), None, cell.splitlines(True), "<cell>")
        exec(compile(cell, "<cell>", "exec"))
        from trimtab import Study
        from trimtab.config import ConfigError
        try:
            Study(model=build, **{tables!r}).run("out", workers=1)
        except ConfigError as error:
            print(error)
        """
    )
    command = [sys.executable, "-c", script]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=120)
    assert "workers=0" in done.stdout, done.stderr
    assert "Traceback" not in done.stderr


def test_an_arm_that_cannot_be_built_is_refused_by_name(tiny: Make, user_code: Any, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="qk_norm"):
        tiny(build_model=user_code.build_bigram).run(tmp_path / "study", workers=0)
    assert not (tmp_path / "study").exists()


def test_a_script_that_defines_its_own_model_can_use_workers(tmp_path: Path, tiny_tables: Any) -> None:
    tables = tiny_tables(arms={"baseline": {}}, learning_rates={"low": "2^-6", "high": "2^0", "octaves_apart": 6})
    del tables["model"]
    script = tmp_path / "script.py"
    script.write_text(
        textwrap.dedent(
            f"""
            from torch import nn
            from trimtab import Study, load_study, methods

            class Bigram(nn.Module):
                def __init__(self, vocab_size):
                    super().__init__()
                    self.layers = nn.Sequential(nn.Embedding(vocab_size, 16), nn.Linear(16, vocab_size))

                def forward(self, tokens):
                    return self.layers(tokens)

            def build(config):
                return Bigram(config.vocab_size)

            if __name__ == "__main__":
                findings = Study(model=build, **{tables!r}).run("out", workers=1)
                print(len(findings.runs), len(findings.evidence.errors))
            """
        )
    )
    done = subprocess.run([sys.executable, script], cwd=tmp_path, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    total, missing = map(int, done.stdout.split())
    assert total >= 3
    assert missing == 0


def test_a_worker_that_dies_between_two_looks_loses_no_job(tmp_path: Path) -> None:
    """A process asked twice within one call may be alive the first time and dead the second."""

    class DyingProcess:
        exitcode = -9
        sentinel = 0

        def __init__(self) -> None:
            self.answers = [True, False, False, False]

        def is_alive(self) -> bool:
            return self.answers.pop(0)

    ours, theirs = multiprocessing.Pipe()
    theirs.close()
    executor = ProcessExecutor(1)
    worker = _Worker(cast(Any, DyingProcess()), ours, 0, Job("lost", cast(Any, None), tmp_path))
    executor.workers.append(worker)
    reports = executor._news_of(worker)  # it answers True here, as a dying process may
    reports += executor._news_of(worker)
    assert [(report.name, report.kind) for report in reports] == [("lost", "killed")]
    assert executor.workers == []
