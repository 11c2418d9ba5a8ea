import re
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedrag.errors import BudgetError, ConfigError
from fedrag.generators.tokens import PromptTokenizer
from fedrag.prompts import Prompt
from fedrag.types import Document
from tiny import Kind, tiny_tokenizer

TEXTS = st.text(max_size=60) | st.lists(
    st.sampled_from(["Paris", "{text}", "the", "<|im_end|>", "\n", "ü"]), max_size=40
).map(" ".join)


class Budget:
    """A tokenizer with a length: all that `fit` needs of a generator."""

    def __init__(self, kind: Kind, max_length: int, chat: bool = False) -> None:
        tokens = PromptTokenizer(tiny_tokenizer(kind, bos=True, chat=chat))
        self.max_length, self.prompt_ids, self.count, self.cut = max_length, tokens.prompt_ids, tokens.count, tokens.cut


def test_braces_and_template_fields_in_text_survive():
    prompt = Prompt(document_template="[{number}] {title}: {text}")
    question = "What does {documents} or {0} or {{question}} mean?"
    document = Document("It is {question} and %s and {title}.", metadata={"title": "On {text}"})
    assert prompt.render(question, [document]) == (
        "Answer the question from the documents.\nQuestion: What does {documents} or {0} or {{question}} mean?\n"
        "Documents:\n[1] On {text}: It is {question} and %s and {title}.\nAnswer:"
    )


@given(question=TEXTS, texts=st.lists(TEXTS, max_size=4))
def test_every_text_is_in_the_prompt_verbatim(question: str, texts: list[str]):
    rendered = Prompt().render(question, [Document(text, id=str(i)) for i, text in enumerate(texts)])
    expected = "\n".join(f"[{i}] {text}" for i, text in enumerate(texts, 1))
    assert rendered == (
        f"Answer the question from the documents.\nQuestion: {question}\nDocuments:\n{expected}\nAnswer:"
    )


def test_the_question_comes_before_the_documents_so_that_candidates_share_a_prefix():
    one, other = (Prompt().render("Who?", [Document(text)]) for text in ("Ada wrote.", "Bruno read."))
    assert one.split("[1]")[0] == other.split("[1]")[0]
    assert "Who?" in one.split("[1]")[0]


def test_order_puts_the_best_document_first_or_next_to_the_answer():
    documents = [Document("best"), Document("second"), Document("third")]
    assert re.findall(r"\[\d\] (\w+)", Prompt().render("q", documents)) == ["best", "second", "third"]
    assert re.findall(r"\[\d\] (\w+)", Prompt(order="best_last").render("q", documents)) == ["third", "second", "best"]


def test_missing_metadata_is_empty_and_no_documents_is_a_prompt():
    assert Prompt(document_template="<{title}> {text}").render("q", [Document("t")]).endswith("<> t\nAnswer:")
    assert Prompt().render("q", []).endswith("Documents:\n\nAnswer:")


@pytest.mark.parametrize(
    ("settings", "names"),
    [
        ({"template": "Q: {question}"}, "documents"),
        ({"template": "{question} {documents} {context}"}, "context"),
        ({"document_template": "[{number}]"}, "{text}"),
        ({"order": "worst_first"}, "worst_first"),
    ],
)
def test_impossible_settings_are_refused_by_name(settings: dict[str, str], names: str):
    with pytest.raises(ConfigError, match=re.escape(names)):
        Prompt(**settings)  # type: ignore[arg-type]


@pytest.mark.parametrize("kind", ["bpe", "metaspace", "wordpiece", "word"])
@given(
    question=TEXTS,
    texts=st.lists(TEXTS, max_size=5),
    length=st.integers(1, 250),
    reserve=st.integers(0, 40),
    chat=st.booleans(),
)
@settings(max_examples=60, deadline=None)
def test_a_fitted_prompt_fits_and_keeps_the_question(
    kind: Kind, question: str, texts: list[str], length: int, reserve: int, chat: bool
):
    generator, prompt = Budget(kind, length, chat), Prompt()
    documents = [Document(text, id=str(i)) for i, text in enumerate(texts)]
    try:
        fitted = prompt.fit(question, documents, generator, reserve=reserve)
    except BudgetError:
        assert len(generator.prompt_ids(prompt.render(question, []))) + reserve > length
        return
    assert len(generator.prompt_ids(fitted)) + reserve <= length
    assert f"Question: {question}\nDocuments:\n" in fitted
    assert fitted.endswith("Answer:")
    if len(generator.prompt_ids(prompt.render(question, documents))) + reserve <= length:
        assert fitted == prompt.render(question, documents)


