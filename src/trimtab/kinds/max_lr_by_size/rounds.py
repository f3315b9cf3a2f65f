"""The rounds of all sizes, made together; a size with a bracketed sweep waits, and a finished one asks no more."""

from __future__ import annotations

from collections.abc import Sequence

from trimtab.kinds.max_lr.rounds import rounds as rounds_of_one_size
from trimtab.kinds.max_lr_by_size.spec import SizedStudySpec
from trimtab.study.kind import Rounds
from trimtab.study.trial import Trial


def rounds(spec: SizedStudySpec) -> Rounds:
    """Yield the trials of each round of all sizes; the caller sends the results of all rounds so far."""
    generators = {size: rounds_of_one_size(study) for size, study in spec.studies.items()}
    batches: dict[str, Sequence[Trial]] = {size: next(generator) for size, generator in generators.items()}
    while batches:
        number = min(batch[0].round for batch in batches.values())
        current = [size for size, batch in batches.items() if batch[0].round == number]
        results = yield [trial for size in current for trial in batches[size]]
        for size in current:
            of_size = {trial: outcome for trial, outcome in results.items() if spec.places[trial.arm].size == size}
            try:
                batches[size] = generators[size].send(of_size)
            except StopIteration:
                del batches[size]
