"""``loss_at_lr``: final losses of arms on paired seeds, at a given or tuned learning rate, on held-out texts."""

from __future__ import annotations

from trimtab.kinds.loss_at_lr.analysis import analyse
from trimtab.kinds.loss_at_lr.findings import LossFindings
from trimtab.kinds.loss_at_lr.page import content
from trimtab.kinds.loss_at_lr.results import LossFacts, LossResults
from trimtab.kinds.loss_at_lr.rounds import round_name, rounds
from trimtab.kinds.loss_at_lr.spec import LossStudySpec
from trimtab.kinds.loss_at_lr.standings import standings
from trimtab.study.kind import Kind

KIND = Kind[LossStudySpec, LossFindings](
    slug="loss_at_lr",
    spec=LossStudySpec,
    rounds=rounds,
    round_name=round_name,
    analyse=analyse,
    content=content,
    facts=LossFacts,
    results=LossResults,
    standings=standings,
)
