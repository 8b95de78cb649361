"""A run: it learns, it is exact, it resumes to the bit, it stops with a sentence, and nothing is silent."""

import contextlib
import dataclasses
import json
import os
import shutil
import signal
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from transformers import TrainerCallback

from recipe import train
from recipe.conversations.packing import pack
from recipe.core import config as configs
from recipe.core import manifest
from recipe.core.cli import INTERRUPTED, entry
from recipe.core.errors import RecipeError, UnfitError, UsageError
from recipe.core.files import sha256
from recipe.core.lineage import verify_all
from recipe.core.manifest import read_manifest, verify
from recipe.core.run import Run
from recipe.model import accumulation, load, prepare
from recipe.model.adapter import ADAPTER_FILE, add_adapter
from recipe.model.load import load_base, load_tokenizer
from recipe.model.prepare import prepare_for_training
from recipe.pascal.int8 import Int8Linear
from recipe.planning import hardware, memory, sizing
from recipe.training import checkpoint as checkpointing
from recipe.training import dataset, state
from recipe.training import trainer as training
from recipe.training.callbacks import Progress
from recipe.training.dataset import PackedDataset
from recipe.training.resume import newest_checkpoint
from recipe.training.trainer import build_trainer

ROOT = Path(__file__).parents[1]


def latest(config) -> Path:
    return Path(config.runs) / config.name / "latest"


def adapter_sha(folder: Path) -> str:
    return sha256(folder / "adapter" / ADAPTER_FILE)


def changed(config, **fields):
    return dataclasses.replace(config, train=dataclasses.replace(config.train, **fields))


def test_a_run_learns_and_leaves_everything_it_promises(tiny_run, capsys):
    manifest = train.run(tiny_run)
    folder = latest(tiny_run)
    assert manifest["results"]["last_loss"] < manifest["results"]["first_loss"]
    tokenizer = ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "tokenizer.model")
    files = (ADAPTER_FILE, "adapter_config.json", "generation_config.json", *tokenizer)
    assert set(manifest["outputs"]) == {f"adapter/{name}" for name in files}
    assert verify(folder) == []
    assert configs.load(folder / "config.toml") == tiny_run
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    steps = [row["step"] for row in rows if "loss" in row]
    assert steps == list(range(1, manifest["results"]["steps"] + 1))
    assert any("eval_loss" in row for row in rows) and all("tokens_per_second" in row for row in rows)
    assert len(list((folder / "checkpoints").iterdir())) == tiny_run.train.keep_checkpoints
    assert "tokens/s" in capsys.readouterr().err
    settings = json.loads((folder / "adapter" / "adapter_config.json").read_text())
    assert not settings["base_model_name_or_path"], "a path of this machine must not be in an artefact"


def test_the_same_config_is_the_same_run_and_another_is_another(trained_run, capsys):
    config, _ = trained_run
    first = latest(config).resolve()
    train.run(changed(config, save_steps=1))
    assert "already trained" in capsys.readouterr().err and latest(config).resolve() == first
    train.run(changed(config, seed=1))
    assert latest(config).resolve() != first


def test_two_runs_of_one_config_are_equal_to_the_bit(tiny_run, trained_once):
    train.run(tiny_run)
    one, two = ((latest(config) / "manifest.json").read_bytes() for config in (tiny_run, trained_once))
    assert one == two


class Killed(BaseException):
    """What a power failure is to Python."""


def kill_after(monkeypatch, step: int) -> None:
    """End the process's work right after `step` optimizer steps, before anything is saved."""

    def on_step_end(self, args, state, control, **kwargs):
        if state.global_step == step:
            raise Killed

    monkeypatch.setattr(Progress, "on_step_end", on_step_end, raising=False)


@pytest.mark.parametrize("step", [3, 5])
def test_resume_after_a_crash_is_equal_to_the_bit(tiny_run, trained_once, monkeypatch, capsys, step):
    with monkeypatch.context() as patch, pytest.raises(Killed):
        kill_after(patch, step)
        train.run(tiny_run)
    manifest = train.run(tiny_run)
    assert f"resume from {latest(tiny_run).resolve()}/checkpoints/checkpoint-{step - 1}" in capsys.readouterr().err
    assert adapter_sha(latest(tiny_run)) == adapter_sha(latest(trained_once))
    assert manifest == read_manifest(latest(trained_once))
    rows = [json.loads(line) for line in (latest(tiny_run) / "metrics.jsonl").read_text().splitlines()]
    steps = [row["step"] for row in rows if "loss" in row]
    assert steps == sorted(set(steps)) and len(steps) == manifest["results"]["steps"]


