"""GGUF metadata of every shape, and files with changed bytes: two kinds of error come out, or right numbers."""

from __future__ import annotations

import struct
import sys
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.numpy import save_file

from trimtab.cli import main
from trimtab.config import ConfigError
from trimtab.inspection.checkpoints import open_checkpoint
from trimtab.inspection.summary import summarise
from trimtab.run.folder import IntegrityError

NAME = "model.embed_tokens.weight"


def stored(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file({NAME: np.arange(12, dtype=np.float32).reshape(4, 3)}, path)
    return path


def complaint(arguments: list[str], capsys: pytest.CaptureFixture[str], code: int) -> str:
    assert main(["inspect", *arguments]) == code
    error = capsys.readouterr().err
    assert error.startswith("trimtab: ")
    assert error.count("\n") == 1
    assert "Traceback" not in error
    return error


def text(value: str, order: str) -> bytes:
    return struct.pack(f"{order}Q", len(value)) + value.encode()


def gguf_file(path: Path, metadata: Mapping[str, bytes], order: str = "<") -> Path:
    """A GGUF file with one float32 matrix of 8 x 8 that counts from 0 to 63."""
    out = b"GGUF" + struct.pack(f"{order}IQQ", 3, 1, len(metadata))
    for key, value in metadata.items():
        out += text(key, order) + value
    out += text("blk.0.w.weight", order) + struct.pack(f"{order}IQQIQ", 2, 8, 8, 0, 0)
    out += bytes(-len(out) % 32)
    path.write_bytes(out + np.arange(64, dtype=f"{order}f4").tobytes())
    return path


def array(kind: int, count: int, *items: bytes) -> bytes:
    return struct.pack("<IQ", kind, count) + b"".join(items)


ARRAY_TYPE, TEXT_TYPE, NUMBER_TYPE = 9, 8, 4
ARRAY = struct.pack("<I", ARRAY_TYPE)
NUMBERS = array(NUMBER_TYPE, 2, struct.pack("<II", 1, 2))
TEXTS = array(TEXT_TYPE, 2, text("a", "<"), text("", "<"))


@pytest.mark.parametrize(
    "value",
    [
        NUMBERS,
        TEXTS,
        array(ARRAY_TYPE, 0),
        array(ARRAY_TYPE, 2, NUMBERS, TEXTS),
        array(ARRAY_TYPE, 1, array(ARRAY_TYPE, 2, TEXTS, array(NUMBER_TYPE, 0))),
        array(ARRAY_TYPE, 1) * 15 + NUMBERS,
    ],
    ids=["numbers", "texts", "empty", "two kinds", "three levels", "sixteen levels"],
)
def test_nested_arrays_in_the_metadata_are_skipped(tmp_path: Path, value: bytes) -> None:
    path = gguf_file(tmp_path / "a.gguf", {"first": ARRAY + value, "last": struct.pack("<II", NUMBER_TYPE, 7)})
    checkpoint = open_checkpoint(path)
    assert checkpoint.shapes == {"blk.0.w.weight": (8, 8)}
    assert checkpoint.read("blk.0.w.weight").ravel().tolist() == list(range(64))


@pytest.mark.parametrize(
    "value",
    [
        array(ARRAY_TYPE, 1) * 16 + NUMBERS,
        array(ARRAY_TYPE, 1) * 5000 + NUMBERS,
        array(ARRAY_TYPE, 1 << 62),
        array(TEXT_TYPE, 2, struct.pack("<Q", 1 << 63)),
        array(TEXT_TYPE, 2, struct.pack("<Q", (1 << 64) - 1)),
        array(NUMBER_TYPE, (1 << 64) - 1),
        array(77, 1),
        array(ARRAY_TYPE, 1, array(77, 1)),
    ],
    ids=["17 levels", "5000 levels", "count", "text", "longest text", "numbers", "kind", "kind inside"],
)
def test_impossible_arrays_in_the_metadata_are_damage(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], value: bytes
) -> None:
    path = gguf_file(tmp_path / "a.gguf", {"first": ARRAY + value})
    assert "damaged, or not a GGUF file" in complaint([str(path)], capsys, 30)


def test_the_other_byte_order_is_refused_and_not_read_wrongly(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    swapped = ">" if sys.byteorder == "little" else "<"
    value = struct.pack(f"{swapped}IIQII", ARRAY_TYPE, NUMBER_TYPE, 2, 1, 2)
    path = gguf_file(tmp_path / "a.gguf", {"first": value}, swapped)
    assert "byte order of another machine" in complaint([str(path)], capsys, 2)


def unharmed(path: Path) -> None:
    """Inspect a file; only the two errors of the user may come out."""
    try:
        summarise(open_checkpoint(path))
    except (ConfigError, IntegrityError):
        return


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_no_changed_byte_crashes_the_readers(tmp_path: Path, data: st.DataObject) -> None:
    metadata = {"first": ARRAY + array(ARRAY_TYPE, 2, NUMBERS, TEXTS), "general.alignment": struct.pack("<II", 4, 32)}
    if data.draw(st.booleans()):
        path = gguf_file(tmp_path / "a.gguf", metadata)
        head = len(path.read_bytes()) - 256
    else:
        path = stored(tmp_path / "a.safetensors")
        head = len(path.read_bytes()) - 48
    content = bytearray(path.read_bytes())
    for _ in range(data.draw(st.integers(1, 3))):
        content[data.draw(st.integers(0, head - 1))] = data.draw(st.integers(0, 255))
    path.write_bytes(content[: data.draw(st.one_of(st.just(len(content)), st.integers(0, len(content))))])
    unharmed(path)
