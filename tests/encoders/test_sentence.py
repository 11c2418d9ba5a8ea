"""The encoder against sentence-transformers itself, and what its fingerprint notices."""

import math

import pytest
import torch
from sentence_transformers import SentenceTransformer

from fedrag.encoders.sentence import SentenceEncoder
from fedrag.errors import ConfigError, InputError
from tiny import tiny_sentence_transformer

TEXTS = ["the capital of France", "keys are rotated every month by the clerk", "Ada"]


@pytest.fixture(params=["bert", "static"])
def model(request):
    return tiny_sentence_transformer(kind=request.param)


def test_vectors_are_those_of_sentence_transformers(model):
    model.prompts = {"query": "question : ", "document": "passage : "}
    encoder = SentenceEncoder(model)
    queries = torch.tensor(model.encode_query(TEXTS, normalize_embeddings=True))
    documents = torch.tensor(model.encode_document(TEXTS, normalize_embeddings=True))
    torch.testing.assert_close(encoder.encode_queries(TEXTS), queries, atol=1e-6, rtol=1e-5)
    torch.testing.assert_close(encoder.encode_documents(TEXTS), documents, atol=1e-6, rtol=1e-5)
    assert not torch.allclose(queries, documents)


def test_dot_product_models_are_not_normalised_and_dimensions_are_cut():
    model = tiny_sentence_transformer()
    del model[2]  # the Normalize layer
    model.similarity_fn_name = "dot"
    model.truncate_dim = 8
    vectors = SentenceEncoder(model).encode_documents(TEXTS)
    assert vectors.shape == (3, 8)
    assert not torch.allclose(vectors.norm(dim=-1), torch.ones(3))


def test_cosine_models_are_normalised_after_dimensions_are_cut():
    model = tiny_sentence_transformer()
    model.truncate_dim = 8
    vectors = SentenceEncoder(model).encode_documents(TEXTS)
    assert vectors.shape == (3, 8)
    torch.testing.assert_close(vectors.norm(dim=-1), torch.ones(3))


def test_other_similarities_are_refused(model):
    model.similarity_fn_name = "euclidean"
    with pytest.raises(ConfigError, match="'euclidean'"):
        SentenceEncoder(model)


def test_vectors_carry_gradients_to_every_weight(model):
    encoder = SentenceEncoder(model)
    (encoder.encode_queries(TEXTS) @ torch.randn(32)).sum().backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in encoder.parameters())


def test_untying_changes_no_vector_and_no_fingerprint(model):
    encoder = SentenceEncoder(model)
    before = encoder.encode_queries(TEXTS), encoder.encode_documents(TEXTS), encoder.fingerprint
    encoder.untie()
    encoder.untie()
    assert encoder.two_towers
    torch.testing.assert_close(encoder.encode_queries(TEXTS), before[0])
    torch.testing.assert_close(encoder.encode_documents(TEXTS), before[1])
    assert encoder.fingerprint == before[2]
    own = {id(p) for p in encoder.parts()["query"].parameters()}
    assert not own & {id(p) for p in encoder.parts()["document"].parameters()}


def test_the_fingerprint_is_of_the_document_side_alone(model):
    encoder = SentenceEncoder(model)
    encoder.untie()
    before = encoder.fingerprint
    with torch.no_grad():
        next(encoder.parts()["query"].parameters()).add_(1)
    assert encoder.fingerprint == before
    with torch.no_grad():
        next(encoder.parts()["document"].parameters()).add_(1)
    assert encoder.fingerprint != before


@pytest.mark.parametrize("change", ["prompt", "length", "truncation"])
def test_the_fingerprint_notices_settings(change):
    encoder = SentenceEncoder(tiny_sentence_transformer())
    before = encoder.fingerprint
    if change == "prompt":
        encoder.model.prompts = {"document": "passage : "}
    elif change == "length":
        encoder.model.max_seq_length = 7
    else:
        encoder.model.truncate_dim = 4
    assert encoder.fingerprint != before


@pytest.mark.parametrize("towers", [1, 2])
def test_what_is_saved_loads_here_and_in_sentence_transformers(model, towers, tmp_path):
    encoder = SentenceEncoder(model)
    if towers == 2:
        encoder.untie()
        with torch.no_grad():
            for parameter in encoder.parts()["query"].parameters():
                parameter.add_(0.1 * torch.randn_like(parameter))
    encoder.save(tmp_path)
    again = SentenceEncoder.load(tmp_path)
    assert again.fingerprint == encoder.fingerprint
    torch.testing.assert_close(again.encode_queries(TEXTS), encoder.encode_queries(TEXTS))
    plain = torch.tensor(SentenceTransformer(str(tmp_path), device="cpu").encode_query(TEXTS))
    torch.testing.assert_close(plain, encoder.encode_queries(TEXTS).detach(), atol=1e-6, rtol=1e-5)


