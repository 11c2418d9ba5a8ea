"""Write docs/methods.md: what each objective trains, from the docstrings and the figures of docs/evidence.

The formula, source, requirements and relations of a method are its docstrings' own words, read without importing the
package. What it costs and when to use it is said here, in METHODS. The guide before them is scripts/methods_guide.md.
"""

from __future__ import annotations

import argparse
import ast
import json
import re
import sys
import textwrap
from dataclasses import dataclass
from pathlib import Path
from typing import Any

REPOSITORY = Path(__file__).resolve().parents[1]
PAGE = Path("docs/methods.md")


@dataclass(frozen=True)
class Method:
    """A public class, what moves, its cost, when to use it, and its rows of evidence as (page, regime)."""

    name: str
    trains: str
    cost: str
    when: str
    evidence: tuple[tuple[str, str], ...] = ()


METHODS = (
    Method(
        "Contrastive",
        "the query tower, or both towers",
        "the cheapest: two passes of the encoder a batch, no generator; `chunk` makes large batches fit",
        "passages are labelled; always first then",
        (
            ("real-text", "contrastive"),
            ("real-text", "contrastive, hard negatives"),
            ("world", "contrastive"),
            ("world", "contrastive, then RALT"),
        ),
    ),
    Method(
        "Ranking",
        "the reranker",
        "one training step of the cross-encoder on k pairs per question; no index changes",
        "passages are labelled, the right one is found, and not first",
    ),
    Method(
        "Distillation",
        "the query tower, both towers, or the reranker",
        "one pass of the cross-encoder per new pair of question and passage, cached",
        "a cross-encoder that judges well is at hand; neither labels nor answers are",
        (("real-text", "distillation of BM25"),),
    ),
    Method(
        "LSR",
        "the query tower, both towers, or the reranker",
        "k prompts per question for each new candidate, without gradient, cached; refreshing both towers embeds anew",
        "answers are known, passages are not labelled, and the model reads well",
        (("world", "LSR, taught by RALT's reader"), ("world", "RALT, then LSR")),
    ),
    Method(
        "RALT",
        "the generator, or its adapters",
        "one training step of the generator per question, logits on the answer's tokens alone",
        "the model does not answer well from the right passage; before LSR and the marginal objectives",
        (("world", "RALT"), ("world", "control: RALT on strangers"), ("world", "control: closed book")),
    ),
    Method(
        "RAGSequence",
        "the query tower or both towers, and the generator",
        "k training steps of the generator per question, in the memory of one",
        "both halves work and shall fit each other; asked with the ensemble reader",
        (("world", "RAG-Sequence"), ("world", "RALT, then RAG-Sequence")),
    ),
    Method(
        "RAGToken",
        "the query tower or both towers, and the generator",
        "as `RAGSequence`",
        "as `RAGSequence`, where one answer is put together from several passages",
        (("world", "RAG-Token"), ("world", "RALT, then RAG-Token")),
    ),
    Method(
        "EMDR2",
        "the query tower or both towers, and the generator",
        "one training step of the generator on all k documents, and k prompts without gradient, per question",
        "as `RAGSequence`, where the reader sees all documents in one prompt",
        (("world", "EMDR2"), ("world", "RALT, then EMDR2")),
    ),
    Method(
        "Joint",
        "what its parts train",
        "the sum of its parts'; a teacher that moves is asked anew at each step",
        "two objectives at once or in turns, with a learning rate for each part",
        (("world", "Joint(LSR, RALT)"), ("world", "alternating"),
         ("world", "RALT, then alternating")),
    ),
    Method(
        "SentenceLoss",
        "the encoder",
        "the loss's own",
        "a loss of sentence-transformers is wanted that is none of the above",
        (("real-text", "sentence-transformers, plain"),),
    ),
)  # fmt: skip
COMPANIONS = ("HardNegatives", "Mixture", "Raft", "sft_rows")
"""What goes with the objectives: their modules' introductions stand at the end."""


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--check", action="store_true", help="write nothing; fail when the page is not up to date")
    parser.add_argument("--root", type=Path, default=REPOSITORY, help="repository to read and write")
    args = parser.parse_args()
    text = page(args.root)
    path: Path = args.root / PAGE
    if args.check:
        if not path.is_file() or path.read_text(encoding="utf-8") != text:
            print(f"{PAGE} is not what scripts/methods.py writes: run `make methods`", file=sys.stderr)
            return 1
        return 0
    path.write_text(text, encoding="utf-8")
    return 0


