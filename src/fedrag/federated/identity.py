"""What must be equal at every site and does not travel, as one digest; and the scales of LoRA pairs.

Two sites whose frozen weights differ would average adapters that mean different things, and nothing would tell. So a
site tells a digest of

- the names, shapes and dtypes of what it exchanges (a LoRA pair's rank is left out: strategies may allow several),
- its frozen weights and the buffers that are saved with them, but not the running statistics of a BatchNorm,
- the classes of its models, and the configurations of their adapters without rank, alpha, dropout and paths.

It depends on values alone: another process or machine with the same weights has the same digest.

>>> [_widths("q_proj.lora_A.default.weight", (8, 64)), _widths("q_proj.lora_B.default.weight", (64, 8))]
[[None, 64], [64, None]]
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from enum import Enum
from fnmatch import fnmatchcase
from typing import Any, cast

from torch import Tensor, nn

from fedrag.ops.fingerprint import Fingerprint

_PAIR = re.compile(r"(?P<pair>.+)\.lora_(?:embedding_)?(?P<side>[AB])\.(?P<adapter>[^.]+)")
_STATISTICS = ("running_mean", "running_var", "num_batches_tracked")
_OWN = {  # of a peft configuration: what may differ by site, or tells where files lie
    "r", "lora_alpha", "rank_pattern", "alpha_pattern", "lora_dropout", "init_lora_weights", "inference_mode",
    "base_model_name_or_path", "revision", "auto_mapping", "peft_version", "runtime_config", "loftq_config",
    "eva_config", "corda_config",
}  # fmt: skip


def fingerprint(
    kind: str, roots: Mapping[str, nn.Module], trained: Mapping[str, nn.Parameter], ignoring: Sequence[str] = ()
) -> str:
    """The digest, 64 hexadecimal characters.

    Args:
        kind: of the task: the objective's class, say.
        roots: the models, by the prefix of their parameters' names.
        trained: what is exchanged, by name.
        ignoring: patterns of names that are the site's own.
    """
    exchanged = [
        [name, _widths(name, tuple(p.shape)), str(p.dtype)]
        for name, p in sorted(trained.items())
        if not _fits(name, ignoring)
    ]
    holder = nn.Module()
    for name, tensor in _frozen(roots, trained.values()):
        if not _fits(name, ignoring):
            holder.register_buffer("=" + name.replace(".", ":"), tensor)  # a buffer's name may have no dot in it
    names = {**trained, **dict(_parameters(roots))}
    shared = [name for name in names if not _fits(name, ignoring)]
    models = [
        [prefix, type(root).__name__, type(_inner(root)).__name__]
        for prefix, root in sorted(roots.items())
        if any(name.startswith(prefix) for name in shared)
    ]
    adapters = [
        [place, adapter, _plain({key: value for key, value in config.to_dict().items() if key not in _OWN})]
        for place, adapter, config in _adapters(roots)
        if any(name.startswith(place) for name in shared)
    ]
    told = [kind, exchanged, Fingerprint(holder)(), models, adapters]
    return hashlib.sha256(json.dumps(told, sort_keys=True).encode()).hexdigest()


def scales(roots: Mapping[str, nn.Module], trained: Iterable[str]) -> dict[str, float]:
    """What B·A is multiplied by, for each LoRA pair of which a side is trained, by the pair's name."""
    modules = {prefix + place: module for prefix, root in roots.items() for place, module in root.named_modules()}
    found: dict[str, float] = {}
    for name in trained:
        if match := _PAIR.match(name):
            layer = cast(Any, modules[match["pair"]])
            found[match["pair"]] = float(layer.scaling[match["adapter"]])
    return found


def _widths(name: str, shape: tuple[int, ...]) -> list[int | None]:
    """A shape, with `None` in place of a LoRA rank."""
    match = _PAIR.match(name)
    rank = {"A": 0, "B": 1}[match["side"]] if match else None
    return [None if place == rank else length for place, length in enumerate(shape)]


def _frozen(roots: Mapping[str, nn.Module], trained: Iterable[nn.Parameter]) -> Iterator[tuple[str, Tensor]]:
    """All that is saved with the models and not trained; what has several names comes under the first."""
    seen = {id(parameter) for parameter in trained}
    for prefix, root in roots.items():
        for name, tensor in root.state_dict(keep_vars=True).items():
            if isinstance(tensor, Tensor) and id(tensor) not in seen and not name.endswith(_STATISTICS):
                seen.add(id(tensor))
                yield prefix + name, tensor


def _parameters(roots: Mapping[str, nn.Module]) -> Iterator[tuple[str, nn.Parameter]]:
    for prefix, root in roots.items():
        for name, parameter in root.named_parameters():
            yield prefix + name, parameter


def _adapters(roots: Mapping[str, nn.Module]) -> Iterator[tuple[str, str, Any]]:
    """Each configuration of peft: the place of its model, the adapter's name, the configuration."""
    seen: set[int] = set()
    for prefix, root in roots.items():
        for place, module in root.named_modules():
            configs: Any = getattr(module, "peft_config", None)
            if isinstance(configs, Mapping):
                for adapter, config in sorted(cast(Mapping[str, Any], configs).items()):
                    if id(config) not in seen and hasattr(config, "to_dict"):
                        seen.add(id(config))
                        yield prefix + place, adapter, config


def _inner(root: nn.Module) -> nn.Module:
    inner = getattr(root, "get_base_model", None)
    return inner() if inner is not None else root


def _plain(value: Any) -> Any:
    """As JSON has it; sets in order, and without what is off or empty, which another version may not know."""
    if isinstance(value, Mapping):
        kept = {str(key): _plain(inner) for key, inner in cast(Mapping[Any, Any], value).items()}
        return {key: inner for key, inner in kept.items() if inner}
    if isinstance(value, set | frozenset | list | tuple):
        plain = [_plain(inner) for inner in cast(Iterable[Any], value)]
        return sorted(plain, key=json.dumps) if isinstance(value, set | frozenset | list) else plain
    return (
        value.value if isinstance(value, Enum) else value if isinstance(value, str | int | float) else str(value or "")
    )


def _fits(name: str, patterns: Sequence[str]) -> bool:
    return any(fnmatchcase(name, pattern) for pattern in patterns)
