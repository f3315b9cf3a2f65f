"""A Slurm that lies, delays, suspends, pre-empts and kills.

As a script it is ``sbatch``, ``squeue``, ``scancel``, ``sacct`` or ``srun``, by the name of the link it is called by.
``Controller`` starts the jobs, as the daemons of Slurm do, and injects faults. They share a folder of JSON files.
"""

from __future__ import annotations

import json
import os
import random
import re
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from pathlib import Path
from typing import Any

COMMANDS = ("sbatch", "squeue", "scancel", "sacct", "srun")
OPEN = ("PENDING", "RUNNING", "SUSPENDED")
TICK = 0.05


class Spool:
    """The jobs, one file each; ``modes`` are files that change what the commands say."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def jobs(self) -> dict[str, dict[str, Any]]:
        found = {}
        for file in sorted(self.folder.glob("job-*.json")):
            try:
                found[file.stem.removeprefix("job-")] = json.loads(file.read_text())
            except (OSError, ValueError):
                continue
        return found

    def put(self, job_id: str, **values: Any) -> None:
        file = self.folder / f"job-{job_id}.json"
        job = json.loads(file.read_text()) if file.exists() else {}
        part = file.with_suffix(f".{os.getpid()}.{threading.get_ident()}")
        part.write_text(json.dumps(job | values))
        part.replace(file)

    def mode(self, name: str) -> bool:
        """Whether a mode is on; a mode that somebody met is marked."""
        on = (self.folder / f"mode-{name}").exists()
        if on:
            (self.folder / f"met-{name}").touch()
        return on


def main() -> None:
    spool = Spool(Path(os.environ["SHIM_FOLDER"]))
    globals()[f"_{Path(sys.argv[0]).name}"](spool, sys.argv[1:])


def _sbatch(spool: Spool, arguments: list[str]) -> None:
    if spool.mode("refuse"):
        sys.exit("sbatch: error: QOSMaxSubmitJobPerUserLimit\nsbatch: error: Batch job submission failed: limit")
    text = Path(arguments[-1]).read_text()
    number = int(time.time_ns() // 1000 % 10**9)
    array = re.search(r"--array=(\S+)", text)
    name = re.search(r"--job-name=(\S+)", text)
    count = int(re.search(r"0-(\d+)", array[1])[1]) + 1 if array else 0  # type: ignore[index]
    for index in range(max(1, count)):
        job_id = f"{number}_{index}" if count else str(number)
        spool.put(job_id, state="PENDING", script=arguments[-1], tag=name[1] if name else "", at=time.time())
    if spool.mode("die_after_sbatch"):  # the driver dies before it hears the id
        os.kill(int((spool.folder / "mode-die_after_sbatch").read_text()), signal.SIGKILL)
    print(f"Submitted batch job {number}")


def _squeue(spool: Spool, arguments: list[str]) -> None:
    if spool.mode("silent_queue"):
        sys.exit("slurm_load_jobs error: Unable to contact slurm controller (connect failure)")
    for job_id, job in spool.jobs().items():
        if spool.mode("empty_queue") or job.get("hidden"):
            continue
        state = "COMPLETED" if job.get("said_done") else job["state"]
        print(f"{job_id}|{state}|{'Resources' if state == 'PENDING' else 'None'}|{job['tag']}")


def _scancel(spool: Spool, arguments: list[str]) -> None:
    for job_id, job in spool.jobs().items():
        if job_id in arguments and job["state"] in OPEN:
            spool.put(job_id, cancelled=True)


def _sacct(spool: Spool, arguments: list[str]) -> None:
    sys.exit("Slurm accounting storage is disabled")


def _srun(spool: Spool, arguments: list[str]) -> None:
    """Run the command; the options before it name the files of its output."""
    options = {arguments[i]: arguments[i + 1] for i in range(len(arguments) - 1) if arguments[i] in _FILES}
    start = next(i for i, word in enumerate(arguments) if "python" in Path(word).name)
    names = {"%j": os.environ["SHIM_JOB"], "%A_%a": os.environ["SHIM_JOB"], "%t": "0"}
    files = {}
    for flag, name in options.items():
        for mark, value in names.items():
            name = name.replace(mark, value)
        Path(name).parent.mkdir(parents=True, exist_ok=True)
        files[flag] = open(name, "a")  # noqa: PTH123, SIM115
    os.dup2(files["--output"].fileno(), 1)
    os.dup2(files["--error"].fileno(), 2)
    os.execvp(arguments[start], arguments[start:])


_FILES = ("--output", "--error")


class Controller(threading.Thread):
    """Starts jobs and injects faults until it is closed.

    Args:
        folder: an empty folder; ``commands`` in it belongs at the front of PATH.
        seed: of the choice of faults.
        faults: the most faults to inject, with ``gap`` seconds between two of them.
    """

    def __init__(self, folder: Path, *, seed: int = 0, faults: int = 0, gap: float = 0.7, width: int = 2) -> None:
        super().__init__(daemon=True)
        self.spool = Spool(folder)
        self.commands = folder / "commands"
        self.commands.mkdir(parents=True)
        for name in COMMANDS:
            script = self.commands / name
            script.write_text(f"#!{sys.executable}\nimport sys\nsys.path.insert(0, {str(Path(__file__).parent)!r})\n"
                              "import slurm_shim\nslurm_shim.main()\n")  # fmt: skip
            script.chmod(0o755)
        self.chance = random.Random(seed)
        self.wanted = faults
        self.gap = gap
        self.width = width
        self.planned: list[str] = []
        self.injected: Counter[str] = Counter()
        self.processes: dict[str, subprocess.Popen[bytes]] = {}
        self.later: list[tuple[float, Any]] = []
        self.next_fault = 0.0
        self.open = True

    @property
    def environment(self) -> dict[str, str]:
        path = f"{self.commands}:{os.environ['PATH']}"
        return {**os.environ, "PATH": path, "SHIM_FOLDER": str(self.spool.folder)}

    def run(self) -> None:
        while self.open:
            self._due()
            jobs = self.spool.jobs()
            self._look_after(jobs)
            self._start(jobs)
            if sum(self.injected.values()) < self.wanted and time.time() > self.next_fault:
                self._inject(jobs)
            time.sleep(TICK)

    def close(self) -> None:
        self.open = False
        self.join()
        for process in self.processes.values():
            _signal(process, signal.SIGKILL)

    def live(self) -> list[str]:
        return [job for job, process in self.processes.items() if process.poll() is None]

    def _start(self, jobs: dict[str, dict[str, Any]]) -> None:
        for job_id, job in jobs.items():
            if len(self.live()) >= self.width:
                return
            if job["state"] != "PENDING" or time.time() - job["at"] < 0.2 or job.get("cancelled"):
                continue
            main, _, index = job_id.partition("_")
            environment = self.environment | {
                "SHIM_JOB": job_id,
                "SLURM_JOB_ID": main,
                "SLURM_NTASKS": "1",
                "SLURM_PROCID": "0",
                "SLURM_LOCALID": "0",
                "SLURM_NODEID": "0",
                "SLURM_JOB_NUM_NODES": "1",
            }
            if index:
                environment |= {"SLURM_ARRAY_JOB_ID": main, "SLURM_ARRAY_TASK_ID": index}
            self.processes[job_id] = subprocess.Popen(
                ["bash", job["script"]], env=environment, start_new_session=True,
                stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
            )  # fmt: skip
            self.spool.put(job_id, state="RUNNING")

    def _look_after(self, jobs: dict[str, dict[str, Any]]) -> None:
        for job_id, job in jobs.items():
            process = self.processes.get(job_id)
            if job.get("cancelled") and job["state"] in OPEN:
                if process is not None:
                    _signal(process, signal.SIGKILL)
                self.spool.put(job_id, state="CANCELLED")
            elif job["state"] == "RUNNING" and process is not None and process.poll() is not None:
                self.spool.put(job_id, state="COMPLETED" if process.returncode == 0 else "FAILED")

    def _due(self) -> None:
        now = time.time()
        for item in [item for item in self.later if item[0] <= now]:
            self.later.remove(item)
            item[1]()

    def _in(self, seconds: float, action: Any) -> None:
        self.later.append((time.time() + seconds, action))

    def _inject(self, jobs: dict[str, dict[str, Any]]) -> None:
        running = [job for job in self.live() if jobs.get(job, {}).get("state") == "RUNNING"]
        if not self.planned:
            self.planned = self.chance.sample(FAULTS, len(FAULTS))
        fault = self.planned[-1]
        if fault not in ON_A_JOB:
            getattr(self, fault)()  # counted when somebody meets it
        elif running:
            getattr(self, fault)(self.chance.choice(running))
            self.injected[fault] += 1
        else:
            return
        self.planned.pop()
        self.next_fault = time.time() + self.gap * self.chance.uniform(0.5, 1.5)

    # --- faults of one job

    def kill(self, job_id: str) -> None:
        _signal(self.processes[job_id], signal.SIGKILL)
        self.spool.put(job_id, state=self.chance.choice(["NODE_FAIL", "OUT_OF_MEMORY", "FAILED"]))

    def vanish(self, job_id: str) -> None:
        """Killed from outside, and never listed again."""
        _signal(self.processes[job_id], signal.SIGKILL)
        self.spool.put(job_id, state="CANCELLED", hidden=True)

    def preempt(self, job_id: str) -> None:
        """Killed and started again under the same id."""
        _signal(self.processes[job_id], signal.SIGKILL)
        self.processes[job_id].wait()
        self.spool.put(job_id, state="PENDING", at=time.time() + 1)

    def suspend(self, job_id: str) -> None:
        _signal(self.processes[job_id], signal.SIGSTOP)
        self.spool.put(job_id, state="SUSPENDED")
        self._in(1.5, lambda: self._resume(job_id))

    def hide_suspended(self, job_id: str) -> None:
        """Suspended and not listed for so long that the driver gives it up; then it wakes beside its replacement."""
        _signal(self.processes[job_id], signal.SIGSTOP)
        self.spool.put(job_id, state="SUSPENDED", hidden=True)
        self._in(6.0, lambda: self._resume(job_id))

    def say_done(self, job_id: str) -> None:
        """Listed as completed while it runs."""
        self.spool.put(job_id, said_done=True)

    def _resume(self, job_id: str) -> None:
        process = self.processes[job_id]
        if process.poll() is None:
            self.spool.put(job_id, state="RUNNING", hidden=False)
            _signal(process, signal.SIGCONT)

    # --- faults of the whole system

    def silent_queue(self) -> None:
        self._mode("silent_queue", 2.0)

    def empty_queue(self) -> None:
        self._mode("empty_queue", 1.2)

    def refuse(self) -> None:
        self._mode("refuse", 1.0)

    def _mode(self, name: str, seconds: float) -> None:
        file = self.spool.folder / f"mode-{name}"
        file.touch()

        def end() -> None:
            file.unlink(missing_ok=True)
            met = self.spool.folder / f"met-{name}"
            if met.exists():
                met.unlink()
                self.injected[name] += 1

        self._in(seconds, end)


ON_A_JOB = ("kill", "vanish", "preempt", "suspend", "hide_suspended", "say_done")
FAULTS = (*ON_A_JOB, "silent_queue", "empty_queue", "refuse")


def _signal(process: subprocess.Popen[bytes], number: int) -> None:
    """Signal a job's whole session."""
    try:
        os.killpg(process.pid, number)
    except ProcessLookupError:
        return
