"""Executors, one per file: what carries out the runs of a study.

An executor is looked up by its slug, the option ``--executor``. To add one, add a file to this folder, or an entry
point of the group ``trimtab.executors`` to another package.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from inspect import isabstract

from trimtab.config import Raw, Reader
from trimtab.registry import Catalogue
from trimtab.study.executors.contract import ExecutorConfig

__all__ = ["ExecutorConfig", "catalogue", "read_executor"]

_CATALOGUE = Catalogue[type[ExecutorConfig]](
    __name__,
    lambda value: isinstance(value, type) and issubclass(value, ExecutorConfig) and not isabstract(value),
    lambda executor: executor.slug(),
    first="processes",
    group="trimtab.executors",
)


def catalogue() -> Mapping[str, type[ExecutorConfig]]:
    """Every executor, by slug."""
    return _CATALOGUE.all()


@cache
def _reader() -> Reader:
    made = Reader()
    made.accept_tagged(ExecutorConfig, catalogue)
    return made


def read_executor(raw: Raw, where: str) -> ExecutorConfig:
    """An executor from a table of one key, its slug, such as ``{ slurm = { partition = "gpu" } }``.

    Raises:
        ConfigError: for an unknown executor or option, or a refused value.
    """
    return _reader().read(raw, ExecutorConfig, where)
