"""Every measured number of the README is a claim, and equals the committed result, rounded."""

import json
import re
import subprocess
import sys
import tomllib

import claims
import pytest

TEXT = claims.plain(claims.README.read_text(encoding="utf-8"))
PARTS, CLAIMS = claims.read_claims()
# Sections of the README whose numbers are measured; the others have settings and arithmetic.
MEASURED = ("Demo", "Results", "The real run", "Rehearsed", "What was tried to break it", "Developing")


def test_the_readme_says_what_was_measured():
    assert list(claims.check_readme(TEXT, CLAIMS, claims.committed())) == []


@pytest.mark.parametrize("claim", CLAIMS, ids=lambda claim: claim.says[:40])
def test_a_changed_number_is_found(claim):
    number = claims.shown(TEXT, claim)[0]
    changed = claim.says.replace("{}", f"{float(number.replace(',', '')) + 1:.3f}", 1)
    for value in claims.shown(TEXT, claim)[1:]:
        changed = re.sub(claims.PLACE, value, changed, count=1)
    assert any(claim.says in problem for problem in claims.check_readme(changed, [claim], claims.committed()))


def prose() -> str:
    """The text in which every number must be known: no code, no links."""
    text = claims.README.read_text(encoding="utf-8")
    parts = [text.partition("\n## ")[0]]
    parts += [re.search(rf"^## {name}\n(.*?)(?=^## |\Z)", text, re.M | re.S)[1] for name in MEASURED]
    return "\n".join(parts)


def test_every_number_of_the_readme_is_a_claim_or_a_known_fact():
    text = prose()
    whole = claims.plain(text)
    for claim in CLAIMS:
        whole = re.sub(claims.pattern(claim), " ", whole)
    for pattern in tomllib.loads(claims.CLAIMS.read_text(encoding="utf-8"))["facts"]["patterns"]:
        whole = re.sub(pattern, " ", whole)
    whole = re.sub(r"\]\([^)]*\)|```.*?```|`[^`]*`", " ", whole)
    unknown = [
        whole[max(0, at.start() - 60) : at.end() + 30] for at in re.finditer(r"(?<![\w.,-])\d[\d.,]*(?![\w-])", whole)
    ]
    assert not unknown, "add them to tests/claims/claims.toml, as a claim or as a fact"


def test_every_claim_has_a_part_and_as_many_sources_as_numbers():
    for claim in CLAIMS:
        assert claim.part in PARTS and len(re.findall(claims.PLACE, claim.says)) == len(claim.sources) > 0
        assert 0 <= claim.tolerance < 1
    for name, part in PARTS.items():
        assert bool(part.run) != bool(part.why), name
        assert name in {claim.part for claim in CLAIMS}, name


def test_a_rerun_outside_its_tolerance_is_a_problem():
    claim = next(claim for claim in CLAIMS if claim.says.startswith("train {} times"))
    results = claims.committed()
    assert not list(claims.compare(TEXT, [claim], results))
    results["bench"]["train-512"]["ways"]["ours"]["times_usual"] *= 1 - 1.1 * claim.tolerance
    (problem,) = claims.compare(TEXT, [claim], results)
    assert "measured here" in problem


@pytest.mark.parametrize(("tried", "state"), [(156, "within tolerance"), (15, "differs")])
def test_a_part_may_write_counts_and_its_commit_is_not_compared(tried, state):
    program = "import pathlib, sys; pathlib.Path(sys.argv[2], 'files.json').write_text(sys.argv[3])"
    program = program.replace("sys.argv[3]", repr(json.dumps({"tried": tried, "right": 156, "commit": "1234567"})))
    part = claims.Part("count", 1, "any", run=("-c", program), writes="files")
    claim = claims.Claim(
        "| hostile files | {} | {} | `{commit}` |", "x", ("files:tried", "files:right", "files:commit"), 0.1
    )
    found = claims.rerun("x", part, [claim], "| hostile files | 156 | 156 | `7654321` |")
    assert found[0] == state and len(found[1]) == (state == "differs")


def test_the_shortest_parts_are_chosen_within_the_minutes():
    assert claims.choose(PARTS, 0, None) == set()
    assert claims.choose(PARTS, 7, None) == {"hostile", "corpus"}
    assert claims.choose(PARTS, 10_000, None) == {name for name, part in PARTS.items() if part.run}
    assert claims.choose(PARTS, 0, ["demo", "checks"]) == {"demo"}


def test_the_demo_is_made_anew_by_the_stages_of_make_demo(tmp_path):
    recipe = (claims.ROOT / "Makefile").read_text(encoding="utf-8").partition("\ndemo: ")[2].partition("\n\n")[0]
    started = re.findall(r"-m recipe\.([a-z]+)", recipe)
    stages = [words[1].removeprefix("recipe.") for words in claims.demo_stages(str(tmp_path))]
    assert stages == started[: len(stages)] and stages[-1] == "evaluate"


def test_the_program_marks_what_it_does_not_rerun():
    command = [sys.executable, str(claims.HERE / "claims.py"), "--minutes", "0", "--json"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)
    assert not result["problems"] and {row["part"] for row in result["parts"]} == PARTS.keys()
    assert all(row["state"].startswith("not rerun: ") for row in result["parts"])
