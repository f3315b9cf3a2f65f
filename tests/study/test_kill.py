"""Kill the driver, or a worker, whenever: the same command must go on to the same results and leave nobody behind."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import tomli_w

from trimtab.testing.executor_contract import FORK_SERVER, live_processes

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]

KILLS = int(os.environ.get("TRIMTAB_TEST_KILLS", "3"))
SEED = int(os.environ.get("TRIMTAB_TEST_SEED", "20260401"))
STARTS = 4 if KILLS > 3 else 1
ORPHAN_SECONDS = 40  # a worker that is still importing torch on busy cores notices late


@pytest.fixture(scope="module")
def study_file(tiny_tables: Callable[..., dict[str, Any]], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A study of 18 runs of a quarter of a second or so each."""
    path = tmp_path_factory.mktemp("kill") / "study.toml"
    tables = tiny_tables(
        training={"steps": 80},
        search={"replicates": 1, "probes_per_round": 2, "most_runs": 9},
    )
    path.write_text(tomli_w.dumps(tables), encoding="utf-8")
    return path


@dataclass
class Undisturbed:
    """The study that nobody disturbed: its results and how long it took."""

    results: bytes
    seconds: float


@pytest.fixture(scope="module")
def undisturbed(study_file: Path) -> Undisturbed:
    folder = study_file.parent / "undisturbed"
    started = time.monotonic()
    driver = Driver(study_file, folder)
    assert driver.wait() == 0, driver.errors()
    return Undisturbed(results(folder), time.monotonic() - started)


class Driver:
    """``trimtab study`` in a session of its own."""

    def __init__(self, study_file: Path, folder: Path) -> None:
        self.log = folder.with_suffix(".stderr")
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "trimtab", "study", study_file, "--out", folder, "--workers", "2"],
                stdout=subprocess.DEVNULL,
                stderr=log,
                start_new_session=True,
                # A shell that runs the tests in the background has children ignore SIGINT.
                preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
            )

    def wait(self, timeout: float = 600) -> int:
        return self.process.wait(timeout)

    def ended_within(self, seconds: float) -> bool:
        try:
            self.process.wait(seconds)
        except subprocess.TimeoutExpired:
            return False
        return True

    def errors(self) -> str:
        return self.log.read_text(errors="replace")

    def session(self) -> dict[int, str]:
        """Live processes of the session, the driver included: number and command line."""
        found: dict[int, str] = {}
        for entry in Path("/proc").iterdir():
            try:
                fields = (entry / "stat").read_text().rpartition(")")[2].split()
                command = (entry / "cmdline").read_text().replace("\0", " ")
            except (OSError, ValueError):
                continue
            if int(fields[3]) == self.process.pid and fields[0] != "Z":
                found[int(entry.name)] = command
        return found

    def workers(self) -> list[int]:
        """Those that the fork server started; its own parent is the driver."""
        session = self.session()
        return [
            number
            for number, (parent, command) in live_processes().items()
            if number in session and FORK_SERVER in command and parent != self.process.pid
        ]

    def assert_nobody_left(self) -> None:
        deadline = time.monotonic() + ORPHAN_SECONDS
        while self.session() and time.monotonic() < deadline:
            time.sleep(0.1)
        assert self.session() == {}


def results(folder: Path) -> bytes:
    content, separator, _ = (folder / "results.json").read_bytes().partition(b'"provenance"')
    assert separator
    return content


@pytest.mark.nightly  # at moments that are not left to chance: test_crash_points
def test_kills_of_the_driver_change_nothing(study_file: Path, undisturbed: Undisturbed, tmp_path: Path) -> None:
    chance = random.Random(SEED)
    print(f"seed {SEED}")
    latest = max(8.0, 0.6 * undisturbed.seconds)  # busy cores start slowly, and a kill must also meet training
    kills = completed = 0
    folder = tmp_path / "study-0"
    while kills < KILLS:
        driver = Driver(study_file, folder)
        seconds = chance.uniform(1, latest)
        if driver.ended_within(seconds):
            assert driver.process.returncode == 0, driver.errors()
            assert results(folder) == undisturbed.results
            completed += 1
            latest = max(8.0, 0.7 * latest)  # the cores are less busy by now
            folder = tmp_path / f"study-{completed}"
        else:
            driver.process.kill()
            driver.wait()
            kills += 1
            print(f"kill {kills} after {seconds:.2f} s, {len(list(folder.glob('runs/*/outcome.json')))} runs done")
        driver.assert_nobody_left()
        assert "Traceback" not in driver.errors(), driver.errors()
    driver = Driver(study_file, folder)
    assert driver.wait() == 0, driver.errors()
    assert results(folder) == undisturbed.results
    driver.assert_nobody_left()
    print(f"{kills} kills, {completed + 1} studies finished, 0 violations")


