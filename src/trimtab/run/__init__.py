"""One run: its complete specification, its identity, its folder, and how it is carried out."""