def test_a_damaged_checkpoint_is_set_aside_for_the_one_before(tiny_run, trained_once, monkeypatch, capsys):
    with monkeypatch.context() as patch, pytest.raises(Killed):
        kill_after(patch, 5)
        train.run(tiny_run)
    newest = latest(tiny_run) / "checkpoints" / "checkpoint-4"
    with open(newest / state.TENSORS, "r+b") as file:
        file.seek(-8, 2)
        file.write(b"\xff" * 8)
    train.run(tiny_run)
    message = capsys.readouterr().err
    assert "checkpoint-4 is damaged or incomplete and was renamed to damaged-checkpoint-4-1" in message
    assert f"resume from {newest.parent.resolve()}/checkpoint-2" in message
    assert (newest.parent / "damaged-checkpoint-4-1" / ADAPTER_FILE).is_file(), "it may be all that is left"
    assert adapter_sha(latest(tiny_run)) == adapter_sha(latest(trained_once))


def test_a_checkpoint_of_other_packs_is_not_resumed(tiny_run, monkeypatch):
    """As an update of this code in the middle of a run may make them."""
    with monkeypatch.context() as patch, pytest.raises(Killed):
        kill_after(patch, 3)
        train.run(tiny_run)
    monkeypatch.setattr(dataset, "common_prefix", lambda rows: 0)
    with pytest.raises(RecipeError, match=r"checkpoint-2 was made with other packs"):
        train.run(tiny_run)
    assert (latest(tiny_run) / "checkpoints" / "checkpoint-2").is_dir()


def test_a_half_written_checkpoint_is_never_opened(tiny_run, tmp_path):
    folder = tmp_path / "checkpoints"
    (folder / "checkpoint-7").mkdir(parents=True)
    (folder / "checkpoint-7" / state.TENSORS).write_bytes(b"half")
    assert newest_checkpoint(folder) is None
    assert [path.name for path in folder.iterdir()] == ["damaged-checkpoint-7-1"]


def test_ctrl_c_saves_and_the_same_command_finishes_to_the_bit(forks, tiny_run, tmp_path, one_thread):
    whole = changed(dataclasses.replace(tiny_run, runs=str(tmp_path / "whole")), epochs=10.0, save_steps=1000)
    run = dataclasses.replace(whole, runs=tiny_run.runs)
    file = tmp_path / "run.toml"
    file.write_text(configs.dump(run), encoding="utf-8")
    (pid,) = forks.start(tmp_path, [["--config", str(file)]])
    metrics = latest(run) / "metrics.jsonl"
    deadline = time.monotonic() + 120
    while not (metrics.is_file() and metrics.read_text().count("\n") >= 3):
        assert time.monotonic() < deadline and not forks.ended()
        time.sleep(0.02)
    os.kill(pid, signal.SIGINT)
    codes, _, (said,) = forks.wait()
    assert codes == [INTERRUPTED] and "SIGINT: saved after step" in said and "Traceback" not in said
    assert list((latest(run) / "checkpoints").iterdir()) and not (latest(run) / "manifest.json").exists()
    train.run(run)
    train.run(whole)
    assert adapter_sha(latest(run)) == adapter_sha(latest(whole))


