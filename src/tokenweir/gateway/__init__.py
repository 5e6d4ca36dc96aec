"""The data plane: HTTP in, HTTP out, nothing that can block."""
