"""``signals``: what a run shows early on, and whether it tells how the run will end."""
