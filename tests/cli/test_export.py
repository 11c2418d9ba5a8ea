"""`fedrag export`: merged models that neither fedrag nor peft is needed for, and that say what the system says."""

import json
import re
import subprocess
import sys

import pytest
import torch
from typer.testing import CliRunner

from fedrag import Document
from fedrag.cli import app
from fedrag.durable import current
from systems import DOCUMENTS, tiny_system, two_stages
from tiny import tiny_tokenizer


def moved(lora):
    """A system whose adapters say something."""
    rag = tiny_system(kind="bert", lora=lora)
    with torch.no_grad():
        for name, weight in rag.generator.model.named_parameters():
            if "lora_B" in name:
                weight.normal_(std=0.05)
    return rag


def export(*words):
    return CliRunner().invoke(app, ["export", *map(str, words)])


PLAIN = """
import sys
from sentence_transformers import SentenceTransformer
from transformers import AutoModelForCausalLM, AutoTokenizer
import torch
sys.modules["fedrag"] = sys.modules["peft"] = None
out = sys.argv[1]
tokenizer = AutoTokenizer.from_pretrained(out + "/generator")
model = AutoModelForCausalLM.from_pretrained(out + "/generator")
ids = tokenizer(sys.argv[2], return_tensors="pt")["input_ids"]
written = model.generate(ids, max_new_tokens=6, do_sample=False)[0, ids.shape[1]:]
print(model.dtype, model.generation_config.eos_token_id, tokenizer.decode(written, skip_special_tokens=True).strip())
print(SentenceTransformer(out + "/encoder").encode([sys.argv[2]])[0].tolist())
"""


@pytest.mark.slow
@pytest.mark.parametrize("lora", [2, None])
def test_what_is_exported_answers_as_the_system_does_without_fedrag_and_peft(tmp_path, lora):
    rag = moved(lora)
    rag.save(tmp_path / "rag")
    done = export(tmp_path / "rag", tmp_path / "out", "--dtype", "float32", "--json")
    assert done.exit_code == 0, done.exception
    told = json.loads(done.stdout)
    assert told["difference"] <= 1e-4
    assert told["same"] == 1.0
    prompt = rag.prompt_for("Which key has clerk 3 ?", DOCUMENTS[:2])
    ran = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", PLAIN, tmp_path / "out", prompt], capture_output=True, text=True
    )
    assert ran.returncode == 0, ran.stderr
    answer, vector = ran.stdout.strip().rsplit("\n", 1)
    assert answer == f"torch.float32 2 {rag.generator.generate([prompt])[0]}"
    with torch.no_grad():
        wanted = rag.dense.encoder.encode_queries([prompt])[0]
    assert torch.allclose(torch.tensor(json.loads(vector)), wanted, atol=1e-5)
    assert json.loads((tmp_path / "out" / "prompt.json").read_text())["template"] == rag.prompt.template
    for path in (tmp_path / "out").rglob("*.json"):
        assert str(tmp_path) not in path.read_text()
    assert not list((tmp_path / "out").rglob("*adapter*"))


def test_half_precision_is_written_and_its_distance_told(tmp_path):
    moved(2).save(tmp_path / "rag")
    done = export(tmp_path / "rag", tmp_path / "out", "--json")
    told = json.loads(done.stdout)
    assert json.loads((tmp_path / "out/generator/config.json").read_text())["dtype"] == told["dtype"] == "bfloat16"
    assert 0 < told["difference"] < 0.1 * told["largest"]


def test_a_reranker_is_exported_and_the_card_tells_how_it_loads(tmp_path):
    rag = two_stages(tiny_system(kind="bert"))
    rag.save(tmp_path / "rag")
    done = export(tmp_path / "rag", tmp_path / "out", "--json")
    assert json.loads(done.stdout)["folders"] == ["encoder", "generator", "reranker"]
    text = (current(tmp_path / "rag") / "README.md").read_text()
    assert f"`{rag.retriever.reranker.fingerprint}`" in text
    blocks = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    code = next(block for block in blocks if "CrossEncoder" in block)
    for folder in (current(tmp_path / "rag"), tmp_path / "out"):
        found = {"folder": str(folder)}
        exec(code, found)  # the card's own words
        wanted = rag.retriever.reranker.scores(["a question"], [[Document("a document")]])
        assert torch.sigmoid(wanted[0]).tolist() == pytest.approx(found["scores"].tolist(), abs=1e-5)


def test_a_chat_template_goes_along(tmp_path):
    rag = tiny_system()
    tokenizer = tiny_tokenizer(chat=True)
    rag.generator.tokenizer.chat_template = tokenizer.chat_template
    rag.save(tmp_path / "rag")
    assert export(tmp_path / "rag", tmp_path / "out").exit_code == 0
    assert (tmp_path / "out/generator/chat_template.jinja").read_text() == tokenizer.chat_template


def test_what_cannot_be_exported_is_named_and_leaves_nothing(tmp_path):
    rag = moved(2)
    rag.save(tmp_path / "rag")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "note").touch()
    assert "not empty" in str(export(tmp_path / "rag", tmp_path / "full").exception)
    assert "cannot be written" in str(export(tmp_path / "rag", tmp_path / "full" / "note" / "out").exception)
    assert "nothing saved" in str(export(tmp_path / "absent", tmp_path / "out").exception)
    weights = current(tmp_path / "rag") / "generator" / "adapter_model.safetensors"
    weights.write_bytes(b"cut")
    done = export(tmp_path / "rag", tmp_path / "out")
    assert done.exit_code == 1
    assert type(done.exception).__module__ == "fedrag.errors", repr(done.exception)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["full", "rag"]