@pytest.mark.nightly
@pytest.mark.parametrize("kind", ["loss_at_lr", "max_lr_by_size"])
def test_kills_of_the_driver_change_nothing_in_other_kinds_of_study(
    kind: str, tiny_tables: Callable[..., dict[str, Any]], tmp_path: Path
) -> None:
    tables = tiny_tables(
        training={"steps": 100},
        evaluation={"final_blocks": 4, "block_bytes": 256},
        search={"replicates": 0, "most_runs": 4},
    )
    tables |= {
        "kind": kind,
        "sizes": {"1 layer": {"model": {"num_layers": 1}}, "2 layers": {"model": {"num_layers": 2}}},
    }
    if kind == "loss_at_lr":
        del tables["search"]
        tables["comparison"] = {"seeds": 2, "at_size": "1 layer"}
    study_file = tmp_path / "study.toml"
    study_file.write_text(tomli_w.dumps(tables), encoding="utf-8")
    driver = Driver(study_file, tmp_path / "undisturbed")
    assert driver.wait() == 0, driver.errors()
    folder, chance = tmp_path / "study", random.Random(SEED + 3)
    for runs_done in (1, 4):  # killed in the first round, and in the second
        driver = Driver(study_file, folder)
        while len(list(folder.glob("runs/*/outcome.json"))) < runs_done:
            assert not driver.ended_within(0.05), driver.errors()
        time.sleep(chance.uniform(0, 0.5))
        driver.process.kill()
        driver.wait()
        driver.assert_nobody_left()
    driver = Driver(study_file, folder)
    assert driver.wait() == 0, driver.errors()
    assert results(folder) == results(tmp_path / "undisturbed")
    driver.assert_nobody_left()


@pytest.mark.nightly
def test_killed_workers_change_nothing(study_file: Path, undisturbed: Undisturbed, tmp_path: Path) -> None:
    chance = random.Random(SEED + 1)
    folder = tmp_path / "study"
    driver = Driver(study_file, folder)
    kills = 0
    while not driver.ended_within(chance.uniform(1, 3)):
        workers = driver.workers()
        if workers and kills < 4:
            os.kill(chance.choice(workers), signal.SIGKILL)
            kills += 1
    assert kills >= 2, "too few kills for a finding"
    assert driver.process.returncode == 0, driver.errors()
    assert results(folder) == undisturbed.results
    driver.assert_nobody_left()


def wait_for_a_run(folder: Path, driver: Driver, file: str = "outcome.json") -> None:
    """Until a run has ended; or has begun, with another file."""
    while not list(folder.glob(f"runs/*/{file}")):
        assert not driver.ended_within(0.1), driver.errors()


@pytest.mark.parametrize(
    ("number", "code", "whole_group"),
    [
        (signal.SIGTERM, 75, False),
        pytest.param(signal.SIGINT, 130, True, marks=pytest.mark.nightly),
        pytest.param(signal.SIGTERM, 75, True, marks=pytest.mark.nightly),
        pytest.param(signal.SIGINT, 130, False, marks=pytest.mark.nightly),
    ],
    ids=["SIGTERM to the driver", "SIGINT to the group", "SIGTERM to the group", "SIGINT to the driver"],
)
def test_signals_end_with_their_codes_and_the_study_goes_on(
    study_file: Path, undisturbed: Undisturbed, tmp_path: Path, number: signal.Signals, code: int, whole_group: bool
) -> None:
    folder = tmp_path / "study"
    driver = Driver(study_file, folder)
    wait_for_a_run(folder, driver)
    (os.killpg if whole_group else os.kill)(driver.process.pid, number)
    assert driver.wait(60) == code, driver.errors()
    assert driver.errors().count("\n") == 1, driver.errors()
    assert "run the same command again" in driver.errors()
    driver.assert_nobody_left()
    driver = Driver(study_file, folder)
    assert driver.wait() == 0, driver.errors()
    assert results(folder) == undisturbed.results


def listens(driver: Driver) -> bool:
    """Whether the command line has begun: its handler for SIGTERM is in place. Before, Python alone answers."""
    status = Path(f"/proc/{driver.process.pid}/status").read_text()
    caught = int(next(line for line in status.splitlines() if line.startswith("SigCgt")).split()[1], 16)
    return bool(caught >> (signal.SIGTERM - 1) & 1)


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 75), (signal.SIGINT, 130)])
def test_signals_while_starting_end_with_their_codes(
    study_file: Path, tmp_path: Path, number: signal.Signals, code: int
) -> None:
    chance = random.Random(SEED + 2)
    for attempt in range(STARTS):
        driver = Driver(study_file, tmp_path / "study")
        while not listens(driver):
            assert not driver.ended_within(0.01), driver.errors()
        seconds = chance.uniform(0, 3)
        assert not driver.ended_within(seconds)
        os.killpg(driver.process.pid, number)
        assert driver.wait(60) == code, (attempt, seconds, driver.errors())
        assert "Traceback" not in driver.errors(), (attempt, seconds, driver.errors())
        driver.assert_nobody_left()


def test_a_second_driver_leaves_at_once_with_31(tiny_tables: Callable[..., dict[str, Any]], tmp_path: Path) -> None:
    folder = tmp_path / "study"
    study_file = tmp_path / "long.toml"
    study_file.write_text(tomli_w.dumps(tiny_tables(training={"steps": 4000})), encoding="utf-8")
    first = Driver(study_file, folder)
    wait_for_a_run(folder, first, "heartbeat")
    other = subprocess.run(
        [sys.executable, "-m", "trimtab", "study", study_file, "--out", folder, "--workers", "2"],
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert other.returncode == 31, other.stderr
    assert str(first.process.pid) in other.stderr
    assert first.process.poll() is None, "the first driver ended"
    first.process.kill()
    first.wait()
    first.assert_nobody_left()
