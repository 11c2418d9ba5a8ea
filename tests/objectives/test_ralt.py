"""RALT: its loss, token by token; which documents an example's prompts hold; answers are never cut."""

import pytest
import torch

from fedrag import RALT, CausalLM, DenseRetriever, Document, Example, LexicalRetriever, MemoryStore, RAGSystem
from fedrag.errors import BudgetError, ConfigError, DataError
from fedrag.objectives.contexts import Mixture
from fedrag.objectives.marginal import RAGSequence
from systems import DOCUMENTS, EXAMPLES, tiny_system, two_stages
from tiny import tiny_llama, tiny_tokenizer

BATCH = [
    *EXAMPLES[:3],
    Example("Which key is lost ?", ["the key of clerk 12 and of clerk 7", "none"]),
    Example("Why ?", []),
]


def slow(rag, batch, k, per_row):
    """The formula, one token at a time from the full logits of one unpadded text at a time."""
    generator, total = rag.generator, 0.0
    for example in batch:
        target = generator.target_ids(example.answers[0] if example.answers else "")
        assert target[-1] == generator.tokenizer.eos_token_id
        found = [hit.document for hit in rag.retriever.retrieve([example.question], k)[0]] if k else []
        size = per_row or max(k, 1)
        rows = [found[i : i + size] for i in range(0, len(found), size)] or [[]]
        for row in rows:
            prompt = generator.prompt_ids(rag.prompt.render(example.question, row))
            with torch.no_grad():
                logits = generator.model(torch.tensor([prompt + target])).logits[0].double()
            tokens = [torch.log_softmax(logits[len(prompt) + t - 1], -1)[id] for t, id in enumerate(target)]
            total -= float(sum(tokens)) / len(target) / len(rows)
    return total / len(batch)


@pytest.mark.parametrize(("k", "per_row"), [(3, None), (4, 1), (5, 2), (0, None), (0, 1)])
def test_the_loss_is_its_formula(k, per_row):
    rag = tiny_system()
    objective = RALT(rag, k=k, documents_per_row=per_row, shuffle=False)
    expected = slow(rag, BATCH, k, per_row)
    for mode in (True, False):
        assert objective.train(mode)(BATCH)["loss"].item() == pytest.approx(expected, rel=1e-5)


def test_the_number_of_supervised_tokens_is_told():
    rag = tiny_system()
    lengths = [len(rag.generator.target_ids(e.answers[0] if e.answers else "")) for e in BATCH]
    assert RALT(rag, k=3)(BATCH)["answer_tokens"] == pytest.approx(sum(lengths) / len(lengths))
    assert RALT(rag, k=4, documents_per_row=2)(BATCH)["answer_tokens"] == pytest.approx(2 * sum(lengths) / len(lengths))


def test_by_default_as_many_documents_as_asking_shows():
    rag = tiny_system(top_k=4)
    objective = RALT(rag, shuffle=False)
    assert objective(BATCH)["loss"].item() == pytest.approx(slow(rag, BATCH, 4, None), rel=1e-5)
    rag.top_k = 0
    assert RALT(rag).depth == 0


class Prompts(RALT):
    """Keeps the documents of every row."""

    def _rows(self, example, found, dice):
        rows = super()._rows(example, found, dice)
        self.seen = [*getattr(self, "seen", []), *([document.id for document in row] for row in rows)]
        return rows


def test_documents_are_shuffled_in_training_only():
    rag = tiny_system(top_k=6)
    objective = Prompts(rag)
    found = [hit.document.id for hit in rag.retrieve(BATCH[0].question)]
    objective.eval()([BATCH[0]])
    assert objective.seen == [found]
    objective.seen = []
    objective.train()([BATCH[0]] * 6)
    assert len({tuple(row) for row in objective.seen}) > 1
    assert all(sorted(row) == sorted(found) for row in objective.seen)
    plain = Prompts(rag, shuffle=False)
    plain.train()([BATCH[0]])
    assert plain.seen == [found]


@pytest.mark.parametrize("mixed", [False, True])
def test_the_seed_decides_what_is_drawn(mixed):
    rag = tiny_system(top_k=6)
    contexts = Mixture(rag.dense.store, documents=3, gold=0.5, random=0.5) if mixed else None
    objective = RALT(rag, contexts=contexts).train()

    def losses(seed):
        torch.manual_seed(seed)
        return [objective(BATCH)["loss"].item() for _ in range(3)]

    assert losses(1) == losses(1)
    assert losses(1) != losses(2)
    assert len(set(losses(1))) == 3


def test_contexts_decide_what_training_shows_in_which_order():
    rag = tiny_system(top_k=2)
    asked = []

    def contexts(example, retrieved, dice):
        asked.append((example, [document.id for document in retrieved]))
        return [DOCUMENTS[dice.randrange(3)], DOCUMENTS[9], DOCUMENTS[4]]

    objective = Prompts(rag, k=5, contexts=contexts)
    best = [hit.document.id for hit in rag.retrieve(EXAMPLES[0].question, k=5)]
    with torch.no_grad():
        objective.train()([EXAMPLES[0]] * 60)
    assert asked == [(EXAMPLES[0], best)] * 60
    assert {tuple(row) for row in objective.seen} == {(f"d{n}", "d9", "d4") for n in range(3)}
    objective.seen = []
    objective.eval()(EXAMPLES[:1])
    assert objective.seen == [best[:2]]  # what asking shows, whatever there was to choose from
    assert len(asked) == 60


