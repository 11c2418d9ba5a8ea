from hypothesis import given
from hypothesis import strategies as st

from fedrag.generators.decoding import cut, visible

STOPS = st.lists(st.text("ab\n ", min_size=1, max_size=3), max_size=3)


@given(text=st.text("ab\n \ufffd", max_size=12), stop=STOPS)
def test_what_is_visible_is_never_taken_back(text: str, stop: list[str]):
    final = cut(text, stop)
    shown = ""
    for end in range(len(text) + 1):
        seen = visible(text[:end], stop)
        assert final.startswith(seen)
        assert seen.startswith(shown)
        shown = seen
    assert not any(s in final for s in stop if s.strip() == s)


def test_cut_takes_the_earliest_stop_string():
    assert cut(" Paris\nQuestion: Rome?", ["Rome", "\nQ"]) == "Paris"
    assert cut("Paris ", []) == "Paris"
    assert cut("Q: x", ["Q"]) == ""


def test_an_incomplete_character_is_held_back():
    assert visible("caf\ufffd", []) == "caf"
