"""A study with 10,000 planned runs: the time of plan, status and resume, and the memory of the driver."""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

PLANNED = """
name = "large"
[training]
steps = 200
[learning_rates]
low = "2^-12"
high = "2^4"
octaves_apart = 0.5
[search]
most_runs = 1000
replicates = 0
sweep_seeds = 30
[arms]
{arms}
"""


def planned(arms: int) -> None:
    """Plan, status and resume of a study of 10,000 runs of which none is finished; as a user calls them."""
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place) / "study"
        file = Path(place) / "study.toml"
        caps = "\n".join(f"cap_{i} = {{ method = [{{ soft_cap = {{ cap = {i + 10} }} }}] }}" for i in range(1, arms))
        file.write_text(PLANNED.format(arms="baseline = {}\n" + caps))
        command = [sys.executable, "-m", "trimtab"]
        # As for a user, who has the bytecode of an earlier call.
        os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
        timed([*command, "study", str(file), "--plan"])
        print(f"plan: {timed([*command, 'study', str(file), '--plan']):.1f} s", flush=True)
        driver = subprocess.Popen(
            [*command, "study", str(file), "--out", str(folder), "--workers", "1"], stdout=subprocess.DEVNULL
        )
        wait_for_a_run(folder)
        count = len(json.loads((folder / "index.json").read_text())["trials"])
        print(f"runs planned: {count:,}")
        print(f"status: {timed([*command, 'status', str(folder), '--json']):.1f} s", flush=True)
        driver.kill()
        driver.wait()
        time.sleep(2.0)
        for beat in (folder / "runs").glob("*/heartbeat"):
            beat.unlink()
        started = time.perf_counter()
        driver = subprocess.Popen(
            [*command, "study", str(file), "--out", str(folder), "--workers", "1"], stdout=subprocess.DEVNULL
        )
        wait_for_a_run(folder)
        print(f"resume, until the first run is at work: {time.perf_counter() - started:.1f} s")
        memory = next(
            int(line.split()[1]) for line in Path(f"/proc/{driver.pid}/status").read_text().splitlines()
            if line.startswith("VmRSS")
        )  # fmt: skip
        print(f"memory of the driver: {memory / 1024:.0f} MB", flush=True)
        driver.kill()
        driver.wait()


def wait_for_a_run(folder: Path) -> None:
    """Until a run is at work; at most two minutes."""
    deadline = time.monotonic() + 120
    while not list((folder / "runs").glob("*/heartbeat")):
        if time.monotonic() > deadline:
            raise TimeoutError("no run began")
        time.sleep(0.05)


def timed(command: list[str]) -> float:
    started = time.perf_counter()
    subprocess.run(command, check=False, stdout=subprocess.DEVNULL)
    return time.perf_counter() - started


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--arms", type=int, default=8, help="33 learning rates with 30 seeds each")
    planned(parser.parse_args().arms)


if __name__ == "__main__":
    main()
