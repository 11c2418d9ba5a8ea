"""The card of a saved system: what it says is so, and the code in it runs."""

import re
import subprocess
import sys
from types import SimpleNamespace

import pytest
import yaml
from huggingface_hub import ModelCard

from fedrag.bundles.page import measured, published
from fedrag.durable import current
from fedrag.errors import InputError
from systems import DOCUMENTS, tiny_system

F1 = SimpleNamespace(mean=0.512, low=0.4, high=0.6, n=24)
GAIN = SimpleNamespace(before=0.3, difference=0.212, low=0.1, high=0.3, p_holm=0.0002)


@pytest.fixture(scope="module", params=[None, 2], ids=["whole", "adapters"])
def saved(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp("card") / "rag"
    rag = tiny_system(kind="bert", lora=request.param)
    rag.save(folder)
    return rag, current(folder)


def test_it_tells_counts_and_fingerprints_and_no_content_and_no_path(saved):
    rag, version = saved
    text = (version / "README.md").read_text()
    assert f"{len(DOCUMENTS)} documents" in text
    assert f"`{rag.dense.encoder.fingerprint}`" in text
    assert f"`{rag.generator.fingerprint}`" in text
    assert DOCUMENTS[3].text not in text
    assert str(version.parent) not in text
    assert ModelCard(text).data.library_name == "fedrag"


@pytest.mark.slow
def test_its_code_runs_without_fedrag(saved):
    _, version = saved
    text = (version / "README.md").read_text().replace('"path/to/this/folder"', repr(str(version)))
    blocks = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    alone = "\n".join(block for block in blocks if "fedrag" not in block)
    check = """
import sys
assert not [name for name in sys.modules if name.startswith("fedrag")]
assert scores.shape == (1, 1)
ids = tokenizer(["Which key"], return_tensors="pt")["input_ids"]
print(generator(input_ids=ids).logits.shape[1] == ids.shape[1])
"""
    done = subprocess.run([sys.executable, "-W", "ignore", "-c", alone + check], capture_output=True, text=True)
    assert done.stdout.strip() == "True", done.stderr


def test_an_evaluation_goes_in_once_as_a_table_and_as_a_model_index(saved):
    text = (saved[1] / "README.md").read_text()
    once = measured(text, {"f1": F1}, changes={"f1": GAIN}, method="LSR, then RALT.")
    assert "| f1 | 0.300 | 0.512 [0.400, 0.600] | +0.212 [+0.100, +0.300], <0.001 | 24 |" in once
    assert once.index("LSR, then RALT.") < once.index("| f1 |") < once.index("## Use")
    assert measured(once, {"f1": F1}, changes={"f1": GAIN}, method="LSR, then RALT.") == once
    again = measured(once, {"f1": F1})
    assert "LSR" not in again
    assert again.count("## Evaluation") == 1
    results = ModelCard(again).data.eval_results
    assert [(r.metric_type, r.metric_value) for r in results] == [("f1", 0.512)]
    assert "0.400 to 0.600" in results[0].metric_name
    front = yaml.safe_load(once.split("---\n")[1])
    assert front["tags"] == ["rag"]


def test_on_a_hub_its_code_loads_from_there(saved):
    text = (saved[1] / "README.md").read_text()
    there = published(text, "me/rag", with_store=False)
    assert 'RAGSystem.from_pretrained("me/rag", store=store)' in there
    assert "documents are not here" in there
    assert 'folder = snapshot_download("me/rag")' in there
    assert "path/to" not in there
    assert 'RAGSystem.from_pretrained("me/rag")' in published(text, "me/rag", with_store=True)


def test_a_text_without_front_matter_is_no_card():
    with pytest.raises(InputError, match="front matter"):
        measured("# A RAG system\n", {"f1": F1})
