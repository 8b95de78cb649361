"""Generated tokens as text: whole characters only, and nothing from a stop string on."""

import codecs
import json
import re
from collections.abc import Sequence
from typing import Any

BYTE = re.compile(r"<0x([0-9A-F]{2})>")


class TokenBytes:
    """The UTF-8 bytes of each token of a tokenizer. A special token has none."""

    def __init__(self, tokenizer: Any) -> None:
        from transformers.models.gpt2.tokenization_gpt2 import bytes_to_unicode

        self.tokenizer = tokenizer
        self.special = set(tokenizer.all_special_ids)
        self.added: dict[int, bytes] = {}
        for number, token in tokenizer.added_tokens_decoder.items():
            self.added[number] = token.content.encode()
            if token.special:
                self.special.add(number)
        decoder = json.dumps(json.loads(tokenizer.backend_tokenizer.to_str())["decoder"])
        self.alphabet = {c: byte for byte, c in bytes_to_unicode().items()} if '"ByteLevel"' in decoder else None

    def __call__(self, token: int) -> bytes:
        """The bytes that `token` adds to a text. Empty for a special token and for an id outside the vocabulary."""
        return b"" if token in self.special else self.literal(token)

    def literal(self, token: int) -> bytes:
        """The same, but a special token is shown by its name, such as `</s>`."""
        if token in self.added:
            return self.added[token]
        piece = self.tokenizer.convert_ids_to_tokens(token)
        if not isinstance(piece, str):
            return b""
        if self.alphabet is not None:
            known = all(c in self.alphabet for c in piece)
            return bytes(self.alphabet[c] for c in piece) if known else piece.encode()
        byte = BYTE.fullmatch(piece)
        return bytes([int(byte[1], 16)]) if byte else piece.replace("▁", " ").encode()


class TextStream:
    """Turns bytes into the text that can be shown already.

    An incomplete UTF-8 character waits for the rest of it, text that may begin a stop string waits until it is known,
    and with `strip` white space at both ends of the whole text is removed.
    """

    def __init__(self, stop: Sequence[str] = (), strip: bool = False) -> None:
        self.stop, self.strip = tuple(stop), strip
        self.raw = ""  # everything decoded so far
        self.sent = 0  # characters of `raw` that were returned or removed
        self.stopped = False  # whether a stop string was found
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")

    def push(self, data: bytes) -> str:
        """The text that `data` makes safe to show. After a stop string it is empty."""
        searched = len(self.raw)
        self.raw += "" if self.stopped else self._decoder.decode(data)
        end = self._find_stop(searched)
        if not self.stopped:
            end -= max((self._overlap(stop) for stop in self.stop), default=0)
        return self._release(end)

    def close(self) -> str:
        """The text that was still held back. An incomplete character is dropped."""
        return "" if self.stopped else self._release(len(self.raw))

    def _find_stop(self, searched: int) -> int:
        """Where the text ends: at the first stop string, or after everything decoded so far."""
        if not self.stopped:
            starts = [self.raw.find(stop, max(0, searched - len(stop))) for stop in self.stop]
            found = [start for start in starts if start >= 0]
            self.stopped = bool(found)
            self.raw = self.raw[: min(found, default=None)]
        return len(self.raw)

    def _overlap(self, stop: str) -> int:
        """The length of the longest end of the text that is a beginning of `stop`."""
        longest = min(len(stop) - 1, len(self.raw) - self.sent)
        return next((size for size in range(longest, 0, -1) if self.raw.endswith(stop[:size])), 0)

    def _release(self, end: int) -> str:
        text = self.raw[self.sent : max(end, self.sent)]
        if self.strip:
            if not self.raw[: self.sent].strip():
                self.sent += len(text) - len(text.lstrip())
                text = text.lstrip()
            text = text.rstrip()
        self.sent += len(text)
        return text
