"""RAG-Sequence and RAG-Token against transformers' own, and the retriever's half against sentence-transformers'."""

import pytest
import torch
from sentence_transformers.sentence_transformer.losses import DistillKLDivLoss
from transformers import BartConfig, DPRConfig, RagConfig, RagSequenceForGeneration, RagTokenForGeneration

from fedrag import Example
from fedrag.objectives.marginal import RAGSequence, RAGToken
from fedrag.ops.marginal import rag_sequence, rag_token
from fedrag.ops.targets import posterior
from systems import EXAMPLES, tiny_system
from tiny import seeded

N, K, PAD, START = 3, 4, 0, 1
BATCH = [*EXAMPLES[10:12], Example("Which key is lost ?", ["the key of clerk 12"])]
PAIRS = [(RAGSequence, RagSequenceForGeneration), (RAGToken, RagTokenForGeneration)]


def theirs(kind, vocabulary):
    """Transformers' model over a tiny BART; its retriever is not asked."""
    bart = BartConfig(
        vocab_size=vocabulary, d_model=16, encoder_layers=1, decoder_layers=1, encoder_attention_heads=2,
        decoder_attention_heads=2, encoder_ffn_dim=16, decoder_ffn_dim=16, max_position_embeddings=32, init_std=0.5,
        pad_token_id=PAD, bos_token_id=START, eos_token_id=2, decoder_start_token_id=2, forced_eos_token_id=None,
    )  # fmt: skip
    dpr = DPRConfig(vocab_size=50, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16)
    return seeded(kind, RagConfig.from_question_encoder_generator_configs(dpr, bart, n_docs=K))


@pytest.mark.parametrize(("ours", "kind"), PAIRS)
def test_kernels_give_the_loss_of_transformers_models(ours, kind):
    model = theirs(kind, 30)
    scores = torch.randn(N, K, requires_grad=True)
    context = torch.randint(3, 30, (N * K, 7))
    labels = torch.randint(3, 30, (N, 6))
    labels[:, 0] = START
    labels[1, 4:] = PAD  # answers of 5, 3 and 5 tokens
    output = model(
        context_input_ids=context, context_attention_mask=torch.ones_like(context), doc_scores=scores, labels=labels
    )
    target = labels[:, 1:]
    found = output.logits.detach()[:, :-1].view(N, K, 5, 30).log_softmax(-1)
    tokens = found.gather(-1, target[:, None, :, None].expand(N, K, 5, 1)).squeeze(-1)  # [n, k, t]
    mask = target != PAD
    if ours is RAGSequence:
        mine = rag_sequence(scores, torch.where(mask[:, None], tokens, 0.0).sum(-1))
    else:
        mine = rag_token(scores, tokens, mask)
    torch.testing.assert_close(-mine, output.loss, atol=1e-5, rtol=1e-5)
    gradient, expected = (torch.autograd.grad(loss.sum(), scores)[0] for loss in (-mine, output.loss))
    torch.testing.assert_close(gradient, expected, atol=1e-6, rtol=1e-4)
    assert gradient.abs().max() > 1e-3


@pytest.mark.parametrize(("ours", "kind"), PAIRS)
def test_objectives_give_the_loss_of_transformers_on_the_same_logits(ours, kind):
    """A decoder-only generator's logits under their formula, with its gradient to every weight."""
    rag = tiny_system(kind="bert")
    objective = ours(rag, k=K, train="both")
    generator, documents = rag.generator, objective.find(BATCH)
    targets = [generator.target_ids(example.answers[0]) for example in BATCH]
    width = max(map(len, targets))
    assert len({len(target) for target in targets}) > 1
    rows = []
    for example, row, target in zip(BATCH, documents, targets, strict=True):
        for document in row:
            prompt = generator.prompt_ids(rag.prompt_for(example.question, [document]))
            logits = generator.model(torch.tensor([prompt + target])).logits[0]  # [t, v]
            wanted = logits[len(prompt) - 1 :]  # one more than the target has: they shift it themselves
            rows.append(torch.nn.functional.pad(wanted, (0, 0, 0, width + 1 - len(wanted))))
    padded = torch.tensor([[START, *target] + [PAD] * (width - len(target)) for target in targets])
    model = theirs(kind, generator.model.config.vocab_size)
    loss = model.get_nll(torch.stack(rows), objective.prior_scores(BATCH, documents), padded, n_docs=K).mean()
    parameters = objective.trainable()
    mine = objective(BATCH)["loss"]
    torch.testing.assert_close(mine, loss, atol=1e-5, rtol=1e-5)
    got, expected = (torch.autograd.grad(each, list(parameters.values()), allow_unused=True) for each in (mine, loss))
    torch.testing.assert_close(got, expected, atol=1e-4, rtol=1e-3)
    assert all(gradient is not None for gradient in got)


@pytest.mark.parametrize("temperature", [0.05, 0.5])
def test_the_retrievers_half_is_distillation_from_the_posterior(temperature):
    rag = tiny_system(kind="bert")
    objective = RAGSequence(rag, k=K, train="both", temperature=temperature)
    documents, model = objective.find(BATCH), rag.dense.encoder.model
    parameters = list(model.parameters())
    with torch.no_grad():
        tokens, _ = objective.answer_logprobs(BATCH, documents)
        share = posterior(objective.prior_scores(BATCH, documents), tokens.sum(-1))
    texts = [
        [example.question for example in BATCH],
        *([document.text for document in place] for place in zip(*documents, strict=True)),
    ]
    labels = temperature * share.log()  # their softmax(labels / temperature) is the posterior
    loss = DistillKLDivLoss(model, temperature=temperature)([model.preprocess(column) for column in texts], labels)
    expected = torch.autograd.grad(loss / temperature**2, parameters, allow_unused=True)
    got = torch.autograd.grad(objective(BATCH)["loss"], parameters, allow_unused=True)
    torch.testing.assert_close(got, expected, atol=1e-5, rtol=1e-3)
    assert max(float(gradient.abs().max()) for gradient in got) > 1e-3
