"""Texts of the user's own, on which runs are judged but never trained."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from trimtab.config import ConfigError
from trimtab.data import CorpusError, TextFiles, ZipfMarkov
from trimtab.run.execute import execute
from trimtab.run.folder import load_texts
from trimtab.run.reading import read_run
from trimtab.run.texts import fingerprint_of, further_texts, text_blocks

PROSE = "It was the best of times, it was the worst of times.\n"


@pytest.fixture
def files(tmp_path: Path) -> tuple[Path, Path]:
    train, own = tmp_path / "train.txt", tmp_path / "wiki.txt"
    train.write_text(PROSE * 1200, encoding="utf-8")
    own.write_text("The quick brown fox.\n" * 400, encoding="utf-8")
    return train, own


def run_spec(train: Path, *texts: Path, vocab_size: int = 256):
    raw = {
        "learning_rate": 1e-3,
        "data": {"text_files": {"paths": [str(train)], "vocab_size": vocab_size}},
        "model": {"width": 16, "num_layers": 1, "num_heads": 2, "context": 16},
        "training": {"steps": 3, "batch_size": 2},
        "schedule": {"warmup_steps": 1},
        "evaluation": {
            "evaluations": 1, "final_evaluations": 1, "num_sequences": 8, "final_blocks": 3, "block_bytes": 512,
            "texts": [str(text) for text in texts],
        },
    }  # fmt: skip
    return read_run(raw, "test")


@pytest.mark.parametrize("vocab_size", [256, 280])
def test_a_text_of_ones_own_is_judged_by_name_and_by_the_same_vocabulary(
    files: tuple[Path, Path], tmp_path: Path, vocab_size: int
) -> None:
    spec = run_spec(*files, vocab_size=vocab_size)
    data = spec.protocol.data.load()
    blocks = text_blocks(data, spec.protocol.evaluation, 16)
    assert set(blocks) == {"text", "wiki"}
    assert int(blocks["wiki"].max()) < vocab_size
    if vocab_size == 256:
        assert bytes(np.asarray(further_texts(data, spec.protocol.evaluation)["wiki"])) == files[1].read_bytes()
    outcome = execute(spec, tmp_path / "runs")
    assert {name: len(losses) for name, losses in load_texts(tmp_path / "runs" / outcome.run_id).items()} == {
        "text": 3,
        "wiki": 3,
    }


def test_another_content_of_the_text_is_another_run(files: tuple[Path, Path]) -> None:
    evaluation = run_spec(*files).protocol.evaluation
    data = run_spec(*files).protocol.data.load()
    before = fingerprint_of(data, evaluation)
    assert before != fingerprint_of(data, replace(evaluation, texts=())) == data.fingerprint
    files[1].write_text("Something else entirely.\n" * 400, encoding="utf-8")
    assert fingerprint_of(data, evaluation) != before


def test_texts_that_cannot_be_used_are_refused(files: tuple[Path, Path], tmp_path: Path) -> None:
    evaluation = run_spec(*files).protocol.evaluation
    data = TextFiles(paths=(str(files[0]),)).load()
    with pytest.raises(CorpusError, match=r"check evaluation\.texts"):
        further_texts(data, replace(evaluation, texts=(str(tmp_path / "missing.txt"),)))
    with pytest.raises(CorpusError, match="ids without text"):
        further_texts(ZipfMarkov(vocab_size=32).load(), evaluation)
    with pytest.raises(CorpusError, match="named 'wiki' already"):
        further_texts(data, replace(evaluation, texts=(str(files[1]), str(files[1]))))
    with pytest.raises(ConfigError, match="final_blocks"):
        read_run({"learning_rate": 1.0, "evaluation": {"texts": ["a.txt"]}}, "test")
