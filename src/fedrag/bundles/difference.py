"""What differs between two systems: settings, fingerprints, weights part by part, and documents.

`before.diff(after)` answers what a training run, an edit or a colleague changed. Weights are compared by canonical name
(`RAGSystem.parts`), value by value, one tensor at a time; documents by id, through a digest of each, so that two stores
of a million need no second copy of their texts.

    print(before.diff(after))

    settings
      top_k              3 -> 5
    weights
      retriever/encoder  8,192 of 12,800 values changed, in 1 of 1 tensors; the change's norm is 0.41, 0.9 % of theirs
    documents
      2 added (d24, d25), none removed, 1 changed (d3)

>>> print(SystemDifference())
the systems are equal
>>> bool(SystemDifference(settings={"top_k": (3, 5)}))
True
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Protocol

import torch
from torch import nn

from fedrag.bundles.shape import shape_of
from fedrag.errors import InputError
from fedrag.prompts import Prompt
from fedrag.retrievers.nested import every
from fedrag.types import Document, Generator, KnowledgeStore, Retriever

_SHOWN = 3
_GENERATOR = ("max_new_tokens", "max_length", "stop")


class System(Protocol):
    """What is read of a `RAGSystem`, which is not imported here because it offers this as a method."""

    retriever: Retriever
    generator: Generator | None
    top_k: int
    prompt: Prompt
    temperature: float

    @property
    def reader(self) -> str:
        """How documents become prompts."""
        ...

    def parts(self) -> Mapping[str, nn.Module]:
        """The modules that hold all weights, by canonical name."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class WeightDifference:
    """How the parameters of one part changed; `norm` is that of the change, `before_norm` that of the part before.

    Both are Euclidean, over the floating-point parameters that both systems have in the same shape. `only_before`,
    `only_after` and `reshaped` name the other parameters.
    """

    values: int = 0
    changed_values: int = 0
    tensors: int = 0
    changed_tensors: int = 0
    norm: float = 0.0
    before_norm: float = 0.0
    only_before: tuple[str, ...] = ()
    only_after: tuple[str, ...] = ()
    reshaped: tuple[str, ...] = ()

    def __bool__(self) -> bool:
        return bool(self.changed_values or self.only_before or self.only_after or self.reshaped)

    def __str__(self) -> str:
        told: list[str] = []
        if self.changed_values:
            share = f", {self.norm / self.before_norm:.2g} times theirs" if self.before_norm else ""
            told.append(
                f"{self.changed_values:,} of {self.values:,} values changed, in {self.changed_tensors} of "
                f"{self.tensors} tensors; the change's norm is {self.norm:.3g}{share}"
            )
        for names, what in (
            (self.only_before, "only before"),
            (self.only_after, "only after"),
            (self.reshaped, "of another shape"),
        ):
            if names:
                told.append(f"{len(names)} {'tensor' if len(names) == 1 else 'tensors'} {what} ({_some(names)})")
        return "; ".join(told)


