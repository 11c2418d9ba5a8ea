"""LoRA adapters of an encoder: what trains, and that no training is lost by saving."""

import shutil
from typing import Any

import pytest
import torch
from peft import LoraConfig
from sentence_transformers import SentenceTransformer

from fedrag.encoders.sentence import SentenceEncoder
from fedrag.errors import ConfigError, StoreError
from tiny import tiny_sentence_transformer

TEXTS = ["the capital of France", "keys are rotated every month by the clerk", "Ada"]


def adapted(towers, folder=None, lora: Any = 4):
    """An encoder with LoRA, its adapters moved in every tower, from memory or from a folder."""
    model = tiny_sentence_transformer()
    model.prompts = {"query": "question : ", "passage": "passage : "}
    if folder is not None:
        model.save(str(folder), create_model_card=False)
    encoder = SentenceEncoder(model if folder is None else folder, lora=lora)
    if towers == 2:
        encoder.untie()
    with torch.no_grad():
        for name, parameter in encoder.named_parameters():
            if "lora_" in name:
                parameter.add_(0.1 * torch.randn_like(parameter))
    return encoder


def moving(encoder):
    return {name for name, parameter in encoder.named_parameters() if parameter.requires_grad}


def test_lora_leaves_only_adapters_to_train():
    encoder = SentenceEncoder(tiny_sentence_transformer(), lora=4)
    assert moving(encoder)
    assert all("lora_" in name for name in moving(encoder))
    before = encoder.fingerprint
    with torch.no_grad():
        encoder.get_parameter(min(moving(encoder))).add_(0.1)
    assert encoder.fingerprint != before


@pytest.mark.parametrize("source", ["memory", "folder"])
@pytest.mark.parametrize("towers", [1, 2])
@pytest.mark.parametrize("lora", [4, LoraConfig(r=2, target_modules=["q_lin", "ffn.lin1"], use_dora=True)])
def test_adapters_are_saved_with_all_they_need(source, towers, lora, tmp_path):
    encoder = adapted(towers, tmp_path / "base" if source == "folder" else None, lora)
    encoder.save(tmp_path / "tuned")
    shutil.rmtree(tmp_path / "base", ignore_errors=True)
    (tmp_path / "tuned").rename(tmp_path / "moved")
    again = SentenceEncoder.load(tmp_path / "moved")
    assert again.fingerprint == encoder.fingerprint
    torch.testing.assert_close(again.encode_queries(TEXTS), encoder.encode_queries(TEXTS), atol=0, rtol=0)
    torch.testing.assert_close(again.encode_documents(TEXTS), encoder.encode_documents(TEXTS), atol=0, rtol=0)
    assert moving(again) == moving(encoder)
    again.save(tmp_path / "second")
    assert SentenceEncoder(tmp_path / "second").fingerprint == encoder.fingerprint


@pytest.mark.parametrize("towers", [1, 2])
def test_elsewhere_adapters_are_merged(towers, tmp_path):
    encoder = adapted(towers)
    before = encoder.fingerprint
    encoder.save(tmp_path)
    assert encoder.fingerprint == before
    plain = SentenceTransformer(str(tmp_path), device="cpu")
    assert not any("lora_" in name for name, _ in plain.named_parameters())
    queries = torch.tensor(plain.encode_query(TEXTS))
    torch.testing.assert_close(queries, encoder.encode_queries(TEXTS).detach(), atol=1e-5, rtol=1e-5)
    untouched = torch.tensor(tiny_sentence_transformer().encode([f"question : {text}" for text in TEXTS]))
    assert (queries - untouched).abs().max() > 1e-3
    assert not any(str(tmp_path.parent) in file.read_text() for file in tmp_path.rglob("*.json"))


def test_an_adapted_tower_beside_one_without(tmp_path):
    adapted(1).save(tmp_path / "documents")
    encoder = SentenceEncoder(tiny_sentence_transformer(seed=3), document_model=tmp_path / "documents")
    encoder.save(tmp_path / "both")
    again = SentenceEncoder.load(tmp_path / "both")
    assert again.fingerprint == encoder.fingerprint
    assert moving(again) == moving(encoder)


@pytest.mark.parametrize("towers", [1, 2])
def test_adapters_that_the_library_saved_and_loaded(towers, tmp_path):
    tiny_sentence_transformer().save(str(tmp_path / "base"), create_model_card=False)
    model = SentenceTransformer(str(tmp_path / "base"), device="cpu")
    model.add_adapter(LoraConfig(r=2, target_modules=["q_lin"], init_lora_weights=False))
    model.save(str(tmp_path / "library"), create_model_card=False)
    encoder = SentenceEncoder(tmp_path / "library")
    if towers == 2:
        encoder.untie()
    encoder.save(tmp_path / "here")
    again = SentenceEncoder.load(tmp_path / "here")
    assert again.fingerprint == encoder.fingerprint
    wanted = torch.tensor(model.encode(TEXTS))
    torch.testing.assert_close(again.encode_queries(TEXTS).detach(), wanted, atol=1e-6, rtol=1e-5)
    plain = torch.tensor(SentenceTransformer(str(tmp_path / "here"), device="cpu").encode_query(TEXTS))
    torch.testing.assert_close(plain, wanted, atol=1e-5, rtol=1e-5)


def test_lora_for_two_models_reaches_both():
    encoder = SentenceEncoder(tiny_sentence_transformer(), document_model=tiny_sentence_transformer(seed=1), lora=2)
    assert all(any("lora_" in name for name, _ in part.named_parameters()) for part in encoder.parts().values())
    assert all("lora_" in name for name in moving(encoder))


def test_adapters_that_cannot_be_had_or_saved_are_refused():
    with pytest.raises(ConfigError, match="StaticEmbedding"):
        SentenceEncoder(tiny_sentence_transformer(kind="static"), lora=2)
    with pytest.raises(ConfigError, match="has adapters already"):
        SentenceEncoder(adapted(1).model, lora=2)
    kept = LoraConfig(target_modules=["q_lin"], modules_to_save=["k_lin"])
    with pytest.raises(ConfigError, match="modules_to_save"):
        SentenceEncoder(tiny_sentence_transformer(), lora=kept)
    model = tiny_sentence_transformer()
    model.add_adapter(LoraConfig(target_modules=["q_lin"]), "mine")
    with pytest.raises(ConfigError, match=r"\['mine'\]"):
        SentenceEncoder(model)


def test_adapters_of_another_model_are_noticed(tmp_path):
    adapted(1).save(tmp_path)
    (config,) = tmp_path.rglob("adapters/*/adapter_config.json")
    config.write_text(config.read_text().replace('"use_dora": false', '"use_dora": true'))
    with pytest.raises(StoreError, match="belong together"):
        SentenceEncoder.load(tmp_path)
