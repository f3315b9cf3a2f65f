"""Studies outlive the code that made them: the index, folders of earlier versions, committed studies, extensions."""

from __future__ import annotations

import hashlib
import json
import math
import re
import shutil
import tarfile
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import tomli_w

from trimtab import Study, cli
from trimtab.config import ConfigError
from trimtab.report import report_of, write_report
from trimtab.report.schema import schema
from trimtab.run.files import IntegrityError
from trimtab.run.numerics import NUMERICS
from trimtab.study.executors.contract import Job, Progress, train_job
from trimtab.study.executors.inline import InlineExecutor
from trimtab.study.failures import Failures
from trimtab.study.index import load_index
from trimtab.study.stored import load_stored

Make = Callable[..., Study]
ROOT = Path(__file__).resolve().parents[2]
FOLDERS = Path(__file__).parent / "folders"
KINDS = ("max_lr", "loss_at_lr", "seeds")
COMMITTED = sorted(path.parent for path in (ROOT / "studies").glob("*/outcomes.jsonl"))
# Slow to analyse; other studies have the same kinds.
REPEATED = ("2026-11-22_depth", "2026-11-22_seeds", "2026-11-22_signals")


@pytest.fixture
def unpacked(tmp_path: Path) -> Callable[[str], Path]:
    def unpack(name: str) -> Path:
        with tarfile.open(FOLDERS / f"{name}.tar.xz") as archive:
            archive.extractall(tmp_path, filter="data")
        return tmp_path / name.split("_", 1)[1]

    return unpack


SENTENCES = re.compile(r"/(verdicts|warnings)$")
NUMBER = re.compile(r"(?<![A-Za-z0-9.])[-+]?\d+\.?\d*(?:e[-+]?\d+)?%?")


def same_numbers(old: Any, new: Any, where: str = "") -> list[str]:
    """Where two results differ. New keys and sentences do not count; a sentence keeps its numbers and may get more.

    The last digits of a number belong to the processor that computed it.
    """
    if SENTENCES.search(where):
        said = [Counter(NUMBER.findall(sentence)) for sentence in new]
        return [
            f"{where}: no longer said: {sentence}"
            for sentence in old
            if not any(Counter(NUMBER.findall(sentence)) <= numbers for numbers in said)
        ]
    if isinstance(old, dict):
        lines = [f"{where}/{key}: missing" for key in old if key not in new]
        return lines + [
            line for key in old if key in new for line in same_numbers(old[key], new[key], f"{where}/{key}")
        ]
    if isinstance(old, list):
        if len(old) != len(new):
            return [f"{where}: {len(new)} entries, there were {len(old)}"]
        return [
            line for i, pair in enumerate(zip(old, new, strict=True)) for line in same_numbers(*pair, f"{where}/{i}")
        ]
    same = new == pytest.approx(old, rel=1e-8, abs=1e-11) if isinstance(old, float) and new is not None else old == new
    return [] if same else [f"{where}: {new}, was {old}"]


def without_changed(results: dict[str, Any]) -> dict[str, Any]:
    """Results without versions, times, and the complete specification, which has new fields."""
    study = {key: value for key, value in results["study"].items() if key not in ("spec", "spec_hash")}
    return {key: value for key, value in results.items() if key not in ("provenance", "schema")} | {"study": study}


@pytest.mark.parametrize("kind", KINDS)
def test_a_folder_of_version_0_1_0_gives_the_numbers_it_gave(unpacked: Callable[[str], Path], kind: str) -> None:
    folder = unpacked(f"0.1.0_{kind}")
    old = json.loads((folder / "results.json").read_text())
    findings = load_stored(folder).findings()
    assert findings.evidence.complete
    assert findings.evidence.pending == 0
    new = report_of(findings).results
    if kind == "max_lr":  # limits are estimated otherwise since then, from the same runs with the same labels
        assert {(run["id"], run["final_loss"], run["label"]) for run in old["runs"]} == {
            (run["id"], run["final_loss"], run["label"]) for run in new["runs"]
        }
        old = {"study": old["study"]}
    old["study"].pop("warnings")  # worded anew
    assert same_numbers(without_changed(old), new) == []
    assert not (folder / "index.json").exists(), "reading writes nothing"


