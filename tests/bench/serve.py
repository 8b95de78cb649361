"""Speed of the server: time to first token and tokens per second of one and of four clients, beside transformers.

    python tests/bench/serve.py --run runs/demo/latest

Prints one JSON object. Every client asks for the same number of tokens, greedily; an answer that ends early counts
with the tokens that it has. `transformers` is its own `generate` on the same model in the same process.
"""

import argparse
import json
import os
import resource
import statistics
import sys
import threading
import time
import urllib.request
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT))

PROMPT = "Explain what a GPU does in two sentences."


def ask(address: str, model: str, tokens: int) -> dict[str, float]:
    """Seconds to the first token and to the end, and the number of tokens, of one streamed answer."""
    body = {"model": model, "prompt": PROMPT, "max_tokens": tokens, "stream": True,
            "stream_options": {"include_usage": True}}  # fmt: skip
    headers = {"Content-Type": "application/json"}
    started, first, count = time.perf_counter(), 0.0, 0
    with urllib.request.urlopen(urllib.request.Request(address, json.dumps(body).encode(), headers)) as response:
        for line in response:
            if line.startswith(b"data: {"):
                first = first or time.perf_counter() - started
                count = json.loads(line[6:]).get("usage", {}).get("completion_tokens", count)
    return {"first": first, "seconds": time.perf_counter() - started, "tokens": count}


def clients(address: str, model: str, tokens: int, number: int) -> dict[str, float]:
    """`number` clients at once: the median time to the first token, and the tokens per second of all together."""
    answers: list[dict[str, float]] = []
    threads = [threading.Thread(target=lambda: answers.append(ask(address, model, tokens))) for _ in range(number)]
    started = time.perf_counter()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    seconds = time.perf_counter() - started
    return {
        "clients": number,
        "seconds_to_first_token": round(statistics.median(answer["first"] for answer in answers), 3),
        "tokens_per_second": round(sum(answer["tokens"] for answer in answers) / seconds, 2),
    }


def transformers_generate(engine: Any, model: str, tokens: int) -> dict[str, float]:
    """Tokens per second of transformers' own generation."""
    import contextlib

    import torch
    from transformers import GenerationConfig

    from recipe.serving.openai_api import encode_text

    end = engine.tokenizer.eos_token_id
    config = GenerationConfig(max_new_tokens=tokens, do_sample=False, eos_token_id=end, pad_token_id=end)
    ids = torch.tensor([encode_text(engine, PROMPT)], device=engine.device)
    base = model == "base" and hasattr(engine.model, "disable_adapter")
    started = time.perf_counter()
    with torch.no_grad(), engine.model.disable_adapter() if base else contextlib.nullcontext():
        out = engine.model.generate(input_ids=ids, generation_config=config)
    count = out.shape[1] - ids.shape[1]
    return {"tokens_per_second": round(count / (time.perf_counter() - started), 2)}


def measure(engine: Any, model: str, tokens: int) -> dict[str, Any]:
    """Everything, with the server in a thread of this process."""
    import asyncio

    from aiohttp import web

    from recipe.serving.access import Access
    from recipe.serving.server import Server

    loop, ready, ports = asyncio.new_event_loop(), threading.Event(), []
    runner = web.AppRunner(Server(engine, Access("127.0.0.1")).app(), access_log=None)

    async def start() -> None:
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        ports.append(runner.addresses[0][1])
        ready.set()

    thread = threading.Thread(target=lambda: (loop.run_until_complete(start()), loop.run_forever()), daemon=True)
    thread.start()
    ready.wait()
    address = f"http://127.0.0.1:{ports[0]}/v1/completions"
    ask(address, model, 2)  # the first forward pass is slower than the others
    engine.forget()
    rows = []
    for number in (1, 4):
        rows.append(clients(address, model, tokens, number))
        engine.forget()
    result = {"server": rows, "transformers": transformers_generate(engine, model, tokens)}
    asyncio.run_coroutine_threadsafe(runner.cleanup(), loop).result()
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run", type=Path, required=True, metavar="DIR", help="a finished run")
    parser.add_argument("--model", default="tuned", choices=("tuned", "base"))
    parser.add_argument("--tokens", type=int, default=32, metavar="N", help="tokens per answer (default 32)")
    args = parser.parse_args()

    import torch

    from recipe.core.run import Run
    from recipe.serving.open import open_engine

    run = Run.open(args.run)
    engine = open_engine(run.config(), run)
    result = measure(engine, args.model, args.tokens)
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    machine = {"threads": torch.get_num_threads(), "load": round(os.getloadavg()[0], 1), "device": str(engine.device)}
    print(json.dumps({"model": args.model, "tokens": args.tokens, **result, "peak_rss_mb": round(memory), **machine}))


if __name__ == "__main__":
    main()
