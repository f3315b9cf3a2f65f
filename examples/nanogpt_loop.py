"""A nanoGPT-like module in its own training loop: one line installs a method, another attaches probes."""

import torch
import torch.nn.functional as F

import trimtab
from trimtab.testing.families import VOCABULARY, NanoGPT  # or your own module with nanoGPT's names

if __name__ == "__main__":
    torch.manual_seed(0)
    model = NanoGPT()
    host = trimtab.host_for(model)
    trimtab.methods.soft_cap.install(host)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    watch = trimtab.watch(host, trimtab.probes.standard, optimizer=optimizer, every=5)
    compiled = torch.compile(model, backend="aot_eager")  # after methods and probes; drop the backend for speed
    for _ in range(10):
        for _ in range(2):  # two micro-batches a step
            tokens = torch.randint(0, VOCABULARY, (4, 33))
            logits = compiled(tokens[:, :-1])
            (F.cross_entropy(logits.flatten(0, 1), tokens[:, 1:].flatten()) / 2).backward()
        optimizer.step()
        optimizer.zero_grad()
    largest = max(value for key, value in watch.last.items() if key.endswith("max_logit"))
    print(f"step {watch.step}: largest attention logit {largest:.3f}, capped at 50")
    watch.remove()
