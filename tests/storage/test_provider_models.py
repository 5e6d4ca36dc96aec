"""The provider's list of models: what was once seen is not forgotten, and changes are dated."""

from __future__ import annotations

from contextlib import closing

import pytest

from databases import DATABASES, settings_for
from tokenweir import app
from tokenweir.ledger_ports import ProviderModel


@pytest.fixture(params=DATABASES)
def models(request, tmp_path):
    with settings_for(request.param, tmp_path / "home") as chosen:
        app.open_engine(chosen, create=True).dispose()
        with closing(app.open_provider_models(chosen)) as found:
            yield found


def test_a_model_keeps_when_it_was_first_seen_and_when_it_changed(models):
    models.keep_listing([ProviderModel("a", lifecycle="active")], now_us=10)
    models.keep_listing([ProviderModel("a", lifecycle="active", display_name="A")], now_us=20)
    models.keep_listing([ProviderModel("a", lifecycle="deprecated", retires_at="2027-01-01")], now_us=30)
    (found,) = models.listed()
    assert (found.first_seen_at_us, found.last_seen_at_us, found.changed_at_us) == (10, 30, 30)
    assert (found.lifecycle, found.retires_at) == ("deprecated", "2027-01-01")


def test_a_model_that_is_not_listed_any_more_stays_as_it_was_last_seen(models):
    models.keep_listing([ProviderModel("a"), ProviderModel("b")], now_us=10)
    models.keep_listing([ProviderModel("b")], now_us=20)
    assert [(one.model_id, one.last_seen_at_us) for one in models.listed()] == [("a", 10), ("b", 20)]
