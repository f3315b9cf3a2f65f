"""Contract suites: subclass one in your tests to hold your own method or host to what trimtab promises."""

from trimtab.testing.host_contract import HostContract
from trimtab.testing.method_contract import MethodContract

__all__ = ["HostContract", "MethodContract"]
