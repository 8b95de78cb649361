"""Every stage on tiny real objects: the folder before it, the folder after it, and whether two folders are the same."""

import functools
import hashlib
import importlib
import json
import os
import pkgutil
import shutil
import zipfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from recipe.core.lineage import verify_all
from tests.downloads.test_hub import COMMIT
from tests.faults import child
from tests.faults.surroundings import around

COLOURS = ["blue", "green", "red", "grey"]
CONFIG = """\
name = "tiny"
[base]
source = "raw/tiny"
path = "weights/tiny"
[corpus]
path = "data/tiny"
val_fraction = 0.2
max_length = 256
processes = 1
[[corpus.source]]
path = "raw/talk.json"
[lora]
rank = 4
alpha = 8
dropout = 0.1
target_modules = ["q_proj", "v_proj"]
[train]
epochs = 2.0
micro_batch_tokens = 256
gradient_accumulation_steps = 2
learning_rate = 1e-2
save_steps = 2
eval_steps = 4
[evaluate]
prompts = ["Who are you?"]
max_new_tokens = 4
"""
RUN = ["--run", "runs/tiny/latest"]
# Stage -> (module, arguments), in the order in which each finds what the others left.
STAGES: dict[str, tuple[str, list[str]]] = {
    "fetch": ("fetch", ["toy", "--output", "raw/toy"]),
    "hub": ("fetch", ["own/toy", "--revision", COMMIT, "--output", "raw/hub"]),
    "meta": ("fetch", ["llama", "--output", "raw/llama"]),
    "convert": ("convert", ["--config", "run.toml"]),
    "corpus": ("corpus", ["--config", "run.toml"]),
    "export": ("corpus", ["--config", "run.toml", "--export", "sharegpt"]),
    "train": ("train", ["--config", "run.toml"]),
    "gpus": ("train", ["--config", "run.toml", "--set", "name=pair"]),  # two processes
    "evaluate": ("evaluate", RUN),
    "merge": ("merge", RUN),
    "gguf": ("merge", [*RUN, "--to", "gguf-q8_0"]),
    "judge": ("evaluate", [*RUN, "--exports"]),
    "delta": (
        "delta",
        ["make", "--base", "weights/tiny", "--other", "runs/tiny/latest/merged", "--output", "weights/delta"],
    ),
    "report": ("report", RUN),
    "serve": ("serve", ["--model", "runs/tiny/latest/merged", "--precision", "int8", "--port", "0"]),
    "chat": ("chat", [*RUN, "--max-new-tokens", "2"]),
    "rehearse": ("rehearse", ["--config", "run.toml", "--output", "results/tiny.json"]),
}
SLOW = ("fetch", "gpus", "rehearse")  # seconds each: pip, two processes, a measurement
RAW = ("raw", "run.toml", "index")  # inputs that no manifest covers: altered ones are other inputs
# Of a log, what does not depend on the machine's speed.
LOGGED = ("step", "epoch", "loss", "eval_loss", "learning_rate", "grad_norm")


def preload() -> None:
    """Import once, in the process that forks, what every stage would import."""
    import datasets  # noqa: F401
    import peft  # noqa: F401
    from transformers import (  # noqa: F401
        AutoTokenizer,
        LlamaForCausalLM,
        LlamaTokenizerFast,
        PreTrainedTokenizerFast,
        Trainer,
        convert_slow_tokenizer,
    )

    import recipe
    from recipe.core.versions import code_sha256, environment

    for module in pkgutil.walk_packages(recipe.__path__, "recipe."):
        importlib.import_module(module.name)
    code_sha256(), environment()


def main_of(stage: str) -> Callable[[], int]:
    """The stage's command, as a function without arguments."""
    module, arguments = STAGES[stage]
    return functools.partial(importlib.import_module(f"recipe.{module}").main, arguments)


def setup(folder: Path) -> None:
    """Called in the stage's process: a package index in the folder, and servers on loopback, instead of the network."""
    from recipe import fetch

    wheel = folder / "index" / "toy_weights-1.0-py3-none-any.whl"
    os.environ |= {"PIP_NO_INDEX": "1", "PIP_FIND_LINKS": str(wheel.parent), "PIP_DISABLE_PIP_VERSION_CHECK": "1"}
    os.environ |= {"NO_PROXY": "127.0.0.1", "no_proxy": "127.0.0.1"}
    catalogue = folder / "index" / "sources.toml"
    if catalogue.is_file():
        fetch.SOURCES = catalogue


