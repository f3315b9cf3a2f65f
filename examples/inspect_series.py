"""Save a checkpoint every five steps, then show what changed, as ``trimtab inspect FILE FILE ...`` does."""

import sys
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors.torch import save_file

from trimtab import GPT, GPTConfig
from trimtab.cli import main

if __name__ == "__main__":
    folder = Path(sys.argv[1] if len(sys.argv) > 1 else "checkpoint-series")
    folder.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(0)
    model = GPT(GPTConfig(tied=False))
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    files = []
    for step in range(16):
        if step % 5 == 0:
            files.append(folder / f"step-{step:04d}.safetensors")
            save_file(model.state_dict(), files[-1])
        tokens = torch.randint(0, 256, (4, 65))
        F.cross_entropy(model(tokens[:, :-1]).flatten(0, 1), tokens[:, 1:].flatten()).backward()
        optimizer.step()
        optimizer.zero_grad()
    sys.exit(main(["inspect", *map(str, files), "--html", str(folder / "series.html")]))
