"""What differs between two systems is told, and nothing else is."""

import json

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fedrag import Document, LexicalRetriever, RAGSystem
from fedrag.bundles.difference import _documents, difference
from fedrag.prompts import Prompt
from fedrag.retrievers.hybrid import HybridRetriever
from fedrag.stores.memory import MemoryStore
from systems import tiny_system


def test_a_system_and_its_saved_copy_are_equal(tmp_path):
    rag = tiny_system(lora=2)
    rag.save(tmp_path / "rag")
    found = difference(rag, RAGSystem.load(tmp_path / "rag"))
    assert not found, str(found)
    assert str(found) == "the systems are equal"
    assert found.plain()["equal"] is True


def test_settings_prompt_weights_and_documents_are_told():
    before, after = tiny_system(), tiny_system()
    after.top_k = 5
    after.prompt = Prompt(order="best_last")
    name, old = next((n, p.detach()) for n, p in before.generator.model.named_parameters() if "q_proj" in n)
    with torch.no_grad():
        old[:2, 0] = 0.0
        new = dict(after.generator.model.named_parameters())[name]
        new.copy_(old)
        new[0, 0], new[1, 0] = 3.0, 4.0
    found = difference(before, after)
    assert found.settings == {"top_k": (3, 5), "prompt.order": ("best_first", "best_last")}
    assert set(found.weights) == {"generator"}
    change = found.weights["generator"]
    assert (change.changed_values, change.changed_tensors) == (2, 1)
    assert change.norm == 5.0
    every = [p.detach().double().square().sum() for p in before.generator.model.parameters()]
    assert abs(change.before_norm - float(sum(every)) ** 0.5) < 1e-9
    assert change.values == sum(p.numel() for p in before.generator.model.parameters())
    assert set(found.fingerprints) == {"generator"}
    assert not found.documents
    assert "top_k" in str(found)
    assert name not in str(found)
    assert json.loads(json.dumps(found.plain()))["weights"]["generator"]["norm"] == 5.0


def test_a_change_of_the_document_encoder_shows_in_its_fingerprint_and_weights():
    before, after = tiny_system(), tiny_system()
    with torch.no_grad():
        next(after.dense.encoder.parameters()).mul_(1.01)
    found = difference(before, after)
    assert set(found.fingerprints) == {"encoder"}
    change = found.weights["retriever/encoder"]
    assert abs(change.norm / change.before_norm - 0.01) < 1e-5


def test_another_structure_is_told_by_the_names_that_only_one_has():
    before, after = tiny_system(), tiny_system(lora=2)
    after.dense.encoder.untie()
    found = difference(before, after)
    assert all("lora" in name or "base_model" in name for name in found.weights["generator"].only_after)
    assert found.weights["generator"].only_before
    assert found.weights["retriever/encoder"].only_before
    assert found.weights["retriever/query"].only_after
    assert "encoder" not in found.fingerprints  # the document side is as it was


def test_the_settings_of_a_retriever_inside_another_are_told():
    def system(depth):
        rag = tiny_system()
        words = LexicalRetriever(rag.dense.store)
        rag.retriever = HybridRetriever([rag.dense, words], depth=depth)
        return rag

    assert not difference(system(20), system(20))
    found = difference(system(20), system(30))
    assert set(found.settings) == {"retriever"}
    assert [side["depth"] for side in found.settings["retriever"]] == [20, 30]
    assert not found.documents


def test_a_weight_that_is_no_number_in_both_is_no_difference():
    before, after = tiny_system(), tiny_system()
    for rag in (before, after):
        with torch.no_grad():
            next(rag.generator.model.parameters())[0, 0] = float("nan")
    assert not difference(before, after).weights


CONTENT = st.dictionaries(
    st.text("abc", min_size=1, max_size=2), st.tuples(st.text(max_size=3), st.integers(0, 2)), max_size=6
)


@given(CONTENT, CONTENT)
@settings(max_examples=60)
def test_documents_are_added_removed_or_changed_by_id(before, after):
    def store(content):
        made = MemoryStore()
        documents = [Document(text, id=id, metadata={"n": n}) for id, (text, n) in content.items()]
        if documents:
            made.add(documents, torch.ones(len(documents), 2))
        return made

    found = _documents(store(before), store(after))
    assert set(found.added) == after.keys() - before.keys()
    assert set(found.removed) == before.keys() - after.keys()
    assert set(found.changed) == {id for id in before.keys() & after.keys() if before[id] != after[id]}
    assert bool(found) == (before != after)