def test_two_models_make_two_towers():
    query, document = tiny_sentence_transformer(seed=1), tiny_sentence_transformer(seed=2)
    wanted = query.encode(TEXTS), document.encode(TEXTS)
    encoder = SentenceEncoder(query, document_model=document)
    torch.testing.assert_close(encoder.encode_queries(TEXTS).detach(), torch.tensor(wanted[0]), atol=1e-6, rtol=1e-5)
    torch.testing.assert_close(encoder.encode_documents(TEXTS).detach(), torch.tensor(wanted[1]), atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("name", ["document", "passage", "corpus"])
@pytest.mark.parametrize("towers", ["one", "untied", "two models"])
def test_documents_get_their_prompt_whatever_its_name(name, towers):
    model = tiny_sentence_transformer(seed=2)
    model.prompts = {"query": "question : ", name: "passage : "}
    wanted = torch.tensor(model.encode([f"passage : {text}" for text in TEXTS]))
    if towers == "two models":
        encoder = SentenceEncoder(tiny_sentence_transformer(seed=1), document_model=model)
    else:
        encoder = SentenceEncoder(model)
    if towers == "untied":
        encoder.untie()
    torch.testing.assert_close(encoder.encode_documents(TEXTS).detach(), wanted, atol=1e-6, rtol=1e-5)


def test_the_document_prompt_survives_saving_untying_and_the_empty_one_that_the_library_adds(tmp_path):
    model = tiny_sentence_transformer()
    model.prompts = {"query": "query : ", "passage": "passage : "}
    wanted = torch.tensor(model.encode([f"passage : {text}" for text in TEXTS]))
    first = SentenceEncoder(model)
    first.save(tmp_path / "one")
    loaded = SentenceEncoder.load(tmp_path / "one")
    untied = SentenceEncoder.load(tmp_path / "one")
    untied.untie()
    untied.save(tmp_path / "two")
    for encoder in (first, loaded, untied, SentenceEncoder.load(tmp_path / "two")):
        assert encoder.prompt("document") == "passage : "
        assert encoder.fingerprint == first.fingerprint
        torch.testing.assert_close(encoder.encode_documents(TEXTS).detach(), wanted, atol=1e-6, rtol=1e-5)


def test_documents_longer_than_is_read_are_counted():
    model = tiny_sentence_transformer()
    model.max_seq_length = 6
    encoder = SentenceEncoder(model)
    assert encoder.max_length == 6
    words = "the capital of France is Paris ."
    lengths = [len(model.tokenizer(" ".join(words.split()[:n]))["input_ids"]) for n in range(8)]
    assert lengths == list(range(8))
    texts = [" ".join(words.split()[:n]) for n in range(8)]
    assert encoder.too_long(texts) == 1
    assert encoder.too_long(texts[:7]) == 0
    model.prompts = {"passage": "of "}
    assert encoder.too_long(texts) == 2
    encoder.untie()
    assert encoder.too_long(texts) == 2
    vectors = encoder.encode_documents(texts)
    assert torch.equal(vectors[5], vectors[7])  # this is what the count warns of
    assert not torch.equal(vectors[4], vectors[5])


def test_static_models_read_everything():
    encoder = SentenceEncoder(tiny_sentence_transformer(kind="static"))
    assert encoder.max_length == math.inf
    assert encoder.too_long(["word " * 10_000]) == 0


def test_any_text_has_a_vector(model):
    encoder = SentenceEncoder(model)
    for texts in ([""], [" ", ""], ["", "Ada"], ["half \ud800 of a pair"], ["half ? of a pair"]):
        vectors = encoder.encode_queries(texts).detach()
        alone = torch.cat([encoder.encode_documents([text]) for text in texts]).detach()
        torch.testing.assert_close(vectors, alone, atol=1e-6, rtol=1e-5)
        torch.testing.assert_close(vectors.norm(dim=1), torch.tensor([float(bool(text.strip())) for text in texts]))
    half, question = (encoder.encode_queries([f"half {mark} of a pair"]) for mark in ("\ud800", "?"))
    assert torch.equal(half, question)
    assert encoder.too_long(["half \ud800 of a pair " * 50]) == (encoder.max_length < math.inf)


def test_wrong_input_is_named():
    encoder = SentenceEncoder(tiny_sentence_transformer(kind="static"))
    with pytest.raises(InputError, match="one string of 11 characters: wrap it in a list") as caught:
        encoder.encode_queries("confidental")
    assert "confidental" not in str(caught.value)
    with pytest.raises(InputError, match="at least one"):
        encoder.encode_documents([])
    with pytest.raises(InputError, match="a text is a string, got a NoneType"):
        encoder.encode_queries(["a", None])
