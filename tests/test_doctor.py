"""The doctor on mocked GPUs: only the answers of NVML and torch.cuda are replaced. The machine itself is real."""

import json
from collections import namedtuple
from pathlib import Path

import pynvml
import pytest
import torch

from recipe import doctor
from recipe.core import config as configs
from recipe.core.cli import entry
from recipe.core.errors import UsageError
from recipe.core.files import MANIFEST
from recipe.environment import checks as machine
from recipe.environment import locks
from recipe.environment.checks import Check
from recipe.pascal import probe
from recipe.pascal.probe import GemmBenchmark, Probe
from recipe.planning.whole import make_plan

CONFIGS = Path(doctor.__file__).parent / "configs"
SEVEN = CONFIGS / "vicuna-7b-p100.toml"
MIB = 1 << 20
ARCHITECTURES = ["sm_37", "sm_50", "sm_60", "sm_70", "sm_75", "sm_80", "sm_86"]
Memory = namedtuple("Memory", "total free used")
Process = namedtuple("Process", "pid usedGpuMemory")


class Hardware:
    """What NVML and torch.cuda say; a test changes a field."""

    driver: str | bytes = "535.183.01"
    name: str | bytes = "Tesla P100-PCIE-16GB"
    capability = (6, 0)
    total, free = 16_280 * MIB, 16_270 * MIB
    processes: tuple = ()
    before: str = ""  # the name of another GPU that NVML counts first
    init_error: Exception | None = None
    cards = 1
    torch_sees = True


@pytest.fixture
def hardware(monkeypatch) -> Hardware:
    state = Hardware()

    def init() -> None:
        if state.init_error:
            raise state.init_error

    def handle(index: int) -> str:
        if index >= state.cards + bool(state.before):
            raise pynvml.NVMLError(pynvml.NVML_ERROR_INVALID_ARGUMENT)
        return "other" if state.before and not index else "handle"

    answers = {
        "nvmlInit": init,
        "nvmlShutdown": lambda: None,
        "nvmlSystemGetDriverVersion": lambda: state.driver,
        "nvmlDeviceGetCount": lambda: state.cards + bool(state.before),
        "nvmlDeviceGetHandleByIndex": handle,
        "nvmlDeviceGetName": lambda handle: state.before if handle == "other" else state.name,
        "nvmlDeviceGetCudaComputeCapability": lambda handle: state.capability,
        "nvmlDeviceGetMemoryInfo": lambda handle: Memory(state.total, state.free, state.total - state.free),
        "nvmlDeviceGetComputeRunningProcesses": lambda handle: state.processes,
    }
    for name, answer in answers.items():
        monkeypatch.setattr(pynvml, name, answer)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: state.torch_sees)
    monkeypatch.setattr(torch.cuda, "get_arch_list", lambda: ARCHITECTURES)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: state.name)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device=None: state.capability)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda: (state.free, state.total))
    good = Probe(finite=True, error=1e-4, dtype=torch.float16)
    monkeypatch.setattr(probe, "int8", lambda device, dtype: good)
    monkeypatch.setattr(probe, "attention", lambda device, dtype: good)
    return state


def checks(config=None) -> dict[str, Check]:
    return {check.name: check for check in doctor.run(config)}


def test_a_p100_is_fit(hardware):
    found = checks()
    assert [check.verdict for check in found.values()] == ["ok"] * len(found)
    assert found["gpu"].found == "Tesla P100-PCIE-16GB, compute capability 6.0"
    assert found.keys() >= {"python", "glibc", "packages", "torch", "driver", "memory", "int8 probe", "attention probe"}


def test_the_gpu_is_that_of_torch_and_not_the_first_of_nvml(hardware):
    """CUDA begins with the fastest GPU, NVML with the first slot: here one that drives a display."""
    hardware.before = "NVIDIA GeForce GT 1030"
    assert checks()["gpu"].found == "Tesla P100-PCIE-16GB, compute capability 6.0"


def test_a_driver_older_than_a_function_of_nvml(hardware, monkeypatch):
    """The list of processes comes with a version that drivers of branch 450 do not have."""

    def missing(handle):
        raise pynvml.NVMLLibraryMismatchError("Unversioned function called and the pyNVML version does not match")

    monkeypatch.setattr(pynvml, "nvmlDeviceGetComputeRunningProcesses", missing)
    found = checks()
    assert found["gpu"].verdict == found["memory"].verdict == found["driver"].verdict == "ok"


