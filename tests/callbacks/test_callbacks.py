"""Probes inside the training loops of transformers and Lightning."""

from __future__ import annotations

import importlib
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from trimtab import GPT, GPTConfig, host_for, probes, watch
from trimtab.testing.families import FAMILIES, VOCABULARY

pytest.importorskip("transformers")
pytest.importorskip("accelerate")
pytest.importorskip("lightning")


class Rows:
    def __init__(self) -> None:
        self.rows: list[dict[str, float]] = []
        self.status = ""

    def open(self, run: str) -> None: ...

    def log(self, step: int, row: dict[str, float]) -> None:
        self.rows.append(dict(row))

    def close(self, status: str) -> None:
        self.status = status


def windows() -> list[Tensor]:
    return list(torch.randint(0, VOCABULARY, (8, 16), generator=torch.Generator().manual_seed(3)))


def trained_by_hand(family: str, steps: int) -> tuple[nn.Module, Rows]:
    model, sink = FAMILIES[family](), Rows()
    model.train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, weight_decay=0.0)
    with watch(host_for(model), probes.standard, optimizer=optimizer, every=2, sinks=(sink,)):
        for step in range(steps):
            batch = torch.stack(windows()[2 * step : 2 * step + 2])
            loss = model(input_ids=batch, labels=batch).loss
            # The Trainer divides the loss of GPT-2 by all tokens, and that of Qwen 3 by those that are predicted.
            (loss * 15 / 16 if family == "GPT-2" else loss).backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            optimizer.zero_grad()
    return model, sink


@pytest.mark.parametrize("family", ["GPT-2", "Qwen 3"])
def test_the_trainer_of_transformers_gives_the_rows_of_a_plain_loop(family: str, tmp_path: Path) -> None:
    from transformers import Trainer, TrainingArguments

    from trimtab.callbacks.hf_trainer import ProbesCallback

    model, sink = FAMILIES[family](), Rows()
    callback = ProbesCallback(every=2, sinks=(sink,))
    data = [{"input_ids": window, "labels": window} for window in windows()]
    arguments = TrainingArguments(
        output_dir=str(tmp_path),
        max_steps=4,
        per_device_train_batch_size=2,
        learning_rate=1e-3,
        lr_scheduler_type="constant",
        report_to=[],
        use_cpu=True,
        save_strategy="no",
        disable_tqdm=True,
    )
    trainer = Trainer(model=model, args=arguments, train_dataset=_InOrder(data), callbacks=[callback])
    trainer._get_train_sampler = lambda *_: None  # in the order of the data
    trainer.train()
    plain, wanted = trained_by_hand(family, 4)
    assert [row["step"] for row in sink.rows] == [1, 2, 4]
    assert sink.status == "finished"
    assert callback.watch is None
    assert callback.last == sink.rows[-1]
    assert len([key for key in callback.last if key.endswith("/max_logit")]) == 8
    for mine, other in zip(sink.rows, wanted.rows, strict=True):
        assert mine.keys() == other.keys()
        for key, value in other.items():
            assert mine[key] == pytest.approx(value, rel=1e-3, abs=1e-6), key
    for mine, other in zip(model.parameters(), plain.parameters(), strict=True):
        assert torch.allclose(mine, other, atol=1e-4)  # Adam divides the rounding of small gradients by their size
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())


class _InOrder(torch.utils.data.Dataset):
    def __init__(self, rows: list[dict[str, Tensor]]) -> None:
        self.rows = rows

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        return self.rows[index]


def test_lightning_reads_gradients_before_it_clips_them(tmp_path: Path) -> None:
    from lightning.pytorch import LightningModule, Trainer

    from trimtab.callbacks.lightning import ProbesCallback

    class Module(LightningModule):
        def __init__(self) -> None:
            super().__init__()
            torch.manual_seed(0)
            self.model = GPT(GPTConfig(vocab_size=VOCABULARY, width=16, num_layers=1, num_heads=2, context=16))

        def training_step(self, batch: Tensor, index: int) -> Tensor:
            return F.cross_entropy(self.model(batch[:, :-1]).flatten(0, 1), batch[:, 1:].flatten())

        def configure_optimizers(self) -> Any:
            return torch.optim.SGD(self.parameters(), lr=1e-3)

    def rows_of(clip: float | None) -> tuple[list[dict[str, float]], nn.Module]:
        sink, module = Rows(), Module()
        trainer = Trainer(
            max_steps=4,
            accumulate_grad_batches=2,
            gradient_clip_val=clip,
            accelerator="cpu",
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            default_root_dir=tmp_path,
            callbacks=[ProbesCallback(probes.standard, every=3, sinks=(sink,))],
        )
        trainer.fit(module, torch.utils.data.DataLoader(windows() * 2, batch_size=2))
        assert sink.status == "finished"
        return sink.rows, module

    free, _ = rows_of(None)
    clipped, module = rows_of(1e-3)
    assert [row["step"] for row in free] == [1, 3]
    assert {"attention/layer.0.head.1/max_logit", "attention/layer.0.head.1/entropy"} <= free[0].keys()
    assert clipped[0]["all_grad/model/l2_norm"] == pytest.approx(free[0]["all_grad/model/l2_norm"], rel=1e-6)
    assert clipped[0]["all_update/model/l2_norm"] < 0.1 * free[0]["all_update/model/l2_norm"]
    assert not any(one._forward_hooks or one._forward_pre_hooks for one in module.modules())


@pytest.mark.parametrize("library", ["hf_trainer", "lightning"])
def test_callbacks_ask_for_fused_readings_as_watch_does(library: str, monkeypatch: pytest.MonkeyPatch) -> None:
    module = importlib.import_module(f"trimtab.callbacks.{library}")
    asked: list[bool] = []
    monkeypatch.setattr(module, "watch", lambda *_, fused, **__: asked.append(fused))
    model = torch.nn.Linear(2, 2)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for fused in (False, True):
        callback = module.ProbesCallback(probes.cheap, fused=fused)
        if library == "hf_trainer":
            state = SimpleNamespace(global_step=0)
            callback.on_train_begin(SimpleNamespace(run_name=None), state, None, model=model, optimizer=optimizer)
        else:
            callback.on_fit_start(SimpleNamespace(optimizers=[optimizer]), SimpleNamespace(model=model))
    assert asked == [False, True]
