"""Ids and labels, against FastChat's own and against sentencepiece."""

import itertools
import json
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from recipe.conversations.messages import Message
from recipe.conversations.templates import Span, Special, render
from recipe.conversations.tokens import IGNORED, encode, prompt_ids
from recipe.core.errors import RecipeError

HOSTILE = ["</s>", "<s>", "<unk>", "<|im_end|>", "<|im_start|>", "a</s>b <s>c", "</s></s>", " </s> ", "<<unk>s>"]


@pytest.fixture(scope="session")
def llama2(assets: Path, request: pytest.FixtureRequest):
    from transformers import LlamaTokenizerFast

    return LlamaTokenizerFast(
        vocab_file=str(assets / "tokenizers" / "llama2_tokenizer.model"), legacy=True, add_prefix_space=True
    )


@pytest.fixture(params=["llama_tokenizer", "byte_level_tokenizer"])
def tokenizer(request: pytest.FixtureRequest):
    return request.getfixturevalue(request.param)


def test_ids_and_labels_are_fastchats(assets: Path, llama2) -> None:
    raw = json.loads((assets / "conversations" / "fastchat_dummy_conversation.json").read_text(encoding="utf-8"))
    by_id = {record["id"]: record["conversations"] for record in raw}
    lines = (assets / "golden" / "vicuna_v1.1_labels.jsonl").read_text(encoding="utf-8").splitlines()
    assert lines
    for golden in map(json.loads, lines):
        roles = {"human": "user", "gpt": "assistant"}
        messages = [Message(roles[turn["from"]], turn["value"]) for turn in by_id[golden["id"]]]
        input_ids, labels = encode(llama2, render("vicuna_v1.1", messages))
        assert input_ids == golden["input_ids"]
        runs = [[int(trained), len(list(run))] for trained, run in itertools.groupby(x != IGNORED for x in labels)]
        assert runs == golden["loss_rle"]


def test_a_prompt_is_the_start_of_the_trained_sample(tokenizer) -> None:
    question, answer = Message("user", "Who are you?"), Message("assistant", "A test.")
    prompt = prompt_ids(tokenizer, "vicuna_v1.1", [question])
    input_ids, labels = encode(tokenizer, render("vicuna_v1.1", [question, answer]))
    assert input_ids[: len(prompt)] == prompt
    assert set(labels[: len(prompt)]) == {IGNORED}
    assert labels[len(prompt) :] == input_ids[len(prompt) :]


def test_the_dummy_prefix_stands_at_starts_and_after_special_tokens_only(llama_tokenizer) -> None:
    ids, _ = encode(
        llama_tokenizer,
        [Special("bos", False), Span("a", False), Span("a", False), Special("eos", True), Span("a", True)],
    )
    assert llama_tokenizer.convert_ids_to_tokens(ids) == ["<s>", "▁a", "a", "</s>", "▁a"]


def test_bos_only_where_the_tokenizer_adds_one(llama_tokenizer, byte_level_tokenizer) -> None:
    pieces = [Special("bos", False), Span("a", False)]
    assert encode(llama_tokenizer, pieces)[0][0] == llama_tokenizer.bos_token_id
    assert encode(byte_level_tokenizer, pieces)[0] == byte_level_tokenizer("a")["input_ids"]


@pytest.mark.parametrize("text", HOSTILE)
def test_a_special_token_written_out_is_plain_text(tokenizer, text: str) -> None:
    ids, _ = encode(tokenizer, [Span(text, True)])
    assert not set(ids) & set(tokenizer.all_special_ids)
    assert tokenizer.decode(ids).strip() == text.strip()


@pytest.mark.parametrize("text", [*HOSTILE, "x </s>\n<s> 你好 \U0001f600  \t  end"])
def test_ids_of_text_are_sentencepieces(llama_tokenizer, sentencepiece_processor, text: str) -> None:
    assert encode(llama_tokenizer, [Span(text, False)])[0] == sentencepiece_processor.encode(text)


def test_the_tokenizer_under_test_could_merge_an_eos(llama_tokenizer) -> None:
    """Without the guard, this conversion does build `</s>` from characters: the tests above can fail."""
    merges = json.loads(llama_tokenizer.backend_tokenizer.to_str())["model"]["merges"]
    assert any("".join(merge) == "</s>" for merge in merges)


def test_real_text_is_encoded_as_sentencepiece_does(assets: Path, llama2) -> None:
    import sentencepiece

    reference = sentencepiece.SentencePieceProcessor(model_file=str(assets / "tokenizers" / "llama2_tokenizer.model"))
    raw = json.loads((assets / "conversations" / "gitcloner_test.json").read_text(encoding="utf-8"))
    texts = [turn["value"] for record in raw for turn in record["conversations"]] + HOSTILE
    for text in texts:
        assert encode(llama2, [Span(text, False)])[0] == reference.encode(text)


