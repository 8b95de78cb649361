"""A run as an in-toto statement with SLSA provenance: these files were made from those, in this way. Unsigned."""

from collections.abc import Iterator, Mapping
from typing import Any

from recipe.core.files import digest
from recipe.proof.evidence import Evidence

OUTPUTS = "recipeOutputs"  # a digest of ours: sha256 of the canonical JSON of a manifest's outputs


def build(evidence: Evidence, files: Mapping[str, str]) -> dict[str, Any]:
    """The statement about `files` (name -> sha256), https://in-toto.io/Statement/v1, as plain JSON values."""
    run = evidence.run
    return {
        "_type": "https://in-toto.io/Statement/v1",
        "subject": [{"name": name, "digest": {"sha256": value}} for name, value in sorted(files.items())],
        "predicateType": "https://slsa.dev/provenance/v1",
        "predicate": {
            "buildDefinition": {
                "buildType": "urn:vicuna-p100:train:1",
                "externalParameters": {"config": run["config"]},
                "internalParameters": {"environment": run["environment"], "hardware": run.get("hardware", {})},
                "resolvedDependencies": list(_dependencies(evidence)),
            },
            "runDetails": {
                "builder": {"id": "urn:vicuna-p100:recipe.train", "version": {"code": run["code"]}},
                "metadata": {"invocationId": digest([run["config"], run["inputs"]])},
            },
        },
    }


def _dependencies(evidence: Evidence) -> Iterator[dict[str, Any]]:
    """Base, corpus and what they were made from, the lock, the code, and the image if it is known."""
    for name, value in sorted(evidence.run["inputs"].items()):
        yield {"name": name, "digest": {OUTPUTS: value}}
    for part, manifest in (("base", evidence.base), ("corpus", evidence.corpus)):
        for name, value in sorted((manifest or {"inputs": {}})["inputs"].items()):
            yield {"name": f"{part}: {name}", "digest": {"sha256": value}}
    yield {"name": "requirements.lock", "digest": {"sha256": evidence.run["environment"]["lock"]}}
    yield {"name": "code", "digest": {"recipeCode": evidence.run["code"]}}
    if evidence.image:
        yield {"name": "image", "digest": {"sha256": evidence.image.removeprefix("sha256:")}}
