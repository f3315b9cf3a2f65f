"""What the study runner adds to its runs: 1,000 stub trials of 50 ms on 2 workers, every one exactly once."""

from __future__ import annotations

import argparse
import resource
import tempfile
import time
from pathlib import Path

from trimtab.run.folder import Outcome, RunFolder
from trimtab.study import Study
from trimtab.study.driver import run_study
from trimtab.study.executors.contract import Executor, Job, Progress
from trimtab.study.executors.processes import ProcessExecutor

STUB_SECONDS = 0.05


def stub(job: Job, progress: Progress) -> None:
    """Leaves a mark that shows double work, writes a whole run folder, and sleeps for the rest of its 50 ms."""
    ends = time.monotonic() + STUB_SECONDS
    (job.runs.parent / "marks").mkdir(exist_ok=True)
    with (job.runs.parent / "marks" / job.name).open("a") as mark:
        mark.write("once\n")
    folder = RunFolder(job.runs / job.name)
    folder.begin("", {})
    folder.append({"step": 1, "loss": 2.0})
    folder.finish(
        Outcome(
            run_id=job.name,
            stopped=None,
            steps=1,
            initial_loss=5.5,
            final_loss=2.0,
            norm_ratio=1.0,
            spike=0.0,
            log_vocab=5.5,
            unigram_entropy=3.1,
            bytes_per_token=1.0,
            held_out=((0, 5.5), (1, 2.0)),
            seconds=STUB_SECONDS,
        )
    )
    time.sleep(max(0.0, ends - time.monotonic()))


def executor_of(name: str, workers: int, folder: Path) -> Executor:
    """An executor for stubs; Ray takes all cores of this machine as its workers."""
    if name == "ray":
        from trimtab.study.executors.ray import RayExecutor

        return RayExecutor(folder, task=stub)
    return ProcessExecutor(workers, task=stub)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--executor", choices=["processes", "ray"], default="processes")
    parser.add_argument("--seeds", type=int, default=100)
    options = parser.parse_args()
    study = Study(
        arms=["baseline"],
        learning_rates={"low": 2**-7, "high": 2**2},
        search={"sweep_seeds": options.seeds, "replicates": 0, "most_runs": 10 * options.seeds},
    )
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place) / "study"
        started = time.perf_counter()
        findings = run_study(study.spec, folder, executor_of(options.executor, options.workers, folder))
        elapsed = time.perf_counter() - started
        marks = [mark.read_text().count("once") for mark in (folder / "marks").iterdir()]
    runs = len(findings.runs)
    ideal = runs * STUB_SECONDS / options.workers
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(
        f"{runs} trials of {STUB_SECONDS * 1e3:.0f} ms on {options.workers} workers: {elapsed:.1f} s, "
        f"{elapsed / ideal:.2f}x of the {ideal:.0f} s they sleep; exactly once: "
        f"{len(marks) == runs and set(marks) == {1}}; driver at most {memory:.0f} MB"
    )


if __name__ == "__main__":
    main()
