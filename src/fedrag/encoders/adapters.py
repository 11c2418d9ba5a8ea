"""LoRA adapters in a sentence-transformers model, and a saved form of them that needs nothing else to be read.

sentence-transformers saves the adapters alone: without the model that they were trained on, or in a model of two
towers, nothing loads them. Here a folder holds both forms. As a whole it is the model with its adapters merged into
the weights, which `SentenceTransformer(folder)` loads. Beside it lies what merging loses, and `restore` puts it back:

    folder/...                   the merged model; its vectors are those of the adapted one up to rounding
    folder/adapters/<place>/...  per transformer: the adapters' configuration, and the adapted layers as they were,
                                 their own weights and the adapters', bit for bit

>>> lora_config(8).lora_alpha
16
"""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

from peft import LoraConfig, PeftConfig, PeftModel
from peft.tuners.tuners_utils import BaseTunerLayer
from safetensors.torch import load_file, save_file
from sentence_transformers import SentenceTransformer
from sentence_transformers.base.modules import Transformer
from torch import Tensor

from fedrag.errors import ConfigError, StoreError

_FOLDER = "adapters"
_WEIGHTS = "weights.safetensors"
_NAME = "default"


def lora_config(lora: int | LoraConfig) -> LoraConfig:
    """Return the configuration that `lora=rank` stands for: every linear layer, alpha twice the rank."""
    if isinstance(lora, LoraConfig):
        return lora
    return LoraConfig(r=lora, lora_alpha=2 * lora, target_modules="all-linear", task_type="FEATURE_EXTRACTION")


def add_lora(model: SentenceTransformer, lora: int | LoraConfig) -> None:
    """Give every transformer of the model, one per tower, adapters to train in place of its weights.

    Raises:
        ConfigError: if the model has no transformer, or one that has adapters already.
    """
    networks = _networks(model)
    if not networks:
        raise ConfigError(
            f"lora={lora!r} needs a transformer, the encoder's first layer is a {type(model[0]).__name__}: drop lora "
            "and train its weights"
        )
    if any(_adapted(network) for network in networks.values()):
        raise ConfigError(
            f"lora={lora!r} was given for an encoder that has adapters already: drop lora to go on training those"
        )
    for network in networks.values():
        network.add_adapter(copy.deepcopy(lora_config(lora)))


def check_savable(model: SentenceTransformer) -> None:
    """Raise `ConfigError` for adapters that `save` could not write, before anything is trained."""
    for network in _networks(model).values():
        if isinstance(network, PeftModel) or (_adapted(network) and list(network.peft_config) != [_NAME]):
            raise ConfigError(
                f"the encoder has the adapters {list(network.peft_config)} of a {type(network).__name__}: merge them "
                "into its weights, or pass the model without them and lora=rank"
            )
        for config in network.peft_config.values() if _adapted(network) else ():
            if getattr(config, "modules_to_save", None) or getattr(config, "trainable_token_indices", None):
                raise ConfigError(
                    "modules_to_save and trainable_token_indices are not kept when an encoder is saved: leave them out "
                    "of the LoraConfig, or train all weights without lora"
                )


def save(model: SentenceTransformer, folder: Path) -> None:
    """Write the model into `folder`: merged, and beside it what `restore` needs."""
    adapted = {place: network for place, network in _networks(model).items() if _adapted(network)}
    merged = copy.deepcopy(model) if adapted else model
    for network in _networks(merged).values():
        if _adapted(network):
            _merge(network)
    merged.save(str(folder), create_model_card=False)
    for place, network in adapted.items():
        config = copy.deepcopy(network.peft_config[_NAME])
        config.base_model_name_or_path = None  # it lies beside; the path that it came from is this machine's
        config.save_pretrained(str(folder / _FOLDER / place))
        save_file(_layers(network), folder / _FOLDER / place / _WEIGHTS)


def restore(model: SentenceTransformer, folder: Path) -> None:
    """Make a model, just loaded from `folder`, the adapted one that `save` was given; others stay as they are.

    Raises:
        StoreError: if the adapters do not fit the model.
    """
    for place, network in _networks(model).items():
        source = folder / _FOLDER / place
        if not source.is_dir():
            continue
        config = PeftConfig.from_pretrained(str(source))
        if isinstance(config, LoraConfig):
            config.init_lora_weights = True  # they are read below, whatever costly way they once began
        network.add_adapter(config, _NAME)
        layers = load_file(source / _WEIGHTS)
        if {name: w.shape for name, w in layers.items()} != {name: w.shape for name, w in _layers(network).items()}:
            raise StoreError(f"{source} and the model beside it do not belong together; restore the folder from a copy")
        network.load_state_dict(layers, strict=False)


def _networks(model: SentenceTransformer) -> dict[str, Any]:
    """Every tower's network of the transformers library, by the place of its module in the model."""
    return {place: part.auto_model for place, part in model.named_modules() if isinstance(part, Transformer)}


def _adapted(network: Any) -> bool:
    return any(isinstance(layer, BaseTunerLayer) for layer in network.modules())


def _layers(network: Any) -> dict[str, Tensor]:
    """The weights of the layers that have adapters, and the adapters'."""
    places = tuple(f"{name}." for name, layer in network.named_modules() if isinstance(layer, BaseTunerLayer))
    weights = {name: weight for name, weight in network.state_dict().items() if name.startswith(places)}
    return {name: weight.detach().clone().contiguous() for name, weight in weights.items()}


def _merge(network: Any) -> None:
    """Fold the adapters into the weights and leave no trace of them."""
    for name, layer in list(network.named_modules()):
        if isinstance(layer, BaseTunerLayer):
            layer.merge()
            network.set_submodule(name, layer.get_base_layer())
    network._hf_peft_config_loaded = False
    network._weight_conversions = None  # of adapters that transformers loaded: it would give every weight peft's name
    del network.peft_config
