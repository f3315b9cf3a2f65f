"""Statistics of stored weights, read tensor by tensor, without building the model."""
