"""The learning-rate limit at several sizes, and how it moves with size."""
