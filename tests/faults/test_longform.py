"""Long forms: an interrupted one goes on where it stopped, and one of other code begins anew."""

import json

from tests.faults import longform


def test_trials_are_counted_once_and_resumed(tmp_path, monkeypatch):
    file, made = tmp_path / "results" / "x.json", []

    def attempt(trial):
        made.append(trial)
        if trial == 3 and made.count(3) == 1:
            raise KeyboardInterrupt
        return ("even" if trial % 2 == 0 else "odd"), ("it broke" if trial == 4 else "")

    order = list(range(10))
    try:
        longform.carry_on(file, order[:6], order, attempt)
    except KeyboardInterrupt:
        assert json.loads(file.read_text())["tried"] == 3
    found = longform.carry_on(file, order[:6], order, attempt)
    assert made == [0, 1, 2, 3, 3, 4, 5]
    assert found["ends"] == {"even": 2, "odd": 3, "wrong": 1} and found["problems"] == {"4": "it broke"}
    assert (found["tried"], found["right"]) == (6, 5)
    assert longform.carry_on(file, order[:2], order, attempt)["tried"] == 6, "fewer are there already"
    monkeypatch.setattr(longform, "code_sha256", lambda: "of other code")
    assert longform.carry_on(file, order[:2], order, attempt)["tried"] == 2
