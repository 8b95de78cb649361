"""`lora.start`: a run that continues from an adapter on other data, against peft's own logits of that adapter."""

import dataclasses
import json
import shutil

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import AutoModelForCausalLM

from recipe import report, train
from recipe.core.config import Config
from recipe.core.errors import RecipeError, UsageError
from recipe.core.lineage import trace
from recipe.core.manifest import hash_inputs, read_manifest, write_manifest
from recipe.core.run import Run
from recipe.model.load import load_base
from recipe.model.start import continue_adapter

IDS = torch.tensor([[1, 20, 31, 42, 53, 64, 75, 86, 97]])


def child(config: Config, start: object, **lora: object) -> Config:
    """A config that continues from `start`, with a learning rate that changes nothing visible."""
    changed = dataclasses.replace(config.train, learning_rate=1e-9, seed=7)
    lora = dataclasses.replace(config.lora, start=str(start), **lora)
    return dataclasses.replace(config, name="child", lora=lora, train=changed)


def plain_base(config: Config):
    return AutoModelForCausalLM.from_pretrained(config.base.path, torch_dtype=torch.float32)


def save_by_peft(config: Config, folder, **settings: object):
    """An adapter of plain peft on the tiny base, with a B that is not zero; its logits."""
    plain = {"r": 4, "lora_alpha": 8, "target_modules": list(config.lora.target_modules)}
    tuned = get_peft_model(plain_base(config), LoraConfig(**{**plain, **settings})).eval()
    torch.manual_seed(3)
    with torch.no_grad():
        for name, parameter in tuned.named_parameters():
            if "lora_B" in name:
                parameter.normal_(std=0.1)
        logits = tuned(input_ids=IDS).logits
    tuned.save_pretrained(folder)
    return logits


def test_a_run_continues_from_a_run(trained_run):
    config, parent = trained_run
    loss = read_manifest(parent.folder)["results"]["validation_loss"]
    fresh = train.run(dataclasses.replace(config, name="fresh", train=child(config, "").train))
    manifest = train.run(child(config, parent.folder))
    assert manifest["results"]["validation_loss"] == pytest.approx(loss, abs=1e-5)
    assert abs(fresh["results"]["validation_loss"] - loss) > 0.1, "a new adapter would begin at the base's loss"
    assert manifest["inputs"]["start"] == hash_inputs({"start": parent.folder})["start"]
    links = list(trace(Run.latest(child(config, parent.folder)).resolve()))
    assert [link.matches for link in links if link.name == "start"] == [True]
    assert any(link.owner == parent.folder.resolve() or link.owner == parent.folder for link in links)
    assert train.run(child(config, parent.folder)) == manifest, "the same command finds it finished"


@pytest.mark.parametrize("rslora", [False, True])
def test_the_first_forward_pass_is_pefts(trained_once, tmp_path, rslora):
    expected = save_by_peft(trained_once, tmp_path, use_rslora=rslora)
    config = child(trained_once, tmp_path)
    model = load_base(config.base.path, "fp32", torch.device("cpu"))
    tuned = continue_adapter(model, config.lora, 0).eval()
    torch.testing.assert_close(tuned(input_ids=IDS).logits, expected, rtol=1e-4, atol=1e-4)
    tuned.save_pretrained(tmp_path / "again")
    assert json.loads((tmp_path / "again" / "adapter_config.json").read_text())["use_rslora"] is rslora


def test_an_adapter_of_peft_is_trained_further(trained_run, tmp_path):
    config, _ = trained_run
    save_by_peft(config, tmp_path / "theirs", use_rslora=True)
    config = child(config, tmp_path / "theirs")
    config = dataclasses.replace(config, train=dataclasses.replace(config.train, learning_rate=1e-2))
    results = train.run(config)["results"]
    assert results["last_loss"] < results["first_loss"]


