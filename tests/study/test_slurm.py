"""Runs as jobs of a batch system: the contract, a scheduler that lies, and drivers that die."""

from __future__ import annotations

from typing import ClassVar

import pytest

from trimtab.study.executors.contract import Executor, Task
from trimtab.study.executors.slurm import Slurm
from trimtab.testing import ExecutorContract


class TestLocalSubmitit(ExecutorContract):
    reports_progress: ClassVar[bool] = False  # the heartbeat files show it

    @pytest.fixture(autouse=True)
    def _folder(self, tmp_path_factory: pytest.TempPathFactory) -> None:
        type(self).folder = tmp_path_factory.mktemp("study")

    def make_executor(self, task: Task) -> Executor:
        return Slurm(cluster="local", in_flight=2).executor(type(self).folder, 1, "cpu", task)
