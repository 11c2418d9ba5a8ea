"""RAG-Sequence and RAG-Token: the formulas from a slow restatement, ragged rows, chunks, and what is logged."""

import math

import pytest
import torch

from fedrag import CausalLM, DenseRetriever, Document, Example, LexicalRetriever, MemoryStore, RAGSystem
from fedrag.errors import ConfigError, DataError, InputError
from fedrag.objectives import marginal
from fedrag.objectives.marginal import RAGSequence, RAGToken
from systems import DOCUMENTS, EXAMPLES, tiny_system
from tiny import tiny_llama, tiny_tokenizer

BATCH = [*EXAMPLES[:3], Example("Which key is lost ?", ["the key of clerk 12 and of clerk 7"]), Example("Why ?", [])]
SIZES = (5, 1, 3, 4, 2)
FORMS = [RAGSequence, RAGToken]


def slow(rag, batch, rows, form, *, tau=0.05):
    """log p(y, EOS | q) of each example, one document and one token at a time, in Python's floats."""
    generator, found = rag.generator, []
    for example, documents in zip(batch, rows, strict=True):
        target = generator.target_ids(example.answers[0] if example.answers else "")
        assert target[-1] == generator.tokenizer.eos_token_id
        scores, tokens = [], []
        with torch.no_grad():
            query = rag.dense.encoder.encode_queries([example.question])[0].double()
            for document in documents:
                scores.append(
                    math.exp(float(query @ rag.dense.encoder.encode_documents([document.text])[0].double()) / tau)
                )
                prompt = generator.prompt_ids(rag.prompt.render(example.question, [document]))
                logits = generator.model(torch.tensor([prompt + target])).logits[0].double()
                tokens.append(
                    [float(torch.softmax(logits[len(prompt) + t - 1], -1)[id]) for t, id in enumerate(target)]
                )
        prior = [score / sum(scores) for score in scores]
        if form is RAGSequence:
            found.append(math.log(sum(p * math.prod(each) for p, each in zip(prior, tokens, strict=True))))
        else:
            sums = [sum(p * each[t] for p, each in zip(prior, tokens, strict=True)) for t in range(len(target))]
            found.append(sum(math.log(total) for total in sums))
    return found


def ragged(objective):
    """Give the batch's examples 5, 1, 3, 4 and 2 documents."""
    rows = [row[:size] for row, size in zip(objective.find(BATCH), SIZES, strict=True)]
    objective.candidates = lambda batch: [rows[BATCH.index(example)] for example in batch]
    return rows


def gradients(objective, batch=BATCH):
    objective.zero_grad()
    loss = objective(batch)["loss"]
    loss.backward()
    return loss.detach(), {name: p.grad.clone() for name, p in objective.trainable().items()}


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("chunk", [1, 2, None])
def test_the_loss_is_its_formula(form, chunk):
    rag = tiny_system(kind="bert")
    objective = form(rag, k=5, chunk=chunk)
    expected = slow(rag, BATCH, objective.find(BATCH), form)
    for mode in (True, False):
        loss = objective.train(mode)(BATCH)["loss"]
        assert loss.item() == pytest.approx(-sum(expected) / len(BATCH), rel=1e-5)
        with torch.no_grad():  # another path: prefixes are shared there
            assert objective(BATCH)["loss"].item() == pytest.approx(loss.item(), rel=1e-5)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("chunk", [1, 2, None])
