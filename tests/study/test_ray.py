"""Runs as tasks of Ray."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import ClassVar

import pytest
import ray

from trimtab.study.executors.contract import Executor, Task
from trimtab.study.executors.ray import RayExecutor
from trimtab.testing import ExecutorContract


@pytest.fixture(scope="module", autouse=True)
def _ray(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Ray once for all tests of this file, with its token in a folder of its own."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HOME", str(tmp_path_factory.mktemp("home")))
        ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False, logging_level="ERROR")
        yield
        ray.shutdown()


class TestRay(ExecutorContract):
    folder: ClassVar[Path]

    @pytest.fixture(autouse=True)
    def _folder(self, tmp_path_factory: pytest.TempPathFactory) -> None:
        type(self).folder = tmp_path_factory.mktemp("study")

    def make_executor(self, task: Task) -> Executor:
        return RayExecutor(type(self).folder, in_flight=2, task=task)
