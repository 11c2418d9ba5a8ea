"""Law 10: knowledge lives in the store: change a fact there after tuning, and the answer changes with it."""

from dataclasses import replace

import pytest

from fedrag import EMDR2, LSR, RALT, Document, Example, Joint, Mixture, RAGSequence, RAGToken, RAGTrainer
from fedrag.quickstart.facts import VALUES
from fedrag.quickstart.loop import make_system
from fedrag.quickstart.world import make_world
from systems import arguments

pytestmark = pytest.mark.slow


def tell_apart(world):
    """Give every passage a number, so that a filter finds exactly the one that is asked about."""
    number = {document.id: n for n, document in enumerate(world.documents)}
    documents = [replace(d, metadata={**d.metadata, "fact": number[d.id]}) for d in world.documents]
    return documents, number


def findable(method):
    """The method with candidates that hold the gold passage, as those of a retriever that is any good would."""

    class Findable(method):
        def find(self, examples):
            golds = (self.rag.dense.store.get(list(example.positives[:1])) for example in examples)
            others = self.retrieve(examples, self.depth)
            return [
                [*gold, *(d for d in row if d.id != gold[0].id)][: self.depth]
                for gold, row in zip(golds, others, strict=True)
            ]

    return Findable


def ralt(rag):
    return RALT(rag, k=1, contexts=Mixture(rag.dense.store, documents=1, gold=1.0))


@pytest.fixture(scope="module")
def world():
    return make_world(0, train=30, dev=1, test=8)


METHODS = {
    "ralt": ralt,
    "rag-sequence": lambda rag: findable(RAGSequence)(rag, k=3),
    "rag-token": lambda rag: findable(RAGToken)(rag, k=3),
    "emdr2": lambda rag: findable(EMDR2)(rag, k=1),  # its reader has all k in one prompt, and is asked with one here
    "joint": lambda rag: Joint(LSR(rag, k=3), ralt(rag)),
}


@pytest.mark.parametrize("method", METHODS)
def test_a_changed_fact_changes_the_answer(method, world, tmp_path):
    rag = make_system(world, 0)
    documents, number = tell_apart(world)
    rag.dense.store.remove(list(number))
    rag.add(documents, progress=False)
    settings = {"max_steps": 60, "per_device_train_batch_size": 32, "learning_rate": 1e-3, "warmup_steps": 10}
    RAGTrainer(METHODS[method](rag), train_dataset=world.train, args=arguments(tmp_path, **settings)).train()

    def ask(example: Example) -> str:
        where = {"field": "fact", "operator": "==", "value": number[example.positives[0]]}
        answer = rag.query(example.question, k=1, where=where)
        assert [hit.document.id for hit in answer.hits] == list(example.positives)
        return answer.text

    told = [ask(example) for example in world.test]
    right = [answer == example.answers[0] for answer, example in zip(told, world.test, strict=True)]
    assert sum(right) / len(right) > 0.9  # entities and facts of no training example

    changed: dict[str, str] = {}
    for place, (document, example) in enumerate(zip(documents[-len(world.test) :], world.test, strict=True)):
        assert document.id == example.positives[0]
        new = next(value for value in VALUES[place:] if value not in document.text)
        text = document.text.replace(example.answers[0], new)
        rag.add([Document(text, id=document.id, metadata=document.metadata)], progress=False)
        changed[example.question] = new
    followed = [ask(example) == changed[example.question] for example in world.test]
    assert sum(followed) / len(followed) > 0.9
    assert all(ask(example) != example.answers[0] for example in world.test)
