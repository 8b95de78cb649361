"""Merged weights against peft and transformers themselves, and what is left when something is wrong."""

import dataclasses
import json
import shutil
from pathlib import Path

import pytest
import torch
from transformers import LlamaConfig

from recipe import evaluate, merge
from recipe.checkpoints import gguf_out, hf, hf_config, merging
from recipe.checkpoints.adapter import read_deltas
from recipe.checkpoints.safetensors import open_folder
from recipe.conversations.messages import Message
from recipe.conversations.tokens import prompt_ids
from recipe.core.cli import entry
from recipe.core.errors import RecipeError
from recipe.core.manifest import read_manifest, verify, write_manifest
from recipe.core.run import Run
from recipe.model.adapter import ADAPTER_FILE
from recipe.model.load import read_tensors
from recipe.model.stream import stream_logits

IDS = torch.tensor([[1, 20, 31, 42, 53, 64, 75, 86, 97]])


@pytest.fixture
def trained(trained_run):
    config, run = trained_run
    return config, run.folder


def peft_logits(config, folder):
    """Base plus adapter as their own libraries run it, in fp32."""
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    base = AutoModelForCausalLM.from_pretrained(config.base.path, torch_dtype=torch.float32)
    return PeftModel.from_pretrained(base, folder / "adapter").eval()(input_ids=IDS).logits.detach()


def test_merged_weights_load_in_plain_transformers_with_the_logits_of_base_plus_adapter(trained):
    from transformers import AutoModelForCausalLM, AutoTokenizer

    config, folder = trained
    manifest = merge.run(config, folder, "hf")
    merged = AutoModelForCausalLM.from_pretrained(folder / "merged", torch_dtype=torch.float32).eval()
    expected = peft_logits(config, folder)
    error = (merged(input_ids=IDS).logits - expected).abs().max() / expected.std()
    assert error < merge.TOLERANCE and manifest["results"]["logit_error"] < merge.TOLERANCE
    base = AutoModelForCausalLM.from_pretrained(config.base.path, torch_dtype=torch.float32).eval()
    assert (base(input_ids=IDS).logits - expected).abs().max() / expected.std() > 10 * error, "the adapter must matter"
    assert AutoTokenizer.from_pretrained(folder / "merged").eos_token == "</s>"
    weights = dict(read_tensors(folder / "merged"))
    assert {tensor.dtype for tensor in weights.values()} == {torch.float16}
    assert verify(folder / "merged") == []


def test_streamed_logits_are_those_of_peft(trained):
    config, folder = trained
    base = Path(config.base.path)
    deltas = read_deltas(folder / "adapter")
    streamed = stream_logits(LlamaConfig.from_pretrained(base), open_folder(base), IDS[0].tolist(), deltas)
    torch.testing.assert_close(streamed, peft_logits(config, folder)[0], rtol=1e-4, atol=1e-4)


def test_the_check_renders_the_template_of_the_run(trained, monkeypatch):
    config, folder = trained
    config = dataclasses.replace(config, corpus=dataclasses.replace(config.corpus, template="no_such_template"))
    with pytest.raises(RecipeError, match="no_such_template"):
        merge.run(config, folder, "hf")
    assert not (folder / "merged").exists()


def test_merged_files_are_readable_as_the_umask_says(trained):
    config, folder = trained
    merge.run(config, folder, "hf")
    expected = (folder / "config.toml").stat().st_mode
    assert {file.stat().st_mode for file in (folder / "merged").iterdir()} == {expected}


def test_a_second_merge_is_skipped_and_a_changed_adapter_is_refused(trained, capsys):
    config, folder = trained
    merge.run(config, folder, "hf")
    capsys.readouterr()
    merge.run(config, folder, "hf")
    assert "already merged" in capsys.readouterr().err
    with open(folder / "adapter" / ADAPTER_FILE, "r+b") as file:
        file.seek(-4, 2)
        file.write(b"\0\0\0\1")
    with pytest.raises(RecipeError, match="was altered"):
        merge.run(config, folder, "hf")


