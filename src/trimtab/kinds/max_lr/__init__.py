"""``max_lr``: the highest learning rate at which each arm still trains."""

from __future__ import annotations

from trimtab.kinds.max_lr.analysis import analyse
from trimtab.kinds.max_lr.findings import LimitFindings
from trimtab.kinds.max_lr.movers import keep
from trimtab.kinds.max_lr.page import content
from trimtab.kinds.max_lr.results import LimitFacts, LimitResults
from trimtab.kinds.max_lr.rounds import round_name, rounds
from trimtab.kinds.max_lr.spec import MaxLrSpec
from trimtab.kinds.max_lr.standings import standings
from trimtab.study.kind import Kind

KIND = Kind[MaxLrSpec, LimitFindings](
    slug="max_lr",
    spec=MaxLrSpec,
    rounds=rounds,
    round_name=round_name,
    analyse=analyse,
    content=content,
    facts=LimitFacts,
    results=LimitResults,
    keep=keep,
    standings=standings,
)
