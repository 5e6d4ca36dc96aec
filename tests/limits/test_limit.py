"""What a limit is: whether it may refuse, and which models it covers."""

from __future__ import annotations

import msgspec
import pytest

from tokenweir.limits.limit import AMOUNT_MAX, Action, Cycle, Limit, Resource, Rolling, Scope, covers


def limit(**more) -> Limit:
    return Limit("lim_1", "monthly", Scope("org_1"), Resource.SPEND, 5_000_000_000, Cycle("month"), **more)


@pytest.mark.parametrize("action", Action)
def test_only_warn_and_shadow_never_refuse(action):
    """A limit refuses unless its action is to warn, and in the shadow none does."""
    assert limit(action=action).enforced is (action is not Action.WARN)
    assert not limit(action=action, shadow=True).enforced


def test_a_limit_without_models_covers_all():
    """Nothing named is everything, also a model that nobody has heard of."""
    assert covers(limit(), "claude-opus-4-6")
    assert covers(limit(), "")


def test_models_are_patterns():
    """A limit names models or shell patterns of them; case matters, as in model ids."""
    some = limit(models=("claude-opus-*", "claude-haiku-4-5"))
    assert covers(some, "claude-opus-4-6")
    assert covers(some, "claude-haiku-4-5")
    assert not covers(some, "claude-haiku-4-5-20251001")
    assert not covers(some, "claude-sonnet-4-6")
    assert not covers(some, "Claude-Opus-4-6")


def test_any_name_of_a_model_counts():
    """An alias does not slip past a limit on the model that it stands for, nor the other way round."""
    some = limit(models=("claude-haiku-4-5-2025*",))
    assert covers(some, "claude-haiku-4-5", "claude-haiku-4-5-20251001")
    assert covers(some, "claude-haiku-4-5-20251001", "claude-haiku-4-5")
    assert not covers(some)


def test_what_a_pattern_cannot_do():
    """A pattern covers the whole name, and a bracket is a set of letters."""
    assert not covers(limit(models=("opus",)), "claude-opus-4-6")
    assert covers(limit(models=("claude-opus-4-[56]",)), "claude-opus-4-6")


def test_a_window_keeps_its_kind_when_it_is_written():
    """Limits are stored as text: what is read back is the same limit, window and all."""
    for window in (Rolling(60_000_000, burst=5), Cycle("month", "Europe/Berlin", "31"), None):
        some = msgspec.structs.replace(limit(models=("a*",), action=Action.QUEUE, queue_ms=500), window=window)
        assert msgspec.json.decode(msgspec.json.encode(some), type=Limit) == some


def test_amounts_fit_a_number_of_53_bits():
    """A shared store counts in doubles; two of the largest amounts still add up exactly in one."""
    assert float(2 * AMOUNT_MAX) == 2 * AMOUNT_MAX
    assert 2 * AMOUNT_MAX + 1 <= 2**53
