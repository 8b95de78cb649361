"""A run as a CycloneDX 1.6 bill of materials: its packages, and the model, its base and its data as components."""

import uuid
from collections.abc import Iterator, Mapping
from typing import Any

from recipe.core.files import digest
from recipe.proof.evidence import Evidence, Package

MODEL, BASE, DATA = "model", "base", "training-data"  # bom-refs
METRICS = (
    ("loss", "validation loss, nats per token"),
    ("perplexity", "perplexity"),
    ("bits_per_byte", "bits per byte"),
)


def build(evidence: Evidence) -> dict[str, Any]:
    """The bill of materials as plain JSON values. The same evidence gives the same serial number."""
    libraries = [_library(package) for package in evidence.packages]
    names = [library["bom-ref"] for library in libraries]
    body = {
        "bomFormat": "CycloneDX",
        "specVersion": "1.6",
        "version": 1,
        "metadata": {"component": _model(evidence)},
        "components": [_base(evidence), _data(evidence), *libraries],
        "dependencies": [{"ref": MODEL, "dependsOn": [BASE, DATA, *names]}],
    }
    return {"serialNumber": f"urn:uuid:{uuid.uuid5(uuid.NAMESPACE_OID, digest(body))}", **body}


def _model(evidence: Evidence) -> dict[str, Any]:
    """The adapter with its model card."""
    settings = evidence.run["config"]
    files = {name: entry["sha256"] for name, entry in evidence.run["outputs"].items()}
    card = {
        "modelParameters": {
            "approach": {"type": "supervised"},
            "task": "text-generation",
            "architectureFamily": "transformer",
            "modelArchitecture": "LlamaForCausalLM with a LoRA adapter",
            "datasets": [{"ref": DATA}],
            "inputs": [{"format": f"text in the chat template {settings['template']}"}],
            "outputs": [{"format": "text"}],
        },
        "quantitativeAnalysis": {"performanceMetrics": list(_metrics(evidence))},
        "considerations": {
            "useCases": ["chat"],
            "technicalLimitations": ["Factual accuracy, safety and bias were not measured."],
        },
    }
    return {
        "type": "machine-learning-model",
        "bom-ref": MODEL,
        "name": evidence.name,
        "description": "A LoRA adapter, trained by this run.",
        "licenses": [{"license": {"name": f"derived from the base, whose licence is: {evidence.licence}"}}],
        "hashes": [_sha256(files[name]) for name in sorted(files) if name.endswith(".safetensors")],
        "modelCard": card,
        "properties": _properties({f"config.{key}": value for key, value in settings.items()} | _facts(evidence)),
    }


def _metrics(evidence: Evidence) -> Iterator[dict[str, Any]]:
    for who in ("base", "tuned"):
        for key, title in METRICS if evidence.evaluation else ():
            value = (evidence.evaluation or {})[who][key]
            yield {"type": title, "value": f"{value:.4f}", "slice": f"{who} model, validation conversations"}


def _facts(evidence: Evidence) -> dict[str, Any]:
    facts = {f"hardware.{key}": value for key, value in evidence.run.get("hardware", {}).items()}
    return facts | {
        "threads": evidence.run["results"].get("threads"),
        "image": evidence.image,
        "code": evidence.run["code"],
    }


def _base(evidence: Evidence) -> dict[str, Any]:
    known = evidence.base or {"results": {}, "inputs": {}}
    name = known["results"].get("published") or known["results"].get("kind") or "unknown"
    hashes = {f"file {file}": value for file, value in known["inputs"].items()}
    return {
        "type": "machine-learning-model",
        "bom-ref": BASE,
        "name": f"base: {name}",
        "licenses": [{"license": {"name": evidence.licence}}],
        "modelCard": {"modelParameters": {"task": "text-generation", "architectureFamily": "transformer"}},
        "properties": _properties(hashes | {"outputs": evidence.run["inputs"]["base"]}),
    }


def _data(evidence: Evidence) -> dict[str, Any]:
    known = evidence.corpus or {"inputs": {}, "results": {}}
    samples = known["results"].get("samples", {})
    facts = {f"file {file}": value for file, value in known["inputs"].items()}
    facts |= {f"samples.{part}": count for part, count in samples.items()} | {
        "outputs": evidence.run["inputs"]["corpus"]
    }
    return {
        "type": "data",
        "bom-ref": DATA,
        "name": "training and validation conversations",
        "data": [{"type": "dataset", "name": "conversations", "contents": {"properties": _properties(facts)}}],
    }


def _library(package: Package) -> dict[str, Any]:
    name = package.name.replace("_", "-").replace(".", "-")
    return {
        "type": "library",
        "bom-ref": f"pkg:pypi/{name}@{package.version}",
        "name": package.name,
        "version": package.version,
        "purl": f"pkg:pypi/{name}@{package.version}",
        "hashes": [_sha256(value) for value in package.hashes],
    }


def _sha256(value: str) -> dict[str, str]:
    return {"alg": "SHA-256", "content": value}


def _properties(facts: Mapping[str, Any]) -> list[dict[str, str]]:
    return [{"name": f"recipe:{name}", "value": str(value)} for name, value in facts.items() if value not in (None, "")]
