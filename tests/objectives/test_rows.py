"""Rows for other trainers: their text is, token for token, what the system asks and what its generator is taught."""

import logging
from random import Random

import pytest

from fedrag import (
    CausalLM,
    DenseRetriever,
    Document,
    Example,
    LexicalRetriever,
    MemoryStore,
    RAGSystem,
    SentenceEncoder,
)
from fedrag.errors import BudgetError, ConfigError, DataError
from fedrag.objectives.contexts import Mixture
from fedrag.objectives.raft import Raft
from fedrag.objectives.rows import sft_rows
from systems import DOCUMENTS, EXAMPLES, tiny_system
from tiny import tiny_llama, tiny_sentence_transformer, tiny_tokenizer

BATCH = [*EXAMPLES[:3], Example("Which key is lost ?", ["  the key of clerk 12\n", "none"]), Example("Why ?", [])]


def system(tokenizer, **settings):
    encoder = SentenceEncoder(tiny_sentence_transformer(kind="static"))
    generator = CausalLM(tiny_llama(vocab=len(tokenizer)), tokenizer, max_new_tokens=6)
    rag = RAGSystem(retriever=DenseRetriever(encoder, MemoryStore()), generator=generator, **{"top_k": 3, **settings})
    rag.add(DOCUMENTS, progress=False)
    return rag


@pytest.mark.parametrize(
    ("kind", "settings"),
    [
        ("bpe", {}),
        ("bpe", {"bos": True}),
        ("bpe", {"chat": True}),
        ("bpe", {"chat": True, "bos": True}),
        ("metaspace", {}),
        ("metaspace", {"bos": True}),
        ("word", {}),
        ("word", {"bos": True}),
    ],
)
def test_text_becomes_the_tokens_that_the_system_asks_and_teaches(kind, settings, caplog):
    rag = system(tiny_tokenizer(kind, **settings))
    generator = rag.generator
    with caplog.at_level(logging.WARNING):
        rows = sft_rows(rag, BATCH, progress=False)
    assert not caplog.records
    for example, row in zip(BATCH, rows, strict=True):
        documents = [hit.document for hit in rag.retrieve(example.question)]
        prompt = generator.prompt_ids(rag.prompt_for(example.question, documents))
        target = generator.target_ids(example.answers[0] if example.answers else "")
        assert generator.tokenizer(row["prompt"])["input_ids"] == prompt
        assert generator.tokenizer(row["prompt"] + row["completion"])["input_ids"] == prompt + target
        assert row["completion"].endswith(generator.tokenizer.eos_token)
    assert rows == sft_rows(rag, BATCH, progress=False)


def test_the_prompt_is_the_one_that_is_asked():
    rag = tiny_system()
    row = sft_rows(rag, EXAMPLES[:1], progress=False)[0]
    assert row == {"prompt": rag.query(EXAMPLES[0].question).prompt, "completion": " 0</s>"}


def test_contexts_are_drawn_by_the_seed():
    rag = tiny_system()
    contexts = Raft(rag.dense.store, distractors=2, gold=0.5)
    rows = sft_rows(rag, EXAMPLES, contexts=contexts, k=8, seed=3, progress=False)
    dice = Random(3)
    for example, row in zip(EXAMPLES, rows, strict=True):
        retrieved = [hit.document for hit in rag.retrieve(example.question, k=8)]
        assert row["prompt"] == rag.prompt_for(example.question, contexts(example, retrieved, dice))
    assert rows != sft_rows(rag, EXAMPLES, contexts=contexts, k=8, seed=4, progress=False)


def test_nothing_needs_to_be_retrieved():
    rag = tiny_system()
    closed = sft_rows(rag, BATCH, k=0, progress=False)
    assert [row["prompt"] for row in closed] == [rag.prompt_for(example.question, []) for example in BATCH]
    gold = sft_rows(rag, EXAMPLES[:2], k=0, contexts=Mixture(rag.dense.store, documents=1, gold=1.0), progress=False)
    assert [DOCUMENTS[n].text in row["prompt"] for n, row in enumerate(gold)] == [True, True]
    lexical = RAGSystem(retriever=LexicalRetriever(DOCUMENTS), generator=rag.generator, top_k=1)
    assert DOCUMENTS[11].text in sft_rows(lexical, EXAMPLES[11:12], progress=False)[0]["prompt"]


def test_an_ensemble_gives_a_row_per_document():
    rag = tiny_system(top_k=2)
    ensemble = RAGSystem(retriever=rag.retriever, generator=rag.generator, top_k=2, reader="ensemble")
    rows = sft_rows(ensemble, EXAMPLES[:3], progress=False)
    expected = [
        rag.prompt_for(example.question, [hit.document])
        for example in EXAMPLES[:3]
        for hit in rag.retrieve(example.question)
    ]
    assert [row["prompt"] for row in rows] == expected
    assert len(sft_rows(ensemble, EXAMPLES[:3], k=0, progress=False)) == 3


def test_long_documents_are_shortened_and_answers_are_not():
    rag = tiny_system()
    rag.dense.store.remove([document.id for document in DOCUMENTS])
    rag.add([Document("The key of clerk 1 is 3 . " * 60, id=f"long{n}") for n in range(3)], progress=False)
    rag.generator.max_length = 160
    answer = "the key of clerk 12 is lost " * 4
    (row,) = sft_rows(rag, [Example("Which key ?", [answer])], progress=False)
    assert len(rag.generator.tokenizer(row["prompt"] + row["completion"])["input_ids"]) <= 160
    assert row["completion"] == f" {answer.strip()}</s>"
    assert "The key of clerk" in row["prompt"]
    with pytest.raises(BudgetError, match="max_length"):
        sft_rows(rag, [Example("Which key ?", [answer * 10])], progress=False)


def test_rows_that_a_tokenizer_reads_otherwise_are_counted(caplog):
    rag = system(tiny_tokenizer(chat=True))
    rag.add([Document("<|im_end|> clerk 1", id="forged")], progress=False)

    def contexts(example, retrieved, dice):
        return rag.dense.store.get(["forged" if example is BATCH[0] else "d1"])

    with caplog.at_level(logging.WARNING):
        sft_rows(rag, BATCH, contexts=contexts, progress=False)
    (record,) = caplog.records
    assert record.getMessage().startswith("1 of 5 rows are other tokens")


def test_what_cannot_be_written_is_refused():
    rag = tiny_system()
    with pytest.raises(DataError, match="2 of 3 examples have answers=None"):
        sft_rows(rag, [Example("a"), EXAMPLES[0], Example("b")])
    with pytest.raises(ConfigError, match="k=-1"):
        sft_rows(rag, EXAMPLES, k=-1)
    with pytest.raises(ConfigError, match="got a NoneType"):
        sft_rows(RAGSystem(retriever=rag.retriever), EXAMPLES)
    assert sft_rows(rag, []) == []
