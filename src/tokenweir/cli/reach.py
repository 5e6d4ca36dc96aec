"""One plain request to the upstream, for `doctor`; how it is made is in `workers/reach.py`."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from email.message import Message

    from tokenweir.settings import Settings


def ask(settings: Settings, method: str, path: str, headers: dict[str, str]) -> tuple[int, Message] | str:
    """Status and headers of the answer, or one sentence that says where it failed. It holds no header that was sent."""
    from tokenweir.workers.reach import ask as ask_upstream

    answer = ask_upstream(settings, method, path, headers)
    return answer if isinstance(answer, str) else (answer.status, answer.headers)
