"""Tokens as text: whole characters, stop strings, white space."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from recipe.serving.text import TextStream, TokenBytes

pieces = st.lists(st.text(alphabet="ab #\n你é🙂"), max_size=12)


@given(pieces, st.lists(st.text(alphabet="ab#\n你", min_size=1, max_size=4), max_size=3), st.integers(1, 5))
def test_stream_equals_the_text_before_the_first_stop(parts, stops, size):
    data = "".join(parts).encode()
    stream = TextStream(stops)
    shown = [stream.push(data[start : start + size]) for start in range(0, len(data), size)] + [stream.close()]
    whole = data.decode()
    starts = {whole.find(stop) for stop in stops if stop in whole} or {len(whole)}
    assert "".join(shown) in {whole[:start] for start in starts}
    if len(stops) == 1:
        assert "".join(shown) == whole[: starts.pop()]


@given(pieces, st.integers(1, 5))
def test_strip_equals_python_strip(parts, size):
    data = "".join(parts).encode()
    stream = TextStream(strip=True)
    shown = [stream.push(data[start : start + size]) for start in range(0, len(data), size)] + [stream.close()]
    assert "".join(shown) == data.decode().strip()


def test_half_a_character_is_never_shown():
    stream = TextStream()
    assert [stream.push(bytes([byte])) for byte in "é你".encode()] == ["", "é", "", "", "你"]
    stream.push("你".encode()[:2])
    assert stream.close() == ""


def test_invalid_bytes_become_replacement_characters():
    stream = TextStream()
    assert stream.push(b"a\xffb") == "a\ufffdb"


@pytest.mark.parametrize("text", ["Hello there,  world!\n\n\tx", "你是谁？🙂 é", "</s> <unk> <0x41>"])
def test_bytes_join_to_what_the_tokenizer_decodes(text, tokenizer):
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    joined = b"".join(map(TokenBytes(tokenizer), ids)).decode()
    assert joined.removeprefix(" ") == tokenizer.decode(ids, skip_special_tokens=True)


@pytest.mark.parametrize("text", ["Hello there,  world!\n\n\tx", "你是谁？🙂 é"])
def test_byte_level_tokens_join_to_the_text(text):
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    backend.train_from_iterator(
        ["hello world"], trainers.BpeTrainer(special_tokens=["<|end|>"], initial_alphabet=alphabet)
    )
    fast = PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="<|end|>")
    known = TokenBytes(fast)
    ids = fast(text)["input_ids"]
    assert b"".join(map(known, [*ids, fast.eos_token_id])).decode() == text
    assert known.literal(fast.eos_token_id) == b"<|end|>"
