"""Law 3: the objectives' gradients are what the papers' formulas say, in float64; marginals are distributions."""

import itertools

import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from fedrag import CausalLM, DenseRetriever, Document, Example, MemoryStore, Prompt, RAGSystem, SentenceEncoder
from fedrag.objectives.emdr2 import EMDR2
from fedrag.objectives.marginal import RAGSequence, RAGToken
from fedrag.ops.divergence import forward_kl, reverse_kl
from fedrag.ops.marginal import rag_sequence, rag_token
from fedrag.ops.targets import likelihood, one_hot, posterior, token_posterior
from systems import EXAMPLES, tiny_system
from tiny import tiny_llama, tiny_sentence_transformer

N, K, T = 3, 5, 4
CLOSE = {"rtol": 0, "atol": 1e-10}


@pytest.fixture
def scores():
    return torch.randn(N, K, dtype=torch.float64, requires_grad=True)


@pytest.fixture
def logprobs():
    return -torch.rand(N, K, dtype=torch.float64) * 5


def gradient(loss, scores):
    (result,) = torch.autograd.grad(loss, scores)
    return result


@pytest.mark.parametrize("target", ["one-hot", "likelihood", "posterior"])
def test_forward_kl_pulls_the_scores_towards_the_target(target, scores, logprobs):
    t = {
        "one-hot": one_hot(torch.eye(N, K, dtype=torch.bool)).double(),
        "likelihood": likelihood(logprobs, 0.7),
        "posterior": posterior(scores, logprobs),
    }[target]
    torch.testing.assert_close(gradient(forward_kl(t, scores).sum(), scores), scores.softmax(-1) - t, **CLOSE)


def test_one_hot_forward_kl_is_cross_entropy(scores):
    label = torch.tensor([4, 0, 2])
    t = one_hot(torch.nn.functional.one_hot(label, K).bool()).double()
    expected = torch.nn.functional.cross_entropy(scores, label, reduction="none")
    torch.testing.assert_close(forward_kl(t, scores), expected, **CLOSE)


def test_reverse_kl_has_the_mode_seeking_gradient(scores, logprobs):
    t = likelihood(logprobs)
    p = scores.softmax(-1)
    expected = p * ((p / t).log() - reverse_kl(t, scores).unsqueeze(-1))
    torch.testing.assert_close(gradient(reverse_kl(t, scores).sum(), scores), expected.detach(), **CLOSE)


def test_rag_sequence_trains_the_retriever_towards_the_posterior(scores, logprobs):
    got = gradient(-rag_sequence(scores, logprobs).sum(), scores)
    torch.testing.assert_close(got, scores.softmax(-1) - posterior(scores, logprobs), **CLOSE)


def test_rag_sequence_weighs_the_generator_by_the_posterior(scores, logprobs):
    logprobs = logprobs.requires_grad_()
    got = gradient(rag_sequence(scores, logprobs).sum(), logprobs)
    torch.testing.assert_close(got, posterior(scores, logprobs), **CLOSE)


def test_rag_token_trains_the_retriever_towards_the_summed_token_posteriors(scores):
    tokens = -torch.rand(N, K, T, dtype=torch.float64) * 5
    mask = torch.ones(N, T, dtype=torch.bool)
    got = gradient(-rag_token(scores, tokens, mask).sum(), scores)
    expected = (scores.softmax(-1).unsqueeze(-1) - token_posterior(scores, tokens)).sum(-1)
    torch.testing.assert_close(got, expected.detach(), **CLOSE)


@pytest.mark.parametrize("kernel", [forward_kl, reverse_kl])
def test_finite_differences_agree(kernel, logprobs):
    scores = torch.randn(N, K, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda s: kernel(likelihood(logprobs), s), (scores,))


@pytest.mark.parametrize("kernel", [forward_kl, reverse_kl])
def test_order_of_candidates_and_a_constant_change_nothing(kernel, scores, logprobs):
    order = torch.randperm(K)
    t = likelihood(logprobs)
    torch.testing.assert_close(kernel(t[:, order], scores[:, order]), kernel(t, scores), **CLOSE)
    torch.testing.assert_close(kernel(t, scores + 7), kernel(t, scores), **CLOSE)


def test_both_marginals_sum_to_one_over_all_answers():
    """Enumerate every answer of three tokens over a vocabulary of three, each document with its own tiny LM."""
    vocabulary, length, k = 3, 3, 4
    scores = torch.randn(1, k, dtype=torch.float64)
    table = {
        prefix: torch.randn(k, vocabulary, dtype=torch.float64).log_softmax(-1)
        for size in range(length)
        for prefix in itertools.product(range(vocabulary), repeat=size)
    }
    mask = torch.ones(1, length, dtype=torch.bool)
    sequence = token = 0.0
    for answer in itertools.product(range(vocabulary), repeat=length):
        logprobs = torch.stack([table[answer[:t]][:, answer[t]] for t in range(length)], -1).unsqueeze(0)  # [1, k, t]
        sequence += rag_sequence(scores, logprobs.sum(-1)).exp().item()
        token += rag_token(scores, logprobs, mask).exp().item()
    assert sequence == pytest.approx(1, abs=1e-12)
    assert token == pytest.approx(1, abs=1e-12)


