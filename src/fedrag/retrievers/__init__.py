"""Retrievers: queries to documents, best first."""
