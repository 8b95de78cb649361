"""The Modelfile: its Go template, run by a small interpreter of the few statements in it, gives the rendered text."""

import re

import pytest

from recipe.conversations import templates
from recipe.conversations.messages import Message
from recipe.conversations.templates import Span
from recipe.reports import modelfile

SPECIALS = {"bos": "<s>", "eos": "</s>"}


def field(text: str, name: str) -> str:
    return re.search(rf'^{name} """(.*?)"""$', text, re.M | re.S)[1]


def run_go(template: str, system: str, messages: list[Message]) -> str:
    """What Go's text/template makes of it: only the statements that a Modelfile here has."""
    tokens = re.split(r"(\{\{.*?\}\})", template)
    out: list[str] = []

    def skip(at: int) -> int:
        """The place of the {{ else ... }} or {{ end }} that belongs to a block which begins before `at`."""
        depth = 0
        while True:
            word = tokens[at].strip("{} ")
            if depth == 0 and (word == "end" or word.startswith("else")):
                return at
            depth += word.startswith(("if", "range")) - (word == "end" and depth > 0)
            at += 1

    def block(at: int, scope: dict) -> int:
        """Run until the block's else or end; its place."""
        while at < len(tokens):
            word = tokens[at].strip("{} ") if tokens[at].startswith("{{") else None
            if word is None:
                out.append(tokens[at])
            elif word == "end" or word.startswith("else"):
                return at
            elif word.startswith(("$later := ", "$later = ")):
                variables["later"] = word.endswith("true")
            elif word == ".System":
                out.append(system)
            elif word == ".Content":
                out.append(scope["message"].content)
            elif word == "range .Messages":
                end = at
                for message in messages:
                    end = block(at + 1, {"message": message})
                at = end
            elif word.startswith("if "):
                at = branch(at, word[3:], scope)
            else:
                raise AssertionError(word)
            at += 1
        return at

    def branch(at: int, condition: str, scope: dict) -> int:
        holds = {".System": bool(system), "$later": variables["later"]}.get(condition)
        if holds is None:
            holds = scope["message"].role == re.fullmatch(r'eq \.Role "(\w+)"', condition)[1]
        end = block(at + 1, scope) if holds else skip(at + 1)
        if holds:
            while tokens[end].strip("{} ") != "end":
                end = skip(end + 1)
            return end
        word = tokens[end].strip("{} ")
        if word.startswith("else if "):
            return branch(end, word[8:], scope)
        return end if word == "end" else block(end + 1, scope)

    variables = {"later": False}
    block(0, {})
    return "".join(out)


@pytest.mark.parametrize("name", templates.names())
@pytest.mark.parametrize("system", [None, "Be brief."])
def test_ollama_renders_the_prompt_of_the_template(name: str, system: str | None) -> None:
    template = templates.get(name)
    text = modelfile.render(template, "./m.gguf", SPECIALS)
    turns = [Message("user", "One?"), Message("assistant", "1"), Message("user", "Two?"), Message("assistant", "2")]
    messages = [Message("system", system)] if system else []
    messages = [*messages, *turns, Message("user", "Three?")]
    default = field(text, "SYSTEM") if template.system else ""
    made = run_go(field(text, "TEMPLATE"), system or default, messages)
    pieces = template.render(messages, open_turn=True)
    wanted = "".join(
        piece.text if isinstance(piece, Span) else SPECIALS.get(piece.name, piece.name) for piece in pieces
    )
    assert "<s>" + made == wanted  # Ollama puts BOS before the prompt itself


def test_the_file_names_weights_end_mark_and_system_message() -> None:
    lines = modelfile.render(templates.get("vicuna_v1.1"), "./m.gguf", SPECIALS).splitlines()
    assert lines[0] == "FROM ./m.gguf" and 'PARAMETER stop """</s>"""' in lines
    assert lines[-1].startswith('SYSTEM """A chat between a curious user')
    assert 'PARAMETER stop """###"""' in modelfile.render(templates.get("vicuna_v0"), ".", SPECIALS)
    assert 'PARAMETER stop """<|im_end|>"""' in modelfile.render(templates.get("chatml"), ".", SPECIALS)
