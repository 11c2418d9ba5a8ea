"""The script of the README, as it is written there, with models from local folders in place of the hub's."""

import json
import re
from pathlib import Path

import pytest

from fedrag import Report
from tiny import tiny_llama, tiny_sentence_transformer, tiny_tokenizer

README = Path(__file__).parents[1] / "README.md"


@pytest.mark.slow
def test_the_script_of_the_readme_runs_as_written(tmp_path, monkeypatch, capsys):
    (script,) = re.findall(r"```python\n(.*?SentenceEncoder\(.*?)```", README.read_text(encoding="utf-8"), re.DOTALL)
    tiny_sentence_transformer().save(str(tmp_path / "encoder"), create_model_card=False)
    tiny_llama(vocab=len(tiny_tokenizer())).save_pretrained(tmp_path / "llm")
    tiny_tokenizer().save_pretrained(tmp_path / "llm")
    for name, folder in (("sentence-transformers/all-MiniLM-L6-v2", "encoder"), ("Qwen/Qwen3-0.6B", "llm")):
        assert name in script
        script = script.replace(name, str(tmp_path / folder))
    (tmp_path / "docs").mkdir()
    for n in range(6):
        (tmp_path / "docs" / f"{n}.md").write_text(f"The key of clerk {n} is {n * 3} .")
    rows = [json.dumps({"question": f"Which key has clerk {n} ?", "answers": [str(n * 3)]}) for n in range(6)]
    (tmp_path / "train.jsonl").write_text("\n".join(rows[:4]))
    (tmp_path / "test.jsonl").write_text("\n".join(rows[4:]))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("ACCELERATE_USE_CPU", "true")
    names: dict[str, object] = {}
    exec(compile(script, str(README), "exec"), names)
    assert isinstance(names["after"], Report)
    assert "exact_match" in capsys.readouterr().out
    assert (tmp_path / "my-rag" / "CURRENT").is_file()
