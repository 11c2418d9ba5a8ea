"""Any sentence-transformers model as the two towers of a retriever.

One tower encodes queries and documents alike; two towers are a `SentenceTransformer` whose first module is a
`Router` with the routes "query" and "document" (the library's own form, so what is saved here loads there).
The model's prompts, its `truncate_dim` and its similarity ("cosine" normalises, "dot" does not) are kept, so that
the inner product of what this class returns is the score that the model was made for.

    encoder = SentenceEncoder("sentence-transformers/all-MiniLM-L6-v2")     # one tower
    encoder = SentenceEncoder("query-model", document_model="passage-model")  # two
    encoder.untie()      # one tower becomes two: the query tower is a copy that can be trained alone
"""

from __future__ import annotations

import copy
import hashlib
import math
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, cast

import torch
from peft import LoraConfig
from sentence_transformers import SentenceTransformer
from sentence_transformers.base.modules import Router
from sentence_transformers.base.modules.module import Module
from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase

from fedrag.encoders import adapters
from fedrag.errors import ConfigError, InputError
from fedrag.ops.fingerprint import Fingerprint

_DOCUMENT_PROMPTS = ("document", "passage", "corpus")


class SentenceEncoder(nn.Module):
    """Queries and documents to vectors, differentiable in the current grad mode.

    Args:
        model: a hub name, a folder, or a `SentenceTransformer`.
        document_model: a second model, for documents; `model` then encodes queries only.
        lora: rank of LoRA adapters to train in place of the weights, or a full `peft.LoraConfig`.
        device: where to put it; `None` leaves it to sentence-transformers.

    Raises:
        ConfigError: if the model's similarity is neither "cosine" nor "dot", or the towers differ in it; for `lora`
            on a model without a transformer or with adapters, and for adapters that could not be saved.
    """

    def __init__(
        self,
        model: str | Path | SentenceTransformer,
        *,
        document_model: str | Path | SentenceTransformer | None = None,
        lora: int | LoraConfig | None = None,
        device: str | None = None,
    ) -> None:
        super().__init__()
        self.model = _load(model, device)
        if document_model is not None:
            self.model = _two_towers(self.model, _load(document_model, device))
        if self.model.similarity_fn_name not in ("cosine", "dot"):
            raise ConfigError(
                f"the encoder's similarity is {self.model.similarity_fn_name!r}, and a knowledge store ranks by inner "
                "product: set model.similarity_fn_name to 'cosine' or 'dot'"
            )
        if lora is not None:
            adapters.add_lora(self.model, lora)
        adapters.check_savable(self.model)
        self._document_layers = self._layers()
        self._weights = Fingerprint(nn.Sequential(*self._document_layers))
        self.eval()

    @property
    def two_towers(self) -> bool:
        """Whether queries and documents have separate weights."""
        first = self.model[0]
        return isinstance(first, Router) and {"query", "document"} <= set(first.sub_modules)

    def untie(self) -> None:
        """Give queries a tower of their own, a copy of the shared one; nothing happens to two towers."""
        if not self.two_towers:
            self.model = _two_towers(copy.deepcopy(self.model), self.model)
            self.eval()

    def parts(self) -> dict[str, nn.Module]:
        """The disjoint modules that hold all weights: `encoder`, or `query`, `document` and what both pass through."""
        if not self.two_towers:
            return {"encoder": self.model}
        routes = cast(Router, self.model[0]).sub_modules
        shared = nn.Sequential(*list(self.model.children())[1:])
        parts = {"query": routes["query"], "document": routes["document"], "shared": shared}
        return {name: part for name, part in parts.items() if any(True for _ in part.parameters())}

    def encode_queries(self, texts: Sequence[str]) -> Tensor:
        """Vectors `[n, d]` of queries."""
        return self._encode(texts, "query")

    def encode_documents(self, texts: Sequence[str]) -> Tensor:
        """Vectors `[n, d]` of documents."""
        return self._encode(texts, "document")

    def _layers(self) -> tuple[nn.Module, ...]:
        """The layers that a document passes through; `untie` leaves them as they are."""
        parts = self.parts()
        sides = [parts.get("document", self.model), parts.get("shared")]
        return tuple(layer for side in sides if side is not None for layer in side.children())

    @property
    def max_length(self) -> float:
        """How many tokens of a document are read, prompt and special tokens included; infinite without a limit."""
        return getattr(self._document_layers[0], "max_seq_length", None) or math.inf

    def too_long(self, documents: Sequence[str]) -> int:
        """Count the documents that are longer than `max_length`, whose end no vector knows."""
        prompt = self.prompt("document") or ""
        tokenizer: Any = getattr(self._document_layers[0], "tokenizer", None)
        if not isinstance(tokenizer, PreTrainedTokenizerBase):
            return 0
        spare = self.max_length - tokenizer.num_special_tokens_to_add()
        # a token is a byte at least, so that short texts need not be cut into tokens
        suspects = [text for text in (prompt + plain(text) for text in documents) if len(text.encode("utf-8")) > spare]
        if not suspects:
            return 0
        ids: list[list[int]] = tokenizer(suspects, truncation=False, padding=False, verbose=False)["input_ids"]
        return sum(len(row) > self.max_length for row in ids)

    @property
    def fingerprint(self) -> str:
        """Hash of the document side: weights, tokenizer, prompt, pooling, maximum length, truncation, similarity."""
        settings = [
            self.model.similarity_fn_name,
            self.model.truncate_dim,
            self.prompt("document") or "",
            [layer.get_config_dict() for layer in self._document_layers if isinstance(layer, Module)],
            getattr(self._document_layers[0], "max_seq_length", None),
            self._vocabulary,
        ]
        return hashlib.blake2b(f"{self._weights()}{settings!r}".encode(), digest_size=8).hexdigest()

    @cached_property
    def _vocabulary(self) -> str:
        words = cast(dict[str, int], cast(Any, self._document_layers[0]).tokenizer.get_vocab())
        return hashlib.blake2b(repr(sorted(words.items())).encode("utf-8", "surrogatepass"), digest_size=8).hexdigest()

    def save(self, path: str | Path) -> None:
        """Write a folder that needs nothing else to be read, here or by `SentenceTransformer(path)`.

        LoRA adapters come back here as they are, to be trained on, and elsewhere merged into the weights: the same
        vectors up to rounding (1e-5 in float32).
        """
        adapters.save(self.model, Path(path))

    @classmethod
    def load(cls, path: str | Path, device: str | None = None) -> SentenceEncoder:
        """Read what `save` wrote."""
        return cls(path, device=device)

    def _encode(self, texts: Sequence[str], task: str) -> Tensor:
        if isinstance(texts, str):
            raise InputError(
                f"the encoder takes a sequence of texts, got one string of {len(texts)} characters: wrap it in a list"
            )
        if not texts:
            raise InputError("the encoder got no text to encode; pass at least one")
        features = self.model.preprocess([plain(text) for text in texts], prompt=self.prompt(task), task=task)
        vectors = self.model.forward(ready(features, self.model.device), task=task)["sentence_embedding"]  # [n, d]
        if self.model.truncate_dim:
            vectors = vectors[..., : self.model.truncate_dim]
        if self.model.similarity_fn_name == "cosine":
            vectors = nn.functional.normalize(vectors, dim=-1)
        return vectors

    def prompt(self, task: str) -> str | None:
        """What the model puts before a text of this task ("query" or "document"); `None` for nothing."""
        return _prompt(self.model, task)


