"""The model as stages use it, against transformers and peft themselves."""

import json
import shutil

import pytest
import torch
from datasets import Dataset
from torch.nn import functional as F

from recipe.checkpoints import tokenizer_json
from recipe.conversations.messages import Message
from recipe.conversations.tokens import prompt_ids
from recipe.core.config import Lora
from recipe.core.errors import RecipeError
from recipe.model.adapter import ADAPTER_FILE, add_adapter, check_adapter, load_adapter
from recipe.model.generate import generate
from recipe.model.likelihood import pack_token_nll, trained_nll, validation_nll
from recipe.model.load import load_base, load_tokenizer
from recipe.model.prepare import prepare_for_training
from recipe.pascal.int8 import Int8Linear
from recipe.training import dataset

CPU = torch.device("cpu")
LORA = Lora(rank=4, alpha=8, dropout=0.0, target_modules=("q_proj", "down_proj"))


@pytest.fixture
def rows(tiny_base, tiny_corpus):
    rows = dataset.encode_file(tiny_corpus / "train.jsonl", load_tokenizer(tiny_base), "vicuna_v1.1")
    return rows.select(range(3))


@pytest.fixture
def batch(rows):
    return dataset.collate(list(rows))


@pytest.fixture(params=["each-whole", "prefix-once"])
def packed(request, rows):
    """The same conversations, the system prompt in each or in the first only."""
    return dataset.collate(list(rows), dataset.common_prefix(rows) if request.param == "prefix-once" else 0)


@pytest.fixture
def reference(tiny_base):
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(tiny_base, torch_dtype=torch.float32).eval()


def test_fp32_gives_transformers_own_logits(tiny_base, batch, reference):
    ours = load_base(tiny_base, "fp32", CPU)
    ids = batch["input_ids"][:, : batch["lengths"][0]]
    torch.testing.assert_close(ours(input_ids=ids).logits, reference(input_ids=ids).logits)
    assert not any(parameter.requires_grad for parameter in ours.parameters())


def test_int8_replaces_the_decoders_linear_layers_and_stays_close(tiny_base, batch, reference):
    ours = load_base(tiny_base, "int8", CPU)
    quantised = [name for name, module in ours.named_modules() if isinstance(module, Int8Linear)]
    assert len(quantised) == 2 * 7 and "lm_head" not in quantised
    expected = reference(input_ids=batch["input_ids"]).logits
    error = (ours(input_ids=batch["input_ids"]).logits - expected).norm() / expected.norm()
    assert 0 < error < 0.03


def nll_of(reference, row):
    """transformers' own loss of one conversation, summed."""
    logits, targets = reference(input_ids=torch.tensor([row["input_ids"]])).logits[0, :-1], row["labels"][1:]
    return F.cross_entropy(logits, torch.tensor(targets), ignore_index=-100, reduction="sum")


def test_a_pack_is_its_conversations_side_by_side(rows, packed):
    ids, positions, labels = (packed[name][0].tolist() for name in ("input_ids", "position_ids", "labels"))
    assert packed["lengths"] == [len(row["input_ids"]) for row in rows] and len(packed["lengths"]) == 3
    beginning, at = ids[: packed["prefix"]], 0
    for number, row in enumerate(rows):
        start = packed["prefix"] if number else 0
        place = slice(at, at + len(row["input_ids"]) - start)
        assert beginning[:start] + ids[place] == row["input_ids"] and row["input_ids"][0] == 1
        assert positions[place] == list(range(start, len(row["input_ids"])))
        assert labels[place][0] == -100 and labels[place][1:] == row["labels"][start + 1 :]
        at = place.stop
    assert len(ids) == len(positions) == len(labels) == at


def test_the_shared_beginning_is_the_system_prompt_and_never_predicts_a_trained_token(rows, tiny_base):
    shared = dataset.common_prefix(rows)
    text = load_tokenizer(tiny_base).decode(rows[0]["input_ids"][:shared])
    assert text.startswith("<s> A chat between a curious user and an artificial") and "USER:" in text
    one = rows.select([0])
    trained = next(place for place, label in enumerate(one[0]["labels"]) if label != -100)
    assert dataset.common_prefix(one) == trained - 1
    bare = Dataset.from_list([{"input_ids": [1, 2, 3], "labels": [-100, 2, 3]}] * 2)
    assert dataset.common_prefix(bare) == 0
    apart = Dataset.from_list([{"input_ids": [1, 2, x, 9, 9], "labels": [-100] * 4 + [9]} for x in (3, 3, 4)])
    assert dataset.common_prefix(apart) == 2


