"""The version of the numbers, which is part of every run id.

Increase ``NUMERICS`` only if equal specifications no longer give equal losses, because an algorithm, a default or the
order of random draws changed. Another order of summation, another version of torch or another processor belongs to the
environment: it is recorded with the run and reported, and the run id does not change. ``tests/run/test_numerics.py``
compares a set of short runs with stored losses, and fails if a loss changes without a new value here.
"""

NUMERICS = 4
