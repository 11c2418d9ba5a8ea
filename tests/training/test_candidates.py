"""The table of candidates: what is looked up is what would be found; it survives a round through a file."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedrag import LSR, Example
from fedrag.errors import InputError, TrainingError
from fedrag.training.candidates import CandidateTable, from_writer, is_writer
from systems import EXAMPLES, tiny_system


@pytest.fixture
def objective():
    return LSR(tiny_system(kind="bert"), k=4)


def test_a_look_up_is_a_retrieval(objective):
    table = CandidateTable(objective, progress=False)
    table.refresh(EXAMPLES, batch_size=5)
    assert table(EXAMPLES[3:7][::-1]) == objective.find(EXAMPLES[3:7][::-1])


def test_examples_that_differ_in_metadata_alone_have_their_own_documents(objective):
    found = [document.id for document in objective.find(EXAMPLES[:1])[0]]
    objective.exclude_ids = lambda example: [example.metadata["source"]] if "source" in example.metadata else []
    rows = [Example(EXAMPLES[0].question, ["1"], metadata={"source": id}) for id in found[:2]]
    table = CandidateTable(objective, progress=False)
    table.refresh(rows)
    for row, excluded in zip(table(rows), found[:2], strict=True):
        assert excluded not in {document.id for document in row}
        assert len(row) == 4


def test_what_is_saved_comes_back(objective, tmp_path):
    table, again = CandidateTable(objective, progress=False), CandidateTable(objective, progress=False)
    table.refresh(EXAMPLES)
    table.save(tmp_path / "candidates.json")
    again.load(tmp_path / "candidates.json", EXAMPLES)
    assert again(EXAMPLES) == table(EXAMPLES)
    with pytest.raises(InputError, match="other training examples"):
        again.load(tmp_path / "candidates.json", [*EXAMPLES, Example("Why ?")])


text = st.text(st.characters(), max_size=6)  # half characters too


@given(st.lists(st.builds(Example, text, st.lists(text, max_size=2), metadata=st.dictionaries(text, text, max_size=1))))
def test_any_text_can_be_looked_up(examples):
    objective = LSR.__new__(LSR)  # the table asks its objective for documents, and for nothing else
    table = CandidateTable(objective, progress=False)
    object.__setattr__(objective, "find", lambda batch: [[_document(example)] for example in batch])
    table.refresh(examples)
    assert table(examples) == [[_document(example)] for example in examples]


def _document(example):
    from fedrag import Document

    return Document(repr((example.question, example.answers, sorted(example.metadata.items()))))


def test_an_example_left_without_documents_is_named(objective):
    objective.exclude_ids = lambda example: [f"d{n}" for n in range(24)] if example is EXAMPLES[2] else []
    with pytest.raises(TrainingError, match=r"1 of 24 training examples.*exclude fewer"):
        CandidateTable(objective, progress=False).refresh(EXAMPLES)


def test_one_process_writes_for_itself():
    assert is_writer()
    assert from_writer({"a": 1}) == {"a": 1}
