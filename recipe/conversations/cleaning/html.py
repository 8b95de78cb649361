"""A chat page's HTML to Markdown, without the page's remnants. Text without either is left byte for byte.

Turns are untrusted: every expression here takes linear time.
"""

import functools
import html
import re
from typing import Any

from recipe.conversations.cleaning.accounting import Change

# A turn is a page's HTML where it consists of the page's elements from its first character to its last *and* carries
# a sign of the page: classes that its own scripts add, or its copy button. Or where a part of it is the page's own
# Markdown container. A tag anywhere else is something that people talk about, or code that they asked for.
_BLOCK = "p|div|ul|ol|h[1-6]|pre|table|blockquote"
_WHOLLY_MARKUP = re.compile(rf"\s*+<({_BLOCK})(?:\s[^<>]*)?>.*</({_BLOCK})>\s*\Z", re.I | re.S)
_CHAT_PAGE = re.compile(r'<div\s[^<>]*class="(?:[^"<>]*\s)?markdown prose[\s"]', re.I)
_PAGE_CLASSES = "hljs|katex|katex-display|markdown|whitespace-pre-wrap"
_PAGE_SIGN = re.compile(rf'>Copy(?: code)?\s*+</button>|\sclass="(?:[^"<>]*\s)?(?:{_PAGE_CLASSES})[\s"]', re.I)
_RENDERED_NAMES = """
    a annotation b blockquote br button circle code dd del div dl dt em h1 h2 h3 h4 h5 h6 hr i img input
    label li line link math mfrac mi mn mo mrow msqrt msub msubsup msup mtext ol p path polygon polyline
    pre rect s semantics span strong sub sup svg table tbody td th thead tr u ul
"""
_RENDERED = frozenset(_RENDERED_NAMES.split())
_TAG_NAME = re.compile(r"</?([A-Za-z][^\s/<>]*+)(?=[\s/>])")
_FENCE = re.compile(r"^(`{3,})([^\n`]*)\n(.*?)(?:^\1`*[ \t]*$|\Z)", re.M | re.S)
_INLINE_CODE = re.compile(r"`[^`\n]+`")
_LANGUAGE = re.compile(r'class="[^"]*\blanguage-([\w+#.-]+)')
_BAR_LANGUAGE = re.compile(r">\s*+([\w+#.-]++)\s*+(?:</span>|<button)")
_DRAWN_FORMULA = re.compile(r'(</math>\s*+</span>\s*+<span\s++class="katex-)html')  # the MathML before it says the same
_SCRIPT = re.compile(r"<(su[bp])(?:\s[^<>]*+)?>([^<>]*+)</\1>")
_NESTED_SCRIPT = re.compile(r"<(su[bp])(?:\s[^<>]*+)?>|</su[bp]>")
_TAG = re.compile(r"<(/?)([A-Za-z][^\s/<>]*+)([^<>]*+)>")
_CHILDLESS = ("br", "hr", "img", "input")
MOST_MARKUP = 1 << 20  # characters, 2 s: the converter's time grows with the square of a paragraph
_MARKS = {"sub": "_", "sup": "^"}
_SURROGATE = re.compile("[\ud800-\udfff]")

# The converter escapes what looks like Markdown at the start of a line of prose, and every backslash. Such characters
# pass through it as noncharacters of Unicode, which no text has.
_ESCAPED = re.compile(r"([>\n][ \t]*+)([-+*#=]++(?=[\s<]|\Z)|&gt;|\d++[.)](?=[\s<]|\Z))")
_HIDDEN = {character: chr(0xFDD0 + number) for number, character in enumerate("\\-+*#=>.) \n")}
_HIDE = str.maketrans(_HIDDEN)
_HIDE_SPACE = str.maketrans({character: _HIDDEN[character] for character in "\n "})

