"""Files that are damaged, hostile or of a new type end in one clear line: no traceback, no hang, no wrong number."""

from __future__ import annotations

import json
import os
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.numpy import save_file

from trimtab.cli import main
from trimtab.config import ConfigError
from trimtab.inspection.checkpoints import open_checkpoint
from trimtab.inspection.summary import summarise
from trimtab.inspection.tev import tev_points
from trimtab.run.files import hash_of, write_sealed
from trimtab.run.folder import SCHEMA, IntegrityError

NAME = "model.embed_tokens.weight"
INDEX = "model.safetensors.index.json"


def stored(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file({NAME: np.arange(12, dtype=np.float32).reshape(4, 3)}, path)
    return path


def raw_safetensors(path: Path, dtype: str, bits: int) -> Path:
    """Two 8 x 8 tensors of zeros with a header that the safetensors package would not write."""
    size = 64 * bits // 8
    record = {"dtype": dtype, "shape": [8, 8]}
    tensors = {NAME: record | {"data_offsets": [0, size]}, "layers.0.w": record | {"data_offsets": [size, 2 * size]}}
    header = json.dumps(tensors).encode()
    path.write_bytes(struct.pack("<Q", len(header)) + header + bytes(2 * size))
    return path


def complaint(arguments: list[str], capsys: pytest.CaptureFixture[str], code: int) -> str:
    assert main(["inspect", *arguments]) == code
    error = capsys.readouterr().err
    assert error.startswith("trimtab: ")
    assert error.count("\n") == 1
    assert "Traceback" not in error
    return error


# The index of a sharded folder


@pytest.mark.parametrize("outside", ["../secret.safetensors", "sub/../../secret.safetensors", "{absolute}"])
def test_an_index_that_names_a_file_outside_the_folder_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], outside: str
) -> None:
    secret = stored(tmp_path / "secret.safetensors")
    (tmp_path / "model" / "sub").mkdir(parents=True)
    index = {"weight_map": {NAME: outside.format(absolute=secret)}}
    (tmp_path / "model" / INDEX).write_text(json.dumps(index))
    assert "which is outside the folder" in complaint([str(tmp_path / "model")], capsys, 30)


def test_shards_may_be_symbolic_links_and_lie_in_folders_below(tmp_path: Path) -> None:
    blob = stored(tmp_path / "blobs" / "0123")
    model = tmp_path / "snapshots" / "model"
    (model / "below").mkdir(parents=True)
    (model / "linked.safetensors").symlink_to(blob)
    save_file({"layers.0.w": np.ones((2, 2), np.float32)}, model / "below" / "b.safetensors")
    index = {"weight_map": {NAME: "linked.safetensors", "layers.0.w": "below/b.safetensors"}}
    (model / INDEX).write_text(json.dumps(index))
    assert open_checkpoint(model).shapes == {NAME: (4, 3), "layers.0.w": (2, 2)}


SHARD = "model-1.safetensors"


@pytest.mark.parametrize(
    "content",
    [
        b"", b"{", b"null", b"[]", b"3", b'"text"', b"{}", b'{"weight_map": null}', b'{"weight_map": []}',
        b'{"weight_map": {}}', b'{"weight_map": "a"}', b'{"weight_map": {"a": 1}}', b'{"weight_map": {"a": null}}',
        b'{"weight_map": {"a": ["model-1.safetensors"]}}', b'{"weight_map": {"a": {"b": 1}}}',
        b'{"weight_map": {"a": ""}}', b'{"weight_map": {"a": "."}}', b'{"weight_map": {"a": "x\\u0000y"}}',
        b'{"weight_map": {"a": "\\ud800"}}', b'{"weight_map": {"a": "missing.safetensors"}}',
        b'{"weight_map": {"a": "' + b"x" * 5000 + b'"}}',
        b"\xff\xfe", b'{"weight_map": {"\xff": "model-1.safetensors"}}', b"\xef\xbb\xbf{}", b"[" * 100_000,
        b'{"a": ' * 100_000, b"9" * 5000, b'{"weight_map": ' + b"[" * 20_000 + b"]" * 20_000 + b"}",
    ],
)  # fmt: skip
def test_a_malformed_index_is_one_line_that_names_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], content: bytes
) -> None:
    stored(tmp_path / SHARD)
    (tmp_path / INDEX).write_bytes(content)
    error = complaint([str(tmp_path)], capsys, 30)
    assert INDEX in error
    assert len(error) < 500


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    content=st.recursive(
        st.one_of(st.none(), st.booleans(), st.integers(), st.text(max_size=5), st.just(SHARD)),
        lambda inner: st.one_of(
            st.lists(inner, max_size=2),
            st.dictionaries(st.one_of(st.just("weight_map"), st.text(max_size=3)), inner, max_size=2),
        ),
        max_leaves=6,
    )
)
def test_no_index_raises_anything_but_the_two_errors(tmp_path: Path, content: object) -> None:
    if not (tmp_path / SHARD).exists():
        stored(tmp_path / SHARD)
    for index in (content, {"weight_map": content}, {"weight_map": {"a": content}}):
        (tmp_path / INDEX).write_text(json.dumps(index))
        try:
            assert open_checkpoint(tmp_path).shapes == {NAME: (4, 3)}
        except (IntegrityError, ConfigError) as error:
            message = str(error)
            assert INDEX in message


