"""Conversations made fit to train on; every drop has a counted reason."""