# The copy button, in the first line of a code block or on a line of its own; the prompt box's counter.
_COPY_IN_FENCE = re.compile(r"^(`{3,})[ \t]*+([\w+#.-]*?)[ \t]*+Copy code[ \t]*+\n?", re.M)
_COPY_BELOW_FENCE = re.compile(r"([\w+#.-]*?)Copy code[ \t]*")
_FENCE_LINE = re.compile(r"(`{3,})[ \t]*+([^`]*)")
_REMNANTS = (
    (_COPY_IN_FENCE, r"\1\2\n"),
    (re.compile(r"^[ \t]*+Copy code[ \t]*+(?:\n|\Z)", re.M), ""),
    (re.compile(r"^[ \t]*+Copy ?[\d,]++ chars / [\d,]++ words[ \t]*+(?:\n|\Z)", re.M), ""),
)
# The switch between versions of a question ("1 / 2"), at a human turn's edges only: elsewhere it may be a fraction.
_SWITCH_ABOVE = re.compile(r"\A\s*+\d++ / \d++[ \t]*+\n\s*+(?=\S)")
_SWITCH_BELOW = re.compile(r"(?<=\S)\s*\n[ \t]*+\d++ / \d++\s*+\Z")


def clean_text(text: str, role: str = "assistant", convert: bool = True, is_page: bool = False) -> str:
    """The text of `clean_turn`."""
    return clean_turn(text, role, convert, is_page)[0]


def clean_turn(text: str, role: str, convert: bool = True, is_page: bool = False) -> tuple[str, list[Change]]:
    """Markdown without a web page's remnants, and what was changed.

    `convert`: HTML becomes Markdown; `is_page`: turns of pure HTML do so without a sign of a chat page too. Halves of
    surrogate pairs, which are not text, become U+FFFD.
    """
    changes = []
    if not text.isascii() and _SURROGATE.search(text):
        text = text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")
    if convert and is_markup(text, is_page):
        markdown = to_markdown(text) if len(text) <= MOST_MARKUP else text
        if markdown != text or len(text) > MOST_MARKUP:
            changes.append(Change.MARKUP if len(text) <= MOST_MARKUP else Change.LEFT_MARKUP)
        text = markdown
    before = text
    text = _drop_remnants(text, role)
    if text != before:
        changes.append(Change.REMNANT)
    return text, changes


def _drop_remnants(text: str, role: str) -> str:
    """Without what a page adds; what nearly every turn lacks is asked first since that is quick."""
    if "Copy" in text:
        for pattern, replacement in _REMNANTS:
            text = pattern.sub(replacement, text)
    if role == "user" and " / " in text:
        text = _SWITCH_ABOVE.sub("", text)
        text = _SWITCH_BELOW.sub("", text) if text.rstrip()[-1:].isdecimal() else text
    return _drop_copy_lines(text) if "Copy code" in text else text


def is_markup(text: str, is_page: bool = False) -> bool:
    """Whether the turn is a chat page's HTML, and not text or code that mentions tags. `is_page`: see `clean_turn`."""
    if "<" not in text or "</" not in text:
        return False
    bare = _INLINE_CODE.sub("", _FENCE.sub("", text))
    if _CHAT_PAGE.search(bare):
        return True
    if not (is_page or _PAGE_SIGN.search(bare)) or not _WHOLLY_MARKUP.match(bare):
        return False
    return _RENDERED.issuperset(name.lower() for name in _TAG_NAME.findall(bare))


def to_markdown(markup: str) -> str:
    """A chat page's HTML as Markdown; code keeps its language and every space, prose its characters.

    The text is kept as it is where nothing comes out, as of a bomb of nested elements, or of text with NUL characters.
    """
    from html_to_markdown import ConversionError, convert

    parts = _split_between(markup, "<pre", "</pre>")
    parts[0::2] = map(_plain_text, parts[0::2])
    parts[1::2] = map(_plain_code, parts[1::2])
    try:
        markdown = (convert("".join(parts), _options()).content or "").strip("\n")
    except ConversionError:
        return markup
    if not markdown.isascii():
        for character, hidden in _HIDDEN.items():
            markdown = markdown.replace(hidden, character)
    return markdown or markup


@functools.cache
def _options() -> Any:
    from html_to_markdown import ConversionOptions

    return ConversionOptions(extract_metadata=False, exclude_selectors=["button", "svg", ".katex-drawn"])


