"""Both databases for tests: SQLite always, PostgreSQL where its server programs are installed or TOKENWEIR_TEST_POSTGRES names one to use."""

from __future__ import annotations

import atexit
import contextlib
import functools
import os
import pwd
import shutil
import signal
import subprocess
import tempfile
import time
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tokenweir.settings import Settings


def _program(name: str) -> str | None:
    found = sorted(Path("/usr/lib/postgresql").glob(f"*/bin/{name}"))
    return str(found[-1]) if found else shutil.which(name)


HAS_POSTGRES = bool(os.environ.get("TOKENWEIR_TEST_POSTGRES") or (_program("initdb") and _program("postgres")))
DATABASES = [
    pytest.param("sqlite"),
    pytest.param("postgres", marks=pytest.mark.skipif(not HAS_POSTGRES, reason="there are no PostgreSQL server programs here")),
]


@contextlib.contextmanager
def settings_for(kind: str, folder: Path, **more: Any) -> Iterator[Settings]:
    """Settings with an empty database of that kind, which is gone afterwards."""
    if kind == "sqlite":
        yield Settings(data_dir=folder, **more)
        return
    import psycopg

    server, name = _server(), f"t_{uuid.uuid4().hex}"
    with psycopg.connect(f"{server}&dbname=postgres", autocommit=True) as admin:
        admin.execute(f"CREATE DATABASE {name}")
        try:
            yield Settings(data_dir=folder, database_url=server.replace("postgresql:///", f"postgresql:///{name}"), **more)
        finally:
            admin.execute(f"DROP DATABASE {name} WITH (FORCE)")


@functools.cache
def _server() -> str:
    """A URL `postgresql:///?host=…&user=…` of a server of our own, on a socket in a temporary directory, or of the one that is named."""
    if named := os.environ.get("TOKENWEIR_TEST_POSTGRES"):
        return named
    folder = Path(tempfile.mkdtemp(prefix="tokenweir-pg-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    as_user: dict[str, Any] = {"cwd": folder}
    if os.geteuid() == 0:  # the server refuses to run as root
        account = pwd.getpwnam("postgres")
        os.chown(folder, account.pw_uid, account.pw_gid)
        as_user |= {"user": account.pw_uid, "group": account.pw_gid, "extra_groups": []}
    cluster = folder / "cluster"
    initdb = [str(_program("initdb")), "-D", str(cluster), "-U", "tokenweir", "-A", "trust", "-N", "-E", "UTF8", "--locale", "C"]
    subprocess.run(initdb, check=True, capture_output=True, **as_user)
    arguments = ["-D", str(cluster), "-k", str(folder), "-c", "listen_addresses=", "-F"]
    process = subprocess.Popen(
        [str(_program("postgres")), *arguments], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, stdin=subprocess.DEVNULL, **as_user
    )

    def stop() -> None:
        process.send_signal(signal.SIGINT)
        process.wait(20)

    atexit.register(stop)
    url = f"postgresql:///?host={folder}&user=tokenweir"
    import psycopg

    for _ in range(200):
        with contextlib.suppress(psycopg.OperationalError), psycopg.connect(f"{url}&dbname=postgres"):
            return url
        time.sleep(0.05)
    raise RuntimeError("the PostgreSQL server did not start")
