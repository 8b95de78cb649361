"""vote.html: two answers side by side, blind, and three buttons. One file that needs no server.

The answers are untrusted text. They are data in the page (JSON without a `<`), shown as text by its only script, which
the page's policy allows by its hash; nothing is sent anywhere, and the votes are saved as a file.
"""

import base64
import hashlib
import json
import re
from collections.abc import Iterable
from pathlib import Path

from recipe.core.text import printable
from recipe.evaluation.judge import Pair

TEMPLATE = Path(__file__).with_name("vote.html")


def build_page(title: str, pairs: Iterable[Pair]) -> str:
    """The page for these pairs; `title` tells votes on different runs apart."""
    shown = [{key: printable(text, keep="\n\t") for key, text in pair.blind().items()} for pair in pairs]
    data = json.dumps({"title": printable(title), "pairs": shown}, ensure_ascii=False).replace("<", "\\u003c")
    template = TEMPLATE.read_text(encoding="utf-8")
    policy = f"default-src 'none'; script-src {_hash(template, 'script')}; style-src {_hash(template, 'style')}"
    before, after = template.replace("POLICY", policy, 1).split("DATA", 1)
    return before + data + after


def _hash(page: str, tag: str) -> str:
    """The only block of that tag, as a policy names it."""
    (block,) = re.findall(rf"<{tag}>(.*?)</{tag}>", page, re.DOTALL)
    return f"'sha256-{base64.b64encode(hashlib.sha256(block.encode()).digest()).decode()}'"
