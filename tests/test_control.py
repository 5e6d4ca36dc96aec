"""The control file: private, of one run, and believed only if whoever answers knows its secret."""

from __future__ import annotations

import threading
from http.server import BaseHTTPRequestHandler, HTTPServer

from tokenweir.control import CONTROL_FILE, Control, ask_gateway, read_control, remove_control, write_control


def test_it_is_for_its_owner_alone_and_goes_with_its_process(tmp_path):
    """Mode 0600; the next process's file is not taken away by the one before."""
    first, second = Control("http://127.0.0.1:1", "a", 1), Control("http://127.0.0.1:2", "b", 2)
    file = write_control(tmp_path, first)
    assert file.stat().st_mode & 0o077 == 0
    write_control(tmp_path, second)
    remove_control(tmp_path, first)
    assert read_control(tmp_path) == second
    remove_control(tmp_path, second)
    assert read_control(tmp_path) is None
    assert list(tmp_path.iterdir()) == []


def test_a_file_that_cannot_be_read_is_no_gateway(tmp_path):
    """Half written by something else, or of another version: nobody is asked."""
    (tmp_path / CONTROL_FILE).write_text("{")
    assert read_control(tmp_path) is None


def test_the_secret_does_not_print():
    """It may end up in a traceback or a log."""
    assert "hush" not in repr(Control("http://127.0.0.1:1", "hush", 1))


class _Gateway(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        known = self.headers["authorization"] == "Bearer right"
        self.send_response(200 if known else 501)
        self.end_headers()
        self.wfile.write(b"[]" if known else b"no")

    def log_message(self, *_: object) -> None:
        """Keep quiet."""


def test_only_the_gateway_that_wrote_the_file_answers():
    """Another process at the same address is not believed, and a dead one is not waited for."""
    server = HTTPServer(("127.0.0.1", 0), _Gateway)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    url = f"http://127.0.0.1:{server.server_port}"
    try:
        assert ask_gateway(Control(url, "right", 1), "/internal/limits") == b"[]"
        assert ask_gateway(Control(url, "stale", 1), "/internal/limits") is None
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
    assert ask_gateway(Control(url, "right", 1), "/internal/limits") is None
