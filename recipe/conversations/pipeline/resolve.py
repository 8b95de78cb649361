"""What a config's [corpus] asks for, checked and resolved once: the sources by name, and every input file."""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from recipe.conversations import identity, templates
from recipe.conversations.cleaning.filters import Filters
from recipe.conversations.formats import detect
from recipe.conversations.formats.base import Format
from recipe.conversations.formats.fields import build_format, check_roles
from recipe.conversations.messages import Conversation
from recipe.conversations.readers import compressed
from recipe.core import config as configs
from recipe.core.config import Config, Corpus, Source
from recipe.core.errors import UsageError
from recipe.core.files import MANIFEST, file_size, stamp
from recipe.core.manifest import check_intact, hash_inputs
from recipe.core.text import printable

TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json")


@dataclass(frozen=True)
class RawSource:
    """A raw file or folder, the name under which its conversations are counted, and its settings."""

    name: str
    path: Path
    settings: Source = field(default_factory=Source)

    @property
    def format(self) -> Format | None:
        """The format that the settings name or describe; None: recognize it for each record."""
        if self.settings.fields:
            return build_format(self.settings.fields, self.settings.roles)
        return detect.named(self.settings.format) if self.settings.format else None

    def size(self) -> int:
        """Bytes of the source's text, for the progress bar; of a compressed file an estimate."""
        return compressed.size(self.path) if self.path.is_file() else file_size(self.path)


@dataclass(frozen=True)
class Plan:
    """A checked [corpus] section with its sources named and its input files listed."""

    corpus: Corpus
    base: Path  # the folder of the tokenizer
    sources: tuple[RawSource, ...]
    inputs: Mapping[str, Path]  # name in the manifest -> file or folder that is hashed
    stamps: Mapping[Path, Any]  # of the inputs, before they are hashed

    def describe(self) -> tuple[dict[str, Any], dict[str, str]]:
        """(settings, sha256 of each input): two corpora with the same ones are the same. Hashes every source."""
        corpus, files = self.corpus, dict(self.inputs)
        if own_template := templates.file(corpus.template):
            files["template"] = own_template
        # The content of these files is hashed as inputs; their paths differ from machine to machine.
        settings = configs.hashed(corpus) | {
            "decontaminate": len(corpus.decontaminate),
            "template": Path(corpus.template).name,
        }
        return settings, hash_inputs(files)

    def prompts(self) -> tuple[str, ...]:
        """The evaluation prompts of `corpus.decontaminate`, read from their files."""
        return tuple(prompt for path in self.corpus.decontaminate for prompt in read_prompts(Path(path)))


def resolve(config: Config) -> Plan:
    """The plan of a corpus. Reads no conversation. Raises UsageError for settings that cannot be carried out."""
    corpus = config.corpus
    configs.required(config, "corpus.path", "--output DIR")
    base = Path(configs.required(config, "base.path", "--tokenizer DIR"))
    if not corpus.identity_name:
        configs.required(config, "corpus.source", "--source FILE")
    elif not corpus.identity_organisation:
        raise UsageError("corpus.identity_name is set and identity_organisation is empty: set the model's maker too")
    templates.get(corpus.template)
    if corpus.repeated_digits == 1:
        raise UsageError("corpus.repeated_digits is 1: expected 0 (off), or 2 or more")
    _check_files(corpus, base)
    Filters(corpus)
    sources = _name_sources(corpus.source)
    inputs = {f"source {number}: {source.path.name}": source.path for number, source in enumerate(sources)}
    inputs |= {f"prompts {number}": Path(path) for number, path in enumerate(corpus.decontaminate)}
    inputs |= {name: base / name for name in TOKENIZER_FILES if (base / name).is_file()}
    return Plan(corpus, base, sources, inputs, {path: stamp(path) for path in inputs.values()})


def _check_files(corpus: Corpus, base: Path) -> None:
    for path in (*(source.path for source in corpus.source), *corpus.decontaminate):
        if not path:
            raise UsageError("a [[corpus.source]] table has no path: expected a raw conversation file")
        if path.encode(errors="replace").decode() != path:  # it goes into manifests and samples
            raise UsageError(f"the name {printable(path)} is not UTF-8, expected text in UTF-8: rename the file")
        if not Path(path).exists():
            raise UsageError(
                f"there is no file {printable(path)}, expected raw conversations (JSON, JSON Lines, CSV or Parquet): "
                "run `make data`, or name your own file in corpus.source.path or --source"
            )
        if not (Path(path).is_file() or Path(path).is_dir()):
            raise UsageError(
                f"{printable(path)} is not a regular file or a folder: write its content to a file, and name that one"
            )
    if not (base / TOKENIZER_FILES[0]).is_file():
        raise UsageError(f"{base} has no {TOKENIZER_FILES[0]}: convert the base first (`python -m recipe.convert`)")
    if (base / MANIFEST).is_file():
        check_intact(base, skip_suffix=".safetensors")


def _name_sources(sources: Sequence[Source]) -> tuple[RawSource, ...]:
    """Each source under its file's name, or with its folder's name in front where two files have the same name."""
    paths = [Path(source.path) for source in sources]
    count = Counter(path.name for path in paths)
    names = [path.name if count[path.name] == 1 else f"{path.parent.name}/{path.name}" for path in paths]
    if len({*names, identity.SOURCE}) < len(names) + 1:
        raise UsageError(
            f"two sources have the same name: {', '.join(names)}; list each file once, by a name of its own"
        )
    for source in sources:
        _check_reading(source)
    return tuple(RawSource(*item) for item in zip(names, paths, sources, strict=True))


def _check_reading(source: Source) -> None:
    if source.format and source.fields:
        raise UsageError(f"{printable(source.path)} has both a format and fields: give one of them")
    if source.format:
        detect.named(source.format)
    if source.fields:
        build_format(source.fields, source.roles)
    check_roles(source.roles, bool(source.fields))


def read_prompts(path: Path) -> Iterator[str]:
    """Evaluation prompts: the lines of a .txt file, or the questions of conversations."""
    if path.suffix == ".txt":
        yield from filter(str.strip, path.read_text(encoding="utf-8", errors="replace").splitlines())
        return
    for item in detect.read(path):
        if isinstance(item, Conversation):
            yield from (message.content for message in item.messages if message.role == "user")
