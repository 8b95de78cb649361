"""Markup becomes Markdown, the page's remnants go, everything else stays as it is; roles come in turn."""

import time
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from recipe.conversations.cleaning.accounting import Change, Drop
from recipe.conversations.cleaning.html import clean_text, clean_turn, is_markup
from recipe.conversations.cleaning.roles import fingerprint, in_turn
from recipe.conversations.messages import Message


def turns(*pairs: tuple[str, str]) -> list[Message]:
    names = {"u": "user", "a": "assistant", "s": "system"}
    return [Message(names.get(role, role), text) for role, text in pairs]


def test_a_chat_page_becomes_markdown(assets: Path) -> None:
    markdown = clean_text((assets / "html" / "chatgpt_dom_markdown_tags.html").read_text(encoding="utf-8"))
    assert "```css\nCode block\n```" in markdown
    assert "***bold and italic***" in markdown
    assert "## Ordered list\n\n1. Item 1\n2. Item 2\n3. Item 3" in markdown
    assert "| Row 2, Column 1 | Row 2, Column 2 | Row 2, Column 3 |" in markdown
    assert "[Link text](URL)" in markdown
    assert "Copy code" not in markdown
    assert "<" not in markdown


def test_code_in_a_list_keeps_its_language_and_lines(assets: Path) -> None:
    markdown = clean_text((assets / "html" / "chatgpt_dom_vi_code.html").read_text(encoding="utf-8"))
    assert "```bash\n   pip install opencv-python\n   ```" in markdown
    assert "   ```python\n   import cv2\n\n   # Tải Haar Cascade" in markdown
    assert "https://drive.google.com/drive/folders/18BNlehLVrS5oQsDZdfBxOTtaNM9dc6kN?usp=sharing" in markdown


CODE = "def f(x):\n\n\n    if x < 1 and x > -1:\n\treturn List<int>()  \n    # a &amp; b, <T>"


def page(code: str, language: str) -> str:
    escaped = code.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    bar = f"<div><span>{language}</span><button>Copy code</button></div>"
    block = f'<pre><div>{bar}<div><code class="hljs language-{language}">{escaped}\n</code></div></div></pre>'
    return f'<div class="markdown prose w-full"><p>See:</p>{block}<p>Done.</p></div>'


def test_code_of_a_page_comes_out_to_the_letter() -> None:
    assert clean_text(page(CODE, "c++")) == f"See:\n\n```c++\n{CODE}\n```\n\nDone."


def test_the_bar_above_code_names_its_language() -> None:
    bar = '<div class="flex">c++<button class="x"><svg></svg>Copy code</button></div>'
    markup = f"<p>See:</p><pre>{bar}<div><code>int x;\n</code></div></pre>"
    assert clean_text(markup) == "See:\n\n```c++\nint x;\n```"


def test_a_fence_inside_code_stays_inside() -> None:
    assert clean_text(page("```\nx\n```", "markdown")) == "See:\n\n````markdown\n```\nx\n```\n````\n\nDone."


def test_a_markdown_fence_among_markup_stays_code() -> None:
    text = f"<p>See:</p>\n```python\n{CODE}\n```\n<p>Done.</p>"
    assert clean_text(text, is_page=True) == f"See:\n\n```python\n{CODE}\n```\n\nDone."


def test_formulas_of_a_page_come_once_as_tex() -> None:
    tex = (
        '<span class="katex"><span class="katex-mathml"><math><semantics><mrow><mi>x</mi></mrow>'
        '<annotation encoding="application/x-tex">x^2</annotation></semantics></math></span>'
        '<span class="katex-html" aria-hidden="true"><span>x2</span></span></span>'
    )
    assert clean_text(f"<p>Take {tex} now.</p>") == "Take $x^2$ now."


def test_a_formula_that_is_only_drawn_keeps_its_text() -> None:
    drawn = '<span class="katex"><span class="katex-html" aria-hidden="true"><span>x</span><span>2</span></span></span>'
    assert clean_text(f"<p>Take {drawn} now.</p>") == "Take x2 now."


