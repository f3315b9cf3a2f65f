"""Log-partition of the output softmax: drifts away from 0 when nothing bounds the logits."""

from __future__ import annotations

from trimtab.probe import LogitProbe

LOG_PARTITION = LogitProbe(
    slug="log_partition",
    unit="nats",
    meaning="mean over tokens of log sum exp of the output logits",
    source="arXiv 2309.14322, section 3.2; what z-loss penalises",
    cost="cheap",
    rows=lambda logits: logits.double().logsumexp(-1) if logits.device.type != "mps" else logits.logsumexp(-1),
)
