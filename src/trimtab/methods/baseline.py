"""Baseline: the plain block, without any intervention."""

from __future__ import annotations

from trimtab.intervention import Source
from trimtab.method import Method

baseline = Method(
    "baseline",
    (),
    Source(
        title="Methods of improving LLM training stability",
        arxiv="2410.16682",
        place="method 0",
        equation="x <- x + Proj(softmax(QK^T / sqrt(K) + mask) V); x <- x + FC2(act(FC1(LN(x))))",
    ),
)
