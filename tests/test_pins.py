"""The audit of an environment, on tiny ones made on the spot and on the running one."""

import base64
import hashlib
import json
import os
import re
import shutil
import struct
import subprocess
import sys
import tomllib
from collections.abc import Callable
from pathlib import Path

import pytest
from elftools.elf.elffile import ELFFile

from recipe import pins
from recipe.core.cli import entry
from recipe.environment import audit, fatbin, locks

ROOT = Path(__file__).parents[1]
SM_60 = [50, 60, 70]


def library(sass: list[int], ptx: tuple[int, ...] = (), registered: bool = True) -> bytes:
    """A minimal ELF64 shared object with one fat binary."""
    entries = b"".join(
        struct.pack("<HHIQIIHHI", kind, 0x101, 64, 8, 0, 0, 7, 1, architecture).ljust(72, b"\0")
        for kind, architectures in ((fatbin.SASS, sass), (fatbin.PTX, ptx))
        for architecture in architectures
    )
    sections = {
        "": b"",
        fatbin.LINKED: struct.pack("<IHHQ", fatbin.FATBIN_MAGIC, 1, 16, len(entries)) + entries,
        fatbin.WRAPPERS: struct.pack("<IIQQ", fatbin.WRAPPER_MAGIC, 1, 0, 0) if registered else b"",
        ".shstrtab": b"",
    }
    names = b"\0".join(name.encode() for name in sections) + b"\0"
    sections[".shstrtab"] = names
    body, headers, at = b"", b"", 64
    for name, content in sections.items():
        kind = 0 if not name else 3 if name == ".shstrtab" else 1
        name_at = names.index(name.encode() + b"\0")
        headers += struct.pack("<IIQQQQIIQQ", name_at, kind, 0, 0, at + len(body), len(content), 0, 0, 1, 0)
        body += content
    ident = b"\x7fELF\2\1\1".ljust(16, b"\0")
    head = struct.pack(
        "<HHIQQQIHHHHHH", 3, 62, 1, 0, 0, at + len(body), 0, 64, 56, 0, 64, len(sections), len(sections) - 1
    )
    return ident + head + body + headers


