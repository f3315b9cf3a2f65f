"""The learning rates that arXiv 2410.16682 reports for its ten methods.

The values are taken from secondary accounts of the paper, not from the paper. The paper trained a model of 830M
parameters with one seed at the LRs 6, 8, 20, 40, 60 and 80 x 1e-3.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Reported:
    """One row of the paper's divergence table.

    Attributes:
        trains_at: highest LR of the grid at which training converged.
        diverges_at: lowest LR of the grid at which training diverged; None if accounts disagree.
        support: number of accounts that agree on the row.
    """

    trains_at: float
    diverges_at: float | None
    support: str

    @property
    def disputed(self) -> bool:
        """Whether accounts disagree; such a row is left out of the comparison of orders."""
        return self.diverges_at is None


REPORTED = {
    "baseline": Reported(6e-3, 8e-3, "2 accounts"),
    "soft_temp": Reported(8e-3, 20e-3, "1 account"),
    "soft_clip": Reported(8e-3, 20e-3, "1 account"),
    "sigma_reparam": Reported(20e-3, 40e-3, "1 account"),
    "layer_scale": Reported(20e-3, 40e-3, "1 account"),
    "soft_cap": Reported(40e-3, 60e-3, "3 accounts"),
    "qk_norm": Reported(40e-3, 60e-3, "3 accounts"),
    "qk_fc_norm": Reported(40e-3, 60e-3, "1 account"),
    "qkv_norm": Reported(60e-3, 80e-3, "4 accounts, 1 against"),
    "qk_norm_cap": Reported(60e-3, None, "accounts differ"),
}
