"""A crowd of clients for tests: they ask all the time, tolerate every failure, and some leave in the middle of an answer."""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from collections.abc import Callable
from contextlib import suppress

from processes.calling import Asked, Broken, Call, ask

MODELS = ("claude-sonnet-4-5", "claude-haiku-4-5", "claude-opus-4-8")


class Crowd:
    """So many clients at once. What each asked is in `sessions`, what was acknowledged in `acknowledged`."""

    def __init__(self, url: Callable[[], str], keys: list[str], *, clients: int, seed: int, pace_ms: float = 2) -> None:
        """`url` is asked before every request, because a gateway may come back at another address."""
        self._url = url
        self._keys = keys
        self._clients = clients
        self._random = random.Random(seed)
        self._pace_ms = pace_ms
        self._number = 0
        self._ending = False
        self.sessions: dict[str, str] = {}
        """Session by the SHA-256 of the body."""
        self.acknowledged: dict[str, str] = {}
        """Our request id by session, of every answer that a client received whole."""
        self.outcomes: Counter[str] = Counter()

    async def run(self) -> None:
        """Ask until `end()`; returns when every client has its last answer."""
        async with asyncio.TaskGroup() as tasks:
            for index in range(self._clients):
                tasks.create_task(self._client(self._keys[index % len(self._keys)]))

    def end(self) -> None:
        """No more questions."""
        self._ending = True

    async def _client(self, key: str) -> None:
        while not self._ending:
            asked, leaves_after = self._next()
            self.sessions[asked.sha256] = asked.session
            call = Call(self._url(), key, asked)
            try:
                async with asyncio.timeout(20):
                    await call.open()
                    await self._read(call, asked, leaves_after)
            except (OSError, Broken, TimeoutError) as error:
                self.outcomes[f"broken: {type(error).__name__}"] += 1
                await asyncio.sleep(0.1)
            finally:
                with suppress(OSError):
                    await call.leave(self._random.choice(("fin", "rst")))

    async def _read(self, call: Call, asked: Asked, leaves_after: int) -> None:
        answer = await call.read_head()
        async for _ in call.pieces():
            if 0 <= leaves_after <= answer.body.count(b"\n\n"):
                self.outcomes["left"] += 1
                return
        if answer.looks_complete:
            self.acknowledged[asked.session] = answer.headers["request-id"]
        self.outcomes[f"{answer.status}{'' if answer.looks_complete or answer.status != 200 else ' incomplete'}"] += 1
        if answer.status != 200:
            await asyncio.sleep(0.02)

    def _next(self) -> tuple[Asked, int]:
        chance = self._random
        self._number += 1
        stream = chance.random() < 0.6
        tool = chance.random() < 0.1
        thinking = chance.choice((0, 0, 12))
        directives = f"output={chance.randrange(4, 80) + thinking};thinking={thinking};pace={self._pace_ms * chance.random():.2f}"
        directives += ";tool=find" if tool else ""
        asked = ask(f"s{self._number}", stream=stream, model=chance.choice(MODELS), directives=directives)
        return asked, chance.randrange(0, 16) if stream and chance.random() < 0.3 else -1
