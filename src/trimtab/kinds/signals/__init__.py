"""``signals``: TEV and gradient variance during a run, and whether they predict how the run ends."""

from __future__ import annotations

from trimtab.kinds.signals.analysis import analyse, keep
from trimtab.kinds.signals.findings import SignalFindings
from trimtab.kinds.signals.page import content
from trimtab.kinds.signals.results import SignalFacts, SignalResults
from trimtab.kinds.signals.rounds import round_name, rounds
from trimtab.kinds.signals.spec import SignalsSpec
from trimtab.study.kind import Kind

KIND = Kind[SignalsSpec, SignalFindings](
    slug="signals",
    spec=SignalsSpec,
    rounds=rounds,
    round_name=round_name,
    analyse=analyse,
    content=content,
    facts=SignalFacts,
    results=SignalResults,
    has_reference=False,
    keep=keep,
)
