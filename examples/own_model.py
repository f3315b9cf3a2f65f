"""A study of your own module: any module that maps tokens (B, T) to logits (B, T, V) can be used."""

import argparse

import torch.nn.functional as F
from torch import Tensor, nn

from trimtab import GPTConfig, Study


class Trigram(nn.Module):
    def __init__(self, config: GPTConfig) -> None:
        super().__init__()
        self.embed = nn.Embedding(config.vocab_size, 32)
        self.conv = nn.Conv1d(32, 64, kernel_size=3)
        self.head = nn.Linear(64, config.vocab_size)

    def forward(self, tokens: Tensor) -> Tensor:
        past = F.pad(self.embed(tokens).transpose(1, 2), (2, 0))  # each position sees itself and the two before it
        return self.head(self.conv(past).relu().transpose(1, 2))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", nargs="?", default="own-model-study", help="the study folder")
    parser.add_argument("steps", nargs="?", type=int, default=300, help="training steps of each run")
    options = parser.parse_args()
    study = Study(
        name="trigram",
        model=Trigram,
        arms={"clip at 1": "baseline", "no clipping": {"method": "baseline", "common": []}},
        learning_rates={"low": 2**-7, "high": 2**5, "octaves_apart": 2},
        training={"steps": options.steps},
        search={"most_runs": 12, "replicates": 1},
    )
    findings = study.run(options.folder)
    for name, arm in findings.arms.items():
        print(f"{name}: best loss {arm.best_loss:.3f} nats, breaks at {arm.criteria['d'].breaks.lr50}")
