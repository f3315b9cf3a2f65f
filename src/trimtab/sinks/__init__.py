"""Where readings can go: one file a sink, each optional package imported only when its sink is made."""

from __future__ import annotations

from trimtab.sinks.jsonl import JSONLSink
from trimtab.sinks.parquet import ParquetSink
from trimtab.sinks.tensorboard import TensorBoardSink
from trimtab.sinks.trackio import TrackioSink
from trimtab.sinks.wandb import WandbSink

__all__ = ["JSONLSink", "ParquetSink", "TensorBoardSink", "TrackioSink", "WandbSink"]
