"""`verify` on folders of weights."""

import shutil

from recipe import provenance


def test_a_file_beside_weights_that_no_manifest_lists_is_named(tiny_base, tmp_path, capsys):
    folder = tmp_path / "weights"
    shutil.copytree(tiny_base, folder)
    assert provenance.main(["verify", str(folder)]) == 0
    assert "intact" in capsys.readouterr().out
    (folder / "a.safetensors").write_bytes(b"")
    assert provenance.main(["verify", str(folder)]) == 1
    assert "a.safetensors is not listed in the manifest" in capsys.readouterr().out


def test_the_other_files_of_a_run_are_not_named(trained_run, capsys):
    _, run = trained_run
    assert provenance.main(["verify", str(run.folder)]) == 0
    assert "intact" in capsys.readouterr().out
