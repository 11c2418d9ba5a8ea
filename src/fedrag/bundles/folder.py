"""The folder of a saved system: its parts, `fedrag.json`, which holds the settings, and a card for people.

    encoder/        a sentence-transformers model
    reranker/       a sentence-transformers cross-encoder, where the system has one
    generator/      a transformers model or a peft adapter
    store/          documents and vectors
    fedrag.json     how they work together (settings, how the retriever is put together), and what the system had
                    that is not in the folder
    README.md       the card

A database and a model behind an address stay where they are: the folder names them, and `load` wants them passed.

Formats: 1 knew no reader and no temperature, and is read as what it meant: all documents in one prompt. Up to 2 every
part was in the folder. Up to 3 every retriever was a dense one.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from fedrag import durable
from fedrag.bundles.card import card
from fedrag.bundles.parts import Parts, Settings
from fedrag.bundles.place import FILE, parts_in
from fedrag.bundles.shape import build, shape_of
from fedrag.encoders.cross import CrossEncoderReranker
from fedrag.encoders.sentence import SentenceEncoder
from fedrag.errors import ConfigError, InputError, StoreError
from fedrag.generators.causal import CausalLM
from fedrag.prompts import Prompt
from fedrag.retrievers.reranked import Reranker
from fedrag.stores.memory import MemoryStore
from fedrag.types import Generator, KnowledgeStore

_FORMAT = 4


def save(path: Path, settings: Settings, parts: Parts) -> None:
    """Write a system into a folder, in one atomic step. Raises `InputError` for what it cannot write."""
    encoder, store, generator, reranker = parts.encoder, parts.store, parts.generator, parts.reranker
    if not isinstance(encoder, SentenceEncoder):
        raise InputError(
            f"save() writes a SentenceEncoder, the system has a {type(encoder).__name__}: save it with its own library"
        )
    elsewhere: dict[str, str] = {}
    if not isinstance(store, MemoryStore):
        elsewhere["store"] = type(store).__name__
    if generator is not None and not isinstance(generator, CausalLM):
        elsewhere["generator"] = type(generator).__name__
    if reranker is not None and not isinstance(reranker, CrossEncoderReranker):
        elsewhere["reranker"] = type(reranker).__name__
    shape = shape_of(parts.retriever, store)

    def write(folder: Path) -> None:
        encoder.save(folder / "encoder")
        if isinstance(generator, CausalLM):
            generator.save(folder / "generator")
        if isinstance(reranker, CrossEncoderReranker):
            reranker.save(folder / "reranker")
        if isinstance(store, MemoryStore):
            store.save(folder / "store")
        saved = {"format": _FORMAT, **settings, "prompt": asdict(settings["prompt"])}
        saved |= {"elsewhere": elsewhere, "generator": generator is not None}
        saved |= {"retriever": shape, "reranker": reranker is not None}
        (folder / FILE).write_text(json.dumps(saved, indent=2), encoding="utf-8")
        (folder / "README.md").write_text(card(settings, parts, elsewhere), encoding="utf-8")

    durable.publish(path, write)


def load(
    path: Path,
    *,
    store: KnowledgeStore | None = None,
    generator: Generator | None = None,
    reranker: Reranker | None = None,
    device: str | None = None,
) -> tuple[Settings, Parts]:
    """Read what `save` wrote, or such a folder from a hub; what is passed takes the place of what was saved.

    Raises `StoreError` where there is nothing, or what a newer fedrag wrote, and `InputError` where a part that is not
    in the folder is not passed, or a reranker that cannot take a place there.
    """
    folder = parts_in(path)
    settings, saved = _read(folder)
    given: dict[str, object] = {"store": store, "generator": generator, "reranker": reranker}
    if missing := {part: kind for part, kind in saved.elsewhere.items() if given.get(part) is None}:
        raise InputError(
            f"{path} holds no {' and no '.join(missing)}, for the system's was elsewhere: pass "
            + ", ".join(f"{part}=<the {kind}>" for part, kind in missing.items())
        )
    if reranker is not None and not (saved.reranks and callable(getattr(reranker, "scores", None))):
        kind = type(reranker).__name__
        raise InputError(
            f"reranker is a {kind}, which has no scores(queries, documents): wrap it in CrossEncoderReranker"
            if saved.reranks
            else f"{path} holds a system without a reranker: load it, and put Reranked(rag.retriever, <the {kind}>) "
            "around its retriever"
        )
    if generator is None and saved.generates:
        generator = CausalLM.load(folder / "generator", device=device)
    if reranker is None and saved.reranks:
        reranker = CrossEncoderReranker.load(folder / "reranker", device=device)
    encoder = SentenceEncoder.load(folder / "encoder", device=device)
    store = MemoryStore.open(folder / "store") if store is None else store
    try:
        retriever = build(saved.retriever, encoder, store, reranker)
    except (KeyError, TypeError, ConfigError):
        raise _damaged(folder) from None
    return settings, Parts(encoder, store, generator, retriever, reranker)


@dataclass(frozen=True, slots=True)
class _Saved:
    """What `fedrag.json` tells beside the settings: parts that are elsewhere, and which there are."""

    elsewhere: Mapping[str, str]
    generates: bool
    retriever: Mapping[str, Any]
    reranks: bool


def _read(folder: Path) -> tuple[Settings, _Saved]:
    file = folder / FILE
    try:
        saved: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
        version = int(saved["format"])
        if version == 1:
            saved |= {"reader": "stuff", "temperature": None}
        if version <= 2:
            saved |= {"elsewhere": {}, "generator": True}
        if version <= 3:
            saved |= {"retriever": {"kind": "dense"}, "reranker": False}
        if version <= _FORMAT:
            temperature = saved["temperature"] if saved["temperature"] is None else float(saved["temperature"])
            settings: Settings = {
                "top_k": int(saved["top_k"]),
                "prompt": Prompt(**saved["prompt"]),
                "reader": saved["reader"],
                "temperature": temperature,
            }
            rest = _Saved(
                dict(saved["elsewhere"]), bool(saved["generator"]), dict(saved["retriever"]), bool(saved["reranker"])
            )
            return settings, rest
    except (OSError, ValueError, KeyError, TypeError):
        raise _damaged(folder) from None
    raise StoreError(f"{file} has format {version}, this fedrag reads {_FORMAT}: upgrade fedrag")


def _damaged(folder: Path) -> StoreError:
    return StoreError(f"{folder / FILE} is missing or damaged; restore the folder from a copy")
