"""A step that fails: out of memory at every stage of the fallback, a row of skipped steps. Only the GPU is mocked."""

import dataclasses
import json
from types import SimpleNamespace

import pytest
import torch
from accelerate import Accelerator

from recipe import train
from recipe.core.errors import RecipeError
from recipe.core.files import sha256
from recipe.core.lineage import verify_all
from recipe.core.run import Run
from recipe.model.load import load_tokenizer
from recipe.pascal import recompute
from recipe.pascal.recompute import count_recomputed
from recipe.training import faults
from recipe.training.dataset import PackedDataset, collate, encode_file, separate
from recipe.training.faults import MAX_SKIPPED, MemoryFallback
from recipe.training.trainer import LoraTrainer


def adapter_sha(config) -> str:
    return sha256(Run.latest(config) / "adapter" / "adapter_model.safetensors")


def run_out_of_memory(monkeypatch, too_much):
    """In the backward pass of the first layer, after the adapters of the second got their gradients.

    too_much(trainer, tokens): whether a forward pass over that many tokens needs more than the GPU has.
    """
    real = LoraTrainer.compute_loss
    failures = []

    def compute_loss(self, model, inputs, *args, **kwargs):
        def explode(grad):
            if too_much(self, inputs["input_ids"].shape[1]):
                failures.append(self.state.global_step)
                raise torch.cuda.OutOfMemoryError("CUDA out of memory")

        def attach(module, arguments, output):
            hidden = output[0] if isinstance(output, tuple) else output
            if hidden.requires_grad:
                hidden.register_hook(explode)

        handle = self.memory.layers[0].register_forward_hook(attach)
        try:
            return real(self, model, inputs, *args, **kwargs)
        finally:
            handle.remove()

    monkeypatch.setattr(LoraTrainer, "compute_loss", compute_loss)
    return failures


