"""How a causal language model comes in and goes out: from a name, a folder or an object; whole, with LoRA, quantised.

What is written needs no fedrag to be read. A whole model is a folder for `AutoModelForCausalLM.from_pretrained`. A
model with adapters is a folder for `PeftModel.from_pretrained(base, folder)`, where the base is the name that it came
from, or, when it came from a local folder, as an object, or was itself trained, the folder `base` inside: what is
written names no path of this machine and can be moved to another.

>>> from peft import LoraConfig
>>> lora_config(8) == LoraConfig(r=8, lora_alpha=16, target_modules="all-linear", task_type="CAUSAL_LM")
True
"""

from __future__ import annotations

import importlib.util
import json
import shutil
from collections.abc import Generator, Iterable
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from peft.tuners.tuners_utils import BaseTunerLayer
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase
from transformers.quantizers.auto import AutoQuantizationConfig

from fedrag.errors import ConfigError, MissingExtraError, StoreError

_ADAPTER = "adapter_config.json"
_BASE = "base"


@dataclass(frozen=True, slots=True)
class Loaded:
    """A model, and the hub's name that its base can be had by again; empty when it came from elsewhere."""

    model: Any
    source: str
    quantization: Any = None

    @property
    def base(self) -> Any:
        """The model of transformers, with adapters, if any, inside its layers."""
        return self.model.get_base_model() if isinstance(self.model, PeftModel) else self.model


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

    `dtype=None` keeps the precision that the weights have, with one exception: a model read whole, without adapters or
    quantisation, is read in float32, because in half precision most of an optimizer's small steps round to nothing.
    `dtype="auto"` makes no exception.

    A quantised model trains through `lora` only: its own weights are frozen. Raises `MissingExtraError` for a
    bitsandbytes configuration without bitsandbytes, `ConfigError` for settings that do not go together.
    """
    network: Any = model  # transformers decorates `to`, `from_pretrained` and others into shapes that hide their types
    if isinstance(model, str | Path):
        network, source = _read(str(model), quantization=quantization, dtype=dtype, device=device)
        bare = lora is None and not isinstance(network, PeftModel) and not getattr(network, "is_quantized", False)
        if dtype is None and bare and network.dtype in (torch.bfloat16, torch.float16):
            network = network.float()
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
    if isinstance(network, PeftModel) and list(network.peft_config) != ["default"]:
        raise ConfigError(
            f"the model has the adapters {list(network.peft_config)}: one, named 'default', can be trained and saved"
        )
    return Loaded(network.eval(), source, quantization)


def save_model(
    loaded: Loaded, tokenizer: PreTrainedTokenizerBase, folder: Path, *, base_trains: bool
) -> dict[str, Any] | None:
    """Write model and tokenizer into `folder`, which must exist; return the quantisation to read a bare base with.

    `base_trains` tells that weights beside the adapters are not those of the hub.
    """
    model: Any = loaded.model
    quantization = loaded.quantization
    if not isinstance(model, PeftModel):
        model.save_pretrained(folder)
        (folder / _ADAPTER).unlink(missing_ok=True)  # of another model that was saved here before
        quantization = None  # the configuration of a whole model says it
    elif not loaded.source or base_trains:
        with _base_inside(model):
            model.save_pretrained(str(folder), save_embedding_layers=False)
        loaded.base.save_pretrained(folder / _BASE, state_dict=_base_weights(model))
    else:  # the embeddings are those of the base; peft would ask the hub whether they are
        model.save_pretrained(str(folder), save_embedding_layers=False)
        shutil.rmtree(folder / _BASE, ignore_errors=True)  # of other adapters that were saved here before
    tokenizer.save_pretrained(folder)
    return quantization and quantization.to_dict()


def read_quantization(saved: dict[str, Any] | None, folder: Path) -> Any:
    """Return the configuration that `save_model` described. Raises `StoreError` for a description of nothing known."""
    try:
        return saved and AutoQuantizationConfig.from_dict(dict(saved))
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise StoreError(
            f"{folder} was quantised in a way that cannot be read ({error}); update transformers"
        ) from None


def trainable(model: Any) -> set[str]:
    """Return the names of the parameters that take a gradient."""
    return {name for name, parameter in model.named_parameters() if parameter.requires_grad}


def outside_adapters(model: Any, names: Iterable[str]) -> tuple[str, ...]:
    """Return those `names` of parameters that are neither adapters nor copies made to train beside them."""
    if not isinstance(model, PeftModel):
        return ()
    prefix = str(model.base_model.prefix)
    return tuple(name for name in names if prefix not in name and "modules_to_save" not in name)


def unfreeze(model: Any, names: Iterable[str], folder: Path) -> None:
    """Let the parameters of these names train. Raises `StoreError` where the model read from `folder` has none such."""
    parameters = dict(model.named_parameters())
    for name in names:
        if name not in parameters:
            raise StoreError(f"{folder} says that {name} trains, its model has no such parameter; restore it")
        parameters[name].requires_grad_(True)


def architecture(base: Any) -> tuple[dict[str, Any], list[str]]:
    """Return what decides a model's output beside its weights: its configuration and the state of its adapters."""
    unrelated = {"_name_or_path", "transformers_version", "dtype", "torch_dtype", "architectures", "use_cache"}
    config = {key: value for key, value in base.config.to_dict().items() if key not in unrelated}
    layers = (module for module in base.modules() if isinstance(module, BaseTunerLayer))
    states = {
        f"{layer.disable_adapters} {layer.merged_adapters} {layer.active_adapters} {getattr(layer, 'scaling', '')}"
        for layer in layers
    }
    return config, sorted(states)


