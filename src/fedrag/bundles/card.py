"""The card of a saved system: what it is, for people and for a hub.

Its parts, where they came from, their fingerprints, how many documents it holds (never which), and how to load it with
fedrag and every part without. What it is worth is known later: `fedrag.bundles.page` puts an evaluation into a card.
Saving the system again writes a card without it, for other weights want another evaluation.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from peft import PeftModel

from fedrag.bundles.page import ABOVE, HERE, whole
from fedrag.bundles.parts import Parts, Settings
from fedrag.encoders.sentence import SentenceEncoder
from fedrag.generators.causal import CausalLM

_READ = {"stuff": "in one prompt", "ensemble": "each in a prompt of its own"}
_NAME = re.compile(r"[\w-][\w.-]*/[\w-][\w.-]*")
_ENCODER = """\
from sentence_transformers import SentenceTransformer

encoder = SentenceTransformer(f"{folder}/encoder")
scores = encoder.encode_query(["a question"]) @ encoder.encode_document(["a document"]).T
"""
_RERANKER = """\
from sentence_transformers import CrossEncoder

reranker = CrossEncoder(f"{folder}/reranker")
scores = reranker.predict([("a question", "a document")])
"""
_GENERATOR = """\
from transformers import AutoModelForCausalLM, AutoTokenizer

generator = AutoModelForCausalLM.from_pretrained(f"{folder}/generator")
tokenizer = AutoTokenizer.from_pretrained(f"{folder}/generator")
"""
_ADAPTED = """\
import json

from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer

name = json.load(open(f"{folder}/generator/adapter_config.json"))["base_model_name_or_path"]
base = AutoModelForCausalLM.from_pretrained(f"{folder}/generator/base" if name == "base" else name)
generator = PeftModel.from_pretrained(base, f"{folder}/generator")
tokenizer = AutoTokenizer.from_pretrained(f"{folder}/generator")
"""
_LIMITS = """\
It answers from its documents, as they were when they were indexed, and can answer wrongly from right documents. What
it was not evaluated on is not known: another field, another language, longer questions. Licences of its base models
and rights to its documents go on to apply.
"""


def card(settings: Settings, parts: Parts, elsewhere: Mapping[str, str]) -> str:
    """The card as Markdown, with the front matter that a hub reads."""
    passed = "".join(f", {part}={part}" for part in elsewhere)
    rows, bases = _parts(parts)
    alone = [_block(f"folder = {HERE}\n\n{_ENCODER}" if isinstance(parts.encoder, SentenceEncoder) else "")]
    if (reranker := getattr(parts, "reranker", None)) is not None and "reranker" not in elsewhere:
        alone.append(_block(_RERANKER))
        rows.append(f"| reranker | `{type(reranker).__name__}` | | {_print(reranker)} |")
    if isinstance(parts.generator, CausalLM):
        alone.append(_block(_ADAPTED if isinstance(parts.generator.model, PeftModel) else _GENERATOR))
    told = [
        "# A RAG system",
        f"{len(parts.store)} documents, the best {settings['top_k']} of them {_READ[settings['reader']]}.",
        "\n".join(["| part | what | made from | fingerprint |", "|---|---|---|---|", *rows]),
        *(f"The {part} is not in this folder: it was a `{kind}`." for part, kind in elsewhere.items()),
        "## Use",
        _block(f"from fedrag import RAGSystem\n\nrag = {ABOVE}{passed})\n"),
        "The parts load without fedrag:",
        *alone,
        "## Limits",
        _LIMITS,
    ]
    front: dict[str, Any] = {"library_name": "fedrag", "tags": ["rag"]}
    return whole(front | ({"base_model": bases} if bases else {}), "\n\n".join(filter(None, told)))


def _parts(parts: Parts) -> tuple[list[str], list[str]]:
    """A row for each part that every system has, and the names of the models that they were made from."""
    rows: list[str] = []
    bases: list[str] = []
    encoder, generator = parts.encoder, parts.generator
    for title, part, network, what in (
        ("encoder", encoder, getattr(encoder, "model", None), _towers(encoder)),
        ("generator", generator, getattr(generator, "model", None), _adapters(generator)),
    ):
        if part is not None:
            base = _base(network)
            bases += [base] if base and base not in bases else []
            rows.append(f"| {title} | {what} | {f'`{base}`' if base else ''} | {_print(part)} |")
    return rows, bases


def _towers(encoder: object) -> str:
    if not isinstance(encoder, SentenceEncoder):
        return f"`{type(encoder).__name__}`"
    return f"{'two towers' if encoder.two_towers else 'one tower'}, compared by {encoder.model.similarity_fn_name}"


def _adapters(generator: object) -> str:
    if not isinstance(generator, CausalLM):
        return f"`{type(generator).__name__}`"
    adapted = isinstance(generator.model, PeftModel)
    return f"{type(generator.model.get_base_model()).__name__}, adapters" if adapted else type(generator.model).__name__


def _base(network: Any) -> str:
    """The hub's name of what a model was made from; empty for a folder of this machine, which nobody else has."""
    if isinstance(network, PeftModel):
        name = network.peft_config["default"].base_model_name_or_path
    else:
        name = getattr(getattr(network, "model_card_data", None), "base_model", None)
        name = name or getattr(getattr(network, "config", None), "_name_or_path", "")
    return name if isinstance(name, str) and _NAME.fullmatch(name) else ""


def _print(part: object) -> str:
    fingerprint = getattr(part, "fingerprint", "")
    return f"`{fingerprint}`" if fingerprint else ""


def _block(code: str) -> str:
    return f"```python\n{code}```" if code else ""
