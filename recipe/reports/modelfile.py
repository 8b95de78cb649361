"""The Modelfile of Ollama: weights, chat template as a Go template, default system message, end mark.

Ollama renders its own template and not the Jinja text in the weights (https://docs.ollama.com/modelfile). It puts BOS
before the prompt itself.
"""

from collections.abc import Mapping

from recipe.conversations.templates import Template
from recipe.conversations.templates.definition import Slot
from recipe.conversations.templates.pieces import Special

QUOTES = '"""'


def render(template: Template, weights: str, specials: Mapping[str, str]) -> str:
    """The file's text. `weights`: a path relative to it; `specials`: the texts of the tokens "bos" and "eos"."""

    def text(*fields: str, first: bool = False) -> str:
        out = ""
        for part in (part for field in fields for part in template.parts(field)):
            if isinstance(part, Slot):
                out += "{{ .System }}" if part.role == "system" else "{{ .Content }}"
            elif isinstance(part, Special):
                out += "" if first and part.name == "bos" and not out else specials.get(part.name, part.name)
            else:
                out += part
        return out

    opening = f"{{{{ if .System }}}}{text('begin', 'system_turn', first=True)}"
    opening += f"{{{{ else }}}}{text('begin', 'without_system', first=True)}{{{{ end }}}}"
    user = f"{{{{ if $later }}}}{text('separator')}{{{{ end }}}}{{{{ $later = true }}}}{text('user_turn')}"
    assistant = text("assistant_turn")
    body = (
        "{{ $later := false }}"
        + opening
        + '{{ range .Messages }}{{ if eq .Role "user" }}'
        + user
        + text("assistant_header")
        + '{{ else if eq .Role "assistant" }}'
        + assistant
        + "{{ end }}{{ end }}"
    )
    end = template.end
    stop = specials.get(end.name, end.name) if isinstance(end, Special) else end.text.strip()
    lines = [f"FROM {weights}", f"TEMPLATE {_quote(body)}", f"PARAMETER stop {_quote(stop)}"]
    if template.system:
        lines.append(f"SYSTEM {_quote(template.system)}")
    return "\n".join(lines) + "\n"


def _quote(text: str) -> str:
    return f"{QUOTES}{text}{QUOTES}"