def test_another_base_is_refused(trained, tmp_path):
    config, folder = trained
    other = tmp_path / "other"
    shutil.copytree(config.base.path, other)
    (other / "extra.txt").write_text("x")
    write_manifest(other, "convert", {}, {}, {})
    config = dataclasses.replace(config, base=dataclasses.replace(config.base, path=str(other)))
    with pytest.raises(RecipeError, match="is not the base that"):
        merge.run(config, folder, "hf")


def test_a_merge_whose_logits_differ_leaves_nothing(trained, monkeypatch):
    config, folder = trained
    real = merging.write_merged
    monkeypatch.setattr(merging, "write_merged", lambda base, deltas, output: real(base, doubled(deltas), output))
    with pytest.raises(RecipeError, match="the merged logits differ"):
        merge.run(config, folder, "hf")
    assert not (folder / "merged").exists() and not list(folder.glob(".merged*"))


def doubled(deltas):
    return {name: (2 * b, a) for name, (b, a) in deltas.items()}


@pytest.mark.parametrize("to", ["meta", "gguf"])
def test_other_formats_hold_the_merged_weights(trained, to):
    from recipe import convert
    from recipe.core.config import Base, Config

    config, folder = trained
    merge.run(config, folder, to)
    output = folder / f"merged-{to}"
    assert verify(output) == []
    back = output.parent / f"back-{to}"
    convert.run(Config(base=Base(source=str(output), path=str(back))))
    merged, again = dict(read_tensors(folder / "merged")), dict(read_tensors(back))
    assert merged.keys() == again.keys() and all(torch.equal(merged[name], again[name]) for name in merged)
    assert hf.is_folder(back)


def test_a_merged_folder_carries_the_template_and_ends_where_the_run_does(trained):
    from transformers import AutoTokenizer, GenerationConfig

    config, folder = trained
    merge.run(config, folder, "hf")
    tokenizer = AutoTokenizer.from_pretrained(folder / "merged")
    messages = [Message("user", "Who are you?"), Message("assistant", "A model."), Message("user", "Sure?")]
    plain = [{"role": message.role, "content": message.content} for message in messages]
    ids = tokenizer.apply_chat_template(plain, add_generation_prompt=True)
    assert ids == prompt_ids(tokenizer, config.corpus.template, messages)
    assert GenerationConfig.from_pretrained(folder / "merged").eos_token_id == tokenizer.eos_token_id
    text = (folder / "merged" / "Modelfile").read_text()
    assert text.startswith("FROM .\nTEMPLATE") and 'PARAMETER stop """</s>"""' in text


def test_others_can_mask_by_the_template_in_the_folder(trained):
    from transformers import AutoTokenizer

    from recipe.conversations.templates import render
    from recipe.conversations.tokens import IGNORED, encode

    config, folder = trained
    merge.run(config, folder, "hf")
    tokenizer = AutoTokenizer.from_pretrained(folder / "merged")
    messages = [Message("user", "Who are you?"), Message("assistant", "A model.")]
    found = tokenizer.apply_chat_template(
        [{"role": message.role, "content": message.content} for message in messages],
        chat_template=(folder / "merged" / "chat_template_generation.jinja").read_text(),
        return_dict=True,
        return_assistant_tokens_mask=True,
    )
    ids, labels = encode(tokenizer, render(config.corpus.template, messages))
    assert found["input_ids"] == ids
    assert found["assistant_masks"] == [int(label != IGNORED) for label in labels]


def test_an_end_mark_of_the_template_joins_the_tokenizers_own(trained):
    config, folder = trained
    added = 300
    job = merge.Merge.of_run(config, folder)
    output = folder / "settings"
    output.mkdir()
    merge.copy_settings(job, output)
    hf_config.add_end_tokens(output, [2, added])
    assert json.loads((output / "generation_config.json").read_text())["eos_token_id"] == [2, added]


def test_the_model_card_names_base_data_and_losses(trained):
    config, folder = trained
    merge.run(config, folder, "hf")
    card = (folder / "merged" / "README.md").read_text()
    corpus = read_manifest(Path(config.corpus.path))
    assert all(sha256 in card for sha256 in corpus["inputs"].values())
    assert "no loss is known" in card and "rank 4, alpha 8" in card and "vicuna" in card and "Not measured" in card
    evaluate.run(config, Run(folder))
    shutil.rmtree(folder / "merged")
    merge.run(config, folder, "hf")
    card = (folder / "merged" / "README.md").read_text()
    result = json.loads((folder / "eval.json").read_text())
    assert f"| {result['base']['loss']:.4f} | {result['tuned']['loss']:.4f} |" in card


