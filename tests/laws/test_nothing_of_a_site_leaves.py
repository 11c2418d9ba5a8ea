"""Nothing of a site's data leaves it but what its training makes of the exchanged parameters, and plain numbers.

Canaries stand in documents, questions, answers, ids, metadata, settings and folder names. Every message of whole runs,
as the bytes that a network would carry, every error and every log line of the server's side is searched for them: as
text, as token ids and as embeddings.
"""

from __future__ import annotations

import io
import json
import logging
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from peft import get_peft_model_state_dict

from federating import Outcome, federate
from fedrag import (
    LSR,
    RALT,
    CausalLM,
    DenseRetriever,
    Document,
    Example,
    Joint,
    MemoryStore,
    RAGSystem,
    RAGTrainer,
    SentenceEncoder,
)
from fedrag.errors import QuorumError
from fedrag.federated import Plan, Site
from systems import arguments
from tiny import tiny_llama, tiny_sentence_transformer, tiny_tokenizer

WORDS = ("zorilla", "quokka", "okapi", "numbat", "axolotl", "kakapo", "fossa", "dugong", "pangolin")


def documents(site: str) -> list[Document]:
    return [
        Document(
            f"The {WORDS[0]} of {site} clerk {n} weighs {n * 3} kilos .", id=f"{WORDS[1]}-{site}-{n}",
            metadata={WORDS[2]: f"{WORDS[3]}{n}"},
        )
        for n in range(6)
    ]  # fmt: skip


def examples(site: str) -> list[Example]:
    return [
        Example(f"Which {WORDS[4]} has clerk {n} ?", [f"{WORDS[5]} {n * 3}"], positives=[f"{WORDS[1]}-{site}-{n}"])
        for n in range(6)
    ]


def site_in(folder: Path, name: str) -> Site:
    """A site with files, as a deployed one has them, in a folder that must not be named."""
    place = folder / f"{WORDS[6]}-{name}"
    place.mkdir()
    store = MemoryStore()
    DenseRetriever(encoder(), store).add(documents(name), progress=False)
    store.save(place / WORDS[7])
    (place / "site.toml").write_text(f'name = "{name}"\nstore = "{WORDS[7]}"\n[settings]\nward = "{WORDS[8]}"\n')
    return Site.open(place / "site.toml")


def encoder() -> SentenceEncoder:
    return SentenceEncoder(tiny_sentence_transformer())


def system(site: Site) -> RAGSystem:
    torch.manual_seed(0)
    generator = CausalLM(tiny_llama(vocab=len(tiny_tokenizer())), tiny_tokenizer(), lora=2, max_new_tokens=4)
    return RAGSystem(retriever=DenseRetriever(encoder(), site.store()), generator=generator, top_k=2)


class Quoting(RAGTrainer):
    """Fails with words of the site's data, at site b in its second round."""

    failures = 0

    def training_step(self, *args: Any, **settings: Any) -> Any:
        site = next(iter(self.objective.rag.dense.store.documents())).id.split("-")[1]
        self.failures += site == "b" and self.state.global_step == 0
        if self.failures == 2:
            raise LookupError(documents("b")[0].text)
        return super().training_step(*args, **settings)


def joint(site: Site) -> RAGTrainer:
    rag, rows = system(site), examples(site.name)
    args = arguments(site.folder / "out", max_steps=2, per_device_train_batch_size=3)
    return Quoting(Joint(LSR(rag, k=2, train="both"), RALT(rag)), train_dataset=rows, eval_dataset=rows[:1], args=args)


@dataclass
class Ran:
    outcome: Outcome
    said: str  # by the server: its log, its history, its errors
    sites: list[Site]