@pytest.mark.parametrize(
    ("error", "memory"),
    [
        (torch.cuda.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 MiB"), True),
        (RuntimeError("CUDA error: out of memory\nCUDA kernel errors might be asynchronously reported"), True),
        (RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"), True),
        (RuntimeError("CUDA error: an illegal memory access was encountered"), False),
    ],
)
def test_what_is_out_of_memory(error, memory):
    assert faults.is_out_of_memory(error) == memory


def test_torch_is_kept_from_the_last_of_the_free_memory(monkeypatch):
    total, free, held, limits = 16_280 << 20, 9_000 << 20, 500 << 20, {}
    monkeypatch.setattr(torch.cuda, "cudart", lambda: SimpleNamespace(cudaMemGetInfo=lambda index: (free, total)))
    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda device: held)
    monkeypatch.setattr(
        torch.cuda, "set_per_process_memory_fraction", lambda share, device: limits.update({device: share})
    )
    devices = [torch.device("cuda", 0), torch.device("cuda", 1)]
    faults.leave_memory(devices)
    assert limits == {device: pytest.approx((free + held - faults.KERNEL_BYTES) / total) for device in devices}


def test_recomputing_every_layer_changes_no_bit(tiny_run, trained_once, monkeypatch, capsys):
    count = lambda trainer: count_recomputed(trainer.memory.layers)  # noqa: E731
    failures = run_out_of_memory(
        monkeypatch, lambda trainer, tokens: trainer.state.global_step == 3 and not count(trainer)
    )
    results = train.run(tiny_run)["results"]
    said = capsys.readouterr().err
    assert failures == [3] and said.count("out of memory in step 4: activation checkpointing in all 2 layers") == 1
    assert results["split_packs"] == 0
    assert adapter_sha(tiny_run) == adapter_sha(trained_once)


def test_smaller_forward_passes_keep_the_batch_and_the_run(tiny_run, trained_once, tmp_path, monkeypatch, capsys):
    plain = dataclasses.replace(tiny_run, lora=dataclasses.replace(tiny_run.lora, dropout=0.0))
    expected = train.run(dataclasses.replace(plain, runs=str(tmp_path / "plain")))
    run_out_of_memory(monkeypatch, lambda trainer, tokens: trainer.state.global_step >= 3 and tokens > 150)
    found = train.run(plain)
    said = capsys.readouterr().err
    assert said.count("each pack is computed in 2 parts from now on") == 1 and "4 parts" not in said
    assert {**found, "outputs": 0, "results": 0} == {**expected, "outputs": 0, "results": 0}, "the same run"
    one, two = expected["results"], found["results"]
    assert 0 < two["split_packs"] <= two["packs"] - 3 * 2 and one["split_packs"] == 0
    assert two["validation_loss"] == pytest.approx(one["validation_loss"], abs=1e-4)
    assert two["steps"] == one["steps"]
    with monkeypatch.context() as patch:  # a resumed run uses as many parts
        patch.setattr(faults, "say", lambda message: pytest.fail(message))
        Run.latest(plain).joinpath("manifest.json").unlink()
        assert train.run(plain)["results"] == two
    assert verify_all(Run.latest(plain)) == []


def test_one_conversation_that_does_not_fit_is_one_sentence(tiny_run, monkeypatch):
    run_out_of_memory(monkeypatch, lambda trainer, tokens: trainer.state.global_step == 3)
    with pytest.raises(
        RecipeError, match=r"out of memory in step 4 on a conversation of \d+ tokens.*lower corpus\.max_le"
    ):
        train.run(tiny_run)
    assert (Run.latest(tiny_run) / "checkpoints" / "checkpoint-2").is_dir()


@pytest.mark.parametrize("parts", [1, 2, 4, 64])
def test_a_pack_in_parts_has_every_conversation_once(tiny_run, tiny_corpus, tiny_base, parts):
    rows = encode_file(tiny_corpus / "train.jsonl", load_tokenizer(tiny_base), "vicuna_v1.1")
    data = PackedDataset(rows, 1000)
    assert data.prefix and len(data) > 1
    memory = MemoryFallback(torch.nn.ModuleList())
    memory.parts = parts
    for pack in data:
        samples = separate(pack)
        again = collate(samples, pack["prefix"])
        assert all(torch.equal(again[key], pack[key]) for key in ("input_ids", "labels", "position_ids"))
        split = memory.split(pack)
        assert len(split) == min(parts, len(samples))
        found = [sample for part in split for sample in separate(part)]
        assert sorted(map(str, found)) == sorted(map(str, samples))
        assert sum(int((part["labels"] != -100).sum()) for part in split) == int((pack["labels"] != -100).sum())
        sizes = [sum(part["lengths"]) for part in split]
        assert max(sizes) - min(sizes) <= max(pack["lengths"])


def test_a_row_of_skipped_steps_stops_the_run(tiny_run, monkeypatch):
    settings = dataclasses.replace(tiny_run.train, epochs=20.0, save_steps=10, eval_steps=0)
    long = dataclasses.replace(tiny_run, train=settings)
    asked = []  # twice a step

    def was_skipped(self):
        asked.append(1)
        return (len(asked) - 1) // 2 != 4  # a row of four at the start is usual: the loss scale begins too high

    monkeypatch.setattr(Accelerator, "optimizer_step_was_skipped", property(was_skipped))
    with pytest.raises(
        RecipeError, match=rf"{MAX_SKIPPED + 1} optimizer steps in a row were skipped.*checkpoint-\d+ is k"
    ):
        train.run(long)
    run = Run(Run.latest(long).resolve())
    rows = [json.loads(line) for line in run.metrics.read_text().splitlines()]
    assert rows[3]["skipped_steps"] == 4 and rows[4]["skipped_steps"] == 4 and rows[-1]["skipped_steps"] >= MAX_SKIPPED
    assert json.loads(run.failed_batch.read_text())["packs"]


def test_recomputed_layers_are_counted():
    layers = torch.nn.ModuleList([torch.nn.Linear(2, 2) for _ in range(3)])
    for count in (0, 2, 3, 1):
        recompute.recompute_first(layers, count)
        assert count_recomputed(layers) == count
