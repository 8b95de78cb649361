"""What a config's [corpus] asks for, in the words of the conversations room: sources, rules, shares."""

from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path

from recipe.conversations import identity
from recipe.conversations.cleaning.filters import Filters, Rules
from recipe.conversations.formats import detect
from recipe.conversations.messages import Conversation
from recipe.conversations.pipeline.shards import Source
from recipe.conversations.readers import compressed
from recipe.core.config import Config
from recipe.core.errors import UsageError
from recipe.core.files import file_size


def check(config: Config) -> None:
    """Raises UsageError for what [corpus] cannot mean; reads no conversation."""
    corpus = config.corpus
    _check_numbers(config)
    for path in (*corpus.sources, *corpus.decontaminate):
        if not Path(path).exists():
            raise UsageError(f"there is no file {path}: name raw conversation files (JSON, JSON lines or Parquet)")
    shares(config, "mixture", most=1e6)
    Filters(rules_of(config, prompts=()))


def _check_numbers(config: Config) -> None:
    corpus = config.corpus
    if not 0 <= corpus.val_fraction < 1:
        raise UsageError(f"corpus.val_fraction is {corpus.val_fraction}: expected a share from 0 to below 1")
    if not 0 < corpus.near_threshold <= 1:
        raise UsageError(f"corpus.near_threshold is {corpus.near_threshold}: expected a similarity above 0, at most 1")
    least = {"identity_repeat": 1, "rounds": 0, "processes": 0, "max_length": 1}
    for name, smallest in least.items():
        if getattr(corpus, name) < smallest:
            raise UsageError(f"corpus.{name} is {getattr(corpus, name)}: expected {smallest} or more")
    if corpus.repeated_digits and corpus.repeated_digits < 2:
        raise UsageError(f"corpus.repeated_digits is {corpus.repeated_digits}: expected 0 (off), or 2 or more")


def sources_of(config: Config) -> list[Source]:
    """The sources by unlike names: the file's, or with its folder's where two files have the same."""
    paths = [Path(source) for source in config.corpus.sources]
    count = Counter(path.name for path in paths)
    names = [path.name if count[path.name] == 1 else f"{path.parent.name}/{path.name}" for path in paths]
    if len({*names, identity.SOURCE}) < len(names) + 1:
        raise UsageError(f"corpus.sources names a file twice: {', '.join(names)}; give each one once, by another name")
    chosen = _by_name(config, "formats", names)
    for name in chosen.values():
        detect.named(name)
    return [Source(name, path, chosen.get(name, "")) for name, path in zip(names, paths, strict=True)]


def size(path: Path) -> int:
    """Bytes of a source's text, for the progress bar."""
    return compressed.size(path) if path.is_file() else file_size(path)


def _by_name(config: Config, field: str, names: Sequence[str]) -> dict[str, str]:
    """A field of NAME=VALUE strings as a mapping. Raises UsageError where a name is none of the sources'."""
    out = {}
    for entry in getattr(config.corpus, field):
        name, equals, value = entry.rpartition("=")
        if not equals or name not in names:
            raise UsageError(f"corpus.{field} holds {entry!r}: expected NAME=VALUE with a name of {', '.join(names)}")
        out[name] = value
    return out


def shares(config: Config, field: str, most: float) -> dict[str, float]:
    """A field of NAME=NUMBER strings, the numbers above 0 and at most `most`."""
    names = [identity.SOURCE, *(source.name for source in sources_of(config))]
    out = {}
    for name, text in _by_name(config, field, names).items():
        try:
            out[name] = float(text)
        except ValueError:
            out[name] = -1.0
        if not 0 < out[name] <= most:
            raise UsageError(f"corpus.{field} holds {name}={text}: expected a number above 0 and at most {most:g}")
    return out


def rules_of(config: Config, prompts: Sequence[str]) -> Rules:
    """What is done to each conversation; those that hold one of the `prompts` are left out."""
    corpus = config.corpus
    return Rules(
        html=corpus.html,
        repair_roles=corpus.repair_roles,
        rounds=corpus.rounds,
        truncate=corpus.over_long == "truncate",
        near=corpus.duplicates == "near",
        script=corpus.script,
        replace=corpus.replace,
        blocked_words=corpus.blocked_words,
        languages_keep=corpus.languages_keep,
        languages_skip=corpus.languages_skip,
        repeated_digits=corpus.repeated_digits,
        prompts=tuple(prompts),
        sample=shares(config, "sample", 1.0),
    )


def prompts_of(path: Path) -> Iterator[str]:
    """Evaluation prompts: the lines of a .txt file, or the questions of conversations."""
    if path.suffix == ".txt":
        yield from filter(str.strip, path.read_text(encoding="utf-8", errors="replace").splitlines())
        return
    for item in detect.read(path):
        if isinstance(item, Conversation):
            yield from (message.content for message in item.messages if message.role == "user")
