"""The tokenizer in a GGUF's metadata: `llama` is a sentencepiece model in pieces, `gpt2` a byte-level BPE."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from recipe.checkpoints import tokenizer
from recipe.checkpoints.source import printable
from recipe.checkpoints.tokenizer import CONTROL, USER_DEFINED, Tokenizer
from recipe.errors import RecipeError

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
PRE_TOKENIZERS = ("gpt-2", "default", "llama-bpe", "smollm")  # the first with a given meaning is the one written


def from_metadata(fields: Mapping[str, Any], rows: int, where: Path) -> Tokenizer:
    """The tokenizer for an embedding of that many rows. Raises RecipeError: unknown kind, damaged, or another size."""
    tokens = fields.get("tokenizer.ggml.tokens")
    types = fields.get("tokenizer.ggml.token_type", [tokenizer.NORMAL] * len(tokens or []))
    if not isinstance(tokens, list) or not tokens or len(types) != len(tokens):
        raise RecipeError(f"{where} holds no tokenizer, or a damaged one: convert the original checkpoint")
    kind = fields.get("tokenizer.ggml.model")
    if kind == "llama":
        scores = fields.get("tokenizer.ggml.scores", [0.0] * len(tokens))
        spaced = bool(fields.get("tokenizer.ggml.add_space_prefix", True))
        ids = {role: fields.get(key, -1) for role, key in IDS.items()}
        return tokenizer.from_sentencepiece(_sentencepiece(tokens, scores, types, ids, spaced), rows, where)
    if kind == "gpt2":
        backend = _byte_level(fields, tokens, types, where)
        tokenizer.check_size(backend, rows, where)
        names = {role: tokens[fields[key]] for role, key in IDS.items() if fields.get(key, len(tokens)) < len(tokens)}
        return Tokenizer(tokenizer.wrap(backend, names, where))
    raise RecipeError(f"{where}: its tokenizer is {printable(repr(kind))}, expected 'llama' or 'gpt2'")


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


def _byte_level(fields: Mapping[str, Any], tokens: list[str], types: list[int], where: Path) -> Any:
    from tokenizers import AddedToken, Tokenizer, decoders, processors
    from tokenizers.models import BPE

    name = fields.get("tokenizer.ggml.pre", "default")
    pre = pre_tokenizer(name)
    if pre is None:
        raise RecipeError(
            f"{where}: its pre-tokenizer is {printable(repr(name))}, known are {', '.join(PRE_TOKENIZERS)}: "
            "convert the original checkpoint, which has a tokenizer.json"
        )
    vocab = {token: index for index, token in enumerate(tokens)}
    special = {token for token, kind in zip(tokens, types, strict=True) if kind == CONTROL}
    pairs = [tuple(merge.split(" ", 1)) for merge in fields.get("tokenizer.ggml.merges", [])]
    if len(vocab) != len(tokens) or any(len(pair) != 2 or not {*pair, "".join(pair)} <= vocab.keys() for pair in pairs):
        raise RecipeError(f"{where} holds a damaged tokenizer: its merges and its tokens do not fit together")
    backend = Tokenizer(BPE(vocab, tokenizer.allowed_merges(pairs, special), ignore_merges=name == "llama-bpe"))
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


def _sentencepiece(
    tokens: list[str], scores: list[float], types: list[int], ids: dict[str, int], spaced: bool
) -> bytes:
    """The sentencepiece model whose pieces these are; GGUF numbers the types of pieces as sentencepiece does."""
    from sentencepiece import sentencepiece_model_pb2

    proto = sentencepiece_model_pb2.ModelProto()  # type: ignore[attr-defined]
    for token, score, kind in zip(tokens, scores, types, strict=True):
        proto.pieces.add(piece=token, score=score, type=kind)
    trainer, normalizer = proto.trainer_spec, proto.normalizer_spec
    trainer.model_type, trainer.byte_fallback, trainer.vocab_size = trainer.BPE, True, len(tokens)
    trainer.bos_id, trainer.eos_id, trainer.unk_id = ids["bos_token"], ids["eos_token"], max(ids["unk_token"], 0)
    normalizer.name, normalizer.add_dummy_prefix = "identity", spaced
    normalizer.remove_extra_whitespaces = False
    return proto.SerializeToString()
