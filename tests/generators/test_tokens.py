import time
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from fedrag.errors import ConfigError, InputError
from fedrag.generators.tokens import PromptTokenizer
from tiny import TEXT, Kind, tiny_tokenizer

KINDS: list[Kind] = ["bpe", "metaspace", "wordpiece", "word"]
CONTROLS = ["<|im_start|>", "<|im_end|>", "<s>", "</s>", "<pad>"]
WORDS = sorted(set(TEXT.split()))
HOSTILE = st.lists(
    st.sampled_from([*CONTROLS, "<|im_", "end|>", "system\n", " ", "<s", "Paris", "\ue000inside\ue000"])
    | st.text(max_size=4),
    max_size=12,
).map("".join)
BENIGN = st.lists(st.sampled_from(WORDS), min_size=1, max_size=12).map(" ".join)


def controls_in(wrapped: Any, ids: list[int]) -> list[int]:
    known = {wrapped.convert_tokens_to_ids(text) for text in CONTROLS} - {wrapped.unk_token_id}
    return [i for i in ids if i in known]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("chat", [False, True])
@given(text=HOSTILE)
def test_no_text_becomes_a_control_token(kind: Kind, chat: bool, text: str):
    wrapped = tiny_tokenizer(kind, chat=chat, bos=True)
    tokens = PromptTokenizer(wrapped)
    assert controls_in(wrapped, tokens.prompt_ids(text)) == controls_in(wrapped, tokens.prompt_ids("a"))
    assert controls_in(wrapped, tokens.target_ids(text)) == [tokens.eos_id]


PHI = (
    "{% for m in messages %}{{ '<|' + m.role + '|>' + m.content + '<|im_end|>' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|' + 'assistant' + '|>' }}{% endif %}"
)  # writes control tokens that stand nowhere in it
OTHERS = ["<|user|>", "<|assistant|>", "<|file_sep|>"]  # added, and not special


@pytest.mark.parametrize("template", [None, PHI])
@given(text=HOSTILE, where=st.sampled_from([0, 1, 2]), other=st.sampled_from([*OTHERS, ""]))
def test_no_message_becomes_a_control_token(template: str | None, text: str, where: int, other: str):
    wrapped = tiny_tokenizer("bpe", chat=True, bos=True)
    wrapped.add_tokens([AddedToken(token, special=False, normalized=False) for token in OTHERS])
    wrapped.chat_template = template or wrapped.chat_template
    tokens = PromptTokenizer(wrapped)

    def controls(content: str) -> list[int]:
        talk = [{"role": role, "content": "Rome"} for role in ("user", "assistant", "user")]
        talk[where] = talk[where] | {"content": content}
        known = {wrapped.convert_tokens_to_ids(token) for token in (*CONTROLS, *OTHERS)}
        return [i for i in tokens.chat_ids(talk) if i in known]

    assert controls(text + other + text) == controls("a")
    assert wrapped.chat_control_tokens is None


@pytest.mark.parametrize("token", ["</s>", "<unk>", "<|im_end|>"])
def test_a_control_token_that_is_a_word_of_the_vocabulary_is_refused_in_a_message(token: str):
    tokens = PromptTokenizer(tiny_tokenizer("word", chat=True))
    with pytest.raises(InputError, match="cannot write as plain text"):
        tokens.chat_ids([{"role": "user", "content": f"Who {token} ?"}])


def test_a_naive_tokenizer_would_have_let_them_in():
    wrapped = tiny_tokenizer(chat=True)
    assert controls_in(wrapped, wrapped.encode("a <|im_end|> b"))


@given(text=HOSTILE.map(lambda text: text.replace("\ue000inside\ue000", "")))
def test_neutralised_text_decodes_to_the_same_characters(text: str):
    wrapped = tiny_tokenizer("bpe", chat=True)
    body = PromptTokenizer(wrapped, chat=False).prompt_ids(text)
    assert wrapped.decode(body, skip_special_tokens=False) == text


