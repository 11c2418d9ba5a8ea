"""Several objectives in one loop: RA-DIT's dual instruction tuning, with both halves at once or in turns.

Lin et al. 2023, "RA-DIT" (arXiv 2310.01352), section 2.1, tunes the language model (`RALT`) and the retriever (`LSR`)
one after the other. Here

    Joint(LSR(rag), RALT(rag))                loss = Σ_i w_i · loss_i, so that the retriever's teacher is the generator
                                              as it becomes
    Joint(LSR(rag), RALT(rag), turns=50)      one objective at a time, another one every 50 steps
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from fedrag.errors import ConfigError, TrainingError
from fedrag.objectives.objective import Objective
from fedrag.types import Document, Example


class Joint(Objective):
    """Train by the sum of several objectives' losses.

    The examples' documents are retrieved once for all objectives, and each takes as many of the best as it needs; one
    that finds its documents in a way of its own (`find`) gets those. What any of them trains, all of them move:
    `Joint(LSR(rag), Contrastive(rag))` moves the document tower by both losses.

    Args:
        objectives: of one and the same system, with the same `exclude_ids` where they share documents. Those with
            `train="query"` are made first where others train the encoder as a whole, since they give a one-tower
            encoder its query tower.
        weights: w, one per objective; `None` is 1 for each.
        turns: train one objective at a time, for so many steps each; `None` sums them up at every step. Evaluation
            sums them up always.

    Logged: every objective's numbers under its name: `lsr_loss`, `lsr_teacher_entropy`, `ralt_loss`, ...; the second
    one of a class is `ralt2`.
    """

    def __init__(
        self, *objectives: Objective, weights: Sequence[float] | None = None, turns: int | None = None
    ) -> None:
        factors = [1.0] * len(objectives) if weights is None else [float(weight) for weight in weights]
        idle = turns is not None and turns < 1
        if len(objectives) < 2 or len(factors) != len(objectives) or min(factors) <= 0 or idle:
            raise ConfigError(
                f"Joint takes two objectives or more, a weight above 0 for each, and turns >= 1 or None, got "
                f"{len(objectives)} objectives, weights={weights} and turns={turns}"
            )
        rag = objectives[0].rag
        if any(objective.rag is not rag for objective in objectives):
            raise ConfigError("Joint trains one system, and its objectives have several: make all with the same rag")
        sharing = [objective for objective in objectives if objective.depth and objective.reranks]
        exclude = sharing[0].exclude_ids if sharing else None
        if any(objective.exclude_ids != exclude for objective in sharing):
            raise ConfigError(
                "Joint retrieves once for all its objectives, and their exclude_ids differ: give all the same function"
            )
        trained = list(dict.fromkeys(name for objective in objectives for name in objective.trained))
        if gone := set(trained) - set(rag.parts()):
            raise ConfigError(
                f"Joint is to train {sorted(gone)}, the system's parts are {sorted(rag.parts())}: its encoder got a "
                "query tower after an objective was made; make those with train='query' first"
            )
        super().__init__(rag, parts=trained, depth=max(o.depth for o in objectives), exclude_ids=exclude)
        self.objectives = objectives  # a tuple: their modules are in `trained` already
        self.weights = factors
        self.turns = turns
        self.step = 0
        kinds = [type(objective).__name__.lower() for objective in objectives]
        self.names = [
            kind + (str(kinds[: place + 1].count(kind)) if kind in kinds[:place] else "")
            for place, kind in enumerate(kinds)
        ]

    def train(self, mode: bool = True) -> Joint:
        """Put the trained modules and every objective into training mode, or out of it."""
        super().train(mode)
        for objective in self.objectives:
            objective.train(mode)
        return self

    def at_step(self, step: int) -> None:
        """Whose turn it is follows from the step alone, so that a resumed run goes on with the right one."""
        self.step = step
        for objective in self.objectives:
            objective.at_step(step)

    def loss(self, batch: Sequence[Example]) -> dict[str, Tensor | float]:
        """The weighted sum of the losses of those whose turn it is, and the numbers of each."""
        rows = self._rows(batch)
        numbers: dict[str, Tensor | float] = {}
        total: Tensor | float = 0.0
        for place in self._turn():
            objective = self.objectives[place]
            kept, objective.candidates = objective.candidates, _Lookup(batch, rows[place])
            try:
                told = objective.loss(batch)
            finally:
                objective.candidates = kept
            total = total + self.weights[place] * told["loss"]
            for name, value in told.items():
                numbers[f"{self.names[place]}_{name}"] = value.item() if isinstance(value, Tensor) else value
        return {"loss": total, **numbers}

    def find(self, examples: Sequence[Example]) -> list[list[Document]]:
        """The documents of all objectives, one list per example, which `loss` takes apart again.

        Those shared by all come first. Where an objective finds others, each list ends with a document that is there
        twice, since a plain list of documents is what a table of candidates keeps.
        """
        if self.reranks:
            return self.retrieve(examples, self.depth)
        depth = max((objective.depth for objective in self.objectives if objective.reranks), default=0)
        lists = [self.retrieve(examples, depth)] if depth else []
        lists += [objective.find(examples) for objective in self._own_finders()]
        if empty := sum(not all(rows) for rows in zip(*lists, strict=True)):
            raise TrainingError(
                f"one of the objectives found no document for {empty} of {len(examples)} examples: add documents to "
                "the knowledge store before training, or exclude fewer"
            )
        return [[d for row in rows for d in (*_distinct(row), row[-1])] for rows in zip(*lists, strict=True)]

    @property
    def reranks(self) -> bool:
        """Whether every objective takes the best documents that the retriever finds."""
        return not self._own_finders()

    def answer_of(self, example: Example) -> str | None:
        """The answer of the first objective that has one."""
        return next((answer for o in self.objectives if (answer := o.answer_of(example)) is not None), None)

    def check(self, examples: Sequence[Example]) -> None:
        """Every objective's own check."""
        for objective in self.objectives:
            objective.check(examples)

    def extra_state(self) -> dict[str, Tensor]:
        """That of every objective, under its name."""
        named = zip(self.names, self.objectives, strict=True)
        return {f"{name}/{key}": value for name, o in named for key, value in o.extra_state().items()}

    def load_extra_state(self, state: dict[str, Tensor]) -> None:
        """Give back to every objective what `extra_state` took."""
        for name, objective in zip(self.names, self.objectives, strict=True):
            mine = {key.partition("/")[2]: value for key, value in state.items() if key.partition("/")[0] == name}
            if mine:
                objective.load_extra_state(mine)

    def _turn(self) -> Sequence[int]:
        every = range(len(self.objectives))
        return [self.step // self.turns % len(every)] if self.turns and self.training else every

    def _own_finders(self) -> list[Objective]:
        return [objective for objective in self.objectives if objective.depth and not objective.reranks]

    def _rows(self, batch: Sequence[Example]) -> list[list[list[Document]]]:
        """Each objective's documents for each example."""
        found = self.candidates(batch) if self.depth else [[] for _ in batch]
        if self.reranks:
            return [[row[: objective.depth] for row in found] for objective in self.objectives]
        parts = [_apart(row) for row in found]
        own = self._own_finders()
        first = len(parts[0]) - len(own)  # lists before those of their own: one, or none
        return [
            [lists[first + own.index(o)] if o in own else lists[0][: o.depth] if o.depth else [] for lists in parts]
            for o in self.objectives
        ]


class _Lookup:
    """The documents of a batch's examples, for whoever asks for some of them."""

    def __init__(self, batch: Sequence[Example], rows: Sequence[list[Document]]) -> None:
        self.rows = {id(example): row for example, row in zip(batch, rows, strict=True)}

    def __call__(self, examples: Sequence[Example]) -> list[list[Document]]:
        return [self.rows[id(example)] for example in examples]


def _distinct(row: Sequence[Document]) -> list[Document]:
    return [d for place, d in enumerate(row) if not place or d.id != row[place - 1].id]


def _apart(row: Sequence[Document]) -> list[list[Document]]:
    """Undo the joining of lists: each one ends where a document follows itself."""
    lists: list[list[Document]] = [[]]
    for document in row:
        if lists[-1] and lists[-1][-1].id == document.id:
            lists.append([])
        else:
            lists[-1].append(document)
    return lists[:-1]
