"""Statistics on plain arrays: limits of the learning rate, intervals and tests. No module here imports torch."""
