"""Every sink stores the same rows, mixes no two runs, and loses nothing when it fails or is killed."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
import time
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


def settled(read: Callable[[], Stored], rows: int) -> Stored:
    """What is stored once there are so many rows: the service of W&B writes on for a moment after a run is closed."""
    for _ in range(100):
        stored = read()
        if len(stored) >= rows:
            break
        time.sleep(0.1)
    return stored


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
    assert settled(read, len(ROWS)) == wanted


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


@pytest.mark.parametrize("name", ["jsonl", "parquet", "tensorboard"])
def test_a_second_run_of_the_same_name_gets_the_next_free_one(name: str, tmp_path: Path) -> None:
    sink, read = MAKERS[name](tmp_path)
    for number, row in enumerate(ROWS):
        sink.open("one")
        sink.log(row["step"], row)
        sink.close("finished")
        if number == 0:
            first = read()
    assert read() == first, "the first run is as it was"
    suffix = {"jsonl": ".jsonl", "parquet": ".parquet", "tensorboard": ""}[name]
    assert {path.name for path in tmp_path.iterdir()} == {f"one.2{suffix}", f"one{suffix}"}


def test_a_number_that_is_not_finite_is_null(tmp_path: Path) -> None:
    sink, _ = jsonl(tmp_path)
    sink.open("one")
    sink.log(1, {"step": 1, "x": math.nan, "y": -math.inf})
    sink.close("finished")
    assert json.loads((tmp_path / "one.jsonl").read_text()) == {"step": 1, "x": None, "y": None}


def test_parquet_that_is_never_closed_is_whole_when_python_ends(tmp_path: Path) -> None:
    import pyarrow.parquet

    code = """
import sys
from trimtab.sinks import ParquetSink
sink = ParquetSink(sys.argv[1])
sink.open("one")
for step in range(1, 21):
    sink.log(step, {"step": step, "x": step / 2})
