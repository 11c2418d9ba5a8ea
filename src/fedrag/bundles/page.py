"""The page of a card, as text: an evaluation put into it, its examples turned to a hub. Loads no model.

`measured` writes an evaluation as a table with intervals and as the `model-index` that hubs read.

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

from fedrag.errors import InputError

HERE = '"path/to/this/folder"'
ABOVE = 'RAGSystem.load("path/to/the/folder/above"'
"""What a card on a disk says in its examples; on a hub it says where it is."""
_BEGIN, _END = "<!-- evaluation -->", "<!-- end of evaluation -->"
_EVALUATION = re.compile(rf"{_BEGIN}\n.*{_END}\n\n", re.DOTALL)  # whatever headings the words on the method have


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
    told = method.replace(_END, "").strip()
    section = "\n\n".join([f"{_BEGIN}\n## Evaluation", *([told] if told else []), f"{table}\n{_END}\n\n"])
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
    return whole(front, body[:at] + section + body[at:])


def published(text: str, repo_id: str, *, with_store: bool) -> str:
    """A card whose examples load from a hub, and which says where the documents are."""
    loads = f'RAGSystem.from_pretrained("{repo_id}"'
    if not with_store:
        loads += "" if "store=store" in text else ", store=store"
        text = text.replace("## Use\n", "## Use\n\nThe documents are not here: pass a store of your own.\n", 1)
    there = f'snapshot_download("{repo_id}")  # from huggingface_hub import snapshot_download'
    return text.replace(ABOVE, loads, 1).replace(f"folder = {HERE}", f"folder = {there}", 1)


def _change(change: Change) -> str:
    p = "<0.001" if change.p_holm < 0.001 else f"{change.p_holm:.3f}"
    return f"{change.difference:+.3f} [{change.low:+.3f}, {change.high:+.3f}], {p}"


def _parted(text: str) -> tuple[dict[str, Any], str]:
    _, _, rest = text.partition("---\n")
    front, found, body = rest.partition("---\n")
    if not found or not text.startswith("---\n"):
        raise InputError("the card has no front matter between two lines of ---: save the system again to get a card")
    return dict(yaml.safe_load(front) or {}), body


def whole(front: Mapping[str, Any], body: str) -> str:
    """The text of a card: front matter and body."""
    return f"---\n{yaml.safe_dump(dict(front), sort_keys=False, allow_unicode=True)}---\n\n{body.strip()}\n"


def _plain(value: Any) -> Any:
    """Without the keys that hold nothing."""
    if isinstance(value, list):
        return [_plain(item) for item in value]  # pyright: ignore[reportUnknownVariableType]
    return {k: _plain(v) for k, v in value.items() if v is not None} if isinstance(value, dict) else value