@pytest.mark.parametrize("kind", KINDS)
def test_a_study_of_version_0_1_0_goes_on_without_training_anything_again(
    unpacked: Callable[[str], Path], kind: str, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = unpacked(f"0.1.0_{kind}")
    before = {path: path.read_bytes() for path in folder.glob("runs/*/*")}
    names = {path.parent.name for path in before}
    study = shutil.copy(folder / "study.toml", folder.parent / "again.toml")
    for _ in range(2):
        assert cli.main(["study", str(study), "--out", str(folder), "--workers", "0"]) == 0
        printed = capsys.readouterr().out
        assert "made by version 0.1.0" in printed
        known = set(load_index(folder).runs.values())
        assert names <= known == {path.name for path in (folder / "runs").iterdir()}
        assert {path: path.read_bytes() for path in before} == before
    assert ", 0 to train" in printed
    assert kind != "seeds" or known == names, "a search and a sweep go further than in that version"


def test_an_unfinished_folder_of_version_0_1_0_makes_only_what_is_missing(unpacked: Callable[[str], Path]) -> None:
    folder = unpacked("0.1.0_seeds")
    lost = sorted((folder / "runs").iterdir())[:2]
    for run in lost:
        shutil.rmtree(run)
    stored = load_stored(folder)
    assert not stored.evidence.complete
    trained: list[str] = []

    def train(job: Job, progress: Progress) -> None:
        trained.append(job.name)
        train_job(job, progress)

    findings = Study.of(stored.spec).run(folder, executor=InlineExecutor(train))
    assert len(trained) == 2
    assert findings.evidence.complete
    finals = [run["final_loss"] for group in report_of(findings).results["seeds"] for run in group["runs"]]
    old = json.loads((folder / "results.json").read_text())
    kept = [run["final_loss"] for group in old["seeds"] for run in group["runs"]]
    assert finals == pytest.approx(kept, rel=1e-6)  # the last digits of what is trained again are those of this machine


def test_other_data_in_a_folder_of_version_0_1_0_is_noticed(unpacked: Callable[[str], Path]) -> None:
    folder = unpacked("0.1.0_max_lr")
    text = (folder / "study.toml").read_text()
    (folder / "study.toml").write_text(text.replace("[data.zipf_markov]\n", "[data.zipf_markov]\nseed = 1\n", 1))
    with pytest.raises((ConfigError, IntegrityError)):
        Study.of(load_stored(folder).spec).run(folder, workers=0)


@pytest.mark.parametrize(
    "folder",
    [pytest.param(folder, marks=pytest.mark.nightly if folder.name in REPEATED else ()) for folder in COMMITTED],
    ids=lambda folder: folder.name,
)
def test_a_committed_study_gives_the_numbers_that_are_committed(folder: Path, tmp_path: Path) -> None:
    assert COMMITTED
    old = json.loads((folder / "results.json").read_text())
    new = write_report(load_stored(folder).findings(), tmp_path)
    jsonschema.validate(new, schema(new["kind"]))
    if old["schema"] == 1 and "sizes" in old:
        for size, one in new["sizes"].items():
            one |= {**one["limits"], "study": {**old["sizes"][size]["study"], **one["study"]}}
            one |= {key: value for key, value in old["sizes"][size].items() if key in ("schema", "excluded", "seeds")}
    if "movers" in old:
        old["movers"] = {}  # they need the readings of every step, which are not committed
    for cost in old.get("costs", {}).values():
        cost.pop("of_method", None)  # counted otherwise since these were written
    if old["study"].get("comparison", {}).get("tune") == "nobody":
        old["study"]["comparison"]["tune"] = "fixed"
    assert same_numbers(without_changed(old), new) == []
    assert not list(folder.glob("index.json"))


def test_a_committed_study_that_is_unfinished_says_so(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = Path(shutil.copytree(ROOT / "studies" / "2026-11-26_gpu-10m", tmp_path / "study"))
    assert cli.main(["report", str(folder)]) == 0
    assert "this study is unfinished: 40 runs are made, 6 are pending" in capsys.readouterr().out
    assert json.loads((folder / "results.json").read_text())["study"]["complete"] is False
    (folder / "unfinished.json").write_text("{}")
    assert cli.main(["report", str(folder)]) == 30
    (folder / "unfinished.json").unlink()
    assert load_stored(folder).evidence.complete


def test_a_committed_study_may_be_judged_by_another_criterion(tmp_path: Path) -> None:
    folder = ROOT / "studies" / "2026-11-22_controls"
    before = {path: path.read_bytes() for path in folder.iterdir()}
    command = ["report", str(folder), "--set", "criterion.margin=0.1", "--out", str(tmp_path / "out")]
    assert cli.main(command) == 0
    new = json.loads((tmp_path / "out" / "results.json").read_text())
    old = json.loads((folder / "results.json").read_text())
    assert new["study"]["criterion"]["margin"] == 0.1
    half, main = ("half_d", "d")
    limits = [(old["arms"][arm]["criteria"][half], new["arms"][arm]["criteria"][main]) for arm in old["arms"]]
    assert not any(same_numbers(a["breaks"], b["breaks"]) for a, b in limits), "half the margin is the other margin"
    assert {path: path.read_bytes() for path in folder.iterdir()} == before


# The index


def test_one_flipped_bit_of_the_study_file_is_refused_by_name(tiny: Make, finished: Path) -> None:
    file = finished / "study.toml"
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(bytes(content))
    assert cli.main(["report", str(finished)]) == 30
    with pytest.raises(IntegrityError, match=r"study\.toml: changed since"):
        tiny().run(finished, workers=0)


def test_a_lost_study_file_is_written_again_from_the_index(tiny: Make, finished: Path) -> None:
    text = (finished / "study.toml").read_text()
    (finished / "study.toml").unlink()
    assert load_stored(finished).evidence.complete
    tiny().run(finished, workers=0)
    assert (finished / "study.toml").read_text() == text


@pytest.mark.parametrize("damage", [b"", b"{", b"\xff\xfe", b"[1]", b"null", b"{}", b"[" * 100_000])
def test_a_damaged_index_is_refused_by_name(tiny: Make, finished: Path, damage: bytes) -> None:
    (finished / "index.json").write_bytes(damage)
    with pytest.raises(IntegrityError, match=r"index\.json"):
        tiny().run(finished, workers=0)
    assert cli.main(["report", str(finished)]) == 30


def test_a_changed_entry_of_the_index_is_refused(finished: Path) -> None:
    record = json.loads((finished / "index.json").read_text())
    record["trials"][0][-1] = record["trials"][1][-1]
    (finished / "index.json").write_text(json.dumps(record))
    with pytest.raises(IntegrityError, match=r"index\.json.*SHA-256"):
        load_stored(finished)


@pytest.mark.parametrize("file", ["spec.toml", "environment.json", "steps.jsonl", "predictions.npz"])
def test_every_file_of_a_run_is_held_against_its_hash(finished: Path, file: str) -> None:
    run = sorted((finished / "runs").iterdir())[0]
    content = bytearray((run / file).read_bytes())
    content[len(content) // 2] ^= 1
    (run / file).write_bytes(bytes(content))
    with pytest.raises(IntegrityError, match=file):
        load_stored(finished)


def test_a_study_is_extended_by_another_file(
    tiny_tables: Callable[..., dict[str, Any]], finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    more = tiny_tables(arms={"baseline": {}, "qk_norm": {}, "soft_cap": {}})
    file = tmp_path / "more.toml"
    file.write_text(tomli_w.dumps(more))
    assert cli.main(["study", str(file), "--out", str(finished), "--workers", "0"]) == 0
    assert "soft_cap" in (finished / "study.toml").read_text()
    assert {"baseline", "qk_norm", "soft_cap"} == {trial.arm for trial in load_index(finished).runs}
    assert cli.main(["report", str(finished)]) == 0
    assert "soft_cap" in capsys.readouterr().out


def test_an_arm_of_the_same_name_must_be_the_same_arm(tiny: Make, finished: Path) -> None:
    with pytest.raises(ConfigError, match=r"arm 'qk_norm' is another one there"):
        tiny(arms={"baseline": {}, "qk_norm": {"method": "soft_cap"}}).run(finished, workers=0)


def test_a_study_killed_between_index_and_study_file_stays_readable(finished: Path) -> None:
    index = load_index(finished)
    text = index.study + "\n# extended\n"
    before = index.study
    index.study = text
    index.save(finished, [hashlib.sha256(before.encode()).hexdigest()])
    assert load_stored(finished).evidence.complete, "with the old study.toml"
    (finished / "study.toml").write_text(text)
    assert load_stored(finished).evidence.complete, "and with the new one"


def test_an_unfinished_study_has_a_page_that_says_so(tiny: Make, tmp_path: Path) -> None:
    def stop(job: Job, progress: Progress) -> None:
        if len(list(job.runs.iterdir())) == 6:
            raise KeyboardInterrupt
        train_job(job, progress)

    with pytest.raises(KeyboardInterrupt):
        tiny().run(tmp_path / "study", executor=InlineExecutor(stop))
    assert cli.main(["report", str(tmp_path / "study")]) == 0
    results = json.loads((tmp_path / "study" / "results.json").read_text())
    assert results["study"]["complete"] is False
    assert results["study"]["pending"] == 2
    assert "this study is unfinished: 6 runs are made" in (tmp_path / "study" / "report.html").read_text()


@pytest.mark.parametrize("kind", ["loss_at_lr", "signals", "seeds", "max_lr_by_size"])
def test_an_unfinished_study_of_any_kind_has_a_page(
    kind: str, tiny_tables: Callable[..., dict[str, Any]], tmp_path: Path
) -> None:
    tables: dict[str, Any] = tiny_tables(arms={"baseline": {}, "qk_norm": {}}) | {"kind": kind}
    del tables["search"]
    if kind == "loss_at_lr":
        tables["evaluation"] |= {"final_blocks": 4, "block_bytes": 64}
        tables["comparison"] = {"seeds": 2}
    if kind == "signals":
        tables["probes"] = {"named": ["tev", "variance"], "every": 2}
        tables["training"]["accumulate"] = 2
        tables["signals"] = {"seeds": 2}
    if kind == "seeds":
        del tables["learning_rates"]
        tables["seeds"] = {"learning_rate": 0.03, "init": 2, "data": 2}
    if kind == "max_lr_by_size":
        tables["search"] = {"replicates": 0, "probes_per_round": 2, "most_runs": 4}
        tables["sizes"] = {"1 layer": {"model": {"num_layers": 1}}, "2 layers": {"model": {"num_layers": 2}}}

    def stop(job: Job, progress: Progress) -> None:
        if len(list(job.runs.iterdir())) == 3:
            raise KeyboardInterrupt
        train_job(job, progress)

    study = Study(**tables)
    with pytest.raises(KeyboardInterrupt):
        study.run(tmp_path / "study", executor=InlineExecutor(stop))
    assert cli.main(["report", str(tmp_path / "study")]) == 0
    assert "this study is unfinished" in (tmp_path / "study" / "report.html").read_text()


def test_a_report_with_other_settings_is_written_elsewhere(
    finished: Path, tmp_path: Path, contents: Callable[[Path], Any], capsys: pytest.CaptureFixture[str]
) -> None:
    before = contents(finished)
    assert cli.main(["report", str(finished), "--set", "criterion.margin=0.1"]) == 2
    assert "--out" in capsys.readouterr().err
    out = tmp_path / "judged"
    assert cli.main(["report", str(finished), "--set", "criterion.margin=0.1", "--out", str(out)]) == 0
    assert json.loads((out / "results.json").read_text())["study"]["criterion"]["margin"] == 0.1
    assert cli.main(["report", str(finished), "--set", "model.width=32", "--out", str(out)]) == 2
    assert "changes the runs" in capsys.readouterr().err
    assert contents(finished) == before


# Planted links


@pytest.mark.parametrize("name", ["results.json", "report.html", "index.json", "study.toml"])
def test_a_planted_link_is_replaced_and_not_followed(tiny: Make, finished: Path, tmp_path: Path, name: str) -> None:
    victim = tmp_path / "victim"
    victim.write_text("irreplaceable")
    for planted in (finished / f".{name}.tmp", *([finished / name] if name.startswith(("results", "report")) else [])):
        planted.unlink(missing_ok=True)
        planted.symlink_to(victim)
    write_report(tiny().run(finished, workers=0))
    assert victim.read_text() == "irreplaceable"
    assert not (finished / name).is_symlink()


def test_a_planted_lock_is_refused(tiny: Make, finished: Path, tmp_path: Path) -> None:
    victim = tmp_path / "victim"
    victim.write_text("irreplaceable")
    (finished / ".lock").unlink()
    (finished / ".lock").symlink_to(victim)
    with pytest.raises(OSError, match="lock is a link"):
        tiny().run(finished, workers=0)
    assert victim.read_text() == "irreplaceable"


# Failures


def test_failed_attempts_are_counted_over_restarts_and_a_run_given_up_gets_another_chance(tmp_path: Path) -> None:
    first = Failures(tmp_path)
    assert not first.add("run", "no luck", killed=False)
    assert not first.add("run", "killed", killed=True)
    second = Failures(tmp_path)
    assert not second.add("run", "no luck", killed=False)
    assert second.add("run", "no luck again", killed=False)
    third = Failures(tmp_path)
    assert third.errors() == {"run": "no luck again"}
    third.give_another_chance()
    assert third.errors() == {}
    second.forget("run")
    assert Failures(tmp_path).by_run == {}


def test_a_damaged_record_of_failures_is_refused_by_name(tmp_path: Path) -> None:
    (tmp_path / "failures.json").write_text("{}")
    with pytest.raises(IntegrityError, match=r"failures\.json"):
        Failures(tmp_path)


def test_fixtures_hold_what_they_are_for() -> None:
    assert {path.name.removesuffix(".tar.xz") for path in FOLDERS.iterdir()} == {f"0.1.0_{kind}" for kind in KINDS}
    assert math.isfinite(sum(path.stat().st_size for path in FOLDERS.iterdir()))


# What the stored runs rest on


def test_runs_of_another_numerics_version_are_named_and_kept_only_when_told(
    tiny: Make, finished: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("trimtab.run.identity.NUMERICS", NUMERICS + 1)
    with pytest.raises(
        ConfigError, match=f"the version of the numbers is {NUMERICS} there and {NUMERICS + 1} here.*--keep.*--retrain"
    ):
        tiny().run(finished, workers=0)
    before = set(load_index(finished).runs.values())
    kept = tiny().run(finished, workers=0, on_change="keep")
    assert {run.run_id for run in kept.runs} == before
    assert cli.main(["report", str(finished)]) == 0
    assert f"version of the numbers is {NUMERICS} there and {NUMERICS + 1} here" in capsys.readouterr().out
    assert f"version of the numbers is {NUMERICS} there" in (finished / "report.html").read_text()
    more = tiny(search={"replicates": 1, "probes_per_round": 2, "most_runs": 11}).run(finished, workers=0)
    assert before < {run.run_id for run in more.runs}
    again = tiny().run(finished, workers=0, on_change="retrain")
    assert {run.run_id for run in again.runs}.isdisjoint(before), "runs that were kept are made again when told"
    assert again.evidence.notes == ()


def test_another_version_of_a_users_library_is_named(
    tiny: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, user_code: Any
) -> None:
    rates = {"low": "2^-6", "high": "2^0", "octaves_apart": 6}
    study = tiny(build_model=user_code.build_with_library, arms={"baseline": {}}, learning_rates=rates)
    study.run(tmp_path / "study", workers=0)
    (basis,) = load_index(tmp_path / "study").bases.values()
    assert basis is not None
    assert list(basis["code"]["model"]["distributions"]) == ["tomli_w"]
    monkeypatch.setattr("trimtab.run.user_code.importlib.metadata.version", lambda name: "99.0")
    with pytest.raises(ConfigError, match=r"tomli_w is [\d.]+ there and 99\.0 here"):
        study.run(tmp_path / "study", workers=0)