"""
    subprocess.run([sys.executable, "-c", code, str(tmp_path)], check=True)
    rows = pyarrow.parquet.read_table(tmp_path / "one.parquet").to_pylist()
    assert [(row["step"], row["value"]) for row in rows] == [(step, step / 2) for step in range(1, 21)]


class Failing:
    """A sink whose disk is full from some row on."""

    def __init__(self, good: int, *, closes: bool = True) -> None:
        self.good = good
        self.closes = closes
        self.rows: list[int] = []
        self.closed: list[str] = []

    def open(self, run: str) -> None: ...

    def log(self, step: int, row: dict[str, float]) -> None:
        if len(self.rows) == self.good:
            raise OSError(28, "No space left on device")
        self.rows.append(step)

    def close(self, status: str) -> None:
        self.closed.append(status)
        if not self.closes:
            raise OSError(28, "No space left on device")


@pytest.mark.parametrize("closes", [True, False])
def test_a_sink_that_raises_is_left_out_with_one_warning_and_training_goes_on(closes: bool, tmp_path: Path) -> None:
    bad, (file, read) = Failing(2, closes=closes), jsonl(tmp_path)
    model = GPT(GPTConfig(vocab_size=16, width=8, num_layers=1, num_heads=2, context=8))
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)

    def train() -> None:
        with watch(host_for(model), probes.cheap, optimizer=optimizer, sinks=(bad, file), run="one"):
            for _ in range(5):
                model(torch.zeros(1, 8, dtype=torch.long)).sum().backward()
                optimizer.step()

    with pytest.warns(UserWarning, match="Failing failed") as caught:
        train()
    assert bad.rows == [1, 2]
    assert bad.closed == ["failed"]
    assert [step for step, _ in read()] == [1, 2, 3, 4, 5]
    said = [str(warning.message) for warning in caught if "Failing failed" in str(warning.message)]
    assert len(said) == (1 if closes else 2)
    assert "No space left on device" in said[0]
    assert "training goes on" in said[0]


def test_a_sink_that_cannot_open_is_an_error_before_training_and_the_others_are_closed() -> None:
    class Refusing(Failing):
        def open(self, run: str) -> None:
            raise PermissionError("mine")

    first, last = Failing(9), Failing(9)
    model = GPT(GPTConfig(vocab_size=16, width=8, num_layers=1, num_heads=2, context=8))
    with pytest.raises(PermissionError, match="mine"):
        watch(host_for(model), probes.cheap, sinks=(first, Refusing(9), last))
    assert (first.closed, last.closed) == (["failed"], [])
    assert not model._forward_hooks


def test_a_watch_goes_on_from_a_step(tmp_path: Path) -> None:
    file, read = jsonl(tmp_path)
    model = GPT(GPTConfig(vocab_size=16, width=8, num_layers=1, num_heads=2, context=8))
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    with watch(host_for(model), probes.cheap, optimizer=optimizer, every=10, step=104, sinks=[file], run="one"):
        for _ in range(20):
            model(torch.zeros(1, 8, dtype=torch.long)).sum().backward()
            optimizer.step()
    assert [step for step, _ in read()] == [105, 110, 120]
    with pytest.raises(ValueError, match="step must not be negative"):
        watch(host_for(model), probes.cheap, step=-1)


def test_an_open_run_of_wandb_is_used_under_a_prefix_and_not_finished(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import wandb as library

    monkeypatch.setenv("WANDB_SILENT", "true")
    own = library.init(project="mine", dir=str(tmp_path), mode="offline")
    try:
        sink, _ = wandb(tmp_path)
        sink.open("one")
        own.log({"loss": 3.0})
        for row in ROWS:
            sink.log(row["step"], row)
        sink.close("finished")
        assert library.run is own
        own.log({"loss": 2.0})
    finally:
        own.finish()
    (file,) = tmp_path.glob("wandb/offline-run-*/*.wandb")
    from wandb.proto import wandb_internal_pb2

    for _ in range(100):
        if file.stat().st_size > 2000:
            break
        time.sleep(0.1)
    losses: list[float] = []
    readings: list[dict[str, float]] = []
    for data in _leveldb_records(file.read_bytes()):
        record = wandb_internal_pb2.Record.FromString(data)
        if record.WhichOneof("record_type") == "history":
            items = {item.key or item.nested_key[0]: json.loads(item.value_json) for item in record.history.item}
            losses += [items["loss"]] if "loss" in items else []
            named = {key.removeprefix("probes/"): v for key, v in items.items() if key.startswith("probes/")}
            readings += [named] if named else []
    assert losses == [3.0, 2.0]
    assert readings == ROWS


def test_an_open_run_of_trackio_is_used_under_a_prefix_and_not_finished(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import sqlite3

    import trackio as library

    monkeypatch.setenv("TRACKIO_DIR", str(tmp_path))
    monkeypatch.setattr("trackio.utils.TRACKIO_DIR", tmp_path, raising=False)
    monkeypatch.setattr("trackio.sqlite_storage.TRACKIO_DIR", tmp_path, raising=False)
    own = library.init(project="mine", name="own", embed=False)
    sink, _ = trackio(tmp_path)
    sink.open("one")
    own.log({"loss": 3.0}, step=1)
    for row in ROWS:
        sink.log(row["step"], row)
    sink.close("finished")
    own.log({"loss": 2.0}, step=20)
    own.finish()
    (file,) = tmp_path.glob("*.db")
    rows = sqlite3.connect(file).execute("select step, metrics from metrics order by step").fetchall()
    stored = [(step, json.loads(text)) for step, text in rows]
    assert [row["loss"] for _, row in stored if "loss" in row] == [3.0, 2.0]
    readings = [(s, {k.removeprefix("probes/"): v for k, v in row.items()}) for s, row in stored if "loss" not in row]
    assert readings == [(row["step"], {k: v for k, v in row.items() if k != "step"}) for row in ROWS]


KILLED = """
import sys, time
sys.path.insert(0, sys.argv[3])
import test_sinks
sink, _ = test_sinks.MAKERS[sys.argv[1]](__import__("pathlib").Path(sys.argv[2]))
if sys.argv[1] == "parquet":
    sink.flush_seconds = 0.05
sink.open("one")
print("open", flush=True)
for step in range(1, 100_000):
    sink.log(step, {"step": step, "x": step / 2})
    waiting = bool(getattr(sink, "_rows", ()))
    if not waiting:
        print(step, flush=True)
    time.sleep(0.002)
"""
# Rows that a sink may be behind its flush: TensorBoard's queue, the batch of trackio's thread, W&B's block of 32 KiB.
BEHIND = {"tensorboard": 2, "trackio": 700, "wandb": 200}
MOMENTS = 20 if int(os.environ.get("TRIMTAB_TEST_KILLS", "0")) else 1


@pytest.mark.parametrize("moment", range(MOMENTS))
@pytest.mark.parametrize("name", MAKERS)
def test_a_killed_process_leaves_every_reading_up_to_the_last_flush(name: str, moment: int, tmp_path: Path) -> None:
    """trackio and W&B store from a thread or process of their own, which may be a second behind."""
    env = {**os.environ, "TRACKIO_DIR": str(tmp_path), "WANDB_SILENT": "true"}
    arguments = [sys.executable, "-c", KILLED, name, str(tmp_path), str(Path(__file__).parent)]
    process = subprocess.Popen(arguments, env=env, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    lines = iter(process.stdout.readline, "")
    assert any(line.strip() == "open" for line in lines)
    time.sleep((1.5 if name in ("trackio", "wandb") else 0.3) + 0.037 * moment)
    process.kill()
    told = [int(line) for line in process.stdout.read().split() if line.isdigit()]
    process.wait()
    _, read = MAKERS[name](tmp_path)
    behind = BEHIND.get(name, 0)
    stored = [step for step, _ in settled(read, max(told) - behind)]
    assert stored == list(range(1, len(stored) + 1))
    assert len(stored) >= max(told) - behind
    assert len(stored) > 20