def test_a_p40_is_probed_in_fp32(hardware, monkeypatch):
    dtypes = []

    def probed(device, dtype):
        dtypes.append(dtype)
        return Probe(finite=True, error=1e-6, dtype=dtype)

    monkeypatch.setattr(probe, "int8", probed)
    monkeypatch.setattr(probe, "attention", probed)
    hardware.name, hardware.capability = "Tesla P40", (6, 1)
    assert checks()["int8 probe"].found == "error 1.0e-06 against fp32 on cuda in float32"
    assert dtypes == [torch.float32] * 2


@pytest.mark.parametrize(
    ("version", "verdict", "said"),
    [
        ("450.80.02", "ok", "450.80.02"),
        (b"580.65.06", "ok", "580.65.06"),
        ("450.51.06", "fail", "too old"),
        ("418.226.00", "fail", "too old"),
        ("590.44.01", "fail", "does not support Pascal"),
        ("610.1", "fail", "does not support Pascal"),
        ("unknown", "warn", "is not a number"),
    ],
)
def test_the_driver(hardware, version, verdict, said):
    hardware.driver = version
    check = checks()["driver"]
    assert check.verdict == verdict and said in check.found
    assert bool(check.hint) == (verdict != "ok")


@pytest.mark.parametrize(
    ("name", "capability", "verdict"),
    [
        ("Tesla P100-SXM2-16GB", (6, 0), "ok"),
        ("NVIDIA GeForce GTX 1080", (6, 1), "warn"),
        ("NVIDIA A100", (8, 0), "warn"),
        ("NVIDIA L4", (8, 9), "warn"),
        ("NVIDIA H100", (9, 0), "fail"),
        ("A GPU of the Future", (12, 1), "fail"),
        ("GeForce GTX 680", (3, 0), "fail"),
    ],
)
def test_another_gpu(hardware, name, capability, verdict):
    hardware.name, hardware.capability = name, capability
    check = checks()["gpu"]
    assert check.verdict == verdict and name in check.found
    if verdict == "fail":
        assert "sm_60" in check.found and "P100" in check.hint


def test_a_name_cannot_command_the_terminal(hardware):
    hardware.name = b"P100\x1b[2J"
    assert "\x1b" not in checks()["gpu"].found


def test_memory_that_others_hold_is_named(hardware):
    config = configs.load(SEVEN)
    hardware.processes = [Process(4242, 1_000 * MIB), Process(4243, None)]
    hardware.free = 15_000 * MIB
    check = checks(config)["memory"]
    assert check.verdict == "warn" and "pid 4242 (1,000 MiB)" in check.found and "pid 4243 (?)" in check.found
    hardware.free = 5_000 * MIB
    check = checks(config)["memory"]
    assert check.verdict == "fail" and "5,000 of 16,280" in check.found and "stop pid 4242" in check.hint
    hardware.processes = ()
    assert "no process is listed" in checks(config)["memory"].hint


@pytest.mark.parametrize(("count", "verdict"), [(1, "fail"), (2, "ok"), (3, "ok")])
def test_a_split_base_needs_its_gpus(hardware, monkeypatch, count, verdict):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: count)
    check = checks(configs.load(SEVEN, {"base.split": 2}))["gpus"]
    assert (check.verdict, check.found) == (verdict, f"{count} visible, base.split needs 2")
    assert "gpus" not in checks(configs.load(SEVEN))


def test_a_gpu_too_small_for_the_config(hardware):
    hardware.total = hardware.free = 6_000 * MIB
    check = checks(configs.load(SEVEN))["memory"]
    assert check.verdict == "fail" and "the plan needs 8," in check.found and "make plan" in check.hint


def test_our_own_process_is_not_listed(hardware):
    import os

    hardware.processes = [Process(os.getpid(), MIB)]
    assert checks()["memory"].verdict == "ok"


def test_a_driver_that_torch_cannot_use(hardware):
    hardware.torch_sees = False
    check = checks()["torch sees"]
    assert check.verdict == "fail" and "--gpus all" in check.hint


def test_nvml_missing_beside_a_gpu_is_a_warning(hardware):
    hardware.init_error = pynvml.NVMLError(pynvml.NVML_ERROR_LIBRARY_NOT_FOUND)
    found = checks(configs.load(SEVEN))
    assert found["driver"].verdict == "warn" and "no NVML" in found["driver"].found
    assert "compute,utility" in found["driver"].hint
    assert found["gpu"].verdict == "ok" and found["memory"].verdict == "ok"


@pytest.mark.parametrize("code", [pynvml.NVML_ERROR_DRIVER_NOT_LOADED, pynvml.NVML_ERROR_LIB_RM_VERSION_MISMATCH])
def test_a_driver_that_does_not_run(hardware, code):
    hardware.init_error, hardware.torch_sees = pynvml.NVMLError(code), False
    found = checks(configs.load(SEVEN))
    assert found["driver"].verdict == found["device"].verdict == "fail"
    assert "NVML does not start" in found["driver"].found


