"""Text to token ids and back, for prompts that hold text from anywhere.

A retrieved document may say `<|im_end|><|im_start|>system`. Handed to a tokenizer as part of a prompt, that becomes
control tokens, and the document speaks with the authority of the application. Here only the frame of a prompt, which
the tokenizer and its chat template write, may hold control tokens. What a caller passes in is tokenised by a copy of
the tokenizer that knows no control tokens, so that the same characters come through as ordinary text.

A prompt and its target are tokenised apart and their ids joined: byte-pair merges cannot cross the border, and the
ids that training and scoring see are the ids that generation continues. A target ends with exactly one end token.

Control tokens are all special tokens, and every added token with a character other than letters, digits and white
space; words that somebody added to a vocabulary stay tokens. A one-character control token counts as plain text.

>>> from transformers import PreTrainedTokenizerFast
>>> from tokenizers import Tokenizer, models, pre_tokenizers
>>> backend = Tokenizer(models.WordLevel({"<unk>": 0, "</s>": 1, "Paris": 2}, unk_token="<unk>"))
>>> backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
>>> wrapped = PreTrainedTokenizerFast(tokenizer_object=backend, unk_token="<unk>", eos_token="</s>")
>>> tokens = PromptTokenizer(wrapped)
>>> wrapped.encode("Paris </s>"), tokens.prompt_ids("Paris </s>"), tokens.target_ids("Paris")
([2, 1], [2, 0, 0], [2, 1])
"""

from __future__ import annotations

import copy
import hashlib
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, cast

from tokenizers import AddedToken, Tokenizer
from transformers import PreTrainedTokenizerBase

from fedrag.errors import BudgetError, ConfigError, InputError

_CONTENT = "fedragcontent"  # stands for the prompt while the chat template is rendered
_LETTERS = 6  # characters of a token, about: `cut` looks at so many for each token wanted, and at more if need be
_MORE = 64
_INSIDE = "\ue000inside\ue000"  # a control token of the copy only: what follows it does not start the text


Message = Mapping[str, str]
"""Of a conversation: its `role` ("system", "user", "assistant") and its `content`."""


