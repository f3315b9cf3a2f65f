"""Carry out runs alone or together, as ``training.population`` says."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from trimtab.population import NotStackableError
from trimtab.run.execute import OTHER_CODE, OtherCodeError, Progress, execute
from trimtab.run.folder import Outcome, load_outcome
from trimtab.run.identity import run_id
from trimtab.run.population import execute_together
from trimtab.run.spec import RunSpec
from trimtab.run.texts import fingerprint_of


def carry_out(
    spec: RunSpec,
    runs: Path,
    *,
    progress: Progress = lambda step, loss: None,
    expected: str = "",
    owned: Callable[[], bool] = lambda: True,
) -> Outcome:
    """Train one run into ``runs/<run id>``; with ``training.population`` as a stack of one model.

    Raises:
        CorpusError, OtherCodeError, IntegrityError, NotOwnedError, SiteUnavailableError: as for ``execute``.
    """
    if not spec.protocol.training.population:
        return execute(spec, runs, progress=progress, expected=expected, owned=owned)
    return carry_out_together(
        [spec], [expected], runs, owned=[owned], progress=lambda index, step, loss: progress(step, loss)
    )[0]


def carry_out_together(
    specs: Sequence[RunSpec],
    expected: Sequence[str],
    runs: Path,
    *,
    owned: Sequence[Callable[[], bool]] = (),
    progress: Callable[[int, int, float], None] = lambda index, step, loss: None,
) -> list[Outcome]:
    """Train runs that differ in LR and seeds alone as one stack, or one after the other if they cannot be stacked.

    A run that is finished is not trained again. The file environment.json of a run tells the number of models of its
    stack, or why it was trained alone.

    Args:
        specs: the runs.
        expected: their run ids; "" for a run whose id the caller does not expect.
        runs: the folder that holds run folders.
        owned: for each run, whether this process may still write it.
        progress: called with the index of a run, the step and the training loss after every step.

    Raises:
        CorpusError, OtherCodeError, IntegrityError, NotOwnedError, SiteUnavailableError: as for ``execute``.
    """
    data = specs[0].protocol.data.load()
    names = [run_id(spec, fingerprint_of(data, spec.protocol.evaluation)) for spec in specs]
    if any(known not in ("", name) for known, name in zip(expected, names, strict=True)):
        raise OtherCodeError(OTHER_CODE)
    outcomes = {index: load_outcome(runs / name) for index, name in enumerate(names)}
    missing = [index for index, outcome in outcomes.items() if outcome is None]
    rights = list(owned) or [lambda: True] * len(specs)
    if missing:
        try:
            made = execute_together(
                [specs[index] for index in missing],
                [names[index] for index in missing],
                runs,
                data,
                owned=[rights[index] for index in missing],
                progress=lambda place, step, loss: progress(missing[place], step, loss),
            )
        except NotStackableError as error:
            made = [
                execute(
                    specs[index],
                    runs,
                    progress=lambda step, loss, index=index: progress(index, step, loss),
                    owned=rights[index],
                    note=f"trained alone: {error}",
                )
                for index in missing
            ]
        outcomes |= dict(zip(missing, made, strict=True))
    return [outcome for _, outcome in sorted(outcomes.items()) if outcome is not None]