def find_tokenizer(model: str | Path | PreTrainedModel | PeftModel, base: Any) -> PreTrainedTokenizerBase:
    """Return the tokenizer that lies beside a model. Raises `ConfigError` for an object that came from nowhere."""
    name = str(model) if isinstance(model, str | Path) else str(base.config._name_or_path)
    if not name:
        raise ConfigError("the model is an object that names no source: pass its tokenizer as the second argument")
    if isinstance(model, Path | str) and Path(name).is_dir() and not (Path(name) / "tokenizer_config.json").is_file():
        name = str(base.config._name_or_path)  # an adapter's folder may hold no tokenizer: its base has one
    return AutoTokenizer.from_pretrained(name)


def count_positions(base: Any, tokenizer: PreTrainedTokenizerBase) -> int:
    """Return how many tokens a model can take at once. Raises `ConfigError` where nothing says so."""
    config = base.config.get_text_config()
    for name in ("max_position_embeddings", "max_seq_len", "seq_length"):
        if isinstance(value := getattr(config, name, None), int) and value > 0:
            return value
    if tokenizer.model_max_length < 10**9:
        return int(tokenizer.model_max_length)
    raise ConfigError(f"{type(base).__name__} names no number of positions: pass max_length")


def end_ids(base: Any) -> list[int]:
    """Return the ids that end a text according to the checkpoint: a chat model may have several."""
    ends = getattr(getattr(base, "generation_config", None), "eos_token_id", None)
    return [] if ends is None else [ends] if isinstance(ends, int) else list(ends)


def _read(name: str, *, quantization: Any, dtype: torch.dtype | str | None, device: str | None) -> tuple[Any, str]:
    folder = Path(name)
    if (folder / _ADAPTER).is_file():
        inside = (folder / _BASE).is_dir()
        source = str(folder / _BASE) if inside else _base_name(folder)
        try:
            base, kept = _read(source, quantization=quantization, dtype=dtype, device=device)
        except OSError as error:
            raise StoreError(
                f"{folder} holds adapters of the base model {source!r}, which cannot be read; connect to the model "
                f"hub, or put the base model into {folder / _BASE}"
            ) from error
        return PeftModel.from_pretrained(base, name, is_trainable=True), kept
    place = device or ("cuda" if torch.cuda.is_available() else "cpu")
    settings: dict[str, Any] = {"dtype": "auto" if dtype is None else dtype}
    if quantization is not None:
        _require_bitsandbytes(quantization)
        settings |= {"quantization_config": quantization, "device_map": {"": place}}
    whole: Any = AutoModelForCausalLM.from_pretrained(name, **settings)
    return (whole if quantization is not None else whole.to(place)), "" if folder.is_dir() else name


def _base_name(folder: Path) -> str:
    try:
        source: Any = json.loads((folder / _ADAPTER).read_text(encoding="utf-8"))["base_model_name_or_path"]
    except (ValueError, TypeError, KeyError):
        source = None
    if not isinstance(source, str) or not source:
        raise StoreError(f"{folder / _ADAPTER} names no base model; put the base model into {folder / _BASE}")
    return source


@contextmanager
def _base_inside(model: PeftModel) -> Generator[None]:
    # peft writes where a base came from into the adapters' configuration and their README: a path of this machine
    adapters: Any = model.peft_config["default"]
    base: Any = model.get_base_model()
    before = adapters.base_model_name_or_path, base.config._name_or_path, base.name_or_path
    adapters.base_model_name_or_path = base.config._name_or_path = base.name_or_path = _BASE
    try:
        yield
    finally:
        adapters.base_model_name_or_path, base.config._name_or_path, base.name_or_path = before


def _require_bitsandbytes(quantization: Any) -> None:
    method = getattr(quantization, "quant_method", "")
    if getattr(method, "value", method) == "bitsandbytes" and importlib.util.find_spec("bitsandbytes") is None:
        raise MissingExtraError(
            f"{type(quantization).__name__} needs bitsandbytes, which is not installed: pip install 'fedrag[quantised]'"
        )


def _base_weights(model: PeftModel) -> dict[str, torch.Tensor]:
    prefix = str(model.base_model.prefix)
    weights: dict[str, torch.Tensor] = {}
    for name, tensor in model.get_base_model().state_dict().items():
        if prefix not in name and ".modules_to_save." not in name:
            weights[name.replace(".base_layer.", ".").replace(".original_module.", ".")] = tensor
    return weights