def test_trained_nll_is_cross_entropy_over_trained_tokens(tiny_base, rows, packed, reference):
    """Against transformers itself with eager attention and whole logits, one conversation at a time."""
    nll, count = trained_nll(load_base(tiny_base, "fp32", CPU), packed)
    torch.testing.assert_close(nll, sum((nll_of(reference, row) for row in rows), torch.zeros(())))
    assert count == sum(label != -100 for row in rows for label in row["labels"]) < sum(packed["lengths"])


def test_each_conversation_has_its_own_token_losses(tiny_base, rows, packed, reference):
    found = pack_token_nll(load_base(tiny_base, "fp32", CPU), packed)
    for one, row in zip(found, rows, strict=True):
        assert len(one) == sum(label != -100 for label in row["labels"])
        assert sum(one) == pytest.approx(nll_of(reference, row).item(), rel=1e-4)


def test_the_gradients_of_a_pack_are_those_of_transformers_own_loss(tiny_base, rows, packed, reference):
    """Packing, attention, loss and recomputation at once change nothing: LoRA on every kind of layer, fp32."""
    from peft import LoraConfig, get_peft_model

    lora = Lora(rank=4, alpha=8, dropout=0.0, target_modules=("q_proj", "v_proj", "o_proj", "down_proj"))
    ours = add_adapter(load_base(tiny_base, "fp32", CPU), lora, seed=0).train()
    settings = LoraConfig(r=4, lora_alpha=8, lora_dropout=0.0, target_modules=list(lora.target_modules))
    theirs = get_peft_model(reference.requires_grad_(False), settings)
    ours_by_name = {name: p for name, p in ours.named_parameters() if p.requires_grad}
    theirs_by_name = {name: p for name, p in theirs.named_parameters() if p.requires_grad}
    with torch.no_grad():
        for name, parameter in ours_by_name.items():
            parameter.normal_(std=0.1)
            theirs_by_name[name].copy_(parameter)
    prepare_for_training(ours, recompute=1)
    trained_nll(ours, packed)[0].backward()
    for row in rows:
        nll_of(theirs, row).backward()
    assert len(ours_by_name) == 2 * 4 * 2
    for name, parameter in ours_by_name.items():
        torch.testing.assert_close(parameter.grad, theirs_by_name[name].grad, rtol=1e-4, atol=1e-5)


def test_training_takes_only_calls_that_torch_2_0_can_send_to_its_sm_60_kernel(tiny_base, packed, monkeypatch):
    """No mask, no dropout, no scale, whatever transformers, peft and recomputation do on the way."""
    calls, real = [], F.scaled_dot_product_attention

    def spy(*args, **kwargs):
        calls.append((len(args), kwargs))
        return real(*args, **kwargs)

    monkeypatch.setattr(F, "scaled_dot_product_attention", spy)
    lora = Lora(rank=4, alpha=8, dropout=0.1, target_modules=("q_proj", "v_proj"))
    tuned = add_adapter(load_base(tiny_base, "int8", CPU), lora, seed=0).train()
    prepare_for_training(tuned)
    trained_nll(tuned, packed)[0].backward()
    assert calls == [(3, {"is_causal": True})] * 2 * 3, "two layers, three conversations"


def test_a_batch_without_a_trained_token_is_refused(tiny_base, batch):
    batch["labels"].fill_(-100)
    with pytest.raises(RecipeError, match="without a trained token"):
        trained_nll(load_base(tiny_base, "fp32", CPU), batch)


def test_validation_leaves_training_mode_as_it_was(tiny_base, batch):
    tuned = add_adapter(load_base(tiny_base, "fp32", CPU), LORA, seed=0)
    tuned.train()
    one = validation_nll(tuned, [batch])
    assert tuned.training and validation_nll(tuned, [batch]) == one


