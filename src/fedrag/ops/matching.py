"""Whether a passage holds an answer: whole tokens in a row, without regard to case or to how accents are composed.

The matching of DPR (Karpukhin et al. 2020, arXiv 2004.04906, section 5), for measuring and for training alike.

>>> whole_tokens("New York") in whole_tokens("She was born in NEW YORK.")
True
>>> whole_tokens("us") in whole_tokens("business")
False
"""

from __future__ import annotations

import unicodedata

import regex

# letters, digits and their marks in a row, or any one other visible character
_TOKEN = regex.compile(r"[\p{L}\p{N}\p{M}]+|[^\p{Z}\p{C}]")


def whole_tokens(text: str) -> str:
    """Return the lower-case tokens with a space before, between and after, so that `in` matches whole tokens."""
    return " " + " ".join(token.lower() for token in _TOKEN.findall(unicodedata.normalize("NFD", text))) + " "
