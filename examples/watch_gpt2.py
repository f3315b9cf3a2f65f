"""Watch a Hugging Face GPT-2 in a plain loop: two lines attach the probes, and each reading is a dictionary."""

import sys

import torch
from transformers import AutoModelForCausalLM, GPT2Config

import trimtab
from trimtab.sinks import JSONLSink

if __name__ == "__main__":
    folder = sys.argv[1] if len(sys.argv) > 1 else "gpt2-probes"
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(GPT2Config(vocab_size=256, n_embd=64, n_layer=2, n_head=4, n_positions=64))
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)

    host = trimtab.host_for(model)
    watch = trimtab.watch(host, trimtab.probes.standard, optimizer=optimizer, sinks=[JSONLSink(folder)])

    for step in range(20):
        tokens = torch.randint(0, 256, (4, 64))
        loss = model(input_ids=tokens, labels=tokens).loss
        loss.backward()
        watch.see_gradients()  # before clipping; without this line, the probes see the clipped gradients
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        if watch.last["step"] == step + 1:
            entropy = watch.last["attention/layer.1.head.0/entropy"]
            print(f"step {step + 1}: loss {loss.item():.3f}, entropy of head 0 in layer 1 {entropy:.3f} nats")
    watch.remove()