def test_pure_html_is_a_page_only_with_a_sign_of_one() -> None:
    bare = "<p>Use <b>these</b>:</p>\n<ul><li>one</li></ul>"
    assert clean_turn(bare, "assistant") == (bare, [])
    assert clean_turn(bare, "assistant", is_page=True) == ("Use **these**:\n\n- one", [Change.MARKUP])
    for code in (
        '<p class="flex group prose message">',
        '<p><button class="x">Send</button>',
        '<p class="markdown-body">',
    ):
        assert clean_turn(bare.replace("<p>", code, 1), "assistant")[1] == []
    for sign in ('<p class="whitespace-pre-wrap">', '<p><button class="x">Copy</button>', '<p><code class="hljs">'):
        assert clean_turn(bare.replace("<p>", sign, 1), "assistant")[1] == [Change.MARKUP]


@pytest.mark.parametrize(
    "prose", [r"\(x\) and \[y\]", "# 1", "1. one", "2) two", "- 3", "* 4", "+ 5", "> 6", "---", "===", r"C:\new 2\."]
)
def test_prose_of_a_page_is_not_escaped(prose: str) -> None:
    page = f'<div class="markdown"><p>{prose.replace(">", "&gt;")}</p><p>x {prose.replace(">", "&gt;")}</p></div>'
    assert clean_text(page) == f"{prose}\n\nx {prose}"


def test_subscripts_and_superscripts_stay_apart_from_their_base() -> None:
    assert clean_text('<div class="markdown"><p>H<sub>2</sub>O, x<sup>10</sup></p></div>') == "H_2O, x^{10}"
    assert clean_text('<div class="markdown"><p>x<sub><em>i</em></sub>y</p></div>') == "x_{*i*}y"


def test_drawings_of_a_page_are_left_out() -> None:
    page = '<div class="markdown"><p>See</p><svg><path d="M1 1"></path></svg><p>here.</p></div>'
    assert clean_text(page) == "See\n\nhere."


def test_a_page_that_stays_as_it_is_is_not_listed_as_changed() -> None:
    page = '<div class="markdown"><svg></svg></div>'
    assert clean_turn(page, "assistant") == (page, [])


def test_white_space_that_a_page_shows_is_kept() -> None:
    text = "def f(x):\n    # one\n\n\n    return x  +  1"
    assert clean_text(f'<div class="text whitespace-pre-wrap">{text}</div>') == text
    bold = text.replace("return", "<b>return</b>")
    assert clean_text(f'<div class="whitespace-pre-wrap"><div>{bold}</div></div>') == text.replace(
        "return", "**return**"
    )


def test_a_markdown_container_inside_shown_white_space_is_markdown() -> None:
    page = '<div class="whitespace-pre-wrap"><div class="markdown prose">\n<p>one\n  two</p>\n<p>x</p>\n</div></div>'
    assert clean_text(page) == "one\ntwo\n\nx"


BOMBS = {
    "unclosed tags in a page": '<div class="markdown"></div>' + "<a" * 400_000,
    "unclosed tags": "<p>" + "<a" * 400_000 + "</p>",
    "spaces before a button": "```" + " " * 1_000_000 + "Copy cod",
    "spaces before a counter": " " * 1_000_000 + "Copy1 chars / 1 word",
    "letters before a button": "```\n" + "x" * 1_000_000 + "Copy cod\n",
    "switches": "1 / 1\n" * 150_000,
    "blank lines before a switch": " \n" * 500_000 + "1 / 2 x",
    "formulas": '<div class="markdown">' + '<span class="katex-mathml">' * 30_000 + "</div>",
    "scripts": '<div class="markdown">' + "<sub>" * 200_000 + "</div>",
    "fences": "```\n" * 200_000 + "Copy code",
    "open elements of shown white space": '<p class="whitespace-pre-wrap">x ' * 25_000 + "</p>",
    "nested scripts": '<div class="markdown"><p>' + "<sub>x<i>" * 80_000 + "</p></div>",
    "classes": '<p class="' + "flex " * 200_000 + "</p>",
}


@pytest.mark.parametrize("text", BOMBS.values(), ids=BOMBS)
def test_cleaning_takes_linear_time(text: str) -> None:
    started = time.process_time()
    clean_turn(text, "user", is_page=True)
    assert time.process_time() - started < 2