@dataclass(frozen=True, eq=False)
class World:
    """Folders before and after every stage under `folder`."""

    folder: Path
    addresses: Mapping[str, str]  # of servers to download from
    calls: dict[str, int] = field(default_factory=dict)  # calls that change a file, of each stage undisturbed

    def before(self, stage: str) -> Path:
        return self.folder / "before" / stage

    def trial(self, stage: str, name: str = "trial") -> Path:
        """A fresh copy of the folder before a stage."""
        place = self.folder / name
        shutil.rmtree(place, ignore_errors=True)
        shutil.copytree(self.before(stage), place, symlinks=True)
        return place

    def run(self, stage: str, place: Path, fault: child.Fault | None = None, more: Callable = int) -> child.Outcome:
        """Run a stage in a trial's folder."""

        main = main_of(stage)
        with around(stage, main, self.addresses) as setup_stage:

            def all_setups() -> None:
                setup(place)
                setup_stage()
                more()

            return child.run(main, place, fault, all_setups)

    def difference(self, stage: str, place: Path) -> str:
        """In what a trial's folder differs from what the stage leaves undisturbed; empty: in nothing."""
        for run in sorted((place / "runs").glob("*/*/config.toml")):
            if not run.parent.is_symlink() and (problems := verify_all(run.parent)):
                return f"problems: {problems[:3]}"
        expected, found = self.content(stage), content(place)
        if expected == found:
            return ""
        names = sorted(name for name in {*expected, *found} if expected.get(name) != found.get(name))
        lost, added = sorted({*expected} - {*found}), sorted({*found} - {*expected})
        return f"differ: {names[:8]}, lost: {lost[:5]}, added: {added[:5]}"

    @functools.lru_cache  # noqa: B019 - a world lives as long as the process
    def content(self, stage: str) -> dict[str, str]:
        return content(self.folder / "after" / stage)


def content(folder: Path) -> dict[str, str]:
    """Name -> digest of every file, link and folder, without what differs between two undisturbed runs."""
    out = {}
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder).as_posix()
        if path.name in (".lock", ".records.lock"):  # of a run: nobody's, once their process is gone
            continue
        if path.is_symlink():
            out[name] = f"-> {path.readlink()}"
        elif path.is_dir():
            out[name] = "folder"
        elif "tfevents" in path.name:
            out[name.partition(".tfevents")[0]] = "file"
        elif path.name == ".eval-parts.jsonl":  # what an evaluation resumes from, in the order in which it came
            out[name] = "file"
        elif name.startswith("results/"):  # speeds
            out[name] = " ".join(sorted(json.loads(path.read_text())))
        elif path.name == "records.json":
            out[name] = " ".join(sorted(json.loads(path.read_text())["outputs"]))
        elif path.name == "metrics.jsonl":
            rows = map(json.loads, path.read_text().splitlines())
            out[name] = json.dumps([{key: row.get(key) for key in LOGGED} for row in rows])
        else:
            out[name] = hashlib.sha256(path.read_bytes()).hexdigest()
    return out


def build(folder: Path, source: Path, addresses: Mapping[str, str]) -> World:
    """Run every stage once. `source`: a tiny model with its tokenizer, as transformers saves it."""
    place, world = folder / "place", World(folder, addresses)
    (place / "raw").mkdir(parents=True)
    shutil.copytree(source, place / "raw" / "tiny")
    (place / "run.toml").write_text(CONFIG)
    records = [
        {
            "id": f"c{number}",
            "conversations": [
                {"from": "human", "value": f"Which colour is thing {number}? 你好"},
                {"from": "gpt", "value": f"Thing {number} is {COLOURS[number % 4]}."},
                {"from": "human", "value": "Sure?"},
                {"from": "gpt", "value": f"Yes, {COLOURS[number % 4]}."},
            ],
        }
        for number in range(24)
    ]
    (place / "raw" / "talk.json").write_text(json.dumps(records))
    _write_wheel(place / "index")
    for stage in STAGES:
        shutil.copytree(place, folder / "before" / stage, symlinks=True)
        done = world.run(stage, place)
        if done.status:
            raise RuntimeError(f"{stage} failed undisturbed: {done.messages}")
        world.calls[stage] = done.calls
        shutil.copytree(place, folder / "after" / stage, symlinks=True)
    return world


def _write_wheel(folder: Path) -> None:
    folder.mkdir()
    path = folder / "toy_weights-1.0-py3-none-any.whl"
    meta = "toy_weights-1.0.dist-info"
    with zipfile.ZipFile(path, "w") as archive:
        for name, text in (
            ("toy_weights/w.gguf", "weights"),
            (f"{meta}/METADATA", "Metadata-Version: 2.1\nName: toy-weights\nVersion: 1.0\n"),
            (f"{meta}/WHEEL", "Wheel-Version: 1.0\nTag: py3-none-any\n"),
            (f"{meta}/RECORD", ""),
        ):
            archive.writestr(zipfile.ZipInfo(name), text)
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    (folder / "sources.toml").write_text(
        f'[toy]\nkind = "weights"\nwheel = "toy-weights==1.0"\nsha256 = "{digest}"\nmember = "toy_weights/w.gguf"\n'
        'licence = "MIT"\nformat = "GGUF"\nsize = "1 kB"\nlanguage = "-"\n'
        '[llama]\nkind = "weights"\nmeta = "13B"\nlicence = "-"\n'
    )