def test_added_tokens_that_look_like_markup_are_control_and_added_words_are_not():
    wrapped = tiny_tokenizer()
    wrapped.add_tokens([AddedToken("<tool_call>", special=False), AddedToken("fedragish", special=False)])
    tool, word = wrapped.convert_tokens_to_ids(["<tool_call>", "fedragish"])
    ids = PromptTokenizer(wrapped).prompt_ids("say <tool_call> fedragish")
    assert tool not in ids
    assert word in ids


@pytest.mark.parametrize("kind", KINDS)
@given(text=BENIGN)
def test_a_chat_prompt_is_what_the_template_gives(kind: Kind, text: str):
    wrapped = tiny_tokenizer(kind, chat=True)
    message = [{"role": "user", "content": text}]
    assert PromptTokenizer(wrapped).prompt_ids(text) == wrapped.apply_chat_template(
        message, add_generation_prompt=True, return_dict=False
    )


@pytest.mark.parametrize("scheme", ["first", "always", "never"])
def test_a_chat_prompt_of_a_sentencepiece_model_is_what_the_template_gives(scheme: str):
    wrapped = tiny_tokenizer("metaspace", chat=True)
    wrapped.backend_tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme=scheme)
    wrapped.add_special_tokens(
        {"additional_special_tokens": [AddedToken("<|user|>", rstrip=True), AddedToken("<|end|>", lstrip=True)]}
    )
    for template in (
        "{{ bos_token }}[INST] {{ messages[0].content }} [/INST]",
        "<|user|>\n{{ messages[0].content }} <|end|>\n",
    ):
        wrapped.chat_template = template
        expected = wrapped.apply_chat_template([{"role": "user", "content": "Paris is the road"}], return_dict=False)
        assert PromptTokenizer(wrapped).prompt_ids("Paris is the road") == expected


def test_a_template_that_can_think_is_asked_not_to():
    wrapped = tiny_tokenizer(chat=True)
    wrapped.chat_template += (
        "{% if enable_thinking is defined and not enable_thinking %}<think>\n\n</think>\n{% endif %}"
    )
    assert wrapped.decode(PromptTokenizer(wrapped).prompt_ids("Paris")).endswith("assistant\n<think>\n\n</think>\n")


@pytest.mark.parametrize("kind", KINDS)
@given(text=BENIGN)
def test_a_plain_prompt_is_what_the_tokenizer_gives(kind: Kind, text: str):
    for bos in (False, True):
        wrapped = tiny_tokenizer(kind, bos=bos)
        assert PromptTokenizer(wrapped).prompt_ids(text) == wrapped.encode(text)


def test_what_a_tokenizer_puts_after_a_text_is_not_put_after_a_prompt():
    wrapped = tiny_tokenizer()
    wrapped.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", special_tokens=[("<s>", 1), ("</s>", 2)]
    )
    tokens = PromptTokenizer(wrapped)
    assert wrapped.encode("Paris")[-1] == 2
    assert tokens.prompt_ids("Paris")[0] == 1
    assert 2 not in tokens.prompt_ids("Paris")
    assert tokens.target_ids("Paris").count(2) == 1


@pytest.mark.parametrize("kind", KINDS)
def test_prompt_and_target_read_as_one_text_with_one_space_between(kind: Kind):
    wrapped = tiny_tokenizer(kind)
    tokens = PromptTokenizer(wrapped)
    ids = [*tokens.prompt_ids("Answer :"), *tokens.target_ids("  Paris \n")]
    assert tokens.decode(ids).lower() == "answer : paris"
    assert tokens.target_ids("") == [wrapped.eos_token_id]


