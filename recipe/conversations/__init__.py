"""Text as data: formats, cleaning, templates, tokens. Imports no torch."""
