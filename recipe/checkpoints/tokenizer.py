"""A checkpoint's tokenizer as a fast one (`tokenizer.json`) that gives the original's ids.

The LLaMA tokenizer is a sentencepiece BPE: a space is put before the text, spaces become U+2581, characters outside
the vocabulary become bytes. It is kept in transformers' `legacy` behaviour, the one LLaMA and Vicuna were trained with.

transformers' own conversion makes a BPE merge for every piece, control pieces included. Where a vocabulary holds their
parts (`</s` and `>`; LLaMA's own does not), the plain text `</s>` then becomes the end of sequence even with special
tokens switched off, which sentencepiece never does. Here, and in a tokenizer.json that is taken over, no merge leads to
a special token or a byte piece. To keep the text `</s>` text, call the tokenizer with `split_special_tokens=True`: it
resets `backend_tokenizer.encode_special_tokens` at every call.
"""

import re
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from recipe.checkpoints import tokenizer_json
from recipe.checkpoints.files import read_object
from recipe.checkpoints.pieces import CONTROL, NORMAL, SPACE, UNKNOWN, USER_DEFINED, check_texts
from recipe.core.errors import RecipeError
from recipe.core.text import snippet

if TYPE_CHECKING:
    import tokenizers
    from transformers import PreTrainedTokenizerFast

FILES = ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "tokenizer.model")
ROLES = ("bos_token", "eos_token", "unk_token", "pad_token")
LLAMA_NAMES = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
SPACES = " {2,}"
MOST_PADDING = 1024  # rows
TIKTOKEN = re.compile(rb"[A-Za-z0-9+/]+={0,2} \d+\r?\n")  # LLaMA 3's tokenizer.model: lines of base64 and a rank


@dataclass(frozen=True)
class Tokenizer:
    """The fast tokenizer, the sentencepiece model that it comes from (None: another kind), and what was repaired."""

    fast: "PreTrainedTokenizerFast"
    sentencepiece: bytes | None = None
    repairs: list[str] = field(default_factory=list)

    def save(self, folder: Path) -> None:
        """Write tokenizer.json, tokenizer_config.json, special_tokens_map.json and tokenizer.model into `folder`."""
        self.fast.save_pretrained(folder)
        if self.sentencepiece is not None:
            (folder / "tokenizer.model").write_bytes(self.sentencepiece)


def copy_files(base: Path, folder: Path) -> None:
    """Copy the tokenizer of a converted model."""
    for name in FILES:
        if (base / name).is_file():
            shutil.copyfile(base / name, folder / name)


def from_sentencepiece_file(path: Path, rows: int) -> Tokenizer:
    """The tokenizer of a `tokenizer.model`, for an embedding of that many rows."""
    return from_sentencepiece(path.read_bytes(), rows, path)


def from_sentencepiece(model: bytes, rows: int, path: Path) -> Tokenizer:
    """The tokenizer of a serialized sentencepiece model. Raises RecipeError: not LLaMA's kind, or not of this size."""
    backend, names = _sentencepiece_backend(model, path)
    repairs = check_size(backend, rows, path)
    return Tokenizer(wrap(backend, names, path), model, repairs)


def from_folder(folder: Path, rows: int) -> Tokenizer:
    """The tokenizer of a Hugging Face folder: its tokenizer.json, or its tokenizer.model with added_tokens.json.

    The settings of the first LLaMA conversions (class `LLaMATokenizer`, empty special tokens) are repaired.
    """
    settings = _json(folder / "tokenizer_config.json")
    model_path = folder / "tokenizer.model"
    model = model_path.read_bytes() if model_path.is_file() else None
    names = dict(LLAMA_NAMES)
    repairs: list[str] = []
    if (folder / "tokenizer.json").is_file():
        backend = tokenizer_json.load(folder / "tokenizer.json", rows, repairs)
        model = None if model and TIKTOKEN.match(model) else model
    elif model is not None:
        backend, names = _sentencepiece_backend(model, model_path)
        _add_tokens(backend, _added_tokens(folder, settings), rows, folder, repairs)
    else:
        raise RecipeError(
            f"{folder} has neither tokenizer.json nor tokenizer.model: put its tokenizer beside the weights"
        )
    repairs += check_size(backend, rows, folder)
    if settings.get("tokenizer_class") == "LLaMATokenizer":
        repairs.append("tokenizer_config.json: the class LLaMATokenizer does not exist, now LlamaTokenizer")
    chosen = _role_names(settings, _json(folder / "special_tokens_map.json"), names, backend, repairs)
    add_bos, add_eos = settings.get("add_bos_token", True) is True, settings.get("add_eos_token", False) is True
    return Tokenizer(wrap(backend, chosen, folder, add_bos=add_bos, add_eos=add_eos), model, repairs)


