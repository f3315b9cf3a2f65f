"""Runs as jobs of a batch system: the contract, a scheduler that lies, and drivers that die."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, ClassVar

import pytest
import tomli_w
from slurm_shim import Controller

from trimtab.config import ConfigError
from trimtab.study import load_study
from trimtab.study.executors.contract import FINAL, Executor, Job, Task
from trimtab.study.executors.slurm import Slurm
from trimtab.testing import ExecutorContract
from trimtab.testing.executor_tasks import BEATS, job_spec, perform

QUICK = {"settle_seconds": 1.5, "query_seconds": 0.3, "retry_seconds": 0.5}


@pytest.mark.nightly  # in every run of the tests, a study goes this way (test_same_bits.py)
class TestLocalSubmitit(ExecutorContract):
    reports_progress: ClassVar[bool] = False  # the heartbeat files show it
    folder: ClassVar[Path]

    @pytest.fixture(autouse=True)
    def _folder(self, tmp_path_factory: pytest.TempPathFactory) -> None:
        type(self).folder = tmp_path_factory.mktemp("study")

    def make_executor(self, task: Task) -> Executor:
        return Slurm(cluster="local", in_flight=2).executor(type(self).folder, 1, "cpu", task)


# --- a Slurm that lies ------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def study_file(tiny_tables: Callable[..., dict[str, Any]], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A study of at most 18 runs of half a second or so each."""
    path = tmp_path_factory.mktemp("slurm") / "study.toml"
    tables = tiny_tables(training={"steps": 150}, search={"replicates": 1, "probes_per_round": 2, "most_runs": 9})
    path.write_text(tomli_w.dumps(tables), encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def undisturbed(study_file: Path) -> bytes:
    folder = study_file.parent / "undisturbed"
    subprocess.run([*command(study_file, folder), "--workers", "2"], check=True, stdout=subprocess.DEVNULL)
    return results(folder)


def command(study_file: Path, folder: Path) -> list[str]:
    return [sys.executable, "-m", "trimtab", "study", str(study_file), "--out", str(folder)]


def results(folder: Path) -> bytes:
    content, separator, _ = (folder / "results.json").read_bytes().partition(b'"provenance"')
    assert separator
    return content


class Driver:
    """``trimtab study --executor slurm`` on the shim."""

    def __init__(self, study_file: Path, folder: Path, controller: Controller, **options: Any) -> None:
        given = [f"--option={name}={value}" for name, value in {**QUICK, "runs_per_job": 9, **options}.items()]
        self.log = folder.with_suffix(".log")
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                [*command(study_file, folder), "--executor", "slurm", *given],
                env=controller.environment,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )

    def end(self, timeout: float = 300) -> int:
        return self.process.wait(timeout)

    def said(self) -> str:
        return self.log.read_text(errors="replace")


@pytest.fixture
def controller(tmp_path: Path) -> Iterator[Callable[..., Controller]]:
    made: list[Controller] = []

    def make(**options: Any) -> Controller:
        folder = tmp_path / f"slurm-{len(made)}"
        folder.mkdir()
        made.append(Controller(folder, **options))
        made[-1].start()
        return made[-1]

    yield make
    for one in made:
        one.close()


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_scheduler_that_lies_changes_no_result(
    study_file: Path, undisturbed: bytes, tmp_path: Path, controller: Callable[..., Controller]
) -> None:
    disturb(study_file, undisturbed, tmp_path, controller, wanted=4, seed=3)


@pytest.mark.nightly
@pytest.mark.timeout(3600)
def test_sixty_faults_lose_nothing_and_count_nothing_twice(
    study_file: Path, undisturbed: bytes, tmp_path: Path, controller: Callable[..., Controller]
) -> None:
    disturb(study_file, undisturbed, tmp_path, controller, wanted=60, seed=11)


def disturb(
    study_file: Path,
    undisturbed: bytes,
    tmp_path: Path,
    controller: Callable[..., Controller],
    *,
    wanted: int,
    seed: int,
) -> None:
    """Carry the study out again and again until so many faults were injected; each time the results are the same."""
    injected = 0
    for repeat in range(wanted):
        if injected >= wanted:
            break
        slurm = controller(seed=seed + repeat, faults=wanted - injected)
        folder = tmp_path / f"study-{repeat}"
        driver = Driver(study_file, folder, slurm, runs_per_job=3)
        code = driver.end(600)
        assert code == 0, f"{code}: {driver.said()[-3000:]}"
        assert results(folder) == undisturbed, slurm.injected
        assert not list((folder / "jobs" / "claims").iterdir())
        assert not list((folder / "jobs").glob("batch-*")), "a finished study still has open submissions"
        failures = (
            json.loads((folder / "failures.json").read_text())["runs"] if (folder / "failures.json").exists() else {}
        )
        assert failures == {}, "a run that has an outcome still counts as failed"
        print(dict(slurm.injected))
        injected += sum(slurm.injected.values())
        slurm.close()
    assert injected >= wanted


# --- drivers that die, stop and come back -----------------------------------------------------------------------------


def submitted(controller: Controller) -> int:
    return len(controller.spool.jobs())


def wait_for(true: Callable[[], bool], seconds: float = 60) -> None:
    deadline = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < deadline, "it did not happen"
        time.sleep(0.05)


def killed_after_submission(driver: Driver, slurm: Controller) -> int:
    """Kill the driver once its first jobs are known to it; returns their number."""
    folder = Path(driver.process.args[driver.process.args.index("--out") + 1])  # type: ignore[index, union-attr]

    def known() -> bool:
        return any('"id": ""' not in file.read_text() for file in (folder / "jobs").glob("batch-*.json"))

    wait_for(known)
    driver.process.kill()
    driver.end()
    return submitted(slurm)


