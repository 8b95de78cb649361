"""The bundle of a run: the same bytes each time, statements that fit their schemas, and a verifier."""

import hashlib
import json
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from recipe import provenance, report
from recipe.core.cli import entry
from recipe.core.manifest import read_manifest, save_manifest
from recipe.core.run import Run
from recipe.proof.evidence import DOCKER, read_packages


@pytest.fixture(scope="module")
def run(evaluated_once, tmp_path_factory) -> Path:
    """A finished run with evaluation and report."""
    folder = tmp_path_factory.mktemp("bundled") / "tiny" / "0123456789ab"
    shutil.copytree(Run.latest(evaluated_once).resolve(), folder)
    report.main(["--run", str(folder)])
    (folder / "failed_batch.json").write_text('["a private conversation"]')
    Run(folder).record("failed_batch.json")
    return folder


@pytest.fixture(scope="module")
def archive(run, tmp_path_factory) -> Path:
    file = tmp_path_factory.mktemp("archive") / "run.zip"
    assert provenance.main(["bundle", "--run", str(run), "--output", str(file)]) == 0
    return file


@pytest.fixture
def unpacked(archive, tmp_path) -> Path:
    with zipfile.ZipFile(archive) as file:
        file.extractall(tmp_path)
    return tmp_path


def verify(place: Path) -> tuple[int, str]:
    """The bundled verifier, in a Python that sees no installed package."""
    target = place if place.is_file() else place / "__main__.py"
    done = subprocess.run([sys.executable, "-S", "-E", str(target)], capture_output=True, text=True, cwd="/")
    return done.returncode, done.stdout + done.stderr


def read(archive: Path, name: str) -> dict:
    with zipfile.ZipFile(archive) as file:
        return json.loads(file.read(name))


def test_it_holds_what_a_reviewer_needs_and_no_conversation(archive):
    names = set(zipfile.ZipFile(archive).namelist())
    wanted = {"manifest.json", "config.toml", "metrics.jsonl", "eval.json", "report.html", "samples.md"}
    wanted = {f"run/{name}" for name in (*wanted, "adapter/adapter_model.safetensors")}
    wanted |= {"base/manifest.json", "corpus/manifest.json", "environment/requirements.lock", "environment/pins.toml"}
    wanted |= {"sbom.cdx.json", "statement.intoto.json", "ro-crate-metadata.json", "README.md", "SHA256SUMS"}
    assert wanted <= names
    assert not {name for name in names if name.startswith(("run/tensorboard", "run/failed", "corpus/"))} - {
        "corpus/manifest.json",
        "corpus/report.md",
    }


def test_the_same_run_gives_the_same_bytes_and_lies_beside_it(run, archive):
    assert provenance.main(["bundle", "--run", str(run)]) == 0
    assert run.with_name(f"{run.name}.zip").read_bytes() == archive.read_bytes()


def test_the_verifier_needs_no_package(archive, unpacked):
    for place in (archive, unpacked):
        code, said = verify(place)
        assert code == 0 and said.startswith("intact: "), said


def test_coreutils_agree(unpacked):
    done = subprocess.run(["sha256sum", "--check", "--strict", "SHA256SUMS"], cwd=unpacked, capture_output=True)
    assert done.returncode == 0


def test_every_altered_missing_or_added_file_is_found(unpacked):
    for file in [path for path in unpacked.rglob("*") if path.is_file() and path.name != "__main__.py"]:
        content, name = file.read_bytes(), file.relative_to(unpacked).as_posix()
        file.write_bytes(content.replace(b"a", b"b", 1))
        code, said = verify(unpacked)
        assert code == 1, name
        file.unlink()
        code, said = verify(unpacked)
        assert code == 1 and name in said
        file.write_bytes(content)
    (unpacked / "run" / "extra").write_text("x")
    assert verify(unpacked) == (1, "'run/extra' is in no list\n")


