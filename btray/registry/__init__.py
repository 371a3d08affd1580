"""MLflow: runs as they are trained, and versions of models."""