def _split_between(text: str, start: str, end: str) -> list[str]:
    """Outside, from `start` to `end`, outside, ...; a regular expression would take quadratic time on a bomb."""
    parts, at = [], 0
    while (first := text.find(start, at)) >= 0 and (last := text.find(end, first)) >= 0:
        parts += [text[at:first], text[first : last + len(end)]]
        at = last + len(end)
    return [*parts, text[at:]]


def _plain_code(block: str) -> str:
    """A page's code block without its bar (language and button) and its spans of colour: converters know
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
    """What is between code blocks, with what the converter would lose or escape put so that it is kept."""
    fences = _FENCE.split(markup) if "```" in markup else [markup]
    prose = map(_plain_prose, fences[0::4])
    blocks = map(_fence_to_html, fences[2::4], fences[3::4])
    return "".join(part for pair in zip(prose, [*blocks, ""], strict=True) for part in pair)


def _plain_prose(markup: str) -> str:
    parts = _split_between(_DRAWN_FORMULA.sub(r"\1drawn", markup), '<span class="katex-mathml">', "</math>")
    parts[0::2] = map(_keep_prose, parts[0::2])
    parts[1::2] = map(_tex, parts[1::2])
    return _TAG_NAME.sub(_escape_unknown, "".join(parts))


def _keep_prose(markup: str) -> str:
    if "<su" in markup:
        markup = _SCRIPT.sub(_script, markup)
        markup = _NESTED_SCRIPT.sub(lambda found: _MARKS[found[1]] + "{" if found[1] else "}", markup)
    if "whitespace-pre-wrap" in markup:
        markup = _keep_lines(markup)
    return _ESCAPED.sub(_hide, f"\n{markup}")[1:].replace("\\", _HIDDEN["\\"])


def _hide(found: re.Match[str]) -> str:
    return found[1] + found[2].replace("&gt;", ">").translate(_HIDE)


def _script(found: re.Match[str]) -> str:
    """A subscript or superscript, as TeX writes it."""
    return _MARKS[found[1]] + (found[2] if len(found[2]) < 2 else f"{{{found[2]}}}")


def _keep_lines(markup: str) -> str:
    """White space that a page shows as it is: in elements of such a class, but for Markdown containers inside them."""
    out, at, depth = [], 0, 0  # of elements, from the one with the class
    for tag in _TAG.finditer(markup):
        text = markup[at : tag.start()]
        out += [text.translate(_HIDE_SPACE) if depth and text.strip() else text, tag[0]]
        at = tag.end()
        if "whitespace-pre-wrap" in tag[3] and not depth:
            depth = 1
        elif "markdown" in tag[3]:
            depth = 0
        elif depth and tag[2].lower() not in _CHILDLESS:
            depth += -1 if tag[1] else 1
    return "".join([*out, markup[at:]])


def _tex(formula: str) -> str:
    """The TeX that a page's formula carries beside its drawing."""
    before, found, _ = formula.rpartition("</annotation>")
    return f"<span>${before.rpartition('>')[2].translate(_HIDE)}$" if found else formula


def _fence_to_html(info: str, code: str) -> str:
    """Markdown's own code block among HTML, so that the converter does not fold its white space."""
    language = info.strip()
    name = f' class="language-{html.escape(language)}"' if language else ""
    return f"<pre><code{name}>{html.escape(code, quote=False)}</code></pre>"


def _escape_unknown(found: re.Match[str]) -> str:
    """`<T>` is not an element of a page: it is text that somebody wrote."""
    return found[0] if found[1].lower() in _RENDERED else html.escape(found[0])


def _drop_copy_lines(text: str) -> str:
    """The line "pythonCopy code" below the opening of a code block names its language."""
    lines: list[str] = []
    opening = ""  # the fence of the code block that this line is in
    for line in text.split("\n"):
        fence = _FENCE_LINE.fullmatch(line)
        if opening and lines[-1].startswith(opening) and (bar := _COPY_BELOW_FENCE.fullmatch(line)):
            lines[-1] += bar[1] if lines[-1].rstrip() == opening else ""
            continue
        if fence and not opening:
            opening = fence[1]
        elif fence and fence[1].startswith(opening) and not fence[2].strip():
            opening = ""
        lines.append(line)
    return "\n".join(lines)
