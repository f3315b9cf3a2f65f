"""Small models of every family that has a host, with the same random weights on every call; nothing is downloaded."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from typing_extensions import override

from trimtab.models.gpt import GPT, GPTConfig

VOCABULARY = 64
WIDTH = 32
HEADS = 4
LAYERS = 2
CONTEXT = 32


def gpt() -> nn.Module:
    """The GPT of trimtab, with rotary positions."""
    torch.manual_seed(0)
    return GPT(
        GPTConfig(
            vocab_size=VOCABULARY, width=WIDTH, num_heads=HEADS, num_layers=LAYERS, context=CONTEXT, positions="rotary"
        )
    )


def hugging_face(model_type: str, **changes: Any) -> nn.Module:
    """A causal language model of the transformers library, from a configuration; with grouped heads if it has them."""
    from transformers import AutoConfig, AutoModelForCausalLM

    settings: dict[str, Any] = {
        "vocab_size": VOCABULARY,
        "hidden_size": WIDTH,
        "num_hidden_layers": LAYERS,
        "num_attention_heads": HEADS,
        "max_position_embeddings": CONTEXT,
        "pad_token_id": None,
        "bos_token_id": None,
        "eos_token_id": None,
    }
    if model_type == "gpt2":
        settings |= {"resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0}
    elif model_type == "gpt_neox":
        settings |= {"intermediate_size": 2 * WIDTH}
    else:
        settings |= {"intermediate_size": 2 * WIDTH, "num_key_value_heads": 2, "head_dim": WIDTH // HEADS}
    torch.manual_seed(0)
    return AutoModelForCausalLM.from_config(AutoConfig.for_model(model_type, **(settings | changes)))


class NanoBlockAttention(nn.Module):
    """Attention with a fused projection and a direct call of torch's function."""

    def __init__(self) -> None:
        super().__init__()
        self.c_attn = nn.Linear(WIDTH, 3 * WIDTH)
        self.c_proj = nn.Linear(WIDTH, WIDTH)
        self.n_head = HEADS

    @override
    def forward(self, x: Tensor) -> Tensor:
        B, T, D = x.shape
        q, k, v = (part.view(B, T, self.n_head, -1).transpose(1, 2) for part in self.c_attn(x).split(D, dim=2))
        y = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        return self.c_proj(y.transpose(1, 2).contiguous().view(B, T, D))


class NanoMLP(nn.Module):
    """Two linear layers around a GELU."""

    def __init__(self) -> None:
        super().__init__()
        self.c_fc = nn.Linear(WIDTH, 4 * WIDTH)
        self.gelu = nn.GELU()
        self.c_proj = nn.Linear(4 * WIDTH, WIDTH)

    @override
    def forward(self, x: Tensor) -> Tensor:
        return self.c_proj(self.gelu(self.c_fc(x)))


class NanoBlock(nn.Module):
    """Pre-norm attention and MLP."""

    def __init__(self) -> None:
        super().__init__()
        self.ln_1 = nn.LayerNorm(WIDTH)
        self.attn = NanoBlockAttention()
        self.ln_2 = nn.LayerNorm(WIDTH)
        self.mlp = NanoMLP()

    @override
    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attn(self.ln_1(x))
        return x + self.mlp(self.ln_2(x))


class NanoGPT(nn.Module):
    """A module with the names and the layout of nanoGPT's."""

    def __init__(self) -> None:
        super().__init__()
        self.transformer = nn.ModuleDict(
            {
                "wte": nn.Embedding(VOCABULARY, WIDTH),
                "wpe": nn.Embedding(CONTEXT, WIDTH),
                "h": nn.ModuleList(NanoBlock() for _ in range(LAYERS)),
                "ln_f": nn.LayerNorm(WIDTH),
            }
        )
        self.lm_head = nn.Linear(WIDTH, VOCABULARY, bias=False)
        self.lm_head.weight = self.transformer["wte"].weight  # pyright: ignore[reportAttributeAccessIssue]

    @override
    def forward(self, tokens: Tensor) -> Tensor:
        positions = torch.arange(tokens.shape[1], device=tokens.device)
        x = self.transformer["wte"](tokens) + self.transformer["wpe"](positions)
        for block in self.transformer["h"]:  # pyright: ignore[reportGeneralTypeIssues]
            x = block(x)
        return self.lm_head(self.transformer["ln_f"](x))


