"""RAFT's answers: quotes are word for word, around the answer; reasoning of others is checked."""

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedrag import Document, Example
from fedrag.errors import DataError
from fedrag.objectives.raft import ANSWER, BEGIN, END, raft_answer

PASSAGE = Document(
    "The clerk is Bruno. Keys are rotated every month! Dr. Ada asked: who keeps\nthe key of room 12?  The clerk does.",
    id="p",
)


def quotes(answer):
    return re.findall(f"{BEGIN}(.*?){END}", answer, re.DOTALL)


@pytest.mark.parametrize(
    ("question", "answer", "sentence"),
    [
        ("Who is the clerk?", "Bruno", "The clerk is Bruno."),
        ("How often are keys rotated?", "every month", "Keys are rotated every month!"),
        ("How often are keys rotated?", "EVERY MONTH", "Keys are rotated every month!"),
        ("Which room?", "room 12", "the key of room 12?"),
        ("What is asked?", "who keeps\nthe key", "Ada asked: who keeps\nthe key of room 12?"),  # over a break
        ("Who does?", "the clerk", "The clerk does."),  # of two sentences, the nearer one to the question
        ("Who is it?", "the clerk", "The clerk is Bruno."),
    ],
)
def test_the_sentence_that_holds_the_answer_is_quoted(question, answer, sentence):
    written = raft_answer(Example(question, [answer]), PASSAGE)
    assert written == f"{BEGIN}{sentence}{END} {ANSWER} {answer}"


def test_another_answer_may_be_the_one_that_stands_there():
    written = raft_answer(Example("Who?", ["Bruno the clerk", "Bruno"]), PASSAGE)
    assert written == f"{BEGIN}The clerk is Bruno.{END} {ANSWER} Bruno the clerk"


@pytest.mark.parametrize("answers", [["mont"], ["12th"], ["Rome", "Run"], ["?!"]])
def test_an_answer_inside_a_word_or_elsewhere_is_not_there(answers):
    with pytest.raises(DataError, match=f"none of the {len(answers)} answers stands in document 'p'"):
        raft_answer(Example("Who?", answers), PASSAGE)


@pytest.mark.parametrize("answers", [None, []])
def test_an_example_without_an_answer_is_refused(answers):
    with pytest.raises(DataError, match="needs an example with an answer"):
        raft_answer(Example("Who?", answers), PASSAGE)


PIECES = st.text(st.sampled_from("ab .!?\n-é\u2003"), max_size=12)


@given(PIECES, st.text(st.sampled_from("abc.é$"), min_size=1, max_size=6), PIECES)
def test_quotes_are_verbatim_and_hold_the_answer(before, answer, after):
    document = Document(f"{before} {answer} {after}", id="x")
    written = raft_answer(Example("a b?", [answer]), document)
    (quote,) = quotes(written)
    assert quote
    assert quote in document.text
    assert answer.casefold() in quote.casefold()
    assert written.endswith(f"{END} {ANSWER} {answer}")


SAYS = "The document says {}The clerk is Bruno.{}, and {} Keys are rotated{}."


def test_reasoning_may_quote_what_it_likes_of_the_passage():
    seen = []

    def reason(example, document):
        seen.append((example.question, document))
        return "\n" + SAYS.format(BEGIN, END, BEGIN, END)

    written = raft_answer(Example("Who?", ["nobody"]), PASSAGE, reason=reason)
    assert written == f"{SAYS.format(BEGIN, END, BEGIN, END)} {ANSWER} nobody"
    assert seen == [("Who?", PASSAGE)]


@pytest.mark.parametrize(
    ("reasoning", "complaint"),
    [
        (f"{BEGIN}The clerk is bruno.{END} {BEGIN}Keys{END}", "1 of 2 quotes are not in document 'p'"),
        (f"{BEGIN}Keys are  rotated{END} {BEGIN} {END}", "2 of 2 quotes"),
        ("The clerk is Bruno.", "has 0 quotes"),
        (f"{BEGIN}Keys", "1 times ##begin_quote##, 0 times ##end_quote##"),
        (f"{BEGIN}Keys{BEGIN} are{END}", "2 times ##begin_quote##"),
        (f"{END}Keys{BEGIN}", "has 0 quotes"),
        (f"{BEGIN}Keys{END} {ANSWER} Bruno", "1 times <ANSWER>:"),
    ],
)
def test_reasoning_that_misquotes_is_refused_without_a_word_of_it(reasoning, complaint):
    with pytest.raises(DataError) as caught:
        raft_answer(Example("Who?", ["nobody"]), PASSAGE, reason=lambda example, document: reasoning)
    assert complaint in str(caught.value)
    assert "bruno" not in str(caught.value).lower()


def test_a_passage_with_marks_of_its_own_is_refused():
    with pytest.raises(DataError, match="every one opened and closed"):
        raft_answer(Example("Who?", ["Bruno"]), Document(f"The clerk {END} is Bruno", id="m"))
