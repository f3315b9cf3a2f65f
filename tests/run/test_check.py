"""The check of a run before a study starts: it refuses what the run would refuse, without building an optimizer."""

from __future__ import annotations

import subprocess
import sys

import pytest

from trimtab.config import ConfigError
from trimtab.run.check import check_run
from trimtab.run.reading import read_run
from trimtab.run.spec import RunSpec

LIGHT = """
import sys
from trimtab.run.check import check_run
from trimtab.run.reading import read_run
spec = read_run({"method": "qk_norm", "learning_rate": 0.01}, "test")
check_run(spec, spec.protocol.data.load(), "test")
print("torch._dynamo" in sys.modules)
"""


def run_of(**tables: object) -> RunSpec:
    return read_run({"method": "baseline", "learning_rate": 0.01, **tables}, "test")


def refusal(spec: RunSpec) -> str:
    with pytest.raises(ConfigError) as caught:
        check_run(spec, spec.protocol.data.load(), "arms.a")
    return str(caught.value)


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_settings_that_the_model_cannot_have_are_refused(optimizer: str) -> None:
    spec = run_of(optimizer={optimizer: {"rates": {"fc1": 2.0}}})
    check_run(spec, spec.protocol.data.load(), "arms.a")
    tied = run_of(optimizer={optimizer: {"rates": {"head": 2.0}}}, model={"tied": True})
    assert refusal(tied).startswith("arms.a: optimizer.rates: embedding and head share one matrix")


def test_the_check_of_adamw_loads_no_compiler() -> None:
    """The compiler of torch, which the first optimizer loads, takes 1.5 s and 57 MB of the driver of a study."""
    done = subprocess.run([sys.executable, "-c", LIGHT], capture_output=True, text=True, timeout=120, check=True)
    assert done.stdout.strip() == "False"


def test_a_rule_that_reads_the_optimizer_is_checked_with_one() -> None:
    spec = run_of(method="qk_clip")
    check_run(spec, spec.protocol.data.load(), "arms.a")
