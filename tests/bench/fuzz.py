"""Coverage-guided fuzzing of the readers with atheris, for longer than the property tests of `make test`.

    pip install --target /tmp/atheris atheris==3.0.0
    PYTHONPATH=/tmp/atheris python tests/bench/fuzz.py -max_total_time=600 [FOLDER_OF_EXAMPLES]

It stops, with the input, at any exception except a RecipeError, and at records out of order or outside the file.
"""

import sys
import tempfile
from pathlib import Path

import atheris

sys.path.insert(0, str(Path(__file__).parents[2]))
with atheris.instrument_imports(include=["recipe"]):
    from recipe.conversations.formats import detect
    from recipe.conversations.readers import json_stream
    from recipe.core.errors import RecipeError

json_stream.CHUNK = 64  # small, since errors occur at the border between two reads
FILE = Path(tempfile.mkdtemp()) / "fuzz.json"


def read(data: bytes) -> None:
    FILE.write_bytes(data)
    ends = 0
    try:
        for number, record in enumerate(detect.raw_records(FILE, "fuzz.json")):
            assert ends <= record.offset
            assert data[:2] == b"\x1f\x8b" or record.offset + record.size <= len(data)
            ends = record.offset + record.size
            list(detect.conversations(record, number, "fuzz.json"))
    except RecipeError:
        return


if __name__ == "__main__":
    atheris.Setup(sys.argv, read)
    atheris.Fuzz()
