"""Schema migrations, run by storage/engine.py."""
