"""Speed and memory of the server, beside transformers' generate and llama.cpp's server, on the same model and machine.

    python tests/bench/serve.py --weights weights/smollm2-135m-instruct [--llama PYTHON] [--turns 3]

Prints one JSON object. One and four clients ask at once, each for the same number of tokens, greedily. Every text
differs from its first number on, so that no server has its keys and values already. All ways take turns; a number is
the median of the turns. `transformers` answers four as one batch, in this process. PYTHON has llama-cpp-python with
its server: `pip install llama-cpp-python[server]`.
"""

import argparse
import contextlib
import itertools
import json
import os
import re
import socket
import statistics
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[2]))
sys.path.insert(0, str(Path(__file__).parents[1] / "serving"))
from programs import ROOT, start_server

CLIENTS = (1, 4)
Measure = Callable[[int, int], dict[str, float]]  # (clients, tokens) -> first: seconds, rate: tokens per second
numbers = itertools.count(1)


def question() -> str:
    """A text to continue that differs from the others at its start and that the model does not end by itself."""
    begin = 100 * next(numbers)
    return ", ".join(str(number) for number in range(begin, begin + 16)) + ","


def ask(address: str, model: str, tokens: int) -> dict[str, float]:
    """Seconds to the first token, and the number of tokens, of one streamed answer."""
    body = {"model": model, "prompt": question(), "max_tokens": tokens, "temperature": 0, "stream": True}
    headers = {"Content-Type": "application/json"}
    started, first, count = time.perf_counter(), 0.0, 0
    request = urllib.request.Request(address + "v1/completions", json.dumps(body).encode(), headers)
    with urllib.request.urlopen(request) as response:
        for line in response:
            if line.startswith(b"data: {"):
                first = first or time.perf_counter() - started
                count += bool(json.loads(line[6:])["choices"][0]["text"])
    return {"first": first, "tokens": count}


def asking(address: str, model: str) -> Measure:
    """Clients at once: the median time to the first token, and the tokens per second of all together."""

    def measure(clients: int, tokens: int) -> dict[str, float]:
        answers: list[dict[str, float]] = []
        threads = [threading.Thread(target=lambda: answers.append(ask(address, model, tokens))) for _ in range(clients)]
        started = time.perf_counter()
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        seconds = time.perf_counter() - started
        first = statistics.median(answer["first"] for answer in answers)
        return {"first": first, "rate": sum(answer["tokens"] for answer in answers) / seconds}

    return measure