def test_the_users_tokenizer_is_left_as_it_was(tokenizer) -> None:
    before = tokenizer.backend_tokenizer.to_str()
    encode(tokenizer, [Span("x </s>", True)])
    assert tokenizer.backend_tokenizer.to_str() == before
    assert not tokenizer.backend_tokenizer.encode_special_tokens
    eos = tokenizer.eos_token
    assert tokenizer.eos_token_id in tokenizer(f"x{eos}")["input_ids"]


def test_a_slow_tokenizer_is_refused() -> None:
    class Slow:
        eos_token_id = 2

    with pytest.raises(RecipeError, match="expected a fast one"):
        encode(Slow(), [])


# sentencepiece writes a space as U+2581, so it cannot tell the two apart; surrogates are no text.
texts = st.one_of(
    st.text(st.characters(exclude_categories=("Cs",), exclude_characters="▁"), max_size=30),
    st.lists(st.sampled_from([*HOSTILE, " ", "\n", "USER:", "ASSISTANT:", "你好", "x"]), max_size=5).map("".join),
)


@given(pairs=st.lists(st.tuples(texts, texts), min_size=1, max_size=4), system=st.none() | texts)
@settings(max_examples=150, deadline=None)
def test_decoded_labels_are_exactly_the_answers(
    llama_tokenizer, byte_level_tokenizer, sentencepiece_processor, pairs, system
) -> None:
    messages = [] if system is None else [Message("system", system)]
    for question, answer in pairs:
        messages += [Message("user", question), Message("assistant", answer)]
    decoders = {
        llama_tokenizer: lambda ids: " " + sentencepiece_processor.decode(ids),  # it drops the first space
        byte_level_tokenizer: byte_level_tokenizer.decode,
    }
    for tokenizer, decode in decoders.items():
        input_ids, labels = encode(tokenizer, render("vicuna_v1.1", messages))
        assert all(label in (IGNORED, token) for label, token in zip(labels, input_ids, strict=True))
        trained = [label for label in labels if label != IGNORED]
        answers: list[list[int]] = [[]]
        for label in trained:
            if label == tokenizer.eos_token_id:
                answers.append([])
            else:
                answers[-1].append(label)
        assert answers.pop() == []  # every answer is followed by EOS
        assert [decode(ids) for ids in answers] == [f" {answer}" for _, answer in pairs]


@pytest.mark.parametrize("kind", ["metaspace", "byte level with prefix", "prepend"])
def test_a_span_behind_a_span_has_no_prefix_whoever_adds_it(kind: str) -> None:
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    space = "Ġ" if "byte" in kind else "▁"
    vocabulary = {piece: index for index, piece in enumerate(["</s>", space, "a", f"{space}a"])}
    backend = Tokenizer(models.BPE(vocabulary, [(space, "a")]))
    if kind == "metaspace":  # what transformers builds where `legacy` is false: a prefix at the very start alone
        backend.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first")
    elif kind == "prepend":
        backend.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    else:
        backend.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.ByteLevel(add_prefix_space=True)])
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="</s>")
    pieces = [Span("a", False), Span("a", False), Special("eos", True), Span("", False), Span("a", True)]
    ids, _ = encode(tokenizer, pieces)
    after_special = "a" if kind == "metaspace" else f"{space}a"
    assert tokenizer.convert_ids_to_tokens(ids) == [f"{space}a", "a", "</s>", after_special]
    assert ids == tokenizer("aa</s>a")["input_ids"]


def test_an_eos_that_is_an_ordinary_added_token_is_special_all_the_same(byte_level_tokenizer) -> None:
    from tokenizers import AddedToken, Tokenizer
    from transformers import PreTrainedTokenizerFast

    backend = Tokenizer.from_str(byte_level_tokenizer.backend_tokenizer.to_str())
    backend.add_tokens([AddedToken("<end>", special=False)])
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="<end>")
    assert tokenizer.eos_token_id in backend.encode("x<end>").ids
    assert tokenizer.eos_token_id not in encode(tokenizer, [Span("x<end>", True)])[0]


def test_a_model_that_is_no_bpe_is_refused() -> None:
    from tokenizers import Tokenizer, models
    from transformers import PreTrainedTokenizerFast

    words = PreTrainedTokenizerFast(tokenizer_object=Tokenizer(models.WordLevel({"</s>": 0}, "</s>")), eos_token="</s>")
    with pytest.raises(RecipeError, match="model is WordLevel; expected BPE"):
        encode(words, [])
