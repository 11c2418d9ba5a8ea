"""Real text that every installation has: the documentation of its own packages, as questions and passages.

Each public function, class and method gives one pair: the summary sentence of its docstring is the question, and what
follows the summary is the passage to find. Questions are divided by module, so that a test question comes from a
module that training never saw, and held-out questions whose passage or wording nearly recurs in training are removed.
The numbers depend on the versions of the packages; the order and the division do not depend on chance.

>>> summary_and_body("Draw a sample.\\n\\nThe sample is drawn with ``replacement``,\\nso that values may repeat.")
('Draw a sample.', 'The sample is drawn with replacement,\\nso that values may repeat.')
"""

from __future__ import annotations

import contextlib
import importlib
import inspect
import io
import logging
import pkgutil
import re
import warnings
from collections import Counter, defaultdict
from collections.abc import Generator, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType, ModuleType
from typing import Any

from fedrag.data import split
from fedrag.data.splits import normalize
from fedrag.errors import InputError
from fedrag.progress import track
from fedrag.types import Document, Example

_log = logging.getLogger(__name__)

_STDLIB = """
    argparse ast asyncio base64 bisect calendar cmath codecs collections configparser contextlib copy csv ctypes
    dataclasses datetime decimal difflib dis email.message email.utils enum fileinput fnmatch fractions ftplib functools
    gettext glob gzip hashlib heapq hmac html http.client http.cookiejar http.server imaplib importlib inspect io
    ipaddress itertools json linecache locale logging logging.handlers lzma mailbox math mimetypes multiprocessing
    numbers operator os os.path pathlib pdb pickle pickletools pkgutil platform plistlib poplib pprint profile pstats
    queue quopri random re sched secrets select selectors shelve shlex shutil signal smtplib socket socketserver sqlite3
    ssl stat statistics string struct subprocess symtable sysconfig tarfile tempfile textwrap threading time timeit
    tokenize trace traceback tracemalloc types typing unicodedata unittest unittest.mock urllib.parse urllib.request
    urllib.robotparser uuid venv wave weakref webbrowser xml.dom.minidom xml.etree.ElementTree xmlrpc.client zipfile
    zipimport zlib zoneinfo
"""
_TORCH = "nn optim distributions utils functional linalg fft special"
PACKAGES: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {
        "stdlib": tuple(_STDLIB.split()),
        "numpy": ("numpy",),
        "scipy": ("scipy",),
        "sklearn": ("sklearn",),
        "pandas": ("pandas",),
        "torch": tuple(f"torch.{part}" for part in _TORCH.split()),
    }
)
"""What is read, by package: the standard library's modules, and packages with all they contain."""

_PASSAGE_WORDS = (15, 110)
_QUESTION_WORDS = (4, 40)
_PRIVATE = re.compile(r"(^|\.)(_|tests?\b|testing\b|conftest\b|setup\b|f2py\b|distutils\b|test_)")


@dataclass(frozen=True, slots=True)
class Documentation:
    """All passages, and the questions in three parts whose modules are disjoint."""

    documents: tuple[Document, ...]
    train: tuple[Example, ...]
    dev: tuple[Example, ...]
    test: tuple[Example, ...]


def read_documentation(
    packages: Mapping[str, Sequence[str]] = PACKAGES, *, seed: int = 0, progress: bool = True
) -> Documentation:
    """Collect passages and questions of the installed packages, in a few seconds.

    A document's id is the dotted name that it documents; its metadata, and its question's, are `package`, `module`
    and `name`. What several passages would answer is no question. A package that cannot be imported is left out and
    named in the log.

    Args:
        packages: for each package its modules, each read with the modules below it.
        seed: of the division into train, dev and test (60, 15 and 25 of 100).
        progress: whether to show a progress bar.

    Raises:
        InputError: if no documentation was found at all.
    """
    found: dict[str, tuple[Document, str]] = {}  # by text: what has two names is one passage, under the first
    with track(desc="documentation", unit="passage", disable=not progress) as bar:
        for package, module, name, question, body in _pairs(packages):
            if body not in found:
                metadata = {"package": package, "module": module, "name": name}
                found[body] = Document(body, name, metadata), question
                bar.update()
    if not found:
        raise InputError(
            f"no documentation in {', '.join(packages)}; are the packages installed with their docstrings?"
        )
    asked = Counter(normalize(question) for _, question in found.values())
    examples = [
        Example(question, positives=[document.id], metadata=document.metadata)
        for document, question in found.values()
        if asked[normalize(question)] == 1
    ]
    documents = tuple(document for document, _ in found.values())
    parts = split(examples, {"train": 0.6, "dev": 0.15, "test": 0.25}, by="module", seed=seed)
    texts = {document.id: document.text for document in documents}
    dev = without_near_duplicates(parts["dev"], parts["train"], texts)
    test = without_near_duplicates(parts["test"], parts["train"] + parts["dev"], texts)
    return Documentation(documents, tuple(parts["train"]), tuple(dev), tuple(test))


def without_near_duplicates(
    held_out: Sequence[Example], train: Sequence[Example], texts: Mapping[str, str]
) -> list[Example]:
    """Leave out the examples that training nearly gives away.

    Out goes an example if a single training passage has 30 % or more of the different 4-grams of its passage, or a
    single training question 60 % or more of its 2-grams.
    """
    passages = _Shingles((texts[id] for example in train for id in example.positives), 4)
    questions = _Shingles((example.question for example in train), 2)
    return [
        example
        for example in held_out
        if questions.share(example.question) < 0.6 and all(passages.share(texts[id]) < 0.3 for id in example.positives)
    ]


