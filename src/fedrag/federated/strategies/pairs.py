"""LoRA pairs among parameter names: which A goes with which B, and what they adapt.

peft names the two factors `x.lora_A.weight` and `x.lora_B.weight` where it saves them, `x.lora_A.default.weight` in the
model, with the adapter's name; those of an embedding are `x.lora_embedding_A.default`. In all of them the change of the
weight is scale · B·A, with A `[r, e]` and B `[d, r]` (transposed in an embedding, which changes nothing here).
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass

_A = re.compile(r"(?:(?P<module>.+)\.)?lora_(?:A(?:\.[^.]+)?\.weight|(?P<embedding>embedding_)A(?:\.[^.]+)?)")


@dataclass(frozen=True, slots=True)
class Pair:
    """Names of a LoRA pair's two parameters, and of the module that it adapts."""

    a: str
    b: str
    module: str
    embedding: bool


def pairs(names: Iterable[str]) -> list[Pair]:
    """The LoRA pairs whose two parameters are both among `names`.

    >>> pairs(["q.lora_A.default.weight", "q.lora_B.default.weight", "norm.weight"])
    [Pair(a='q.lora_A.default.weight', b='q.lora_B.default.weight', module='q', embedding=False)]
    """
    known = dict.fromkeys(names)
    found: list[Pair] = []
    for name in known:
        if match := _A.fullmatch(name):
            module = match["module"] or ""
            start = len(module) + bool(module)
            b = name[:start] + name[start:].replace("A", "B", 1)
            if b in known:
                found.append(Pair(name, b, module, bool(match["embedding"])))
    return found


def is_a(name: str) -> bool:
    """Whether this is the name of an A."""
    return _A.fullmatch(name) is not None
