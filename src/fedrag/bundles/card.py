"""The card of a saved system: what it is, for people and for a hub.

`card` writes what is known when a system is saved: its parts, where they came from, their fingerprints, how many
documents it holds (never which), and how to load it with fedrag and every part without. What it is worth is known
later: `measured` puts an evaluation into a card, as a table with intervals and as the `model-index` that hubs read.
Saving the system again writes a card without it, for other weights want another evaluation.

>>> from types import SimpleNamespace
>>> f1 = SimpleNamespace(mean=0.5, low=0.4, high=0.6, n=9)
>>> text = measured("---\\nlibrary_name: fedrag\\n---\\n# A RAG system\\n\\n## Limits\\n", {"f1": f1})
>>> "| f1 | 0.500 [0.400, 0.600] | 9 |" in text, "model-index" in text
(True, True)
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, Protocol

import yaml
from huggingface_hub.repocard_data import EvalResult, eval_results_to_model_index
from peft import PeftModel

from fedrag.bundles.parts import Parts, Settings
from fedrag.encoders.sentence import SentenceEncoder
from fedrag.errors import InputError
from fedrag.generators.causal import CausalLM

_READ = {"stuff": "in one prompt", "ensemble": "each in a prompt of its own"}
_HERE = '"path/to/this/folder"'
_ABOVE = 'RAGSystem.load("path/to/the/folder/above"'
_NAME = re.compile(r"[\w-][\w.-]*/[\w-][\w.-]*")
_EVALUATION = re.compile(r"## Evaluation\n.*?(?=## )", re.DOTALL)
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


class Mean(Protocol):
    """A mean over `n` questions and the ends of its 95 % interval, as an evaluation's report has it."""

    @property
    def mean(self) -> float:
        """Over the questions."""
        ...

    @property
    def low(self) -> float:
        """The interval's lower end."""
        ...

    @property
    def high(self) -> float:
        """Its upper end."""
        ...

    @property
    def n(self) -> int:
        """How many questions."""
        ...


class Change(Protocol):
    """How a mean changed, with the 95 % interval of the change and its p-value after Holm."""

    @property
    def before(self) -> float:
        """The mean before."""
        ...

    @property
    def difference(self) -> float:
        """After minus before."""
        ...

    @property
    def low(self) -> float:
        """The interval's lower end."""
        ...

    @property
    def high(self) -> float:
        """Its upper end."""
        ...

    @property
    def p_holm(self) -> float:
        """The p-value, adjusted for the number of metrics."""
        ...


def card(settings: Settings, parts: Parts, elsewhere: Mapping[str, str]) -> str:
    """The card as Markdown, with the front matter that a hub reads."""
    passed = "".join(f", {part}={part}" for part in elsewhere)
    rows, bases = _parts(parts)
    alone = [_block(f"folder = {_HERE}\n\n{_ENCODER}" if isinstance(parts.encoder, SentenceEncoder) else "")]
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
        _block(f"from fedrag import RAGSystem\n\nrag = {_ABOVE}{passed})\n"),
        "The parts load without fedrag:",
        *alone,
        "## Limits",
        _LIMITS,
    ]
    front: dict[str, Any] = {"library_name": "fedrag", "tags": ["rag"]}
    return _whole(front | ({"base_model": bases} if bases else {}), "\n\n".join(filter(None, told)))


def measured(
    text: str,
    metrics: Mapping[str, Mean],
    *,
    changes: Mapping[str, Change] | None = None,
    method: str = "",
    name: str = "A RAG system",
) -> str:
    """A card with an evaluation in it, in the place of an earlier one.

    Args:
        text: the card, as `card` wrote it.
        metrics: means with intervals, by name.
        changes: what tuning changed, by name: a column before and a column of differences.
        method: how the system was tuned, as Markdown.
        name: of the system in the `model-index`.

    Raises `InputError` for a text that is no card.
    """
    front, body = _parted(text)
    head = ["metric", *(["before"] if changes else []), "mean [95 % interval]"]
    head += ["difference [95 % interval], p (Holm)"] if changes else []
    rows = [[*head, "n"], ["---"] * (len(head) + 1)]
    for metric, value in metrics.items():
        row = [metric, f"{value.mean:.3f} [{value.low:.3f}, {value.high:.3f}]", str(value.n)]
        if changes:
            change = changes.get(metric)
            row.insert(1, "" if change is None else f"{change.before:.3f}")
            row.insert(3, "" if change is None else _change(change))
        rows.append(row)
    table = "\n".join(f"| {' | '.join(row)} |" for row in rows)
    section = "\n\n".join(["## Evaluation", *([method.strip()] if method.strip() else []), table]) + "\n\n"
    results = [
        EvalResult(
            task_type="question-answering",
            dataset_type="own",
            dataset_name=f"{value.n} questions",
            metric_type=metric,
            metric_value=round(value.mean, 4),
            metric_name=f"{metric}, 95 % interval {value.low:.3f} to {value.high:.3f}",
        )
        for metric, value in metrics.items()
    ]
    front["model-index"] = _plain(eval_results_to_model_index(name, results))
    body = _EVALUATION.sub("", body)
    place = re.search(r"^## ", body, re.MULTILINE)
    at = place.start() if place else len(body)
    return _whole(front, body[:at] + section + body[at:])


def published(text: str, repo_id: str, *, with_store: bool) -> str:
    """A card whose examples load from a hub, and which says where the documents are."""
    loads = f'RAGSystem.from_pretrained("{repo_id}"'
    if not with_store:
        loads += "" if "store=store" in text else ", store=store"
        text = text.replace("## Use\n", "## Use\n\nThe documents are not here: pass a store of your own.\n", 1)
    there = f'snapshot_download("{repo_id}")  # from huggingface_hub import snapshot_download'
    return text.replace(_ABOVE, loads, 1).replace(f"folder = {_HERE}", f"folder = {there}", 1)


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


def _change(change: Change) -> str:
    p = "<0.001" if change.p_holm < 0.001 else f"{change.p_holm:.3f}"
    return f"{change.difference:+.3f} [{change.low:+.3f}, {change.high:+.3f}], {p}"


def _block(code: str) -> str:
    return f"```python\n{code}```" if code else ""


def _parted(text: str) -> tuple[dict[str, Any], str]:
    _, _, rest = text.partition("---\n")
    front, found, body = rest.partition("---\n")
    if not found or not text.startswith("---\n"):
        raise InputError("the card has no front matter between two lines of ---: save the system again to get a card")
    return dict(yaml.safe_load(front) or {}), body


def _whole(front: Mapping[str, Any], body: str) -> str:
    return f"---\n{yaml.safe_dump(dict(front), sort_keys=False, allow_unicode=True)}---\n\n{body.strip()}\n"


def _plain(value: Any) -> Any:
    """Without the keys that hold nothing."""
    if isinstance(value, list):
        return [_plain(item) for item in value]  # pyright: ignore[reportUnknownVariableType]
    return {k: _plain(v) for k, v in value.items() if v is not None} if isinstance(value, dict) else value
