"""Act C of the quickstart: the retriever again, federated. Every package is a site that keeps its text to itself.

The vocabulary of the encoder is made from the standard library's documentation, which stands for text that everybody
has. Each of the other packages is a site: its passages and its training questions are in its own store and never leave.
All regimes start from the same untrained encoder and take the same number of optimiser steps, the federated one at each
site:

- *numpy alone* and so on: trained at one site, on its own questions;
- *federated*: at all sites, whose weights are averaged after every round;
- *centralized*: on the questions of all sites together, as if they could be.

Asked are the held-out questions of all sites, over the passages of all sites, so that every regime is asked the same.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from tempfile import TemporaryDirectory

from fedrag.encoders.sentence import SentenceEncoder
from fedrag.evaluation import Report, evaluate_retriever
from fedrag.federated import FederatedTask, Plan, Site
from fedrag.federated.history import History
from fedrag.objectives.contrastive import Contrastive
from fedrag.quickstart.documentation import Documentation
from fedrag.quickstart.static_encoder import static_encoder
from fedrag.quickstart.training import make_trainer
from fedrag.rag import RAGSystem
from fedrag.retrievers.dense import DenseRetriever
from fedrag.stores.memory import MemoryStore
from fedrag.training.trainer import RAGTrainer

PUBLIC = "stdlib"
"""The package whose text everybody has."""
SETTING = "all sites' passages"
UNTRAINED, FEDERATED, CENTRALIZED = "untrained", "federated", "centralized"


@dataclass(frozen=True, slots=True)
class Silos:
    """The documentation of the packages that are sites, and the text that everybody has.

    Attributes:
        text: passages and questions of all sites.
        vocabulary: the public text.
        steps: optimiser steps of every regime.
        rounds: into which a federated regime divides them.
        seed: of the encoder's vectors and of training.
    """

    text: Documentation
    vocabulary: tuple[str, ...]
    steps: int
    rounds: int
    seed: int

    @property
    def names(self) -> list[str]:
        """The sites."""
        return sorted({document.metadata["package"] for document in self.text.documents})

    def of(self, package: str) -> Documentation:
        """What one site has."""
        text = self.text
        return replace(
            text,
            documents=tuple(d for d in text.documents if d.metadata["package"] == package),
            train=tuple(e for e in text.train if e.metadata["package"] == package),
        )

    def system(self, text: Documentation) -> RAGSystem:
        """An untrained retriever over some of the passages."""
        model = SentenceEncoder(static_encoder(self.vocabulary, width=256, seed=self.seed))
        rag = RAGSystem(retriever=DenseRetriever(model, MemoryStore(), batch_size=128))
        rag.add(text.documents, progress=False)
        return rag

    def trainer(self, rag: RAGSystem, text: Documentation, folder: str, steps: int, *, bar: bool = True) -> RAGTrainer:
        """The recipe of all regimes."""
        return make_trainer(
            Contrastive(rag), text.train, folder, steps=steps, rate=0.1, seed=self.seed, batch_size=128, bar=bar
        )

    def alone(self, rag: RAGSystem, package: str | None, *, bar: bool = True) -> None:
        """Train on the questions of one site, or of all where none is named."""
        with TemporaryDirectory() as folder:
            own = self.of(package) if package else self.text
            self.trainer(rag, own, folder, self.steps, bar=bar).train()

    def federate(self, rag: RAGSystem, *, progress: bool = True) -> History:
        """Train at all sites, and put the final state into the system."""
        with TemporaryDirectory() as folder:

            def build(site: Site) -> RAGTrainer:
                own = self.of(site.name)
                return self.trainer(self.system(own), own, folder, self.steps // self.rounds, bar=False)

            plan = Plan(rounds=self.rounds, quorum=len(self.names), seed=self.seed, evaluate=False)
            result = FederatedTask(build, plan).run([Site(name) for name in self.names], progress=progress)
            result.load_into(self.trainer(rag, self.text, folder, self.steps, bar=False))
        return result.history


def silos(text: Documentation, seed: int, *, steps: int = 100, rounds: int = 5) -> Silos:
    """Divide the documentation into sites and the public text."""
    public = {document.id: document.text for document in text.documents if document.metadata["package"] == PUBLIC}
    asked = [e for e in text.train if e.metadata["package"] == PUBLIC]
    return Silos(
        replace(
            text,
            documents=tuple(d for d in text.documents if d.metadata["package"] != PUBLIC),
            train=tuple(e for e in text.train if e.metadata["package"] != PUBLIC),
            test=tuple(e for e in text.test if e.metadata["package"] != PUBLIC),
        ),
        tuple(t for e in asked for t in (e.question, public[e.positives[0]])),
        steps,
        rounds,
        seed,
    )


def run_regimes(
    text: Documentation, seed: int, *, quick: bool, announce: Callable[[str], None]
) -> tuple[dict[str, dict[str, Report]], History]:
    """Train and measure every regime; the history is the federated one's."""
    whole = silos(text, seed, steps=20 if quick else 100, rounds=2 if quick else 5)
    reports: dict[str, dict[str, Report]] = {}

    def measured(name: str, rag: RAGSystem) -> None:
        reports[name] = {SETTING: measure(rag, whole)}

    announce(UNTRAINED)
    measured(UNTRAINED, whole.system(whole.text))
    for package in whole.names:
        announce(f"{package} alone")
        rag = whole.system(whole.text)
        whole.alone(rag, package)
        measured(f"{package} alone", rag)
    announce(FEDERATED)
    rag = whole.system(whole.text)
    history = whole.federate(rag)
    measured(FEDERATED, rag)
    announce(CENTRALIZED)
    rag = whole.system(whole.text)
    whole.alone(rag, None)
    measured(CENTRALIZED, rag)
    return reports, history


def measure(rag: RAGSystem, whole: Silos) -> Report:
    """Ask the held-out questions of all sites."""
    return evaluate_retriever(rag.retriever, whole.text.test, k=10, progress=False, cluster="module")
