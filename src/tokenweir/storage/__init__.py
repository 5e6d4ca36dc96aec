"""Adapters behind the ports; imported by app.py alone."""