def test_the_seed_decides_the_adapter_and_b_is_zero(tiny_base):
    def adapter(seed):
        tuned = add_adapter(load_base(tiny_base, "int8", CPU), LORA, seed)
        return {name: p.detach().clone() for name, p in tuned.named_parameters() if p.requires_grad}

    one, same, other = adapter(1), adapter(1), adapter(2)
    assert len(one) == 2 * 2 * 2 and all(p.dtype == torch.float32 for p in one.values())
    assert all(torch.equal(one[name], same[name]) for name in one)
    assert any(not torch.equal(one[name], other[name]) for name in one)
    assert all(p.eq(0).all() for name, p in one.items() if "lora_B" in name)


@pytest.mark.parametrize("name", ["qproj", "lm_head"])
def test_an_unknown_target_module_names_what_there_is(tiny_base, name):
    with pytest.raises(RecipeError, match=rf"has no {name}, .* has down_proj, gate_proj"):
        add_adapter(load_base(tiny_base, "int8", CPU), Lora(target_modules=(name,)), 0)


@pytest.fixture
def adapter(tiny_base, tmp_path):
    tuned = add_adapter(load_base(tiny_base, "int8", CPU), LORA, seed=0)
    with torch.no_grad():
        for name, parameter in tuned.named_parameters():
            if "lora_B" in name:
                parameter.normal_(std=0.1)
    tuned.save_pretrained(tmp_path / "adapter")
    return tmp_path / "adapter"


def change(adapter, edit):
    from safetensors.torch import load_file, save_file

    tensors = load_file(adapter / ADAPTER_FILE)
    edit(tensors)
    save_file(tensors, adapter / ADAPTER_FILE)


def test_a_whole_adapter_passes(adapter):
    assert len(check_adapter(adapter)) == 8


@pytest.mark.parametrize(
    ("edit", "said"),
    [
        (lambda t: [t.pop(k) for k in list(t)], "not a whole adapter"),
        (lambda t: t.pop(next(k for k in t if "lora_B" in k)), "an A without its B"),
        (lambda t: [t.pop(k) for k in list(t) if "down_proj" in k], "nothing for down_proj"),
        (lambda t: t[next(iter(t))].fill_(float("nan")), "holds inf or NaN"),
        (lambda t: [t[k].zero_() for k in t if "lora_B" in k], "every B is zero"),
    ],
)
def test_a_broken_adapter_is_named(adapter, edit, said):
    change(adapter, edit)
    with pytest.raises(RecipeError, match=said):
        check_adapter(adapter)


def test_no_adapter_at_all(tmp_path):
    with pytest.raises(RecipeError, match="did not finish"):
        check_adapter(tmp_path)


def test_a_folder_that_was_never_converted(tmp_path):
    for call in (lambda: load_base(tmp_path, "int8", CPU), lambda: load_tokenizer(tmp_path)):
        with pytest.raises(RecipeError, match=r"not a converted model .*recipe\.convert"):
            call()


@pytest.mark.parametrize("damage", ["absent", "cut"])
def test_a_folder_without_a_whole_tokenizer(tiny_base, tmp_path, damage):
    folder = shutil.copytree(tiny_base, tmp_path / "half")
    for file in folder.glob("tokenizer*"):
        if damage == "absent":
            file.unlink()
        else:
            file.write_bytes(file.read_bytes()[:100])
    with pytest.raises(RecipeError, match=r"half.* cannot be (read|loaded) .*: convert or merge again"):
        load_tokenizer(folder)


def test_weights_that_do_not_fit_their_config(tiny_base, tmp_path):
    from safetensors.torch import load_file, save_file

    folder = tmp_path / "base"
    shutil.copytree(tiny_base, folder)
    file = folder / "model.safetensors"
    tensors = load_file(file)
    norm = tensors.pop("model.norm.weight")
    save_file(tensors, file)
    with pytest.raises(RecipeError, match=r"lacks model\.norm\.weight"):
        load_base(folder, "int8", CPU)
    save_file({**tensors, "model.norm.weight": norm[1:].clone()}, file)
    with pytest.raises(RecipeError, match=r"model\.norm\.weight does not fit .*\[47\], expected \[48\]"):
        load_base(folder, "int8", CPU)
    save_file({**tensors, "model.norm.weight": norm, "model.extra.weight": norm.clone()}, file)
    with pytest.raises(RecipeError, match=r"model\.extra\.weight does not fit"):
        load_base(folder, "int8", CPU)


