"""The page to vote on, in a real browser: a person votes, saves, and the file counts; hostile answers do nothing."""

import asyncio
import json

import pytest

from recipe.evaluation.judge import pairs, read_questions, read_votes
from recipe.evaluation.vote_page import build_page
from tests.serving import programs

HOSTILE = "<img src=x onerror=\"document.title='owned'\"></script><script>document.title='owned'</script>"


@pytest.fixture
def chosen():
    """Three pairs, the tuned answers hostile."""
    return list(pairs(read_questions()[:3], ["plain"] * 3, [HOSTILE] * 3, "a run"))[::2]


def test_votes_that_a_person_saves_are_read_back(chosen, tmp_path):
    if programs.find() is None:
        pytest.skip("no Chromium on this machine: the page was not opened in a browser")
    file = tmp_path / "vote.html"
    file.write_text(build_page("demo/1", chosen))
    saved = tmp_path / "votes.jsonl"

    async def vote():
        async with programs.open_tab(file.as_uri(), tmp_path / "profile", "#asked") as tab:
            await tab.call("Page.setDownloadBehavior", behavior="allow", downloadPath=str(tmp_path))
            assert await tab.js("document.querySelector('#first').textContent") == chosen[0].first
            assert await tab.js("document.querySelector('#save').disabled")
            for choice in ("first", "tie", "second"):
                await tab.js(f"document.querySelector('[data-vote={choice}]').click()")
            await tab.js("document.querySelector('#back').click()")
            assert await tab.js("document.querySelector('[data-vote=second]').ariaPressed") == "true"
            await tab.call("Page.reload")
            await tab.until("document.readyState == 'complete' && !document.querySelector('#end').hidden")
            await tab.js("document.querySelector('#save').click()")
            for width, scheme in ((390, "dark"), (1100, "light")):
                await tab.look(width, 800, scheme)
                assert await tab.js("document.documentElement.scrollWidth <= innerWidth")
            while not saved.is_file():
                await asyncio.sleep(0.05)
            assert await tab.js("document.title") == "Which answer is better?"
            assert not tab.logged and all(address.startswith(("file:", "blob:")) for address in tab.requests)

    asyncio.run(asyncio.wait_for(vote(), 100))
    votes = read_votes(saved, {pair.id: pair for pair in chosen})
    assert [(pair.id, vote) for pair, vote in votes] == list(
        zip([pair.id for pair in chosen], ["first", "tie", "second"], strict=True)
    )
    assert [json.loads(line)["vote"] for line in saved.read_text().splitlines()] == ["first", "tie", "second"]