def nanogpt() -> nn.Module:
    """A model in the manner of nanoGPT."""
    torch.manual_seed(0)
    return NanoGPT()


class NanochatAttention(nn.Module):
    """Grouped attention with rotary, norms of queries and keys as functions, and a sliding window."""

    def __init__(self, window: int) -> None:
        super().__init__()
        self.n_head = HEADS
        self.n_kv_head = HEADS // 2
        self.head_dim = WIDTH // HEADS
        self.window = window
        self.c_q = nn.Linear(WIDTH, WIDTH, bias=False)
        self.c_k = nn.Linear(WIDTH, WIDTH // 2, bias=False)
        self.c_v = nn.Linear(WIDTH, WIDTH // 2, bias=False)
        self.c_proj = nn.Linear(WIDTH, WIDTH, bias=False)

    @override
    def forward(self, x: Tensor) -> Tensor:
        B, T, _ = x.shape
        q, k, v = (f(x).view(B, T, -1, self.head_dim).transpose(1, 2) for f in (self.c_q, self.c_k, self.c_v))
        q, k = (F.rms_norm(_turned(part), (self.head_dim,)) * 1.2 for part in (q, k))
        behind = torch.arange(T, device=x.device)[:, None] - torch.arange(T, device=x.device)
        mask = (behind >= 0) & (behind < self.window)
        y = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, enable_gqa=True)
        return self.c_proj(y.transpose(1, 2).contiguous().view(B, T, -1))


def _turned(x: Tensor) -> Tensor:
    T, K = x.shape[-2:]
    angle = torch.arange(T, device=x.device)[:, None] * 100.0 ** (-torch.arange(0, K, 2, device=x.device) / K)
    cos, sin = angle.cos().to(x.dtype), angle.sin().to(x.dtype)
    first, second = x.chunk(2, -1)
    return torch.cat((first * cos + second * sin, second * cos - first * sin), -1)


class NanochatBlock(nn.Module):
    """Attention and MLP after norms that are functions."""

    def __init__(self, window: int) -> None:
        super().__init__()
        self.attn = NanochatAttention(window)
        self.mlp = NanoMLP()

    @override
    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attn(F.rms_norm(x, (x.shape[-1],)))
        return x + self.mlp(F.rms_norm(x, (x.shape[-1],)))


class Nanochat(nn.Module):
    """A module with the names and the layout of nanochat's."""

    def __init__(self) -> None:
        super().__init__()
        blocks = (NanochatBlock(CONTEXT if layer % 2 else 4) for layer in range(LAYERS))
        self.transformer = nn.ModuleDict({"wte": nn.Embedding(VOCABULARY, WIDTH), "h": nn.ModuleList(blocks)})
        self.lm_head = nn.Linear(WIDTH, VOCABULARY, bias=False)

    @override
    def forward(self, tokens: Tensor) -> Tensor:
        x = F.rms_norm(self.transformer["wte"](tokens), (WIDTH,))
        for block in self.transformer["h"]:  # pyright: ignore[reportGeneralTypeIssues]
            x = block(x)
        return self.lm_head(F.rms_norm(x, (WIDTH,)))


def nanochat() -> nn.Module:
    """A model in the manner of nanochat."""
    torch.manual_seed(0)
    return Nanochat()


def _of(model_type: str, **changes: Any) -> Callable[[], nn.Module]:
    return lambda: hugging_face(model_type, **changes)


FAMILIES: dict[str, Callable[[], nn.Module]] = {
    "trimtab GPT": gpt,
    "Llama": _of("llama"),
    "Mistral": _of("mistral", sliding_window=8),
    "Qwen 2": _of("qwen2"),
    "Qwen 3": _of("qwen3"),
    "OLMo 2": _of("olmo2"),
    "Gemma 2": _of("gemma2", sliding_window=8),
    "GPT-2": _of("gpt2"),
    "GPT-NeoX": _of("gpt_neox"),
    "nanoGPT-like": nanogpt,
    "nanochat-like": nanochat,
}


def logits_of(model: nn.Module, tokens: Tensor) -> Tensor:
    """Logits (B, T, V), also of a model that returns them in an object."""
    output = model(tokens)
    return getattr(output, "logits", output)
