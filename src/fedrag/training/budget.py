"""Whether the training examples' prompts have room: asked before the first step, and not when their batch comes.

Documents are shortened until a prompt fits, and left out if need be; a question and its answer are never cut. One that
is too long would end the run in the middle of an epoch. Looking costs one tokenisation of every question and answer.
"""

from __future__ import annotations

from collections.abc import Sequence

from fedrag.errors import BudgetError
from fedrag.objectives.objective import Objective
from fedrag.types import Example

_SHOWN = 5


def check_prompts(objective: Objective, examples: Sequence[Example]) -> None:
    """Raise one `BudgetError` that counts the examples whose question and answer alone are too long together.

    Raises the objective's own `DataError` for examples that it could not use.
    """
    objective.check(examples)
    wrong: list[tuple[int, BudgetError]] = []
    for row, example in enumerate(examples):
        answer = objective.answer_of(example)
        if answer is None:
            continue
        try:
            objective.rag.prompt_for(example.question, [], answer_tokens=len(objective.generator.target_ids(answer)))
        except BudgetError as error:
            wrong.append((row, error))
    if wrong:
        rows = ", ".join(str(row) for row, _ in wrong[:_SHOWN]) + (", ..." if len(wrong) > _SHOWN else "")
        raise BudgetError(
            f"{len(wrong)} of {len(examples)} training examples do not fit into the generator, counted from 0: rows "
            f"{rows}. In the first of them {wrong[0][1]}; or leave these examples out"
        )
