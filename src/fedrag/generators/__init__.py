"""Generators: prompts to texts, and how likely a text is after a prompt."""