@pytest.fixture(scope="module")
def ran(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Ran]:
    """A run of three sites, one of which fails once, and one of four, where it cannot even be built at one."""
    folder = tmp_path_factory.mktemp("sites")
    lines: list[str] = []

    class Lines(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            lines.append(logging.Formatter("%(name)s %(message)s").format(record))

    handler, servers = Lines(), [logging.getLogger(name) for name in ("fedrag.federated", "flwr")]
    for log in servers:
        log.addHandler(handler)
        log.setLevel(logging.DEBUG)
    sites = [site_in(folder, name) for name in "abc"]
    outcome = federate(joint, Plan(rounds=2, quorum=2, keep_optimizer=True), sites)
    lines.append(str(outcome.run.history.to_json()))
    with pytest.raises(QuorumError) as caught:
        federate(joint, Plan(rounds=1, quorum=4), [*sites, Site("d", folder / f"{WORDS[6]}-d")])
    lines.append(str(caught.value))
    yield Ran(outcome, "\n".join(lines), sites)
    for log in servers:
        log.removeHandler(handler)
        log.setLevel(logging.NOTSET)


KINDS = (torch.float64, torch.float32, torch.float16, torch.bfloat16)


def canaries() -> dict[str, set[bytes]]:
    """What must not be found, by kind: words, five token ids in a row, four numbers of an embedding in a row."""
    texts = [text for site in "abc" for d in documents(site)[:2] for text in (d.text, d.id)]
    texts += [text for e in examples("a")[:2] for text in (e.question, *(e.answers or ()))]
    ids, numbers = set[bytes](), set[bytes]()
    for tokenizer in (tiny_tokenizer(), tiny_tokenizer("wordpiece")):
        for text in texts:
            tokens = tokenizer(text, add_special_tokens=False)["input_ids"]
            for row in (tokens[start : start + 5] for start in range(0, len(tokens) - 4, 5)):
                ids |= {np.array(row, kind).tobytes() for kind in ("<i8", "<i4", "<i2")}
                ids |= {between.join(map(str, row)).encode() for between in (", ", ",", " ")}
    for vectors in (encoder().encode_documents(texts), encoder().encode_queries(texts)):
        for part in vectors.detach().reshape(-1, 4):
            numbers |= {part.to(kind).view(torch.uint8).numpy().tobytes() for kind in KINDS}
    return {"words": {word.encode() for word in WORDS}, "token ids": ids, "embeddings": numbers}


def traces(data: bytes, sought: set[bytes]) -> set[bytes]:
    """Which of the canaries are in the data, whatever the case of its letters."""
    lowered = data.lower()
    return {one for one in sought if one in data or (one.isalpha() and one in lowered)}


def test_the_search_finds_what_is_there() -> None:
    ids = tiny_tokenizer()(examples("b")[2].question)["input_ids"]
    vector = encoder().encode_documents([documents("a")[1].text]).detach()
    planted = {
        "words": b"..." + WORDS[3].upper().encode(),
        "token ids": b"x" + np.array(ids).tobytes(),
        "embeddings": b"xyz" + vector.to(torch.float16).view(torch.uint8).numpy().tobytes(),
    }
    for kind, sought in canaries().items():
        assert traces(planted[kind], sought)
        assert not traces(b"", sought)
        assert not traces(np.arange(999.0).tobytes(), sought)
    assert traces(repr(ids).encode(), canaries()["token ids"])


def test_the_runs_were_what_they_should_be(ran: Ran) -> None:
    outcome = ran.outcome
    assert [sorted(round.sites) for round in outcome.rounds] == [["a", "b", "c"], ["a", "c"]]
    assert outcome.rounds[1].rejected == {"b": "training failed (LookupError)"}
    assert "site b is left out" in ran.said
    assert "Left out: d: build(site) failed (StoreError)" in ran.said
    assert len(outcome.wire()) > 1e6


def test_no_message_has_a_trace_of_the_sites_data(ran: Ran) -> None:
    data = ran.outcome.wire()
    for kind, sought in canaries().items():
        assert not traces(data, sought), kind


def test_no_error_and_no_log_of_the_server_has_either(ran: Ran) -> None:
    for kind, sought in canaries().items():
        assert not traces(ran.said.encode(), sought), kind


DOWN = {"kind", "run", "fingerprint", "round"}
UP = {"site", "fingerprint", "scales", "fault", "class"}
METRICS = {
    "num-examples", "build_seconds", "train_seconds", "train_loss", "eval_loss", "eval_exact_match", "eval_f1",
    "eval_contains", "eval_rouge_l", "eval_answer_recall", "eval_hit", "eval_mrr", "eval_ndcg", "eval_map",
    "eval_recall", "eval_support", "train_refreshes",
}  # fmt: skip


def test_messages_hold_what_is_on_the_list_and_nothing_else(ran: Ran) -> None:
    exchanged = set(joint(ran.sites[0]).objective.trainable())
    for messages, words in ((ran.outcome.grid.down, DOWN), (ran.outcome.grid.up, UP)):
        for message in messages:
            assert message.has_content()
            assert set(message.content) <= {"arrays", "config", "metrics"}
            assert set(message.content["config"]) <= words
            assert set(message.content["arrays"]) in (exchanged, set())
            metrics = message.content.get("metrics", {})
            assert {re.sub(r"@\d+$", "", name) for name in metrics} <= METRICS
            assert all(isinstance(value, float) for value in metrics.values())
    told = [message.content["config"] for message in ran.outcome.grid.up]
    assert {name for config in told for name in config} == UP
    for config in told:
        assert config["site"] in "abc"
        assert re.fullmatch("[0-9a-f]{64}", str(config.get("fingerprint", "0" * 64)))
        assert set(json.loads(str(config.get("scales", "{}"))).values()) <= {1.0, 2.0, 8.0}


def test_what_travels_is_the_adapters_to_the_byte(tmp_path: Path) -> None:
    def build(site: Site) -> RAGTrainer:
        args = arguments(tmp_path / "out", max_steps=1)
        return RAGTrainer(RALT(system(site)), train_dataset=examples(site.name), args=args)

    sites = [site_in(tmp_path, name) for name in "ab"]
    outcome = federate(build, Plan(rounds=1), sites)
    adapters = get_peft_model_state_dict(build(sites[0]).objective.generator.model)
    payload = headers = 0
    for value in adapters.values():
        stream = io.BytesIO()
        np.save(stream, value.detach().numpy())
        payload += value.numel() * value.element_size()
        headers += len(stream.getvalue()) - value.numel() * value.element_size()
    assert payload == 4 * sum(value.numel() for value in adapters.values())
    assert [(row.bytes_down, row.bytes_up) for row in outcome.rounds] == [(2 * payload, 2 * payload)]
    assert outcome.closing.bytes_down == 2 * payload
    times = 2 * (1 + 1)  # sites, by rounds and the closing (down) or the greeting (up)
    assert (outcome.grid.bytes_down, outcome.grid.bytes_up) == (times * (payload + headers),) * 2
    assert len(outcome.run.state) == len(adapters)
    assert outcome.run.history.bytes == (2 * times - 2) * payload
