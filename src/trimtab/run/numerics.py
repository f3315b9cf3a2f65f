"""The version of the numbers: part of every run's id.

``NUMERICS`` is raised when an algorithm, a default or the order of random draws changes, so that equal specifications
no longer give equal losses; and only then. Another order of summation, another torch or another processor is
environment: it is recorded with the run and reported, and the id stays. ``tests/run/test_numerics.py`` holds a set of
short runs to their losses and fails when one moves without a new number here.
"""

NUMERICS = 1
