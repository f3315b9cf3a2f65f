"""Byte-level BPE: deterministic, trained once, and made again from a cache that is damaged or incomplete."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from trimtab.data import CorpusError, TokenData
from trimtab.data.tokenizer import cache_folder, encode

PROSE = "It is a truth universally acknowledged, that a single man must be in want of a wife — indeed.\n" * 200


def test_bpe_is_deterministic_and_shorter_than_bytes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    train, held_out = PROSE.encode(), {"text": PROSE[:999].encode()}
    made = []
    for name in ("one", "two"):
        monkeypatch.setenv("TRIMTAB_CACHE", str(tmp_path / name))
        made.append(encode(train, held_out, 512))
    assert made[0].fingerprint == made[1].fingerprint
    assert made[0].bytes_per_token == len(train) / len(made[0].train) > 1
    assert max(int(made[0].train.max()), int(made[0].held_out["text"].max())) < 512


def test_bpe_is_trained_once_and_then_read_from_the_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRIMTAB_CACHE", str(tmp_path))
    assert cache_folder() == tmp_path
    first = encode(PROSE.encode(), {"text": PROSE[:999].encode()}, 300)
    assert len(list(tmp_path.iterdir())) == 1
    monkeypatch.setattr("trimtab.data.tokenizer._encode_by_bpe", lambda *_: pytest.fail("the cache was not used"))
    again = encode(PROSE.encode(), {"text": PROSE[:999].encode()}, 300)
    assert again.fingerprint == first.fingerprint


def test_the_cache_tells_texts_splits_and_vocabularies_apart(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRIMTAB_CACHE", str(tmp_path))
    text = PROSE.encode()
    encode(text, {"a": text[:900]}, 300)
    encode(text, {"a": text[:900]}, 301)
    encode(text, {"b": text[:900]}, 300)
    encode(text, {"a": text[:960]}, 300)
    encode(text + b"x", {"a": text[:900]}, 300)
    assert len(list(tmp_path.iterdir())) == 5


def test_held_out_text_has_no_say_in_the_merges(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRIMTAB_CACHE", str(tmp_path))
    one = encode(PROSE.encode(), {"text": b"zq" * 500}, 300)
    two = encode(PROSE.encode(), {"text": PROSE.encode()}, 300)
    assert np.array_equal(one.train, two.train)
    assert len(one.held_out["text"]) == 1000


def encoded_with_cache() -> TokenData:
    return encode(
        PROSE.encode(), {"text": PROSE[:999].encode()}, 300, {"text": [PROSE[:999].encode().index(b"\n") + 1]}
    )


@pytest.mark.parametrize("member", ["train", "held_out.text", "breaks.text", "tokenizer"])
@pytest.mark.parametrize("damage", ["missing", "empty", "text", "floats", "two axes", "ids beyond the vocabulary"])
def test_a_cache_whose_member_is_missing_or_of_another_type_is_made_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, member: str, damage: str
) -> None:
    monkeypatch.setenv("TRIMTAB_CACHE", str(tmp_path))
    first = encoded_with_cache()
    (file,) = tmp_path.iterdir()
    with np.load(file) as stored:
        arrays = dict(stored)
    arrays[member] = {
        "missing": arrays[member],
        "empty": np.array([], dtype=np.float64),
        "text": np.array("{"),
        "floats": np.ones(3),
        "two axes": np.zeros((2, 2), dtype=np.uint16),
        "ids beyond the vocabulary": np.full(3, 300, dtype=np.uint16),
    }[damage]
    if damage == "missing":
        del arrays[member]
    np.savez(file, **arrays)
    again = encoded_with_cache()
    assert again.fingerprint == first.fingerprint
    assert again.breaks == first.breaks
    assert first.encode is not None
    assert again.encode is not None
    assert again.encode(b"It is a truth").tolist() == first.encode(b"It is a truth").tolist()
    monkeypatch.setattr("trimtab.data.tokenizer._encode_by_bpe", lambda *_: pytest.fail("the cache was not repaired"))
    assert encoded_with_cache().fingerprint == first.fingerprint


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_no_change_of_bytes_in_a_cache_crashes_the_reader(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, data: st.DataObject
) -> None:
    monkeypatch.setenv("TRIMTAB_CACHE", str(tmp_path))
    first = encoded_with_cache()
    (file,) = tmp_path.iterdir()
    whole = bytearray(file.read_bytes())
    for _ in range(data.draw(st.integers(1, 4))):
        whole[data.draw(st.integers(0, len(whole) - 1))] = data.draw(st.integers(0, 255))
    file.write_bytes(whole[: data.draw(st.integers(0, len(whole)))])
    assert encoded_with_cache().fingerprint == first.fingerprint


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04 cut short"], ids=["empty", "cut short"])
def test_a_damaged_cache_is_made_again_or_refused_by_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, content: bytes
) -> None:
    monkeypatch.setenv("TRIMTAB_CACHE", str(tmp_path))
    first = encode(PROSE.encode(), {"text": PROSE[:999].encode()}, 300)
    next(tmp_path.iterdir()).write_bytes(content)
    try:
        found = encode(PROSE.encode(), {"text": PROSE[:999].encode()}, 300).fingerprint
    except CorpusError as error:
        found = str(error)
    assert found == first.fingerprint or str(tmp_path) in found
