"""`fedrag questions` and `fedrag mine` in real processes."""

import json
import os
import signal
import subprocess
import sys
import time

import pytest
import torch

from fedrag import LexicalRetriever, RAGSystem, read_examples
from fedrag.synthesis import QUESTION_PROMPT
from systems import DOCUMENTS, EXAMPLES, tiny_system

FEDRAG = [sys.executable, "-c", "from fedrag.cli import main; main()"]
pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def system(tmp_path_factory):
    """A system whose generator learnt to ask about its documents, and to answer."""
    torch.manual_seed(0)
    rag = tiny_system(top_k=1)
    model = rag.generator
    prompts = [QUESTION_PROMPT.replace("{text}", document.text) for document in DOCUMENTS]
    prompts += [rag.prompt_for(e.question, [d]) for e, d in zip(EXAMPLES, DOCUMENTS, strict=True)]
    targets = [f" {example.question}" for example in EXAMPLES] + [f" {example.answers[0]}" for example in EXAMPLES]
    optimizer = torch.optim.AdamW(model.model.parameters(), lr=3e-3)
    for _ in range(120):
        optimizer.zero_grad()
        (-model.logprobs(prompts, targets).mean()).backward()
        optimizer.step()
    model.max_new_tokens = 24
    folder = tmp_path_factory.mktemp("asking") / "rag"
    rag.save(folder)
    return folder


def fedrag(*words, cwd):
    return subprocess.run([*FEDRAG, *map(str, words)], cwd=cwd, capture_output=True, text=True, timeout=120)


def test_questions_are_written_checked_and_held_out(system, tmp_path):
    made = fedrag("questions", system, "q.jsonl", "--within", "2", "--test", "0.25", "--json", cwd=tmp_path)
    assert made.returncode == 0, made.stderr
    told = json.loads(made.stdout)
    train, test = read_examples(tmp_path / "q.jsonl"), read_examples(tmp_path / "q.test.jsonl")
    assert told["files"] == {"q.jsonl": len(train), "q.test.jsonl": len(test)}
    assert told["kept"] == len(train) + len(test) >= 12
    assert told["kept"] + sum(told["refused"].values()) == len(DOCUMENTS)
    assert not {e.positives for e in train} & {e.positives for e in test}
    judge, texts = LexicalRetriever(DOCUMENTS), {document.id: document.text for document in DOCUMENTS}
    for example in [*train, *test]:
        assert example.positives[0] in {hit.document.id for hit in judge.retrieve([example.question], 2)[0]}
        assert example.answers[0] in texts[example.positives[0]].split()
    assert not (tmp_path / "q.part.jsonl").exists()


def test_killed_it_goes_on_where_it_stopped(system, tmp_path):
    whole = fedrag("questions", system, "whole.jsonl", "--test", "0", cwd=tmp_path)
    assert whole.returncode == 0, whole.stderr
    part = tmp_path / "again.part.jsonl"
    process = subprocess.Popen(
        [*FEDRAG, "questions", system, "again.jsonl", "--test", "0"], cwd=tmp_path, stderr=subprocess.DEVNULL
    )
    while process.poll() is None and not (part.exists() and part.read_text().count("\n") > 1):
        time.sleep(0.005)
    os.kill(process.pid, signal.SIGKILL) if process.poll() is None else None
    process.wait()
    if part.exists():
        with part.open("a") as file:
            file.write('{"document": "d3", "ques')  # what a kill in the middle of a line leaves
    again = fedrag("questions", system, "again.jsonl", "--test", "0", cwd=tmp_path)
    assert again.returncode == 0, again.stderr
    assert read_examples(tmp_path / "again.jsonl") == read_examples(tmp_path / "whole.jsonl")
    part.write_text(json.dumps({"within": 9}) + "\n")
    other = fedrag("questions", system, "again.jsonl", cwd=tmp_path)
    assert other.returncode == 1
    assert "give the same settings to go on" in other.stderr
    part.write_text("no json\n")
    strange = fedrag("questions", system, "again.jsonl", cwd=tmp_path)
    assert strange.returncode == 1
    assert "move it away" in strange.stderr
    assert part.read_text() == "no json\n"


def test_mining_fills_negatives_that_are_no_positives(system, tmp_path):
    rows = [{"question": e.question, "positives": list(e.positives)} for e in EXAMPLES]
    (tmp_path / "e.jsonl").write_text("\n".join(map(json.dumps, rows)))
    mined = fedrag(
        "mine", system, "e.jsonl", "hard.jsonl", "--per-example", "2", "--draw", "top", "--json", cwd=tmp_path
    )
    assert mined.returncode == 0, mined.stderr
    told, examples = json.loads(mined.stdout), read_examples(tmp_path / "hard.jsonl")
    assert told == {"examples": 24, "negatives": 48, "without": 0, "file": "hard.jsonl"}
    rag = RAGSystem.load(system)
    for example in examples:
        ranked = [hit.document.id for hit in rag.retrieve(example.question, k=3)]
        assert list(example.negatives) == [id for id in ranked if id not in example.positives][:2]
    wrong = fedrag("mine", system, "e.jsonl", "hard.csv", cwd=tmp_path)
    assert wrong.returncode == 1
    assert "ends with .jsonl" in wrong.stderr
