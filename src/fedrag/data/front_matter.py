r"""Text and Markdown files, and the YAML between two lines `---` at their beginning, which becomes metadata.

>>> import tempfile
>>> path = Path(tempfile.mkdtemp()) / "keys.md"
>>> _ = path.write_text("---\ntitle: Keys\nyear: 2024\n---\nKeys are rotated every month.\n")
>>> said = read(path)
>>> said.text, said.metadata
('Keys are rotated every month.\n', {'title': 'Keys', 'year': 2024})
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import yaml

from fedrag.data.rows import read_text
from fedrag.data.text import Text, told
from fedrag.errors import DataError

_BLOCK = re.compile(r"---[ \t]*\r?\n(?P<yaml>.*?)^(?:---|\.\.\.)[ \t]*(?:\r?\n|\Z)", re.DOTALL | re.MULTILINE)
_LONGEST = 1 << 16
"""Characters of a front matter; what is between two lines farther apart is text."""
_REFUSED = (yaml.AliasToken, yaml.AnchorToken, yaml.TagToken)


def read(path: Path) -> Text:
    """Read a `.txt` or `.md` file. Raises `DataError`, which names the line, where its front matter is not YAML.

    Two lines `---` around something that is not a list of keys and values are horizontal rules, and stay text.
    """
    text = read_text(path)
    found = _BLOCK.match(text)
    if found is None or found.end() > _LONGEST:
        return Text(text)
    values = _values(found["yaml"], path)
    return Text(text) if values is None else Text(text[found.end() :], told(values, f"{path}, front matter"))


def _values(block: str, path: Path) -> dict[Any, Any] | None:
    try:
        # a few letters of aliases stand for gigabytes, and tags for types that metadata has not
        for token in yaml.scan(block, yaml.SafeLoader):
            if isinstance(token, _REFUSED):
                raise _wrong(path, token.start_mark.line, "anchors, aliases and tags are not taken")
        tree = yaml.compose(block, yaml.SafeLoader)
        if not isinstance(tree, yaml.MappingNode):
            return None
        names: set[str] = set()
        for key, _ in tree.value:
            if not isinstance(key, yaml.ScalarNode) or key.tag != "tag:yaml.org,2002:str":
                raise _wrong(path, key.start_mark.line, "a key is a word, put others into quotes")
            if key.value in names:
                raise _wrong(path, key.start_mark.line, f"the key {key.value!r} stands there twice")
            names.add(key.value)
        return yaml.safe_load(block)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        raise _wrong(path, mark.line if mark else 0, error.problem or "not YAML") from None
    except yaml.YAMLError:  # a character that YAML has not
        raise _wrong(path, 0, "a character that YAML does not allow") from None
    except (ValueError, RecursionError) as error:  # the 31st of February, thousands of brackets or digits
        raise _wrong(path, 0, str(error)) from None


def _wrong(path: Path, line: int, problem: str) -> DataError:
    return DataError(
        f"{path}, line {line + 2}: the front matter cannot be read ({problem}); mend it, or put an empty line before "
        "the first --- where that is a horizontal rule"
    )
