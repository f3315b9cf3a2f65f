"""Contract suites: subclass one in your tests to hold your own method, host or gradient rule to its promises."""

from trimtab.testing.gradient_rule_contract import GradientRuleContract
from trimtab.testing.host_contract import HostContract
from trimtab.testing.method_contract import MethodContract

__all__ = ["GradientRuleContract", "HostContract", "MethodContract"]
