"""``seeds``: the variance between runs due to initial weights and to the order of the data."""

from __future__ import annotations

from trimtab.kinds.seeds.analysis import SeedFindings, analyse
from trimtab.kinds.seeds.page import content
from trimtab.kinds.seeds.rounds import round_name, rounds
from trimtab.kinds.seeds.spec import SeedsSpec
from trimtab.section import NoFacts
from trimtab.study.kind import Kind

KIND = Kind[SeedsSpec, SeedFindings](
    slug="seeds",
    spec=SeedsSpec,
    rounds=rounds,
    round_name=round_name,
    analyse=analyse,
    content=content,
    facts=NoFacts,
    results=NoFacts,
    has_reference=False,
    seed_groups=lambda findings: findings.groups,
    adds_seeds=False,  # the page of this kind is the view of seeds
)
