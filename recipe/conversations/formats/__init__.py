"""Records to conversations, by known layouts, and back."""