def wrap(
    backend: "tokenizers.Tokenizer",
    names: Mapping[str, str],
    path: Path,
    add_bos: bool = True,
    add_eos: bool = False,
) -> "PreTrainedTokenizerFast":
    """The transformers tokenizer around `backend`; `names` maps bos_token, eos_token, ... to tokens.

    LLaMA has no padding token. It gets `<unk>` if there is one, as in Vicuna: thanks to the byte pieces it never
    occurs in text. The end of sequence as padding hides the real ends from the loss, and the chat never stops.
    """
    from transformers import LlamaTokenizerFast, PreTrainedTokenizerFast

    if "eos_token" not in names:
        raise RecipeError(
            f"{path}: its tokenizer has no eos_token, so no answer would end: set it in tokenizer_config.json"
        )
    names = {**names, "pad_token": names.get("pad_token") or names.get("unk_token") or names["eos_token"]}
    if is_llama_kind(backend):
        specials = {role: names.get(role) for role in ROLES}
        return LlamaTokenizerFast(
            tokenizer_object=backend,
            legacy=True,
            add_bos_token=add_bos and "bos_token" in names,
            add_eos_token=add_eos,
            clean_up_tokenization_spaces=False,
            **specials,
        )
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        model_input_names=["input_ids", "attention_mask"],  # LLaMA's generate refuses token_type_ids
        clean_up_tokenization_spaces=False,
        **names,
    )


def is_llama_kind(backend: "tokenizers.Tokenizer") -> bool:
    """Whether it is a BPE over characters with byte pieces, as sentencepiece's, and not a byte-level one."""
    return bool(getattr(backend.model, "byte_fallback", False))


def check_size(backend: "tokenizers.Tokenizer", rows: int, path: Path) -> list[str]:
    """Raises RecipeError unless every token has one of the embedding's `rows`; returns a sentence if rows are left.

    Embeddings are padded for matrix units, to a multiple of 8 up to 1,024 by various programs. A larger surplus means
    that the tokenizer is another model's.
    """
    vocabulary = backend.get_vocab(with_added_tokens=True)
    size = len(vocabulary)
    if max(vocabulary.values(), default=0) >= rows or rows - size >= MOST_PADDING or not size:
        raise RecipeError(
            f"{path}: the tokenizer has {size:,} tokens, the embedding {rows:,} rows: "
            "it is the tokenizer of another model, put the right one beside the weights"
        )
    return [f"the embedding has {rows:,} rows for {size:,} tokens: the rest is padding"] if size < rows else []


def _sentencepiece_backend(model: bytes, path: Path) -> "tuple[tokenizers.Tokenizer, dict[str, str]]":
    """The tokenizers object and the names of bos, eos and unk of a sentencepiece model."""
    from tokenizers import AddedToken, Tokenizer, decoders
    from tokenizers.models import BPE
    from transformers.convert_slow_tokenizer import generate_merges

    proto = _proto(model, path)
    pieces = proto.pieces
    vocab = {piece.piece: index for index, piece in enumerate(pieces)}
    if len(vocab) != len(pieces):
        raise RecipeError(f"{path} holds a piece twice: it is damaged, take it from the checkpoint again")
    normal = {piece.piece: index for index, piece in enumerate(pieces) if piece.type == NORMAL}
    merges = generate_merges(normal, [(piece.piece, piece.score) for piece in pieces if piece.type == NORMAL])
    unknown = next((piece.piece for piece in pieces if piece.type == UNKNOWN), None)
    backend = Tokenizer(BPE(vocab, merges, unk_token=unknown, fuse_unk=True, byte_fallback=True))
    backend.normalizer = _normalizer(proto.normalizer_spec)
    steps = [decoders.Replace(SPACE, " "), decoders.ByteFallback(), decoders.Fuse()]
    if proto.normalizer_spec.add_dummy_prefix:
        steps.append(decoders.Strip(content=" ", left=1))
    backend.decoder = decoders.Sequence(steps)
    backend.add_special_tokens(
        [AddedToken(piece.piece, normalized=False) for piece in pieces if piece.type in (UNKNOWN, CONTROL)]
    )
    backend.add_tokens(
        [AddedToken(piece.piece, normalized=False, special=False) for piece in pieces if piece.type == USER_DEFINED]
    )
    names = {"unk_token": unknown} if unknown else {}
    for role, index in (("bos_token", proto.trainer_spec.bos_id), ("eos_token", proto.trainer_spec.eos_id)):
        if 0 <= index < len(pieces) and pieces[index].type == CONTROL:
            names[role] = pieces[index].piece
    return backend, names


