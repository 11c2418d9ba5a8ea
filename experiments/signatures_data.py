"""A reading task on real text whose answers a program can check: default values in the installed packages' signatures.

A passage is the signature of a public function, class or method, without annotations, and the first words of its
docstring. A question asks for the default value of one parameter; the answer is its source text ("None", "'auto'",
"1e-05"). Sources are parsed, never imported, so nothing runs and every installation has the same text for the same
versions. Splits share no module, and held-out passages that nearly recur in training are removed.

Most defaults are None, False or True, so no answer may be more than `COMMON` of a split, and beside everything stands
what two readers get who never read: the one who always says the training set's commonest answer, and the one who
says the commonest answer of the parameter's name. A question is *hard* where that second one is wrong.

>>> found = list(signatures_of("def mean(a, axis=None, *, keep='no'):\\n  '''Mean of a.'''", "numpy.fromnumeric"))
>>> found[0].text
"numpy.fromnumeric.mean(a, axis=None, *, keep='no')\\nMean of a."
>>> found[0].defaults
{'axis': 'None', 'keep': "'no'"}
"""

from __future__ import annotations

import ast
import importlib.util
import random
import sys
import sysconfig
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from tqdm import tqdm

from fedrag.data import split
from fedrag.quickstart.documentation import PACKAGES, summary_and_body, without_near_duplicates
from fedrag.types import Document, Example

READ = {**PACKAGES, "networkx": ("networkx",), "sympy": ("sympy",)}
QUESTION = "What is the default in {name}() of {parameter} ?"
COMMON = 0.1
_WORDS = 16  # of the docstring
_SIGNATURE = (12, 220)  # characters
_ANSWER = 16  # characters, no white space among them
_PER_PASSAGE = 4  # questions
_OUT = {"tests", "test", "testing", "conftest.py", "setup.py", "externals", "_vendor", "distutils", "f2py", "idlelib"}


@dataclass(frozen=True, slots=True)
class Signature:
    """One documented thing with defaults: its dotted name without private parts, passage and defaults by parameter."""

    name: str
    text: str
    defaults: Mapping[str, str]


@dataclass(frozen=True)
class Task:
    """Passages with `module`, `package` and `split` in their metadata, and questions whose splits share no module."""

    documents: tuple[Document, ...]
    train: tuple[Example, ...]
    dev: tuple[Example, ...]
    test: tuple[Example, ...]

    @cached_property
    def passages(self) -> dict[str, Document]:
        """The documents by id."""
        return {document.id: document for document in self.documents}

    @cached_property
    def near(self) -> tuple[dict[str, list[Document]], dict[tuple[str, str], list[Document]]]:
        """The documents by module, and by split and package."""
        modules: dict[str, list[Document]] = defaultdict(list)
        packages: dict[tuple[str, str], list[Document]] = defaultdict(list)
        for document in self.documents:
            modules[document.metadata["module"]].append(document)
            packages[document.metadata["split"], document.metadata["package"]].append(document)
        return modules, packages


def signatures_of(source: str, module: str) -> Iterator[Signature]:
    """Every documented public function, class and method of a source file that has a default."""
    for node in ast.parse(source).body:
        if isinstance(node, ast.FunctionDef):
            yield from _signature(node, node, module, "")
        elif isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
            for member in node.body:
                if isinstance(member, ast.FunctionDef):
                    made = member.name == "__init__"
                    yield from _signature(member, node if made else member, module, "" if made else f"{node.name}.")


