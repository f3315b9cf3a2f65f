"""Independent float64 reference implementations of published training-stability rules.

Everything here is written for clarity, not speed: plain loops over named tensors, numpy (and, where a gradient is
asked for, torch) in float64. Gradients are mappings from a tensor's name to its gradient, or to None where the tensor
has no gradient at this step. A rule never changes what it is given: it returns float64 copies and keeps its state in
itself. Norms are L2 norms in float64.
"""

import math
from collections.abc import Iterable, Mapping
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import torch

FloatArray = npt.NDArray[np.float64]
AnyArray = npt.NDArray[Any]
Gradients = dict[str, FloatArray | None]

NEWTON_SCHULZ_COEFFICIENTS = (3.4445, -4.7750, 2.0315)

PC_COEFFICIENTS: dict[int, tuple[float, ...]] = {  # of x, x^3, x^5, ...
    1: (1.507, -0.507),
    2: (2.083, -1.643, 0.560),
    3: (2.909, -4.649, 4.023, -1.283),
    4: (3.625, -9.261, 14.097, -10.351, 2.890),
}

_TOTAL_EPS = 1e-6  # in the plain clipping by the total norm
_ALL = "<all>"  # the one key of the state when a rule treats all tensors as one vector


def l2_norm(array: AnyArray) -> float:
    """The L2 norm of all entries in float64; NaN or infinite if an entry is."""
    values = np.asarray(array, dtype=np.float64)
    with np.errstate(over="ignore"):
        return math.sqrt(float(np.sum(values * values)))


def joint_norm(arrays: Iterable[AnyArray]) -> float:
    """The L2 norm of the one vector that all entries of all arrays make; 0 for no array."""
    total = 0.0
    with np.errstate(over="ignore"):
        for array in arrays:
            values = np.asarray(array, dtype=np.float64)
            total += float(np.sum(values * values))
    return math.sqrt(total)


def copies(gradients: Mapping[str, AnyArray | None]) -> Gradients:
    """Float64 copies of the gradients, None kept."""
    return {name: None if g is None else np.array(g, dtype=np.float64) for name, g in gradients.items()}


def present(gradients: Gradients) -> dict[str, FloatArray]:
    """The gradients that are there."""
    return {name: g for name, g in gradients.items() if g is not None}


def debiased(beta: float, step: int) -> float:
    """The decay rate at this step (from 1) that makes an exponential average from zero unbiased."""
    return beta * (1.0 - beta ** (step - 1)) / (1.0 - beta**step)


