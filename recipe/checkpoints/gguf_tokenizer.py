"""The tokenizer in a GGUF's metadata: `llama` is a sentencepiece model in pieces, `gpt2` a byte-level BPE."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from recipe.checkpoints import tokenizer
from recipe.checkpoints.pieces import BYTE, BYTE_PIECE, CONTROL, NORMAL, UNKNOWN, UNUSED, USER_DEFINED, check_texts
from recipe.checkpoints.tokenizer import Tokenizer
from recipe.checkpoints.tokenizer_json import allowed_merges
from recipe.core.errors import RecipeError
from recipe.core.text import snippet

if TYPE_CHECKING:
    import gguf
    from transformers import PreTrainedTokenizerFast

IDS = {
    "bos_token": "tokenizer.ggml.bos_token_id",
    "eos_token": "tokenizer.ggml.eos_token_id",
    "unk_token": "tokenizer.ggml.unknown_token_id",
    "pad_token": "tokenizer.ggml.padding_token_id",
}
# LLaMA 3's, as its own tokenizer.json has it
LLAMA_3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
PRE_TOKENIZERS = ("gpt-2", "default", "llama-bpe", "smollm")  # of two with one meaning the first is written


def from_metadata(fields: Mapping[str, Any], rows: int, path: Path) -> Tokenizer:
    """The tokenizer for an embedding of that many rows. Raises RecipeError: unknown kind, damaged, or another size."""
    try:
        return _from_metadata(fields, rows, path)
    except (ValueError, TypeError, KeyError, IndexError, OverflowError) as error:
        raise RecipeError(f"{path} holds a damaged tokenizer ({snippet(error)}): download it again") from None


def _from_metadata(fields: Mapping[str, Any], rows: int, path: Path) -> Tokenizer:
    tokens = fields.get("tokenizer.ggml.tokens")
    if not isinstance(tokens, list) or not tokens:
        raise RecipeError(f"{path} holds no tokenizer, or a damaged one: convert the original checkpoint")
    types = list(fields.get("tokenizer.ggml.token_type", [NORMAL] * len(tokens)))
    if len(types) != len(tokens):
        raise RecipeError(f"{path} holds a damaged tokenizer: {len(types):,} types for {len(tokens):,} tokens")
    check_texts(tokens, path)
    kind = fields.get("tokenizer.ggml.model")
    if kind == "llama":
        scores = list(fields.get("tokenizer.ggml.scores", [0.0] * len(tokens)))
        ids = {role: fields.get(key, -1) for role, key in IDS.items()}
        model = _sentencepiece(
            list(zip(tokens, scores, types, strict=False)),
            ids,
            spaced=bool(fields.get("tokenizer.ggml.add_space_prefix", True)),
            squeezed=bool(fields.get("tokenizer.ggml.remove_extra_whitespaces", False)),
        )
        return tokenizer.from_sentencepiece(model, rows, path)
    if kind == "gpt2":
        backend = _byte_level(fields, tokens, types, path)
        repairs = tokenizer.check_size(backend, rows, path)
        names = {role: tokens[fields[key]] for role, key in IDS.items() if fields.get(key, len(tokens)) < len(tokens)}
        return Tokenizer(tokenizer.wrap(backend, names, path), repairs=repairs)
    raise RecipeError(f"{path}: its tokenizer is {snippet(repr(kind))}, expected 'llama' or 'gpt2'")


def pre_tokenizer(name: str) -> Any:
    """The pre-tokenizer that llama.cpp knows by this name (its `tokenizer.ggml.pre`); None for one not known here."""
    from tokenizers import Regex, pre_tokenizers

    match name:
        case "gpt-2" | "default":
            return pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
        case "llama-bpe":
            split = pre_tokenizers.Split(Regex(LLAMA_3), behavior="isolated")
            return pre_tokenizers.Sequence([split, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])
        case "smollm":
            digits = pre_tokenizers.Digits(individual_digits=True)
            return pre_tokenizers.Sequence([digits, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)])
    return None


def _byte_level(fields: Mapping[str, Any], tokens: list[str], types: list[int], path: Path) -> Any:
    from tokenizers import AddedToken, Tokenizer, decoders, processors
    from tokenizers.models import BPE

    name = fields.get("tokenizer.ggml.pre", "default")
    pre = pre_tokenizer(name)
    if pre is None:
        raise RecipeError(
            f"{path}: its pre-tokenizer is {snippet(repr(name))}, known are {', '.join(PRE_TOKENIZERS)}: "
            "convert the original checkpoint, which has a tokenizer.json"
        )
    vocab = {token: index for index, token in enumerate(tokens)}
    special = {token for token, kind in zip(tokens, types, strict=True) if kind == CONTROL}
    pairs = [tuple(merge.split(" ", 1)) for merge in fields.get("tokenizer.ggml.merges", [])]
    if len(vocab) != len(tokens) or any(len(pair) != 2 or not {*pair, "".join(pair)} <= vocab.keys() for pair in pairs):
        raise RecipeError(f"{path} holds a damaged tokenizer: its merges and its tokens do not fit together")
    backend = Tokenizer(BPE(vocab, allowed_merges(pairs, special), ignore_merges=name == "llama-bpe"))
    backend.pre_tokenizer = pre
    backend.decoder = decoders.ByteLevel()
    backend.add_special_tokens([AddedToken(token, normalized=False) for token in tokens if token in special])
    backend.add_tokens(
        [
            AddedToken(token, normalized=False, special=False)
            for token, kind in zip(tokens, types, strict=True)
            if kind == USER_DEFINED
        ]
    )
    bos = fields.get(IDS["bos_token"])
    if fields.get("tokenizer.ggml.add_bos_token", name == "llama-bpe") and isinstance(bos, int) and bos < len(tokens):
        backend.post_processor = processors.Sequence(
            [
                processors.ByteLevel(trim_offsets=False),
                processors.TemplateProcessing(
                    single=[tokens[bos], "$A"], pair=[tokens[bos], "$A", "$B"], special_tokens=[(tokens[bos], bos)]
                ),
            ]
        )
    else:
        backend.post_processor = processors.ByteLevel(trim_offsets=False)
    return backend


def _sentencepiece(pieces: list[tuple[str, float, int]], ids: dict[str, int], spaced: bool, squeezed: bool) -> bytes:
    """The sentencepiece model whose pieces these are; GGUF numbers the types of pieces as sentencepiece does."""
    from sentencepiece import sentencepiece_model_pb2

    proto = sentencepiece_model_pb2.ModelProto()  # type: ignore[attr-defined]
    for token, score, kind in pieces:
        proto.pieces.add(piece=token, score=score, type=kind)
    trainer, normalizer = proto.trainer_spec, proto.normalizer_spec
    trainer.model_type, trainer.byte_fallback, trainer.vocab_size = trainer.BPE, True, len(pieces)
    trainer.bos_id, trainer.eos_id, trainer.unk_id = ids["bos_token"], ids["eos_token"], max(ids["unk_token"], 0)
    normalizer.name, normalizer.add_dummy_prefix = "identity", spaced
    normalizer.remove_extra_whitespaces = squeezed
    return proto.SerializeToString()


def to_metadata(writer: "gguf.GGUFWriter", fast: "PreTrainedTokenizerFast", rows: int, folder: Path) -> None:
    """Put the tokenizer of `folder` into a GGUF, with a name for every one of the embedding's rows.

    Raises RecipeError if llama.cpp has no name for its pre-tokenizer.
    """
    data = json.loads(fast.backend_tokenizer.to_str())
    tokens = [f"[PAD{index}]" for index in range(rows)]
    types = [UNUSED] * rows
    for token, index in fast.get_vocab().items():
        tokens[index], types[index] = token, NORMAL
    for token in data["added_tokens"]:
        types[token["id"]] = CONTROL if token["special"] else USER_DEFINED
    if tokenizer.is_llama_kind(fast.backend_tokenizer):
        if fast.unk_token_id is not None:
            types[fast.unk_token_id] = UNKNOWN
        types = [BYTE if BYTE_PIECE.fullmatch(token) else kind for token, kind in zip(tokens, types, strict=True)]
        writer.add_tokenizer_model("llama")
        writer.add_tokenizer_pre("default")
        writer.add_token_list(tokens)
        writer.add_token_scores(_scores(tokens, data["model"]["merges"]))
        steps = json.dumps(data["normalizer"])
        writer.add_add_space_prefix("Prepend" in steps)
        writer.add_remove_extra_whitespaces(tokenizer.SPACES in steps)
    else:
        writer.add_tokenizer_model("gpt2")
        writer.add_tokenizer_pre(_pre_tokenizer_name(data["pre_tokenizer"], folder))
        writer.add_token_list(tokens)
        writer.add_token_merges([" ".join(pair) for pair in data["model"]["merges"]])
        writer.add_add_space_prefix(False)
    writer.add_token_types(types)
    writer.add_add_bos_token(fast("").input_ids[:1] == [fast.bos_token_id])
    writer.add_add_eos_token(False)
    for role, add in (
        ("bos", writer.add_bos_token_id),
        ("eos", writer.add_eos_token_id),
        ("unk", writer.add_unk_token_id),
        ("pad", writer.add_pad_token_id),
    ):
        if (index := getattr(fast, f"{role}_token_id")) is not None:
            add(index)


def _scores(tokens: list[str], merges: list[list[str]]) -> list[float]:
    """sentencepiece joins the pair with the best score first: a piece's score is how early it is merged, negated."""
    ranks: dict[str, int] = {}
    for pair in merges:
        ranks.setdefault("".join(pair), len(ranks) + 1)
    return [-float(ranks.get(token, 0)) for token in tokens]


def _pre_tokenizer_name(data: Any, folder: Path) -> str:
    from tokenizers import Tokenizer
    from tokenizers.models import BPE

    for name in PRE_TOKENIZERS:
        blank = Tokenizer(BPE())
        blank.pre_tokenizer = pre_tokenizer(name)
        if _meaning(json.loads(blank.to_str())["pre_tokenizer"]) == _meaning(data):
            return name
    raise RecipeError(
        f"{folder}: its pre-tokenizer is none of {', '.join(PRE_TOKENIZERS)}, the ones written to GGUF here"
    )


def _meaning(data: Any) -> Any:
    """A pre-tokenizer's JSON without what does not change the tokens."""
    if isinstance(data, dict):
        return {key: _meaning(value) for key, value in data.items() if key != "trim_offsets"}
    return [_meaning(entry) for entry in data] if isinstance(data, list) else data
