"""What holds for all tests."""

from __future__ import annotations

import os

# Whoever runs the tests decides how wide the terminal is; tables must look the same to every test that reads one.
os.environ["COLUMNS"] = "160"
