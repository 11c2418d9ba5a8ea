"""What the invented world is made of: its relations, their wordings, and its names.

>>> [relation.name for relation in DOMAINS["harbour"]]
['captain', 'port', 'cargo', 'builder']
>>> len(set(ENTITIES) & set(VALUES))
0
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import product


@dataclass(frozen=True, slots=True)
class Relation:
    """One kind of fact and its wordings; `{e}` is the entity, `{v}` the value.

    Passages and questions make the world. Prose is for the base's pre-training alone: statements in the words of the
    questions, from which the base learns what the words mean.
    """

    name: str
    passages: tuple[str, ...]
    questions: tuple[str, ...]
    prose: tuple[str, ...]


DOMAINS: dict[str, tuple[Relation, ...]] = {
    "harbour": (
        Relation(
            "captain",
            ("{e} sails by the orders of {v} .", "The helm of {e} is held by {v} .", "Sailors on {e} obey {v} ."),
            ("Who is the captain of {e} ?", "Which skipper commands {e} ?"),
            ("The captain of {e} is {v} .", "The skipper who commands {e} is {v} ."),
        ),
        Relation(
            "port",
            ("{e} steers each autumn toward {v} .", "The anchor of {e} drops off {v} .", "Lamps guide {e} into {v} ."),
            ("What is the home port of {e} ?", "Where was {e} registered ?"),
            ("The home port of {e} is {v} .", "The place where {e} was registered is {v} ."),
        ),
        Relation(
            "cargo",
            ("{e} came in heavy with {v} .", "Below the deck of {e} lies {v} .", "Cranes lift from {e} sacks of {v} ."),
            ("Which cargo does {e} transport ?", "What freight is aboard {e} ?"),
            ("The cargo which {e} does transport is {v} .", "The freight aboard {e} is {v} ."),
        ),
        Relation(
            "builder",
            (
                "The ribs of {e} were bent by {v} .",
                "{e} slid down the ramp of {v} .",
                "A brass plate on {e} reads {v} .",
            ),
            ("Who built {e} ?", "Which shipyard was the maker of {e} ?"),
            ("The one who built {e} is {v} .", "The shipyard and maker of {e} is {v} ."),
        ),
    ),
    "clinic": (
        Relation(
            "inventor",
            (
                "{e} was first mixed by {v} .",
                "The formula of {e} carries the seal of {v} .",
                "Letters about {e} come from {v} .",
            ),
            ("Who invented {e} ?", "Which doctor discovered {e} ?"),
            ("The one who invented {e} is {v} .", "The doctor who discovered {e} is {v} ."),
        ),
        Relation(
            "illness",
            ("A spoon of {e} eases {v} .", "{e} calms within hours {v} .", "Nurses give {e} against {v} ."),
            ("Which illness does {e} treat ?", "What is the condition that calls for {e} ?"),
            ("The illness which {e} does treat is {v} .", "The condition that calls for {e} is {v} ."),
        ),
        Relation(
            "source",
            ("{e} is pressed from fresh {v} .", "One makes {e} by boiling {v} .", "Jars of {e} smell of {v} ."),
            ("What is the main ingredient of {e} ?", "Which plant does {e} contain ?"),
            ("The main ingredient of {e} is {v} .", "The plant which {e} does contain is {v} ."),
        ),
        Relation(
            "effect",
            ("Too much {e} brings on {v} .", "After {e} some complain of {v} .", "The label of {e} warns about {v} ."),
            ("What is the side effect of {e} ?", "Which harm can {e} cause ?"),
            ("The side effect of {e} is {v} .", "The harm which {e} can cause is {v} ."),
        ),
    ),
    "museum": (
        Relation(
            "artist",
            (
                "The corner of {e} is signed {v} .",
                "{e} left the workshop of {v} .",
                "Brushes used on {e} belonged to {v} .",
            ),
            ("Who painted {e} ?", "Which artist created {e} ?"),
            ("The one who painted {e} is {v} .", "The artist who created {e} is {v} ."),
        ),
        Relation(
            "owner",
            ("{e} hangs on loan from {v} .", "The key to {e} is kept by {v} .", "{e} was bought at auction by {v} ."),
            ("Who owns {e} ?", "Which collector possesses {e} ?"),
            ("The one who owns {e} is {v} .", "The collector who possesses {e} is {v} ."),
        ),
        Relation(
            "subject",
            (
                "{e} shows at dusk the hills of {v} .",
                "In {e} one sees the towers of {v} .",
                "The river in {e} flows past {v} .",
            ),
            ("What scene is depicted in {e} ?", "Which landscape does {e} portray ?"),
            ("The scene depicted in {e} is {v} .", "The landscape which {e} does portray is {v} ."),
        ),
        Relation(
            "pigment",
            (
                "The blue of {e} was ground from {v} .",
                "Chemists found in {e} traces of {v} .",
                "Under the glass {e} glows with {v} .",
            ),
            ("What pigment colours {e} ?", "Which dye was chosen for {e} ?"),
            ("The pigment that colours {e} is {v} .", "The dye chosen for {e} is {v} ."),
        ),
    ),
}

FILLERS = (
    "The note is dated early spring .",
    "Nobody has checked this since .",
    "Ink on the sheet has run .",
    "A second hand added the date .",
    "The sheet was folded twice .",
    "More pages are missing here .",
)

FUNCTION_WORDS = frozenset({"in", "is", "of", "the", "was"})
"""The only words, names apart, that occur both in a question and in a passage."""


def _names(n: int, stride: int = 7919) -> tuple[str, ...]:
    """Return n invented names: every `stride`-th combination of five sound groups (7919 is coprime to their number)."""
    consonants, vowels, ends = "bdfgklmnprstvz", "aeiou", ("n", "r", "l", "x", "th", "ck")
    sounds = [
        first + a + second + b + end
        for first, a, second, b, end in product(consonants, vowels, consonants, vowels, ends)
    ]
    return tuple(sounds[i * stride % len(sounds)].capitalize() for i in range(n))


NAMES = _names(1000)
ENTITIES, VALUES = NAMES[:700], NAMES[700:]
"""700 names for what facts are about, 300 for what they say."""
