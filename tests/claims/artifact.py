"""Write ARTIFACT.md, the checklist of artefact evaluation, from claims.toml, the Makefile and the README.

python tests/claims/artifact.py
"""

import re

import claims

PAGE = claims.ROOT / "ARTIFACT.md"
HEAD = """# Artefact

For reviewers who evaluate this project as an artefact: available, functional, reproduced. Written by
`python tests/claims/artifact.py` from [claims.toml](tests/claims/claims.toml), the Makefile and the README.

## Available

- [x] Licence: [Apache-2.0](LICENSE). The demo's base model: Apache-2.0. Conversations of the demo: in this repository.
- [x] {packages} packages are pinned by hash, the root image by digest ([pins.toml](docker/pins.toml)).
- [ ] An archive with a DOI: not yet. Cite the commit.

## Functional

- [x] Documented: [README.md](README.md), `--help` of every command, [a map of the code](README.md#map-of-the-code).
- [x] Needs Linux (x86_64), Python 3.11, `make` and `git`; {install}. No GPU for anything below.
- [x] Exercisable: `make demo` runs the whole recipe on a real small model in {demo} minutes on 2 CPU cores.
- [x] Checked: `make test`.

First smoke test: `make setup`, then `make demo`. It ends with a table of losses and the answers of the model.

## Reproduced

| command | shows |
| --- | --- |
{targets}

`make claims` reruns the numbers of the README. A rerun passes within its tolerance; times differ between machines.

| what the README says | command | minutes | hardware | tolerance |
| --- | --- | --- | --- | --- |
{claims}

Not reproducible yet: everything on a Tesla P100. Nothing has been measured there.
"""
TARGETS = ("claims", "reproduce", "replay", "bundle")


def page() -> str:
    """ARTIFACT.md as it should be."""
    parts, found = claims.read_claims()
    text = claims.plain(claims.README.read_text(encoding="utf-8"))
    makefile = (claims.ROOT / "Makefile").read_text(encoding="utf-8")
    lock = (claims.ROOT / "docker" / "requirements.lock").read_text(encoding="utf-8")
    install = next(say(text, claim) for claim in found if claim.part == "install")
    return HEAD.format(
        packages=len(re.findall(r"^[a-z0-9._-]+==", lock, re.M)),
        install=install,
        demo=f"{parts['demo'].minutes:g}",
        targets="\n".join(f"| `make {name}` | {explain(makefile, name)} |" for name in TARGETS),
        claims="\n".join(row(text, claim, parts[claim.part]) for claim in found),
    )


def explain(makefile: str, target: str) -> str:
    """The one-line help of a target."""
    found = re.search(rf"^{target}:.*## (.*)$", makefile, re.M)
    if not found:
        raise SystemExit(f"error: the Makefile has no target {target}, expected one with a line of help")
    return found[1]


def row(text: str, claim: claims.Claim, part: claims.Part) -> str:
    note = f" ({part.why})" if part.why else ""
    cells = (say(text, claim), f"`{part.command}`{note}", f"{part.minutes:g}", part.hardware, f"{claim.tolerance:.0%}")
    return f"| {' | '.join(cells)} |"


def say(text: str, claim: claims.Claim) -> str:
    """The claim with its numbers, as part of a table."""
    words = claim.says.replace("`", "").replace(" | ...", "").strip("| ").replace(" | ", "; ")
    for number in claims.shown(text, claim):
        words = re.sub(claims.PLACE, number, words, count=1)
    return words


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
