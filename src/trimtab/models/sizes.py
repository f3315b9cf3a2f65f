"""Named sizes of the reference GPT, from 0.1 million parameters to the 830 million of arXiv 2410.16682.

``dataclasses.replace`` changes single fields, such as the vocabulary and the context.
"""

from __future__ import annotations

from trimtab.models.gpt import GPTConfig


def _bytes(num_layers: int, width: int, num_heads: int, context: int) -> GPTConfig:
    return GPTConfig(
        num_layers=num_layers, width=width, num_heads=num_heads, context=context, positions="rotary", tied=False
    )


def _deep(num_layers: int, width: int, *, vocab_size: int = 256, context: int = 64) -> GPTConfig:
    heads = 4 if width < 448 else 7
    return GPTConfig(vocab_size=vocab_size, context=context, num_layers=num_layers, num_heads=heads, width=width)


# A name such as "1M" counts all parameters. The vocabulary is that of 256 bytes unless a size states another.
SIZES: dict[str, GPTConfig] = {
    "0.1M": _bytes(4, 40, 4, 64),
    "1M": _bytes(4, 128, 4, 128),
    "3M": _bytes(4, 256, 4, 256),
    "10M": _bytes(6, 384, 6, 256),
    "25M": _bytes(8, 512, 8, 512),
    # Deep and narrow models with the conventions of GPT-2, for comparisons of depth.
    "deep-6": _deep(6, 64),
    "deep-12": _deep(12, 64),
    "deep-24": _deep(24, 64),
    "deep-48": _deep(48, 64),
    # arXiv 2409.07787 trains GPT-2 models of up to 192 layers and does not state their widths. The published weights of
    # the deepest model have 1.9 GB, the size of 192 layers of width 448 in fp32.
    "deep-48-gpt2": _deep(48, 448, vocab_size=50_257, context=1024),
    "deep-96-gpt2": _deep(96, 448, vocab_size=50_257, context=1024),
    "deep-192-gpt2": _deep(192, 448, vocab_size=50_257, context=1024),
    # GPT-2 small as published: learned positions, tied head, biases, GELU.
    "gpt2-124M": GPTConfig(vocab_size=50_257, context=1024, num_layers=12, num_heads=12, width=768),
    # arXiv 2410.16682: 24 layers of width 1024, 16 heads, context 4096. The paper does not state vocabulary,
    # activation, biases and rotary share; these are from a published recipe that agrees with the paper otherwise.
    "paper-830M": GPTConfig(
        vocab_size=256_000,
        context=4096,
        num_layers=24,
        num_heads=16,
        width=1024,
        positions="rotary",
        rotary_share=0.5,
        activation="squared_relu",
        bias=False,
        tied=False,
        init_std=0.01,
    ),
}
