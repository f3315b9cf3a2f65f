"""Rules inside the training loops of transformers and Lightning."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from trimtab import GPT, GPTConfig, rules
from trimtab.interventions import AdaGC, QKClip, UpdateClip
from trimtab.loss import next_token_loss
from trimtab.rules import RulesError
from trimtab.testing.families import FAMILIES, VOCABULARY

pytest.importorskip("transformers")
pytest.importorskip("accelerate")
pytest.importorskip("lightning")

RULES = (AdaGC(warmup_steps=2), QKClip(threshold=0.02))


def windows() -> list[Tensor]:
    return list(torch.randint(0, VOCABULARY, (16, 16), generator=torch.Generator().manual_seed(3)))


def trainer_of(folder: Path, callback: Any, *, max_grad_norm: float = 0.0, **more: Any) -> Any:
    from transformers import Trainer, TrainingArguments

    model = FAMILIES["Llama"]()
    data = [{"input_ids": window, "labels": window} for window in windows()]
    arguments = TrainingArguments(
        output_dir=str(folder),
        per_device_train_batch_size=2,
        learning_rate=1e-2,
        lr_scheduler_type="constant",
        max_grad_norm=max_grad_norm,
        report_to=[],
        use_cpu=True,
        disable_tqdm=True,
        **{"max_steps": 6, "save_strategy": "no", **more},
    )
    trainer = Trainer(model=model, args=arguments, train_dataset=_InOrder(data), callbacks=[callback])
    trainer._get_train_sampler = lambda *_: None  # in the order of the data
    return trainer


class _InOrder(torch.utils.data.Dataset[Any]):
    def __init__(self, items: list[Any]) -> None:
        self.items = items

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, index: int) -> Any:
        return self.items[index]


def test_the_trainer_of_transformers_gives_the_weights_of_a_plain_loop(tmp_path: Path) -> None:
    from trimtab.callbacks.hf_trainer import RulesCallback

    trainer = trainer_of(tmp_path, RulesCallback(*RULES))
    trainer.train()
    model = FAMILIES["Llama"]()
    model.train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2, weight_decay=0.0)
    attached = rules.attach(optimizer, model, RULES)
    for step in range(6):
        tokens = torch.stack(windows()[2 * step : 2 * step + 2])
        optimizer.zero_grad()
        model(input_ids=tokens, labels=tokens).loss.backward()
        optimizer.step()
    attached.remove()
    for (name, one), other in zip(model.named_parameters(), trainer.model.parameters(), strict=True):
        assert torch.allclose(one, other, atol=1e-6), name
    unruled = trainer_of(tmp_path, _Nothing())
    unruled.train()
    assert not all(torch.allclose(a, b) for a, b in zip(model.parameters(), unruled.model.parameters(), strict=True))


def test_a_training_that_resumes_from_a_checkpoint_of_the_trainer_keeps_the_state_of_the_rules(tmp_path: Path) -> None:
    from trimtab.callbacks.hf_trainer import RulesCallback

    settings = {"save_strategy": "steps", "save_steps": 3}
    whole = trainer_of(tmp_path / "whole", RulesCallback(*RULES), **settings)
    whole.train()
    resumed = trainer_of(tmp_path / "resumed", RulesCallback(*RULES), **settings)
    resumed.train(resume_from_checkpoint=str(tmp_path / "whole" / "checkpoint-3"))
    for (name, one), other in zip(whole.model.named_parameters(), resumed.model.parameters(), strict=True):
        assert torch.allclose(one, other, atol=1e-7), name


def test_the_clipping_of_the_trainers_beside_a_rule_that_replaces_it_is_refused(tmp_path: Path) -> None:
    import lightning.pytorch as lightning

    from trimtab.callbacks import hf_trainer
    from trimtab.callbacks import lightning as callbacks

    with pytest.raises(RulesError, match="max_grad_norm=0"):
        trainer_of(tmp_path, hf_trainer.RulesCallback(AdaGC()), max_grad_norm=1.0).train()
    trainer = lightning.Trainer(
        max_steps=1, gradient_clip_val=1.0, accelerator="cpu", callbacks=[callbacks.RulesCallback(AdaGC())], **_QUIET
    )
    with pytest.raises(RulesError, match="gradient_clip_val"):
        trainer.fit(_module(), _loader())


class _Nothing:
    """A callback without effect."""

    def __getattr__(self, name: str) -> Any:
        if name.startswith("on_"):
            return lambda *_, **__: None
        raise AttributeError(name)


_QUIET: dict[str, Any] = {
    "logger": False,
    "enable_checkpointing": False,
    "enable_progress_bar": False,
    "enable_model_summary": False,
}


def _gpt() -> GPT:
    torch.manual_seed(0)
    return GPT(GPTConfig(vocab_size=VOCABULARY, context=16, num_layers=2, num_heads=2, width=16))


def _module() -> Any:
    import lightning.pytorch as lightning

    class Module(lightning.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.model = _gpt()

        def training_step(self, batch: Tensor, _: int) -> Tensor:
            return next_token_loss(self.model, batch)

        def configure_optimizers(self) -> torch.optim.Optimizer:
            return torch.optim.AdamW(self.parameters(), lr=1e-2)

    return Module()


def _loader() -> Any:
    return torch.utils.data.DataLoader(_InOrder(windows()), batch_size=2)


@pytest.mark.parametrize("accumulate", [1, 2])
def test_the_trainer_of_lightning_gives_the_weights_of_a_plain_loop(accumulate: int) -> None:
    import lightning.pytorch as lightning

    from trimtab.callbacks.lightning import RulesCallback

    chosen = (AdaGC(warmup_steps=2), QKClip(threshold=0.02), UpdateClip())
    module = _module()
    trainer = lightning.Trainer(
        max_steps=4, accelerator="cpu", accumulate_grad_batches=accumulate, callbacks=[RulesCallback(*chosen)], **_QUIET
    )
    trainer.fit(module, _loader())
    model = _gpt()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    rules.attach(optimizer, model, chosen)
    model.train()
    batches = [torch.stack(windows()[2 * i : 2 * i + 2]) for i in range(8)]
    for step in range(4):
        optimizer.zero_grad()
        for tokens in batches[step * accumulate : (step + 1) * accumulate]:
            (next_token_loss(model, tokens) / accumulate).backward()
        optimizer.step()
    for (name, one), other in zip(model.named_parameters(), module.model.parameters(), strict=True):
        assert torch.allclose(one, other, atol=1e-6), name
    assert isinstance(module.model, nn.Module)