def test_jobs_outlive_a_killed_driver_and_the_next_one_takes_them_over(
    study_file: Path, undisturbed: bytes, tmp_path: Path, controller: Callable[..., Controller]
) -> None:
    slurm = controller()
    folder = tmp_path / "study"
    first = killed_after_submission(Driver(study_file, folder, slurm), slurm)
    asked = len(json.loads((folder / "index.json").read_text())["trials"])
    again = Driver(study_file, folder, slurm)
    wait_for(lambda: len(list((folder / "runs").glob("*/outcome.json"))) >= asked)
    assert submitted(slurm) == first, "a run that a job already had was submitted again"
    assert again.end() == 0, again.said()
    assert results(folder) == undisturbed


@pytest.mark.nightly
def test_jobs_of_a_driver_that_died_while_it_submitted_are_found_by_their_name_and_cancelled(
    study_file: Path, undisturbed: bytes, tmp_path: Path, controller: Callable[..., Controller]
) -> None:
    slurm = controller()
    folder = tmp_path / "study"
    driver = Driver(study_file, folder, slurm)
    (slurm.spool.folder / "mode-die_after_sbatch").write_text(str(driver.process.pid))
    assert driver.end() == -signal.SIGKILL
    (slurm.spool.folder / "mode-die_after_sbatch").unlink()
    first = set(slurm.spool.jobs())
    assert first
    again = Driver(study_file, folder, slurm)
    assert again.end() == 0, again.said()
    assert {slurm.spool.jobs()[job]["state"] for job in first} == {"CANCELLED"}
    assert results(folder) == undisturbed


def test_stop_from_elsewhere_cancels_the_jobs(
    study_file: Path, tmp_path: Path, controller: Callable[..., Controller]
) -> None:
    slurm = controller()
    folder = tmp_path / "study"
    driver = Driver(study_file, folder, slurm)
    wait_for(lambda: bool(slurm.live()))
    stop = [sys.executable, "-m", "trimtab", "stop", str(folder)]
    said = subprocess.run(stop, check=True, capture_output=True, text=True).stdout
    assert str(driver.process.pid) in said
    assert driver.end(10) == 76, driver.said()
    wait_for(lambda: not slurm.live(), 10)
    assert {job["state"] for job in slurm.spool.jobs().values()} <= {"CANCELLED", "COMPLETED"}
    assert not list((folder / "jobs").glob("batch-*"))


def test_stop_cancels_the_jobs_that_a_dead_driver_left_behind(
    study_file: Path, tmp_path: Path, controller: Callable[..., Controller]
) -> None:
    slurm = controller()
    folder = tmp_path / "study"
    killed_after_submission(Driver(study_file, folder, slurm), slurm)
    wait_for(lambda: bool(slurm.live()))
    stop = [sys.executable, "-m", "trimtab", "stop", str(folder)]
    said = subprocess.run(stop, check=True, capture_output=True, text=True, env=slurm.environment).stdout
    assert "jobs that a driver left behind are cancelled" in said
    wait_for(lambda: not slurm.live(), 10)


def test_a_refusal_that_will_not_pass_ends_the_study_with_the_words_of_sbatch(
    study_file: Path, tmp_path: Path, controller: Callable[..., Controller]
) -> None:
    slurm = controller()
    (slurm.commands / "sbatch").write_text(
        "#!/bin/sh\necho 'sbatch: error: invalid partition specified: gpuu' >&2\nexit 1\n"
    )
    driver = Driver(study_file, tmp_path / "study", slurm)
    assert driver.end(60) == 2
    assert "invalid partition specified: gpuu" in driver.said()


@pytest.mark.parametrize(
    ("gpus", "device", "expected"), [(-1, "cuda", 1), (-1, "cpu", 0), (0, "cuda", 0), (4, "cpu", 4)]
)
def test_a_job_gets_the_gpus_that_its_device_needs(gpus: int, device: str, expected: int, tmp_path: Path) -> None:
    config = Slurm(cluster="local", gpus=gpus)
    executor = config.executor(tmp_path, 1, device)
    assert executor.queue.executor.parameters["gpus_per_node"] == expected  # type: ignore[attr-defined]


def test_a_local_job_with_set_up_lines_is_seen_until_it_is_cancelled(tmp_path: Path) -> None:
    config = Slurm(cluster="local", in_flight=1, setup=("export TRIMTAB_TEST=1",))
    with config.executor(tmp_path, 1, "cpu", perform) as executor:
        executor.submit(Job("beat-1", job_spec(), tmp_path / "runs"))
        deadline = time.monotonic() + 60
        while not (tmp_path / "runs" / "beat-1" / BEATS).exists():
            assert time.monotonic() < deadline
            assert not [report for report in executor.poll(0.2) if report.kind in FINAL]
        assert not [report for report in executor.poll(1.5) if report.kind in FINAL]
    before = (tmp_path / "runs" / "beat-1" / BEATS).stat().st_size
    time.sleep(0.5)
    assert (tmp_path / "runs" / "beat-1" / BEATS).stat().st_size == before, "it goes on after cancel"


def test_without_slurm_nothing_is_written_and_the_message_names_a_way_to_try(study_file: Path, tmp_path: Path) -> None:
    if shutil.which("srun"):
        pytest.skip("this machine has Slurm")
    with pytest.raises(ConfigError, match="cluster=local"):
        load_study(study_file).run(tmp_path / "study", executor=Slurm())
    assert not (tmp_path / "study").exists()
