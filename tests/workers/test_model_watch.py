"""The watch over the provider's models: pages are followed, changes are told once, and a provider that is not there changes nothing."""

from __future__ import annotations

import json
import logging
import threading
from contextlib import closing
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, urlsplit

import pytest

from tokenweir import app
from tokenweir.ledger_ports import ProviderModel
from tokenweir.periods import DAY_US
from tokenweir.settings import Settings
from tokenweir.workers import model_watch
from tokenweir.workers.model_watch import due_in_s, look, watch_models


class Provider(ThreadingHTTPServer):
    """Lists what it is told, two a page."""

    def __init__(self):
        super().__init__(("127.0.0.1", 0), _Answer)
        self.models = []
        self.status = 200
        self.asked = []

    @property
    def url(self):
        return f"http://127.0.0.1:{self.server_address[1]}"


class _Answer(BaseHTTPRequestHandler):
    def do_GET(self):
        provider = self.server
        provider.asked.append((self.path, self.headers["x-api-key"]))
        after = parse_qs(urlsplit(self.path).query).get("after_id", [""])[0]
        ids = [model["id"] for model in provider.models]
        start = ids.index(after) + 1 if after else 0
        page = provider.models[start : start + 2]
        if not page:
            page = provider.models
        body = {"data": page, "has_more": start + 2 < len(ids), "last_id": page[-1]["id"] if page else None}
        content = json.dumps(body).encode()
        self.send_response_only(provider.status)
        self.send_header("content-length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *_):
        pass


@pytest.fixture
def provider():
    server = Provider()
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    yield server
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.fixture
def settings(tmp_path, provider):
    found = Settings(data_dir=tmp_path / "home", upstream={"base_url": provider.url, "api_key": "sk-ant-sim-x"})
    app.open_engine(found, create=True).dispose()
    return found


@pytest.fixture
def models(settings):
    with closing(app.open_provider_models(settings)) as found:
        yield found


def listed(*ids, **lifecycles):
    return [{"type": "model", "id": one, "lifecycle": lifecycles.get(one, "active")} for one in ids]


def changes(caplog):
    return [record.fields for record in caplog.records if record.message == "models_changed"]


def test_all_pages_are_read_and_kept(settings, models, provider):
    provider.models = listed("a", "b", "c", "d", "e")
    look(settings, models, "sk-ant-sim-x", now_us=7)
    assert [model.model_id for model in models.listed()] == ["a", "b", "c", "d", "e"]
    assert len(provider.asked) == 3
    assert {key for _, key in provider.asked} == {"sk-ant-sim-x"}


def test_what_changed_is_told_once(settings, models, provider, caplog):
    caplog.set_level(logging.INFO)
    provider.models = listed("a", "b", "c")
    look(settings, models, "k", now_us=1)
    assert changes(caplog) == []  # the first list is no news
    provider.models = listed("b", "c", "d", b="deprecated", c="retired")
    look(settings, models, "k", now_us=2)
    look(settings, models, "k", now_us=3)
    assert changes(caplog) == [{"new": ["d"], "gone": ["a"], "deprecated": ["b"], "retired": ["c"]}]


@pytest.mark.parametrize("status", [401, 404, 500, 302])
def test_an_answer_that_is_no_list_changes_nothing(settings, models, provider, status):
    provider.models = listed("a")
    look(settings, models, "k", now_us=1)
    provider.status = status
    with pytest.raises(ValueError, match=f"HTTP {status}"):
        look(settings, models, "k", now_us=2)
    assert [(model.model_id, model.last_seen_at_us) for model in models.listed()] == [("a", 1)]


def test_an_empty_list_is_not_believed(settings, models):
    with pytest.raises(ValueError, match="no models at all"):
        look(settings, models, "k", now_us=1)


def test_a_provider_that_turns_in_circles_is_left(settings, models, provider, monkeypatch):
    provider.models = listed("a")
    monkeypatch.setattr(model_watch, "read_models", lambda _: model_watch_page())
    look(settings, models, "k", now_us=1)
    assert len(provider.asked) == 2


def model_watch_page():
    from tokenweir.wire.model_list import ListedModel, ModelPage

    return ModelPage((ListedModel("a"),), has_more=True, last_id="a")


def test_a_list_is_due_a_day_after_the_last():
    assert due_in_s([], 5 * DAY_US) <= 0
    known = [ProviderModel("a", last_seen_at_us=4 * DAY_US), ProviderModel("b", last_seen_at_us=5 * DAY_US)]
    assert due_in_s(known, 5 * DAY_US) == 86_400
    assert due_in_s(known, 6 * DAY_US) == 0


def test_the_watch_looks_by_itself_and_ends_when_told(settings, models, provider, monkeypatch):
    monkeypatch.setattr(model_watch, "FIRST_LOOK_S", 0.0)
    provider.models = listed("a")
    stop = threading.Event()
    kept = threading.Event()

    def open_models():
        class Watched:
            def listed(self):
                return models.listed()

            def keep_listing(self, found, *, now_us):
                models.keep_listing(found, now_us=now_us)
                kept.set()

            def close(self):
                pass

        return Watched()

    how = {"open_models": open_models, "upstream_key": lambda: app.any_upstream_key(settings), "clock": app.SystemClock(), "stop": stop}
    thread = threading.Thread(target=watch_models, args=(settings,), kwargs=how)
    thread.start()
    assert kept.wait(20)
    stop.set()
    thread.join(20)
    assert not thread.is_alive()
    assert [model.model_id for model in models.listed()] == ["a"]


def test_the_watch_outlives_a_provider_that_is_down(settings, models, provider, monkeypatch, caplog):
    monkeypatch.setattr(model_watch, "FIRST_LOOK_S", 0.0)
    monkeypatch.setattr(model_watch, "RETRY_S", 0.0)
    provider.status = 500
    provider.models = listed("a")
    stop = threading.Event()
    how = {"open_models": lambda: app.open_provider_models(settings), "upstream_key": lambda: "k", "clock": app.SystemClock(), "stop": stop}
    thread = threading.Thread(target=watch_models, args=(settings,), kwargs=how)
    thread.start()
    while len(provider.asked) < 3:
        stop.wait(0.01)
    provider.status = 200
    while not models.listed():
        stop.wait(0.01)
    stop.set()
    thread.join(20)
    assert {record.message for record in caplog.records if record.name == "tokenweir"} >= {"models_unavailable"}