def test_many_turns_of_one_role_are_joined_in_linear_time() -> None:
    started = time.process_time()
    kept, dropped = in_turn(
        [Message("user", f"word {number}") for number in range(300_000)] + [Message("assistant", "a")]
    )
    assert time.process_time() - started < 3
    assert dropped == {Drop.JOINED: 299_999}
    assert len(kept) == 2


def test_a_joined_turn_is_trained_only_where_each_part_is() -> None:
    def joined(*answers: Message) -> list[Message]:
        return in_turn([Message("user", "q"), *answers])[0][1:]

    good, bad = Message("assistant", "good"), Message("assistant", "bad", trained=False)
    assert joined(good, bad) == [Message("assistant", "good\n\nbad", trained=False)]
    assert joined(good, Message("assistant", "good", trained=False)) == [Message("assistant", "good", trained=False)]
    assert joined(Message("assistant", " ", trained=False), good) == [good]


def test_a_tag_that_no_page_has_is_text() -> None:
    text = '<div class="markdown prose"><p>Use Vec<T> and <K, V>.</p></div>'
    assert clean_text(text) == "Use Vec<T> and <K, V>."


def test_markup_that_the_converter_refuses_is_kept() -> None:
    page = '<div class="markdown"><p>' + 100 * "\0" + "a</p></div>"
    assert clean_text(page) == page


def test_a_bomb_of_elements_does_not_lose_the_text() -> None:
    assert "words" in clean_text("<div>" * 50_000 + "words" + "</div>")


UNTOUCHED = [
    "",
    "  plain   text \n\n\n\n with spaces\t",
    "a < b and b > c, List<int>, Map<String, List<T>>",
    "```html\n<div class='markdown'><p>x</p></div>\n```",
    "How do I close a <div> tag? `<p>x</p>`",
    '<form action="/go"><input name="q"></form>',
    "<html><body><p>mine</p></body></html>",
    "<p>only an opening",
    'Use <div class="markdown">x</div>, or <div class="markdown-body prose">x</div>.',
    "the ratio is\n1 / 2\nof all",
    "1 / 2",
    "2 / 2 is 1\nyes",
    "Press Copy code to copy.",
    "line | line<br>two |",
    "&lt;not an entity to touch&gt; &amp;",
]


@pytest.mark.parametrize("text", UNTOUCHED)
def test_text_without_markup_is_untouched(text: str) -> None:
    assert clean_text(text, is_page=True) == text


@given(st.text(st.characters(exclude_categories=("Cs",))))
def test_any_text_without_a_tag_or_remnant_is_untouched(text: str) -> None:
    if "</" not in text and "Copy" not in text and " / " not in text:
        assert clean_text(text) == text


@pytest.mark.parametrize(
    ("text", "clean"),
    [
        ("```pythonCopy code\nx = 1\n```", "```python\nx = 1\n```"),
        ("```python Copy codex = 1\n```", "```python\nx = 1\n```"),
        ("```\nCopy code\nx = 1\n```", "```\nx = 1\n```"),
        ("See:\nCopy code\nx = 1", "See:\nx = 1"),
        ("Prompt\nCopy1234 chars / 56 words\nAnswer", "Prompt\nAnswer"),
        ("2 / 2\n\nThe question?", "The question?"),
        ("The question?\n\n1 / 2\n", "The question?"),
        ("```\npythonCopy code\nx = 1\n```\ny", "```python\nx = 1\n```\ny"),
        ("```python\npythonCopy code\nx = 1\n```", "```python\nx = 1\n```"),
        ("````\n```\nbashCopy code\n```\n````", "````\n```\nbashCopy code\n```\n````"),
    ],
)
def test_remnants_of_the_page_go(text: str, clean: str) -> None:
    assert clean_text(text, role="user") == clean


@pytest.mark.parametrize("text", ["3 / 4\n\nis the answer.", "The share is\n\n3 / 4"])
def test_a_fraction_at_the_edge_of_an_answer_stays(text: str) -> None:
    assert clean_text(text) == text


def test_halves_of_surrogate_pairs_are_joined_or_replaced() -> None:
    assert clean_text("\ud83d\ude00 \ud83d é") == "\U0001f600 \ufffd é"


