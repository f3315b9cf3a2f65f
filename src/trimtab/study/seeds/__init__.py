"""``seeds``: how much of a run is its seed, and which part of the seed."""
