"""The board on which workers that share no disk with the driver note their progress.

It lives in a process of Ray of its own, which imports nothing slow, so that it is there before the first run begins.
"""

from __future__ import annotations


class Board:
    """An actor of Ray."""

    def __init__(self) -> None:
        self.beats: dict[str, tuple[int, float]] = {}

    def note(self, name: str, step: int, loss: float) -> None:
        """Keep the latest progress of a run."""
        self.beats[name] = (step, loss)

    def take(self) -> dict[str, tuple[int, float]]:
        """The progress since the last call."""
        beats, self.beats = self.beats, {}
        return beats
