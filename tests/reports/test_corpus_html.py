"""A hostile conversation is shown and does nothing."""

import html as escaping
import re
import shutil
import subprocess
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from recipe.conversations.messages import Message
from recipe.conversations.pipeline import stats
from recipe.conversations.templates import render
from recipe.conversations.tokens import visible
from recipe.core.text import printable
from recipe.reports import corpus_html
from recipe.reports.corpus import markdown

HOSTILE = (
    "<script>document.title='HACKED'</script>",
    "<img src=x onerror=\"document.title='HACKED'\">",
    "</div></details></body><script>document.title='HACKED'</script>",
    '"><svg onload="document.title=\'HACKED\'">',
    "<!-- <![CDATA[ ]]> --> &lt;script&gt; \u202e reversed \x1b[2J \x00",
)


def results() -> dict[str, Any]:
    """A manifest's results in which everything that comes from outside is hostile."""
    dropped: dict[str, Any] = {"read": 3, "kept": 2, "dropped": {"duplicate": 1}}
    account = {"conversations": dropped, "turns": {**dropped, "changed": {"markup": 2}}, "languages": {HOSTILE[0]: 2}}
    account |= {"unknown_roles": {HOSTILE[1]: 1}, "placeholders": {"name": 2}}
    return {
        "samples": {"train": 5, "val": 0},
        "tokens": {"train": 500, "val": 0},
        "trained_tokens": {"train": 300, "val": 0},
        "identity": 0,
        "sources": {HOSTILE[1]: account},
        "mixture": {HOSTILE[1]: 500},
        "rejected": 1,
        "first_rejected": [{"source": HOSTILE[2], "offset": 7, "reason": "broken JSON", "detail": HOSTILE[3]}],
        "repeated_ids": 1,
        "lengths": stats.lengths([100] * 5),
        "histogram": stats.histogram([100] * 5, 512),
        "turns": stats.turns([2] * 5),
        "shared_prefix": 0,
        "packs": {"512": stats.packs([100] * 5, 512, prefix=0)},
    }


SETTINGS = {"template": "vicuna_v1.1", "max_length": 512, "identity_repeat": 1}


@pytest.fixture(scope="module")
def written(byte_level_tokenizer) -> str:
    """The page with hostile results and samples."""
    shown = []
    for text in HOSTILE:
        pieces = render("vicuna_v1.1", [Message("user", text), Message("assistant", text)])
        shown.append((text, text, visible(byte_level_tokenizer, pieces)))
    return corpus_html.html(results(), SETTINGS, {HOSTILE[4]: shown})


class Elements(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.tags: set[str] = set()
        self.attributes: set[str] = set()

    def handle_starttag(self, tag: str, attrs: list) -> None:
        self.tags.add(tag)
        self.attributes |= {name for name, _ in attrs}


def test_no_element_and_no_attribute_comes_from_a_conversation(written: str) -> None:
    elements = Elements()
    elements.feed(written)
    known = "html head meta title style body h1 h2 h3 p table tr th td span details summary div"
    assert elements.tags <= set(known.split())
    assert elements.attributes <= {"lang", "charset", "http-equiv", "content", "name", "class", "style"}
    assert "http" not in written.replace("http-equiv", "")


def test_the_text_is_all_there(written: str) -> None:
    text = escaping.unescape(
        "".join(written.split("<span>")).replace("</span>", "").replace('<span class="trained">', "")
    )
    for hostile in HOSTILE[:4]:
        assert f"USER: {hostile} ASSISTANT: {hostile}<eos>" in text
    assert "\\u202e" in text
    assert "\\x1b[2J \\x00" in text


def test_report_md_holds_no_markup_from_outside() -> None:
    """Viewers render HTML inside Markdown."""
    report = markdown(results(), SETTINGS)
    assert "&lt;script&gt;" in report
    assert not re.search(r"<\w|<!|</", report)
    shown = printable(HOSTILE[1]).translate({ord("<"): "&lt;", ord(">"): "&gt;"})
    assert f"| {shown} | conversations | 3 | 2 | 1 | 500 |" in report.replace("\\", "")
    hostile = results()
    hostile["first_rejected"][0]["detail"] = "a | b](http://x) **c** `d` [e"
    (row,) = [line for line in markdown(hostile, SETTINGS).splitlines() if "http" in line]
    assert row.endswith(r"| broken JSON | a \| b\](http://x) \*\*c\*\* \`d\` \[e |")


@pytest.mark.slow
def test_no_script_runs_in_a_browser(written: str, tmp_path: Path) -> None:
    browser = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if browser is None:
        pytest.skip("no Chromium on this machine: the page was not opened in a browser")
    policy = written.index('<meta http-equiv="Content-Security-Policy"')
    bare = written[:policy] + written[written.index(">", policy) + 1 :]  # escaping alone has to do
    probe = bare.replace("</body>", "<script>document.title += ' probe'</script></body>")
    for name, content, title in (
        ("page", written, "Corpus"),
        ("bare", bare, "Corpus"),
        ("probe", probe, "Corpus probe"),
    ):
        (tmp_path / f"{name}.html").write_text(content, encoding="utf-8")
        flags = ["--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={tmp_path / 'profile'}", "--dump-dom"]
        command = [browser, *flags, f"file://{tmp_path / name}.html"]
        done = subprocess.run(command, capture_output=True, text=True, timeout=120)
        assert f"<title>{title}</title>" in done.stdout, done.stderr[-500:]
