"""What a program with the official Python SDK, line 2 or line 0, sees of its limits: run in the tests' process or in an environment of its own.

It only observes; `test_limits.py` judges. Each play has a key of its own, whose limits the test has set. `python limited_session.py URL KEYS` prints one JSON
object: for each play the answers that came back over HTTP, in order, the waits that the SDK chose, and what it told its program.
"""

from __future__ import annotations

import asyncio
import json
import logging
import sys
from contextlib import contextmanager
from typing import Any

import anthropic

MODEL = "claude-sonnet-4-6"
PATIENT = 8


def ask(directives: str = "output=400", **more: Any) -> dict[str, Any]:
    question = [{"role": "user", "content": "How high is the tide?"}]
    return {"model": MODEL, "max_tokens": 400, "messages": question, "metadata": {"user_id": f"sim:{directives}"}, **more}


class Play:
    """The answers, waits and endings of one play."""

    def __init__(self, url: str, key: str) -> None:
        self._account = {"base_url": url, "api_key": key, "timeout": 60}
        self.seen: dict[str, Any] = {"answers": [], "waits": [], "endings": []}

    def _note(self, response: Any) -> None:
        self.seen["answers"].append({"status": response.status_code, "headers": dict(response.headers)})

    async def _anote(self, response: Any) -> None:
        self._note(response)

    def client(self) -> Any:
        hooks = {"response": [self._note]}
        return anthropic.Anthropic(**self._account, http_client=anthropic.DefaultHttpxClient(event_hooks=hooks))

    def async_client(self, *, max_retries: int = 2) -> Any:
        hooks = {"response": [self._anote]}
        return anthropic.AsyncAnthropic(**self._account, max_retries=max_retries, http_client=anthropic.DefaultAsyncHttpxClient(event_hooks=hooks))

    def create(self, *asked: dict[str, Any], streamed: bool = False) -> None:
        """One call of the program after the other; how each ended is noted."""
        with self.client() as client:
            for one in asked:
                try:
                    if streamed:
                        with client.messages.stream(**one) as stream:
                            self._ended(stream.get_final_message())
                    else:
                        self._ended(client.messages.create(**one))
                except anthropic.APIStatusError as error:
                    self._refused(error)

    async def acreate(self, client: Any, asked: dict[str, Any]) -> None:
        try:
            self._ended(await client.messages.create(**asked))
        except anthropic.APIStatusError as error:
            self._refused(error)

    def _ended(self, message: Any) -> None:
        self.seen["endings"].append({"error": "", "message": message.stop_reason})

    def _refused(self, error: Any) -> None:
        told = error.body["error"]
        self.seen["endings"].append({"error": type(error).__name__, "type": told["type"], "message": told["message"]})


@contextmanager
def waits_of(play: Play) -> Any:
    """The SDK says in its log how long it will wait."""

    class Listener(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            if isinstance(record.args, tuple) and record.msg.startswith("Retrying request"):
                play.seen["waits"].append(record.args[-1])

    logger, listener = logging.getLogger("anthropic._base_client"), Listener()
    before = logger.level
    logger.addHandler(listener)
    logger.setLevel(logging.INFO)
    try:
        yield
    finally:
        logger.removeHandler(listener)
        logger.setLevel(before)


def budget(play: Play) -> None:
    """There is money for one; then two more are asked for."""
    play.create(ask(), ask())
    play.create(ask(), streamed=True)


def rate(play: Play) -> None:
    """Two at once, where one is allowed."""
    play.create(*[ask("output=5")] * 2)


def queue(play: Play) -> None:
    """Four at a time, where one is served after the other."""

    async def together() -> None:
        async with play.async_client() as client:
            await asyncio.gather(*(play.acreate(client, ask("output=5;ttfb=100")) for _ in range(4)))

    asyncio.run(together())


def busy(play: Play) -> None:
    """Two at a time, where the second is refused until the first has ended."""

    async def together() -> None:
        async with play.async_client(max_retries=PATIENT) as client:
            await asyncio.gather(*(play.acreate(client, ask("output=5;ttfb=700")) for _ in range(2)))

    asyncio.run(together())


def model(play: Play) -> None:
    """A model that the key may not use."""
    play.create(ask())


def large(play: Play) -> None:
    """More output than the limit ever allows at once."""
    play.create(ask())


def notices(play: Play) -> None:
    """Up to the end of a quota and beyond."""
    play.create(*[ask("output=5")] * 5)


PLAYS = (budget, rate, queue, busy, model, large, notices)


def run(url: str, keys: dict[str, str]) -> dict[str, Any]:
    """All plays; what was seen in each."""
    found = {}
    for action in PLAYS:
        play = Play(url, keys[action.__name__])
        with waits_of(play):
            action(play)
        found[action.__name__] = play.seen
    return {"version": anthropic.__version__, "plays": found}


if __name__ == "__main__":
    sys.stdout.write(json.dumps(run(sys.argv[1], json.loads(sys.argv[2]))))