def test_an_adapter_of_peft_becomes_a_run_without_training(trained_run, tmp_path, capsys):
    """Then every stage works on it: here evaluation, merge and chat."""
    from recipe import chat, evaluate, merge

    config, _ = trained_run
    expected = save_by_peft(config, tmp_path / "theirs", use_rslora=True)
    config = child(config, tmp_path / "theirs")
    config = dataclasses.replace(config, train=dataclasses.replace(config.train, epochs=0.0))
    assert train.preview(config)["steps"] == 0
    manifest = train.run(config)
    run = Run(Run.latest(config).resolve())
    whole = run.manifest_file.read_bytes()
    run.manifest_file.unlink()  # as if it was killed while it validated
    report.main(["--run", str(run.folder)])
    assert "stopped after 0 steps. The same" in (run.folder / "report.html").read_text(encoding="utf-8")
    run.manifest_file.write_bytes(whole)
    tuned = PeftModel.from_pretrained(plain_base(config), run.adapter).eval()
    with torch.no_grad():
        assert torch.equal(tuned(input_ids=IDS).logits, expected)
    result = evaluate.run(config, run)
    assert result["tuned"]["loss"] == pytest.approx(manifest["results"]["validation_loss"], rel=1e-5)
    assert result["tuned"]["loss"] != pytest.approx(result["base"]["loss"], rel=1e-2)
    merge.run(config, run.folder, "hf")
    with torch.no_grad():
        merged = AutoModelForCausalLM.from_pretrained(run.merged(), torch_dtype=torch.float32)(input_ids=IDS).logits
    assert (merged - expected).abs().max() < 0.02 * expected.std()
    assert chat.main(["--run", str(run.folder), "--prompt", "Hi", "--max-new-tokens", "4"]) == 0
    report.main(["--run", str(run.folder)])
    assert "after 0 steps" in (run.folder / "report.html").read_text(encoding="utf-8")


def test_without_an_adapter_zero_epochs_are_refused(tiny_run):
    with pytest.raises(UsageError, match=r"train\.epochs is 0"):
        train.run(dataclasses.replace(tiny_run, train=dataclasses.replace(tiny_run.train, epochs=0.0)))


def test_a_changed_parent_is_another_run(trained_once, tmp_path):
    save_by_peft(trained_once, tmp_path)
    config = child(trained_once, tmp_path)
    runs = []
    for dropout in (0.1, 0.2):
        settings = json.loads((tmp_path / "adapter_config.json").read_text())
        (tmp_path / "adapter_config.json").write_text(json.dumps(settings | {"lora_dropout": dropout}))
        inputs, _ = train.read_inputs(config)
        runs.append(train.build_run(config, train.read_settings(config), inputs).folder)
    assert runs[0] != runs[1]


def test_another_base_is_refused(trained_run, tmp_path):
    config, parent = trained_run
    other = tmp_path / "other"
    shutil.copytree(config.base.path, other)
    (other / "extra.txt").write_text("x")
    write_manifest(other, "convert", {}, {}, {})
    with pytest.raises(RecipeError, match="is not the base that"):
        train.run(
            dataclasses.replace(child(config, parent.folder), base=dataclasses.replace(config.base, path=str(other)))
        )


@pytest.mark.parametrize(
    ("settings", "lora", "error", "said"),
    [
        ({"modules_to_save": ["lm_head"]}, {}, RecipeError, "sets modules_to_save"),
        ({}, {"rank": 8}, UsageError, "lora.rank is 8, but the adapter in .* has 4"),
        ({}, {"alpha": 16}, UsageError, "lora.alpha is 16, but the adapter in .* has 8"),
        ({}, {"target_modules": ("q_proj",)}, UsageError, r"has \['down_proj', 'q_proj', 'v_proj'\]"),
        ({"layers_to_transform": [0]}, {}, RecipeError, r"adapted layer model\.layers\.1\."),
    ],
)
def test_what_cannot_be_continued_is_one_sentence(trained_run, tmp_path, settings, lora, error, said):
    config, _ = trained_run
    save_by_peft(config, tmp_path / "theirs", **settings)
    with pytest.raises(error, match=said):
        train.run(child(config, tmp_path / "theirs", **lora))


def test_an_adapter_of_another_size_is_refused(trained_run, tmp_path):
    from safetensors.torch import load_file, save_file

    config, _ = trained_run
    save_by_peft(config, tmp_path)
    file = tmp_path / "adapter_model.safetensors"
    wider = {key: torch.cat([part, part], dim=1) if "lora_A" in key else part for key, part in load_file(file).items()}
    save_file(wider, file)
    with pytest.raises(
        RecipeError, match=r"is \[4, \d+\], that of this base is \[4, \d+\]: the adapter belongs to another"
    ):
        train.run(child(config, tmp_path))


def test_a_folder_without_an_adapter_is_refused(trained_run, tmp_path):
    config, _ = trained_run
    with pytest.raises(RecipeError, match=r"adapter_config\.json"):
        train.run(child(config, tmp_path))