class AdaGCOracle:
    """Adaptive gradient clipping of each tensor by an exponential average of its own norm.

    A gradient whose norm is not finite is lost: it becomes zeros and the rest behaves as if it were absent.

    Attributes:
        n: the calls so far.
        gamma: the reference norm of each tensor (of `<all>` in the global scope).
        mean: the arithmetic mean of the norms recorded in warm-up.
        count: how many norms that mean holds.
    """

    def __init__(
        self,
        ratio: float = 1.04,
        beta: float = 0.99,
        eps: float = 1e-6,
        warmup_steps: int = 100,
        max_norm: float = 1.0,
        norm_floor: float = 1e-8,
        warmup_floor: float = 0.5,
        scope: Literal["tensor", "global"] = "tensor",
    ) -> None:
        self.ratio = ratio
        self.beta = beta
        self.eps = eps
        self.warmup_steps = warmup_steps
        self.max_norm = max_norm
        self.norm_floor = norm_floor
        self.warmup_floor = warmup_floor
        self.scope = scope
        self.n = 0
        self.gamma: dict[str, float] = {}
        self.mean: dict[str, float] = {}
        self.count: dict[str, int] = {}

    @classmethod
    def as_published(
        cls,
        ratio: float = 1.04,
        beta: float = 0.99,
        eps: float = 1e-6,
        warmup_steps: int = 100,
        max_norm: float = 1.0,
        scope: Literal["tensor", "global"] = "tensor",
    ) -> "AdaGCOracle":
        """The rule without its two floors: zero norms are recorded, and the warm-up minimum is used as it is."""
        return cls(ratio, beta, eps, warmup_steps, max_norm, norm_floor=0.0, warmup_floor=0.0, scope=scope)

    def __call__(self, gradients: Mapping[str, AnyArray | None]) -> Gradients:
        self.n += 1
        result = copies(gradients)

        sound: dict[str, FloatArray] = {}
        for name, g in present(result).items():
            if math.isfinite(l2_norm(g)):
                sound[name] = g
            else:
                result[name] = np.zeros_like(g)

        groups: dict[str, list[str]] = {}
        if self.scope == "tensor":
            groups = {name: [name] for name in sound}
        elif sound:
            groups = {_ALL: list(sound)}

        if self.n <= self.warmup_steps:
            c = self.max_norm / (joint_norm(sound.values()) + _TOTAL_EPS)
            if c < 1.0:
                sound = {name: g * c for name, g in sound.items()}
            for key, names in groups.items():
                self._record_in_warmup(key, joint_norm(sound[name] for name in names))
        else:
            if self.n == self.warmup_steps + 1:
                for key in self.gamma:
                    self.gamma[key] = max(self.gamma[key], self.warmup_floor * self.mean[key])
            for key, names in groups.items():
                factor = self._factor_after_warmup(key, joint_norm(sound[name] for name in names))
                for name in names:
                    sound[name] = sound[name] * factor

        result.update(sound)
        return result

    def _record_in_warmup(self, key: str, v: float) -> None:
        if v < self.norm_floor:
            return
        if key not in self.gamma:
            self.gamma[key] = v
            self.mean[key] = v
            self.count[key] = 1
        else:
            self.gamma[key] = min(self.gamma[key], v)
            self.count[key] += 1
            self.mean[key] += (v - self.mean[key]) / self.count[key]

    def _factor_after_warmup(self, key: str, v: float) -> float:
        """Update the state by the norm v; returns what the gradient is multiplied by."""
        if v < self.norm_floor:
            return 1.0
        factor = 1.0
        if key not in self.gamma:
            self.gamma[key] = v
        elif v > self.ratio * self.gamma[key]:
            limit = self.ratio * self.gamma[key]
            factor = limit / (v + self.eps)
            v = limit
        self.gamma[key] = self.beta * self.gamma[key] + (1.0 - self.beta) * v
        return factor


class PublishedAdaGC:
    """A literal transcription of the published pseudo-code of AdaGC, for finite gradients."""

    def __init__(self, max_norm: float = 1.0) -> None:
        self.max_norm = max_norm
        self.n = 0
        self.gamma: dict[str, float] = {}

    def __call__(self, gradients: Mapping[str, AnyArray | None]) -> Gradients:
        result: Gradients = {}
        flat: dict[str, FloatArray] = {}
        shapes: dict[str, tuple[int, ...]] = {}
        for name, gradient in gradients.items():
            result[name] = None
            if gradient is not None:
                shapes[name] = gradient.shape
                flat[name] = np.array(gradient, dtype=np.float64).reshape(-1)

        self.n += 1
        if self.n <= 100:
            total = float(np.linalg.norm(np.concatenate([np.zeros(0), *flat.values()])))
            c = self.max_norm / (total + 1e-6)
            for name in flat:
                if c < 1:
                    flat[name] *= c
                v = float(np.linalg.norm(flat[name]))
                self.gamma[name] = min(self.gamma[name], v) if name in self.gamma else v
        else:
            for name in flat:
                v = float(np.linalg.norm(flat[name]))
                if name not in self.gamma:
                    self.gamma[name] = v
                if v > 1.04 * self.gamma[name]:
                    flat[name] *= 1.04 * self.gamma[name] / (v + 1e-6)
                    v = 1.04 * self.gamma[name]
                self.gamma[name] = 0.99 * self.gamma[name] + 0.01 * v

        for name, g in flat.items():
            result[name] = g.reshape(shapes[name])
        return result