def _signature(
    function: ast.FunctionDef, documented: ast.FunctionDef | ast.ClassDef, module: str, owner: str
) -> Iterator[Signature]:
    docstring = ast.get_docstring(documented)
    if documented.name.startswith("_") or not docstring:
        return
    given = function.args
    places = [*given.posonlyargs, *given.args]
    for argument in [*places, *given.kwonlyargs, *filter(None, (given.vararg, given.kwarg))]:
        argument.annotation = None
    if (owner or isinstance(documented, ast.ClassDef)) and places and places[0].arg in ("self", "cls"):
        (given.posonlyargs or given.args).pop(0)
        places = places[1:]
    pairs = [*zip(places[len(places) - len(given.defaults) :], given.defaults, strict=True)]
    pairs += [(a, d) for a, d in zip(given.kwonlyargs, given.kw_defaults, strict=True) if d is not None]
    defaults = {argument.arg: ast.unparse(default) for argument, default in pairs}
    name = f"{module}.{owner}{documented.name}"
    line = f"{name}({ast.unparse(given)})"
    if defaults and _SIGNATURE[0] <= len(line) <= _SIGNATURE[1]:
        first = (summary_and_body(docstring) or (docstring,))[0].split()
        yield Signature(name, f"{line}\n{' '.join(first[:_WORDS])}", defaults)


def sources(packages: Mapping[str, Sequence[str]]) -> Iterator[tuple[str, str, Path]]:
    """Package, dotted module name without private parts, and file of every module below the given roots."""
    for package, roots in packages.items():
        base = Path(sysconfig.get_path("stdlib")) if package == "stdlib" else _home(package)
        seen: set[Path] = set()
        for root in roots:
            place = base.joinpath(*(root.split(".") if package == "stdlib" else root.split(".")[1:]))
            for file in sorted(place.rglob("*.py")) if place.is_dir() else [place.with_suffix(".py")]:
                inside = file.relative_to(base).parts
                if file in seen or not file.is_file() or _OUT.intersection(inside) or inside[-1].startswith("test_"):
                    continue
                seen.add(file)
                parts = [*(() if package == "stdlib" else (package,)), *inside[:-1], file.stem]
                yield package, ".".join(part for part in parts if not part.startswith("_")), file


def _home(package: str) -> Path:
    found = importlib.util.find_spec(package)
    if found is None or found.origin is None:
        sys.exit(f"{package} is not installed here: run `make install`")
    return Path(found.origin).parent