def test_contexts_may_need_nothing_retrieved():
    rag = tiny_system(top_k=2)
    objective = Prompts(rag, k=0, contexts=Mixture(rag.dense.store, documents=2, gold=1.0)).train()
    objective(EXAMPLES[:2])
    assert ["d0" in objective.seen[0], "d1" in objective.seen[1]] == [True, True]
    assert [len(row) for row in objective.seen] == [2, 2]


def test_what_is_excluded_is_in_no_prompt_not_as_a_gold_either():
    rag = tiny_system(top_k=3)
    question = EXAMPLES[0].question
    first, second, *others = [hit.document.id for hit in rag.retrieve(question, k=5)]
    example = Example(question, ["1"], positives=[second])

    def seen(documents, batch):
        contexts = Mixture(rag.dense.store, documents=documents, gold=1.0)
        objective = Prompts(rag, contexts=contexts, exclude_ids=lambda example: [first, *example.positives]).train()
        with torch.no_grad():
            objective(batch)
        return {id for row in objective.seen for id in row}

    assert seen(2, [example] * 40) == set(others)
    everything = {document.id for document in DOCUMENTS}
    assert seen(len(DOCUMENTS), [example]) == everything - {first, second}


def test_long_documents_cost_no_token_of_the_answer():
    rag = tiny_system()
    long = [Document(f"The key of clerk {n} is {n} . " * 40, id=f"long{n}") for n in range(3)]
    rag.generator.max_length = 160
    answer = "the key of clerk 12 is lost " * 4
    tokens = len(rag.generator.target_ids(answer))
    assert tokens > rag.generator.max_new_tokens
    objective = RALT(rag, k=3)
    objective.candidates = lambda batch: [long for _ in batch]
    numbers = objective([Example("Which key ?", [answer])])
    assert numbers["answer_tokens"] == tokens
    assert torch.isfinite(numbers["loss"])
    with pytest.raises(BudgetError, match="max_length"):
        objective([Example("Which key ?", [answer * 10])])


def lexical_system():
    llama = tiny_llama(vocab=len(tiny_tokenizer()))
    return RAGSystem(
        retriever=LexicalRetriever(DOCUMENTS), generator=CausalLM(llama, tiny_tokenizer(), max_new_tokens=4), top_k=2
    )


def test_any_retriever_finds_documents():
    assert torch.isfinite(RALT(lexical_system())(EXAMPLES[:2])["loss"])


def test_an_ensemble_is_trained_as_it_is_asked():
    rag = tiny_system(top_k=3)
    ensemble = RAGSystem(retriever=rag.retriever, generator=rag.generator, top_k=3, reader="ensemble")
    assert RALT(ensemble)(BATCH)["loss"].item() == pytest.approx(slow(rag, BATCH, 3, 1), rel=1e-5)
    stuffed = RALT(ensemble, documents_per_row=3, shuffle=False)
    assert stuffed(BATCH)["loss"].item() == pytest.approx(slow(rag, BATCH, 3, 3), rel=1e-5)


# -- what a row weighs


def parts(rag, batch, k):
    """log p(d | q) and log p(y | q, d) of each example's best k documents: lists of `[k]`."""
    priors, likelihoods = [], []
    for example in batch:
        hits = rag.retrieve(example.question, k=k)
        priors.append(torch.log_softmax(torch.tensor([hit.score for hit in hits]) / rag.temperature, -1))
        prompts = [rag.prompt_for(example.question, [hit.document]) for hit in hits]
        likelihoods.append(rag.generator.logprobs(prompts, [example.answers[0] if example.answers else ""] * len(hits)))
    return priors, likelihoods


@pytest.mark.parametrize("weighting", ["prior", "posterior"])
@pytest.mark.parametrize("mode", [True, False])
def test_rows_weigh_what_their_documents_weigh(weighting, mode):
    rag = tiny_system(top_k=4)
    rag.temperature = 0.3
    expected = 0.0
    for example, prior, likelihood in zip(BATCH, *parts(rag, BATCH, 4), strict=True):
        weight = torch.softmax(prior if weighting == "prior" else prior + likelihood, -1)
        tokens = len(rag.generator.target_ids(example.answers[0] if example.answers else ""))
        expected -= (weight * likelihood).sum().item() / tokens / len(BATCH)
    objective = RALT(rag, documents_per_row=1, weighting=weighting).train(mode)
    assert objective(BATCH)["loss"].item() == pytest.approx(expected, rel=1e-4)


