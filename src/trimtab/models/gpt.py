"""The reference GPT: a pre-norm decoder like GPT-2, in which every site is an explicit slot."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal, cast

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from typing_extensions import override

from trimtab.host import AttentionWatcher, Slot

NORMS = {"layer_norm": nn.LayerNorm, "rms_norm": nn.RMSNorm}


class SquaredReLU(nn.Module):
    """relu(x) squared, elementwise."""

    @override
    def forward(self, x: Tensor) -> Tensor:
        return F.relu(x).square()


ACTIVATIONS = {"gelu": nn.GELU, "squared_relu": SquaredReLU}

# No published model is as large; a larger number is a typing error, and would fail later inside torch.
LARGEST = {
    "vocab_size": 1 << 24, "context": 1 << 20, "num_layers": 4096, "num_heads": 4096, "width": 1 << 16, "mlp_ratio": 256
}  # fmt: skip


@dataclass(frozen=True, kw_only=True, slots=True)
class GPTConfig:
    """Shape and conventions of a GPT.

    Attributes:
        context: longest sequence, in tokens ("T").
        width: of the residual stream ("d").
        mlp_ratio: hidden width of the MLP divided by ``width``.
        rotary_share: share of the channels of each head that rotate; used only with ``positions = "rotary"``.
        bias: whether linear layers carry a bias; layer norms always do.
        tied: whether the head shares the matrix of the embedding.
        init_std: standard deviation of every initial matrix; that of Proj and FC2 is divided by sqrt(2 num_layers).
        attention: ``fused`` computes explicit scores only if an edit needs them; ``explicit`` always does.
        recompute: whether the activations of each block are recomputed in the backward pass instead of stored; this
            saves memory and takes a third more time.

    Raises:
        ValueError: if a size is not positive or above its value in ``LARGEST``, the heads do not divide the width, or a
            share is outside 0 to 1.
    """

    vocab_size: int = 256
    context: int = 64
    num_layers: int = 4
    num_heads: int = 4
    width: int = 64
    mlp_ratio: int = 4
    positions: Literal["learned", "rotary"] = "learned"
    rotary_share: float = 1.0
    activation: Literal["gelu", "squared_relu"] = "gelu"
    norm: Literal["layer_norm", "rms_norm"] = "layer_norm"
    bias: bool = True
    tied: bool = True
    init_std: float = 0.02
    attention: Literal["fused", "explicit"] = "fused"
    recompute: bool = False

    def __post_init__(self) -> None:
        for name, largest in LARGEST.items():
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
            if getattr(self, name) > largest:
                raise ValueError(f"{name} must be at most {largest}, got {getattr(self, name)}")
        if self.width % self.num_heads:
            raise ValueError(f"width {self.width} is not a multiple of num_heads {self.num_heads}")
        if not 0 < self.rotary_share <= 1:
            raise ValueError(f"rotary_share must be above 0 and at most 1, got {self.rotary_share}")
        if not 0 < self.init_std < math.inf:
            raise ValueError(f"init_std must be positive and finite, got {self.init_std}")
        if self.positions == "rotary" and self.rotary_width == 0:
            raise ValueError("rotary_share is too small: it leaves no pair of channels to rotate")

    @property
    def head_width(self) -> int:
        """Channels of one head."""
        return self.width // self.num_heads

    @property
    def rotary_width(self) -> int:
        """Channels of one head that rotate, an even number."""
        return int(self.head_width * self.rotary_share) // 2 * 2


class Attention(nn.Module):
    """Causal self-attention with one fused QKV matrix."""

    def __init__(self, config: GPTConfig) -> None:
        super().__init__()
        self.num_heads = config.num_heads
        self.always_explicit = config.attention == "explicit"
        self.qkv = nn.Linear(config.width, 3 * config.width, bias=config.bias)
        self.proj = nn.Linear(config.width, config.width, bias=config.bias)
        self.query, self.key, self.value = Slot(), Slot(), Slot()
        self.query_rotated, self.key_rotated = Slot(), Slot()
        self.scores, self.weights, self.head_out = Slot(), Slot(), Slot()
        self.watchers: list[AttentionWatcher] = []

    @override
    def forward(self, x_BTD: Tensor, rotary: Rotary | None) -> Tensor:
        B, T, D = x_BTD.shape
        # unbind instead of indexing: the backward is one stack instead of three zero-fills and two adds.
        q_BHTK, k_BHTK, v_BHTK = self.qkv(x_BTD).view(B, T, 3, self.num_heads, -1).transpose(1, 3).unbind(2)
        q_BHTK, k_BHTK, v_BHTK = self.query(q_BHTK), self.key(k_BHTK), self.value(v_BHTK)
        if rotary is not None:
            q_BHTK, k_BHTK = rotary(q_BHTK), rotary(k_BHTK)
        q_BHTK, k_BHTK = self.query_rotated(q_BHTK), self.key_rotated(k_BHTK)
        for watch in self.watchers:
            watch(q_BHTK.detach(), k_BHTK.detach(), None, q_BHTK.shape[-1] ** -0.5)
        if self.always_explicit or self.scores.active or self.weights.active:
            s_BHTT = self.scores(q_BHTK @ k_BHTK.mT * q_BHTK.shape[-1] ** -0.5)
            hidden = torch.ones(T, T, dtype=torch.bool, device=x_BTD.device).triu(1)
            w_BHTT = self.weights(s_BHTT.masked_fill(hidden, -math.inf).softmax(-1))
            o_BHTK = w_BHTT @ v_BHTK
        else:
            o_BHTK = F.scaled_dot_product_attention(q_BHTK, k_BHTK, v_BHTK, is_causal=True)
        o_BHTK = self.head_out(o_BHTK)
        return self.proj(o_BHTK.transpose(1, 2).reshape(B, T, D))


class MLP(nn.Module):
    """Two linear layers around an activation."""

    def __init__(self, config: GPTConfig) -> None:
        super().__init__()
        self.fc1 = nn.Linear(config.width, config.mlp_ratio * config.width, bias=config.bias)
        self.activation = ACTIVATIONS[config.activation]()
        self.hidden = Slot()
        self.fc2 = nn.Linear(config.mlp_ratio * config.width, config.width, bias=config.bias)

    @override
    def forward(self, x_BTD: Tensor) -> Tensor:
        return self.fc2(self.hidden(self.activation(self.fc1(x_BTD))))


class Block(nn.Module):
    """Pre-norm attention and pre-norm MLP, each added to the residual stream."""

    def __init__(self, config: GPTConfig) -> None:
        super().__init__()
        norm = NORMS[config.norm]
        self.attn_norm: nn.Module = norm(config.width, eps=1e-5)
        self.attn = Attention(config)
        self.mlp_norm: nn.Module = norm(config.width, eps=1e-5)
        self.mlp = MLP(config)
        self.attn_in, self.attn_out, self.attn_residual = Slot(), Slot(), Slot()
        self.mlp_in, self.mlp_out, self.mlp_residual = Slot(), Slot(), Slot()

    @override
    def forward(self, x_BTD: Tensor, rotary: Rotary | None) -> Tensor:
        branch_BTD = self.attn(self.attn_in(self.attn_norm(x_BTD)), rotary)
        x_BTD = self.attn_residual(x_BTD + self.attn_out(branch_BTD))
        branch_BTD = self.mlp(self.mlp_in(self.mlp_norm(x_BTD)))
        return self.mlp_residual(x_BTD + self.mlp_out(branch_BTD))


class Rotary(nn.Module):
    """Rotary position embedding of the first ``rotary_width`` channels of each head (arXiv 2104.09864)."""

    def __init__(self, config: GPTConfig) -> None:
        super().__init__()
        self.width = config.rotary_width
        self.context = config.context
        cos, sin = self.tables()
        self.register_buffer("cos_TK", cos, persistent=False)
        self.register_buffer("sin_TK", sin, persistent=False)

    def tables(self) -> tuple[Tensor, Tensor]:
        """Cosines, and sines whose first half is negated, each (context, rotary_width)."""
        frequency = 10_000.0 ** (-torch.arange(0, self.width, 2, dtype=torch.float32) / self.width)
        angle_TK = torch.arange(self.context, dtype=torch.float32)[:, None] * frequency
        cos, sin = angle_TK.cos(), angle_TK.sin()
        return torch.cat((cos, cos), dim=-1), torch.cat((-sin, sin), dim=-1)

    @override
    def forward(self, x_BHTK: Tensor) -> Tensor:
        T = x_BHTK.shape[2]
        cos, sin = cast(Tensor, self.cos_TK)[:T], cast(Tensor, self.sin_TK)[:T]
        turned = x_BHTK[..., : self.width]
        turned = turned.double() if turned.dtype is torch.float64 else turned.float()
        # A roll by half the width swaps the two halves: three operations instead of eight.
        turned = torch.addcmul(turned * cos, turned.roll(self.width // 2, -1), sin).type_as(x_BHTK)
        if self.width == x_BHTK.shape[-1]:
            return turned
        return torch.cat((turned, x_BHTK[..., self.width :]), dim=-1)


class GPT(nn.Module):
    """A decoder-only language model that maps tokens (B, T) to logits (B, T, V)."""

    def __init__(self, config: GPTConfig | None = None) -> None:
        super().__init__()
        self.config = config = config or GPTConfig()
        self.token_embedding = nn.Embedding(config.vocab_size, config.width)
        learned = config.positions == "learned"
        self.position_embedding = nn.Embedding(config.context, config.width) if learned else None
        self.rotary = None if learned else Rotary(config)
        self.embedding = Slot()
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.num_layers))
        self.final_norm: nn.Module = NORMS[config.norm](config.width, eps=1e-5)
        self.head = nn.Linear(config.width, config.vocab_size, bias=False)
        self.logits = Slot()
        if config.tied:
            self.head.weight = self.token_embedding.weight
        self.reset_parameters()

    def reset_parameters(self, generator: torch.Generator | None = None) -> None:
        """Initialise every weight, in the order of the modules: normal matrices, zero biases, unit gains."""
        residual_std = self.config.init_std / math.sqrt(2 * self.config.num_layers)
        for name, module in self.named_modules():
            if isinstance(module, nn.Linear | nn.Embedding):
                std = residual_std if name.endswith(("proj", "fc2")) else self.config.init_std
                if not (self.config.tied and module is self.head):
                    nn.init.normal_(module.weight, std=std, generator=generator)
                if getattr(module, "bias", None) is not None:
                    nn.init.zeros_(cast(Tensor, module.bias))
            elif isinstance(module, nn.LayerNorm | nn.RMSNorm):
                module.reset_parameters()

    @override
    def forward(self, tokens_BT: Int[Tensor, "B T"]) -> Float[Tensor, "B T V"]:
        x_BTD = self.token_embedding(tokens_BT)
        if self.position_embedding is not None:
            x_BTD = x_BTD + self.position_embedding.weight[: tokens_BT.shape[1]]
        x_BTD = self.embedding(x_BTD)
        recompute = self.config.recompute and torch.is_grad_enabled()
        for block in self.blocks:
            x_BTD = (
                checkpoint(block, x_BTD, self.rotary, use_reentrant=False) if recompute else block(x_BTD, self.rotary)
            )
        return self.logits(self.head(self.final_norm(x_BTD)))