def _proto(model: bytes, path: Path) -> Any:
    from google.protobuf.message import DecodeError
    from sentencepiece import sentencepiece_model_pb2

    if TIKTOKEN.match(model):
        raise RecipeError(
            f"{path} is the tiktoken file of LLaMA 3, expected a sentencepiece model: put tokenizer.json and "
            "tokenizer_config.json from the Hugging Face version of the model beside it"
        )
    proto = sentencepiece_model_pb2.ModelProto()  # type: ignore[attr-defined]
    try:
        proto.ParseFromString(model)
        check_texts((piece.piece for piece in proto.pieces), path)
    except (DecodeError, UnicodeDecodeError):
        raise RecipeError(f"{path} is not a sentencepiece model: take it from the checkpoint again") from None
    if not proto.pieces or proto.trainer_spec.model_type != proto.trainer_spec.BPE:
        raise RecipeError(f"{path} is not a sentencepiece BPE, which every LLaMA tokenizer.model is")
    if proto.normalizer_spec.precompiled_charsmap or not proto.trainer_spec.byte_fallback:
        raise RecipeError(
            f"{path} rewrites characters or has no byte pieces, unlike LLaMA's: it is another model's tokenizer"
        )
    return proto


def _normalizer(spec: Any) -> Any:
    """What sentencepiece does to a text before it looks for pieces."""
    from tokenizers import Regex, normalizers

    steps = []
    if spec.remove_extra_whitespaces:
        steps += [normalizers.Replace(Regex(r"\A +"), ""), normalizers.Replace(Regex(SPACES), " ")]
    if spec.add_dummy_prefix:
        steps.append(normalizers.Prepend(SPACE))
    steps.append(normalizers.Replace(" ", SPACE))
    if spec.remove_extra_whitespaces:
        steps.append(normalizers.Replace(Regex(rf"{SPACE}+\z"), ""))  # a literal U+2581 counts as a space too
    return normalizers.Sequence(steps)


def _added_tokens(folder: Path, settings: Mapping[str, Any]) -> dict[str, int]:
    """Token -> id of what a fine-tune added beside its tokenizer.model, in the two ways transformers writes it."""
    added = dict(_json(folder / "added_tokens.json"))
    decoder = settings.get("added_tokens_decoder")
    for index, token in (decoder if isinstance(decoder, dict) else {}).items():
        added[_content(token)] = int(index) if re.fullmatch("[0-9]{1,9}", index) else -1
    check_texts(added, folder)
    if not all(type(index) is int and index >= 0 for index in added.values()):
        raise RecipeError(f"{folder}: its added tokens have no ids: added_tokens.json is damaged")
    return added


def _add_tokens(
    backend: "tokenizers.Tokenizer", added: Mapping[str, int], rows: int, folder: Path, repairs: list[str]
) -> None:
    """Add the tokens that have a row of the embedding, each under its own id."""
    from tokenizers import AddedToken

    for token, index in sorted(added.items(), key=lambda item: item[1]):
        if index >= rows and backend.token_to_id(token) is None:
            repairs.append(
                f"the added token {snippet(token)} is left out: the embedding's {rows:,} rows have none for it"
            )
            continue
        backend.add_special_tokens([AddedToken(token, normalized=False)])
        if backend.token_to_id(token) != index:
            raise RecipeError(
                f"{folder}: the added token {snippet(token)} should have the id {index}, "
                f"its tokenizer.model leaves it {backend.token_to_id(token)}: they do not belong together"
            )


def _role_names(
    settings: Mapping[str, Any],
    special_map: Mapping[str, Any],
    defaults: Mapping[str, str],
    backend: "tokenizers.Tokenizer",
    repairs: list[str],
) -> dict[str, str]:
    """bos, eos, unk and pad as the settings name them; those that do not exist are the tokenizer's own."""
    names = {}
    for role in ROLES:
        named = _content(settings.get(role)) or _content(special_map.get(role))
        if named and backend.token_to_id(named) is not None:
            names[role] = named
        elif role in defaults and backend.token_to_id(defaults[role]) is not None:
            names[role] = defaults[role]
            if role in settings:
                repairs.append(f"tokenizer_config.json: {role} was {snippet(repr(named))}, now {defaults[role]!r}")
    return names


def _content(token: Any) -> str:
    """The text of a token that is written as a string or as an object."""
    text = token.get("content") if isinstance(token, dict) else token
    return text if isinstance(text, str) else ""


def _json(path: Path) -> dict[str, Any]:
    """A JSON object; empty if there is no such file."""
    return read_object(path) if path.is_file() else {}
