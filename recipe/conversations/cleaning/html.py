"""A chat page's HTML to Markdown, remnants of the page off. Text without either is left byte for byte."""

import html
import re

from recipe.conversations.cleaning.accounting import Change

# What a chat page's Markdown renderer emits. A turn of such elements only, from its first character to its last, or
# one that carries the page's own class name, is the page's HTML; a tag anywhere else is something people talk about.
_BLOCK = "p|div|ul|ol|h[1-6]|pre|table|blockquote"
_WHOLLY_MARKUP = re.compile(rf"\s*<({_BLOCK})(?:\s[^<>]*)?>.*</({_BLOCK})>\s*\Z", re.I | re.S)
_CHAT_PAGE = re.compile(r'<div\s[^<>]*class="[^"<>]*\bmarkdown\b', re.I)
_RENDERED_NAMES = """
    a annotation b blockquote br button circle code dd del div dl dt em h1 h2 h3 h4 h5 h6 hr i img input
    label li line link math mfrac mi mn mo mrow msqrt msub msubsup msup mtext ol p path polygon polyline
    pre rect s semantics span strong sub sup svg table tbody td th thead tr u ul
"""
_RENDERED = frozenset(_RENDERED_NAMES.split())
_TAG_NAME = re.compile(r"</?([A-Za-z][^\s/>]*)(?=[\s/>])")
_FENCE = re.compile(r"^(`{3,})([^\n`]*)\n(.*?)(?:^\1`*[ \t]*$|\Z)", re.M | re.S)
_INLINE_CODE = re.compile(r"`[^`\n]+`")
_LANGUAGE = re.compile(r'class="[^"]*\blanguage-([\w+#.-]+)')
_BAR_LANGUAGE = re.compile(r"<span>\s*([\w+#.-]+)\s*</span>")
MOST_MARKUP = 1 << 20  # characters, 2 s: the converter's time grows with a paragraph's square
_SURROGATE = re.compile("[\ud800-\udfff]")


# The copy button, in a code block's first line or on a line of its own; the prompt box's counter; the switch between
# answers ("1 / 2"), at a turn's edges only: elsewhere it may be a fraction.
_REMNANTS = (
    (re.compile(r"^(`{3,})[ \t]*([\w+#.-]*?)[ \t]*Copy code[ \t]*\n?", re.M), r"\1\2\n"),
    (re.compile(r"^[ \t]*Copy code[ \t]*(?:\n|\Z)", re.M), ""),
    (re.compile(r"^[ \t]*Copy ?[\d,]+ chars / [\d,]+ words[ \t]*(?:\n|\Z)", re.M), ""),
    (re.compile(r"\A\s*\d+ / \d+[ \t]*\n\s*(?=\S)"), ""),
    (re.compile(r"(?<=\S)\s*\n[ \t]*\d+ / \d+\s*\Z"), ""),
)


def clean_text(text: str) -> str:
    """Markdown without a web page's remnants. Halves of surrogate pairs, which are no text, become U+FFFD."""
    return cleaned_text(text)[0]


def cleaned_text(text: str, html: bool = True) -> tuple[str, list[Change]]:
    """`clean_text`, and what it did. Without `html`, markup stays as it is."""
    changes = []
    if not text.isascii() and _SURROGATE.search(text):
        text = text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")
    if html and is_markup(text):
        changes.append(Change.MARKUP if len(text) <= MOST_MARKUP else Change.LEFT_MARKUP)
        text = to_markdown(text) if len(text) <= MOST_MARKUP else text
    if "Copy" in text or " / " in text:  # seldom; asked first since it is quick
        before = text
        for pattern, replacement in _REMNANTS:
            text = pattern.sub(replacement, text)
        if text != before:
            changes.append(Change.REMNANT)
    return text, changes


def is_markup(text: str) -> bool:
    """Whether the turn is HTML of a chat page, and not text or code that mentions tags."""
    if "<" not in text or "</" not in text:
        return False
    bare = _INLINE_CODE.sub("", _FENCE.sub("", text))
    if _CHAT_PAGE.search(bare):
        return True
    return bool(_WHOLLY_MARKUP.match(bare)) and _RENDERED.issuperset(name.lower() for name in _TAG_NAME.findall(bare))


def to_markdown(markup: str) -> str:
    """A chat page's HTML as Markdown; code keeps its language and every space. Text is kept as it is where nothing
    comes out, as of a bomb of nested elements."""
    from html_to_markdown import ConversionOptions, convert

    parts = _split_between(markup, "<pre", "</pre>")
    parts[0::2] = map(_plain_text, parts[0::2])
    parts[1::2] = map(_plain_code, parts[1::2])
    options = ConversionOptions(extract_metadata=False, exclude_selectors=["button", ".katex-html"])
    return (convert("".join(parts), options).content or "").strip("\n") or markup


def _split_between(text: str, start: str, end: str) -> list[str]:
    """Outside, from `start` to `end`, outside, ...; in linear time, which a regular expression has not on a bomb."""
    parts, at = [], 0
    while (first := text.find(start, at)) >= 0 and (last := text.find(end, first)) >= 0:
        parts += [text[at:first], text[first : last + len(end)]]
        at = last + len(end)
    return [*parts, text[at:]]


def _plain_code(block: str) -> str:
    """A page's code block has a bar with the language and a button, then the code in spans of colour; converters know
    `<pre><code class="language-x">`."""
    bar, tag, rest = block.partition("<code")
    attributes, _, rest = rest.partition(">")
    code, end, _ = rest.rpartition("</code>")
    if not (tag and end):
        return block
    language = _LANGUAGE.search(attributes) or _BAR_LANGUAGE.search(bar)
    name = f' class="language-{language[1]}"' if language else ""
    return f"<pre><code{name}>{code}</code></pre>"


def _plain_text(markup: str) -> str:
    """What lies between code blocks, with what a converter would lose put into plain HTML."""
    markup = _FENCE.sub(_fence_to_html, markup)
    parts = _split_between(markup, '<span class="katex-mathml">', "</math>")
    parts[1::2] = map(_tex, parts[1::2])
    return _TAG_NAME.sub(_escape_unknown, "".join(parts))


def _tex(formula: str) -> str:
    """The TeX that a page's formula carries beside its drawing."""
    before, found, _ = formula.rpartition("</annotation>")
    return f"<span>${before.rpartition('>')[2]}$" if found else formula


def _fence_to_html(found: re.Match[str]) -> str:
    """Markdown's own code block among HTML, so that the converter does not fold its white space."""
    language = found[2].strip()
    name = f' class="language-{html.escape(language)}"' if language else ""
    return f"<pre><code{name}>{html.escape(found[3], quote=False)}</code></pre>"


def _escape_unknown(found: re.Match[str]) -> str:
    """`<T>` is no element of a page: text that somebody wrote."""
    return found[0] if found[1].lower() in _RENDERED else html.escape(found[0])