def page(root: Path) -> str:
    """The whole page."""
    homes = public_objectives(root / "src/fedrag/__init__.py")
    named = {method.name for method in METHODS} | set(COMPANIONS)
    if missing := sorted(name for name in homes if name not in named and name[0].isupper()):
        raise SystemExit(f"{missing[0]} is a public name of fedrag.objectives; add it to METHODS in scripts/methods.py")
    trees = {name: ast.parse((root / f"src/fedrag/{home}.py").read_text("utf-8")) for name, home in homes.items()}
    pages = {path.stem: json.loads(path.read_text("utf-8")) for path in (root / "docs/evidence").glob("*.json")}
    evidence = {name: found for name, found in pages.items() if "regimes" in found}  # those of the ablation grid
    lines = [
        (root / "scripts/methods_guide.md").read_text("utf-8").rstrip(),
        "",
        *overview(evidence),
        "",
        "## The methods",
    ]
    told: set[str] = set()
    for method in METHODS:
        home, tree = homes[method.name], trees[method.name]
        lines += ["", f"### {method.name}", ""]
        lines += [described(tree, method.name, with_module=home not in told), ""]
        told.add(home)
        lines += [
            f"- **Trains**: {method.trains}.",
            f"- **Cost**: {method.cost}.",
            f"- **Use it when**: {method.when}.",
        ]
        lines += [f"- **Code**: [`{home}.py`](../src/fedrag/{home}.py).", *rows(method, evidence)]
    lines += ["", "## What goes with them"]
    for name in COMPANIONS:
        introduction = without_examples(ast.get_docstring(trees[name]) or "")
        lines += [
            "",
            f"### {name}",
            "",
            introduction,
            "",
            f"- **Code**: [`{homes[name]}.py`](../src/fedrag/{homes[name]}.py).",
        ]
    return "\n".join(lines) + "\n"


def public_objectives(init: Path) -> dict[str, str]:
    """The public names that live in `fedrag.objectives`, and their files without the ending."""
    for node in ast.parse(init.read_text("utf-8")).body:
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "_HOME":
            homes: dict[str, str] = ast.literal_eval(node.value)
            return {n: home.replace(".", "/") for n, home in homes.items() if home.startswith("objectives.")}
    raise SystemExit(f"{init} has no _HOME, the table of public names")


def described(tree: ast.Module, name: str, *, with_module: bool) -> str:
    """The module's introduction with source and formula, and the class's summary, requirements and relations."""
    classes = {node.name: node for node in tree.body if isinstance(node, ast.ClassDef)}
    bases = [classes[base.id] for base in classes[name].bases if isinstance(base, ast.Name) and base.id in classes]
    (summary, *parts), *inherited = (
        re.split(r"\n\s*\n", ast.get_docstring(node) or "") for node in (classes[name], *bases)
    )
    kept = [part for part in parts if re.match(r"(Requirements|Relations|Inputs)", part)]
    kept[:0] = [part for more in inherited for part in more if part.startswith("Requirements")]
    module = [without_examples(ast.get_docstring(tree) or "")] if with_module else []
    head = [f"*{' '.join(summary.split())}*", *module]
    told = [re.sub(r"^(Requirements|Relations|Inputs)", r"**\1**", part) for part in kept]
    return "\n\n".join([*head, *told])


def without_examples(docstring: str) -> str:
    """The docstring without doctests; what is indented is code, and shown as such."""
    parts = [part for part in re.split(r"\n\s*\n", docstring) if not part.lstrip().startswith(">>>")]
    shown = [
        "```text\n" + textwrap.dedent(part) + "\n```"
        if all(line.startswith("    ") for line in part.splitlines())
        else part
        for part in parts
    ]
    return re.sub(r"\n```\n\n```text\n", "\n\n", "\n\n".join(shown))


def overview(evidence: dict[str, Any]) -> list[str]:
    """One line per method."""
    lines = ["| method | trains | use it when |", "|---|---|---|"]
    lines += [f"| [{m.name}](#{m.name.lower()}) | {m.trains} | {m.when} |" for m in METHODS]
    if not evidence:
        lines += ["", "*No experiment has been published yet: `make evidence` does it.*"]
    return lines


def rows(method: Method, evidence: dict[str, Any]) -> list[str]:
    """The method's rows of the tables of evidence."""
    lines: list[str] = []
    for name in dict.fromkeys(page for page, _ in method.evidence):
        regimes = [r for p, r in method.evidence if p == name and r in evidence.get(name, {}).get("regimes", {})]
        if regimes:
            found = evidence[name]
            headings = list(found["columns"])[:4]
            lines += ["", f"Evidence: [{found['title']}](evidence/{name}.md)", ""]
            lines += [f"| | {' | '.join(headings)} | CPU minutes | peak GiB |", "|---" * (len(headings) + 3) + "|"]
            for regime in [found["baseline"], *regimes]:
                row = found["regimes"][regime]
                cells = [interval(row["metrics"].get(heading)) for heading in headings]
                cost = f"{row['cost']['cpu_seconds'] / 60:.2f} | {row['cost']['peak_gib']:.2f}"
                lines.append(f"| {regime} | {' | '.join(cells)} | {cost} |")
    return lines


def interval(metric: dict[str, float] | None) -> str:
    return "" if metric is None else f"{metric['mean']:.3f} ({metric['low']:.2f} to {metric['high']:.2f})"


if __name__ == "__main__":
    sys.exit(main())
