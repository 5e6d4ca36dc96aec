"""Where the recorded traffic is; tests that need it skip, visibly, when it is absent."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

_HERE = Path(os.environ.get("TOKENWEIR_FIXTURES") or Path(__file__).resolve().parents[2] / "shared" / "fixtures")

FIXTURES: Path | None = _HERE if (_HERE / "anthropic" / "corpus.jsonl").is_file() else None

needs_fixtures = pytest.mark.skipif(FIXTURES is None, reason="recorded traffic is not here (set TOKENWEIR_FIXTURES)")
