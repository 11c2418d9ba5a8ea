"""Dense retrieval: scores with gradient, freshness, resumable indexing."""

import hashlib
from dataclasses import replace

import pytest
import torch
from torch import nn

from fedrag.encoders.sentence import SentenceEncoder
from fedrag.errors import InputError, StaleIndexError, StoreError
from fedrag.retrievers.dense import DenseRetriever
from fedrag.stores.memory import MemoryStore
from fedrag.types import Document, Encoder
from tiny import tiny_sentence_transformer

DOCUMENTS = [Document(f"passage {n} about the river and key {n * 7}", id=f"d{n}") for n in range(40)]


@pytest.fixture
def retriever():
    made = DenseRetriever(SentenceEncoder(tiny_sentence_transformer()), MemoryStore(), batch_size=4)
    made.add(DOCUMENTS, progress=False)
    return made


def test_retrieval_is_the_encoder_and_a_sort(retriever):
    queries = ["key 14", "the river"]
    scores = (
        retriever.encoder.encode_queries(queries)
        @ retriever.encoder.encode_documents([document.text for document in DOCUMENTS]).T
    )
    best = scores.topk(5)
    found = retriever.retrieve(queries, 5)
    assert [[hit.document.id for hit in row] for row in found] == [
        [f"d{i}" for i in row] for row in best.indices.tolist()
    ]
    torch.testing.assert_close(torch.tensor([[hit.score for hit in row] for row in found]), best.values.detach())


def test_documents_keep_their_order_though_they_are_encoded_by_length(retriever):
    assert [document.id for document in retriever.store.documents()] == [document.id for document in DOCUMENTS]


def test_scores_equal_the_hits_and_carry_gradients(retriever):
    queries = ["key 14", "the river"]
    hits = retriever.retrieve(queries, 3)
    rows = [[hit.document for hit in hits[0]], [hit.document for hit in hits[1]][:2]]
    scores = retriever.scores(queries, rows)
    assert scores.shape == (2, 3)
    assert scores[1, 2] == -torch.inf
    expected = [hit.score for hit in hits[0]] + [hit.score for hit in hits[1]][:2]
    torch.testing.assert_close(scores[torch.isfinite(scores)].detach(), torch.tensor(expected))
    scores[torch.isfinite(scores)].sum().backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in retriever.encoder.parameters())


def test_a_frozen_document_side_takes_its_vectors_from_the_store(retriever):
    retriever.encoder.untie()
    retriever.encoder.parts()["document"].requires_grad_(False)
    retriever.store.update_vectors(["d0"], torch.full((1, 32), 2.0))
    scores = retriever.scores(["key"], [[DOCUMENTS[0]]])
    torch.testing.assert_close(scores[0, 0], 2 * retriever.encoder.encode_queries(["key"]).sum())
    elsewhere = Document("not in the store")
    torch.testing.assert_close(
        retriever.scores(["key"], [[elsewhere]])[0, 0],
        (retriever.encoder.encode_queries(["key"]) * retriever.encoder.encode_documents([elsewhere.text])).sum(),
    )
    with torch.no_grad():  # the vectors in the store are another encoder's now
        next(retriever.encoder.parts()["document"].parameters()).add_(0.1)
    torch.testing.assert_close(
        retriever.scores(["key"], [[DOCUMENTS[0]]])[0, 0],
        (retriever.encoder.encode_queries(["key"]) * retriever.encoder.encode_documents([DOCUMENTS[0].text])).sum(),
    )


def change(retriever):
    with torch.no_grad():
        for parameter in retriever.encoder.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))


def test_a_changed_document_encoder_makes_the_index_stale_and_refresh_mends_it(retriever):
    change(retriever)
    with pytest.raises(StaleIndexError, match=r"retriever\.refresh\(\)"):
        retriever.retrieve(["key"], 1)
    with pytest.raises(StaleIndexError):
        retriever.add([Document("new")], progress=False)
    assert retriever.refresh(progress=False) == 40
    assert retriever.refresh(progress=False) == 0
    wanted = retriever.encoder.encode_documents([document.text for document in DOCUMENTS]).detach()
    torch.testing.assert_close(retriever.store.vectors([document.id for document in DOCUMENTS]), wanted)


