import json
import os
from pathlib import Path
from typing import Any

import pytest
import torch
from huggingface_hub import constants
from peft import AutoPeftModelForCausalLM, LoraConfig, PeftModel, PromptTuningConfig, get_peft_model
from transformers import AutoModelForCausalLM, AutoTokenizer, BitsAndBytesConfig

from fedrag.errors import ConfigError, MissingExtraError, StoreError
from fedrag.generators.causal import CausalLM
from tiny import tiny_lfm2, tiny_llama, tiny_tokenizer

PROMPTS, TARGETS = ["The capital of France is", "Who"], ["Paris", "Ada wrote"]


def scores(lm: CausalLM) -> list[float]:
    with torch.no_grad():
        return lm.logprobs(PROMPTS, TARGETS).tolist()


def trainable(lm: CausalLM) -> set[str]:
    return {name for name, parameter in lm.model.named_parameters() if parameter.requires_grad}


def step(lm: CausalLM) -> None:
    """Move what is tunable, so that adapters are no longer the identity."""
    optimizer = torch.optim.AdamW([p for p in lm.parameters() if p.requires_grad], lr=0.01, fused=True)
    (-lm.logprobs(PROMPTS, TARGETS)).sum().backward()
    optimizer.step()
    optimizer.zero_grad()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A model as a user has it on disk."""
    tiny_llama(tie_word_embeddings=True).save_pretrained(tmp_path / "hub")
    tiny_tokenizer(chat=True).save_pretrained(tmp_path / "hub")
    return tmp_path / "hub"


@pytest.fixture
def hub(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """The same model as the hub's cache has it, by name."""
    cached = tmp_path / "cache" / "models--tiny--llama"
    (cached / "snapshots").mkdir(parents=True)
    folder.rename(cached / "snapshots" / ("0" * 40))
    (cached / "refs").mkdir()
    (cached / "refs" / "main").write_text("0" * 40)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    return "tiny/llama"


def half(folder: Path) -> Path:
    """The folder with its weights in bfloat16."""
    AutoModelForCausalLM.from_pretrained(folder).bfloat16().save_pretrained(folder)
    return folder


def test_lora_trains_adapters_of_every_linear_layer_but_the_head(folder: Path):
    lm = CausalLM(folder, lora=4)
    assert isinstance(lm.model, PeftModel)
    assert lm.model.active_peft_config.lora_alpha == 8
    names = trainable(lm)
    assert names
    assert all("lora_" in name for name in names)
    assert {name.split(".lora_")[0].split(".")[-1] for name in names} == {
        "q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj",
    }  # fmt: skip
    before = scores(lm)
    step(lm)
    assert scores(lm) != before
    assert not any(p.requires_grad for n, p in lm.model.named_parameters() if n not in names)


def test_a_lora_config_and_a_model_with_adapters_are_taken_as_they_are(folder: Path):
    config = LoraConfig(r=2, target_modules=["q_proj"], task_type="CAUSAL_LM")
    assert all("q_proj" in name for name in trainable(CausalLM(folder, lora=config)))
    adapted: Any = get_peft_model(tiny_llama(), LoraConfig(r=2, target_modules=["v_proj"], task_type="CAUSAL_LM"))
    lm = CausalLM(adapted, tiny_tokenizer())
    assert lm.model is adapted
    assert all("v_proj" in name for name in trainable(lm))
    with pytest.raises(ConfigError, match="lora=3"):
        CausalLM(adapted, tiny_tokenizer(), lora=3)


def test_adapters_of_other_names_are_refused_before_they_are_lost():
    adapted: Any = get_peft_model(tiny_llama(), LoraConfig(r=2, task_type="CAUSAL_LM"), adapter_name="french")
    with pytest.raises(ConfigError, match=r"'french'.*'default'"):
        CausalLM(adapted, tiny_tokenizer())


def test_prompt_learning_adapters_are_refused():
    adapted: Any = get_peft_model(tiny_llama(), PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=2))
    with pytest.raises(ConfigError, match="use LoRA"):
        CausalLM(adapted, tiny_tokenizer())


