"""Conversations with a trained model: one engine behind the terminal chat, the HTTP API and the page."""
