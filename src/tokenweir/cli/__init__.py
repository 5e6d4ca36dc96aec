"""The command line: one function per command, thin over the same library functions that the console uses.

Every command takes `--json` for programs and prints a table for people. A failure is one sentence on standard error, saying what to do next, and an
exit code that scripts can use: 1 the check found something, 2 wrong use, 3 something else failed.
"""

from __future__ import annotations

from tokenweir.cli.root import app

__all__ = ["app"]