def test_accumulation_and_packing_change_nothing(tiny_run, tiny_base, tiny_corpus, tmp_path):
    """One optimizer step over six conversations of uneven length: as one pack, a few, and each alone."""
    rows = dataset.encode_file(tiny_corpus / "train.jsonl", load_tokenizer(tiny_base), "vicuna_v1.1").select(range(6))
    gradients = []
    sizes = [len(row["input_ids"]) for row in rows]
    assert len(set(sizes)) > 1
    counts = []
    for budget in (sum(sizes), max(sizes) * 3, max(sizes) * 2, max(sizes)):
        counts.append(len(pack(sizes, budget, tiny_run.train.seed)))
        settings = dataclasses.replace(
            tiny_run.train,
            micro_batch_tokens=budget,
            gradient_accumulation_steps=counts[-1],
            epochs=1.0,
            max_grad_norm=1e9,
            save_steps=100,
        )
        lora = dataclasses.replace(tiny_run.lora, dropout=0.0)
        tuned = add_adapter(load_base(tiny_base, "int8", torch.device("cpu")), lora, 0)
        prepare_for_training(tuned)
        data = PackedDataset(rows, budget, settings.seed, 1.0, counts[-1])
        trainer = build_trainer(tuned, settings, Run(tmp_path / f"{budget}"), data, data)
        seen = {}

        class Spy(TrainerCallback):
            def on_pre_optimizer_step(self, args, state, control, seen=seen, tuned=tuned, **kwargs):
                seen.update({n: p.grad.clone() for n, p in tuned.named_parameters() if p.grad is not None})

        trainer.add_callback(Spy())
        trainer.train()
        gradients.append(seen)
    assert counts[0] == 1 and counts[-1] == 6 and len(set(counts)) > 2
    for other in gradients[1:]:
        assert other.keys() == gradients[0].keys() and len(other) == 12
        for name, gradient in gradients[0].items():
            torch.testing.assert_close(other[name], gradient, rtol=1e-4, atol=1e-7)


def test_recomputation_changes_no_gradient(tiny_run, trained_once, tmp_path):
    for count in (0, 1):
        again = changed(dataclasses.replace(tiny_run, runs=str(tmp_path / f"{count}")), recompute=count)
        train.run(again)
        assert adapter_sha(latest(trained_once)) == adapter_sha(latest(again))
    with pytest.raises(UsageError, match=r"train\.recompute is 3, expected -1 \(all\) to 2"):
        train.run(changed(dataclasses.replace(tiny_run, runs=str(tmp_path / "3")), recompute=3))


def test_auto_recomputes_no_more_layers_than_free_memory_asks_for(tiny_run, monkeypatch, capsys):
    shape, _ = sizing.read_shape(tiny_run, None)
    step = sizing.build_step(tiny_run, cuda=False)
    peaks = [memory.estimate_memory(shape, step, count).peak for count in range(3)]
    assert peaks[1] < peaks[0]
    for free, expected in ((peaks[0], 0), (peaks[0] - 1, 1), (peaks[1], 1), (0, 2)):
        monkeypatch.setattr(sizing, "available_memory", lambda free=free: free + hardware.MARGIN_MIB * hardware.MIB)
        assert train.recomputed_layers(tiny_run, torch.device("cpu")) == expected
        assert (f"activation checkpointing in {expected} of 2 layers" in capsys.readouterr().err) == bool(expected)


def test_a_pack_that_cannot_hold_the_longest_conversation_is_refused_before_anything_is_loaded(tiny_run):
    with pytest.raises(UsageError, match=r"micro_batch_tokens is 255, expected at least corpus\.max_length = 256"):
        train.run(changed(tiny_run, micro_batch_tokens=255))
    with pytest.raises(
        UsageError, match=r"train\.epochs is 0\.0 and train\.gradient_accumulation_steps 2, expected both above 0"
    ):
        train.run(changed(tiny_run, epochs=0.0))


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("vicuna-7b-p100", "vicuna-7b-p100 trains on 6.5 billion weights and this machine has only a CPU"),
        ("vicuna-13b-p100", "vicuna-13b-p100 trains on 12.7 billion weights and this machine has only a CPU"),
    ],
)
def test_a_config_for_a_card_is_refused_on_a_cpu_before_anything_is_read(name, said, monkeypatch, capsys):
    monkeypatch.setattr(manifest, "sha256", lambda path: pytest.fail("something was read"))
    path = Path(train.__file__).parent / "configs" / f"{name}.toml"
    assert entry(lambda: train.main(["--config", str(path)])) == 3
    err = capsys.readouterr().err
    assert said in err and "make doctor" in err and err.count("\n") == 1


def test_nf4_is_refused_on_a_cpu_at_any_size(tiny_run):
    config = dataclasses.replace(tiny_run, base=dataclasses.replace(tiny_run.base, precision="nf4"))
    with pytest.raises(UnfitError, match=r"nf4 on a CPU, expected a CUDA GPU: .*; set base\.precision = int8"):
        train.run(config)


