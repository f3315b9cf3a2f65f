"""How far can the learning rate of a Hugging Face configuration go, with and without QK-norm?"""

import sys

from torch import nn
from transformers import AutoModelForCausalLM, LlamaConfig

from trimtab import GPTConfig, Study


def llama(config: GPTConfig) -> nn.Module:
    return AutoModelForCausalLM.from_config(
        LlamaConfig(
            vocab_size=config.vocab_size,
            hidden_size=32,
            intermediate_size=64,
            num_hidden_layers=2,
            num_attention_heads=2,
            max_position_embeddings=config.context,
            tie_word_embeddings=False,
        )
    )


if __name__ == "__main__":
    folder, steps = sys.argv[1:] or ("llama-study", "400")
    study = Study(
        name="a small Llama",
        model=llama,
        config={"context": 32},
        arms=["baseline", "qk_norm"],
        learning_rates={"low": 2**-7, "high": 2**2, "octaves_apart": 1},
        training={"steps": int(steps)},
        search={"most_runs": 12, "replicates": 1},
    )
    findings = study.run(folder)
    for name, arm in findings.arms.items():
        print(f"{name}: best loss {arm.best_loss:.3f} nats, breaks at {arm.criteria['d'].breaks.lr50}")
