"""Where other libraries call trimtab: their training loops and a harness; each file needs the library in its name."""
