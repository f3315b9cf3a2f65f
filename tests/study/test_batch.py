"""What becomes of the runs of a job that a batch system ends, loses, or does not accept."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from pathlib import Path

import pytest

from trimtab.config import ConfigError
from trimtab.run.heartbeat import HEARTBEAT
from trimtab.study.executors.batch.chunk import Chunk, claim_of, post
from trimtab.study.executors.batch.executor import BatchExecutor
from trimtab.study.executors.batch.queue import Listed, RefusedError
from trimtab.study.executors.batch.submissions import load_batches
from trimtab.study.executors.contract import Claim, Job, JobReport
from trimtab.testing.executor_tasks import job_spec, perform


class FakeQueue:
    """A batch system whose jobs do what the test says."""

    settle_seconds = 0.0
    query_seconds = 0.0
    mail_seconds = 0.01
    retry_seconds = 0.05
    passing = ()

    def __init__(self) -> None:
        self.chunks: dict[str, Chunk] = {}
        self.jobs: dict[str, Listed] | None = {}
        self.cancelled: list[str] = []
        self.refusals: list[RefusedError] = []
        self.why = ""

    def submit(self, tag: str, chunks: Sequence[Chunk]) -> Sequence[str]:
        if self.refusals:
            raise self.refusals.pop()
        ids = [f"7_{len(self.chunks) + index}" for index in range(len(chunks))]
        for job_id, chunk in zip(ids, chunks, strict=True):
            self.chunks[job_id] = chunk
            assert self.jobs is not None
            self.jobs[job_id] = Listed("running", "", tag)
        return ids

    def listed(self) -> Mapping[str, Listed] | None:
        return self.jobs

    def cause(self, job_id: str) -> str:
        return self.why

    def cancel(self, ids: Sequence[str]) -> None:
        self.cancelled += ids


NAMES = ("write-1", "write-2", "write-3")


def begin(queue: FakeQueue, folder: Path, runs_per_job: int = 3) -> BatchExecutor:
    """An executor with three runs submitted."""
    executor = BatchExecutor(queue, folder, in_flight=10, runs_per_job=runs_per_job, task=perform)
    executor.__enter__()
    for name in NAMES:
        executor.submit(Job(name, job_spec(), folder / "runs"))
    executor.poll(0)
    return executor


def ends(executor: BatchExecutor, polls: int = 6) -> dict[str, tuple[str, str]]:
    """The final reports of the next polls: kind and message by name; each name once."""
    found: dict[str, tuple[str, str]] = {}
    for _ in range(polls):
        for report in executor.poll(0.01):
            if report.kind not in ("queued", "started"):
                assert report.name not in found
                found[report.name] = (report.kind, report.message)
    return found


def note(queue: FakeQueue, name: str, kind: str) -> None:
    chunk = queue.chunks["7_0"]
    post(chunk.desk, chunk.token, JobReport(name, kind))  # type: ignore[arg-type]


def test_of_a_job_that_dies_the_run_at_work_was_killed_and_the_others_come_back(tmp_path: Path) -> None:
    queue = FakeQueue()
    executor = begin(queue, tmp_path)
    note(queue, "write-1", "done")
    note(queue, "write-2", "started")
    assert ends(executor) == {"write-1": ("done", "")}
    queue.jobs = {"7_0": Listed("ended", "NODE_FAIL")}
    assert ends(executor) == {"write-2": ("killed", "NODE_FAIL"), "write-3": ("returned", "")}


def test_a_job_that_never_begins_counts_against_its_first_run(tmp_path: Path) -> None:
    queue = FakeQueue()
    executor = begin(queue, tmp_path)
    queue.jobs, queue.why = {}, "FAILED: no such container"
    assert ends(executor) == {
        "write-1": ("killed", "FAILED: no such container"),
        "write-2": ("returned", ""),
        "write-3": ("returned", ""),
    }


def test_a_run_that_had_the_whole_time_of_its_job_has_failed(tmp_path: Path) -> None:
    queue = FakeQueue()
    executor = begin(queue, tmp_path)
    note(queue, "write-1", "started")
    ends(executor)
    queue.jobs = {"7_0": Listed("ended", "TIMEOUT")}
    kind, message = ends(executor)["write-1"]
    assert kind == "failed"
    assert "takes longer than its job may" in message


def test_a_later_run_of_a_job_that_ran_out_of_time_was_only_killed(tmp_path: Path) -> None:
    queue = FakeQueue()
    executor = begin(queue, tmp_path)
    note(queue, "write-1", "started")
    ends(executor)
    note(queue, "write-1", "done")
    note(queue, "write-2", "started")
    ends(executor)
    queue.jobs = {"7_0": Listed("ended", "TIMEOUT")}
    assert ends(executor)["write-2"][0] == "killed"


def test_while_the_queue_does_not_answer_nothing_is_decided(tmp_path: Path) -> None:
    queue = FakeQueue()
    executor = begin(queue, tmp_path)
    queue.jobs = None
    assert ends(executor, 20) == {}


def test_a_job_that_is_not_listed_and_beats_is_not_lost(tmp_path: Path) -> None:
    queue = FakeQueue()
    queue.settle_seconds = 0.2
    executor = begin(queue, tmp_path)
    note(queue, "write-1", "started")
    ends(executor)
    queue.jobs = {}
    (tmp_path / "runs" / "write-1").mkdir(parents=True)
    for step in range(20):
        (tmp_path / "runs" / "write-1" / HEARTBEAT).write_text(f'{{"step": {step}, "loss": 1.0}}')
        time.sleep(0.02)
        assert ends(executor, 1) == {}
    assert ends(executor, 40)["write-1"][0] == "killed"


def test_a_suspended_run_is_silent_with_reason(tmp_path: Path) -> None:
    queue = FakeQueue()
    executor = begin(queue, tmp_path)
    note(queue, "write-1", "started")
    ends(executor)
    queue.jobs = {"7_0": Listed("waiting", "SUSPENDED")}
    assert JobReport("write-1", "queued") in executor.poll(0)
    queue.jobs = {"7_0": Listed("running")}
    assert JobReport("write-1", "started") in executor.poll(0)


def test_after_a_drop_the_old_worker_may_not_write_and_its_news_is_ignored(tmp_path: Path) -> None:
    queue = FakeQueue()
    executor = begin(queue, tmp_path)
    chunk = queue.chunks["7_0"]
    note(queue, "write-1", "started")
    ends(executor)
    assert claim_of(chunk.desk, chunk.token, "write-1").held()
    executor.drop("write-1")
    assert queue.cancelled == ["7_0"]
    assert not claim_of(chunk.desk, chunk.token, "write-1").held()
    assert ends(executor)["write-1"][0] == "killed"
    note(queue, "write-1", "done")
    assert ends(executor) == {}
    chunk()  # wakes after all
    assert not (tmp_path / "runs" / "write-1").exists()


def test_a_job_that_is_started_again_skips_what_it_finished(tmp_path: Path) -> None:
    queue = FakeQueue()
    executor = begin(queue, tmp_path)
    chunk = queue.chunks["7_0"]
    chunk()
    assert {name: kind for name, (kind, _) in ends(executor).items()} == dict.fromkeys(NAMES, "done")
    chunk()  # would raise: the folders exist


def test_a_refusal_for_a_limit_is_tried_again_and_shown(tmp_path: Path) -> None:
    queue = FakeQueue()
    queue.refusals = [RefusedError("sbatch: limit", passing=True)]
    executor = begin(queue, tmp_path)
    assert not queue.chunks
    assert "sbatch: limit" in (tmp_path / "jobs" / "queue.json").read_text()
    time.sleep(0.1)
    executor.poll(0)
    assert queue.chunks


def test_any_other_refusal_ends_the_study(tmp_path: Path) -> None:
    queue = FakeQueue()
    queue.refusals = [RefusedError("sbatch: invalid account", passing=False)]
    with pytest.raises(ConfigError, match="invalid account"):
        begin(queue, tmp_path)
    assert not list((tmp_path / "jobs").glob("batch-*"))


def test_the_next_driver_takes_over_what_a_dead_one_submitted(tmp_path: Path) -> None:
    queue = FakeQueue()
    begin(queue, tmp_path)  # dies without a word
    chunk = queue.chunks["7_0"]
    executor = begin(queue, tmp_path)
    assert list(queue.chunks) == ["7_0"], "submitted twice"
    note(queue, "write-1", "done")
    assert ends(executor) == {"write-1": ("done", "")}
    queue.jobs = {}
    assert set(ends(executor)) == {"write-2", "write-3"}
    assert not claim_of(chunk.desk, chunk.token, "write-2").held()


def test_jobs_of_a_driver_that_died_while_it_submitted_are_cancelled_and_do_nothing(tmp_path: Path) -> None:
    queue = FakeQueue()
    begin(queue, tmp_path)
    chunk = queue.chunks["7_0"]
    record = next((tmp_path / "jobs").glob("batch-*"))
    batch = load_batches(tmp_path / "jobs")[0]
    batch.submissions[0].id = ""  # the answer of the batch system never came
    batch.save(tmp_path / "jobs")
    queue.jobs = {"7_0": Listed("waiting", "Resources", record.stem.removeprefix("batch-"))}
    BatchExecutor(queue, tmp_path, in_flight=1).__enter__()
    assert queue.cancelled == ["7_0"]
    assert not list((tmp_path / "jobs").glob("batch-*"))
    chunk()
    assert not (tmp_path / "runs").exists()


def test_a_claim_that_is_gone_is_not_held(tmp_path: Path) -> None:
    assert not Claim(tmp_path / "nothing", "x").held()


def test_leaving_cancels_everything_and_leaves_no_record(tmp_path: Path) -> None:
    queue = FakeQueue()
    executor = begin(queue, tmp_path, runs_per_job=1)
    executor.__exit__(None, None, None)
    assert sorted(queue.cancelled) == ["7_0", "7_1", "7_2"]
    assert not list((tmp_path / "jobs").glob("batch-*"))
    assert not list((tmp_path / "jobs" / "claims").iterdir())
