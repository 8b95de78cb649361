"""A user's own template as a TOML file."""

import json
from pathlib import Path

import pytest

from recipe import corpus
from recipe.conversations.messages import Message
from recipe.conversations.templates import chat_template, get, render, stop_token
from recipe.conversations.templates.definition import Template
from recipe.conversations.tokens import begins_with_bos, prompt_ids
from recipe.core.errors import UsageError

TOML = r"""
system = "Du bist \"hilfsbereit\"."
system_turn = "{system}\n\n"
user_turn = "<|im_start|>Frage: {user}"
assistant_header = "\nAntwort:"
assistant_turn = " {assistant}<|im_end|>"
separator = "\n\n"
special_tokens = ["<|im_start|>", "<|im_end|>"]
"""

PLAIN = r"""
system_turn = "{system}\n\n"
user_turn = "Frage: {user}"
assistant_header = "\nAntwort:"
assistant_turn = " {assistant}{eos}"
"""


def write(folder: Path, text: str) -> str:
    path = folder / "my-template.toml"
    path.write_text(text, encoding="utf-8")
    return str(path)


def test_a_file_defines_prompt_mask_and_jinja(byte_level_tokenizer, tmp_path: Path) -> None:
    name = write(tmp_path, TOML)
    messages = [Message("user", "Wer?"), Message("assistant", "Ich."), Message("user", "Du?")]
    pieces = render(name, messages, open_turn=True)
    text = (
        'Du bist "hilfsbereit".\n\n<|im_start|>Frage: Wer?\nAntwort: Ich.<|im_end|>\n\n<|im_start|>Frage: Du?\nAntwort:'
    )
    assert "".join(piece.text for piece in pieces) == f"<bos>{text}"
    assert "".join(piece.text for piece in pieces if piece.trained) == " Ich.<|im_end|>"
    assert stop_token(name) == "<|im_end|>"
    plain = [{"role": message.role, "content": message.content} for message in messages]
    jinja = chat_template(name, bos=begins_with_bos(byte_level_tokenizer))
    found = byte_level_tokenizer.apply_chat_template(plain, chat_template=jinja, add_generation_prompt=True)
    assert found == prompt_ids(byte_level_tokenizer, name, messages)


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("{user}", "", "has no message in user_turn; expected {user} once: correct user_turn"),
        ("{user}", "{user} {user}", "has {user}, {user} in user_turn; expected {user} once"),
        ("{user}", "{question}", "has the placeholder {question}; expected one of {bos}"),
        ("{system}", "", "has no message in system_turn; expected {system} once"),
        ("Antwort:", "{assistant}", "has {assistant} in assistant_header; expected no message"),
        ("Antwort:", "Antwort: ", "assistant_header that ends with a space"),
        ('<|im_end|>"\nsep', '"\nsep', "so that an answer never ends; expected an end mark: append {eos}"),
        ('user_turn = "', 'usr_turn = "', "has the unknown key usr_turn; did you mean user_turn?"),
        ('user_turn = "<|im_start|>Frage: {user}"', "", "lacks user_turn; expected system_turn, user_turn,"),
        ('user_turn = "<|im_start|>Frage: {user}"', "user_turn = 3", "has user_turn = 3; expected text"),
        ("special_tokens = [", 'special_tokens = ["", ', "expected a list of texts"),
        ("special_tokens = [", "strip = 1\nspecial_tokens = [", "has strip = 1; expected true or false"),
        ("special_tokens = [", "special_tokens = {", "is not TOML"),
    ],
)
def test_an_incomplete_template_gives_one_sentence(tmp_path: Path, old: str, new: str, message: str) -> None:
    assert old in TOML
    name = write(tmp_path, TOML.replace(old, new))
    with pytest.raises(UsageError) as error:
        get(name)
    assert message in str(error.value) and name in str(error.value)
    assert "\n" not in str(error.value)


def test_a_file_that_is_absent_is_named(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"absent\.toml cannot be read \(No such file or directory\)"):
        get(str(tmp_path / "absent.toml"))


def test_a_changed_file_is_read_again(tmp_path: Path) -> None:
    name = write(tmp_path, TOML)
    assert "Frage" in chat_template(name)
    write(tmp_path, TOML.replace("Frage", "Question"))
    assert "Question" in chat_template(name)


def test_a_corpus_depends_on_the_templates_content(tiny_base: Path, tmp_path: Path, capsys) -> None:
    """Not on the path of the file, which may be another one on another machine."""
    (tmp_path / "raw.json").write_text('[{"instruction": "Wer?", "input": "", "output": "Ich bin es."}]')
    flags = ["--source", str(tmp_path / "raw.json"), "--tokenizer", str(tiny_base), "--output", str(tmp_path / "out")]
    shown = []
    for folder, separator in (("one", ""), ("two", "\n"), ("three", "")):
        (tmp_path / folder).mkdir()
        name = write(tmp_path / folder, PLAIN + f"separator = {json.dumps(separator)}")
        assert corpus.main([*flags, "--set", f"corpus.template={name}", "--dry-run", "--json"]) == 0
        shown.append(capsys.readouterr().out)
    assert shown[0] == shown[2] != shown[1]
    assert corpus.main([*flags, "--set", f"corpus.template={name}"]) == 0
    assert "Template my-template.toml" in (tmp_path / "out" / "report.md").read_text(encoding="utf-8")


def test_a_definition_in_code_is_checked_too() -> None:
    with pytest.raises(UsageError, match="an answer never ends"):
        Template(
            name="x", system_turn="{system}", user_turn="{user}", assistant_header=":", assistant_turn="{assistant}"
        )
