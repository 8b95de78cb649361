"""The corpus build: sources to shards to train.jsonl and val.jsonl, on all cores."""