def test_a_whole_model_loads_without_fedrag_and_with_it(folder: Path, tmp_path: Path):
    lm = CausalLM(folder, max_new_tokens=7, stop=["\n"], max_length=300, chat=False, batch_tokens=99)
    step(lm)
    lm.save(tmp_path / "out")
    plain = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    for name, tensor in lm.model.state_dict().items():
        assert torch.equal(tensor, plain.state_dict()[name])
    assert AutoTokenizer.from_pretrained(tmp_path / "out").encode("Paris <s>") == lm.tokenizer.encode("Paris <s>")
    again = CausalLM.load(tmp_path / "out", device="cpu")
    assert scores(again) == scores(lm)
    assert again.generate(PROMPTS) == lm.generate(PROMPTS)
    assert again.fingerprint == lm.fingerprint
    assert (again.max_new_tokens, again.stop, again.max_length, again.tokens.chat, again.batch_tokens) == (
        7,
        ("\n",),
        300,
        False,
        99,
    )
    assert trainable(again) == trainable(lm)


def test_adapters_of_a_named_base_are_saved_alone(hub: str, tmp_path: Path):
    lm = CausalLM(hub, lora=4)
    step(lm)
    lm.save(tmp_path / "out")
    assert not (tmp_path / "out" / "base").exists()
    assert not (tmp_path / "out" / "model.safetensors").exists()
    with torch.no_grad():
        plain = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(hub), tmp_path / "out")
        ids = torch.tensor([lm.prompt_ids("The")])
        assert torch.equal(plain(input_ids=ids).logits, lm.model(input_ids=ids).logits)
        assert torch.equal(
            AutoPeftModelForCausalLM.from_pretrained(tmp_path / "out")(input_ids=ids).logits,
            plain(input_ids=ids).logits,
        )
    again = CausalLM.load(tmp_path / "out")
    assert scores(again) == scores(lm)
    assert again.fingerprint == lm.fingerprint
    assert trainable(again) == trainable(lm)
    step(again)
    assert scores(again) != scores(lm)
    again.save(tmp_path / "further")
    assert not (tmp_path / "further" / "base").exists()
    assert scores(CausalLM.load(tmp_path / "further")) == scores(again)
    assert scores(CausalLM(tmp_path / "out")) == scores(lm)  # a folder of adapters is a model, too


def words_of(folder: Path) -> str:
    return "".join(path.read_text() for path in folder.rglob("*") if path.suffix in (".json", ".md", ".jinja"))