class ZClipOracle:
    """Clipping of the global norm by its z-score against exponential averages of its mean and variance.

    Attributes:
        collected: the finite norms of the warm-up, before clipping.
        mean: the running mean, None until the warm-up is complete.
        var: the running variance.
    """

    def __init__(
        self,
        warmup_steps: int = 25,
        z_threshold: float = 2.5,
        decay: float = 0.97,
        max_norm: float = 1.0,
        clip_factor: float = 1.0,
        eps: float = 1e-6,
    ) -> None:
        if warmup_steps < 1:
            raise ValueError("the mean and the variance need at least one step of warm-up")
        self.warmup_steps = warmup_steps
        self.z_threshold = z_threshold
        self.decay = decay
        self.max_norm = max_norm
        self.clip_factor = clip_factor
        self.eps = eps
        self.collected: list[float] = []
        self.mean: float | None = None
        self.var = 0.0

    def __call__(self, gradients: Mapping[str, AnyArray | None]) -> Gradients:
        result = copies(gradients)
        g = joint_norm(present(result).values())
        if not math.isfinite(g):
            return {name: None if array is None else np.zeros_like(array) for name, array in result.items()}
        factor = self._factor(g)
        return {name: None if array is None else array * factor for name, array in result.items()}

    def _factor(self, g: float) -> float:
        """Update the state by the finite global norm g; returns what all gradients are multiplied by."""
        if self.mean is None:
            self.collected.append(g)
            if len(self.collected) == self.warmup_steps:
                self.mean = sum(self.collected) / self.warmup_steps
                self.var = sum((norm - self.mean) ** 2 for norm in self.collected) / self.warmup_steps
            return min(1.0, self.max_norm / (g + self.eps))

        std = math.sqrt(self.var)
        z = (g - self.mean) / (std + self.eps)
        y = g
        if z > self.z_threshold:
            y = (self.mean + self.z_threshold * std / (z / self.z_threshold)) * self.clip_factor

        effective = min(y, self.max_norm)
        factor = min(1.0, effective / (g + self.eps)) if effective < g else 1.0

        self.mean = self.decay * self.mean + (1.0 - self.decay) * y
        self.var = self.decay * self.var + (1.0 - self.decay) * (y - self.mean) ** 2
        return factor


class StableAdamWOracle:
    """AdamW whose learning rate of each tensor shrinks with the RMS of its gradient against its second moment.

    Finite gradients are assumed.

    Attributes:
        steps: how many gradients each tensor has had.
        first: the first moments.
        second: the second moments.
    """

    def __init__(
        self,
        lr: float,
        betas: tuple[float, float] = (0.9, 0.99),
        eps: float = 1e-6,
        weight_decay: float = 0.2,
        d: float = 1.0,
    ) -> None:
        self.lr = lr
        self.betas = betas
        self.eps = eps
        self.weight_decay = weight_decay
        self.d = d
        self.steps: dict[str, int] = {}
        self.first: dict[str, FloatArray] = {}
        self.second: dict[str, FloatArray] = {}

    def step(self, weights: Mapping[str, AnyArray], gradients: Mapping[str, AnyArray | None]) -> dict[str, FloatArray]:
        """The new weights; a tensor without a gradient keeps its weights and its count of steps."""
        result: dict[str, FloatArray] = {}
        for name, weight in weights.items():
            w = np.array(weight, dtype=np.float64)
            gradient = gradients.get(name)
            if gradient is None:
                result[name] = w
                continue
            g = np.array(gradient, dtype=np.float64)

            t = self.steps.get(name, 0) + 1
            b1 = debiased(self.betas[0], t)
            b2 = debiased(self.betas[1], t)
            v = b1 * self.first.get(name, np.zeros_like(g)) + (1.0 - b1) * g
            u = b2 * self.second.get(name, np.zeros_like(g)) + (1.0 - b2) * g * g
            self.steps[name], self.first[name], self.second[name] = t, v, u

            rms = math.sqrt(float(np.mean(g * g / np.maximum(u, self.eps**2))))
            lr = self.lr / max(1.0, rms / self.d)
            result[name] = w * (1.0 - self.lr * self.weight_decay) - lr * v / (np.sqrt(u) + self.eps)
        return result