def test_a_changed_query_tower_needs_no_refresh(retriever):
    retriever.encoder.untie()
    with torch.no_grad():
        next(retriever.encoder.parts()["query"].parameters()).add_(0.1)
    retriever.retrieve(["key"], 1)
    assert retriever.refresh(progress=False) == 0


class Interrupt(BaseException):
    """No `Exception`, as Ctrl-C is none; but where it is not expected, this test fails and the others go on."""


class Interrupting(SentenceEncoder):
    """Encodes some batches of documents, then is interrupted."""

    left = 10**9

    def encode_documents(self, texts):
        if self.left == 0:
            raise Interrupt
        self.left -= 1
        return super().encode_documents(texts)


def test_documents_that_come_while_others_are_embedded_are_embedded_too(retriever):
    late = [Document(f"late passage {n}", id=f"late{n}") for n in range(3)]

    class Meanwhile(SentenceEncoder):
        def encode_documents(self, texts):
            if late:
                retriever.store.add([late.pop()], torch.zeros(1, 32))  # as another program does
            return super().encode_documents(texts)

    came = list(late)
    retriever.encoder = Meanwhile(tiny_sentence_transformer(seed=5))
    assert retriever.refresh(progress=False) == 43
    wanted = retriever.encoder.encode_documents([document.text for document in came]).detach()
    torch.testing.assert_close(retriever.store.vectors([document.id for document in came]), wanted)


def test_a_store_that_refuses_the_new_vectors_says_so(retriever, monkeypatch):
    def refuse(_):
        raise StoreError("the disk is full")

    change(retriever)
    monkeypatch.setattr("fedrag.stores.rebuild.MemoryRebuild.commit", refuse)
    with pytest.raises(StoreError, match="disk is full"):
        retriever.refresh(progress=False)


def test_documents_that_came_without_a_vector_get_one():
    class Table(MemoryStore):
        """One that others write texts into, and zeros for their vectors."""

        def lacking(self, batch_size):
            mute = [document for document in self.documents() if not self.vectors([document.id]).any()]
            for start in range(0, len(mute), batch_size):
                yield mute[start : start + batch_size]

    retriever = DenseRetriever(SentenceEncoder(tiny_sentence_transformer()), Table(), batch_size=4)
    retriever.add(DOCUMENTS[:30], progress=False)
    before = retriever.store.vectors(["d3"])
    retriever.store.add(DOCUMENTS[30:], torch.zeros(10, 32))
    assert retriever.refresh(progress=False) == 10
    assert retriever.refresh(progress=False) == 0
    wanted = retriever.encoder.encode_documents([document.text for document in DOCUMENTS[30:]]).detach()
    torch.testing.assert_close(retriever.store.vectors([document.id for document in DOCUMENTS[30:]]), wanted)
    assert torch.equal(retriever.store.vectors(["d3"]), before)


def test_indexing_and_refreshing_go_on_where_they_stopped():
    encoder = Interrupting(tiny_sentence_transformer())
    many = [Document(f"passage {n}", id=f"{n}") for n in range(200)]
    retriever = DenseRetriever(encoder, MemoryStore(), batch_size=4)
    encoder.left = 20  # one window of 16 batches is stored, the second is lost
    with pytest.raises(Interrupt):
        retriever.add(many, progress=False)
    assert len(retriever.store) == 64
    encoder.left = 34  # just enough for the 136 that are missing
    retriever.add(many, progress=False)
    assert encoder.left == 0
    assert len(retriever.store) == 200

    encoder.left = 10**9
    change(retriever)
    encoder.left = 20
    with pytest.raises(Interrupt):
        retriever.refresh(progress=False)
    with pytest.raises(StaleIndexError):
        retriever.retrieve(["x"], 1)
    encoder.left = 34
    assert retriever.refresh(progress=False) == 136
    encoder.left = 1
    wanted = encoder.encode_documents([document.text for document in many]).detach()
    torch.testing.assert_close(retriever.store.vectors([document.id for document in many]), wanted)


