"""The rounds of all sizes, made together; a size that is finished asks for no more trials."""

from __future__ import annotations

from collections.abc import Sequence

from trimtab.kinds.max_lr.rounds import rounds as rounds_of_one_size
from trimtab.kinds.max_lr_by_size.spec import SizedStudySpec
from trimtab.study.kind import Rounds
from trimtab.study.trial import Trial


def rounds(spec: SizedStudySpec) -> Rounds:
    """Yield the trials of each round of all sizes; the caller sends the results of all rounds so far."""
    open_sizes = {size: rounds_of_one_size(study) for size, study in spec.studies.items()}
    batches = {size: next(generator) for size, generator in open_sizes.items()}
    while batches:
        results = yield [trial for batch in batches.values() for trial in batch]
        following: dict[str, Sequence[Trial]] = {}
        for size in batches:
            of_size = {trial: outcome for trial, outcome in results.items() if spec.places[trial.arm].size == size}
            try:
                following[size] = open_sizes[size].send(of_size)
            except StopIteration:
                continue
        batches = following
