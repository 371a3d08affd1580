"""Ray Train: the one way a network is trained."""
