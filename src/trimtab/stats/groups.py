"""Groups of arms that cannot be told apart, as letters: two arms differ only if they share no letter."""

from __future__ import annotations

import string
from collections.abc import Collection, Sequence

FAMILYWISE = 0.05  # over all pairs of a table


def letters(arms: Sequence[str], distinct: Collection[frozenset[str]]) -> dict[str, str]:
    """Return the letters of each arm, by insertion and absorption (Piepho, 2004).

    Args:
        arms: in the order in which letters are given, such as by their estimates.
        distinct: the pairs that were told apart.

    Raises:
        ValueError: if a pair is not two of the arms.
    """
    groups: list[frozenset[str]] = [frozenset(arms)] if arms else []
    for pair in sorted(distinct, key=sorted):
        if len(pair) != 2 or not pair <= set(arms):
            raise ValueError(f"not a pair of the arms: {', '.join(sorted(pair))}")
        split = [group - {arm} if pair <= group else group for group in groups for arm in sorted(pair)]
        groups = [group for group in dict.fromkeys(split) if not any(group < other for other in split)]
    place = {arm: index for index, arm in enumerate(arms)}
    groups.sort(key=lambda group: sorted(place[arm] for arm in group))
    return {arm: "".join(_letter(index) for index, group in enumerate(groups) if arm in group) for arm in arms}


def _letter(index: int) -> str:
    alphabet = string.ascii_lowercase
    return alphabet[index] if index < len(alphabet) else f"({index + 1})"
