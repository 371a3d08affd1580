"""Held-out evaluation and its report."""