def test_merges_do_not_cross_from_the_prompt_into_the_target():
    backend = Tokenizer(models.BPE({"</s>": 0, "a": 1, "b": 2, "Ġ": 3, "Ġb": 4, "aĠ": 5}, [("a", "Ġ"), ("Ġ", "b")]))
    backend.decoder = decoders.ByteLevel()
    backend.normalizer = normalizers.Replace(" ", "Ġ")
    wrapped = PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="</s>")
    assert wrapped.encode("a b") == [5, 2]  # the joint text merges across the border
    tokens = PromptTokenizer(wrapped)
    assert [*tokens.prompt_ids("a"), *tokens.target_ids("b")] == [1, 4, 0]


@pytest.mark.parametrize("kind", KINDS)
@given(text=HOSTILE | BENIGN, limit=st.integers(-1, 30))
@settings(max_examples=60)
def test_cut_gives_a_prefix_within_the_limit(kind: Kind, text: str, limit: int):
    tokens = PromptTokenizer(tiny_tokenizer(kind))
    part = tokens.cut(text, limit)
    assert text.startswith(part)
    assert tokens.count(part) <= max(limit, 0)
    if tokens.count(text) <= limit:
        assert part == text


def test_cut_keeps_as_much_as_fits():
    tokens = PromptTokenizer(tiny_tokenizer("word"))
    assert tokens.cut("The capital of France is Paris .", 4) == "The capital of France"


@pytest.mark.parametrize("kind", KINDS)
def test_cut_of_a_long_text_is_that_of_its_beginning_and_reads_little_more(kind: Kind):
    tokens = PromptTokenizer(tiny_tokenizer(kind))
    gaps = " " * 5000
    text = f"The clerk{gaps}of Rome " + "The capital of France is Paris . " * 200
    ends = [end for _, end in tokens._plain.encode(text, add_special_tokens=False).offsets]
    for limit in (1, 4, 40, 400):
        assert tokens.cut(text, limit) == text[: ends[limit - 1]]
    started = time.process_time()
    tokens.cut(text + "Paris " * 2_000_000, 400)
    assert time.process_time() - started < 1.0


def test_a_tokenizer_without_padding_pads_with_its_end_token_and_does_not_grow():
    backend = Tokenizer(models.WordLevel({"<unk>": 0, "</s>": 1}, unk_token="<unk>"))
    wrapped = PreTrainedTokenizerFast(tokenizer_object=backend, unk_token="<unk>", eos_token="</s>")
    assert PromptTokenizer(wrapped).pad_id == 1
    assert len(wrapped) == 2


def test_tokenizers_that_cannot_serve_are_refused_with_the_next_step():
    backend = Tokenizer(models.WordLevel({"<unk>": 0, "a": 1}, unk_token="<unk>"))
    with pytest.raises(ConfigError, match="eos_token"):
        PromptTokenizer(PreTrainedTokenizerFast(tokenizer_object=backend, unk_token="<unk>"))
    with pytest.raises(ConfigError, match="no chat template"):
        PromptTokenizer(tiny_tokenizer(), chat=True)
    twice = tiny_tokenizer(chat=True)
    twice.chat_template = "{{ messages[0].content }} {{ messages[0].content }}"
    with pytest.raises(ConfigError, match="2 times"):
        PromptTokenizer(twice)

    class Slow:
        eos_token_id = 1

    with pytest.raises(ConfigError, match="Slow is not a fast tokenizer"):
        PromptTokenizer(Slow())  # type: ignore[arg-type]


@pytest.mark.parametrize("kind", KINDS)
def test_the_fingerprint_survives_saving_and_tells_frames_apart(kind: Kind, tmp_path: Path):
    wrapped = tiny_tokenizer(kind, chat=True)
    wrapped.save_pretrained(tmp_path)
    wrapped(["Paris", "a longer text"], padding=True, truncation=True, max_length=3)  # leaves settings in the backend
    one, two = PromptTokenizer(wrapped), PromptTokenizer(AutoTokenizer.from_pretrained(tmp_path))
    assert one.fingerprint == two.fingerprint
    assert one.fingerprint != PromptTokenizer(wrapped, chat=False).fingerprint
    assert one.prompt_ids("Paris is a longer text") == two.prompt_ids("Paris is a longer text")
