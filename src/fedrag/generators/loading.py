"""How a causal language model comes in and goes out: from a name, a folder or an object; whole, with LoRA, quantised.

What is written needs no fedrag to be read. A whole model is a folder for `AutoModelForCausalLM.from_pretrained`. A
model with adapters is a folder for `PeftModel.from_pretrained(base, folder)`, where the base is the name or path that
it came from, or, when it came as an object or was itself trained, the folder `base` inside.

>>> from peft import LoraConfig
>>> lora_config(8) == LoraConfig(r=8, lora_alpha=16, target_modules="all-linear", task_type="CAUSAL_LM")
True
"""

from __future__ import annotations

import importlib.util
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import AutoModelForCausalLM, PreTrainedModel

from fedrag.errors import ConfigError, MissingExtraError

_ADAPTER = "adapter_config.json"
_BASE = "base"


@dataclass(frozen=True, slots=True)
class Loaded:
    """A model, and the name or path that its base can be had from again; empty when it came as an object."""

    model: Any
    source: str


def lora_config(rank: int) -> LoraConfig:
    """Return the configuration that `lora=rank` stands for: every linear layer but the head, alpha twice the rank."""
    return LoraConfig(r=rank, lora_alpha=2 * rank, target_modules="all-linear", task_type="CAUSAL_LM")


def load_model(
    model: str | Path | PreTrainedModel | PeftModel,
    *,
    lora: int | LoraConfig | None = None,
    quantization: Any = None,
    dtype: torch.dtype | str | None = None,
    device: str | None = None,
) -> Loaded:
    """Load, quantise, adapt and place a model; it comes back in evaluation mode.

    A quantised model trains through `lora` only: its own weights are frozen. Raises `MissingExtraError` for a
    bitsandbytes configuration without bitsandbytes, `ConfigError` for settings that do not go together.
    """
    network: Any = model  # transformers decorates `to`, `from_pretrained` and others into shapes that hide their types
    if isinstance(model, str | Path):
        network, source = _read(str(model), quantization=quantization, dtype=dtype, device=device)
    elif quantization is not None:
        raise ConfigError("quantization applies while weights are read: pass the model's name or path, not an object")
    else:
        source = ""
        if dtype is not None:
            network = network.to(getattr(torch, dtype) if isinstance(dtype, str) else dtype)
        if device is not None:
            network = network.to(device)
    if quantization is not None and not isinstance(network, PeftModel):
        network.requires_grad_(False)
    if lora is not None:
        if isinstance(network, PeftModel):
            raise ConfigError(f"lora={lora!r} was given for a model that has adapters already; drop one of the two")
        network = get_peft_model(network, lora_config(lora) if isinstance(lora, int) else lora)
    if isinstance(network, PeftModel) and network.active_peft_config.is_prompt_learning:
        raise ConfigError(
            f"{network.active_peft_config.peft_type} adapters learn a prompt, which scoring would not see; use LoRA"
        )
    return Loaded(network.eval(), source)


def save_model(loaded: Loaded, folder: Path) -> None:
    """Write a model into `folder`, which must exist, so that transformers and peft read it."""
    model = loaded.model
    model.save_pretrained(folder)
    if isinstance(model, PeftModel) and (not loaded.source or _base_trains(model)):
        base: Any = model.get_base_model()
        base.save_pretrained(folder / _BASE, state_dict=_base_weights(model))


def _read(name: str, *, quantization: Any, dtype: torch.dtype | str | None, device: str | None) -> tuple[Any, str]:
    folder = Path(name)
    if (folder / _ADAPTER).is_file():
        written = json.loads((folder / _ADAPTER).read_text(encoding="utf-8"))
        inside = (folder / _BASE).is_dir()
        source = str(folder / _BASE) if inside else str(written["base_model_name_or_path"])
        base, _ = _read(source, quantization=quantization, dtype=dtype, device=device)
        return PeftModel.from_pretrained(base, name, is_trainable=True), "" if inside else source
    settings: dict[str, Any] = {"dtype": "auto" if dtype is None else dtype}
    if quantization is not None:
        _require_bitsandbytes(quantization)
        place = device or ("cuda" if torch.cuda.is_available() else "cpu")
        return AutoModelForCausalLM.from_pretrained(
            name, quantization_config=quantization, device_map={"": place}, **settings
        ), name
    place = device or ("cuda" if torch.cuda.is_available() else "cpu")
    whole: Any = AutoModelForCausalLM.from_pretrained(name, **settings)
    return whole.to(place), name


def _require_bitsandbytes(quantization: Any) -> None:
    method = getattr(quantization, "quant_method", "")
    if getattr(method, "value", method) == "bitsandbytes" and importlib.util.find_spec("bitsandbytes") is None:
        raise MissingExtraError(
            f"{type(quantization).__name__} needs bitsandbytes, which is not installed: pip install 'fedrag[quantised]'"
        )


def _base_trains(model: PeftModel) -> bool:
    prefix = str(model.base_model.prefix)
    return any(
        p.requires_grad and prefix not in name and "modules_to_save" not in name for name, p in model.named_parameters()
    )


def _base_weights(model: PeftModel) -> dict[str, torch.Tensor]:
    prefix = str(model.base_model.prefix)
    weights: dict[str, torch.Tensor] = {}
    for name, tensor in model.get_base_model().state_dict().items():
        if prefix not in name and ".modules_to_save." not in name:
            weights[name.replace(".base_layer.", ".").replace(".original_module.", ".")] = tensor
    return weights