@pytest.mark.parametrize(
    ("raw", "kept", "reasons"),
    [
        ("u1 a1 u2 a2", "u1 a1 u2 a2", {}),
        ("s0 u1 a1", "s0 u1 a1", {}),
        ("a0 u1 a1", "u1 a1", {Drop.STARTS_WITH_ASSISTANT: 1}),
        ("a0 a9 u1 a1", "u1 a1", {Drop.STARTS_WITH_ASSISTANT: 1, Drop.JOINED: 1}),
        ("s0 a0 u1 a1", "s0 u1 a1", {Drop.STARTS_WITH_ASSISTANT: 1}),
        ("u1 a1 u2", "u1 a1", {Drop.UNANSWERED: 1}),
        ("u1", "", {Drop.UNANSWERED: 1}),
        ("s0 u1", "", {Drop.UNANSWERED: 1, Drop.ORPHAN_SYSTEM: 1}),
        ("a0", "", {Drop.STARTS_WITH_ASSISTANT: 1}),
        ("u1 u2 a1", "u1+2 a1", {Drop.JOINED: 1}),
        ("u1 u1 a1", "u1 a1", {Drop.REPEATED: 1}),
        ("u1 a1 a2", "u1 a1+2", {Drop.JOINED: 1}),
        ("u1 a1 u_ a2 u3 a3", "u1 a1 u3 a3", {Drop.BLANK: 1, Drop.UNASKED: 1}),
        ("u1 a_ u2 a2", "u2 a2", {Drop.BLANK: 1, Drop.UNANSWERED: 1}),
        ("u1 a_ u_ a2", "", {Drop.BLANK: 2, Drop.UNANSWERED: 1, Drop.UNASKED: 1}),
        ("u1 a_ u_ a2 u3 a3", "u3 a3", {Drop.BLANK: 2, Drop.UNANSWERED: 1, Drop.UNASKED: 1}),
        ("u_ u1 a1", "u1 a1", {Drop.BLANK: 1}),
        ("u1 u_ a1", "u1 a1", {Drop.BLANK: 1}),
        ("u1 a1 s2 u2 a2", "u1 a1 u2 a2", {Drop.MISPLACED_SYSTEM: 1}),
        ("s0 s1 u1 a1", "s0 u1 a1", {Drop.MISPLACED_SYSTEM: 1}),
        ("u1 t1 t2 a1", "u1 a1", {Drop.ODD_ROLE: 2}),
        ("s_ u1 a1", "u1 a1", {Drop.BLANK: 1}),
        ("", "", {}),
    ],
)
def test_roles_come_in_turn(raw: str, kept: str, reasons: dict[Drop, int]) -> None:
    """A letter is a role, a figure a text; `_` is a blank one, `1+2` two joined."""

    def build(text: str) -> list[Message]:
        return turns(*((word[0], word[1:].replace("_", " \n").replace("+", "\n\n")) for word in text.split()))

    assert in_turn(build(raw)) == (build(kept), Counter(reasons))


roles = st.sampled_from(["user", "assistant", "system", "tool", ""])


@given(st.lists(st.builds(Message, roles, st.sampled_from(["", " ", "x", "y", "<p>z</p>"])), max_size=9))
def test_every_turn_is_kept_or_has_a_reason(messages: list[Message]) -> None:
    kept, dropped = in_turn(messages)
    assert len(kept) + dropped.total() == len(messages)
    found = [message.role for message in kept]
    if found:
        found = found[found[0] == "system" :]
        assert found == ["user", "assistant"] * (len(found) // 2) != []
    assert all(message.content.strip() for message in kept)


def test_fingerprints_see_past_case_and_spaces_only() -> None:
    one = fingerprint(turns(("u", "Hello  there"), ("a", "Yes.\n")))
    assert one == fingerprint(turns(("u", "hello\nthere "), ("a", "yes.")))
    assert one != fingerprint(turns(("u", "hello there"), ("a", "yes!")))
    assert one != fingerprint(turns(("u", "hello there yes."), ("a", "")))
    assert one != fingerprint(turns(("a", "hello there"), ("u", "yes.")))


def test_what_counts_as_markup() -> None:
    assert is_markup("<p>one</p>\n<p>two</p>", is_page=True)
    assert is_markup('before <div class="markdown prose"><p>x</p></div> after')
    assert not any(is_markup(text, is_page=True) for text in UNTOUCHED)