class _Shingles:
    """Which texts hold which runs of `n` words."""

    def __init__(self, texts: Iterable[str], n: int) -> None:
        self.n = n
        self.holders: defaultdict[tuple[str, ...], list[int]] = defaultdict(list)
        for place, text in enumerate(texts):
            for gram in self.grams(text):
                self.holders[gram].append(place)

    def grams(self, text: str) -> set[tuple[str, ...]]:
        words = re.findall(r"[a-z0-9]+", text.lower())
        return {tuple(words[i : i + self.n]) for i in range(len(words) - self.n + 1)}

    def share(self, text: str) -> float:
        """The largest part of this text's runs that one known text holds."""
        grams = self.grams(text)
        counts = Counter(place for gram in grams for place in self.holders.get(gram, ()))
        return max(counts.values()) / len(grams) if counts else 0.0


def summary_and_body(docstring: str) -> tuple[str, str] | None:
    """The first paragraph and the rest, without markup; `None` when there is only one."""
    text = inspect.cleandoc(docstring)
    text = re.sub(r":[\w:]+:`~?([^`<]+)(?:<[^`]*>)?`", r"\1", text).replace("`", "")
    text = re.sub(r"\.\. [\w-]+::[^\n]*", "", re.sub(r"\n[-=~^]{3,}\n", "\n", text))
    paragraphs = [part.strip() for part in re.split(r"\n\s*\n", text, maxsplit=2)]
    if re.match(r"[\w.]+\(", paragraphs[0]):  # functions written in C begin with their signature
        paragraphs = paragraphs[1:]
    if len(paragraphs) < 2:
        return None
    body = re.sub(r"\s*\n\s*", "\n", re.sub(r"[ \t]+", " ", "\n".join(paragraphs[1:])))
    return re.sub(r"\s+", " ", paragraphs[0]), body.strip()


def _pair(thing: Any) -> tuple[str, str] | None:
    docstring = getattr(thing, "__doc__", None)
    parts = summary_and_body(docstring) if isinstance(docstring, str) else None
    if parts is None:
        return None
    question, body = parts
    words = list(re.finditer(r"\S+", body))
    least, most = _PASSAGE_WORDS
    if len(words) < least or not _QUESTION_WORDS[0] <= len(question.split()) <= _QUESTION_WORDS[1]:
        return None
    return question, body[: words[:most][-1].end()]


def _pairs(packages: Mapping[str, Sequence[str]]) -> Iterator[tuple[str, str, str, str, str]]:
    """Package, module, dotted name, question and passage of everything documented, each thing once."""
    seen: dict[int, Any] = {}
    for package, roots in packages.items():
        for module in _modules(package, roots):
            found: list[tuple[str, str, str]] = []
            with _quiet():  # a deprecated name may warn when it is looked at
                for name, thing in _things(module):
                    pair = None if id(thing) in seen else _pair(thing)
                    seen[id(thing)] = thing  # kept, so that no other object gets its id
                    if pair:
                        found.append((name, *pair))
            for name, question, body in found:
                yield package, module.__name__, name, question, body


def _modules(package: str, roots: Sequence[str]) -> Iterator[ModuleType]:
    for root in roots:
        module = _load(root)
        if module is None:
            _log.warning("the documentation of %s is left out: it cannot be imported", root)
            continue
        yield module
        if package != "stdlib":
            yield from _below(module)


def _below(module: ModuleType) -> Iterator[ModuleType]:
    for info in sorted(
        pkgutil.iter_modules(getattr(module, "__path__", []), module.__name__ + "."), key=lambda i: i.name
    ):
        if _PRIVATE.search(info.name.removeprefix(module.__name__)):
            continue
        child = _load(info.name)
        if child is not None:
            yield child
            if info.ispkg:
                yield from _below(child)


def _load(name: str) -> ModuleType | None:
    """Import a module; `None` when it, or what it needs, is not there."""
    with _quiet():
        try:
            return importlib.import_module(name)
        except ImportError:
            return None


@contextlib.contextmanager
def _quiet() -> Generator[None]:
    """Without the warnings and prints of other people's modules."""
    unheard = io.StringIO()
    with warnings.catch_warnings(), contextlib.redirect_stdout(unheard), contextlib.redirect_stderr(unheard):
        warnings.simplefilter("ignore")
        yield


def _things(module: ModuleType) -> Iterator[tuple[str, Any]]:
    """Public functions and classes of a module, and the classes' public methods, with their dotted names."""
    for name, thing in sorted(vars(module).items()):
        if name.startswith("_") or not (inspect.isroutine(thing) or inspect.isclass(thing) or _is_ufunc(thing)):
            continue
        home = str(getattr(thing, "__module__", None) or module.__name__).split(".")[0].lstrip("_")
        if home != module.__name__.split(".")[0].lstrip("_"):
            continue
        yield f"{module.__name__}.{name}", thing
        if inspect.isclass(thing):
            for member, value in sorted(vars(thing).items()):
                method = getattr(value, "__func__", value)
                if not member.startswith("_") and inspect.isroutine(method):
                    yield f"{module.__name__}.{name}.{member}", method


def _is_ufunc(thing: object) -> bool:
    return type(thing).__name__ == "ufunc"
