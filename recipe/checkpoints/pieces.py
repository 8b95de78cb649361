"""The pieces of a vocabulary: their kinds, and what any of them may be."""

import re
from collections.abc import Iterable
from pathlib import Path

from recipe.core.errors import RecipeError
from recipe.core.text import snippet

NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = range(1, 7)  # sentencepiece_model.proto; GGUF has the same
BYTE_PIECE = re.compile(r"<0x[0-9A-F]{2}>")
SPACE = "\u2581"
MAX_LENGTH = 1024  # sentencepiece's own limit is 16 characters, byte-level vocabularies have runs of 128 spaces


def check_texts(pieces: Iterable[str], path: Path) -> None:
    """Raises RecipeError on a piece that is too long (splitting it takes quadratic time) or not Unicode text."""
    for piece in pieces:
        if not isinstance(piece, str):  # how protobuf gives what is not UTF-8
            raise RecipeError(f"{path} has the token {snippet(repr(piece))}, which is not Unicode text")
        if len(piece) > MAX_LENGTH:
            raise RecipeError(f"{path} has a token of {len(piece):,} characters, expected at most {MAX_LENGTH:,}")
        try:
            piece.encode()
        except UnicodeEncodeError:
            raise RecipeError(f"{path} has the token {snippet(repr(piece))}, which is not Unicode text") from None
