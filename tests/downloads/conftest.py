"""A server on loopback, no proxy, and patience of tenths of seconds."""

import pytest

from recipe.downloads.retry import Patience
from tests.downloads import server as servers

QUICK = Patience(timeout=0.3, waits=(0.01, 0.02))


@pytest.fixture(autouse=True)
def no_proxy(monkeypatch):
    monkeypatch.setenv("NO_PROXY", "127.0.0.1,localhost")
    monkeypatch.delenv("HF_TOKEN", raising=False)


@pytest.fixture
def server():
    with servers.serve() as place:
        yield place
