"""The store in memory is the engine and nothing else; what it does is in test_limit_stores.py."""

from __future__ import annotations

import inspect

from tokenweir.limit_ports import LimitStore
from tokenweir.limits.bucket import Bucket, Hold, Kind, Reserved, Standing
from tokenweir.storage.limit_memory import MemoryLimitStore

NOW = 1_800_000_000_000_000


def test_it_has_every_operation_of_the_port():
    """Each operation is there with the port's parameters, and as a coroutine where the port has one."""
    port = {name: member for name, member in vars(LimitStore).items() if inspect.isfunction(member) and not name.startswith("_")}
    assert len(port) == 11
    for name, member in port.items():
        own = getattr(MemoryLimitStore, name)
        assert inspect.signature(own) == inspect.signature(member), name
        assert inspect.iscoroutinefunction(own) == inspect.iscoroutinefunction(member), name


async def test_it_is_its_process_alone():
    """Two stores know nothing of each other, and neither says that others count in it."""
    one, other = MemoryLimitStore("w1"), MemoryLimitStore("w2")
    assert not one.shared
    gauge = Bucket("g", Kind.GAUGE, 1)
    assert await one.reserve("h", [gauge], [1], now_us=NOW) == await other.reserve("h", [gauge], [1], now_us=NOW) == Reserved((Standing(0, 1),))
    assert await one.holds() == [Hold("h", "w1", (("g", 1),))]
    assert await other.holds("w1") == []


async def test_it_answers_at_once():
    """No operation gives way to another task, so each is atomic: the coroutine ends without having been suspended."""
    store = MemoryLimitStore()
    gauge = Bucket("g", Kind.GAUGE, 1)
    for operation in (
        store.reserve("h", [gauge], [1], now_us=NOW),
        store.extend("h", [0], now_us=NOW),
        store.charge("c", []),
        store.seed([]),
        store.standings([gauge], now_us=NOW),
        store.holds(),
        store.settled(),
        store.close(),
    ):
        try:
            operation.send(None)
        except StopIteration:
            continue
        raise AssertionError("it waited")