class Killed(MemoryStore):
    """Is interrupted once, just after it stored a window."""

    left = 1

    def add(self, documents, vectors):
        super().add(documents, vectors)
        self.left -= 1
        if self.left == 0:
            raise Interrupt


def test_an_interruption_after_the_first_window_leaves_a_store_that_knows_its_encoder():
    retriever = DenseRetriever(SentenceEncoder(tiny_sentence_transformer(kind="static")), Killed(), batch_size=1)
    with pytest.raises(Interrupt):
        retriever.add(DOCUMENTS, progress=False)
    assert len(retriever.store) == 16
    retriever.add(DOCUMENTS, progress=False)
    assert len(retriever.store) == 40
    retriever.retrieve(["key"], 1)


def test_documents_read_in_part_are_told_once_without_their_text(caplog):
    model = tiny_sentence_transformer()
    model.max_seq_length = 12
    retriever = DenseRetriever(SentenceEncoder(model), MemoryStore(), batch_size=1)
    long = [Document(f"the secret {'river ' * 20} {n}", id=f"long{n}") for n in range(30)]
    short = [Document(f"the key {n}", id=f"short{n}") for n in range(20)]
    retriever.add(short, progress=False)
    assert not caplog.records
    retriever.add([*long, *short, Document("the road")], progress=False)
    (record,) = caplog.records
    assert record.levelname == "WARNING"
    assert "30 of 31 documents are longer than the 12 tokens" in record.getMessage()
    assert "chunk_tokens" in record.getMessage()
    assert "secret" not in record.getMessage()
    retriever.add(long, progress=False)
    assert len(caplog.records) == 1


class Bag:
    """The mean of random vectors of characters: all that the protocol asks for, and no more."""

    def __init__(self):
        self.table = nn.Embedding(256, 16)

    def encode_queries(self, texts):
        return torch.stack([self.table(torch.tensor(list(text.encode()))).mean(0) for text in texts])

    encode_documents = encode_queries

    @property
    def fingerprint(self):
        return hashlib.sha256(self.table.weight.detach().numpy().tobytes()).hexdigest()

    def parts(self):
        return {"encoder": self.table}


def test_any_object_that_fulfils_the_protocol_will_do():
    encoder = Bag()
    assert isinstance(encoder, Encoder)
    retriever = DenseRetriever(encoder, MemoryStore(), batch_size=7)
    retriever.add(DOCUMENTS, progress=False)
    wanted = encoder.encode_queries(["key 14"]) @ encoder.encode_documents([d.text for d in DOCUMENTS]).T
    (hits,) = retriever.retrieve(["key 14"], 3)
    assert [hit.document.id for hit in hits] == [f"d{i}" for i in wanted.topk(3).indices[0].tolist()]
    scores = retriever.scores(["key 14"], [[hit.document for hit in hits]])
    torch.testing.assert_close(scores[0].detach(), torch.tensor([hit.score for hit in hits]))
    scores.sum().backward()
    assert encoder.table.weight.grad is not None
    with torch.no_grad():
        encoder.table.weight.add_(torch.randn_like(encoder.table.weight))
    with pytest.raises(StaleIndexError):
        retriever.retrieve(["key"], 1)
    assert retriever.refresh(progress=False) == 40
    encoder.table.requires_grad_(False)
    (hits,) = retriever.retrieve(["key 14"], 3)
    scores = retriever.scores(["key 14"], [[hit.document for hit in hits]])  # vectors from the store
    torch.testing.assert_close(scores[0], torch.tensor([hit.score for hit in hits]))