@dataclass(frozen=True, slots=True, kw_only=True)
class DocumentDifference:
    """The ids of documents that only the later store has, only the earlier one, or both with other content."""

    added: tuple[str, ...] = ()
    removed: tuple[str, ...] = ()
    changed: tuple[str, ...] = ()

    def __bool__(self) -> bool:
        return bool(self.added or self.removed or self.changed)

    def __str__(self) -> str:
        return ", ".join(
            f"{len(ids):,} {what} ({_some(ids)})" if ids else f"none {what}"
            for ids, what in ((self.added, "added"), (self.removed, "removed"), (self.changed, "changed"))
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class SystemDifference:
    """What differs, as (before, after); false where nothing does. `str()` is for people, `plain()` for JSON."""

    settings: Mapping[str, tuple[Any, Any]] = field(default_factory=dict[str, tuple[Any, Any]])
    fingerprints: Mapping[str, tuple[str | None, str | None]] = field(
        default_factory=dict[str, tuple[str | None, str | None]]
    )
    weights: Mapping[str, WeightDifference] = field(default_factory=dict[str, WeightDifference])
    documents: DocumentDifference = field(default_factory=DocumentDifference)

    def __bool__(self) -> bool:
        return bool(self.settings or self.fingerprints or self.weights or self.documents)

    def __str__(self) -> str:
        pairs = {"settings": self.settings, "fingerprints": self.fingerprints}
        sections = {title: {k: f"{a!r} -> {b!r}" for k, (a, b) in rows.items()} for title, rows in pairs.items()}
        sections["weights"] = {part: str(change) for part, change in self.weights.items()}
        lines: list[str] = []
        for title, rows in sections.items():
            width = max(map(len, rows), default=0)
            lines += [title] * bool(rows) + [f"  {name:{width}}  {told}" for name, told in rows.items()]
        lines += ["documents", f"  {self.documents}"] if self.documents else []
        return "\n".join(lines) or "the systems are equal"

    def plain(self) -> dict[str, Any]:
        """The same as values that JSON holds, with `equal` for those who only ask that."""
        return {"equal": not self, **asdict(self)}


def difference(before: System, after: System) -> SystemDifference:
    """Compare two systems, part by part; neither is changed."""
    return SystemDifference(
        settings=_unequal(_settings(before), _settings(after)),
        fingerprints=_unequal(_fingerprints(before), _fingerprints(after)),
        weights=_weights(before.parts(), after.parts()),
        documents=_documents(_store(before), _store(after)),
    )


def _unequal(one: Mapping[str, Any], two: Mapping[str, Any]) -> dict[str, tuple[Any, Any]]:
    return {
        name: (one.get(name), two.get(name)) for name in {**one, **two} if one.get(name) != two.get(name)
    }  # what is absent and what is None are the same: nothing


def _members(rag: System) -> dict[str, Any]:
    """What a system is put together from, by name; a retriever that asks others is named with those inside it."""
    retrievers = list(every(rag.retriever))
    found = {
        name: next((part for r in retrievers if (part := getattr(r, name, None)) is not None), None)
        for name in ("encoder", "store", "reranker")
    }
    return {**found, "generator": rag.generator}


def _settings(rag: System) -> dict[str, Any]:
    found: dict[str, Any] = {"top_k": rag.top_k, "reader": rag.reader, "temperature": rag.temperature}
    found |= {f"prompt.{name}": value for name, value in asdict(rag.prompt).items()}
    members = _members(rag)
    try:
        found["retriever"] = shape_of(rag.retriever, members["store"])
    except InputError:  # one of the user's own, whose settings are not known
        found["retriever"] = [type(part).__name__ for part in every(rag.retriever)]
    found |= {name: type(member).__name__ for name, member in members.items() if member is not None}
    found |= {f"generator.{name}": getattr(rag.generator, name, None) for name in _GENERATOR}
    model = getattr(members["encoder"], "model", None)
    for name in ("prompts", "similarity_fn_name", "truncate_dim", "max_seq_length"):
        found[f"encoder.{name}"] = getattr(model, name, None)
    return found


def _fingerprints(rag: System) -> dict[str, str | None]:
    return {name: getattr(member, "fingerprint", None) for name, member in _members(rag).items()}


def _store(rag: System) -> KnowledgeStore | None:
    store = _members(rag)["store"]
    return store if isinstance(store, KnowledgeStore) else None


def _weights(before: Mapping[str, nn.Module], after: Mapping[str, nn.Module]) -> dict[str, WeightDifference]:
    parts = {**before, **after}
    found = {name: _part(before.get(name, nn.Module()), after.get(name, nn.Module())) for name in parts}
    return {name: change for name, change in found.items() if change}


def _part(before: nn.Module, after: nn.Module) -> WeightDifference:
    one, two = dict(before.named_parameters()), dict(after.named_parameters())
    same = [name for name in one if name in two and one[name].shape == two[name].shape]
    counts, squares, scale = [0, 0, 0], 0.0, 0.0
    with torch.no_grad():
        for name in same:
            a, b = one[name].detach().cpu(), two[name].detach().cpu()
            if floating := a.is_floating_point() and b.is_floating_point():
                a, b = a.double(), b.double()
            changed = int((a.ne(b) & ~(a.isnan() & b.isnan())).sum())
            counts = [counts[0] + a.numel(), counts[1] + changed, counts[2] + bool(changed)]
            if floating:  # the bytes of packed quantised weights have no norm
                squares, scale = squares + float((b - a).square().sum()), scale + float(a.square().sum())
    return WeightDifference(
        values=counts[0],
        changed_values=counts[1],
        tensors=len(same),
        changed_tensors=counts[2],
        norm=math.sqrt(squares),
        before_norm=math.sqrt(scale),
        only_before=tuple(name for name in one if name not in two),
        only_after=tuple(name for name in two if name not in one),
        reshaped=tuple(name for name in one if name in two and name not in set(same)),
    )


def _documents(before: KnowledgeStore | None, after: KnowledgeStore | None) -> DocumentDifference:
    if before is after:
        return DocumentDifference()
    one, two = _digests(before), _digests(after)
    return DocumentDifference(
        added=tuple(id for id in two if id not in one),
        removed=tuple(id for id in one if id not in two),
        changed=tuple(id for id, digest in one.items() if two.get(id, digest) != digest),
    )


def _digests(store: KnowledgeStore | None) -> dict[str, bytes]:
    return {} if store is None else {document.id: _digest(document) for document in store.documents()}


def _digest(document: Document) -> bytes:
    told = json.dumps([document.text, document.metadata, [m.mime for m in document.media]], sort_keys=True, default=str)
    made = hashlib.blake2b(told.encode(), digest_size=16)  # json writes ASCII, whatever the text holds
    for item in document.media:
        made.update(hashlib.blake2b(item.data).digest())
    return made.digest()


def _some(names: tuple[str, ...]) -> str:
    return ", ".join(names[:_SHOWN]) + (", ..." if len(names) > _SHOWN else "")
