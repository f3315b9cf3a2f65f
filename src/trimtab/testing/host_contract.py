"""The contract of hosts: what every host promises every edit and probe."""

from __future__ import annotations

from trimtab.testing.host_parts import PartContract
from trimtab.testing.host_points import PointContract
from trimtab.testing.host_sites import SiteContract


class HostContract(SiteContract, PartContract, PointContract):
    """Subclass, fill in ``make_host``, and let pytest collect the tests.

    The sites act and leave no trace, the parts are the weights of the model, probes see what attention uses, and
    copies are independent.

    A family that has a bias or a norm between a projection and its site says so; see ``PartContract``.
    """
