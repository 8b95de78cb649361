"""The serve command: what it refuses before a model is loaded, and how it starts and ends."""

import json
import signal
import socket
import sys
import urllib.request
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent / "serving"))
from programs import start_server

from recipe import serve
from recipe.core.cli import entry


@pytest.fixture
def start():
    with start_server() as function:
        yield function


@pytest.mark.parametrize(
    ("arguments", "sentence", "code"),
    [
        ([], "either a run", 2),
        (["--run", "a", "--model", "b"], "either a run", 2),
        (["--model", "b", "--port", "70000"], "--port is 70000", 2),
        (["--model", "b", "--host", "0.0.0.0"], "RECIPE_API_KEY is not set", 2),
        (["--model", "nothing", "--port", "0"], "nothing is not a folder", 2),
        (["--model", "b", "--host", "192.0.2.1"], "RECIPE_API_KEY is not set", 2),
    ],
)
def test_wrong_flags_are_one_sentence(arguments, sentence, code, capsys, monkeypatch):
    monkeypatch.delenv("RECIPE_API_KEY", raising=False)
    assert entry(lambda: serve.main(arguments)) == code
    assert sentence in capsys.readouterr().err


def test_a_port_in_use_is_one_sentence(capsys):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        assert entry(lambda: serve.main(["--model", "b", "--port", port])) == 1
    assert f"error: port {port} is in use; stop the program" in capsys.readouterr().err


def test_dry_run_names_the_run_and_opens_nothing(trained_run, capsys):
    _, run = trained_run
    assert serve.main(["--run", str(run.folder), "--dry-run", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["address"] == "http://127.0.0.1:8000/"
    assert entry(lambda: serve.main(["--run", "a", "--dry-run"])) == 2
    assert "a is not a run" in capsys.readouterr().err


def test_a_run_is_served_until_ctrl_c(start, trained_run):
    _, run = trained_run
    process, address = start("--run", run.folder)
    body = {"model": "tuned", "messages": [{"role": "user", "content": "Who are you?"}], "stream": True}
    request = urllib.request.Request(
        address + "v1/chat/completions", json.dumps(body).encode(), {"Content-Type": "application/json"}
    )
    with urllib.request.urlopen(address + "v1/models") as response:
        assert [model["id"] for model in json.load(response)["data"]] == ["tuned", "base"]
    with urllib.request.urlopen(request) as response:
        assert response.readline().startswith(b"data: ")
        process.send_signal(signal.SIGINT)  # in the middle of an answer
        _, err = process.communicate(timeout=20)
    assert process.returncode == 0
    assert "Traceback" not in err and "Who are you" not in err