def install(site: Path, name: str, version: str, files: dict[str, bytes]) -> None:
    """What pip leaves of a wheel: its files, a dist-info folder with RECORD, files of pip's own, compiled modules."""
    info = f"{name}-{version}.dist-info"
    files = files | {f"{info}/METADATA": f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n".encode()}
    rows = [
        f"{info}/RECORD,,",
        f"{info}/INSTALLER,sha256=not-looked-at,4",
        f"{name}/__pycache__/gone.cpython-311.pyc,,",
    ]
    for path, content in files.items():
        (site / path).parent.mkdir(parents=True, exist_ok=True)
        (site / path).write_bytes(content)
        digest = base64.urlsafe_b64encode(hashlib.sha256(content).digest()).rstrip(b"=").decode()
        rows.append(f'"{path}",sha256={digest},{len(content)}')
    (site / info / "INSTALLER").write_text("pip\n")
    (site / info / "RECORD").write_text("\n".join(rows) + "\n")


@pytest.fixture
def environment(tmp_path: Path) -> Path:
    """A clean environment with its locks: three CUDA packages, a plain one, a checker, an installer."""
    site = tmp_path / "lib" / "python3.11" / "site-packages"
    install(site, "engine", "2.0.1", {"engine/__init__.py": b"", "engine/lib/libengine.so.11": library(SM_60)})
    install(
        site,
        "bitsandbytes",
        "0.44.1",
        {
            "bitsandbytes/libbitsandbytes_cuda117.so": library(SM_60),
            "bitsandbytes/libbitsandbytes_cuda117_nocublaslt.so": library(SM_60),
            "bitsandbytes/libbitsandbytes_cuda125.so": library([70, 90]),
        },
    )
    install(
        site,
        "nvidia_blas_cu11",
        "11.7",
        {"nvidia/libblas.so": library(SM_60, (80,)), "nvidia/libstub.so": library([52], (), False)},
    )
    install(
        site, "plain", "1.0", {"plain.py": b"x = 1\n", "../../../bin/plain": b"#!python\n", "plain/README": b"a, b"}
    )
    install(site, "checker", "3.0", {"checker.py": b""})
    install(site, "pip", "23.2.1", {"pip/__init__.py": b""})
    lock = {"engine": "2.0.1", "bitsandbytes": "0.44.1", "nvidia-blas-cu11": "11.7", "Plain": "1.0"}
    write_lock(tmp_path / "run.lock", lock)
    write_lock(tmp_path / "dev.lock", {"checker": "3.0", "never-installed": "1.0"})
    (tmp_path / "pins.toml").write_text('[cuda]\nversion = "11.7"\nrequired_sm = 60\n')
    return site


def write_lock(path: Path, versions: dict[str, str]) -> None:
    lines = (
        f"{name}=={version} \\\n    --hash=sha256:{'0' * 64}\n    # via something\n"
        for name, version in versions.items()
    )
    path.write_text("# a comment\n" + "".join(lines))


def run(site: Path, *flags: str) -> int:
    root = site.parents[2]
    files = ["--lock", str(root / "run.lock"), "--dev-lock", str(root / "dev.lock"), "--pins", str(root / "pins.toml")]
    return entry(lambda: pins.main(["--prefix", str(root), *files, *flags]))


def audited(site: Path, capsys: pytest.CaptureFixture) -> tuple[int, dict[str, dict]]:
    code = run(site, "--json")
    result = json.loads(capsys.readouterr().out)
    assert result["verdict"] == ("drift" if code else "clean")
    return code, {package["name"]: package for package in result["packages"]}


def test_a_clean_environment(environment: Path, capsys: pytest.CaptureFixture):
    assert run(environment) == 0
    out, err = capsys.readouterr()
    assert out.splitlines()[-1].startswith("CLEAN: 6 packages, 18 files as locked, sm_60 in every")
    assert "\x1b" not in out
    assert "audit" in err
    assert "bitsandbytes: other CUDA, never loaded: libbitsandbytes_cuda125.so" in out
    assert "libstub.so" in out
    code, packages = audited(environment, capsys)
    assert code == 0
    assert {name: package["role"] for name, package in packages.items() if package["role"]} == {
        "checker": "dev",
        "pip": "installer",
    }
    assert packages["bitsandbytes"]["sass"] == SM_60
    assert (packages["nvidia-blas-cu11"]["sass"], packages["nvidia-blas-cu11"]["ptx"]) == (SM_60, [80])
    assert packages["plain"]["installed"] == packages["plain"]["locked"] == "1.0"


def tamper(site: Path) -> None:
    (site / "plain.py").write_bytes(b"x = 2\n")


def tamper_script(site: Path) -> None:
    (site / "../../../bin/plain").write_bytes(b"#!other\n")


def remove(site: Path) -> None:
    (site / "engine/__init__.py").unlink()


def remove_record(site: Path) -> None:
    (site / "plain-1.0.dist-info/RECORD").unlink()


def other_version(site: Path) -> None:
    shutil.rmtree(site / "plain-1.0.dist-info")
    install(site, "plain", "1.1", {"plain.py": b"x = 1\n", "../../../bin/plain": b"", "plain/README": b"a, b"})


def uninstall(site: Path) -> None:
    for path in ("plain.py", "plain/README"):
        (site / path).unlink()
    shutil.rmtree(site / "plain-1.0.dist-info")


def one_too_many(site: Path) -> None:
    install(site, "stranger", "9.0", {"stranger.py": b""})


def stray(site: Path) -> None:
    (site / "sitecustomize.py").write_text("")


def no_sm_60(site: Path) -> None:
    install(site, "engine", "2.0.1", {"engine/__init__.py": b"", "engine/lib/libengine.so.11": library([61, 70])})


def only_jit(site: Path) -> None:
    install(site, "engine", "2.0.1", {"engine/__init__.py": b"", "engine/lib/libengine.so.11": library([70], (50, 70))})


def only_other_cuda(site: Path) -> None:
    for name in ("117", "117_nocublaslt"):
        (site / f"bitsandbytes/libbitsandbytes_cuda{name}.so").unlink()
    install(site, "bitsandbytes", "0.44.1", {"bitsandbytes/libbitsandbytes_cuda125.so": library(SM_60)})


def unreadable(site: Path) -> None:
    whole = library(SM_60)
    files = {"engine/__init__.py": b"", "engine/lib/libengine.so.11": whole[: len(whole) - 70]}
    install(site, "engine", "2.0.1", files)


def duplicate(site: Path) -> None:
    install(site, "plain", "0.9", {"plain.py": b"x = 1\n"})


@pytest.mark.parametrize(
    ("drift", "name", "verdict", "what"),
    [
        (tamper, "plain", "altered", "plain.py"),
        (tamper_script, "plain", "altered", "bin/plain"),
        (remove, "engine", "altered", "engine/__init__.py is missing"),
        (remove_record, "plain", "altered", "no readable RECORD"),
        (other_version, "plain", "wrong version", "1.0 is locked, 1.1 is installed"),
        (duplicate, "plain", "wrong version", "1.0 is locked, 0.9 is installed"),
        (uninstall, "plain", "missing", "1.0 is locked"),
        (one_too_many, "stranger", "extra", "9.0 is installed"),
        (stray, audit.UNOWNED, "extra", "sitecustomize.py"),
        (no_sm_60, "engine", "no sm_60", "engine/lib/libengine.so.11 has SASS for 61 70"),
        (only_jit, "engine", "no sm_60", "PTX for 50, JIT only"),
        (only_other_cuda, "bitsandbytes", "no sm_60", "libbitsandbytes_cuda117_nocublaslt.so"),
        (unreadable, "engine", "unreadable", "libengine.so.11"),
    ],
    ids=lambda value: value.__name__ if callable(value) else "",
)
def test_every_drift_is_caught_and_named(
    drift: Callable[[Path], None], name: str, verdict: str, what: str, environment: Path, capsys: pytest.CaptureFixture
):
    drift(environment)
    assert run(environment) == 1
    out = capsys.readouterr().out
    assert f"{name}: {verdict}: " in out
    assert what in out
    assert out.splitlines()[-1].startswith("DRIFT in ")
    run(environment, "--json")
    packages = json.loads(capsys.readouterr().out)["packages"]
    # Files that lost their package, or came with none, are a second finding of the same drift.
    assert {package["name"] for package in packages if package["problems"]} - {audit.UNOWNED} == {name} - {
        audit.UNOWNED
    }


def test_many_drifts_at_once_are_all_named(environment: Path, capsys: pytest.CaptureFixture):
    for drift in (other_version, one_too_many, no_sm_60):
        drift(environment)
    (environment / "checker.py").write_text("changed")
    code, packages = audited(environment, capsys)
    verdicts = {name: package["verdict"] for name, package in packages.items() if package["verdict"] != "ok"}
    assert code == 1
    assert verdicts == {"plain": "wrong version", "stranger": "extra", "engine": "no sm_60", "checker": "altered"}


def test_a_real_library_whose_sm_60_code_was_relabelled(environment: Path, capsys: pytest.CaptureFixture):
    """The real library that this card loads passes; with one architecture number changed in it, it does not."""
    name = "bitsandbytes/libbitsandbytes_cuda117_nocublaslt.so"
    real = bytearray((Path(locks.find_site(None)) / name).read_bytes())
    install(environment, "bitsandbytes", "0.44.1", {name: bytes(real)})
    for extra in ("117", "125"):
        (environment / f"bitsandbytes/libbitsandbytes_cuda{extra}.so").unlink()
    code, packages = audited(environment, capsys)
    assert (code, packages["bitsandbytes"]["sass"]) == (0, [50, 52, 60, 61, 70, 75, 80, 86])

    with open(environment / name, "rb") as file:
        section = ELFFile(file).get_section_by_name(fatbin.LINKED)
        first, last = section["sh_offset"], section["sh_offset"] + section["sh_size"]
    label = struct.pack("<HHI", 7, 1, 60)  # the cubin format's minor and major, then the architecture
    assert real.count(label, first, last) == 1
    struct.pack_into("<I", real, real.index(label, first, last) + 4, 62)
    install(environment, "bitsandbytes", "0.44.1", {name: bytes(real)})
    code, packages = audited(environment, capsys)
    assert (code, packages["bitsandbytes"]["verdict"]) == (1, "no sm_60")


def test_a_pip_install_into_a_target_folder_keeps_its_scripts(environment: Path, capsys: pytest.CaptureFixture):
    shutil.move(environment.parents[2] / "bin", environment / "bin")
    assert audited(environment, capsys)[0] == 0


def test_a_strangers_file_name_cannot_write_to_the_terminal(environment: Path, capsys: pytest.CaptureFixture):
    (environment / "\x1b[2Jgone.py").write_text("")
    assert run(environment) == 1
    out = capsys.readouterr().out
    assert "\x1b" not in out
    assert "\\x1b[2Jgone.py" in out


def test_colour_is_for_terminals(environment: Path):
    tamper(environment)
    root = environment.parents[2]
    wanted = locks.read_pins(root / "pins.toml")
    packages = audit.audit(environment, wanted, locks.read_lock(root / "run.lock"), {})
    plain, coloured = (pins.text(packages, wanted, colour=colour) for colour in (False, True))
    assert "\x1b" not in plain
    assert "\x1b[31mplain " in coloured
    assert "\x1b[32mengine " in coloured
    assert "\x1b[31mDRIFT" in coloured.splitlines()[-1]


@pytest.mark.parametrize(
    ("file", "text", "message"),
    [
        ("run.lock", "engine==2.0.1\n", "engine==2.0.1 has no --hash"),
        ("run.lock", f"engine>=2.0 --hash=sha256:{'0' * 64}\n", "not pinned by =="),
        ("run.lock", f"-e . --hash=sha256:{'0' * 64}\n", "not name==version"),
        ("run.lock", None, "cannot read the lock"),
        ("pins.toml", "[cuda]\n", "does not say cuda.version"),
        ("pins.toml", "[cuda", "does not say cuda.version"),
        ("pins.toml", None, "does not say cuda.version"),
    ],
)
def test_bad_input_is_one_sentence_and_exit_code_2(
    file: str, text: str | None, message: str, environment: Path, capsys: pytest.CaptureFixture
):
    path = environment.parents[2] / file
    path.unlink() if text is None else path.write_text(text)
    assert run(environment) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("error: ")
    assert message in err
    assert err.count("\n") == 1


def test_a_prefix_without_an_environment_is_a_usage_error(tmp_path: Path, capsys: pytest.CaptureFixture):
    assert entry(lambda: pins.main(["--prefix", str(tmp_path)])) == 2
    assert "holds 0 site-packages folders" in capsys.readouterr().err


def test_a_lock_line_for_another_python_or_machine_is_not_missed(tmp_path: Path):
    hashed = f"--hash=sha256:{'0' * 64}"
    lock = tmp_path / "lock"
    lock.write_text(
        f"colorama==0.4.6 ; sys_platform == 'win32' {hashed}\nOne_Two==1.0 ; python_version >= '3.8' \\\n    {hashed}\n"
    )
    assert locks.read_lock(lock) == {"one-two": "1.0"}


def test_the_locks_and_the_pins_of_this_project_agree():
    table = tomllib.loads((ROOT / "docker/pins.toml").read_text())
    lock = locks.read_lock(ROOT / "docker/requirements.lock")
    assert lock["nvidia-cuda-runtime-cu11"].startswith(table["cuda"]["version"] + ".")
    assert lock["torch"] == "2.0.1"
    assert locks.read_pins(ROOT / "docker/pins.toml") == locks.Pins(required_sm=60, cuda="11.7")
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    assert project["tool"]["mypy"]["python_version"] == table["python"]["version"]
    assert table["driver"]["first_branch"] <= int(table["driver"]["minimum"].partition(".")[0])


def test_what_is_pinned_by_a_digest_is_pinned_by_a_whole_one():
    table = tomllib.loads((ROOT / "docker/pins.toml").read_text())
    assert table["root_image"][0]["digest"], "the default root image"
    digests = [image["digest"].removeprefix("sha256:") for image in table["root_image"] if "digest" in image]
    for checkpoint in table["checkpoint"]:
        found = checkpoint.get("sha256", {})
        digests += found.values() if isinstance(found, dict) else [found]
        assert re.fullmatch("[0-9a-f]{40}", checkpoint.get("revision", "0" * 40))
    assert len(digests) > 6 and all(re.fullmatch("[0-9a-f]{64}", digest) for digest in digests)


@pytest.mark.slow
def test_the_running_environment_is_the_locked_one():
    done = subprocess.run(
        [sys.executable, "-m", "recipe.pins", "--json"],
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": os.environ.get("PYTHONPATH", "")},
        capture_output=True,
        text=True,
        timeout=300,
    )
    result = json.loads(done.stdout)
    assert [package for package in result["packages"] if package["problems"]] == []
    assert (done.returncode, result["verdict"]) == (0, "clean")
    packages = {package["name"]: package for package in result["packages"]}
    assert packages["torch"]["sass"] == [37, 50, 60, 70, 75, 80, 86]
    assert packages["bitsandbytes"]["sass"] == [50, 52, 60, 61, 70, 75, 80, 86]
    loaded = next(lib for lib in packages["torch"]["libraries"] if lib["path"] == "torch/lib/libtorch_cuda.so")
    assert loaded["code"]["sass"]["60"] == 259
