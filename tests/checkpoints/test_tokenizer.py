"""The fast tokenizer's ids against sentencepiece's, and what happens to broken tokenizers."""

import json
import random
from pathlib import Path

import pytest
import sentencepiece
from hypothesis import given, settings
from hypothesis import strategies as st
from sentencepiece import sentencepiece_model_pb2
from tokenizers import Tokenizer as Backend
from tokenizers.models import BPE
from transformers import AutoTokenizer, LlamaTokenizer, PreTrainedTokenizerFast

from recipe.checkpoints import tokenizer
from recipe.core.errors import RecipeError

HARD = [
    "",
    " ",
    "  ",
    " a",
    "a ",
    "a  b   c    d",
    "\n\n\tx\r\n",
    "    return 0",
    "</s>",
    "<s>",
    "<unk>",
    "a</s>b",
    "</s></s>",
    " <s></s> ",
    "<0x0A>",
    "\x00",
    "\u2581",
    "\u2581\u2581a",
    "日本語のテキスト",
    "中文 混合 English",
    "🙂👩‍👩‍👧🏽",
    "é e\u0301 ﬁ ①",
    "x = [i**2 for i in range(10)]  # why",
    "123456789",
    "\ufeffbom",
    "עברית العربية",
]


def ids(fast: PreTrainedTokenizerFast, text: str) -> list[int]:
    """As the corpus is tokenised: what looks like a special token in a text is text."""
    return list(fast(text, add_special_tokens=False, split_special_tokens=True).input_ids)


def check_same(
    fast: PreTrainedTokenizerFast, reference: sentencepiece.SentencePieceProcessor, texts: list[str]
) -> None:
    wrong = [text for text in texts if ids(fast, text) != reference.encode(text)]
    assert not wrong, (len(wrong), wrong[0], ids(fast, wrong[0]), reference.encode(wrong[0]))


def saved(made: tokenizer.Tokenizer, folder: Path) -> PreTrainedTokenizerFast:
    made.save(folder)
    return AutoTokenizer.from_pretrained(folder)


def strings(value: object) -> list[str]:
    if isinstance(value, str):
        return [value]
    children = value.values() if isinstance(value, dict) else value if isinstance(value, list) else []
    return [text for child in children for text in strings(child)]


@pytest.mark.parametrize("name", ["tokenizers/llama2_tokenizer.model", "models/stories260K/tok512.model"])
def test_real_tokenizers_give_sentencepieces_ids_on_real_text(assets: Path, tmp_path: Path, name: str) -> None:
    reference = sentencepiece.SentencePieceProcessor(str(assets / name))
    made = tokenizer.from_sentencepiece_file(assets / name, reference.vocab_size())
    fast = saved(made, tmp_path)
    texts = [
        text
        for file in sorted((assets / "conversations").glob("*.json"))
        for line in ([file.read_text()] if file.name != "belle_eval_set.json" else file.read_text().splitlines())
        for text in strings(json.loads(line))
    ]
    assert len(texts) > 5000
    check_same(fast, reference, HARD + random.Random(0).sample(texts, 1000))
    assert (fast.bos_token_id, fast.eos_token_id, fast.unk_token_id, fast.pad_token_id) == (1, 2, 0, 0)
    assert fast("x").input_ids[0] == 1
    assert fast.convert_tokens_to_ids("</s>") == 2


def test_a_tokenizer_trained_here(sentencepiece_model: bytes, tmp_path: Path) -> None:
    reference = sentencepiece.SentencePieceProcessor(model_proto=sentencepiece_model)
    fast = saved(tokenizer.from_sentencepiece(sentencepiece_model, 384, Path("t.model")), tmp_path)
    check_same(fast, reference, HARD)
    assert fast.decode(ids(fast, "a  b\n日本")) == "a  b\n日本"
    assert (tmp_path / "tokenizer.model").read_bytes() == sentencepiece_model
    assert [fast(text).input_ids for text in HARD] == [
        LlamaTokenizer(str(tmp_path / "tokenizer.model"), legacy=True)(text).input_ids for text in HARD
    ]


