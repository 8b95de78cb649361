"""ARTIFACT.md is what its program writes, and what it promises exists."""

import artifact
import claims


def test_the_page_is_current():
    assert artifact.PAGE.read_text(encoding="utf-8") == artifact.page(), "run python tests/claims/artifact.py"


def test_it_has_a_row_for_every_claim():
    _, found = claims.read_claims()
    rows = [line for line in artifact.PAGE.read_text(encoding="utf-8").splitlines() if line.endswith("% |")]
    assert len(rows) == len(found) and not any("{}" in line for line in rows)
