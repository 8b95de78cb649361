"""A template as a Jinja `chat_template`, for transformers, vLLM, llama.cpp and others.

Plain Jinja: `if`, `for`, `set`, string concatenation, `trim` and `raise_exception`, on one line, so that no engine's
handling of line breaks between tags matters.
"""

from collections.abc import Sequence

from recipe.conversations.templates.definition import Part, Slot, Template
from recipe.conversations.templates.pieces import Special

ORDER = "Expected an optional system message, then user and assistant in turn."
_ESCAPES = {"\\": "\\\\", "'": "\\'", "\n": "\\n", "\r": "\\r", "\t": "\\t"}


def chat_template(template: Template, generation: bool = False, bos: bool = True) -> str:
    """The Jinja text that renders the same conversation.

    `generation`: mark what is trained with `{% generation %}`, an extension of Jinja that transformers has and
    llama.cpp has not. `bos`: whether the tokenizer begins a text with BOS (`tokens.begins_with_bos`); a tokenizer can
    have a `bos_token` and never use it.
    """

    def emit(*fields: str) -> str:
        """`{{ ... }}` with the fields, or nothing where they are empty."""
        terms = _terms([part for field in fields for part in template.parts(field)], template, bos)
        return f"{{{{ {' + '.join(terms)} }}}}" if terms else ""

    def choose(condition: str, yes: str, no: str) -> str:
        otherwise = f"{{% else %}}{no}" if no else ""
        return f"{{% if {condition} %}}{yes}{otherwise}{{% endif %}}"

    wrong = f"{{{{ raise_exception({_quote(ORDER)}) }}}}"
    given = "messages[0]['content']" + " | trim" * template.strips("system")
    answer = emit("assistant_turn")
    if generation:
        answer = f"{{% generation %}}{answer}{{% endgeneration %}}"
    first = emit("begin") + choose("system", emit("system_turn"), emit("without_system"))
    user = (
        f"{{% if message['role'] != 'user' %}}{wrong}{{% endif %}}"
        + choose("loop.first", first, emit("separator"))
        + emit("user_turn")
        + f"{{% if loop.last and add_generation_prompt %}}{emit('assistant_header')}{{% endif %}}"
    )
    assistant = f"{{% if message['role'] != 'assistant' %}}{wrong}{{% endif %}}{emit('assistant_header')}{answer}"
    return (
        choose(
            "messages[0]['role'] == 'system'",
            f"{{% set system = {given} %}}{{% set turns = messages[1:] %}}",
            f"{{% set system = {_quote(template.system)} %}}{{% set turns = messages %}}",
        )
        + f"{{% for message in turns %}}{choose('loop.index0 % 2 == 0', user, assistant)}{{% endfor %}}"
    )


def _terms(parts: Sequence[Part], template: Template, bos: bool) -> list[str]:
    """Jinja expressions whose concatenation is the parts. Neighbouring literal text is one expression."""
    terms: list[str] = []
    literal = ""
    for part in parts:
        if isinstance(part, str):
            literal += part
        elif isinstance(part, Special) and part.name not in ("bos", "eos"):
            literal += part.name
        elif part != Special("bos", trained=False) or bos:
            terms += [_quote(literal)] * bool(literal) + [_variable(part, template)]
            literal = ""
    return terms + [_quote(literal)] * bool(literal)


def _variable(part: Special | Slot, template: Template) -> str:
    """The Jinja expression of BOS, EOS or a message's content."""
    if isinstance(part, Special):
        return f"{part.name}_token"
    if part.role == "system":
        return "system"
    return "(message['content'] | trim)" if template.strips(part.role) else "message['content']"


def _quote(text: str) -> str:
    return "'" + "".join(_ESCAPES.get(character, character) for character in text) + "'"