def test_text_never_merges_into_a_control_piece(sentencepiece_model: bytes, tmp_path: Path) -> None:
    """A vocabulary that holds `</s` and `>`: transformers' conversion merges them into the end of sequence."""
    proto = sentencepiece_model_pb2.ModelProto.FromString(sentencepiece_model)
    for piece in ("</", "</s"):
        if piece not in [known.piece for known in proto.pieces]:
            proto.pieces.add(piece=piece, score=-1.0, type=1)
    model, rows = proto.SerializeToString(), len(proto.pieces)
    reference = sentencepiece.SentencePieceProcessor(model_proto=model)
    check_same(tokenizer.from_sentencepiece(model, rows, Path("t.model")).fast, reference, HARD)

    (tmp_path / "tokenizer.model").write_bytes(model)
    theirs = AutoTokenizer.from_pretrained(tmp_path, tokenizer_type="llama", legacy=True)
    assert 2 in ids(theirs, "a</s>b")  # if this fails, it was mended there and `allowed_merges` may go
    theirs.save_pretrained(tmp_path / "taken")
    taken = tokenizer.from_folder(tmp_path / "taken", rows).fast
    assert not {0, 1, 2} & {*ids(taken, "a</s>b <s> <unk>")}


Pair = tuple[PreTrainedTokenizerFast, sentencepiece.SentencePieceProcessor]


@pytest.fixture(scope="module")
def pair(sentencepiece_model: bytes) -> Pair:
    made = tokenizer.from_sentencepiece(sentencepiece_model, 384, Path("t.model"))
    return made.fast, sentencepiece.SentencePieceProcessor(model_proto=sentencepiece_model)


@settings(max_examples=100, deadline=None)
@given(
    text=st.text(
        alphabet=st.one_of(st.sampled_from(" \n\tabthe<>/s\u2581日🙂0"), st.characters(codec="utf-8")), max_size=40
    )
)
def test_any_text_gives_sentencepieces_ids(pair: Pair, text: str) -> None:
    fast, reference = pair
    assert ids(fast, text) == reference.encode(text)


def test_the_well_known_broken_settings_are_repaired_and_said(sentencepiece_model: bytes, tmp_path: Path) -> None:
    (tmp_path / "tokenizer.model").write_bytes(sentencepiece_model)
    broken = {"bos_token": "", "eos_token": "", "unk_token": "", "tokenizer_class": "LLaMATokenizer"}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(broken))
    (tmp_path / "special_tokens_map.json").write_text("{}")
    made = tokenizer.from_folder(tmp_path, 384)
    assert (made.fast.bos_token, made.fast.eos_token, made.fast.unk_token) == ("<s>", "</s>", "<unk>")
    assert len(made.repairs) == 4
    assert any("LLaMATokenizer" in repair for repair in made.repairs)
    assert any("eos_token was ''" in repair for repair in made.repairs)


def test_whole_settings_are_not_called_repaired(hf_folder: Path) -> None:
    assert tokenizer.from_folder(hf_folder, 384).repairs == []


def test_added_tokens_count_and_keep_their_ids(hf_folder: Path) -> None:
    (hf_folder / "added_tokens.json").write_text(json.dumps({"<pad>": 384}))
    settings_ = json.loads((hf_folder / "tokenizer_config.json").read_text())
    (hf_folder / "tokenizer_config.json").write_text(json.dumps({**settings_, "pad_token": {"content": "<pad>"}}))
    made = tokenizer.from_folder(hf_folder, 385)
    assert (made.fast.pad_token_id, len(made.fast)) == (384, 385)
    (hf_folder / "added_tokens.json").write_text(json.dumps({"<pad>": 390}))
    with pytest.raises(RecipeError, match="should have the id 390"):
        tokenizer.from_folder(hf_folder, 391)