@pytest.mark.parametrize("relative", [False, True])
def test_a_folder_made_from_a_folder_can_be_moved(
    relative: bool, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.chdir(tmp_path)
    lm = CausalLM("hub" if relative else folder, lora=4)
    step(lm)
    lm.save("out")
    CausalLM(folder).save("whole")
    assert lm.model.active_peft_config.base_model_name_or_path == ("hub" if relative else str(folder))
    folder.rename(tmp_path / "gone")
    for saved in (Path("out"), Path("whole")):
        assert str(tmp_path) not in words_of(saved)
        assert '"hub"' not in words_of(saved)
        assert ":hub" not in words_of(saved)
    os.rename("out", "moved")
    again = CausalLM.load("moved")
    assert again.fingerprint == lm.fingerprint
    assert scores(again) == scores(lm)
    again.save("further")
    assert "moved" not in words_of(Path("further"))
    assert CausalLM.load("further").fingerprint == lm.fingerprint


def test_a_base_that_cannot_be_found_is_named(hub: str, tmp_path: Path):
    CausalLM(hub, lora=4).save(tmp_path / "out")
    config = tmp_path / "out" / "adapter_config.json"
    written = json.loads(config.read_text())
    for source, said in (("tiny/other", "'tiny/other'"), ("/no/such/place", "'/no/such/place'"), (None, "no base")):
        config.write_text(json.dumps({**written, "base_model_name_or_path": source}))
        with pytest.raises(StoreError, match=rf"{said}.* put the base model into"):
            CausalLM.load(tmp_path / "out")
    config.write_text("{")
    with pytest.raises(StoreError, match="names no base model"):
        CausalLM.load(tmp_path / "out")


@pytest.mark.parametrize("make", [tiny_llama, tiny_lfm2])
def test_the_base_of_an_object_is_saved_beside_its_adapters(make: Any, tmp_path: Path):
    lm = CausalLM(make(tie_word_embeddings=True) if make is tiny_llama else make(), tiny_tokenizer(), lora=4)
    step(lm)
    lm.save(tmp_path / "out")
    with torch.no_grad():
        base = AutoModelForCausalLM.from_pretrained(tmp_path / "out" / "base")
        plain = PeftModel.from_pretrained(base, tmp_path / "out")
        ids = torch.tensor([lm.prompt_ids("The")])
        assert torch.equal(plain(input_ids=ids).logits, lm.model(input_ids=ids).logits)
    (tmp_path / "out").rename(tmp_path / "moved")
    again = CausalLM.load(tmp_path / "moved")
    assert scores(again) == scores(lm)
    assert again.fingerprint == lm.fingerprint
    again.save(tmp_path / "further")
    assert scores(CausalLM.load(tmp_path / "further")) == scores(lm)


def test_a_base_that_trains_beside_its_adapters_is_saved_with_them(hub: str, tmp_path: Path):
    lm = CausalLM(hub, lora=4)
    for parameter in lm.model.get_base_model().model.norm.parameters():
        parameter.requires_grad_(True)
        parameter.data.mul_(1.5)
    names = trainable(lm)
    lm.save(tmp_path / "out")
    again = CausalLM.load(tmp_path / "out")
    assert scores(again) == scores(lm) != scores(CausalLM(hub))
    assert trainable(again) == names == {*trainable(CausalLM(hub, lora=4)), "base_model.model.model.norm.weight"}
    again.requires_grad_(False)  # as while another part is trained
    again.save(tmp_path / "further")
    assert trainable(CausalLM.load(tmp_path / "further")) == names
    record = tmp_path / "out" / "fedrag_generator.json"
    record.write_text(record.read_text().replace("model.norm", "model.gone"))
    with pytest.raises(StoreError, match=r"model\.gone\.weight trains"):
        CausalLM.load(tmp_path / "out")


def test_nothing_of_what_was_saved_before_in_a_folder_is_read(hub: str, tmp_path: Path):
    CausalLM(tiny_llama(seed=3), tiny_tokenizer(), lora=2).save(tmp_path / "out")
    named = CausalLM(hub, lora=4)
    step(named)
    named.save(tmp_path / "out")
    assert not (tmp_path / "out" / "base").exists()
    assert scores(CausalLM.load(tmp_path / "out")) == scores(named)
    whole = CausalLM(tiny_llama(seed=4), tiny_tokenizer())
    whole.save(tmp_path / "out")
    assert scores(CausalLM.load(tmp_path / "out")) == scores(whole)
    adapted = CausalLM(tmp_path / "out", lora=2)
    step(adapted)
    for _ in range(2):  # over the folder that it was itself read from
        adapted.save(tmp_path / "out")
        again = CausalLM.load(tmp_path / "out")
        assert scores(again) == scores(adapted)
        adapted = again


def test_adapters_on_a_saved_system_bring_their_base_along(folder: Path, tmp_path: Path):
    # the folder of a saved system is replaced when the system is saved again
    CausalLM(folder).save(tmp_path / "system")
    lm = CausalLM(tmp_path / "system", lora=4)
    step(lm)
    lm.save(tmp_path / "out")
    (tmp_path / "system").rename(tmp_path / "gone")
    assert scores(CausalLM.load(tmp_path / "out")) == scores(lm)


def test_what_was_frozen_stays_frozen_after_loading(tmp_path: Path):
    model = tiny_llama()
    model.requires_grad_(False)
    lm = CausalLM(model, tiny_tokenizer())
    assert not trainable(lm)
    lm.save(tmp_path)
    assert not trainable(CausalLM.load(tmp_path))


def test_what_a_trainer_freezes_for_a_while_is_not_saved_as_frozen(tmp_path: Path):
    lm = CausalLM(tiny_llama(), tiny_tokenizer())
    names = trainable(lm)
    lm.requires_grad_(False)
    lm.save(tmp_path)
    assert trainable(CausalLM.load(tmp_path)) == names == {name for name, _ in lm.model.named_parameters()}


def test_the_fingerprint_follows_everything_that_decides_a_score(folder: Path):
    lm = CausalLM(folder, lora=4)
    seen = [lm.fingerprint]
    assert lm.fingerprint == seen[0] == lm.fingerprint
    step(lm)
    seen.append(lm.fingerprint)
    with lm.model.disable_adapter():
        seen.append(lm.fingerprint)
    assert lm.fingerprint == seen[1]
    other = CausalLM(folder)
    seen += [other.fingerprint, CausalLM(folder, chat=False).fingerprint]  # new adapters would differ by themselves
    other.model.load_state_dict(tiny_llama(seed=5, tie_word_embeddings=True).state_dict())
    seen.append(other.fingerprint)
    rotated = CausalLM(tiny_llama(rope_parameters={"rope_type": "default", "rope_theta": 500.0}), tiny_tokenizer())
    seen += [rotated.fingerprint, CausalLM(tiny_llama(), tiny_tokenizer()).fingerprint]
    assert len(set(seen)) == len(seen)


def test_dtype_and_device_are_obeyed(folder: Path):
    assert CausalLM(folder, dtype="bfloat16", device="cpu").model.dtype == torch.bfloat16
    assert CausalLM(tiny_llama(), tiny_tokenizer(), dtype=torch.float64).model.dtype == torch.float64
    half = CausalLM(folder, dtype=torch.bfloat16)
    assert scores(half) == pytest.approx(scores(CausalLM(folder)), rel=0.05)
    with torch.no_grad():
        assert half.logprobs(PROMPTS, TARGETS).dtype == torch.float32


def test_half_precision_is_widened_where_all_weights_train_and_nowhere_else(folder: Path, tmp_path: Path):
    half(folder)
    whole = CausalLM(folder)
    assert {parameter.dtype for parameter in whole.parameters()} == {torch.float32}
    assert CausalLM(folder, dtype="auto").model.dtype == torch.bfloat16
    adapted = CausalLM(folder, lora=2)
    assert adapted._loaded.base.dtype == torch.bfloat16
    adapted.save(tmp_path / "out")
    assert CausalLM(tmp_path / "out")._loaded.base.dtype == torch.bfloat16


@pytest.mark.parametrize("lora", [None, 2])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float64"])
def test_the_precision_that_was_asked_for_is_kept(lora: int | None, dtype: str, folder: Path, tmp_path: Path):
    lm = CausalLM(half(folder), lora=lora, dtype=dtype)
    lm.save(tmp_path / "out")
    again = CausalLM.load(tmp_path / "out")
    assert again._loaded.base.dtype == lm._loaded.base.dtype == getattr(torch, dtype)
    assert again.fingerprint == lm.fingerprint
    assert scores(again) == scores(lm)


def test_quantised_weights_without_their_library_name_the_extra(folder: Path):
    with pytest.raises(MissingExtraError, match=r"fedrag\[quantised\]"):
        CausalLM(folder, quantization=BitsAndBytesConfig(load_in_8bit=True), lora=4)
    with pytest.raises(ConfigError, match="name or path"):
        CausalLM(tiny_llama(), tiny_tokenizer(), quantization=BitsAndBytesConfig(load_in_8bit=True))


def test_folders_of_another_kind_or_time_are_refused(folder: Path, tmp_path: Path):
    with pytest.raises(StoreError, match=r"holds no fedrag_generator\.json"):
        CausalLM.load(folder)
    lm = CausalLM(folder)
    lm.save(tmp_path / "out")
    settings = tmp_path / "out" / "fedrag_generator.json"
    settings.write_text(json.dumps({**json.loads(settings.read_text()), "format": 3}))
    with pytest.raises(StoreError, match="format 3, this fedrag reads 2: update"):
        CausalLM.load(tmp_path / "out")