def make_task(
    packages: Mapping[str, Sequence[str]] = READ, *, seed: int = 0, test: int = 600, progress: bool = True
) -> Task:
    """Collect passages and questions; about half a minute.

    Args:
        packages: for each package the modules that are read, with all below them.
        seed: of the division by module and of what is drawn.
        test: most questions in test; dev has a third of it.
        progress: whether to show a progress bar.
    """
    found: dict[str, Document] = {}
    defaults: dict[str, Mapping[str, str]] = {}
    texts: set[str] = set()
    for package, module, file in tqdm([*sources(packages)], desc="signatures", unit="file", disable=not progress):
        try:
            signatures = list(signatures_of(file.read_text(encoding="utf-8"), module))
        except (SyntaxError, UnicodeDecodeError):
            continue
        for one in signatures:
            tail = one.text.removeprefix(f"{module}.")
            if one.name in found or tail in texts:  # what has two names is one passage, under the first
                continue
            texts.add(tail)
            metadata = {"package": package, "module": f"{package}:{file.stem}:{module}", "name": one.name}
            found[one.name] = Document(one.text, one.name, metadata)
            defaults[one.name] = one.defaults
    whole = [Example(id, positives=[id], metadata=document.metadata) for id, document in found.items()]
    parts = split(whole, {"train": 0.7, "dev": 0.08, "test": 0.22}, by="module", seed=seed)
    wording = {id: document.text for id, document in found.items()}
    dev = without_near_duplicates(parts["dev"], parts["train"], wording)
    held = without_near_duplicates(parts["test"], [*parts["train"], *parts["dev"]], wording)
    rng = random.Random(f"signatures {seed}")
    train = questions(parts["train"], defaults, rng, most=None)
    guess = by_name(train)
    splits = {id: name for name, rows in parts.items() for row in rows for id in row.positives}
    return Task(
        tuple(
            Document(d.text, id, {**d.metadata, "split": splits[id], "defaults": dict(defaults[id])})
            for id, d in found.items()
        ),
        tuple(marked(train, guess)),
        tuple(marked(questions(dev, defaults, rng, most=test // 3), guess)),
        tuple(marked(questions(held, defaults, rng, most=test), guess)),
    )


def questions(
    things: Sequence[Example], defaults: Mapping[str, Mapping[str, str]], rng: random.Random, *, most: int | None
) -> list[Example]:
    """Draw at most `_PER_PASSAGE` questions a passage, rare answers first, and no answer more often than `COMMON`."""
    pool: list[Example] = []
    for thing in things:
        (id,) = thing.positives
        for parameter, answer in defaults[id].items():
            if len(answer) <= _ANSWER and answer == "".join(answer.split()):
                question = QUESTION.format(name=id, parameter=parameter)
                metadata = {**thing.metadata, "parameter": parameter}
                pool.append(Example(question, [answer], positives=[id], metadata=metadata))
    rng.shuffle(pool)
    common = Counter(answer_of(example) for example in pool)
    kept: list[Example] = []
    asked: Counter[str] = Counter()
    for example in sorted(pool, key=lambda e: min(common[answer_of(e)], 50)):  # rare ones first, the rest by chance
        if asked[example.positives[0]] < _PER_PASSAGE:
            asked[example.positives[0]] += 1
            kept.append(example)
    rng.shuffle(kept)
    limit = min(most or len(kept), len(kept))
    while True:  # the cap is a share of what is kept, which the cap makes smaller
        taken: Counter[str] = Counter()
        out: list[Example] = []
        for example in kept:
            if taken[answer_of(example)] < max(1, int(COMMON * limit)) and len(out) < limit:
                taken[answer_of(example)] += 1
                out.append(example)
        if len(out) >= limit or len(out) < 10:
            return out
        limit = len(out)


def answer_of(example: Example) -> str:
    """The one gold answer."""
    assert example.answers
    return example.answers[0]


def by_name(train: Sequence[Example]) -> Mapping[str, str]:
    """The commonest training answer of each parameter name; under "" that of all, for names not met."""
    counts: dict[str, Counter[str]] = defaultdict(Counter)
    for example in train:
        for key in ("", example.metadata["parameter"]):
            counts[key][answer_of(example)] += 1
    return {name: min(count.items(), key=lambda item: (-item[1], item[0]))[0] for name, count in counts.items()}


def marked(examples: Sequence[Example], guess: Mapping[str, str]) -> Iterator[Example]:
    """The examples with the two readings-without-reading in their metadata: `majority`, `by_name`, and `hard`."""
    for example in examples:
        named = guess.get(example.metadata["parameter"], guess[""])
        more = {"majority": guess[""], "by_name": named, "hard": named != answer_of(example)}
        yield Example(
            example.question, example.answers, positives=example.positives, metadata={**example.metadata, **more}
        )


def four(task: Task, example: Example, *, seed: int = 0) -> list[Document]:
    """The gold passage among three others in random order, at least one of them of its module where there is one.

    The other two are passages that contradict it, where the package has any in the modules of the same split: the same
    parameter with another default in it, those of the same module first. So the function's name must be minded.
    """
    gold = task.passages[example.positives[0]]
    parameter, answer = example.metadata["parameter"], answer_of(example)
    _, packages = task.near
    rng = random.Random(f"{gold.id} {parameter} {seed}")
    about = gold.metadata
    wide = [document for document in packages[about["split"], about["package"]] if document.id != gold.id]
    rng.shuffle(wide)
    own = [document for document in wide if document.metadata["module"] == about["module"]]
    against = [d for d in (*own, *wide) if d.metadata["defaults"].get(parameter, answer) != answer]
    context = list({d.id: d for d in [*against[:2], *own, *wide]}.values())
    if own and not any(document in own for document in context[:3]):
        context[2:2] = own[:1]
    context = [gold, *context[:3]]
    rng.shuffle(context)
    return context


def contradicted(task: Task, example: Example) -> bool:
    """Whether another passage of `four` has another default for the parameter, so that the name must be minded."""
    parameter, answer = example.metadata["parameter"], answer_of(example)
    return any(d.metadata["defaults"].get(parameter, answer) != answer for d in four(task, example))
