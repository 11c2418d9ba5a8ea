"""Questions written about documents: what is kept leads back to its document, and every refusal has its reason."""

import re

import pytest
import torch

from fedrag import DenseRetriever, Document, LexicalRetriever, MemoryStore, RAGSystem, SentenceEncoder, split
from fedrag.errors import ConfigError, InputError
from fedrag.synthesis import drafts, generate_questions
from systems import DOCUMENTS, tiny_system
from tiny import tiny_sentence_transformer


class Writer:
    """Writes what a person would ask about "The key of clerk 3 is 9 .", and answers "9" when asked."""

    def __init__(self, odd=None):
        self.odd = odd or {}
        self.prompts = []

    def generate(self, prompts, *, max_new_tokens=None, stop=None):
        self.prompts += prompts
        return [self.one(prompt) for prompt in prompts]

    def one(self, prompt):
        clerk, key = re.findall(r"The key of clerk (\d+) is (\d+)", prompt)[-1]
        if prompt.endswith("Question:"):
            return self.odd.get(int(clerk), f'\n 1. Question: "Which key has clerk {clerk} ?"\nBecause it says so.')
        return self.odd.get(-int(clerk), f" {key}")


def system(writer):
    encoder = SentenceEncoder(tiny_sentence_transformer(kind="static"))
    rag = RAGSystem(retriever=DenseRetriever(encoder, MemoryStore()), generator=writer, top_k=2)
    rag.add(DOCUMENTS, progress=False)
    return rag


JUDGE = LexicalRetriever(DOCUMENTS)


def made(writer=None, **settings):
    return list(drafts(system(writer or Writer()), judge=JUDGE, within=2, **settings))


def test_a_question_that_leads_back_is_kept_with_its_document_and_its_answer():
    told = made()
    assert {draft.document for draft in told} == {document.id for document in DOCUMENTS}
    for draft in told:
        number = int(draft.document[1:])
        assert draft.question == f"Which key has clerk {number} ?"
        ids = [hit.document.id for hit in JUDGE.retrieve([draft.question], 2)[0]]  # "6" is clerk 2's key, too
        assert (draft.answers, draft.rank, draft.refused) == ((str(number * 3),), ids.index(draft.document) + 1, "")
        example = draft.example()
        assert (example.positives, example.metadata) == ((draft.document,), {"document": draft.document})


@pytest.mark.parametrize(
    ("odd", "refused", "rank"),
    [
        ({5: ""}, "no question", None),
        ({5: "  \n ?! \n"}, "no question", None),
        ({5: "why " * 65 + "?"}, "no question", None),
        ({5: "The key of clerk 5 is 15 ?"}, "copied", None),
        ({5: "Who was the king of Spain ?"}, "not found", None),
        ({-5: "Bruno"}, "no answer", 1),
        ({-5: " "}, "no answer", 1),
        ({-5: "1"}, "no answer", 1),  # a piece of "15", and no word of the text
    ],
)
def test_what_is_refused_and_why(odd, refused, rank):
    told = {draft.document: draft for draft in made(Writer(odd))}
    assert (told["d5"].refused, told["d5"].rank) == (refused, rank)
    assert sum(not draft.refused for draft in told.values()) >= 22


def test_a_question_is_kept_once():
    told = made(Writer({5: "Which key has clerk 6 ?"}))
    first, second = [draft for draft in told if draft.document in ("d5", "d6")]
    assert second.refused == "repeated"
    assert first.refused == ("" if first.document == "d6" else "not found")


def test_the_way_back_is_the_retrievers_own_ranking():
    rag = system(Writer())
    told = list(drafts(rag, within=5, answers=False))
    for draft in told:
        ids = [hit.document.id for hit in rag.retrieve(f"Which key has clerk {draft.document[1:]} ?", k=5)]
        assert draft.rank == (ids.index(draft.document) + 1 if draft.document in ids else None)
        assert (draft.refused == "not found") == (draft.document not in ids)
    assert {draft.refused for draft in told} == {"", "not found"}  # an untrained retriever: both must be seen