def relist(folder: Path) -> None:
    """SHA256SUMS as a forger would write it."""
    files = sorted(path for path in folder.rglob("*") if path.is_file() and path.name != "SHA256SUMS")
    lines = (f"{hashlib.sha256(file.read_bytes()).hexdigest()}  {file.relative_to(folder)}\n" for file in files)
    (folder / "SHA256SUMS").write_text("".join(lines))


@pytest.mark.parametrize(
    ("name", "old", "new", "said"),
    [
        ("run/metrics.jsonl", '"step": 1', '"step": 9', "is not the file of the run's manifest"),
        ("base/manifest.json", '"bytes": ', '"bytes": 1', "base/manifest.json is not that of the base"),
        ("corpus/manifest.json", '"bytes": ', '"bytes": 1', "corpus/manifest.json is not that of the corpus"),
        ("environment/requirements.lock", "torch==2.0.1", "torch==2.0.2", "is not the lock"),
        ("README.md", "tokens", "coins", "says of 'README.md' what is not true"),
    ],
)
def test_a_forgery_with_a_new_list_contradicts_the_manifests(unpacked, name, old, new, said):
    file = unpacked / name
    text = file.read_text()
    assert old in text
    file.write_text(text.replace(old, new))
    relist(unpacked)
    code, found = verify(unpacked)
    assert code == 1 and said in found


def test_the_bill_of_materials_fits_the_cyclonedx_schema(archive):
    validation = pytest.importorskip("cyclonedx.validation.json", reason="the CycloneDX schema is not installed")
    from cyclonedx.schema import SchemaVersion

    with zipfile.ZipFile(archive) as file:
        text = file.read("sbom.cdx.json").decode()
    validator = validation.JsonStrictValidator(SchemaVersion.V1_6)
    assert validator.validate_str(text) is None
    assert validator.validate_str(text.replace('"library"', '"book"')) is not None, "the validator finds errors"


def test_the_bill_of_materials_names_every_package_the_model_its_base_and_its_data(archive):
    bom = read(archive, "sbom.cdx.json")
    libraries = {item["name"]: item for item in bom["components"] if item["type"] == "library"}
    locked = read_packages(DOCKER / "requirements.lock")
    assert libraries.keys() == {package.name for package in locked} and len(locked) > 40
    assert libraries["torch"]["version"] == "2.0.1" and all(item["hashes"] for item in libraries.values())
    assert {item["bom-ref"] for item in bom["components"]} >= {"base", "training-data", "pkg:pypi/torch@2.0.1"}
    model = bom["metadata"]["component"]
    assert model["type"] == "machine-learning-model"
    metrics = model["modelCard"]["quantitativeAnalysis"]["performanceMetrics"]
    loss = read(archive, "run/eval.json")["tuned"]["loss"]
    assert {"type": "validation loss, nats per token", "value": f"{loss:.4f}"}.items() <= metrics[3].items()


def test_the_statement_has_the_fields_of_in_toto_and_slsa(archive):
    """https://github.com/in-toto/attestation/blob/main/spec/v1/statement.md and https://slsa.dev/spec/v1.0/provenance."""
    statement = read(archive, "statement.intoto.json")
    assert statement["_type"] == "https://in-toto.io/Statement/v1"
    assert statement["predicateType"] == "https://slsa.dev/provenance/v1"
    names = [subject["name"] for subject in statement["subject"]]
    assert len(names) == len(set(names)) and "run/adapter/adapter_model.safetensors" in names
    assert all(len(bytes.fromhex(subject["digest"]["sha256"])) == 32 for subject in statement["subject"])
    definition, details = (statement["predicate"][key] for key in ("buildDefinition", "runDetails"))
    assert definition["buildType"] and definition["externalParameters"] and details["builder"]["id"]
    inputs = {item["name"] for item in definition["resolvedDependencies"]}
    assert {"base", "corpus", "requirements.lock", "code", "corpus: source 0: raw.json"} <= inputs or "corpus" in inputs


