"""The card of a saved system: what it is, for people and for the hub."""

from __future__ import annotations

from collections.abc import Mapping

from fedrag.bundles.parts import Parts, Settings
from fedrag.generators.causal import CausalLM

_READ = {"stuff": "in each prompt", "ensemble": "each in a prompt of its own"}


def card(settings: Settings, parts: Parts, elsewhere: Mapping[str, str]) -> str:
    """The card as Markdown, with the front matter that the hub reads."""
    passed = "".join(f", {part}={part}" for part in elsewhere)
    told = [
        f"{len(parts.store)} documents, the best {settings['top_k']} of them {_READ[settings['reader']]}. Document "
        f"encoder `{parts.encoder.fingerprint}`.",
        f'```python\nfrom fedrag import RAGSystem\n\nrag = RAGSystem.load("path/to/the/folder/above"{passed})\n```',
        "`encoder/` is a sentence-transformers model"
        + (", `generator/` a transformers model or a peft adapter." if isinstance(parts.generator, CausalLM) else "."),
        *(f"The {part} is not in this folder: it was a `{kind}`." for part, kind in elsewhere.items()),
    ]
    return "---\nlibrary_name: fedrag\ntags:\n- rag\n---\n\n# A RAG system\n\n" + "\n\n".join(told) + "\n"
