"""The Jinja text needs nothing that llama.cpp and vLLM lack, and reaches a folder's tokenizer_config.json."""

import json
from pathlib import Path

import jinja2
import pytest
from jinja2 import nodes
from jinja2.sandbox import SandboxedEnvironment

from recipe.conversations.messages import Message
from recipe.conversations.templates import chat_template, names, render
from recipe.conversations.templates.export import write_chat_template
from recipe.conversations.tokens import prompt_ids
from recipe.core.errors import RecipeError

PLAIN = {
    *(nodes.Template, nodes.Output, nodes.TemplateData, nodes.If, nodes.For, nodes.Assign, nodes.Name, nodes.Const),
    *(nodes.Add, nodes.And, nodes.Mod, nodes.Compare, nodes.Operand, nodes.Getitem, nodes.Getattr, nodes.Slice),
    *(nodes.Call, nodes.Filter),
}
MESSAGES = [("system", "Be 'brief'.\n"), ("user", " Hello!"), ("assistant", "{{ 7 * 7 }} \\n"), ("user", "Bye\n")]


def refuse(text: str) -> None:
    raise jinja2.TemplateError(text)


def by_jinja(text: str, messages: list[tuple[str, str]], prompt: bool = True, **options: bool) -> str:
    template = SandboxedEnvironment(undefined=jinja2.StrictUndefined, **options).from_string(text)
    plain = [{"role": role, "content": content} for role, content in messages]
    variables = {"bos_token": "<bos>", "eos_token": "<eos>", "raise_exception": refuse}
    return template.render(messages=plain, add_generation_prompt=prompt, **variables)


@pytest.mark.parametrize("name", names())
@pytest.mark.parametrize("trim_blocks", [False, True])
def test_a_plain_engine_renders_the_same_text(name: str, trim_blocks: bool) -> None:
    for messages in (MESSAGES, MESSAGES[1:], MESSAGES[:2], [("system", ""), ("user", "")]):
        own = render(name, [Message(*message) for message in messages], open_turn=True)
        found = by_jinja(chat_template(name), messages, trim_blocks=trim_blocks, lstrip_blocks=trim_blocks)
        assert found == "".join(piece.text for piece in own)


@pytest.mark.parametrize("name", names())
def test_the_language_is_plain(name: str) -> None:
    tree = jinja2.Environment(autoescape=True).parse(chat_template(name))
    assert {type(node) for node in tree.find_all(nodes.Node)} <= PLAIN
    assert {node.name for node in tree.find_all(nodes.Filter)} <= {"trim"}
    assert {node.node.name for node in tree.find_all(nodes.Call)} == {"raise_exception"}
    assert "\n" not in chat_template(name)


@pytest.mark.parametrize("name", names())
def test_without_a_prompt_the_users_turn_is_the_end(name: str) -> None:
    whole, question = (by_jinja(chat_template(name), MESSAGES, prompt=prompt) for prompt in (True, False))
    assert whole.startswith(question) and len(whole) > len(question)
    assert by_jinja(chat_template(name), MESSAGES[:3], True) == by_jinja(chat_template(name), MESSAGES[:3], False)


@pytest.mark.parametrize("messages", [MESSAGES[2:], [*MESSAGES[:2], MESSAGES[1]], [*MESSAGES[:2], ("tool", "x")]])
def test_turns_out_of_order_are_refused(messages: list[tuple[str, str]]) -> None:
    for name in names():
        with pytest.raises(jinja2.TemplateError, match="Expected an optional system message"):
            by_jinja(chat_template(name), messages)


@pytest.mark.parametrize("name", names())
def test_generation_marks_surround_what_is_trained(name: str) -> None:
    marked = chat_template(name, generation=True)
    assert marked.count("{% generation %}") == marked.count("{% endgeneration %}") == 1
    assert marked.replace("{% generation %}", "").replace("{% endgeneration %}", "") == chat_template(name)


@pytest.mark.parametrize("fixture", ["llama_tokenizer", "byte_level_tokenizer"])
def test_a_saved_tokenizer_renders_our_prompt(fixture: str, request: pytest.FixtureRequest, tmp_path: Path) -> None:
    """Whether it begins with BOS is the tokenizer's: the byte-level one has a BOS token and does not use it."""
    from transformers import AutoTokenizer

    request.getfixturevalue(fixture).save_pretrained(tmp_path)
    (tmp_path / "chat_template.jinja").write_text("another")
    before = json.loads((tmp_path / "tokenizer_config.json").read_text(encoding="utf-8"))
    text = write_chat_template(tmp_path, "vicuna_v1.1")
    after = json.loads((tmp_path / "tokenizer_config.json").read_text(encoding="utf-8"))
    assert after == {**before, "chat_template": text}
    assert not (tmp_path / "chat_template.jinja").exists()
    loaded = AutoTokenizer.from_pretrained(str(tmp_path))
    found = loaded.apply_chat_template([{"role": "user", "content": "Hi"}], add_generation_prompt=True)
    assert found == prompt_ids(request.getfixturevalue(fixture), "vicuna_v1.1", [Message("user", "Hi")])


def test_a_folder_that_cannot_have_the_template_is_left_as_it_was(llama_tokenizer, tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="absent or not a JSON object"):
        write_chat_template(tmp_path, "vicuna_v1.1")
    llama_tokenizer.save_pretrained(tmp_path)
    before = (tmp_path / "tokenizer_config.json").read_bytes()
    with pytest.raises(RecipeError, match="no special token"):
        write_chat_template(tmp_path, "llama-3")
    assert (tmp_path / "tokenizer_config.json").read_bytes() == before
