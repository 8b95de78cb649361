"""The CUDA path without a GPU: rehearsals of 7B and 13B on a stand-in for CUDA, under torch's own CUDA code.

Dispatch, autocast, the choice of attention kernels, the allocator, the loss scale, Trainer and bitsandbytes are real;
kernels are launched and compute nothing (driver.c). So a call that torch refuses on a GPU is refused here, and memory
is what torch's allocator hands out. Numbers and speed are not tested.
"""

import json
import os
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
CONFIGS = ROOT / "recipe" / "configs"
HEADERS = Path(sysconfig.get_path("purelib")) / "nvidia" / "cuda_runtime" / "include"
MIB = 1 << 20


@pytest.fixture(scope="module")
def driver(tmp_path_factory) -> Path:
    """The stand-in, compiled, under the names by which it is loaded."""
    compiler = shutil.which("cc") or shutil.which("gcc")
    if compiler is None:
        pytest.skip("there is no C compiler: the CUDA path was not tried")
    folder = tmp_path_factory.mktemp("driver")
    file = folder / "libcuda.so.1"
    command = [compiler, "-shared", "-fPIC", "-O1", "-w", "-I", HERE, "-I", HEADERS, HERE / "driver.c", "-o", file]
    subprocess.run(command, check=True)
    return file


def rehearse(driver: Path, folder: Path, config: str, *options: str) -> dict:
    result = folder / "result.json"
    command = [sys.executable, HERE / "stage.py", driver, "recipe.rehearse", "--config", CONFIGS / f"{config}.toml"]
    command += ["--output", result, "--set", f"runs={folder / 'runs'}", *options]
    env = os.environ | {"LD_PRELOAD": str(driver), "LD_LIBRARY_PATH": str(driver.parent), "OMP_NUM_THREADS": "1"}
    env.pop("CUDA_VISIBLE_DEVICES", None)
    done = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    assert "refused" not in done.stderr and "out of memory" not in done.stderr
    return json.loads(result.read_text(encoding="utf-8"))


RUNS = {
    "7b": ("vicuna-7b-p100", "--shape", "7b"),
    "7b-fast": ("vicuna-7b-p100-fast", "--shape", "7b"),
    "7b-fp16-sums": ("vicuna-7b-p100", "--shape", "7b", "--set", "train.matmul_accumulation=fp16"),
    "13b-nf4": ("vicuna-13b-p100", "--shape", "13b"),
}


@pytest.mark.parametrize("name", RUNS)
def test_a_rehearsal_on_a_p100_takes_the_memory_of_the_plan(driver, tmp_path, name):
    """Steps, save, validation and resume; the peak is what torch's allocator handed out."""
    config, *options = RUNS[name]
    result = rehearse(driver, tmp_path, config, *options)
    assert result["device"]["name"] == "Tesla P100-PCIE-16GB" and result["device"]["capability"] == [6, 0]
    memory = result["memory"]
    measured, planned = (round(memory[key]) for key in ("measured_mib", "planned_mib"))
    print(f"{name}: {measured:,} MiB, the plan says {planned:,}")
    assert measured == pytest.approx(planned, rel=0.01)
    known = json.loads((HERE / "results.json").read_text(encoding="utf-8"))[name]
    assert known == {"measured": pytest.approx(measured, abs=16), "planned": planned}, "update results.json"
