"""Sinks for readings, one per module. An optional package is imported only when its sink is created."""

from __future__ import annotations

from trimtab.sinks.jsonl import JSONLSink
from trimtab.sinks.parquet import ParquetSink
from trimtab.sinks.tensorboard import TensorBoardSink
from trimtab.sinks.trackio import TrackioSink
from trimtab.sinks.wandb import WandbSink

__all__ = ["JSONLSink", "ParquetSink", "TensorBoardSink", "TrackioSink", "WandbSink"]
