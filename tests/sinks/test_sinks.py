"""Every sink stores the same rows, and refuses to mix two runs."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch

from trimtab import GPT, GPTConfig, host_for, probes, watch
from trimtab.sink import Sink

pytest.importorskip("pyarrow")
pytest.importorskip("tensorboardX")
pytest.importorskip("wandb")
pytest.importorskip("trackio")

ROWS = [
    {"step": 1, "qkv_output/layer.0/rms": 0.5, "all_grad/model/l2_norm": 2.0},
    {"step": 10, "qkv_output/layer.0/rms": 0.25, "attention/layer.0.head.1/entropy": 1.5},
]
Stored = list[tuple[int, dict[str, float]]]


def jsonl(folder: Path) -> tuple[Sink, Callable[[], Stored]]:
    from trimtab.sinks import JSONLSink

    def read() -> Stored:
        rows = [json.loads(line) for line in (folder / "one.jsonl").read_text().splitlines()]
        return [(row.pop("step"), row) for row in rows]

    return JSONLSink(folder), read


def parquet(folder: Path) -> tuple[Sink, Callable[[], Stored]]:
    import pyarrow.parquet

    from trimtab.sinks import ParquetSink

    def read() -> Stored:
        found: dict[int, dict[str, float]] = {}
        for row in pyarrow.parquet.read_table(folder / "one.parquet").to_pylist():
            found.setdefault(row["step"], {})[row["metric"]] = row["value"]
        return sorted(found.items())

    return ParquetSink(folder), read


def tensorboard(folder: Path) -> tuple[Sink, Callable[[], Stored]]:
    from tensorboardX.proto.event_pb2 import Event
    from tensorboardX.record_writer import RecordWriter  # noqa: F401  (the format these records follow)

    from trimtab.sinks import TensorBoardSink

    def read() -> Stored:
        found: dict[int, dict[str, float]] = {}
        (file,) = (folder / "one").glob("events.*")
        data = file.read_bytes()
        at = 0
        while at < len(data):
            size = int.from_bytes(data[at : at + 8], "little")
            event = Event.FromString(data[at + 12 : at + 12 + size])
            for value in event.summary.value:
                found.setdefault(event.step, {})[value.tag] = value.simple_value
            at += size + 16
        return sorted(found.items())

    return TensorBoardSink(folder), read


def wandb(folder: Path) -> tuple[Sink, Callable[[], Stored]]:
    from trimtab.sinks import WandbSink

    def read() -> Stored:
        from wandb.proto import wandb_internal_pb2

        (file,) = folder.glob("wandb/offline-run-*/*.wandb")
        found: Stored = []
        for data in _leveldb_records(file.read_bytes()):
            record = wandb_internal_pb2.Record.FromString(data)
            if record.WhichOneof("record_type") == "history":
                items = {item.key or item.nested_key[0]: json.loads(item.value_json) for item in record.history.item}
                found.append((items.pop("step"), {k: v for k, v in items.items() if not k.startswith("_")}))
        return found

    return WandbSink(folder), read


def _leveldb_records(data: bytes) -> Iterator[bytes]:
    """Records of a write-ahead log in blocks of 32 KiB, after wandb's own header of seven bytes."""
    block, at, whole = 32768, 7, b""
    while at + 7 <= len(data):
        if block - at % block < 7:
            at += block - at % block
            continue
        size, kind = int.from_bytes(data[at + 4 : at + 6], "little"), data[at + 6]
        whole += data[at + 7 : at + 7 + size]
        at += 7 + size
        if kind in (1, 4):  # whole, or last part
            yield whole
            whole = b""


def trackio(folder: Path) -> tuple[Sink, Callable[[], Stored]]:
    from trimtab.sinks import TrackioSink

    def read() -> Stored:
        import sqlite3

        (file,) = folder.glob("*.db")
        rows = sqlite3.connect(file).execute("select step, metrics from metrics order by step").fetchall()
        return [(step, json.loads(text)) for step, text in rows]

    return TrackioSink("probes"), read


MAKERS = {"jsonl": jsonl, "parquet": parquet, "tensorboard": tensorboard, "wandb": wandb, "trackio": trackio}


@pytest.mark.parametrize("name", MAKERS)
def test_what_was_logged_is_what_is_stored(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRACKIO_DIR", str(tmp_path))
    monkeypatch.setenv("WANDB_SILENT", "true")
    monkeypatch.setattr("trackio.utils.TRACKIO_DIR", tmp_path, raising=False)
    monkeypatch.setattr("trackio.sqlite_storage.TRACKIO_DIR", tmp_path, raising=False)
    sink, read = MAKERS[name](tmp_path)
    assert isinstance(sink, Sink)
    sink.open("one")
    for row in ROWS:
        sink.log(row["step"], row)
    sink.close("finished")
    wanted = [(row["step"], {k: v for k, v in row.items() if k != "step"}) for row in ROWS]
    assert read() == wanted


def test_a_watch_gives_every_sink_the_same_rows(tmp_path: Path) -> None:
    class Memory:
        def __init__(self) -> None:
            self.rows: list[dict[str, float]] = []
            self.events: list[str] = []

        def open(self, run: str) -> None:
            self.events.append(f"open {run}")

        def log(self, step: int, row: dict[str, float]) -> None:
            assert row["step"] == step
            self.rows.append(dict(row))

        def close(self, status: str) -> None:
            self.events.append(status)

    first, second = Memory(), Memory()
    file, read = jsonl(tmp_path)
    model = GPT(GPTConfig(vocab_size=16, width=8, num_layers=1, num_heads=2, context=8))
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    with watch(host_for(model), probes.cheap, optimizer=optimizer, every=2, sinks=(first, second, file), run="one"):
        for _ in range(4):
            model(torch.zeros(1, 8, dtype=torch.long)).sum().backward()
            optimizer.step()
            optimizer.zero_grad()
    assert [row["step"] for row in first.rows] == [1, 2, 4]
    assert first.rows == second.rows == [{"step": step} | row for step, row in read()]
    assert first.events == ["open one", "finished"]


def test_a_failure_inside_the_block_closes_the_sinks_as_failed() -> None:
    seen: list[str] = []

    class Last:
        def open(self, run: str) -> None: ...

        def log(self, step: int, row: dict[str, float]) -> None: ...

        def close(self, status: str) -> None:
            seen.append(status)

    model = GPT(GPTConfig(vocab_size=16, width=8, num_layers=1, num_heads=2, context=8))
    with pytest.raises(RuntimeError, match="mine"), watch(host_for(model), probes.cheap, sinks=(Last(),)):
        raise RuntimeError("mine")
    assert seen == ["failed"]


@pytest.mark.parametrize("name", ["jsonl", "parquet"])
def test_a_second_run_of_the_same_name_is_refused(name: str, tmp_path: Path) -> None:
    sink, _ = MAKERS[name](tmp_path)
    sink.open("one")
    sink.close("finished")
    again, _ = MAKERS[name](tmp_path)
    with pytest.raises(FileExistsError):
        again.open("one")


def test_a_number_that_is_not_finite_is_kept_as_text(tmp_path: Path) -> None:
    sink, _ = jsonl(tmp_path)
    sink.open("one")
    sink.log(1, {"step": 1, "x": math.nan, "y": -math.inf})
    sink.close("finished")
    assert json.loads((tmp_path / "one.jsonl").read_text()) == {"step": 1, "x": "nan", "y": "-inf"}
