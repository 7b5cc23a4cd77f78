"""Evaluation: what is run, what is kept of it, what can be told from it."""
