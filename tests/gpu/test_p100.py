"""7B on a P100: what the README promises of memory, and that a run that was cut off ends where the whole one ends."""

import dataclasses
import gc
import shutil
from pathlib import Path

import pytest
import torch

from recipe.core import config as configs
from recipe.core.config import Config

pytestmark = pytest.mark.p100
ROOT = Path(__file__).parents[2]
GB = 1_000_000_000


@pytest.fixture
def run_7b(p100, weights_7b, tmp_path) -> Config:
    """The shipped 7B config on the demo's conversations: one pack a step, 20 steps."""
    pytest.importorskip("transformers")
    pytest.importorskip("peft")
    from recipe import corpus

    config = configs.load(
        ROOT / "recipe/configs/vicuna-7b-p100.toml",
        {
            "base.path": str(weights_7b),
            "runs": str(tmp_path / "runs"),
            "corpus.source": [{"path": str(ROOT / "recipe/configs/demo_conversations.json")}],
            "corpus.path": str(tmp_path / "corpus"),
            "corpus.val_fraction": 0.1,
            "train.gradient_accumulation_steps": 1,
            "train.save_steps": 5,
            "train.eval_steps": 0,
            "train.keep_checkpoints": 100,
        },
    )
    results = corpus.run(config)["results"]
    epochs = 30 * config.train.micro_batch_tokens / results["tokens"]["train"]
    return dataclasses.replace(config, train=dataclasses.replace(config.train, epochs=epochs))


def test_7b_loads_under_8_5_gb(p100, weights_7b):
    pytest.importorskip("transformers")
    from recipe.model.load import load_cached, verify_base

    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    loaded = load_cached(weights_7b, "int8", p100, verify_base(weights_7b, "int8"))
    peak = torch.cuda.max_memory_allocated()
    print(f"7B in int8: {peak / GB:.2f} GB at most while loading")
    assert peak < 8.5 * GB
    del loaded


def test_twenty_steps_under_15_5_gb_and_resume_is_the_whole_run(run_7b, tmp_path):
    from safetensors.torch import load_file

    from recipe import train

    torch.cuda.reset_peak_memory_stats()
    results = train.run(run_7b)["results"]
    peak = torch.cuda.max_memory_reserved()
    print(f"{results['steps']} steps: {peak / GB:.2f} GB at most, with what the allocator holds back")
    assert results["steps"] >= 20 and peak < 15.5 * GB

    folder = (Path(run_7b.runs) / run_7b.name / "latest").resolve()
    whole = load_file(folder / "adapter" / "adapter_model.safetensors")
    shutil.rmtree(folder / "adapter")
    (folder / "manifest.json").unlink()
    for checkpoint in folder.glob("checkpoints/checkpoint-*"):
        if int(checkpoint.name.rpartition("-")[2]) > 10:
            shutil.rmtree(checkpoint)
    gc.collect()  # the first model would still hold memory
    torch.cuda.empty_cache()
    train.run(run_7b)
    resumed = load_file(folder / "adapter" / "adapter_model.safetensors")
    assert whole.keys() == resumed.keys()
    for name, tensor in whole.items():  # the kernels' sums may come in another order, so not to the bit
        torch.testing.assert_close(resumed[name], tensor, rtol=1e-2, atol=1e-5, msg=name)
