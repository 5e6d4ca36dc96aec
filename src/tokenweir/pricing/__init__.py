"""What usage costs: the rate card and the rating of usage by it."""
