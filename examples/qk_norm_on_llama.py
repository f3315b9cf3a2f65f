"""Apply QK-norm to a Llama, train it for five steps, and save weights that keep the names of the Llama family."""

import sys
from pathlib import Path

import torch
from safetensors.torch import save_file
from transformers import AutoModelForCausalLM, LlamaConfig

import trimtab

if __name__ == "__main__":
    folder = Path(sys.argv[1] if len(sys.argv) > 1 else "llama-qk-norm")
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=256, hidden_size=64, intermediate_size=128, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=64,
    )  # fmt: skip
    model = AutoModelForCausalLM.from_config(config)

    host = trimtab.host_for(model)
    trimtab.methods.qk_norm.install(host)  # before the optimizer is made, because the method adds parameters

    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    for _ in range(5):
        tokens = torch.randint(0, 256, (4, 64))
        model(input_ids=tokens, labels=tokens).loss.backward()
        optimizer.step()
        optimizer.zero_grad()

    folder.mkdir(parents=True, exist_ok=True)
    weights = {name: value.contiguous() for name, value in model.state_dict().items()}
    save_file(weights, folder / "model.safetensors")
    own = [name for name in weights if name.startswith("trimtab.")]
    print(f"{len(weights)} tensors saved, {len(own)} of them of the method: {own[0]} ...")
