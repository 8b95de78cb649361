"""Count the hostile files that are refused, or read without harm: `python tests/hostile/count.py`.

Runs the tests that hand one over, each case a file, and writes results/files.json. --results FOLDER writes it there.
"""

import argparse
import importlib
import subprocess
import sys
import tempfile
from collections import Counter
from pathlib import Path
from xml.etree import ElementTree

ROOT = Path(__file__).parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "tests" / "faults")]
BAD = {"failure", "error", "skipped"}
# File -> its tests that hand over a hostile file. pytest fails where there is no such test.
TESTS = {
    "tests/checkpoints/test_hostile.py": (
        "test_a_damaged_tokenizer_json_is_refused",
        "test_a_tokenizer_that_ends_its_process_is_refused",
        "test_deep_nesting_is_refused",
        "test_half_a_surrogate_pair_is_refused",
        "test_an_added_token_without_a_number_is_refused",
        "test_a_piece_of_megabytes_is_refused",
        "test_a_gguf_token_of_megabytes_is_refused",
        "test_a_hole_of_gigabytes_is_not_read",
        "test_a_gguf_tensor_without_values_is_refused",
    ),
    "tests/checkpoints/test_pth.py": (
        "test_a_pickle_that_asks_for_more_is_refused_by_name",
        "test_opcodes_beyond_tensors_are_refused_by_name",
        "test_anything_but_a_dictionary_of_tensors_is_refused",
        "test_a_tensor_outside_its_bytes_or_beyond_its_file_is_refused",
        "test_zips_that_torch_does_not_write_are_refused",
    ),
    "tests/checkpoints/test_hf.py": (
        "test_a_value_that_no_llama_has_is_refused",
        "test_an_index_that_no_manifest_lists_is_not_read",
        "test_an_index_is_held_to_its_word",
    ),
    "tests/training/test_state.py": (
        "test_a_strange_state_is_one_sentence",
        "test_a_pickle_in_place_of_the_tensors_is_not_opened",
    ),
    "tests/conversations/readers/test_hostile.py": (
        "test_a_record_over_the_limit_costs_itself_only",
        "test_a_deeply_nested_record_costs_itself_only",
        "test_a_gzip_bomb_is_read_in_bounded_memory",
        "test_a_repeated_dictionary_value_of_parquet_counts_at_its_size",
        "test_a_large_value_of_parquet_costs_its_row_only",
        "test_a_broken_state_of_a_saved_set_is_one_sentence",
        "test_a_pipe_or_a_device_is_refused_without_opening",
        "test_a_row_with_other_cells_or_bytes_costs_itself_only",
        "test_a_table_in_utf16_is_one_sentence",
        "test_a_large_cell_ends_the_table_in_bounded_memory",
        "test_a_table_without_named_columns_is_one_sentence",
        "test_text_of_a_table_that_is_not_utf8_is_one_sentence",
    ),
    "tests/corpus/test_hostile.py": (
        "test_a_pipe_or_device_is_refused_before_it_is_opened",
        "test_a_file_name_that_is_not_utf8_is_one_sentence",
        "test_a_source_that_changes_while_it_is_read_is_refused",
        "test_a_damaged_tokenizer_is_one_sentence",
    ),
    "tests/core/test_config.py": (
        "test_a_hostile_file_is_one_short_sentence",
        "test_a_path_that_is_no_file_is_one_sentence",
    ),
}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--results", type=Path, default=Path(__file__).parent / "results", metavar="FOLDER")
    args = parser.parse_args()
    found, code = count()
    importlib.import_module("longform").write(args.results / "files.json", found)
    print(f"{found['right']} of {found['tried']} hostile files are refused or read without harm")
    return code


def count() -> tuple[dict[str, object], int]:
    """(cases that were tried, that went right, by file; the exit code of pytest)."""
    names = [f"{file}::{test}" for file, tests in TESTS.items() for test in tests]
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "report.xml"
        command = [sys.executable, "-m", "pytest", "-q", f"--junit-xml={report}", *names]
        code = subprocess.run(command, cwd=ROOT, stdout=sys.stderr).returncode
        cases = list(ElementTree.parse(report).iter("testcase"))
    tried = Counter(case.get("classname", "") for case in cases if case.find("skipped") is None)
    right = sum(not BAD & {child.tag for child in case} for case in cases)
    return {"tried": tried.total(), "right": right, "tests": dict(sorted(tried.items()))}, code


if __name__ == "__main__":
    sys.exit(main())
