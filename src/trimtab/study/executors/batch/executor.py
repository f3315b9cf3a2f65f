"""Carry out runs as jobs of a batch system, which decides when and where they start.

Nothing that the batch system says is believed against the files: a run is done when its folder holds an outcome, and a
job is lost only when the batch system has not listed it, or lists it as ended, for a while in which no heartbeat moved.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import TracebackType

from trimtab.config import ConfigError
from trimtab.run.files import write_whole
from trimtab.run.heartbeat import load_beat
from trimtab.study.executors.batch.chunk import DESK, Chunk, claim_of, discard, give, letters, make_desk, release
from trimtab.study.executors.batch.queue import Listed, Queue, RefusedError
from trimtab.study.executors.batch.submissions import Batch, Submission, load_batches, new_batch
from trimtab.study.executors.contract import FINAL, Job, JobReport, Task, train_job

QUEUE = "queue.json"
LAST_RETRY = 600.0


class BatchExecutor:
    """Submits jobs to a batch system and follows them through files.

    Args:
        queue: the batch system.
        folder: the study folder, which all hosts see.
        in_flight: number of runs that wait or run in the batch system.
        runs_per_job: number of runs that one job carries out.
        task: the function that trains a run.
    """

    def __init__(
        self, queue: Queue, folder: Path, *, in_flight: int, runs_per_job: int = 1, task: Task = train_job
    ) -> None:
        self.queue = queue
        self.desk = folder.resolve() / DESK
        self.capacity = in_flight
        self.runs_per_job = runs_per_job
        self.task = task
        self.batches: list[Batch] = []
        self.waiting: list[Job] = []
        self.news: list[JobReport] = []
        self.asked = 0.0
        self.refusal = ""
        self.retry_at = 0.0
        self.retry_after = queue.retry_seconds

    def submit(self, job: Job) -> None:
        """Keep the job for the next poll, unless a job of an earlier driver still has it."""
        for submission in self._submissions():
            if job.name in submission.names and claim_of(self.desk, submission.token, job.name).held():
                submission.open.add(job.name)
                self.news.append(JobReport(job.name, "queued"))
                return
        self.waiting.append(job)
        self.news.append(JobReport(job.name, "queued"))

    def poll(self, timeout: float) -> list[JobReport]:
        """Submit what waits, then read the notes of workers and, from time to time, the states of jobs."""
        self._flush()
        deadline = time.monotonic() + timeout
        while True:
            reports = [*self.news, *self._read_mail()]
            self.news = []
            if time.monotonic() - self.asked >= self.queue.query_seconds:
                self.asked = time.monotonic()
                reports += self._ask()
            left = deadline - time.monotonic()
            if reports or left <= 0:
                return reports
            time.sleep(min(left, self.queue.mail_seconds))

    def drop(self, name: str) -> None:
        """Cancel the job that trains a run; its other runs are returned."""
        for submission in self._submissions():
            if name in submission.open:
                self.queue.cancel([submission.id])
                self.news += self._lost(submission, "it made no progress and was cancelled", guilty=name)

    def cancel(self) -> None:
        """Cancel every job, those of earlier drivers too."""
        self.waiting.clear()
        self.news.clear()
        ids = [submission.id for submission in self._submissions() if submission.id]
        for submission in self._submissions():
            self._close(submission, submission.names)
            submission.open.clear()
        if ids:
            self.queue.cancel(ids)
        for batch in self.batches:
            batch.delete(self.desk)
        self.batches.clear()
        (self.desk / QUEUE).unlink(missing_ok=True)

    def __enter__(self) -> BatchExecutor:
        make_desk(self.desk)
        self.batches = load_batches(self.desk)
        self._undo_unfinished()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.cancel()

    def _submissions(self) -> Iterator[Submission]:
        for batch in self.batches:
            yield from batch.submissions

    def _flush(self) -> None:
        if not self.waiting or time.monotonic() < self.retry_at:
            return
        size = self.runs_per_job
        groups = [self.waiting[start : start + size] for start in range(0, len(self.waiting), size)]
        batch = new_batch([[job.name for job in group] for group in groups])
        for submission in batch.submissions:
            for name in submission.names:
                give(claim_of(self.desk, submission.token, name))
        batch.save(self.desk)  # before the call, so that the next driver can find its jobs by their tag
        chunks = [
            Chunk(submission.token, tuple(group), self.desk, self.task, self.queue.passing)
            for submission, group in zip(batch.submissions, groups, strict=True)
        ]
        try:
            ids = self.queue.submit(batch.tag, chunks)
        except RefusedError as error:
            batch.delete(self.desk)
            if not error.passing:
                raise ConfigError(str(error)) from error
            self.refusal = str(error)
            self.retry_at = time.monotonic() + self.retry_after
            self.retry_after = min(2 * self.retry_after, LAST_RETRY)
            self._show({})
            return
        self.refusal = ""
        self.retry_after = self.queue.retry_seconds
        for submission, job_id in zip(batch.submissions, ids, strict=True):
            submission.id = job_id
        batch.save(self.desk)
        self.batches.append(batch)
        self.waiting.clear()

    def _read_mail(self) -> list[JobReport]:
        by_token = {submission.token: submission for submission in self._submissions()}
        reports: list[JobReport] = []
        for token, report in letters(self.desk):
            submission = by_token.get(token)
            if submission is None or report.name not in submission.names:
                discard(self.desk, token, report.name)  # of a submission that was given up
            elif report.name not in submission.open:
                continue  # of an earlier driver's run that nobody has asked for yet
            elif report.kind in FINAL:
                self._close(submission, [report.name])
                reports.append(report)
            elif report.name not in submission.begun:
                submission.begun.append(report.name)
                reports.append(report)
        self._forget_finished()
        return reports

    def _ask(self) -> list[JobReport]:
        """What changed in the batch system."""
        listed = self.queue.listed()
        if listed is None:  # it does not answer: nothing is decided
            return []
        reports: list[JobReport] = []
        for submission in self._submissions():
            if not submission.open:
                continue
            entry = listed.get(submission.id)
            if entry is None or entry.state == "ended":
                submission.cause = (entry.reason if entry else "") or submission.cause
                reports += self._if_settled(submission)
                continue
            submission.gone_since = None
            if entry.state != submission.state and submission.at_work is not None:
                kind = "started" if entry.state == "running" else "queued"
                reports.append(JobReport(submission.at_work, kind))
            submission.state = entry.state
        self._show(listed)
        self._forget_finished()
        return reports

    def _if_settled(self, submission: Submission) -> list[JobReport]:
        now = time.monotonic()
        beat = self._beat_of(submission)
        if submission.gone_since is None or beat != submission.beat:  # a job that beats is not gone
            submission.gone_since = now
            submission.beat = beat
            return []
        if now - submission.gone_since < self.queue.settle_seconds:
            return []
        cause = submission.cause or self.queue.cause(submission.id)
        reports = self._read_mail()
        return reports + (self._lost(submission, cause or "its job ended") if submission.open else [])

    def _lost(self, submission: Submission, cause: str, guilty: str | None = None) -> list[JobReport]:
        """The end of a job's open runs: the one at work was killed, and the others are returned.

        If none had begun, the first counts as killed, so that a job that can never start is not repeated for ever.
        """
        names = [name for name in submission.names if name in submission.open]
        at_work = guilty or submission.at_work or names[0]
        # A run that had the whole time of its job will not fit into the next job either.
        too_long = "TIMEOUT" in cause and submission.begun[:1] == [at_work]
        reports: list[JobReport] = []
        for name in names:
            if name != at_work:
                reports.append(JobReport(name, "returned"))
            elif too_long:
                reports.append(JobReport(name, "failed", message=f"{cause}: the run takes longer than its job may"))
            else:
                reports.append(JobReport(name, "killed", message=cause))
        self._close(submission, names)
        return reports

    def _close(self, submission: Submission, names: Sequence[str]) -> None:
        for name in names:
            release(claim_of(self.desk, submission.token, name))
            discard(self.desk, submission.token, name)
            submission.open.discard(name)

    def _forget_finished(self) -> None:
        for batch in [batch for batch in self.batches if batch.finished and self._is_ours(batch)]:
            batch.delete(self.desk)
            self.batches.remove(batch)

    def _is_ours(self, batch: Batch) -> bool:
        """Whether all runs of a batch were asked for: runs of an earlier driver's batch may still be."""
        return not any(
            claim_of(self.desk, submission.token, name).held()
            for submission in batch.submissions
            for name in submission.names
        )

    def _undo_unfinished(self) -> None:
        """Cancel the jobs of a driver that died while it submitted: they have no work yet, and no known ids."""
        unfinished = [batch for batch in self.batches if not all(one.id for one in batch.submissions)]
        if not unfinished:
            return
        tags = {batch.tag for batch in unfinished}
        self.queue.cancel([job for job, entry in (self.queue.listed() or {}).items() if entry.tag in tags])
        for batch in unfinished:
            for submission in batch.submissions:
                self._close(submission, submission.names)  # without its claim, a job that starts after all does nothing
            batch.delete(self.desk)
            self.batches.remove(batch)

    def _beat_of(self, submission: Submission) -> float:
        name = submission.at_work
        beat = load_beat(self.desk.parent / "runs" / name) if name else None
        return beat.time if beat is not None else 0.0

    def _show(self, listed: Mapping[str, Listed]) -> None:
        """Write the states of all jobs for ``trimtab status``."""
        states = {
            name: [submission.id, listed[submission.id].state, listed[submission.id].reason]
            for submission in self._submissions()
            for name in submission.open
            if submission.id in listed
        }
        write_whole(self.desk / QUEUE, json.dumps({"refusal": self.refusal, "jobs": states}))
