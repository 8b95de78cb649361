"""Logits streamed layer by layer, against peft and transformers themselves."""

import dataclasses
import weakref
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, LlamaConfig

from recipe.checkpoints import llama, safetensors
from recipe.model.stream import stream_logits

IDS = [1, 20, 31, 42, 53, 64, 75, 86, 97]


def transformers_logits(folder: Path, change=lambda model: None) -> torch.Tensor:
    model = AutoModelForCausalLM.from_pretrained(folder, torch_dtype=torch.float32).eval()
    with torch.no_grad():
        change(model)
        return model(input_ids=torch.tensor([IDS])).logits[0]


def test_logits_equal_those_of_transformers(tiny_base):
    streamed = stream_logits(LlamaConfig.from_pretrained(tiny_base), safetensors.open_folder(tiny_base), IDS)
    torch.testing.assert_close(streamed, transformers_logits(tiny_base), rtol=1e-4, atol=1e-4)


def test_deltas_equal_weights_that_hold_them(tiny_base):
    name = "model.layers.1.self_attn.q_proj.weight"
    b, a = torch.randn(48, 4), torch.randn(4, 48)
    tensors = safetensors.open_folder(tiny_base)
    streamed = stream_logits(LlamaConfig.from_pretrained(tiny_base), tensors, IDS, {name: (b, a)})
    merged = transformers_logits(tiny_base, lambda model: model.get_parameter(name).add_(b @ a))
    assert (merged - transformers_logits(tiny_base)).abs().max() > 0.1
    torch.testing.assert_close(streamed, merged, rtol=1e-4, atol=1e-4)


def test_tied_embeddings_are_read_for_the_head(tiny_base):
    config = LlamaConfig.from_pretrained(tiny_base, tie_word_embeddings=True)
    tensors = safetensors.open_folder(tiny_base)
    untied = LlamaConfig.from_pretrained(tiny_base)
    expected = stream_logits(untied, {**tensors, llama.HEAD: tensors[llama.EMBEDDING]}, IDS)
    del tensors[llama.HEAD]
    assert torch.equal(stream_logits(config, tensors, IDS), expected)


def test_one_layer_is_in_memory_at_a_time(tiny_base):
    alive: dict[str, weakref.ref] = {}
    most = 0

    def watch(tensor):
        def read():
            nonlocal most
            data = tensor.read().float().numpy().copy()
            alive[tensor.name] = weakref.ref(data)  # alive as long as a tensor uses its memory
            held = {name.split(".")[2] for name, ref in alive.items() if ".layers." in name and ref() is not None}
            most = max(most, len(held))
            return torch.from_numpy(data)

        return dataclasses.replace(tensor, read=read)

    tensors = {name: watch(tensor) for name, tensor in safetensors.open_folder(tiny_base).items()}
    stream_logits(LlamaConfig.from_pretrained(tiny_base), tensors, IDS)
    assert most == 1 and len(alive) == len(tensors)
