"""Runs as jobs of a batch system: the contract of such a system, the executor, and what its jobs do."""
