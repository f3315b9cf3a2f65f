"""Executors, which carry out runs in this process or in a pool of worker processes, and their protocol."""
