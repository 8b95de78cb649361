"""A run as RO-Crate 1.1 metadata: every file of the bundle, and the action that made the adapter."""

from collections.abc import Mapping
from pathlib import PurePosixPath
from typing import Any

from recipe.proof.evidence import Evidence

# The context of RO-Crate 1.1, and a term of schema.org that is younger than it.
CONTEXT = ["https://w3id.org/ro/crate/1.1/context", {"sha256": "https://schema.org/sha256"}]
FORMATS = {
    ".json": "application/json",
    ".jsonl": "application/jsonl",
    ".toml": "application/toml",
    ".md": "text/markdown",
    ".html": "text/html",
    ".py": "text/x-python",
}
LICENCE, ACTION, SOFTWARE = "#licence", "#training", "#recipe"
ADAPTER = "run/adapter/adapter_model.safetensors"


def build(evidence: Evidence, files: Mapping[str, tuple[str, int]]) -> dict[str, Any]:
    """ro-crate-metadata.json for `files` (name -> sha256, bytes), as plain JSON values."""
    names = sorted(files)
    graph = [
        {
            "@id": "ro-crate-metadata.json",
            "@type": "CreativeWork",
            "conformsTo": {"@id": "https://w3id.org/ro/crate/1.1"},
            "about": {"@id": "./"},
        },
        {
            "@id": "./",
            "@type": "Dataset",
            "name": f"Run {evidence.name}",
            "description": "A LoRA adapter with all that is needed to check how it was made. README.md says how.",
            "datePublished": evidence.date,
            "license": {"@id": LICENCE},
            "hasPart": [{"@id": name} for name in names],
            "mentions": {"@id": ACTION},
        },
        {
            "@id": LICENCE,
            "@type": "CreativeWork",
            "name": "Licences of the parts",
            "description": "The recipe: Apache-2.0. The adapter is derived from the base, whose licence is: "
            f"{evidence.licence}. The licences of the training data may add conditions.",
        },
        {
            "@id": SOFTWARE,
            "@type": "SoftwareApplication",
            "name": "LoRA fine-tuning of Vicuna-7B on a Tesla P100",
            "softwareVersion": evidence.run["code"],
        },
        {
            "@id": ACTION,
            "@type": "CreateAction",
            "name": "python -m recipe.train",
            "instrument": {"@id": SOFTWARE},
            "object": [
                {"@id": name}
                for name in ("run/config.toml", "base/manifest.json", "corpus/manifest.json")
                if name in files
            ],
            "result": {"@id": ADAPTER},
        },
    ]
    return {"@context": CONTEXT, "@graph": graph + [_file(name, *files[name]) for name in names]}


def _file(name: str, sha256: str, size: int) -> dict[str, Any]:
    return {
        "@id": name,
        "@type": "File",
        "name": PurePosixPath(name).name,
        "encodingFormat": FORMATS.get(PurePosixPath(name).suffix, "application/octet-stream"),
        "contentSize": str(size),
        "sha256": sha256,
    }
