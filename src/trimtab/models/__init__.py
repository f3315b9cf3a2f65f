"""Model families of our own."""
