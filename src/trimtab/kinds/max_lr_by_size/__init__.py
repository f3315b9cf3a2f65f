"""``max_lr_by_size``: the learning-rate limit at several model sizes, and its trend with size."""

from __future__ import annotations

from trimtab.kinds.max_lr.rounds import round_name
from trimtab.kinds.max_lr_by_size.analysis import SizedFindings, analyse
from trimtab.kinds.max_lr_by_size.page import content
from trimtab.kinds.max_lr_by_size.results import SizedFacts, SizedResults
from trimtab.kinds.max_lr_by_size.rounds import rounds
from trimtab.kinds.max_lr_by_size.spec import SizedStudySpec
from trimtab.kinds.max_lr_by_size.standings import standings
from trimtab.study.kind import Kind

KIND = Kind[SizedStudySpec, SizedFindings](
    slug="max_lr_by_size",
    spec=SizedStudySpec,
    rounds=rounds,
    round_name=round_name,
    analyse=analyse,
    content=content,
    facts=SizedFacts,
    results=SizedResults,
    standings=standings,
)
