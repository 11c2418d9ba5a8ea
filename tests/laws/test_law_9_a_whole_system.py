"""Law 9 for a whole system: a kill at every step of `rag.save` over an older save leaves one of the two, whole."""

from __future__ import annotations

import itertools
import shutil
from pathlib import Path

import pytest
import torch

from crash import run
from fedrag import RAGSystem
from systems import DOCUMENTS, tiny_system, two_stages


def state(rag: RAGSystem) -> tuple[int, int, str, str, str, int]:
    weights = rag.dense.encoder.fingerprint, rag.generator.fingerprint, rag.reranker.fingerprint
    return rag.top_k, len(rag.dense.store), *weights, rag.retriever.depth


@pytest.mark.slow
def test_a_kill_while_saving_leaves_the_old_system_or_the_new(tmp_path: Path) -> None:
    rag = two_stages(tiny_system(lora=2))
    rag.save(tmp_path / "kept")
    old = state(rag)
    rag.top_k, rag.retriever.depth = 9, 5
    rag.dense.store.remove([document.id for document in DOCUMENTS[:5]])
    with torch.no_grad():
        for parameter in rag.named_parameters().values():
            parameter.add_(0.1)
    rag.dense.refresh(progress=False)
    new = state(rag)
    assert all(a != b for a, b in zip(old, new, strict=True))
    seen = []
    for at in itertools.count():
        folder = tmp_path / "rag"
        shutil.rmtree(folder, ignore_errors=True)
        shutil.copytree(tmp_path / "kept", folder)
        end, steps = run(lambda folder=folder: rag.save(folder), at, "kill")
        seen.append(state(RAGSystem.load(folder)))
        assert seen[-1] in (old, new)
        if at >= len(steps):
            assert end == "done"
            break
    assert seen[-1] == new
    assert seen.index(new) > 20
    assert all(each == new for each in seen[seen.index(new) :])
