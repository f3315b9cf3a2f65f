"""One run: its specification, its identity, its folder, and its execution."""