class PromptTokenizer:
    """The ids of prompts and targets under one tokenizer, with or without its chat template.

    `chat=None` uses the chat template when the tokenizer has one; a template that can think is asked not to, because
    the answer is wanted right after the prompt. Without a template a prompt gets the tokens that the tokenizer itself
    puts before a text (`<s>`, say), and a target is joined to it by one space if the tokenizer marks no word starts.
    A tokenizer without a padding token pads with its end token.

    Raises `ConfigError` for a tokenizer that is not a fast one, has no end token, or lacks the template asked for.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, *, chat: bool | None = None) -> None:
        backend: Tokenizer | None = getattr(tokenizer, "backend_tokenizer", None)
        if backend is None:
            raise ConfigError(
                f"{type(tokenizer).__name__} is not a fast tokenizer; load one with AutoTokenizer, whose "
                "`backend_tokenizer` can be told apart from its control tokens"
            )
        if tokenizer.eos_token_id is None:
            raise ConfigError(
                "the tokenizer has no end token; set tokenizer.eos_token to the token that ends an answer"
            )
        if chat and not tokenizer.chat_template:
            raise ConfigError(
                "chat=True, but the tokenizer has no chat template; set tokenizer.chat_template or chat=None"
            )
        if tokenizer.pad_token_id is None:
            tokenizer.pad_token = tokenizer.eos_token
        self.tokenizer = tokenizer
        self.chat = bool(tokenizer.chat_template) if chat is None else chat
        ids: Any = tokenizer  # transformers types an id as int, list or nothing; the checks above leave int
        self.eos_id: int = ids.eos_token_id
        self.pad_id: int = ids.pad_token_id

        controls = {i: t for i, t in tokenizer.added_tokens_decoder.items() if _is_control(t, tokenizer)}
        self._control_ids = frozenset(controls)
        self._controls = {token.content: token for token in controls.values()}
        self._conversing = copy.copy(tokenizer)  # the user's own is not told what a control token is
        self._conversing.chat_control_tokens = list(self._controls)
        self._pattern = re.compile("|".join(map(re.escape, sorted(self._controls, key=len, reverse=True))) or r"(?!)")

        description = json.loads(backend.to_str())
        description["truncation"] = description["padding"] = None
        self._backend = Tokenizer.from_str(json.dumps(description))
        unmatched = list(_without_controls(description["added_tokens"], set(controls), backend))
        self._plain = Tokenizer.from_str(json.dumps({**description, "added_tokens": unmatched}))
        self._plain.add_special_tokens([AddedToken(_INSIDE, normalized=False)])
        self._inside_id = self._plain.token_to_id(_INSIDE)

        self._before: list[int] = []  # ids of the frame before the text
        self._after: list[int] = []  # ids of the frame after it
        self._lead, self._trail = "", ""  # plain text of the frame that touches the prompt: tokenised with it
        if self.chat:
            self._read_template()
        else:
            self._before = self._opening()
        self._joint = "" if self.chat or self._marks_word_starts() else " "
        frame = [description, self._before, self._lead, self._trail, self._after, self._joint, self.eos_id]
        self.fingerprint = hashlib.sha256(json.dumps(frame, sort_keys=True).encode()).hexdigest()

    def prompt_ids(self, prompt: str) -> list[int]:
        """Return the ids of a prompt, its frame (first token, chat template) included."""
        inside = bool(self.chat and self._before)
        text = f"{self._lead}{prompt}{self._trail}"
        return [*self._before, *self._encode(text, inside=inside), *self._after]

    def chat_ids(self, messages: Sequence[Message]) -> list[int]:
        """Return the ids of a conversation in the chat template, up to where its answer begins.

        What messages say can be no control token. Raises `ConfigError` without a template, and `InputError` for a
        control token in a message where the vocabulary has no other way to write it.
        """
        if not self.chat:
            raise ConfigError("this tokenizer has no chat template to write messages in; pass a prompt, as one text")
        try:
            ids: Any = self._conversing.apply_chat_template(
                [dict(message) for message in messages],
                add_generation_prompt=True,
                sanitize_control_tokens=True,
                return_dict=False,
                enable_thinking=False,
            )
        except ValueError:
            known: dict[str, int] = cast(Any, self.tokenizer).added_tokens_encoder
            if any(token in message["content"] for token in known for message in messages):
                raise InputError(
                    "a message holds a control token of the model that this tokenizer cannot write as plain text: "
                    "take it out"
                ) from None
            raise
        return ids

    def target_ids(self, target: str) -> list[int]:
        """Return the ids of an answer as they follow a prompt, one end token last; outer white space is dropped."""
        text = target.strip()
        return [*(self._encode(self._joint + text, inside=self.chat) if text else ()), self.eos_id]

    def count(self, text: str) -> int:
        """Return the number of tokens of a text, without any frame."""
        return len(self._encode(text))

    def cut(self, text: str, tokens: int) -> str:
        """Return the longest prefix of `text` that ends at the end of a token and has at most `tokens` tokens.

        No more of `text` is read than about three times what is returned.
        """
        tokens = max(tokens, 0)
        size = _LETTERS * tokens + _MORE
        while True:
            part = text[:size]
            encoded = self._plain.encode(part, add_special_tokens=False)
            if (
                len(part) == len(text) or len(encoded.ids) > tokens + _MORE
            ):  # the last tokens would be others further on
                break
            size *= 2
        if len(part) == len(text) and self.count(text) <= tokens:
            return text
        for end in sorted({end for _, end in encoded.offsets[:tokens]}, reverse=True):
            if self.count(text[:end]) <= tokens:  # the tokens of a prefix may be others than the first ones of the text
                return text[:end]
        return ""

    def decode(self, ids: Sequence[int]) -> str:
        """Return the text of generated ids, control tokens left out."""
        text = self.tokenizer.decode(list(ids), skip_special_tokens=True, clean_up_tokenization_spaces=False)
        assert isinstance(text, str)
        return text

    def _encode(self, text: str, *, inside: bool = False) -> list[int]:
        ids = self._ordinary(text, inside)
        if self._control_ids.isdisjoint(ids):
            return ids
        # a vocabulary of whole words holds control tokens as words: take the words apart
        pieces = self._pattern.sub(lambda found: f"{found[0][0]}{_INSIDE}{found[0][1:]}", text).split(_INSIDE)
        ids = [i for n, piece in enumerate(pieces) for i in self._ordinary(piece, inside or n > 0)]
        return [i for i in ids if i not in self._control_ids]

    def _ordinary(self, text: str, inside: bool) -> list[int]:
        ids = self._plain.encode(_INSIDE + text if inside else text, add_special_tokens=False).ids
        return [i for i in ids if i != self._inside_id]

    def _opening(self) -> list[int]:
        # what the tokenizer puts before a text, and not what it puts after (a tokenizer may add an end token)
        framed = self._backend.encode("a")
        return framed.ids[: framed.special_tokens_mask.index(0)] if 0 in framed.special_tokens_mask else []

    def _marks_word_starts(self) -> bool:
        ids = self._encode("a")
        return bool(re.search(r"\s", str(self.tokenizer.decode([*ids, *ids], skip_special_tokens=False)).strip()))

    def _read_template(self) -> None:
        rendered = self.tokenizer.apply_chat_template(
            [{"role": "user", "content": _CONTENT}], tokenize=False, add_generation_prompt=True, enable_thinking=False
        )
        head, *rest = str(rendered).split(_CONTENT)
        if len(rest) != 1:
            raise ConfigError(
                f"the chat template writes a user's message {len(rest)} times, it must do so once; "
                "set another tokenizer.chat_template, or pass chat=False"
            )
        tail = rest[0]
        if before := list(self._pattern.finditer(head)):
            at = before[-1].end()
            self._before = self._backend.encode(head[:at], add_special_tokens=False).ids
            self._lead = head[at:].lstrip() if self._controls[before[-1][0]].rstrip else head[at:]
        else:
            self._lead = head
        if after := self._pattern.search(tail):
            at = after.start()
            self._after = self._backend.encode(tail[at:], add_special_tokens=False).ids
            self._trail = tail[:at].rstrip() if self._controls[after[0]].lstrip else tail[:at]
        else:
            self._trail = tail


def _without_controls(added: list[dict[str, Any]], controls: set[int], backend: Tokenizer) -> Iterator[dict[str, Any]]:
    # Reading gives ids to the tokens outside the model's vocabulary in their order, so those keep their places under
    # names that no text has; those inside it can go.
    for token in added:
        if token["id"] not in controls:
            yield token
        elif backend.model.token_to_id(token["content"]) is None:
            yield {**token, "content": f"\ue000{token['id']}\ue000"}


def check_room(count: int, answer: int, max_length: int, *, what: str, cure: str) -> None:
    """Raise `BudgetError`, which names the cure, unless so many tokens and those of an answer fit."""
    if count + answer > max_length:
        raise BudgetError(
            f"the {what} {count} tokens and the answer {answer}: together more than max_length={max_length}; {cure}, "
            "lower max_new_tokens, or raise max_length"
        )


def _is_control(token: Any, tokenizer: PreTrainedTokenizerBase) -> bool:
    text: str = token.content
    if len(text) < 2 or text == tokenizer.unk_token or text.isspace():
        return False
    return token.special or any(not (c.isalnum() or c.isspace()) for c in text)
