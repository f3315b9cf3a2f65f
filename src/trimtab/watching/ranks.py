"""The processes whose readings are merged into one row."""

from __future__ import annotations

from typing import Literal

import torch.distributed as dist
from torch import Tensor

from trimtab.sharding import is_first_replica, is_sharded


class Ranks:
    """The processes whose readings are merged, as they are now: the group may be initialised after the probes.

    Args:
        choice: the group of processes; ``"world"`` takes all if torch.distributed is initialised; None merges nothing.
    """

    def __init__(self, choice: dist.ProcessGroup | Literal["world"] | None) -> None:
        self._choice = choice

    @property
    def group(self) -> dist.ProcessGroup | None:
        """The group to pass to torch.distributed; None is its default group."""
        return None if isinstance(self._choice, str) else self._choice

    @property
    def alone(self) -> bool:
        """Whether this process merges its readings with no other."""
        if self._choice is None or not dist.is_available() or not dist.is_initialized():
            return True
        return dist.get_world_size(self.group) == 1

    @property
    def size(self) -> int:
        """Number of processes whose readings are merged."""
        return 1 if self.alone else dist.get_world_size(self.group)

    @property
    def rank(self) -> int:
        """Index of this process among those whose readings are merged."""
        return 0 if self.alone else dist.get_rank(self.group)

    @property
    def writes(self) -> bool:
        """Whether this process hands the rows to the sinks."""
        return self.alone or dist.get_rank(self.group) == 0

    def share(self, x: Tensor) -> float:
        """The factor of this process's numbers about a tensor in a sum over the processes.

        It is 1, or 0 where another process counts the same rows.
        """
        if self.alone:
            return 1.0
        if is_sharded(x):
            return float(is_first_replica(x))
        return float(dist.get_rank(self.group) == 0)
