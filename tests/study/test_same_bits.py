"""Whatever carries a study out, at one number of threads: the same bits of every run, and the same table."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from trimtab import Study
from trimtab.study.executors import ExecutorConfig
from trimtab.study.executors.inline import Inline
from trimtab.study.executors.processes import Processes
from trimtab.study.executors.ray import Ray
from trimtab.study.executors.slurm import Slurm
from trimtab.study.kind import Findings

WAYS = {
    "one process": Processes(workers=1),
    "two processes": Processes(workers=2),
    "submitit": Slurm(cluster="local", runs_per_job=4),
    "ray": Ray(),
}
EXACT = ("steps.jsonl", "spec.toml", "predictions.npz")


pytestmark = pytest.mark.usefixtures("ray_here")


@pytest.fixture(scope="module")
def inline(tiny: Callable[..., Study], tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Findings]:
    folder = tmp_path_factory.mktemp("inline") / "study"
    return folder, tiny().run(folder, executor=Inline())


@pytest.mark.parametrize(
    "way",
    [
        # Each job of submitit imports torch anew; test_slurm compares the results of its jobs.
        pytest.param(way, marks=pytest.mark.nightly if name == "submitit" else ())
        for name, way in WAYS.items()
    ],
    ids=WAYS,
)
def test_every_executor_gives_the_bits_of_this_process(
    way: ExecutorConfig,
    tiny: Callable[..., Study],
    inline: tuple[Path, Findings],
    text_of: Callable[[Findings], str],
    tmp_path: Path,
) -> None:
    folder, expected = inline
    findings = tiny().run(tmp_path / "study", executor=way)
    assert text_of(findings) == text_of(expected)
    runs = sorted(path.name for path in (folder / "runs").iterdir())
    assert runs
    assert sorted(path.name for path in (tmp_path / "study" / "runs").iterdir()) == runs
    for run in runs:
        for name in EXACT:
            here, there = (place / "runs" / run / name for place in (tmp_path / "study", folder))
            assert here.read_bytes() == there.read_bytes(), f"{run}/{name}"