class UpdateClipOracle:
    """Shrinks the update that any optimizer made to a tensor by the RMS of its gradient against a second moment.

    Decoupled weight decay is not part of the update that shrinks. An update with an RMS that is not finite is dropped
    (the decay stays), and its gradient leaves the second moment and the count of steps of its tensor as they were.

    Attributes:
        steps: how many gradients have entered the second moment of each tensor.
        second: the second moments.
    """

    def __init__(self, beta2: float = 0.99, eps: float = 1e-8, threshold: float = 1.0) -> None:
        self.beta2 = beta2
        self.eps = eps
        self.threshold = threshold
        self.steps: dict[str, int] = {}
        self.second: dict[str, FloatArray] = {}

    def limit(
        self,
        old: Mapping[str, AnyArray],
        new: Mapping[str, AnyArray],
        gradients: Mapping[str, AnyArray | None],
        decay: Mapping[str, float],
    ) -> dict[str, FloatArray]:
        """The weights with limited updates.

        Args:
            old: the weights before the optimizer's step.
            new: the weights after it.
            gradients: what the step was made from.
            decay: learning rate times decoupled weight decay of each tensor, 0 where there is none.
        """
        result: dict[str, FloatArray] = {}
        for name in new:
            after = np.array(new[name], dtype=np.float64)
            gradient = gradients.get(name)
            if gradient is None:
                result[name] = after
                continue
            g = np.array(gradient, dtype=np.float64)
            decayed = np.array(old[name], dtype=np.float64) * (1.0 - decay.get(name, 0.0))

            t = self.steps.get(name, 0) + 1
            b2 = debiased(self.beta2, t)
            with np.errstate(over="ignore", invalid="ignore"):
                u = b2 * self.second.get(name, np.zeros_like(g)) + (1.0 - b2) * g * g
                rms = math.sqrt(float(np.mean(g * g / np.maximum(u, self.eps**2))))
            if not math.isfinite(rms):
                result[name] = decayed
                continue

            self.steps[name], self.second[name] = t, u
            moved = after - decayed
            result[name] = decayed + moved / max(1.0, rms / self.threshold)
        return result


def newton_schulz(G: AnyArray, steps: int = 5) -> FloatArray:
    """The quintic Newton-Schulz iteration toward the orthogonal factor of a matrix."""
    a, b, c = NEWTON_SCHULZ_COEFFICIENTS
    x = np.array(G, dtype=np.float64)
    tall = x.shape[0] > x.shape[1]
    if tall:
        x = x.T
    x = x / (l2_norm(x) + 1e-7)
    for _ in range(steps):
        gram = x @ x.T
        x = a * x + (b * gram + c * gram @ gram) @ x
    return x.T.copy() if tall else x


def muon_h_step(
    W: AnyArray,
    momentum: AnyArray,
    G: AnyArray,
    lr: float,
    mu: float = 0.95,
    nesterov: bool = True,
    steps: int = 5,
) -> tuple[FloatArray, FloatArray]:
    """One step of Muon on the sphere of the matrix's own Frobenius norm.

    Returns:
        The new weights and the new momentum. The direction must not be zero.
    """
    w = np.array(W, dtype=np.float64)
    g = np.array(G, dtype=np.float64)
    m = mu * np.array(momentum, dtype=np.float64) + (1.0 - mu) * g
    direction = newton_schulz(mu * m + (1.0 - mu) * g if nesterov else m, steps)
    radius = l2_norm(w)
    moved = w - lr * radius * direction / l2_norm(direction)
    return moved * radius / l2_norm(moved), m


def pc_polynomial(W: AnyArray, level: int, gamma: float = 1.0, s: float | None = None) -> FloatArray:
    """The odd polynomial of a level applied to the singular values of W / s, times gamma and s.

    Args:
        W: a matrix.
        level: the level of the polynomial, 1 to 4.
        gamma: a factor of the result.
        s: the scale; the largest singular value plus 1e-7 unless given.
    """
    left, sigma, right = np.linalg.svd(np.array(W, dtype=np.float64), full_matrices=False)
    scale = float(sigma.max()) + 1e-7 if s is None else s
    x = sigma / scale
    shaped = np.zeros_like(x)
    for k, coefficient in enumerate(PC_COEFFICIENTS[level]):
        shaped = shaped + coefficient * x ** (2 * k + 1)
    return gamma * scale * (left @ np.diag(shaped) @ right)


def pc_forward(
    W: torch.Tensor, u: torch.Tensor, v: torch.Tensor, level: int, gamma: float | torch.Tensor
) -> torch.Tensor:
    """The differentiable definition of the polynomial: the gradient goes through the scale that W is divided by.

    Args:
        W: a float64 matrix.
        u: the right singular vector estimate, as long as W has columns.
        v: the left singular vector estimate, as long as W has rows.
        level: the level of the polynomial, 1 to 4.
        gamma: a factor of the result.
    """
    s = torch.dot(v, torch.mv(W, u)) + 1e-7
    m = W / s
    tall = m.shape[0] >= m.shape[1]
    gram = m.T @ m if tall else m @ m.T
    p = torch.zeros_like(gram)
    for k, coefficient in enumerate(PC_COEFFICIENTS[level]):
        power = torch.eye(gram.shape[0], dtype=gram.dtype, device=gram.device)
        for _ in range(k):
            power = power @ gram
        p = p + coefficient * power
    shaped = m @ p if tall else p @ m
    return shaped * s.detach() * gamma


