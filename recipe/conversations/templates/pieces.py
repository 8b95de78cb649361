"""What a template renders: plain text and special tokens, each trained or not."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Span:
    """Plain text: a literal `</s>` in it is four characters, never a special token."""

    text: str
    trained: bool


@dataclass(frozen=True)
class Special:
    """A special token: "bos", "eos", or another one by its text, such as "<|im_end|>".

    "bos" gives no token where the tokenizer itself does not begin a text with one.
    """

    name: str
    trained: bool

    @property
    def text(self) -> str:
        """How a report shows it."""
        return f"<{self.name}>" if self.name in ("bos", "eos") else self.name


Piece = Span | Special
