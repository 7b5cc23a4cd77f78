"""Evaluation: what is run, what is recorded, and what follows from it."""
