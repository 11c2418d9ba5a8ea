"""Retriever and generator trained together, through the marginal likelihood of the answer.

Lewis et al. 2020, "Retrieval-Augmented Generation" (arXiv 2005.11401), section 2.1. With the k documents retrieved for
a question and the prior p(d | q) = softmax(s(q, d) / τ) over them,

    RAG-Sequence, eq. 1:   p(y | q) = Σ_d p(d | q) Π_t p(y_t | q, d, y_<t)
    RAG-Token, eq. 2:      p(y | q) = Π_t Σ_d p(d | q) p(y_t | q, d, y_<t)
    loss = -1/n Σ log p(y, EOS | q)

Both parts get their gradient from this one number: the retriever p(d | q) - p(d | q, y), so that documents under which
the answer is likely rise; the generator the gradient of its log-likelihood under each document, weighted by that
posterior. Every document has a prompt of its own, as it has with `RAGSystem(reader="ensemble")`.

Memory does not grow with k: the generator reads `chunk` documents of each question at a time under gradient
checkpointing, and one ordinary backward pass reads them again. A backward pass made by hand within the forward one
would do so too, and give every rank of a distributed run gradients of its own.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Literal, cast

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from fedrag.errors import ConfigError
from fedrag.objectives.objective import ExcludeIds, Objective, causal, first_answer
from fedrag.objectives.towers import Side, prior_temperature, trained_side
from fedrag.ops.marginal import rag_sequence, rag_token
from fedrag.ops.targets import entropy, posterior, token_posterior
from fedrag.rag import RAGSystem
from fedrag.types import Document, Example

_log = logging.getLogger(__name__)


class Marginal(Objective):
    """What `RAGSequence`, `RAGToken` and `EMDR2` share: a prior with gradient, the answer's likelihood per document.

    Requirements: a `DenseRetriever`, a `CausalLM`; examples with answers (the first one is the target; `()` has the
    empty answer).

    Args:
        rag: the system. With `train="query"`, a one-tower encoder gets a query tower of its own here.
        k: documents retrieved per example. The prior over a single one has no gradient.
        train: "query" moves the query tower and the generator, so that the index stays valid; "both" moves the
            document tower too.
        temperature: τ; `None` is the system's own, which its ensemble reader uses (where other scores than those of
            vectors rank the hits, the one that the encoder's scores want).
        chunk: documents of each question that are read at a time, with no other activations in memory; `None` reads
            all at once, which takes about k times the memory and four fifths of the time.
        exclude_ids: documents that must not be candidates of an example.

    Logged: `prior_entropy` and `posterior_entropy` in nats (as long as both are log k, no document is told from
    another), `answer_logprob`: log p(y, EOS | q) per token of the answer.
    """

    form: Literal["sequence", "token"]

    def __init__(
        self,
        rag: RAGSystem,
        *,
        k: int = 8,
        train: Side = "query",
        temperature: float | None = None,
        chunk: int | None = 1,
        exclude_ids: ExcludeIds | None = None,
    ) -> None:
        name = type(self).__name__
        causal(rag, name)
        if k < 1 or (chunk is not None and chunk < 1) or (temperature is not None and temperature <= 0):
            raise ConfigError(
                f"{name} takes k >= 1, chunk >= 1 or None and temperature > 0 or None, "
                f"got {k}, {chunk} and {temperature}"
            )
        side = trained_side(rag, train, name)
        if k == 1:
            _log.warning("%s with k=1 trains the generator alone: a prior over one document has no gradient", name)
        super().__init__(rag, parts=[side, "generator"], depth=k, exclude_ids=exclude_ids)
        self.temperature = prior_temperature(rag) if temperature is None else temperature
        self.chunk = chunk

    def loss(self, batch: Sequence[Example]) -> dict[str, Tensor | float]:
        """The loss above, and what it did with the documents."""
        documents = self.candidates(batch)
        scores = self.prior_scores(batch, documents)  # [n, k]
        tokens, mask = self.answer_logprobs(batch, documents)  # [n, k, t], [n, t]
        found = self.log_likelihood(scores, tokens, mask)  # [n]
        return {
            "loss": -found.mean(),
            **self.entropies(scores, tokens, mask),
            "answer_logprob": float((found.detach() / mask.sum(-1)).mean()),
        }

    def prior_scores(self, batch: Sequence[Example], documents: Sequence[Sequence[Document]]) -> Tensor:
        """The scores whose softmax is p(d | q), with gradient: `[n, k]`, `-inf` where a question has fewer than k."""
        size = None if self.chunk is None else self.chunk * len(batch)
        questions = [example.question for example in batch]
        return self.rag.dense.scores(questions, documents, chunk=size) / self.temperature

    def answer_logprobs(
        self, batch: Sequence[Example], documents: Sequence[Sequence[Document]]
    ) -> tuple[Tensor, Tensor]:
        """log p(y_t | q, d, y_<t), the answer's end token last: `[n, k, t]`, and which tokens are real, `[n, t]`.

        0 where a token or a document is missing.
        """
        generator, answers = self.generator, self.answers(batch)
        lengths = [len(generator.target_ids(answer)) for answer in answers]
        prompts = [
            [self.rag.prompt_for(example.question, [document], answer_tokens=tokens) for document in row]
            for example, row, tokens in zip(batch, documents, lengths, strict=True)
        ]
        sizes = [len(row) for row in prompts]
        k, width = max(sizes), max(lengths)
        step = self.chunk if self.chunk and torch.is_grad_enabled() else k
        group = k if step >= k and min(sizes) == k else 1

        def read(places: Sequence[tuple[int, int]]) -> Tensor:
            rows = [prompts[n][slot] for n, slot in places]
            found, _ = generator.token_logprobs(rows, [answers[n] for n, _ in places], group=group)
            return torch.nn.functional.pad(found, (0, width - found.shape[1]))  # [s, t]

        pieces = [
            [(n, slot) for n, size in enumerate(sizes) for slot in range(start, min(start + step, size))]
            for start in range(0, k, step)
        ]
        # the last piece is the first one that the backward pass needs, so that it may stay as it is
        kept = [cast(Tensor, checkpoint(read, piece, use_reentrant=False)) for piece in pieces[:-1]]
        flat = torch.cat([*kept, read(pieces[-1])])  # [s, t]
        owner, slot = torch.tensor([place for piece in pieces for place in piece], device=flat.device).unbind(1)
        mask = torch.arange(width, device=flat.device) < torch.tensor(lengths, device=flat.device)[:, None]
        return flat.new_zeros(len(batch), k, width).index_put((owner, slot), flat), mask

    def answer_of(self, example: Example) -> str | None:
        """The first answer; the empty text where there is none, `None` where it is not known."""
        return first_answer(example)

    def log_likelihood(self, scores: Tensor, tokens: Tensor, mask: Tensor) -> Tensor:
        """log p(y, EOS | q) in the objective's form: `[n]`."""
        tokens, mask = tokens.to(scores.device), mask.to(scores.device)
        return rag_sequence(scores, tokens.sum(-1)) if self.form == "sequence" else rag_token(scores, tokens, mask)

    def entropies(self, scores: Tensor, tokens: Tensor, mask: Tensor) -> dict[str, float]:
        """The mean entropy of p(d | q), and of p(d | q, y) or, token by token, p(d | q, y_t)."""
        tokens, mask = tokens.to(scores.device), mask.to(scores.device)
        if self.form == "sequence":
            after = entropy(posterior(scores, tokens.sum(-1)))  # [n]
        else:
            each = entropy(token_posterior(scores, tokens).transpose(1, 2))  # [n, t]
            after = torch.where(mask, each, 0.0).sum(-1) / mask.sum(-1)
        before = entropy(torch.softmax(scores.detach(), -1))
        return {"prior_entropy": float(before.mean()), "posterior_entropy": float(after.mean())}


class RAGSequence(Marginal):
    """Train retriever and generator by RAG-Sequence, eq. 1 of the paper: one document explains the whole answer.

    Settings, requirements and logged numbers are those of `Marginal`.

    Relations: with k=1, or answers of one token, it is `RAGToken`. With a frozen generator it is a forward
    KL divergence like `LSR`, towards the posterior in place of the likelihood. The gradient of the generator is that
    of `RALT(documents_per_row=1)` with its rows weighted by the posterior, the answer's tokens summed.
    """

    form = "sequence"


class RAGToken(Marginal):
    """Train retriever and generator by RAG-Token, eq. 2 of the paper: each token may lean on another document.

    Settings, requirements and logged numbers are those of `Marginal`. The retriever moves towards the posteriors of
    the answer's tokens, p(d | q, y_t), summed.

    Relations: with k=1, or answers of one token, it is `RAGSequence`. Its likelihood is that of
    `RAGSystem(reader="ensemble")`, which mixes next-token distributions in the same way.
    """

    form = "token"