def test_in_two_stages_the_vectors_weigh_what_the_reranker_found():
    plain = tiny_system(top_k=4)
    rag = two_stages(plain)
    objective = RALT(rag, documents_per_row=1, weighting="prior").eval()
    found, expected = objective.find(BATCH), 0.0
    assert found == [[hit.document for hit in rag.retrieve(example.question)] for example in BATCH]
    for example, row in zip(BATCH, found, strict=True):
        cosines = plain.dense.scores([example.question], [row])[0].detach()
        weight = torch.softmax(cosines / 0.05, -1)
        answer = example.answers[0] if example.answers else ""
        logprobs = rag.generator.logprobs([rag.prompt_for(example.question, [d]) for d in row], [answer] * len(row))
        expected -= (weight * logprobs).sum().item() / len(rag.generator.target_ids(answer)) / len(BATCH)
    assert objective(BATCH)["loss"].item() == pytest.approx(expected, rel=1e-4)


def test_examples_with_fewer_documents_weigh_as_much():
    rag = tiny_system(top_k=4)
    objective = RALT(rag, documents_per_row=1, weighting="posterior").eval()
    found = [row[:n] for row, n in zip(objective.find(BATCH), (4, 1, 0, 2, 3), strict=True)]
    objective.candidates = lambda batch: [found[BATCH.index(example)] for example in batch]
    alone = [objective([example])["loss"].item() for example in BATCH]
    assert objective(BATCH)["loss"].item() == pytest.approx(sum(alone) / len(alone), rel=1e-5)


def test_the_posterior_gives_the_generators_half_of_rag_sequence():
    """-log Σ_d p(d | q) p(y | q, d) has the gradient -Σ_d p(d | q, y) ∇ log p(y | q, d): RALT's, times the tokens."""
    rag = tiny_system(kind="bert", top_k=4)
    rag.temperature = 0.3
    batch = [Example(f"Which key has clerk {n} ?", [answer]) for n, answer in enumerate("1209")]
    (tokens,) = {len(rag.generator.target_ids(example.answers[0])) for example in batch}
    weights = list(rag.generator.model.parameters())
    ours = torch.autograd.grad(RALT(rag, documents_per_row=1, weighting="posterior")(batch)["loss"], weights)
    priors, likelihoods = parts(rag, batch, 4)
    by_hand = -torch.stack([torch.logsumexp(p + y, -1) for p, y in zip(priors, likelihoods, strict=True)]).mean()
    library = RAGSequence(rag, k=4)(batch)["loss"]
    assert library.item() == pytest.approx(by_hand.item(), rel=1e-4)
    for loss in (by_hand, library):
        for one, other in zip(ours, torch.autograd.grad(loss, weights), strict=True):
            torch.testing.assert_close(one * tokens, other, atol=1e-5, rtol=1e-3)


def test_the_retriever_is_asked_without_dropout_and_feels_nothing():
    rag = tiny_system(kind="bert", dropout=0.5, top_k=4)
    rag.temperature = 0.3
    encoder = rag.dense.encoder
    objective = RALT(rag, documents_per_row=1, weighting="prior").eval()
    calm, found = objective(BATCH)["loss"], objective.find(BATCH)
    objective.candidates = lambda batch: found
    encoder.train()  # as another objective in the same loop has it
    assert objective(BATCH)["loss"].item() == calm.item()
    assert all(module.training for module in encoder.modules())
    calm.backward()
    assert all(parameter.grad is None for parameter in encoder.parameters())


class Echo:
    def generate(self, prompts, *, max_new_tokens=None, stop=None):
        return list(prompts)


def test_settings_are_checked():
    rag = tiny_system()
    for settings in ({"k": -1}, {"documents_per_row": 0}):
        with pytest.raises(ConfigError, match="RALT takes"):
            RALT(rag, **settings)
    with pytest.raises(ConfigError, match="'uniform', 'prior', 'posterior'"):
        RALT(rag, weighting="likelihood")
    for weighting in ("prior", "posterior"):
        for settings in ({}, {"documents_per_row": 2}):
            with pytest.raises(ConfigError, match=f"{weighting}.*documents_per_row=1"):
                RALT(rag, weighting=weighting, **settings)
        with pytest.raises(ConfigError, match="DenseRetriever, got 1 and a LexicalRetriever"):
            RALT(lexical_system(), documents_per_row=1, weighting=weighting)
    with pytest.raises(ConfigError, match="CausalLM, the system's generator is a Echo"):
        RALT(RAGSystem(retriever=rag.retriever, generator=Echo()))
    rag.generator.model.requires_grad_(False)
    with pytest.raises(ConfigError, match="no parameter there"):
        RALT(rag)


def test_an_answer_that_is_not_known_is_refused():
    objective = RALT(tiny_system())
    assert [objective.answer_of(Example("Why ?", answers)) for answers in (None, [], ["a", "b"])] == [None, "", "a"]
    with pytest.raises(DataError, match="1 of these 1 examples have none"):
        objective([Example("Why ?")])


def test_without_documents_in_the_store_the_prompt_is_closed_book():
    full = tiny_system()
    rag = RAGSystem(retriever=DenseRetriever(full.dense.encoder, MemoryStore()), generator=full.generator, top_k=3)
    assert RALT(rag)(BATCH)["loss"].item() == pytest.approx(slow(rag, BATCH, 0, None), rel=1e-5)