def test_the_targets_are_what_can_be_written():
    assert [f"gguf-{kind}" for kind in gguf_out.KINDS if kind != "f16"] == [
        to for to in merge.TARGETS if to.startswith("gguf-") and to != "gguf-lora"
    ]


def test_the_adapter_carries_the_same_template(trained):
    from transformers import AutoTokenizer, GenerationConfig

    config, folder = trained
    merge.run(config, folder, "hf")
    ends = [GenerationConfig.from_pretrained(folder / name).eos_token_id for name in ("adapter", "merged")]
    assert ends == [2, 2]
    one, two = (AutoTokenizer.from_pretrained(folder / name) for name in ("adapter", "merged"))
    assert one.chat_template == two.chat_template and one.get_vocab() == two.get_vocab()


@pytest.mark.parametrize("to", ["gguf-q8_0", "gguf-lora"])
def test_gguf_files_carry_the_template(trained, to):
    import gguf

    config, folder = trained
    merge.run(config, folder, to)
    (file,) = (folder / f"merged-{to}").glob("*.gguf")
    assert file.name == f"tiny-{to.removeprefix('gguf-')}.gguf" and verify(folder / f"merged-{to}") == []
    text = gguf.GGUFReader(file).fields["tokenizer.chat_template"].contents()
    merge.run(config, folder, "hf")
    assert text == json.loads((folder / "merged" / "tokenizer_config.json").read_text())["chat_template"]


def test_a_split_gguf_is_for_llama_cpp_only(trained, monkeypatch):
    from recipe.checkpoints import safetensors
    from recipe.checkpoints.open import open_source

    folder = trained[1]
    monkeypatch.setattr(safetensors, "SHARD_BYTES", 30_000)
    assert merge.main(["--run", str(folder), "--to", "gguf", "--split"]) == 0
    output = folder / "merged-gguf"
    assert len(list(output.glob("tiny-f16-0000?-of-0000?.gguf"))) > 2 and not (output / "Modelfile").exists()
    source, merged = open_source(output), dict(read_tensors(folder / "merged"))
    assert all(torch.equal(source.tensors[name].read(), weight) for name, weight in merged.items())
    merge.main(["--run", str(folder), "--to", "gguf"])
    assert [file.name for file in output.glob("*.gguf")] == ["tiny-f16.gguf"], "other settings are written anew"


def test_an_adapter_of_another_program_is_merged(trained, tmp_path, capsys):
    config, folder = trained
    merge.run(config, folder, "hf")
    stranger = tmp_path / "stranger"
    shutil.copytree(folder / "adapter", stranger)
    flags = ["--base", config.base.path, "--adapter", str(stranger), "--output", str(tmp_path / "out")]
    assert merge.main(flags) == 0 and f"wrote {tmp_path / 'out'}" in capsys.readouterr().out
    one, two = dict(read_tensors(folder / "merged")), dict(read_tensors(tmp_path / "out"))
    assert all(torch.equal(one[name], two[name]) for name in one)
    assert merge.main([*flags, "--to", "gguf"]) == 0
    assert (tmp_path / "out-gguf" / "out-f16.gguf").is_file()
    assert entry(lambda: merge.main(flags[:4])) == 2
    assert "--base, --adapter and --output" in capsys.readouterr().err


def test_command_line(trained, capsys):
    _, folder = trained
    assert merge.main(["--run", str(folder), "--dry-run"]) == 0
    assert "would merge 1 shards" in capsys.readouterr().out and not (folder / "merged").exists()
    assert merge.main(["--run", str(folder), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["results"]["logit_error"] < merge.TOLERANCE
    assert entry(lambda: merge.main(["--run", str(folder), "--config", "x.toml"])) == 2
    assert "pass either --run DIR or --config FILE" in capsys.readouterr().err