@pytest.mark.parametrize(("capability", "fit"), [((6, 0), True), ((8, 9), True), ((9, 0), False), ((3, 5), False)])
def test_a_card_that_torch_has_no_code_for_is_refused_by_name(tiny_run, monkeypatch, capability, fit):
    architectures = ["sm_37", "sm_50", "sm_60", "sm_70", "sm_75", "sm_80", "sm_86"]
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    monkeypatch.setattr(torch.cuda, "get_arch_list", lambda: architectures)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "Some GPU")
    with contextlib.nullcontext() if fit else pytest.raises(UnfitError, match=r"found Some GPU of .*sm_60.*P100"):
        train.check_requirements(tiny_run, torch.device("cuda"))


def test_a_p40_keeps_activations_in_fp32_so_more_layers_recompute(tiny_run, monkeypatch):
    layers = {}
    # below torch, which checks the device itself
    driver = SimpleNamespace(cudaMemGetInfo=lambda index: (1500 * 2**20 + 1_700_000, 2**34))
    monkeypatch.setattr(torch.cuda, "cudart", lambda: driver)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    for capability in ((6, 0), (6, 1)):
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device, found=capability: found)
        layers[capability] = train.recomputed_layers(tiny_run, load.default_device())
    assert layers[6, 0] < layers[6, 1]


def test_fp16_accumulation_needs_a_gpu_and_int8(tiny_run):
    asked = changed(tiny_run, matmul_accumulation="fp16")
    with pytest.raises(
        UnfitError, match=r"train\.matmul_accumulation is fp16 on a CPU, expected a CUDA GPU: .*= fp32$"
    ):
        train.run(asked)
    for precision in ("nf4", "fp16"):
        with pytest.raises(
            UsageError, match=rf"matmul_accumulation is fp16 with base\.precision = {precision}, expected int8"
        ):
            train.run(dataclasses.replace(asked, base=dataclasses.replace(asked.base, precision=precision)))


def test_fp16_accumulation_reaches_every_int8_layer(tiny_run, monkeypatch):
    """The GPU's part is replaced: here the layers multiply as ever, and are counted."""
    used = []

    def counted(x, weight):
        used.append(weight.shape)
        return torch.matmul(x, weight)

    def choose(path, shapes, tokens, device):
        assert path.parent.is_dir() and tokens == 256 and device.type == "cpu"
        return accumulation.Choice(shapes, 512)

    def accumulate(model, shapes, chunk):
        for layer in model.modules():
            if isinstance(layer, Int8Linear) and (layer.in_features, layer.out_features) in shapes:
                layer.matmul = counted

    monkeypatch.setattr(accumulation, "choose", choose)
    monkeypatch.setattr(prepare, "accumulate_in_fp16", accumulate)
    plain = train.run(tiny_run)
    assert not used
    monkeypatch.setattr(train, "check_requirements", lambda config, device: None)
    manifest = train.run(changed(tiny_run, matmul_accumulation="fp16"))
    forward = {(48, 48), (48, 24), (48, 96), (96, 48)}
    assert {tuple(shape) for shape in used} == forward | {shape[::-1] for shape in forward}
    assert manifest["results"] == plain["results"]
    assert manifest["config"] != plain["config"]


def test_a_loss_that_is_not_finite_stops_the_run_with_a_sentence(tiny_run, monkeypatch):
    real = training.trained_nll
    calls = []

    def poisoned(*args):
        nll, count = real(*args)
        calls.append(1)
        return (nll * float("nan") if len(calls) == 5 else nll), count

    monkeypatch.setattr(training, "trained_nll", poisoned)
    expected = r"the loss became nan after step 2, expected a finite number; lower train\..*; checkpoint-2 is kept"
    with pytest.raises(RecipeError, match=expected):
        train.run(tiny_run)
    assert not (latest(tiny_run) / "manifest.json").exists()
    failed = json.loads((latest(tiny_run) / "failed_batch.json").read_text())
    assert failed["step"] == 3 and len(failed["packs"]) == 1
    rows = dataset.encode_file(
        Path(tiny_run.corpus.path) / "train.jsonl", load_tokenizer(Path(tiny_run.base.path)), "vicuna_v1.1"
    )
    conversations = failed["packs"][0]["conversations"]
    assert conversations
    for conversation in conversations:
        assert conversation["input_ids"] == rows[conversation["line"] - 1]["input_ids"]
    train.run(tiny_run)  # the cause is gone: the same command goes on, and the file is among the records
    assert verify_all(latest(tiny_run)) == []


