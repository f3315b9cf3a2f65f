"""A softmax whose weights may sum to less than 1."""

from __future__ import annotations

from trimtab.interventions.softmax_one import SoftmaxOne
from trimtab.method import Method

softmax1 = Method("softmax1", (SoftmaxOne(),), SoftmaxOne.source)
