"""Contract suites: subclass one in your tests to hold what you add, such as a method or a host, to its promises."""

from trimtab.testing.executor_contract import ExecutorContract
from trimtab.testing.gradient_rule_contract import GradientRuleContract
from trimtab.testing.host_contract import HostContract
from trimtab.testing.kind_contract import KindContract
from trimtab.testing.method_contract import MethodContract
from trimtab.testing.rule_contract import LossTermContract, RuleContract

__all__ = [
    "ExecutorContract",
    "GradientRuleContract",
    "HostContract",
    "KindContract",
    "LossTermContract",
    "MethodContract",
    "RuleContract",
]