def test_altered_weights_or_corpus_are_refused(tiny_run, tmp_path):
    corpus = tmp_path / "corpus"
    shutil.copytree(tiny_run.corpus.path, corpus)
    with open(corpus / "train.jsonl", "a", encoding="utf-8") as file:
        file.write("{}\n")
    config = dataclasses.replace(tiny_run, corpus=dataclasses.replace(tiny_run.corpus, path=str(corpus)))
    with pytest.raises(RecipeError, match=r"train\.jsonl has \d+ bytes, its manifest says \d+; re-create"):
        train.run(config)


def test_a_start_from_the_quantised_copy_neither_reads_nor_hashes_the_weights(tiny_run, tiny_base, tmp_path, capsys):
    base = Path(shutil.copytree(tiny_base, tmp_path / "weights" / "tiny"))
    config = dataclasses.replace(tiny_run, base=dataclasses.replace(tiny_run.base, path=str(base)))
    first = train.run(config)["inputs"]
    (base / "model.safetensors").unlink()  # nothing may miss it
    again = dataclasses.replace(config, runs=str(tmp_path / "again"))
    assert train.run(again)["inputs"] == first
    assert adapter_sha(latest(again)) == adapter_sha(latest(config))
    assert capsys.readouterr().err.count("(manifest verified)") == 1
    (base / "config.json").write_text("{}")
    with pytest.raises(RecipeError, match=r"config\.json has 2 bytes, its manifest says"):
        train.run(dataclasses.replace(again, name="third"))


def test_a_changed_config_says_that_it_starts_over(tiny_run, monkeypatch, capsys):
    with monkeypatch.context() as patch, pytest.raises(Killed):
        kill_after(patch, 3)
        train.run(tiny_run)
    train.run(changed(tiny_run, learning_rate=2e-2))
    said = capsys.readouterr().err
    assert "this starts a new run" in said and "train.learning_rate: 0.01 != 0.02" in said


def test_an_unfinished_run_of_another_version_does_not_stop_a_new_one(tiny_run, monkeypatch, capsys):
    with monkeypatch.context() as patch, pytest.raises(Killed):
        kill_after(patch, 1)
        train.run(tiny_run)
    with open(Run.latest(tiny_run) / "config.toml", "a") as file:
        file.write("[unheard]\nof = 1\n")
    train.run(changed(tiny_run, learning_rate=2e-2))
    assert "differs in its config, which this version cannot read" in capsys.readouterr().err


def test_dry_run_touches_nothing_and_its_steps_are_the_runs(tiny_run, tmp_path, capsys):
    file = tmp_path / "run.toml"
    file.write_text(configs.dump(tiny_run), encoding="utf-8")
    assert train.main(["--config", str(file), "--dry-run", "--json"]) == 0
    plan = json.loads(capsys.readouterr().out)
    assert not Path(tiny_run.runs).exists()
    assert plan["steps"] == train.run(tiny_run)["results"]["steps"]
    assert Path(plan["run"]) == latest(tiny_run).resolve()


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (["--config", "none.toml"], 2, "no config file at none.toml"),
        ([], 2, "base.path is empty"),
        (["--set", "train.epoch=3"], 2, "did you mean train.epochs?"),
        (["--set", "base.path=nowhere", "--set", "corpus.path=nowhere"], 1, "nowhere does not exist"),
    ],
)
def test_bad_input_is_one_sentence_and_the_right_exit_code(arguments, code, said, capsys):
    assert entry(lambda: train.main(arguments)) == code
    err = capsys.readouterr().err
    assert err.startswith("error: ") and said in err and err.count("\n") == 1


def test_a_full_disk_is_one_sentence_and_resumable(tiny_run, monkeypatch, capsys):
    import errno

    def full(*args, **kwargs):
        raise OSError(errno.ENOSPC, "No space left on device", "checkpoint")

    with monkeypatch.context() as patch:
        patch.setattr(checkpointing, "write_state", full)
        assert entry(lambda: train.run(tiny_run) and 0) == 1
    assert "error: no space is left on the disk: checkpoint" in capsys.readouterr().err
    train.run(tiny_run)
    assert verify(latest(tiny_run)) == []
