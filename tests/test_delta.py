"""Delta weights against FastChat's arithmetic on transformers' own models."""

import json
from pathlib import Path

import pytest
import torch
from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

from recipe import delta
from recipe.checkpoints import export
from recipe.core.cli import entry
from recipe.core.errors import RecipeError
from recipe.core.manifest import verify


def save(model: LlamaForCausalLM, folder: Path, tokenizer: bytes) -> Path:
    model.half().save_pretrained(folder)
    (folder / "tokenizer.model").write_bytes(tokenizer)
    return folder


@pytest.fixture
def tokenizer(tiny_source: Path) -> bytes:
    return (tiny_source / "tokenizer.model").read_bytes()


@pytest.fixture
def models(tiny_source: Path, tmp_path: Path, tokenizer: bytes) -> tuple[Path, Path, LlamaForCausalLM]:
    """A base, its delta as FastChat's make_delta stores it, and the tuned model."""
    base = LlamaForCausalLM.from_pretrained(tiny_source, torch_dtype=torch.float16)
    torch.manual_seed(5)
    difference = {name: (torch.randn(weight.shape) * 0.01).half() for name, weight in base.state_dict().items()}
    save(base, tmp_path / "base", tokenizer)
    tuned = LlamaForCausalLM.from_pretrained(tmp_path / "base", torch_dtype=torch.float16)
    # torch 2.0 has no fp16 sum on a CPU that differs from rounding the fp32 one
    tuned.load_state_dict({k: (w.float() + difference[k].float()).half() for k, w in base.state_dict().items()})
    base.load_state_dict(difference)
    return tmp_path / "base", save(base, tmp_path / "delta", tokenizer), tuned


def command(action: str, base: Path, other: Path, output: Path, *more: str) -> int:
    flags = ["--base", str(base), "--other", str(other), "--output", str(output), *more]
    return entry(lambda: delta.main([action, *flags]))


def same(folder: Path, model: LlamaForCausalLM) -> bool:
    state = LlamaForCausalLM.from_pretrained(folder, torch_dtype=torch.float16).state_dict()
    return all(torch.equal(state[name], weight) for name, weight in model.state_dict().items())


def test_base_and_delta_give_the_tuned_model(models, tmp_path: Path, capsys) -> None:
    base, difference, tuned = models
    assert command("apply", base, difference, tmp_path / "out") == 0
    assert same(tmp_path / "out", tuned) and verify(tmp_path / "out") == []
    assert AutoTokenizer.from_pretrained(tmp_path / "out").eos_token == "</s>"
    capsys.readouterr()
    assert command("apply", base, difference, tmp_path / "out") == 0
    assert "already exists" in capsys.readouterr().err


def test_a_base_of_metas_format_gives_the_same(models, tmp_path: Path) -> None:
    base, difference, tuned = models
    AutoTokenizer.from_pretrained(base).save_pretrained(base)
    export.to_meta(base, tmp_path / "meta")
    assert command("apply", tmp_path / "meta", difference, tmp_path / "out") == 0
    assert same(tmp_path / "out", tuned)


def test_a_made_delta_gives_the_tuned_model_back(models, tmp_path: Path, tokenizer: bytes) -> None:
    base, _, tuned = models
    folder = save(tuned, tmp_path / "tuned", tokenizer)
    assert command("make", base, folder, tmp_path / "made", "--dtype", "fp32") == 0
    assert command("apply", base, tmp_path / "made", tmp_path / "again") == 0
    assert same(tmp_path / "again", tuned)


def test_tokens_that_the_base_lacks_count_as_zeros(models, tmp_path: Path, tokenizer: bytes) -> None:
    """Vicuna v0: the delta has a row for a padding token."""
    base, difference, tuned = models
    longer = LlamaForCausalLM.from_pretrained(difference)
    rows = longer.config.vocab_size
    longer.resize_token_embeddings(rows + 1)
    save(longer, tmp_path / "longer", tokenizer)
    (tmp_path / "longer" / "added_tokens.json").write_text(json.dumps({"[PAD]": rows}))
    assert command("apply", base, tmp_path / "longer", tmp_path / "out") == 0
    made = LlamaForCausalLM.from_pretrained(tmp_path / "out", torch_dtype=torch.float16).state_dict()
    for name in ("model.embed_tokens.weight", "lm_head.weight"):
        assert torch.equal(made[name][:rows], tuned.state_dict()[name])
        assert torch.equal(made[name][rows:], longer.state_dict()[name][rows:])


def test_models_that_do_not_belong_together_are_refused(models, tmp_path: Path, tokenizer: bytes) -> None:
    base, difference, _ = models
    config = LlamaConfig.from_pretrained(base)
    for change, reason in (({"num_hidden_layers": 1}, "only one of"), ({"intermediate_size": 64}, "do not belong")):
        other = save(LlamaForCausalLM(LlamaConfig(**{**config.to_dict(), **change})), tmp_path / reason, tokenizer)
        with pytest.raises(RecipeError, match=reason):
            delta.run("apply", other, difference, tmp_path / "out", "fp16")
    assert not (tmp_path / "out").exists()
