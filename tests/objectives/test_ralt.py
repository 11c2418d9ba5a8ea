"""RALT: its loss, token by token; which documents an example's prompts hold; answers are never cut."""

import pytest
import torch

from fedrag import BM25, RALT, CausalLM, DenseRetriever, Document, Example, MemoryStore, RAGSystem
from fedrag.errors import BudgetError, ConfigError, InputError
from systems import DOCUMENTS, EXAMPLES, tiny_system
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


def test_the_seed_decides_the_order():
    objective = RALT(tiny_system(top_k=6), gold_share=0.5).train()

    def losses(seed):
        torch.manual_seed(seed)
        return [objective(BATCH)["loss"].item() for _ in range(3)]

    assert losses(1) == losses(1)
    assert losses(1) != losses(2)
    assert len(set(losses(1))) == 3


@pytest.mark.parametrize("share", [0.0, 0.3, 1.0])
def test_a_share_of_the_missing_golds_is_put_in(share):
    rag = tiny_system(top_k=2)
    objective = Prompts(rag, gold_share=share, shuffle=False)
    found = [hit.document.id for hit in rag.retrieve(EXAMPLES[0].question)]
    absent = [id for id in (document.id for document in DOCUMENTS) if id not in found][:3]
    example = Example(EXAMPLES[0].question, ["1"], positives=absent)
    with torch.no_grad():
        objective.train()([example] * 200)
    golden = [row for row in objective.seen if row != found]
    assert len(golden) / 200 == pytest.approx(share, abs=0.1)
    assert all(row[0] == found[0] and row[1] in absent for row in golden)
    assert share == 0 or {row[1] for row in golden} == set(absent)  # any of them, not always the first
    objective.seen = []
    objective.eval()([example] * 5)
    assert objective.seen == [found] * 5


def test_no_gold_is_put_in_beside_one_or_where_there_is_none():
    rag = tiny_system(top_k=2)
    found = [hit.document.id for hit in rag.retrieve(EXAMPLES[0].question)]
    objective = Prompts(rag, gold_share=1.0, shuffle=False).train()
    objective(
        [Example(EXAMPLES[0].question, ["1"], positives=["d0", "d9", found[1]]), Example(EXAMPLES[0].question, ["1"])]
    )
    assert objective.seen == [found] * 2


def test_what_is_excluded_is_in_no_prompt_not_as_a_gold_either():
    rag = tiny_system(top_k=3)
    question = EXAMPLES[0].question
    first, second, *others = [hit.document.id for hit in rag.retrieve(question, k=5)]
    objective = Prompts(rag, gold_share=1.0, shuffle=False, exclude_ids=lambda example: [first, *example.positives])
    objective.train()([Example(question, ["1"], positives=[second]), Example(question, ["1"])])
    assert objective.seen == [others[:3], [second, *others[:2]]]


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


def test_any_retriever_finds_documents_but_golds_need_a_store():
    llama = tiny_llama(vocab=len(tiny_tokenizer()))
    rag = RAGSystem(retriever=BM25(DOCUMENTS), generator=CausalLM(llama, tiny_tokenizer(), max_new_tokens=4), top_k=2)
    assert torch.isfinite(RALT(rag)(EXAMPLES[:2])["loss"])
    with pytest.raises(InputError, match="DenseRetriever"):
        RALT(rag, gold_share=0.5)


class Echo:
    def generate(self, prompts, *, max_new_tokens=None, stop=None):
        return list(prompts)


def test_settings_are_checked():
    rag = tiny_system()
    for settings in ({"k": -1}, {"gold_share": 1.5}, {"gold_share": -0.1}, {"documents_per_row": 0}):
        with pytest.raises(ConfigError, match="RALT takes"):
            RALT(rag, **settings)
    with pytest.raises(ConfigError, match="CausalLM, the system's generator is a Echo"):
        RALT(RAGSystem(retriever=rag.retriever, generator=Echo()))
    rag.generator.model.requires_grad_(False)
    with pytest.raises(ConfigError, match="no parameter there"):
        RALT(rag)


def test_without_documents_in_the_store_the_prompt_is_closed_book():
    full = tiny_system()
    rag = RAGSystem(retriever=DenseRetriever(full.dense.encoder, MemoryStore()), generator=full.generator, top_k=3)
    assert RALT(rag)(BATCH)["loss"].item() == pytest.approx(slow(rag, BATCH, 0, None), rel=1e-5)