@pytest.mark.parametrize("rows", [300, 304, 320, 384, 383, 1024, 1323])
def test_more_rows_than_tokens_are_accepted_as_padding(rows: int) -> None:
    backend = Backend(BPE({f"t{index}": index for index in range(300)}, []))
    said = tokenizer.check_size(backend, rows, Path("t"))
    assert said == ([f"the embedding has {rows:,} rows for 300 tokens: the rest is padding"] if rows > 300 else [])


@pytest.mark.parametrize(("tokens", "rows"), [(300, 299), (300, 1324), (0, 8)])
def test_the_tokenizer_of_another_model_is_refused(tokens: int, rows: int) -> None:
    backend = Backend(BPE({f"t{index}": index for index in range(tokens)}, []))
    with pytest.raises(RecipeError, match="another model"):
        tokenizer.check_size(backend, rows, Path("t"))


def test_an_added_token_without_a_row_is_left_out_and_reported(hf_folder: Path) -> None:
    """LLaMA 2 as published: 32,000 rows, and a `<pad>` with the id 32,000."""
    plain = tokenizer.from_folder(hf_folder, 384).fast
    (hf_folder / "added_tokens.json").write_text(json.dumps({"<pad>": 384}))
    settings_ = json.loads((hf_folder / "tokenizer_config.json").read_text())
    (hf_folder / "tokenizer_config.json").write_text(json.dumps({**settings_, "pad_token": "<pad>"}))
    longer = tokenizer.from_folder(hf_folder, 385).fast
    for made in (tokenizer.from_folder(hf_folder, 384), _saved_again(longer, hf_folder, 384)):
        assert [said for said in made.repairs if "<pad> is left out" in said]
        assert len(made.fast) == 384 and made.fast.pad_token == "<unk>"
        assert ids(made.fast, "the <pad> fox") == ids(plain, "the <pad> fox")


def _saved_again(fast: PreTrainedTokenizerFast, folder: Path, rows: int) -> tokenizer.Tokenizer:
    """The same through tokenizer.json."""
    fast.save_pretrained(folder)
    return tokenizer.from_folder(folder, rows)


def test_the_tiktoken_file_of_llama_3_is_named(tmp_path: Path) -> None:
    (tmp_path / "tokenizer.model").write_bytes(b"IQ== 0\nIg== 1\nIw== 2\n")
    with pytest.raises(RecipeError, match=r"tiktoken file of LLaMA 3.*put tokenizer\.json and"):
        tokenizer.from_folder(tmp_path, 3)


def test_what_is_no_tokenizer_is_refused(hf_folder: Path, sentencepiece_model: bytes) -> None:
    with pytest.raises(RecipeError, match="not a sentencepiece model"):
        tokenizer.from_sentencepiece(b"\xff" * 100, 384, Path("t.model"))
    with pytest.raises(RecipeError, match="not a sentencepiece"):
        tokenizer.from_sentencepiece(b"", 384, Path("t.model"))
    with pytest.raises(RecipeError, match="another model"):
        tokenizer.from_sentencepiece(sentencepiece_model, 32000, Path("t.model"))
    (hf_folder / "tokenizer.json").write_text("{}")
    with pytest.raises(RecipeError, match=r"not a tokenizer\.json"):
        tokenizer.from_folder(hf_folder, 384)
    (hf_folder / "tokenizer.json").write_text(json.dumps({"model": {"type": "WordPiece"}}))
    with pytest.raises(RecipeError, match="expected the BPE"):
        tokenizer.from_folder(hf_folder, 384)
    (hf_folder / "tokenizer.json").unlink()
    (hf_folder / "tokenizer.model").unlink()
    with pytest.raises(RecipeError, match="neither"):
        tokenizer.from_folder(hf_folder, 384)