def qk_clip_factors(
    max_logit: AnyArray, tau: float = 100.0, alpha: float = 0.5, num_key_heads: int | None = None
) -> tuple[FloatArray, FloatArray]:
    """The factors of the query and the key projections that bring the largest attention logits to tau.

    Args:
        max_logit: the largest logit of each query head.
        tau: the largest logit allowed.
        alpha: the share of the query in the factor's exponent.
        num_key_heads: the key heads, each shared by a run of consecutive query heads; as many as query heads if None.

    Returns:
        One factor for each query head, one for each key head.
    """
    maxima = np.array(max_logit, dtype=np.float64)
    num_query_heads = maxima.shape[0]
    key_heads = num_query_heads if num_key_heads is None else num_key_heads
    if num_query_heads % key_heads != 0:
        raise ValueError(f"{num_query_heads} query heads cannot share {key_heads} key heads evenly")
    size = num_query_heads // key_heads

    query_factors = np.ones(num_query_heads)
    key_factors = np.ones(key_heads)
    for key_head in range(key_heads):
        group = slice(key_head * size, (key_head + 1) * size)
        largest = float(np.max(maxima[group]))  # NaN if one of the group is
        gamma = tau / max(largest, tau) if math.isfinite(largest) else 1.0
        query_factors[group] = gamma**alpha
        key_factors[key_head] = gamma ** (1.0 - alpha)
    return query_factors, key_factors


def log_partition(logits: AnyArray) -> FloatArray:
    """The logarithm of the sum of the exponentials over the last axis."""
    values = np.array(logits, dtype=np.float64)
    top = values.max(axis=-1, keepdims=True)
    return np.log(np.exp(values - top).sum(axis=-1)) + top[..., 0]


def z_loss(logits: AnyArray, coefficient: float = 1e-4) -> float:
    """The coefficient times the mean over tokens of the squared log partition function."""
    return coefficient * float(np.mean(log_partition(logits) ** 2))


def z_loss_gradient(logits: AnyArray, coefficient: float = 1e-4) -> FloatArray:
    """The gradient of `z_loss` by the logits."""
    values = np.array(logits, dtype=np.float64)
    log_z = log_partition(values)[..., None]
    softmax = np.exp(values - log_z)
    return 2.0 * coefficient * log_z * softmax / log_z.size


SCENARIO_SHAPES: dict[str, tuple[int, ...]] = {
    "t0": (4, 3),
    "t1": (3,),
    "t2": (2, 2, 2),
    "t3": (8, 5),
    "t4": (1,),
    "t5": (6, 6),
}


def scenario(num_steps: int = 300, seed: int = 0, finite: bool = False) -> list[Gradients]:
    """Gradients with spikes, tensors that come late or stay away, zeros, NaN and infinities.

    The gradients of step k (from 1) stand at index k - 1. All values are float32-representable. A shorter scenario is
    the beginning of a longer one with the same seed.

    Args:
        num_steps: how many steps.
        seed: of the random numbers.
        finite: leave out the NaN and infinite entries and the zero gradients; all else stays the same.
    """
    rng = np.random.default_rng(seed)
    steps: list[Gradients] = []
    for step in range(1, num_steps + 1):
        scale = 0.15 * math.exp(-step / 200.0)  # the total norm falls below 1 at about step 80
        if step in (40, 130, 220):
            scale *= 1000.0
        drawn = {name: scale * rng.standard_normal(shape) for name, shape in SCENARIO_SHAPES.items()}
        if step == 180:
            drawn["t1"] *= 20.0
        if not finite:
            if step in (1, 2, 3, 150):
                drawn["t2"][...] = 0.0
            if step in (50, 200):
                drawn["t0"][1, 2] = math.nan
            if step == 90:
                drawn["t1"][...] = math.nan
            if step == 160:
                drawn["t5"][0, 0] = math.inf
        gradients: Gradients = {name: g.astype(np.float32).astype(np.float64) for name, g in drawn.items()}
        if step < 120:
            gradients["t3"] = None
        if 60 <= step <= 70:
            gradients["t4"] = None
        steps.append(gradients)
    return steps
