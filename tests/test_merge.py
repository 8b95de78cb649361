"""Merged weights against peft and transformers themselves, and what is left when something is wrong."""

import dataclasses
import json
import shutil
from pathlib import Path

import pytest
import torch
from transformers import LlamaConfig

from recipe import merge
from recipe.checkpoints import hf
from recipe.checkpoints.safetensors import open_folder
from recipe.core.cli import entry
from recipe.core.errors import RecipeError
from recipe.core.manifest import verify, write_manifest
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
    deltas = merge.adapter_deltas(folder / "adapter")
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
    assert "is there already" in capsys.readouterr().err
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
    real = merge.write_merged
    monkeypatch.setattr(merge, "write_merged", lambda base, deltas, output: real(base, doubled(deltas), output))
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


def test_command_line(trained, capsys):
    _, folder = trained
    assert merge.main(["--run", str(folder), "--dry-run"]) == 0
    assert "would merge 1 shards" in capsys.readouterr().out and not (folder / "merged").exists()
    assert merge.main(["--run", str(folder), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["results"]["logit_error"] < merge.TOLERANCE
    assert entry(lambda: merge.main(["--run", str(folder), "--config", "x.toml"])) == 2
    assert "pass either --run DIR or --config FILE" in capsys.readouterr().err
