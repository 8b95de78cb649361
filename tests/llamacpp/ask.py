"""Runs in llama.cpp's own environment: what llama.cpp makes of a GGUF file. Nothing of this recipe is imported.

stdin: {"model": file, "lora": file or null, "items": [{"messages": [...], "reference": [token, ...]}]}.
stdout, for each item: `ids`, the prompt that it makes of the messages with the chat template in the file; `greedy`, its
own tokens after that prompt; `forced`, its most probable token after the prompt and each beginning of `reference`.
"""

import json
import sys
from typing import Any

import llama_cpp
import numpy as np


def open_model(task: dict[str, Any]) -> llama_cpp.Llama:
    return llama_cpp.Llama(
        model_path=task["model"],
        lora_path=task["lora"],
        n_ctx=512,
        n_threads=1,  # more of them wait for each other on a machine with other work
        n_threads_batch=1,
        n_gpu_layers=0,
        type_k=llama_cpp.GGML_TYPE_F32,  # as transformers keeps keys and values here
        type_v=llama_cpp.GGML_TYPE_F32,
        logits_all=True,
        verbose=False,
    )


def prompt_of(model: llama_cpp.Llama, messages: list[dict[str, str]]) -> list[int]:
    """The ids that the library's chat completion passes on to its completion."""
    seen: list[list[int]] = []
    complete = model.create_completion

    def spy(*args: Any, **options: Any) -> Any:
        seen.append(list(options["prompt"]))
        return complete(*args, **options)

    model.create_completion = spy
    try:
        model.create_chat_completion(messages=messages, max_tokens=1, temperature=0.0)
    finally:
        model.create_completion = complete
    return seen[0]


def greedy(model: llama_cpp.Llama, ids: list[int], count: int) -> list[int]:
    out: list[int] = []
    for token in model.generate(ids, top_k=1, temp=0.0, repeat_penalty=1.0):
        out.append(token)
        if len(out) == count:
            break
    return out


def forced(model: llama_cpp.Llama, ids: list[int], reference: list[int]) -> list[int]:
    model.reset()
    model.eval(ids + reference[:-1])
    rows = model.scores[len(ids) - 1 : len(ids) + len(reference) - 1]
    return [int(token) for token in np.argmax(rows, axis=1)]


def main() -> None:
    task = json.load(sys.stdin)
    model = open_model(task)
    out = []
    for item in task["items"]:
        ids = prompt_of(model, item["messages"])
        own = greedy(model, ids, len(item["reference"]))
        out.append({"ids": ids, "greedy": own, "forced": forced(model, ids, item["reference"])})
    json.dump({"version": llama_cpp.__version__, "items": out}, sys.stdout)


if __name__ == "__main__":
    main()
