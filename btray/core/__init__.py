"""What touches pixels, tensors or numbers. Nothing here imports Ray."""