MARGINALS = {
    "sequence": lambda rag: RAGSequence(rag, k=K),
    "sequence-both": lambda rag: RAGSequence(rag, k=K, train="both", chunk=2),
    "token": lambda rag: RAGToken(rag, k=K, chunk=None),
    "emdr2": lambda rag: EMDR2(rag, k=K),
    "emdr2-token": lambda rag: EMDR2(rag, k=K, form="token"),
}


@pytest.mark.parametrize("name", MARGINALS)
def test_objectives_move_towards_the_posterior(name):
    """The whole way to the weights: the retriever by P - posterior, the generator by its documents' posteriors."""
    rag = tiny_system(kind="bert")
    rag.dense.encoder.double()
    rag.generator.double()
    objective = MARGINALS[name](rag)
    batch = [*EXAMPLES[: N - 1], Example("Why ?", ["the key of clerk 12"])]
    rows = [[hit.document for hit in row][:size] for row, size in zip(hits_of(rag, batch), (K, 2, 4), strict=True)]
    objective.candidates = lambda _: rows
    parameters = objective.trainable()
    got = torch.autograd.grad(objective(batch)["loss"], list(parameters.values()), allow_unused=True)

    scores = objective.prior_scores(batch, rows)
    tokens, mask = objective.answer_logprobs(batch, rows)
    if objective.form == "sequence":
        share = posterior(scores, tokens.sum(-1))  # [n, k]
        pull, weight = scores.detach().softmax(-1) - share, share.unsqueeze(-1)
    else:
        weight = token_posterior(scores, tokens) * mask.unsqueeze(1)  # [n, k, t]
        pull = (scores.detach().softmax(-1).unsqueeze(-1) * mask.unsqueeze(1) - weight).sum(-1)
    if isinstance(objective, EMDR2):
        prompts = [rag.prompt_for(example.question, row) for example, row in zip(batch, rows, strict=True)]
        told = rag.generator.logprobs(prompts, objective.answers(batch)).sum()
    else:
        told = (weight * tokens).sum()
    finite = torch.where(torch.isfinite(scores), scores, 0.0)
    surrogate = ((pull * finite).sum() - told) / N
    expected = torch.autograd.grad(surrogate, list(parameters.values()), allow_unused=True)
    for place, one, other in zip(parameters, got, expected, strict=True):
        assert one.dtype == torch.float64
        torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-10, msg=lambda text, place=place: f"{place}: {text}")
    assert max(float(one.abs().max()) for one in got) > 1e-3


def hits_of(rag, batch):
    rag.dense.refresh(progress=False)
    return rag.retriever.retrieve([example.question for example in batch], K)


WORDS = ["one", "two", "three"]


def answering_system():
    """A system whose generator knows an end token and three words."""
    words = Tokenizer(models.WordLevel({"</s>": 0, **{word: n for n, word in enumerate(WORDS, 1)}}, unk_token="one"))
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    llama = tiny_llama(vocab=4, positions=64, pad_token_id=0, bos_token_id=None, eos_token_id=0).double()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=words, eos_token="</s>", pad_token="</s>")
    store = MemoryStore()
    rag = RAGSystem(
        retriever=DenseRetriever(SentenceEncoder(tiny_sentence_transformer()), store),
        generator=CausalLM(llama, tokenizer, max_new_tokens=4),
        prompt=Prompt(template="{question} {documents}", document_template="{text}"),
        temperature=0.3,
    )
    rag.dense.encoder.double()
    rag.add([Document(text) for text in ("one two", "two two three", "three one", "two")], progress=False)
    return rag


@pytest.mark.parametrize("form", [RAGSequence, RAGToken])
def test_objectives_give_all_answers_together_the_probability_one(form):
    """Every answer of up to two words and its end, through the loss, and the rest: all that begins with three words."""
    objective = form(answering_system(), k=4).eval()

    def ask(words):
        return [Example("three two", [" ".join(words)])]

    total = 0.0
    with torch.no_grad():
        for length in range(3):
            for words in itertools.product(WORDS, repeat=length):
                total += torch.exp(-objective(ask(words))["loss"]).item()
        assert 0.01 < total < 0.99
        for words in itertools.product(WORDS, repeat=3):
            batch = ask(words)
            documents = objective.candidates(batch)
            tokens, mask = objective.answer_logprobs(batch, documents)
            assert mask.tolist() == [[True] * 4]
            begun = objective.log_likelihood(objective.prior_scores(batch, documents), tokens[..., :3], mask[:, :3])
            total += begun.exp().item()
    assert total == pytest.approx(1, abs=1e-10)
