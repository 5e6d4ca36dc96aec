"""Limits, decided: what a limit is, how its buckets move, what a request demands of them. No clock, no store, no network."""
