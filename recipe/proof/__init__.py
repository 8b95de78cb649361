"""Proof for others: a run replayed, a run bundled with its statements in the formats that reviewers read."""