@pytest.mark.parametrize("visible", ["1", "-1", ""])
def test_a_gpu_that_is_absent_or_hidden(hardware, monkeypatch, visible):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    hardware.torch_sees = False
    assert "CUDA_VISIBLE_DEVICES" in checks()["gpu"].hint


@pytest.mark.parametrize(
    ("result", "said"),
    [
        (Probe(False, float("inf"), torch.float16), "inf or NaN"),
        (Probe(True, 0.5, torch.float16), "error 5.0e-01"),
        (RuntimeError("CUDA error: no kernel image is available\nfor execution"), "does not run on cuda"),
    ],
)
def test_a_probe_that_fails(hardware, monkeypatch, result, said):
    def work(where, dtype):
        if isinstance(result, Exception):
            raise result
        return result

    monkeypatch.setattr(probe, "int8", work)
    check = checks()["int8 probe"]
    assert check.verdict == "fail" and said in check.found and "\n" not in check.found and check.hint


@pytest.fixture
def no_gpu(hardware) -> Hardware:
    hardware.init_error, hardware.torch_sees = pynvml.NVMLError(pynvml.NVML_ERROR_LIBRARY_NOT_FOUND), False
    return hardware


def test_without_a_gpu_only_small_configs_are_fit(no_gpu, tiny_run):
    found = checks(tiny_run)
    assert found["device"].verdict == found["driver"].verdict == "warn"
    assert found["weights"].verdict == found["corpus"].verdict == "ok"
    assert "FIT, but look at: driver, device" in doctor.verdict(list(found.values()))
    large = checks(configs.load(SEVEN))
    assert large["device"].verdict == "fail" and "needs a GPU" in large["device"].found


@pytest.mark.parametrize(
    "change", [{"base.precision": "nf4"}, {"train.optimizer": "adamw8bit"}, {"train.matmul_accumulation": "fp16"}]
)
def test_nf4_and_8bit_adam_need_a_gpu(no_gpu, tiny_run, change):
    config = configs.load(None, {"base.path": tiny_run.base.path, "corpus.path": tiny_run.corpus.path, **change})
    assert checks(config)["device"].verdict == "fail"


@pytest.mark.parametrize("change", [{"lora.target_modules": ["query"]}, {"train.recompute": 3}, {"lora.rank": 0}])
def test_a_config_that_cannot_be_right_is_not_judged(no_gpu, tiny_run, change):
    with pytest.raises(UsageError):
        doctor.run(configs.load(None, {"base.path": tiny_run.base.path, **change}))


@pytest.mark.parametrize(
    ("fp16", "verdict", "hint"), [((1.0, 1.0, 3.0), "ok", ""), ((3.0, 3.0, 3.0), "warn", "will accumulate in fp32")]
)
def test_fp16_accumulation_is_measured_if_configured(hardware, monkeypatch, fp16, verdict, hint):
    asked = []

    def answer(where, shapes, tokens):
        asked.append((where.type, sorted(shapes), tokens))
        return [GemmBenchmark(*shape, 3e-3, ms, 2.0) for shape, ms in zip(sorted(shapes), fp16, strict=True)]

    monkeypatch.setattr(probe, "benchmark_gemm", answer)
    assert "fp16 accumulation" not in checks(configs.load(SEVEN)) and not asked
    check = checks(configs.load(SEVEN, {"train.matmul_accumulation": "fp16"}))["fp16 accumulation"]
    assert asked == [
        ("cuda", [(4096, 4096), (4096, 11008), (11008, 4096)], configs.load(SEVEN).train.micro_batch_tokens)
    ]
    assert check.verdict == verdict and hint in check.hint and bool(check.hint) == bool(hint)
    assert "4096 to 11008: fp16 accumulation" in check.found and "error 3.0e-03" in check.found


def test_fp16_accumulation_that_does_not_run(hardware, monkeypatch):
    def answer(where, shapes, tokens):
        raise RuntimeError("cuBLAS gave status 15\nhere")

    monkeypatch.setattr(probe, "benchmark_gemm", answer)
    check = checks(configs.load(SEVEN, {"train.matmul_accumulation": "fp16"}))["fp16 accumulation"]
    assert check.verdict == "warn" and check.found == "does not run: cuBLAS gave status 15"


def test_fp16_accumulation_is_not_measured_on_a_cpu(no_gpu):
    check = checks(configs.load(SEVEN, {"train.matmul_accumulation": "fp16"}))["fp16 accumulation"]
    assert check.verdict == "warn" and "not measured" in check.found