def transformers_generate(weights: Path) -> Measure:
    """transformers' own generate in fp32; several clients are one batch."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(weights, padding_side="left")
    tokenizer.pad_token = tokenizer.eos_token
    model = AutoModelForCausalLM.from_pretrained(weights, torch_dtype=torch.float32)

    def generate(clients: int, tokens: int) -> tuple[float, int]:
        batch = tokenizer([question() for _ in range(clients)], return_tensors="pt", padding=True)
        started = time.perf_counter()
        out = model.generate(**batch, max_new_tokens=tokens, do_sample=False)
        made = out[:, batch["input_ids"].shape[1] :]
        return time.perf_counter() - started, int((made != tokenizer.pad_token_id).sum())

    def measure(clients: int, tokens: int) -> dict[str, float]:
        first, _ = generate(clients, 1)
        seconds, made = generate(clients, tokens)
        return {"first": first, "rate": made / seconds}

    return measure


@contextlib.contextmanager
def llama_server(python: str, weights: Path, kind: str, folder: Path) -> Iterator[tuple[int, str]]:
    """llama-cpp-python's server on `weights` as a GGUF of that kind; yields its process id and its address."""
    from recipe.checkpoints import gguf_out

    file = folder / f"model-{kind}.gguf"
    gguf_out.write(weights, file, kind)
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    options = {"model": file, "port": port, "n_ctx": 2048, "n_threads": threads(), "n_threads_batch": threads()}
    options |= {"interrupt_requests": "false", "verbose": "false"}  # else a second client ends the answer to the first
    flags = [str(part) for name, value in options.items() for part in (f"--{name}", value)]
    process = subprocess.Popen(
        [python, "-m", "llama_cpp.server", *flags], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    try:
        address = f"http://127.0.0.1:{port}/"
        for _ in range(600):
            with contextlib.suppress(OSError):
                urllib.request.urlopen(address + "v1/models").close()
                break
            time.sleep(0.2)
        yield process.pid, address
    finally:
        process.kill()
        process.wait()


def threads() -> int:
    return int(os.environ["OMP_NUM_THREADS"])


def peak_mb(pid: int) -> int:
    """The largest resident memory of a process so far."""
    status = Path(f"/proc/{pid}/status").read_text(encoding="utf-8")
    return int(re.search(r"VmHWM:\s+(\d+) kB", status)[1]) // 1024


def lines_of_code() -> int:
    """Lines of the engine, the API, the server and the page, with docstrings and empty lines."""
    files = [*(ROOT / "recipe" / "serving").glob("*.py"), ROOT / "recipe" / "serving" / "page.html"]
    return sum(len(file.read_text(encoding="utf-8").splitlines()) for file in [*files, ROOT / "recipe" / "serve.py"])


def in_turns(ways: dict[str, Measure], turns: int, tokens: int) -> dict[str, Any]:
    """For every way and number of clients the medians. The first, untimed question of each way warms it up."""
    for measure in ways.values():
        measure(1, 2)
    found: dict[tuple[str, int], list[dict[str, float]]] = {}
    for _, clients, name in itertools.product(range(turns), CLIENTS, ways):
        found.setdefault((name, clients), []).append(ways[name](clients, tokens))
        print(f"{name}, {clients} clients: {found[name, clients][-1]}", file=sys.stderr)
    return {
        f"{name}, {clients} clients": {
            "seconds_to_first_token": round(statistics.median(turn["first"] for turn in each), 2),
            "tokens_per_second": round(statistics.median(turn["rate"] for turn in each), 2),
        }
        for (name, clients), each in found.items()
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--weights", type=Path, required=True, metavar="DIR", help="a converted or merged folder")
    parser.add_argument("--llama", metavar="PYTHON", help="a Python with llama-cpp-python and its server")
    parser.add_argument("--tokens", type=int, default=32, metavar="N", help="tokens per answer (default 32)")
    parser.add_argument("--turns", type=int, default=3, metavar="N", help="turns of every way (default 3)")
    args = parser.parse_args()
    os.environ.setdefault("OMP_NUM_THREADS", str(len(os.sched_getaffinity(0))))

    with start_server() as start, contextlib.ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        ways, processes = {}, {}
        for precision in ("fp32", "int8"):
            process, address = start("--model", args.weights, "--precision", precision)
            ways[f"recipe {precision}"], processes[f"recipe {precision}"] = asking(address, "model"), process.pid
        for kind in ("f16", "q8_0") if args.llama else ():
            pid, address = stack.enter_context(llama_server(args.llama, args.weights, kind, folder))
            ways[f"llama.cpp {kind}"], processes[f"llama.cpp {kind}"] = asking(address, "model"), pid
        ways["transformers fp32"] = transformers_generate(args.weights)
        load = os.getloadavg()[0]
        result = in_turns(ways, args.turns, args.tokens)
        memory = {name: peak_mb(pid) for name, pid in processes.items()}
    machine = {"threads": threads(), "load_before": round(load, 1), "load_after": round(os.getloadavg()[0], 1)}
    print(json.dumps({**result, "tokens": args.tokens, "turns": args.turns, "peak_rss_mb": memory, **machine,
                      "lines_of_code": lines_of_code()}, indent=1))  # fmt: skip


if __name__ == "__main__":
    main()