def test_answers_are_transformers_own_greedy_ones_whatever_the_batch(tiny_base, reference):
    tokenizer = load_tokenizer(tiny_base)
    questions = ["Who are you?", "Which colour is the sky, and why is it not green today?"]
    prompts = [prompt_ids(tokenizer, "vicuna_v1.1", [Message("user", question)]) for question in questions]
    ours = load_base(tiny_base, "fp32", CPU)
    expected = []
    for prompt in prompts:
        ids = torch.tensor([prompt])
        out = reference.generate(
            ids, attention_mask=torch.ones_like(ids), max_new_tokens=12, do_sample=False, pad_token_id=2
        )
        expected.append(tokenizer.decode(out[0, len(prompt) :], skip_special_tokens=True).strip())
    assert generate(ours, tokenizer, prompts, 12) == expected
    assert [generate(ours, tokenizer, [prompt], 12)[0] for prompt in prompts] == expected


def test_an_answer_stops_at_eos(tiny_base):
    tokenizer = load_tokenizer(tiny_base)
    ours = load_base(tiny_base, "fp32", CPU)
    prompt = prompt_ids(tokenizer, "vicuna_v1.1", [Message("user", "Hello")])
    assert generate(ours, tokenizer, [prompt], 12) != [""]
    with torch.no_grad():  # make EOS the only thing it can say
        ours.lm_head.weight.zero_()
        ours.lm_head.weight[tokenizer.eos_token_id] = 1.0
        ours.model.norm.weight.abs_()
    hidden = ours.model(input_ids=torch.tensor([prompt])).last_hidden_state[0, -1]
    ours.lm_head.weight.data[tokenizer.eos_token_id] = hidden.sign()
    assert generate(ours, tokenizer, [prompt], 12) == [""]


def test_a_tokenizer_that_brings_code_is_neither_run_nor_asked_about(tiny_base, tmp_path, monkeypatch):
    folder = shutil.copytree(tiny_base, tmp_path / "theirs")
    settings = {"tokenizer_class": "Theirs", "auto_map": {"AutoTokenizer": ["theirs.Theirs", "theirs.Theirs"]}}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    (folder / "theirs.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\nclass Theirs: ...\n")
    monkeypatch.setattr("builtins.input", lambda *_: "y")
    with pytest.raises(RecipeError, match="cannot be read"):
        load_tokenizer(folder)
    assert not (tmp_path / "ran").exists()


def test_a_tokenizer_that_would_end_the_process_is_one_sentence(tiny_base, tmp_path, monkeypatch):
    """Aborts and panics of the tokenizers library: it is loaded in a process of its own first."""
    folder = shutil.copytree(tiny_base, tmp_path / "theirs")
    file = folder / "tokenizer.json"
    file.write_text(json.dumps(json.loads(file.read_text())))  # a file that no earlier test has tried
    monkeypatch.setattr(tokenizer_json, "TRIAL", "import os; os.abort()")
    with pytest.raises(RecipeError, match=r"json cannot be loaded \(loading it ended with status -6\): convert or"):
        load_tokenizer(folder)


def test_only_what_describes_a_llama_is_taken_from_a_config(tiny_base, tmp_path):
    folder = shutil.copytree(tiny_base, tmp_path / "theirs")
    settings = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(settings | {"num_labels": 10**9, "torchscript": True}))
    config = load_base(folder, "fp32", CPU).config
    assert len(config.id2label) == 2 and not config.torchscript
    (folder / "config.json").write_text(json.dumps(settings | {"num_hidden_layers": 10**9}))
    with pytest.raises(RecipeError, match="num_hidden_layers is 1000000000, expected"):
        load_base(folder, "fp32", CPU)


def test_an_adapter_that_no_merge_could_apply_is_not_loaded(trained_run, tiny_base):
    _, run = trained_run
    file = run.adapter / "adapter_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"use_dora": True}))
    with pytest.raises(RecipeError, match="sets use_dora"):
        load_adapter(load_base(tiny_base, "fp32", CPU), run.adapter)
