"""Probes in the Trainer of the transformers library, attached by one callback."""

import sys

import torch
from transformers import AutoModelForCausalLM, GPT2Config, Trainer, TrainingArguments

from trimtab import probes
from trimtab.callbacks.hf_trainer import ProbesCallback
from trimtab.sinks import JSONLSink

if __name__ == "__main__":
    folder = sys.argv[1] if len(sys.argv) > 1 else "trainer-probes"
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(GPT2Config(vocab_size=256, n_embd=64, n_layer=2, n_head=4, n_positions=64))
    rows = [{"input_ids": row, "labels": row} for row in torch.randint(0, 256, (32, 64))]
    callback = ProbesCallback(probes.standard, every=2, sinks=[JSONLSink(folder)])
    arguments = TrainingArguments(
        output_dir=folder, max_steps=6, per_device_train_batch_size=4, report_to=[], save_strategy="no", use_cpu=True
    )
    Trainer(model=model, args=arguments, train_dataset=rows, callbacks=[callback]).train()
    print(f"last reading at step {callback.last['step']:g}: {len(callback.last)} numbers")
