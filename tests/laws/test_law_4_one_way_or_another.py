"""Law 4: sync is async, a batch is its members, document order does not matter, save then load is the identity."""

import asyncio

import pytest
import torch

from fedrag import DenseRetriever, MemoryStore, RAGSystem, SentenceEncoder
from systems import DOCUMENTS, EXAMPLES, tiny_system
from tiny import tiny_sentence_transformer

QUESTIONS = [example.question for example in EXAMPLES[:6]]


def plain(answers):
    """Answers without the last bits of their scores, which depend on how a matrix product is blocked."""
    return [(a.text, a.prompt, [(h.document.id, pytest.approx(h.score, abs=1e-5)) for h in a.hits]) for a in answers]


@pytest.fixture(params=["stuff", "ensemble"])
def reader(request):
    return request.param


def test_a_batch_answers_as_one_at_a_time_does(reader):
    rag = tiny_system(kind="bert")
    rag.reader = reader
    batch = rag.query_batch(QUESTIONS, batch_size=4)
    assert plain(batch) == plain([rag.query(question) for question in QUESTIONS])
    assert any(answer.text for answer in batch)


def test_async_answers_as_sync_does_and_leaves_the_loop_free(reader):
    rag = tiny_system()
    rag.reader = reader

    async def ask():
        ticks = 0

        async def tick():
            nonlocal ticks
            while True:
                ticks += 1
                await asyncio.sleep(0)

        clock = asyncio.create_task(tick())
        answers = await asyncio.gather(*(rag.aquery(question) for question in QUESTIONS))
        clock.cancel()
        return answers, ticks

    answers, ticks = asyncio.run(ask())
    assert plain(answers) == plain(rag.query_batch(QUESTIONS))
    assert ticks > 10


def test_a_stream_is_the_answer_in_pieces(reader):
    rag = tiny_system()
    rag.reader = reader
    for question in QUESTIONS:
        stream = rag.stream(question)
        answer = rag.query(question)
        assert "".join(stream) == answer.text
        assert [hit.document for hit in stream.hits] == [hit.document for hit in answer.hits]


def test_the_order_of_documents_does_not_matter(reader):
    there, back = tiny_system(), tiny_system()
    there.reader = back.reader = reader
    back.dense.store.remove([document.id for document in DOCUMENTS])
    back.add(DOCUMENTS[::-1], progress=False)
    assert plain(there.query_batch(QUESTIONS)) == plain(back.query_batch(QUESTIONS))


@pytest.mark.parametrize("lora", ["", "generator", "retriever", "both"])
@pytest.mark.parametrize("towers", [1, 2])
def test_saving_and_loading_is_the_identity(lora, towers, tmp_path):
    rag = tiny_system(kind="bert", lora=4 if lora in ("generator", "both") else None, top_k=2)
    if lora in ("retriever", "both"):
        encoder = SentenceEncoder(tiny_sentence_transformer(), lora=4)
        rag.retriever = DenseRetriever(encoder, MemoryStore())
        rag.add(DOCUMENTS, progress=False)
    if towers == 2:
        rag.dense.encoder.untie()
    with torch.no_grad():
        for parameter in rag.named_parameters().values():
            if parameter.requires_grad:
                parameter.add_(0.02 * torch.randn_like(parameter))
    rag.dense.refresh(progress=False)
    rag.reader = "ensemble" if towers == 2 else "stuff"
    rag.save(tmp_path / "rag")
    again = RAGSystem.load(tmp_path / "rag")
    assert again.query_batch(QUESTIONS) == rag.query_batch(QUESTIONS)
    assert (again.top_k, again.prompt, again.reader) == (rag.top_k, rag.prompt, rag.reader)
    assert again.dense.encoder.fingerprint == rag.dense.encoder.fingerprint
    assert list(again.dense.store.documents()) == list(rag.dense.store.documents())
    ours, theirs = rag.named_parameters(), again.named_parameters()
    assert set(ours) == set(theirs)
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)
    assert {n for n, p in ours.items() if p.requires_grad} == {n for n, p in theirs.items() if p.requires_grad}


def test_a_second_save_replaces_the_first_and_its_parts_load_without_us(tmp_path):
    from sentence_transformers import SentenceTransformer
    from transformers import AutoModelForCausalLM, AutoTokenizer

    rag = tiny_system(kind="bert")
    rag.save(tmp_path)
    rag.top_k = 1
    rag.save(tmp_path)
    assert RAGSystem.load(tmp_path).top_k == 1
    (folder,) = [entry for entry in tmp_path.iterdir() if entry.is_dir()]
    vectors = SentenceTransformer(str(folder / "encoder"), device="cpu").encode(QUESTIONS)
    ours = SentenceEncoder(rag.dense.encoder.model).encode_queries(QUESTIONS).detach()
    torch.testing.assert_close(torch.tensor(vectors), ours, atol=1e-6, rtol=1e-5)
    model = AutoModelForCausalLM.from_pretrained(folder / "generator")
    ids = AutoTokenizer.from_pretrained(folder / "generator")(QUESTIONS[0], return_tensors="pt")["input_ids"]
    torch.testing.assert_close(model(ids).logits, rag.generator.model(ids).logits)
