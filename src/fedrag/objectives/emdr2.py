"""A reader of all documents at once, and a retriever taught by how it reads each of them alone.

Singh et al. 2021, "End-to-End Training of Multi-Document Reader and Retriever" (EMDR², arXiv 2106.05346), section 2.4.
With D the k documents retrieved for a question, p(d | q) = softmax(s(q, d) / τ), and SG the stop of gradients,

    loss = -1/n Σ [ log p(y, EOS | q, D) + log Σ_d p(d | q) · SG[p(y, EOS | q, d)] ]

The first term trains the generator on all of D in one prompt, which is how `RAGSystem(reader="stuff")` asks. The second
one trains the retriever: an expectation maximisation, whose posterior p(d | q, y) is what the prior moves to.
`form="token"` takes the product over tokens outside the sum, log Π_t Σ_d p(d | q) p(y_t | q, d, y_<t), as the paper's
released code does, where its formula has the whole answer inside.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from torch import Tensor

from fedrag.objectives.marginal import Marginal
from fedrag.objectives.objective import ExcludeIds, one_of
from fedrag.objectives.towers import Side
from fedrag.ops.modes import evaluating
from fedrag.rag import RAGSystem
from fedrag.types import Document, Example


class EMDR2(Marginal):
    """Train the generator to read k documents at once, and the retriever towards those that explain the answer.

    Requirements and settings are those of `Marginal`, with `k=rag.top_k` for prompts like those of asking. The
    documents are judged without gradient and without dropout, so that there is nothing to read in chunks.

    Args:
        rag: the system. With `train="query"`, a one-tower encoder gets a query tower of its own here.
        k: documents retrieved per example, which share one prompt.
        train: "query" moves the query tower and the generator; "both" moves the document tower too.
        temperature: τ; `None` is the system's own.
        form: of the retriever's likelihood: the paper's "sequence" or its code's "token".
        exclude_ids: documents that must not be candidates of an example.

    Logged: `reader_loss` and `retriever_loss`, the two terms; the entropies of `Marginal`; `answer_logprob`, the
    reader's log p(y, EOS | q, D) per token.

    Relations: the first term is `RALT` with the answer's tokens summed; the second one `RAGSequence` or `RAGToken`
    with a frozen generator.
    """

    def __init__(
        self,
        rag: RAGSystem,
        *,
        k: int = 8,
        train: Side = "query",
        temperature: float | None = None,
        form: Literal["sequence", "token"] = "sequence",
        exclude_ids: ExcludeIds | None = None,
    ) -> None:
        one_of("form", form, ("sequence", "token"))
        super().__init__(rag, k=k, train=train, temperature=temperature, chunk=None, exclude_ids=exclude_ids)
        self.form = form

    def loss(self, batch: Sequence[Example]) -> dict[str, Tensor | float]:
        """The loss above, its two terms, and what it did with the documents."""
        documents, answers = self.candidates(batch), self.answers(batch)
        read = self._read(batch, documents, answers)  # [n]
        scores = self.prior_scores(batch, documents)  # [n, k]
        with evaluating(self.generator.model):
            tokens, mask = self.answer_logprobs(batch, documents)  # [n, k, t], [n, t]
        explained = self.log_likelihood(scores, tokens, mask)  # [n]
        return {
            "loss": -(read.to(explained.device) + explained).mean(),
            "reader_loss": -float(read.detach().mean()),
            "retriever_loss": -float(explained.detach().mean()),
            **self.entropies(scores, tokens, mask),
            "answer_logprob": float((read.detach() / mask.sum(-1)).mean()),
        }

    def _read(
        self, batch: Sequence[Example], documents: Sequence[Sequence[Document]], answers: Sequence[str]
    ) -> Tensor:
        """log p(y, EOS | q, D), with gradient: `[n]`."""
        prompts = [
            self.rag.prompt_for(example.question, row, answer_tokens=len(self.generator.target_ids(answer)))
            for example, row, answer in zip(batch, documents, answers, strict=True)
        ]
        return self.generator.logprobs(prompts, answers)
