"""Known hashes: the checkpoint is named, and a file that differs from the published one is."""

import tomllib

from recipe.checkpoints import published

KNOWN = {entry["name"]: entry["sha256"] for entry in tomllib.loads(published.PINS.read_text())["checkpoint"]}


def test_every_known_checkpoint_is_recognised_by_its_hashes():
    assert len(KNOWN) >= 3
    for name, hashes in KNOWN.items():
        assert published.compare({**hashes, "config.json": "0" * 64}).name == name


def test_one_file_of_another_checkpoint_is_named():
    origin = published.compare({**KNOWN["llama-2-7b"], "model-00002-of-00002.safetensors": "0" * 64})
    assert origin.name == "" and origin.sentence.startswith("model-00002-of-00002.safetensors is not that of")


def test_a_shared_tokenizer_proves_nothing():
    origin = published.compare({"tokenizer.model": KNOWN["llama-7b"]["tokenizer.model"], "consolidated.00.pth": "0"})
    assert origin.name == "" and "not those of a checkpoint known here" in origin.sentence


def test_without_the_table_nothing_is_claimed(tmp_path):
    assert published.compare(KNOWN["llama-7b"], tmp_path / "none.toml").name == ""
