"""The page in a real browser: both columns stream, one is stopped, hostile text does nothing."""

import asyncio
import re
import sys
from pathlib import Path

import pytest

from recipe.serving.engine import Piece
from recipe.serving.server import PAGE, Server

sys.path.insert(0, str(Path(__file__).parent))
import programs

TALKS = "document.querySelectorAll('section .answer')"
IDLE = "!document.querySelector('#send').hidden"
HOSTILE = "<img src=x onerror=\"document.title='owned'\"><script>document.title='owned'</script>"


@pytest.fixture
def visit(engine, tmp_path):
    """Run `async def check(tab, server)` in a browser at a server in this process."""
    if programs.find() is None:
        pytest.skip("no Chromium on this machine: the page was not opened in a browser")
    from aiohttp.test_utils import TestServer

    from recipe.serving.access import Access

    def run(check):
        async def session():
            server = Server(engine, Access("127.0.0.1"))
            started = TestServer(server.app(), handler_cancellation=True)
            await started.start_server()
            async with started, programs.open_tab(str(started.make_url("/")), tmp_path / "profile") as tab:
                await check(tab, server)

        asyncio.run(session())

    return run


def slow(monkeypatch, engine, words, pause=0.05):
    """Let the engine write `words` in every answer, one every `pause` seconds."""
    import time

    produced = {"base": 0, "tuned": 0}

    def stream(request, cancelled=None):
        for word in words:
            if cancelled.is_set():
                yield Piece("", (), "cancelled", produced[request.model])
                return
            time.sleep(pause)
            produced[request.model] += 1
            yield Piece(word)
        yield Piece("", (), "stop", len(words))

    monkeypatch.setattr(engine, "stream", stream)
    return produced


def test_a_question_streams_into_both_columns(visit, engine, monkeypatch):
    slow(monkeypatch, engine, ["one ", "two ", "three ", "four ", "five"] * 4)

    async def check(tab, server):
        await tab.type("Who are you?")
        await tab.until(f"{TALKS}.length == 2 && [...{TALKS}].every(e => e.textContent.length > 0)")
        assert not await tab.js(IDLE)  # both have text while neither has ended: they take turns
        await tab.until(IDLE)
        whole = ("one two three four five" * 4).strip()
        assert await tab.js(f"[...{TALKS}].map(e => e.textContent)") == [whole, whole]
        headings = await tab.js("[...document.querySelectorAll('h2')].map(e => e.textContent)")
        assert headings == ["base", "tuned"]
        assert not tab.logged
        assert all(url.startswith("http://127.0.0.1") or url.startswith("data:") for url in tab.requests)

    visit(check)


def test_stop_ends_one_column_only(visit, engine, monkeypatch):
    produced = slow(monkeypatch, engine, ["word "] * 60)

    async def check(tab, server):
        await tab.type("Go on")
        await tab.until(f"{TALKS}.length == 2 && [...{TALKS}].every(e => e.textContent.length > 10)")
        await tab.js("document.querySelector('section[data-model=base] header button').click()")
        await tab.until("document.querySelector('section[data-model=base] .foot').textContent.includes('stopped')")
        await tab.until(IDLE)
        base, tuned = await tab.js(f"[...{TALKS}].map(e => e.textContent.trim().split(' ').length)")
        assert base < 60 and tuned == 60
        assert produced["base"] < 60

    visit(check)


def test_hostile_text_does_nothing(visit, engine, monkeypatch):
    slow(monkeypatch, engine, [HOSTILE, "\u202e</p></section><style>*{display:none}</style>"], 0)

    async def check(tab, server):
        await tab.type(HOSTILE)
        await tab.until(f"{TALKS}.length == 2 && {IDLE}")
        assert await tab.js("document.title") == "Base and tuned model"
        assert await tab.js("document.querySelectorAll('main img, main script, main style').length") == 0
        assert HOSTILE in await tab.js(f"{TALKS}[0].textContent")
        assert await tab.js("document.querySelector('.asked').textContent") == HOSTILE
        # the policy is a second wall: injected markup would not run either
        await tab.js("document.body.insertAdjacentHTML('beforeend', '<img src=x onerror=\"document.title=1\">')")
        await asyncio.sleep(0.2)
        assert await tab.js("document.title") == "Base and tuned model"
        assert any("Content Security Policy" in entry for entry in tab.logged)

    visit(check)


def test_a_refusal_is_shown_and_the_page_goes_on(visit):
    async def check(tab, server):
        await tab.type("word " * 400)
        await tab.until(f"document.querySelectorAll('.error').length == 2 && {IDLE}")
        assert "context of the model has 512" in await tab.js("document.querySelector('.error').textContent")
        assert (await tab.js("document.querySelector('#question').value")).startswith("word word")
        await tab.js("document.querySelector('#question').value = ''; document.querySelector('#max_tokens').value = 8")
        await tab.type("Hello")
        await tab.until(f"[...{TALKS}].every(e => e.textContent.length > 0) && {IDLE}")
        assert await tab.js("document.querySelectorAll('.error').length") == 0

    visit(check)


@pytest.mark.parametrize("width", [360, 1280])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_everything_fits_and_contrasts(visit, width, scheme):
    async def check(tab, server):
        await tab.look(width, 740, scheme)
        await tab.js("document.querySelector('details').open = true")
        assert await tab.js("document.documentElement.scrollWidth") <= width
        assert await tab.js("document.querySelector('#send').getBoundingClientRect().bottom") <= 740
        colours = "(s => [s.color, s.backgroundColor])(getComputedStyle(document.querySelector('section')))"
        assert contrast(*await tab.js(colours)) > 7

    visit(check)


def contrast(*colours):
    """The WCAG contrast ratio of two `rgb(r, g, b)`."""
    values = []
    for colour in colours:
        parts = [int(part) / 255 for part in re.findall(r"\d+", colour)[:3]]
        linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
        values.append(sum(a * b for a, b in zip((0.2126, 0.7152, 0.0722), linear, strict=True)))
    return (max(values) + 0.05) / (min(values) + 0.05)


def test_the_page_names_no_other_address():
    text = PAGE.read_text(encoding="utf-8")
    assert not re.search(r"https?://|//[a-z]+\.|@import|url\(|innerHTML|outerHTML|document\.write|eval\(", text)
    assert not re.search(r"\son\w+=\"|\sstyle=\"", text)
