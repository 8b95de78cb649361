"""Check an unpacked bundle with the validators of RO-Crate and in-toto: `PYTHON validators.py FOLDER`.

Run by tests/demo/test_proof.py in the environment of validators.lock. Prints each problem; exit code 1 if there is one.
"""

import sys
from importlib import metadata
from pathlib import Path

CONTEXT = "https://w3id.org/ro/crate/1.1/context"


def crate_problems(folder: Path) -> list[str]:
    """What the crate lacks of what RO-Crate 1.1 requires."""
    serve_context()
    from rocrate_validator import models, services

    severity = models.Severity.REQUIRED
    settings = {"rocrate_uri": str(folder), "profile_identifier": "ro-crate-1.1", "requirement_severity": severity}
    issues = services.validate(settings).get_issues()
    return [f"RO-Crate: {issue.check.identifier}: {issue.message}" for issue in issues]


def serve_context() -> None:
    """Answer the requests for the context with the copy that the package rocrate carries, and no others."""
    import email.message
    import io
    import urllib.request

    import rdflib._networking
    import rdflib.parser
    import requests
    from rocrate_validator.utils import http

    text = next(file for file in metadata.files("rocrate") or () if file.name == "ro-crate.jsonld").read_binary()

    def get(self: object, url: str, **_: object) -> requests.Response:
        if url != CONTEXT:
            raise OSError(f"no network here: {url}")
        response = requests.Response()
        response.status_code, response._content, response.url = 200, text, url
        response.headers["Content-Type"] = "application/ld+json"
        return response

    def urlopen(request: object, *_: object, **__: object) -> urllib.request.addinfourl:
        response = get(None, getattr(request, "full_url", str(request)))
        headers = email.message.Message()
        headers["Content-Type"] = "application/ld+json"
        return urllib.request.addinfourl(io.BytesIO(response.content), headers, CONTEXT, 200)

    http.HttpRequester.get = get
    for module in (rdflib._networking, rdflib.parser):
        module._urlopen = urlopen


def statement_problems(folder: Path) -> list[str]:
    """What the statement lacks of what in-toto requires."""
    from google.protobuf import json_format
    from in_toto_attestation.v1 import statement_pb2
    from in_toto_attestation.v1.statement import Statement

    try:
        text = (folder / "statement.intoto.json").read_text(encoding="utf-8")
        parsed = json_format.Parse(text, statement_pb2.Statement())  # an unknown field is an error
        predicate = json_format.MessageToDict(parsed.predicate)
        Statement(list(parsed.subject), parsed.predicate_type, predicate).validate()
    except (json_format.ParseError, ValueError) as error:
        return [f"in-toto: {error}"]
    return []


if __name__ == "__main__":
    found = crate_problems(Path(sys.argv[1])) + statement_problems(Path(sys.argv[1]))
    print("\n".join(found) or "valid")
    sys.exit(1 if found else 0)