def test_queries_with_fewer_documents_are_neither_padded_nor_dropped(form, chunk):
    rag = tiny_system(kind="bert")
    objective = form(rag, k=5, chunk=chunk)
    rows = ragged(objective)
    expected = slow(rag, BATCH, rows, form)
    loss, found = gradients(objective)
    assert loss.item() == pytest.approx(-sum(expected) / len(BATCH), rel=1e-5)
    assert all(torch.isfinite(gradient).all() for gradient in found.values())
    alone = [gradients(objective, [example]) for example in BATCH]
    for name, gradient in found.items():
        mean = torch.stack([one[name] for _, one in alone]).mean(0)
        torch.testing.assert_close(gradient, mean, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("train", ["query", "both"])
def test_documents_read_in_chunks_give_the_gradients_of_all_at_once(form, train):
    rag = tiny_system(kind="bert")
    objective = form(rag, k=5, train=train)
    ragged(objective)
    results = []
    for chunk in (None, 1, 2, 4, 5, 9):
        objective.chunk = chunk
        results.append(gradients(objective))
    whole, *others = results
    assert all(gradient.abs().max() > 1e-6 for name, gradient in whole[1].items() if "weight" in name)
    for loss, found in others:
        torch.testing.assert_close(loss, whole[0], atol=1e-6, rtol=1e-6)
        torch.testing.assert_close(found, whole[1], atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("form", FORMS)
def test_reading_twice_draws_the_same_dropout(form, monkeypatch):
    rag = tiny_system(kind="bert", dropout=0.5)
    objective = form(rag, k=4, train="both").train()

    def run(seed):
        torch.manual_seed(seed)
        return gradients(objective)

    saved = run(1)
    assert run(2)[0] != saved[0]  # there is dropout
    monkeypatch.setattr(marginal, "checkpoint", lambda read, piece, **_: read(piece))
    plain = run(1)
    assert torch.equal(saved[0], plain[0])
    torch.testing.assert_close(saved[1], plain[1], atol=1e-7, rtol=1e-6)


def test_memory_is_flat_in_k():
    rag = tiny_system(kind="bert")
    held = {}
    for chunk, k in ((None, 2), (1, 2), (1, 8), (None, 8)):
        count = 0

        def pack(tensor):
            nonlocal count
            count += tensor.numel()
            return tensor

        objective = RAGSequence(rag, k=k, chunk=chunk)
        for name, parameter in rag.named_parameters().items():
            parameter.requires_grad_(name.startswith(("retriever/query", "generator")))
        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            objective(EXAMPLES[:4])
        held[chunk, k] = count
    assert held[1, 8] < 1.2 * held[1, 2]
    assert held[None, 8] > 2.5 * held[None, 2]


@pytest.mark.parametrize("form", FORMS)
def test_the_order_of_the_documents_does_not_matter(form):
    rag = tiny_system(kind="bert")
    objective = form(rag, k=5)
    rows = ragged(objective)
    straight = gradients(objective)
    objective.candidates = lambda batch: [rows[BATCH.index(example)][::-1] for example in batch]
    back = gradients(objective)
    torch.testing.assert_close(back[0], straight[0], atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(back[1], straight[1], atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize(("k", "batch"), [(1, BATCH), (4, [Example(e.question, []) for e in EXAMPLES[:4]])])
def test_for_one_document_or_one_token_both_forms_are_the_same(k, batch):
    rag = tiny_system(kind="bert")
    sequence, token = (gradients(form(rag, k=k), batch) for form in FORMS)
    torch.testing.assert_close(sequence, token, atol=1e-5, rtol=1e-5)


def test_one_document_trains_the_generator_alone_and_says_so(caplog):
    rag = tiny_system(kind="bert")
    found = gradients(RAGSequence(rag, k=1))[1]
    assert [record.message for record in caplog.records] == [
        "RAGSequence with k=1 trains the generator alone: a prior over one document has no gradient"
    ]
    assert all(bool(gradient.any()) == name.startswith("generator/") for name, gradient in found.items())
    caplog.clear()
    RAGToken(rag, k=2)
    assert not caplog.records


def test_numbers_tell_how_the_documents_are_told_apart():
    rag = tiny_system(kind="bert")
    for form in FORMS:
        objective = form(rag, k=5)
        numbers = objective(BATCH)
        expected = slow(rag, BATCH, objective.find(BATCH), form)
        lengths = [len(rag.generator.target_ids(objective.answer_of(example))) for example in BATCH]
        mean = sum(total / tokens for total, tokens in zip(expected, lengths, strict=True)) / len(BATCH)
        assert numbers["answer_logprob"] == pytest.approx(mean, rel=1e-5)
        assert 0 < numbers["posterior_entropy"] < numbers["prior_entropy"] < math.log(5)
        flat = form(rag, k=5, temperature=1e6)(BATCH)
        assert flat["prior_entropy"] == pytest.approx(math.log(5), abs=1e-5)
        sharp = form(rag, k=5, temperature=1e-6)(BATCH)
        assert (sharp["prior_entropy"], sharp["posterior_entropy"]) == pytest.approx((0, 0), abs=1e-3)
    with torch.no_grad():
        rag.generator.model.lm_head.weight.zero_()  # a generator that has nothing to say of the documents
    for form in FORMS:
        numbers = form(rag, k=5)(BATCH)
        assert numbers["posterior_entropy"] == pytest.approx(numbers["prior_entropy"], rel=1e-5)


def test_the_temperature_is_the_systems_own_unless_given():
    rag = tiny_system(kind="bert")
    rag.temperature = 0.3
    objective = RAGSequence(rag, k=4)
    rows = objective.find(BATCH)
    assert objective(BATCH)["loss"].item() == pytest.approx(
        -sum(slow(rag, BATCH, rows, RAGSequence, tau=0.3)) / len(BATCH), rel=1e-5
    )
    assert RAGSequence(rag, k=4, temperature=0.7).temperature == 0.7


def test_long_documents_cost_no_token_of_the_answer():
    rag = tiny_system(kind="bert")
    long = [Document(f"The key of clerk {n} is {n} . " * 40, id=f"long{n}") for n in range(3)]
    rag.generator.max_length = 160
    answer = "the key of clerk 12 is lost " * 4
    assert len(rag.generator.target_ids(answer)) > rag.generator.max_new_tokens
    objective = RAGSequence(rag, k=3)
    objective.candidates = lambda batch: [long for _ in batch]
    assert torch.isfinite(objective([Example("Which key ?", [answer])])["loss"])


def test_excluded_documents_are_no_candidates():
    rag = tiny_system(kind="bert")
    (row,) = RAGSequence(rag, k=4).find(BATCH[:1])
    assert RAGSequence(rag, k=3, exclude_ids=lambda _: [row[0].id]).find(BATCH[:1]) == [row[1:]]


@pytest.mark.parametrize("form", FORMS)
def test_autocast_leaves_the_marginal_in_float32(form):
    objective = form(tiny_system(kind="bert"), k=4)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = objective(BATCH)["loss"]
    assert loss.dtype == torch.float32
    assert loss.item() == pytest.approx(objective(BATCH)["loss"].item(), rel=2e-2)
    loss.backward()


def test_an_example_without_a_known_answer_is_refused():
    rag = tiny_system()
    batch = [EXAMPLES[0], Example("Which key ?", None, positives=["d1"])]
    with pytest.raises(DataError, match="RAGToken needs an answer to every question, 1 of these 2 examples have"):
        RAGToken(rag, k=3)(batch)


class Echo:
    def generate(self, prompts, *, max_new_tokens=None, stop=None):
        return list(prompts)


def test_settings_are_checked():
    rag = tiny_system(kind="bert")
    for settings in ({"k": 0}, {"chunk": 0}, {"temperature": 0.0}, {"temperature": -1.0}):
        with pytest.raises(ConfigError, match="RAGSequence takes"):
            RAGSequence(rag, **settings)
    with pytest.raises(ConfigError, match="train='all'"):
        RAGToken(rag, train="all")
    with pytest.raises(ConfigError, match="RAGToken needs a CausalLM, the system's generator is a Echo"):
        RAGToken(RAGSystem(retriever=DenseRetriever(rag.dense.encoder, MemoryStore()), generator=Echo()))
    assert not rag.dense.encoder.two_towers  # a refused objective leaves the system as it was
    llama = tiny_llama(vocab=len(tiny_tokenizer()))
    lexical = RAGSystem(retriever=LexicalRetriever(DOCUMENTS), generator=CausalLM(llama, tiny_tokenizer()))
    with pytest.raises(InputError, match="DenseRetriever"):
        RAGSequence(lexical)