def test_going_on_is_the_same_as_never_having_stopped():
    first, *_, last = [int(draft.document[1:]) for draft in made(seed=3)]
    writer = Writer({3: "", last: f"Which key has clerk {first} ?"})
    whole = made(writer, batch_size=4, seed=3)
    assert whole[-1].refused == "repeated"
    done = whole[:8]
    assert done + made(writer, batch_size=4, seed=3, done=done) == whole
    assert [draft.document for draft in made(seed=4)] != [draft.document for draft in whole]


def test_no_more_than_asked_for_and_a_split_by_document():
    found = generate_questions(system(Writer({2: ""})), n=10, judge=JUDGE, within=2, progress=False)
    assert len(found.examples) == 10
    parts = split(found.examples, {"train": 0.7, "test": 0.3}, by="document")
    assert not {e.positives for e in parts["train"]} & {e.positives for e in parts["test"]}
    rest = generate_questions(system(Writer({2: ""})), n=1000, judge=JUDGE, within=2, progress=False)
    assert (len(rest.examples), dict(rest.refused)) == (23, {"no question": 1})
    assert str(rest) == "23 questions kept; refused: 1 no question"


def test_another_writer_writes_and_nobody_answers_when_not_asked():
    mute, writer = Writer(), Writer()
    found = generate_questions(
        system(mute), n=24, judge=JUDGE, within=2, writer=writer, answers=False, progress=False
    ).examples
    assert len(found) == 24
    assert {example.answers for example in found} == {None}
    assert not mute.prompts
    assert len(writer.prompts) == 24


def test_a_long_text_leaves_room_for_the_question():
    rag = tiny_system()
    rag.add([Document("word " * 4000, id="long")], progress=False)
    assert any(draft.document == "long" for draft in drafts(rag))


def test_impossible_settings_are_refused_at_the_call():
    rag = system(Writer())
    with pytest.raises(ConfigError, match="within and batch_size must be at least 1, got 0 and 16"):
        drafts(rag, within=0)
    with pytest.raises(ConfigError, match=r"lacks \{text\}"):
        drafts(rag, prompt="Write a question.")
    rag.generator = None
    with pytest.raises(ConfigError, match="this system has none"):
        drafts(rag)
    empty = RAGSystem(retriever=DenseRetriever(rag.dense.encoder, MemoryStore()), generator=Writer())
    with pytest.raises(InputError, match="no document to ask about"):
        drafts(empty)


@pytest.mark.slow
def test_a_real_model_that_learnt_to_ask_gives_the_examples_that_tune_the_retriever(tmp_path):
    """A tiny causal model learns the form of a question on sixteen documents, and asks about the others too."""
    from fedrag import Contrastive, RAGTrainer, evaluate
    from fedrag.synthesis import QUESTION_PROMPT
    from systems import arguments

    torch.manual_seed(0)
    rag = tiny_system(top_k=1)
    model = rag.generator
    asked = [QUESTION_PROMPT.replace("{text}", document.text) for document in DOCUMENTS[:16]]
    wanted = [f" Which key has clerk {n} ?" for n in range(16)]
    optimizer = torch.optim.AdamW(model.model.parameters(), lr=3e-3)
    for _ in range(150):
        optimizer.zero_grad()
        (-model.logprobs(asked, wanted).mean()).backward()
        optimizer.step()
    model.max_new_tokens = 24
    found = generate_questions(rag, n=24, judge=JUDGE, within=2, answers=False, progress=False).examples
    assert len(found) >= 12
    for example in found:
        assert example.positives[0] in {hit.document.id for hit in JUDGE.retrieve([example.question], 2)[0]}
    before = evaluate(rag, found, k=3, progress=False).metrics["mrr@3"].mean
    RAGTrainer(
        Contrastive(rag), train_dataset=found, args=arguments(tmp_path, max_steps=60, learning_rate=3e-2)
    ).train()
    after = evaluate(rag, found, k=3, progress=False).metrics["mrr@3"].mean
    assert after > before + 0.2, (before, after)