# What is not a plain file


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="named pipes are of POSIX")
@pytest.mark.parametrize("place", ["pipe.safetensors", f"model/{INDEX}", "model/model.safetensors", "model/a.gguf"])
@pytest.mark.parametrize("tev", [False, True])
def test_a_named_pipe_is_refused_at_once(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], place: str, tev: bool
) -> None:
    (tmp_path / "model").mkdir()
    os.mkfifo(tmp_path / place)
    named = tmp_path / place if place.startswith("pipe") else tmp_path / "model"
    error = complaint([str(named), *(["--tev"] if tev else [])], capsys, 2)
    assert "not a plain file" in error or "neither a checkpoint nor a folder that holds one" in error


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="named pipes are of POSIX")
def test_an_index_that_names_a_pipe_is_refused_at_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    os.mkfifo(tmp_path / SHARD)
    (tmp_path / INDEX).write_text(json.dumps({"weight_map": {NAME: SHARD}}))
    assert "not a plain file" in complaint([str(tmp_path)], capsys, 2)


@pytest.mark.skipif(not Path("/dev/zero").exists(), reason="no such device")
def test_a_device_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    for arguments in (["/dev/zero"], ["/dev/zero", "--tev"]):
        assert "/dev/zero: not a plain file" in complaint(arguments, capsys, 2)


def test_a_name_that_no_file_can_have_is_a_wrong_path(capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("x" * 5000, "a\0b", "\udcff"):
        assert "no such file or folder" in complaint([name], capsys, 2)
        assert "no such file or folder" in complaint([name, "--tev"], capsys, 2)


def test_a_file_name_that_is_not_utf8_can_be_inspected(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / os.fsdecode(b"step-1\xff.safetensors")
    try:
        stored(tmp_path / "a.safetensors").rename(path)
    except OSError:
        pytest.skip("this file system takes only UTF-8")
    for tev in ([], ["--tev"]):
        outputs = ["--json", str(tmp_path / "a.json"), "--html", str(tmp_path / "a.html")]
        assert main(["inspect", str(path), *tev, *outputs]) == 0
        capsys.readouterr().out.encode()


# Types


@pytest.mark.parametrize(
    ("dtype", "bits"), [("F4", 4), ("F6_E2M3", 6), ("F6_E3M2", 6), ("C64", 64), ("C128", 128), ("NEW_1", 8)]
)
@pytest.mark.parametrize("tev", [False, True])
def test_a_type_that_cannot_be_read_is_named_in_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], dtype: str, bits: int, tev: bool
) -> None:
    path = raw_safetensors(tmp_path / "new.safetensors", dtype, bits)
    error = complaint([str(path), *(["--tev"] if tev else [])], capsys, 2)
    assert f"of type {dtype}; this type cannot be read; convert the file to F32, F16 or BF16" in error


def test_scales_of_8_bits_are_read_as_powers_of_two(tmp_path: Path) -> None:
    path = raw_safetensors(tmp_path / "scales.safetensors", "F8_E8M0", 8)
    content = bytearray(path.read_bytes())
    content[-64:] = bytes(range(96, 160))
    path.write_bytes(content)
    expected = 2.0 ** (np.arange(96, 160) - 127)
    assert open_checkpoint(path).read("layers.0.w").ravel().tolist() == expected.tolist()


# Names, and the files of a run


def test_names_with_unusual_digits_are_names(tmp_path: Path) -> None:
    for name in ("m\N{SUPERSCRIPT TWO}", "m\N{ARABIC-INDIC DIGIT THREE}", "m" + "7" * 200):
        stored(tmp_path / f"{name}.safetensors")
    assert len(tev_points([tmp_path])) == 3
    save_file({f"layers.{'9' * 5000}.w": np.ones((2, 2), np.float32)}, tmp_path / "long.safetensors")
    assert summarise(open_checkpoint(tmp_path / "long.safetensors")).matrices[0].layer is None


def run_folder(folder: Path, steps: bytes | None = None) -> Path:
    """A finished run with weights, whose manifest holds whatever its step rows are."""
    stored(folder / "checkpoints" / "final.safetensors")
    (folder / "spec.toml").write_text("")
    rows: list[dict[str, Any]] = [{"step": step, "loss": 1.0, "grad_norm": 1.0} for step in range(30)]
    text = "".join(json.dumps(row) + "\n" for row in rows)
    (folder / "steps.jsonl").write_bytes(text.encode() if steps is None else steps)
    losses = {"initial_loss": 2.0, "final_loss": 1.0, "log_vocab": 2.0, "unigram_entropy": 2.0}
    facts = {"norm_ratio": 1.0, "spike": 0.0, "bytes_per_token": 1.0, "seconds": 1.0, "held_out": [[0, 2.0], [30, 1.0]]}
    files = {name: hash_of(folder / name) for name in ("spec.toml", "steps.jsonl", "checkpoints/final.safetensors")}
    run = {"schema": SCHEMA, "run_id": folder.name, "stopped": None, "steps": 30}
    write_sealed(folder / "outcome.json", {**run, **losses, **facts, "files": files})
    return folder


def test_an_environment_that_is_not_utf8_changes_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for folder in (run_folder(tmp_path / "run"), stored(tmp_path / "weights" / "model.safetensors").parent):
        (folder / "environment.json").write_bytes(b"\xff\xfe{")
        assert main(["inspect", str(folder)]) == 0
        assert "12 parameters" in capsys.readouterr().out


@pytest.mark.parametrize(
    "rows", [b"{", b"\xff", b"[]\n", b"3\n", b"{}\n", b'{"step": 1}\n', b'{"step": null, "loss": 1}\n', b"[" * 99_999]
)
def test_damaged_step_rows_beside_weights_are_damage(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], rows: bytes
) -> None:
    folder = run_folder(tmp_path / "run", rows)
    assert "steps.jsonl: damaged" in complaint([str(folder)], capsys, 30)
