"""One archive of a run for a reviewer: files, manifests, statements, and a program that verifies it."""

import datetime
import hashlib
import json
import os
import re
import shutil
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from recipe.core.config import Config
from recipe.core.errors import UsageError
from recipe.core.files import atomic_file, sha256
from recipe.core.run import Run
from recipe.core.text import printable, say, snippet
from recipe.core.versions import IMAGE_DIGEST
from recipe.proof import crate, sbom, statement
from recipe.proof.evidence import Evidence, collect

VERIFIER = Path(__file__).with_name("verifier.py")
EARLIEST = (1980, 1, 1, 0, 0, 0)  # of every file: the time of writing would make each archive another one


def bundle(run: Run, config: Config, output: Path, image: str = "") -> dict[str, Any]:
    """Write the archive; its path, sha256 and number of files. The same run gives the same bytes.

    image: the digest of the container image, sha256:..., where the run's manifest does not name it. Raises RecipeError
    if the run is not intact, UsageError if `image` is no digest or not that of the manifest.
    """
    if image and not re.fullmatch(IMAGE_DIGEST, image):
        raise UsageError(f"--image {printable(image[:80])}: expected sha256: and 64 hexadecimal digits")
    evidence = collect(run, config, image, read_date(run))
    if image and evidence.image != image:
        raise UsageError(f"--image is {image}, expected {evidence.image}, as the run's manifest says: leave it out")
    if paths := re.findall(r'"(/[^"\n]*)"', run.config_file.read_text(encoding="utf-8")):
        say(f"config.toml, which is in the bundle, names {len(paths)} absolute paths, as {snippet(paths[0])}")
    texts = write_texts(evidence)
    with atomic_file(output, "wb") as file, zipfile.ZipFile(file, "w") as archive:
        for name in sorted({*evidence.files, *texts}):
            info = zipfile.ZipInfo(name, EARLIEST)
            info.create_system, info.external_attr = 3, 0o100644 << 16
            with archive.open(info, "w", force_zip64=True) as entry:
                if name in texts:
                    entry.write(texts[name])
                else:
                    with open(evidence.files[name], "rb") as source:
                        shutil.copyfileobj(source, entry)
    return {"bundle": str(output), "sha256": sha256(output), "files": len(evidence.files) + len(texts)}


def read_date(run: Run) -> str:
    """The day of the bundle: SOURCE_DATE_EPOCH, or when the run ended."""
    seconds = float(os.environ.get("SOURCE_DATE_EPOCH") or run.manifest_file.stat().st_mtime)
    return datetime.datetime.fromtimestamp(seconds, datetime.UTC).date().isoformat()


def write_texts(evidence: Evidence) -> dict[str, bytes]:
    """The files that are written for the bundle. Each statement is about the files that were there before it."""
    files = {name: (sha256(path), path.stat().st_size) for name, path in evidence.files.items()}
    texts: dict[str, bytes] = {}

    def add(name: str, text: str) -> None:
        texts[name] = text.encode()
        files[name] = (hashlib.sha256(texts[name]).hexdigest(), len(texts[name]))

    add("__main__.py", VERIFIER.read_text(encoding="utf-8"))
    add("README.md", readme(evidence))
    add("sbom.cdx.json", _json(sbom.build(evidence)))
    add("statement.intoto.json", _json(statement.build(evidence, {name: value for name, (value, _) in files.items()})))
    add("ro-crate-metadata.json", _json(crate.build(evidence, files)))
    sums = "".join(f"{value}  {name}\n" for name, (value, _) in sorted(files.items()))
    return texts | {"SHA256SUMS": sums.encode()}


def _json(value: Mapping[str, Any]) -> str:
    return json.dumps(value, indent=1, ensure_ascii=False) + "\n"


def readme(evidence: Evidence) -> str:
    """What is in the bundle, and what to do with it."""
    results = evidence.run["results"]
    missing = [name for name, known in (("base", evidence.base), ("corpus", evidence.corpus)) if known is None]
    rows = [
        ("`run/`", "config, manifest, metrics, adapter, evaluation and report of the run"),
        ("`base/`, `corpus/`", "what the base and the corpus were made from, by hash; no weights, no conversations"),
        ("`environment/`", f"the lock ({len(evidence.packages)} packages with hashes) and what else is pinned"),
        ("`sbom.cdx.json`", "CycloneDX: packages, and the model, its base and its data as components"),
        ("`statement.intoto.json`", "in-toto: which files were made from what (not signed)"),
        ("`ro-crate-metadata.json`", "RO-Crate: every file, and the action that made the adapter"),
    ]
    lines = [
        f"# Run {printable(evidence.name)}",
        "",
        f"{results['steps']} optimizer steps on {results['trained_tokens']:,} trained tokens; "
        f"validation loss {results['validation_loss']:.4f}.",
        f"Container image: {evidence.image or 'no image is recorded'}.",
        *([f"Not at hand when this was written: the manifest of the {' and the '.join(missing)}."] if missing else []),
        "",
        "| | |",
        "| --- | --- |",
        *(f"| {name} | {what} |" for name, what in rows),
        "",
        "Verify it with any Python from 3.9: `python BUNDLE.zip`, or `python __main__.py` where it is unpacked. The",
        "archive's own sha256, from a source that you trust, shows that it was not replaced as a whole.",
        "",
        "Replay it: put base and raw conversations where `run/config.toml` names them, and in a checkout of the recipe",
        "run `make replay RUN=run`.",
    ]
    return "\n".join(lines) + "\n"
