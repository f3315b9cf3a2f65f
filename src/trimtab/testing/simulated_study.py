"""A study of any kind without training: outcomes are a function of the trial, and so are the losses by block."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path

from trimtab.run.folder import Outcome
from trimtab.study.kind import AnyKind, Blocks, Evidence
from trimtab.study.specification import StudySpec
from trimtab.study.stored import cost_reader
from trimtab.study.trial import Results, Trial

BEST_LOSS = 2.0  # nats
UNIGRAM_ENTROPY = 3.1
LOG_VOCAB = math.log(256)
BEST_OCTAVE = -4.0
EDGE = -1.0  # log2 of the LR from which on runs fail, of the first arm; that of each further one lies an octave higher
MOST_ROUNDS = 1000
OutcomeOf = Callable[[StudySpec, Trial], Outcome | None]


def outcome_of(spec: StudySpec, trial: Trial) -> Outcome:
    """Loss is lowest at 2^-4; a run degrades past its arm's edge, then explodes, then ends in NaN."""
    chance = 2 * _fraction(*_seen(trial)) - 1
    octave = trial.tick.octave
    edge = EDGE + list(spec.arms).index(trial.arm)
    beyond = octave - edge + 0.5 * chance
    final = BEST_LOSS + 0.03 * abs(octave - BEST_OCTAVE) + 0.02 * chance
    if beyond > 3:
        return outcome(spec, trial, math.nan, stopped=True)
    if beyond > 1.5:
        final = LOG_VOCAB + 1
    elif beyond > 0:
        final += 0.5 + beyond / 2
    return outcome(spec, trial, final)


def outcome(spec: StudySpec, trial: Trial, final: float, *, stopped: bool = False) -> Outcome:
    """One run with this final loss, on a curve that falls to it."""
    steps = spec.arms[trial.arm].protocol.training.steps
    taken = max(1, steps // 2) if stopped else steps
    shown = final if math.isfinite(final) else LOG_VOCAB
    points = sorted({round(index * taken / 10) for index in range(11)})
    curve = [(step, shown + (LOG_VOCAB - shown) * math.exp(-6 * step / taken)) for step in points]
    return Outcome(
        run_id=run_id_of(trial),
        stopped="non_finite" if stopped else None,
        steps=taken,
        initial_loss=LOG_VOCAB,
        final_loss=final,
        norm_ratio=1.5,
        spike=0.3 if 2.5 < shown < 3 else 0.0,
        log_vocab=LOG_VOCAB,
        unigram_entropy=UNIGRAM_ENTROPY,
        bytes_per_token=1.0,
        held_out=(*curve[:-1], (points[-1], final)),
        seconds=1.0,
    )


def run_id_of(trial: Trial) -> str:
    """A name as runs have it; two trials that differ in their round alone are one run."""
    return _digest(*_seen(trial))[:20]


def _seen(trial: Trial) -> tuple[object, ...]:
    seen = (trial.arm, trial.tick, trial.seed, trial.data_seed)
    return (*seen, trial.repeat) if trial.repeat else seen


def batches(
    kind: AnyKind, spec: StudySpec, of: OutcomeOf, arrange: Callable[[Results], Results] = dict
) -> tuple[list[Sequence[Trial]], Results]:
    """Drive the rounds to their end; returns what each asked for, and all results.

    Args:
        kind: whose rounds they are.
        spec: the study.
        of: the outcome of a trial.
        arrange: lays out the results that a round is sent, such as in another order.
    """
    search = kind.rounds(spec)
    results: dict[Trial, Outcome | None] = {}
    made: list[Sequence[Trial]] = []
    batch = next(search)
    while True:
        made.append(list(batch))
        results |= {trial: of(spec, trial) for trial in batch}
        assert len(made) < MOST_ROUNDS, f"{kind.slug}: more than {MOST_ROUNDS} rounds"
        try:
            batch = search.send(arrange(results))
        except StopIteration:
            return made, results


def evidence_on(spec: StudySpec, folder: Path, results: Results, asked: Iterable[Trial] = ()) -> Evidence:
    """The evidence of a study folder with these results.

    Args:
        spec: the study.
        folder: of the study; it need not exist.
        results: of the trials that are made.
        asked: all trials that were asked for.
    """
    names = {trial: run_id_of(trial) for trial in results}
    trials = {names[trial]: trial for trial, found in results.items() if found is not None}
    pending = set(asked) - set(results)

    def blocks(name: str) -> Blocks:
        return _blocks(spec, trials[name], results) if name in trials else {}

    return Evidence(
        results=results,
        run_ids=names,
        folder=folder,
        errors={names[trial]: "RuntimeError: lost" for trial, found in results.items() if found is None},
        blocks=blocks,
        cost=cost_reader(spec, {}),
        versions={"simulated": len(trials)} if trials else {},
        pending=len(pending),
        complete=not pending,
    )


def _blocks(spec: StudySpec, trial: Trial, results: Results) -> Mapping[str, Sequence[float]]:
    """The final loss block by block, around that of the run; none where it ended early."""
    found = results[trial]
    number = spec.arms[trial.arm].protocol.evaluation.final_blocks
    if found is None or not number or found.stopped is not None:
        return {}
    return {"text": [found.final_loss + 0.01 * math.sin(index) for index in range(number)]}


def _digest(*parts: object) -> str:
    return hashlib.sha256(repr(parts).encode()).hexdigest()


def _fraction(*parts: object) -> float:
    """A number from 0 to 1 that is the same in every process."""
    return int(_digest(*parts)[:8], 16) / 0xFFFFFFFF
