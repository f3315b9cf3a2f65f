"""A study of a Hugging Face configuration: the largest usable learning rate, with and without QK-norm."""

import argparse

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
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", nargs="?", default="llama-study", help="the study folder")
    parser.add_argument("steps", nargs="?", type=int, default=400, help="training steps of each run")
    options = parser.parse_args()
    study = Study(
        name="a small Llama",
        model=llama,
        config={"context": 32},
        arms=["baseline", "qk_norm"],
        learning_rates={"low": 2**-7, "high": 2**2, "octaves_apart": 1},
        training={"steps": options.steps},
        search={"most_runs": 12, "replicates": 1},
    )
    findings = study.run(options.folder)
    for name, arm in findings.arms.items():
        print(f"{name}: best loss {arm.best_loss:.3f} nats, breaks at {arm.criteria['d'].breaks.lr50}")