def test_adding_what_is_there_encodes_nothing_and_a_changed_text_replaces():
    encoder = Interrupting(tiny_sentence_transformer())
    retriever = DenseRetriever(encoder, MemoryStore())
    retriever.add(DOCUMENTS, progress=False)
    encoder.left = 0
    retriever.add([*DOCUMENTS, DOCUMENTS[0]], progress=False)
    assert len(retriever.store) == 40
    encoder.left = 10**9
    retriever.add([replace(DOCUMENTS[5], metadata={"new": True})], progress=False)
    assert retriever.store.get(["d5"])[0].metadata == {"new": True}
    retriever.add([Document("a new text", id="d3")], progress=False)
    assert retriever.store.get(["d3"])[0].text == "a new text"
    torch.testing.assert_close(
        retriever.store.vectors(["d3"]), retriever.encoder.encode_documents(["a new text"]).detach()
    )


def test_wrong_input_is_named(retriever):
    with pytest.raises(InputError, match="no document"):
        retriever.add([], progress=False)
    with pytest.raises(InputError, match="'same'"):
        retriever.add([Document("a", id="same"), Document("b", id="same")], progress=False)
    with pytest.raises(InputError, match="one non-empty list"):
        retriever.scores(["a", "b"], [[DOCUMENTS[0]], []])
    assert retriever.retrieve([], 3) == []


def test_dropout_does_not_reach_retrieval(retriever):
    noisy = DenseRetriever(SentenceEncoder(tiny_sentence_transformer(dropout=0.5)), MemoryStore())
    noisy.add(DOCUMENTS, progress=False)
    noisy.encoder.train()
    first = noisy.retrieve(["key 14"], 40)
    assert first == noisy.retrieve(["key 14"], 40)
    assert noisy.encoder.training


def test_a_stream_is_read_as_it_is_embedded():
    encoder = Interrupting(tiny_sentence_transformer(kind="static"))
    retriever = DenseRetriever(encoder, MemoryStore(), batch_size=2)
    many = [Document(f"passage {n}", id=f"{n}") for n in range(100)]
    held = []  # how far the stream was read beyond what the store had

    def stream(documents):
        for n, document in enumerate(documents):
            held.append(n - len(retriever.store))
            yield document

    encoder.left = 2 * 16
    with pytest.raises(Interrupt):
        retriever.add(stream(many), progress=False)
    assert len(retriever.store) == 64
    assert max(held) == 31
    encoder.left = 18  # just enough for the 36 that are missing
    retriever.add(stream([*many, many[0], many[99]]), progress=False)
    assert encoder.left == 0
    whole = DenseRetriever(retriever.encoder, MemoryStore(), batch_size=2)
    encoder.left = 10**9
    whole.add(many, progress=False)
    assert list(whole.store.documents()) == list(retriever.store.documents()) == many
    ids = [document.id for document in many]
    torch.testing.assert_close(retriever.store.vectors(ids), whole.store.vectors(ids))


def test_a_stream_with_one_id_twice_is_refused_where_it_comes(retriever):
    with pytest.raises(InputError, match="no document"):
        retriever.add(iter([]), progress=False)
    for apart in (0, 40):  # in the window, in the store
        store = MemoryStore()
        other = DenseRetriever(retriever.encoder, store, batch_size=1)
        stream = [DOCUMENTS[0], *DOCUMENTS[1 : 1 + apart], replace(DOCUMENTS[0], text="another")]
        with pytest.raises(InputError, match="two different documents have the id 'd0'"):
            other.add(iter(stream), progress=False)
        assert "another" not in [document.text for document in store.documents()]
        with pytest.raises(InputError, match="two different documents have the id 'd0'"):
            other.add(stream, progress=False)
        assert len(store) == apart // 16 * 16
    other.add(iter([replace(DOCUMENTS[0], text="another")]), progress=False)  # in a later call it replaces
    assert store.get(["d0"])[0].text == "another"