def plain(text: Any) -> str:
    """The text with "?" for halves of surrogate pairs, which no tokenizer takes. Raises `InputError` for no text."""
    if not isinstance(text, str):
        raise InputError(f"a text is a string, got a {type(text).__name__}: give the text itself")
    return text.encode("utf-8", "replace").decode("utf-8")


def ready(features: Mapping[str, Any], device: torch.device) -> dict[str, Any]:
    """What a tokenizer gives, on the model's device; where no text of a batch has a token, with one that is masked.

    Networks cannot count to 0; beside longer texts such a text is masked all over, too, so that its vector is the same.
    """
    moved = {key: v.to(device) if isinstance(v, Tensor) else v for key, v in features.items()}
    empty = {
        key: nn.functional.pad(v, (0, 1)) for key, v in moved.items() if isinstance(v, Tensor) and v.shape[1:] == (0,)
    }
    return moved | empty


def _prompt(model: SentenceTransformer, task: str) -> str | None:
    """The first prompt of the task's names that is not empty: a "document" that sentence-transformers adds is."""
    names = ("query",) if task == "query" else _DOCUMENT_PROMPTS
    return next((prompt for name in names if (prompt := model.prompts.get(name))), None)


def _load(model: str | Path | SentenceTransformer, device: str | None) -> SentenceTransformer:
    if isinstance(model, SentenceTransformer):
        return model if device is None else model.to(device)
    loaded = SentenceTransformer(str(model), device=device)
    adapters.restore(loaded, Path(model))
    return loaded


def _two_towers(query: SentenceTransformer, document: SentenceTransformer) -> SentenceTransformer:
    if query.similarity_fn_name != document.similarity_fn_name:
        raise ConfigError(
            f"the query model scores by {query.similarity_fn_name!r}, the document model by "
            f"{document.similarity_fn_name!r}; set similarity_fn_name of both to the same"
        )
    prompts = {"query": _prompt(query, "query") or "", "document": _prompt(document, "document") or ""}
    router = Router.for_query_document(
        query_modules=cast(list[Any], list(query.children())),
        document_modules=cast(list[Any], list(document.children())),
    )
    return SentenceTransformer(
        modules=[router],
        device=str(document.device),
        prompts=prompts,
        similarity_fn_name=document.similarity_fn_name,
        truncate_dim=document.truncate_dim,
    )
