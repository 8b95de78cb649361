"""The tokenizers of the conversation tests."""

from tests.conversations.conftest import byte_level_tokenizer, llama_tokenizer  # noqa: F401
