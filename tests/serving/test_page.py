"""The page in a real browser: both columns stream, one is stopped, hostile text does nothing."""

import asyncio
import re
import sys
from pathlib import Path

import pytest

from recipe.serving.engine import Piece, Sampling
from recipe.serving.server import PAGE, Server

sys.path.insert(0, str(Path(__file__).parent))
import programs

TALKS = "document.querySelectorAll('section:last-child .answer')"  # of the last question
IDLE = "!document.querySelector('#send').hidden"
HOSTILE = "<img src=x onerror=\"document.title='owned'\"><script>document.title='owned'</script>"


@pytest.fixture
def visit(engine, tmp_path):
    """Run `async def check(tab, server)` in a browser at a server in this process."""
    if programs.find() is None:
        pytest.skip("no Chromium on this machine: the page was not opened in a browser")
    from aiohttp.test_utils import TestServer

    from recipe.serving.access import Access

    def run(check, key=""):
        async def session():
            server = Server(engine, Access("127.0.0.1", key))
            started = TestServer(server.app(), handler_cancellation=True)
            await started.start_server()
            async with started, programs.open_tab(str(started.make_url("/")), tmp_path / "profile") as tab:
                await check(tab, server)

        asyncio.run(session())

    return run


def slow(monkeypatch, engine, words, pause=0.05):
    """Let the engine write `words` in every answer, one every `pause` seconds. Counts them; `asked`: the requests."""
    import time

    produced = {"base": 0, "tuned": 0, "asked": []}

    def stream(request, cancelled=None):
        produced["asked"].append(request)
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
        await tab.js("document.querySelector('article[data-model=base] button').click()")
        await tab.until("document.querySelector('article[data-model=base] .state').textContent == 'stopped'")
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
        await tab.until(f"{IDLE} && document.querySelectorAll('.state.error').length == 2")
        assert "context of the model has 512" in await tab.js("document.querySelector('.state.error').textContent")
        assert (await tab.js("document.querySelector('#question').value")).startswith("word word")
        await tab.js("document.querySelector('#question').value = ''; document.querySelector('#max_tokens').value = 8")
        await tab.type("Hello")
        await tab.until(f"[...{TALKS}].every(e => e.textContent.length > 0) && {IDLE}")
        assert await tab.js("document.querySelectorAll('section:last-child .error').length") == 0

    visit(check)


def test_a_new_conversation_forgets_an_answer_in_progress(visit, engine, monkeypatch):
    produced = slow(monkeypatch, engine, ["word "] * 40)

    async def check(tab, server):
        await tab.type("The first question")
        await tab.until(f"{TALKS}.length == 2 && [...{TALKS}].every(e => e.textContent.length > 10)")
        await tab.js("document.querySelector('#new').click()")
        await tab.until(f"{IDLE} && document.querySelector('.empty') !== null")
        await tab.type("The second question")
        await tab.until(f"{TALKS}.length == 2 && {IDLE}")
        prompts = [engine.tokenizer.decode(request.prompt) for request in produced["asked"]]
        assert ["The first question" in prompt for prompt in prompts] == [True, True, False, False]
        await tab.type("The third question")
        await tab.until(f"{IDLE} && document.querySelectorAll('section').length == 2")
        prompts = [engine.tokenizer.decode(request.prompt) for request in produced["asked"][4:]]
        assert all("The second question" in prompt and "word word" in prompt for prompt in prompts)

    visit(check)


def test_settings_reach_the_engine_and_an_answer_can_be_copied(visit, engine, monkeypatch):
    produced = slow(monkeypatch, engine, ["An ", "answer."], 0)

    async def check(tab, server):
        for name, value in {"temperature": 1.5, "top_k": 7, "seed": 3, "max_tokens": 9, "system": "Be brief."}.items():
            await tab.js(f"document.querySelector('#{name}').value = {value!r}")
        await tab.type("Hello")
        await tab.until(f"{TALKS}.length == 2 && {IDLE}")
        for request in produced["asked"]:
            assert request.sampling == Sampling(temperature=1.5, top_k=7, seed=3) and request.max_tokens == 9
            assert "Be brief." in engine.tokenizer.decode(request.prompt)
        await tab.call("Browser.grantPermissions", permissions=["clipboardReadWrite", "clipboardSanitizedWrite"])
        await tab.js("document.querySelector('article[data-model=tuned] button').click()")
        await tab.until("document.querySelector('article[data-model=tuned] button').textContent == 'Copied'")
        assert await tab.js("navigator.clipboard.readText()") == "An answer."

    visit(check)


def test_the_page_asks_for_the_key(visit, engine, monkeypatch):
    slow(monkeypatch, engine, ["An answer."], 0)

    async def check(tab, server):
        assert "API key is missing or wrong" in await tab.js("document.querySelector('.empty').textContent")
        assert await tab.js("document.querySelector('#locked').hidden") is False
        await tab.js("document.querySelector('#key').value = 'k'.repeat(20)")
        await tab.type("Hello")
        await tab.until(f"{TALKS}.length == 2 && {IDLE}")
        assert await tab.js(f"{TALKS}[0].textContent") == "An answer."

    visit(check, key="k" * 20)


@pytest.mark.parametrize("width", [360, 1280])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_everything_fits_and_contrasts(visit, engine, monkeypatch, width, scheme):
    slow(monkeypatch, engine, ["a_word_without_a_place_to_break" * 9], 0)

    async def check(tab, server):
        await tab.look(width, 740, scheme)
        await tab.type("x" * 300)
        await tab.until(f"{TALKS}.length == 2 && {IDLE}")
        await tab.js("document.querySelector('details').open = true")
        assert await tab.js("document.documentElement.scrollWidth") <= width
        assert await tab.js("document.querySelector('#scroll').scrollWidth") <= width
        assert await tab.js("document.querySelector('#send').getBoundingClientRect().bottom") <= 740
        base, tuned = await tab.js("[...document.querySelectorAll('article')].map(e => e.getBoundingClientRect().top)")
        assert (base == tuned) == (width > 600)  # side by side, or below each other
        found = await tab.js(COLOURS)
        assert len(found) > 20
        assert {text: pair for text, *pair in found if contrast(*pair) < 4.5} == {}

    visit(check)


# [text, colour, background] of every element with text of its own, and of every placeholder
COLOURS = """[...document.querySelectorAll('body *')].filter(e => e.checkVisibility() && (e.placeholder ||
  [...e.childNodes].some(n => n.nodeType == 3 && n.textContent.trim()))).map(e => {
    let under = e;
    while (getComputedStyle(under).backgroundColor == 'rgba(0, 0, 0, 0)') under = under.parentElement;
    const style = getComputedStyle(e, e.placeholder ? '::placeholder' : null);
    return [e.placeholder || e.textContent, style.color, getComputedStyle(under).backgroundColor];
  })"""


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
