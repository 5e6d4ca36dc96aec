"""A simulated Claude API for demos, tests and load."""
