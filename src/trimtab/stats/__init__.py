"""Numbers in, numbers out: how far a learning rate goes, and how sure that is. Knows nothing of training."""
