"""What a terminal shows of a running study."""

from __future__ import annotations

import pytest

from trimtab.study.display import Pace


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def monotonic(self) -> float:
        return self.now


def test_the_time_left_is_that_of_the_round_and_at_most_that_of_the_study(monkeypatch: pytest.MonkeyPatch) -> None:
    """30 seconds a run; 20 runs at most, of which 2 were finished before, and 4 more belong to the second round."""
    clock = Clock()
    monkeypatch.setattr("trimtab.study.display.time", clock)
    pace = Pace(most_runs=20)
    clock.now += 50.0  # the study is checked first
    pace.start(6, to_train=4)
    assert not pace.left()
    clock.now += 30.0
    pace.run_ended()
    assert pace.left() == "1:30 left in this round, at most 8:30 in the study"
    clock.now += 90.0
    for _ in range(3):
        pace.run_ended()
    pace.start(4, to_train=4)
    clock.now += 30.0
    pace.run_ended()
    assert pace.left() == "1:30 left in this round, at most 6:30 in the study"


def test_in_the_last_round_only_the_round_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock()
    monkeypatch.setattr("trimtab.study.display.time", clock)
    pace = Pace(most_runs=2)
    pace.start(2, to_train=2)
    clock.now += 61.0
    pace.run_ended()
    assert pace.left() == "1:01 left in this round"