def test_the_crate_has_what_ro_crate_requires(archive):
    """https://www.researchobject.org/ro-crate/specification/1.1/: descriptor, root, and an entity for each file."""
    crate = read(archive, "ro-crate-metadata.json")
    assert crate["@context"][0] == "https://w3id.org/ro/crate/1.1/context"
    entities = {entity["@id"]: entity for entity in crate["@graph"]}
    assert len(entities) == len(crate["@graph"])
    descriptor = entities["ro-crate-metadata.json"]
    assert descriptor["conformsTo"]["@id"] == "https://w3id.org/ro/crate/1.1" and descriptor["about"]["@id"] == "./"
    root = entities["./"]
    assert root["@type"] == "Dataset" and root["license"]["@id"] in entities and len(root["datePublished"]) == 10
    parts = {part["@id"] for part in root["hasPart"]}
    assert parts == {name for name, entity in entities.items() if entity["@type"] == "File"}
    assert parts == set(zipfile.ZipFile(archive).namelist()) - {"ro-crate-metadata.json", "SHA256SUMS"}

    def references(value):
        if isinstance(value, dict):
            yield from [value["@id"]] if value.keys() == {"@id"} else references(list(value.values()))
        elif isinstance(value, list):
            for item in value:
                yield from references(item)

    external = {"https://w3id.org/ro/crate/1.1"}
    assert set(references([list(entity.values()) for entity in crate["@graph"]])) <= entities.keys() | external


def test_a_run_that_is_not_intact_is_not_bundled(run, tmp_path, capsys):
    copy = Path(shutil.copytree(run, tmp_path / "run"))
    (copy / "eval.json").write_text("{}")
    output = tmp_path / "x.zip"
    assert entry(lambda: provenance.main(["bundle", "--run", str(copy), "--output", str(output)])) == 1
    assert "eval.json has 2 bytes" in capsys.readouterr().err and not output.exists()


DIGEST = "sha256:" + "ab" * 32


def dependencies(archive: Path) -> list[dict]:
    return read(archive, "statement.intoto.json")["predicate"]["buildDefinition"]["resolvedDependencies"]


def readme(archive: Path) -> str:
    with zipfile.ZipFile(archive) as file:
        return file.read("README.md").decode()


def test_without_an_image_it_says_so(archive):
    assert "Container image: no image is recorded." in readme(archive)
    assert "image" not in {item["name"] for item in dependencies(archive)}


def test_an_image_is_named_by_its_digest_or_not_at_all(run, tmp_path):
    output = tmp_path / "x.zip"
    words = ["bundle", "--run", str(run), "--output", str(output), "--image"]
    assert entry(lambda: provenance.main([*words, "vicuna-p100:latest"])) == 2
    assert provenance.main([*words, DIGEST]) == 0
    assert {"name": "image", "digest": {"sha256": "ab" * 32}} in dependencies(output)


def test_the_image_that_trained_the_run_is_in_the_bundle(run, tmp_path, capsys):
    copy, output = Path(shutil.copytree(run, tmp_path / "run")), tmp_path / "x.zip"
    manifest = read_manifest(copy)
    manifest["environment"]["image"] = DIGEST
    save_manifest(copy / "manifest.json", manifest)
    words = ["bundle", "--run", str(copy), "--output", str(output)]
    assert provenance.main(words) == 0
    assert {"name": "image", "digest": {"sha256": "ab" * 32}} in dependencies(output)
    assert f"Container image: {DIGEST}." in readme(output)
    properties = read(output, "sbom.cdx.json")["metadata"]["component"]["properties"]
    assert {"name": "recipe:image", "value": DIGEST} in properties
    assert entry(lambda: provenance.main([*words, "--image", DIGEST.replace("ab", "cd")])) == 2
    assert "as the run's manifest says" in capsys.readouterr().err
