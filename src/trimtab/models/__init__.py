"""Model families defined by trimtab."""
