"""What the folder of a saved system holds beside its parts: `fedrag.json`, the settings, and a card for people.

Formats: 1 knew no reader and no temperature, and is read as what it meant: all documents in one prompt.

>>> import tempfile
>>> folder = Path(tempfile.mkdtemp())
>>> write(folder, Settings(3, Prompt(), "ensemble", 0.05), documents=12, encoder="0123abcd")
>>> read(folder).temperature
0.05
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

from fedrag.errors import StoreError
from fedrag.prompts import Prompt

_FILE = "fedrag.json"
_FORMAT = 2
_READ = {"stuff": "in each prompt", "ensemble": "each in a prompt of its own"}


@dataclass(frozen=True, slots=True)
class Settings:
    """What a system is beside its parts. Without a `temperature` it takes the one of its encoder."""

    top_k: int
    prompt: Prompt
    reader: Literal["stuff", "ensemble"]
    temperature: float | None


def write(folder: Path, settings: Settings, *, documents: int, encoder: str) -> None:
    """Put settings and card into `folder`; the card names the number of documents and their encoder's fingerprint."""
    text = json.dumps({"format": _FORMAT, **asdict(settings)}, indent=2)
    (folder / _FILE).write_text(text, encoding="utf-8")
    card = (
        "---\nlibrary_name: fedrag\ntags:\n- rag\n---\n\n# A RAG system\n\n"
        f"{documents} documents, the best {settings.top_k} of them {_READ[settings.reader]}. Document encoder "
        f"`{encoder}`.\n\n"
        '```python\nfrom fedrag import RAGSystem\n\nrag = RAGSystem.load("path/to/the/folder/above")\n```\n\n'
        "`encoder/` is a sentence-transformers model, `generator/` a transformers model or a peft adapter.\n"
    )
    (folder / "README.md").write_text(card, encoding="utf-8")


def read(folder: Path) -> Settings:
    """Return what `write` wrote. Raises `StoreError` where there is nothing, or what a newer fedrag wrote."""
    file = folder / _FILE
    try:
        saved = json.loads(file.read_text(encoding="utf-8"))
        version = int(saved["format"])
        if version == 1:
            saved |= {"reader": "stuff", "temperature": None}
        if version <= _FORMAT:
            temperature = saved["temperature"] if saved["temperature"] is None else float(saved["temperature"])
            return Settings(int(saved["top_k"]), Prompt(**saved["prompt"]), saved["reader"], temperature)
    except (OSError, ValueError, KeyError, TypeError):
        raise StoreError(f"{file} is missing or damaged; restore the folder from a copy") from None
    raise StoreError(f"{file} has format {version}, this fedrag reads {_FORMAT}: upgrade fedrag")