def test_the_longest_documents_are_cut_first_and_to_one_length():
    generator = Budget("word", 40)
    texts = ["the clerk", " ".join(["Paris"] * 30), " ".join(["Rome"] * 50), "the river"]
    fitted = Prompt().fit("Who wrote", [Document(text) for text in texts], generator, reserve=3)
    assert "the clerk\n" in fitted
    assert "the river\n" in fitted
    assert fitted.count("Paris") == fitted.count("Rome") > 0
    assert len(generator.prompt_ids(fitted)) + 3 in (39, 40)  # the budget is used up to one token per cut document


def test_the_budget_holds_where_parts_of_a_text_have_more_tokens_than_they_had_in_it():
    generator = Budget("bpe", 106)
    texts = [
        "ParisclerklongerParisthea!!!",
        "##x foo.bar \U0001f600 ##x clerk Paris <|im_end|> Paris road road <|im_end|> ##x",
        "foo.bar clerk football zürich \U0001f600 book clerk ##x longer \U0001f600 ##x Rome foo.bar book !!! clerk",
        "clerk the clerk clerk river Paris <|im_end|> book river the river road book book road Rome road",
    ]
    fitted = Prompt().fit("Who", [Document(text) for text in texts], generator, reserve=0)
    assert 100 <= len(generator.prompt_ids(fitted)) <= 106


def test_the_documents_that_are_written_are_told():
    generator, prompt = Budget("word", 40), Prompt(order="best_last")
    documents = [Document("the clerk", id="a"), Document("Paris " * 50, id="b", metadata={"rank": 2})]
    written = prompt.fit_documents("Who wrote", documents, generator, reserve=3)
    assert written[0] is documents[0]
    assert (written[1].id, written[1].metadata) == ("b", {"rank": 2})
    assert 1 < written[1].text.count("Paris") < 40
    assert documents[1].text.startswith(written[1].text)
    assert prompt.render("Who wrote", written) == prompt.fit("Who wrote", documents, generator, reserve=3)
    frame = Prompt(document_template="<{rank}> {text}")
    many = [Document("Paris Rome", id=str(i), metadata={"rank": i}) for i in range(20)]
    some = frame.fit_documents("Who wrote", many, Budget("word", 20), reserve=2)
    assert [d.id for d in some] == [d.id for d in many[: len(some)]]
    assert 0 < len(some) < 20


@pytest.mark.parametrize("kind", ["bpe", "wordpiece"])
def test_books_are_fitted_at_the_cost_of_what_is_kept(kind: Kind):
    generator = Budget(kind, 2000)
    books = [Document("The capital of France is Paris . " * 26_400, id=str(i)) for i in range(5)]  # 870,000 characters
    started = time.process_time()
    fitted = Prompt().fit("Who", books, generator, reserve=100)
    assert time.process_time() - started < 2.0
    assert 1880 <= len(generator.prompt_ids(fitted)) <= 1900


def test_documents_are_left_out_from_the_end_where_even_empty_ones_are_too_many():
    generator, frame = Budget("word", 20), Prompt(document_template="<{rank}> {text}")
    documents = [Document("Paris Rome", id=str(i), metadata={"rank": i}) for i in range(20)]
    fitted = frame.fit("Who wrote", documents, generator, reserve=2)
    kept = [int(rank) for rank in re.findall(r"<(\d+)>", fitted)]
    assert 0 < len(kept) < 20
    assert kept == list(range(len(kept)))  # the best ones, which may be the last ones of the prompt
    assert len(generator.prompt_ids(fitted)) + 2 <= 20
    last = Prompt(document_template=frame.document_template, order="best_last")
    fitted = last.fit("Who wrote", documents, generator, reserve=2)
    assert [int(rank) for rank in re.findall(r"<(\d+)>", fitted)] == kept[::-1]


def test_a_question_that_does_not_fit_alone_is_a_budget_error_with_the_numbers():
    generator = Budget("word", 30)
    with pytest.raises(BudgetError, match=r"max_length=30.*shorten the question"):
        Prompt().fit("Who wrote " * 30, [Document("Paris")], generator, reserve=5)


def test_an_answer_that_takes_the_room_is_the_one_to_shorten():
    with pytest.raises(BudgetError, match=r"the answer 28: .*max_length=30; shorten the answer, lower max_new_tokens"):
        Prompt().fit("Who wrote", [Document("Paris")], Budget("word", 30), reserve=28)
