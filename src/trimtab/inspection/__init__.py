"""What stored weights say, tensor by tensor and without building the model."""