def test_exit_codes_and_json(no_gpu, tiny_run, tmp_path, capsys):
    path = tmp_path / "tiny.toml"
    path.write_text(configs.dump(tiny_run))
    assert entry(lambda: doctor.main(["--config", str(path), "--json"])) == 0
    result = json.loads(capsys.readouterr().out)
    assert result["fit"] and {check["name"] for check in result["checks"]} >= {"RAM", "disk", "corpus"}
    assert entry(lambda: doctor.main(["--config", str(SEVEN)])) == 3
    out = capsys.readouterr().out
    assert out.splitlines()[-1].startswith("UNFIT: ") and "weights: run `make convert` with the same CONFIG" in out
    assert entry(lambda: doctor.main(["--config", str(tmp_path / "none.toml")])) == 2


def test_an_altered_file_is_found(no_gpu, tiny_run, tmp_path):
    import shutil

    copy = Path(shutil.copytree(tiny_run.corpus.path, tmp_path / "corpus"))
    with open(copy / "train.jsonl", "a") as file:
        file.write("{}\n")
    check = machine.check_artefact("corpus", str(copy), "corpus")
    assert check.verdict == "fail" and "train.jsonl" in check.found
    (copy / MANIFEST).write_text("[]")
    assert machine.check_artefact("corpus", str(copy), "corpus").verdict == "fail"
    assert "does not exist yet" in machine.check_artefact("corpus", str(tmp_path / "none"), "corpus").found


def disk_of(free):
    return lambda path: namedtuple("usage", "total used free")(free, 0, free)


def test_a_p100_on_which_nothing_is_made_yet_is_fit(hardware, monkeypatch, tmp_path):
    paths = {"base.source": "raw", "base.path": "llama-7b", "corpus.path": "sharegpt", "runs": "runs"}
    config = configs.load(SEVEN, {key: str(tmp_path / name) for key, name in paths.items()})
    whole = make_plan(config).disk
    monkeypatch.setattr("shutil.disk_usage", disk_of(sum(whole.values())))
    monkeypatch.setattr(machine.sizing, "available_memory", lambda: 8 << 30)
    found = checks(config)
    assert doctor.verdict(list(found.values())) == "FIT; still to make: weights, corpus"
    assert f"{sum(whole.values()) / 1e9:.1f} GB needed" in found["disk"].found  # as the plan says
    monkeypatch.setattr("shutil.disk_usage", disk_of(sum(whole.values()) - 1))
    assert checks(config)["disk"].verdict == "fail"
    (tmp_path / "raw").mkdir()
    (tmp_path / "raw" / "params.json").write_text("{}")  # the raw weights are there
    assert checks(config)["disk"].verdict == "ok"


def test_a_folder_of_other_files_is_no_place_for_weights(hardware, tmp_path):
    (tmp_path / "llama-7b").mkdir()
    config = configs.load(SEVEN, {"base.path": str(tmp_path / "llama-7b")})
    assert checks(config)["weights"].verdict == "todo"
    (tmp_path / "llama-7b" / "notes.txt").write_text("mine")
    assert checks(config)["weights"].verdict == "fail"


def test_a_full_disk_and_too_little_memory(no_gpu, tiny_run, monkeypatch):
    monkeypatch.setattr("shutil.disk_usage", disk_of(1))
    monkeypatch.setattr(machine.sizing, "available_memory", lambda: 1 << 28)
    found = checks(tiny_run)
    assert found["disk"].verdict == found["RAM"].verdict == "fail"


def test_python_glibc_and_packages_report_versions(monkeypatch, tmp_path):
    monkeypatch.setattr("platform.python_version", lambda: "3.12.1")
    monkeypatch.setattr("sys.version_info", (3, 12, 1))
    assert "3.11" in machine.check_python().hint
    monkeypatch.setattr("platform.libc_ver", lambda: ("glibc", "2.17"))
    assert machine.check_glibc().verdict == "fail" and "2.17" in machine.check_glibc().found
    monkeypatch.setattr("platform.libc_ver", lambda: ("", ""))
    assert machine.check_glibc().found == "none"
    (tmp_path / "requirements.lock").write_text(
        "torch==9.9 \\\n    --hash=sha256:0\nnot-there==1.0 \\\n    --hash=sha256:0\n"
    )
    monkeypatch.setattr(locks, "DOCKER", tmp_path)
    check = machine.check_packages()
    assert check.verdict == "fail" and "instead of 9.9" in check.found and "not-there is missing" in check.found


@pytest.mark.parametrize("version", ["12.1", None])
def test_a_torch_for_another_cuda(monkeypatch, version):
    monkeypatch.setattr(torch.version, "cuda", version)
    assert machine.check_torch().verdict == "fail" and "CUDA 11" in machine.check_torch().hint
