"""A saved system's models as plain folders: adapters merged into weights, for vLLM, GGUF converters and the like.

    out/generator/      config, safetensors, tokenizer, chat template, generation config: transformers alone reads it
    out/encoder/        sentence-transformers alone reads it
    out/reranker/       where the system has one, the same
    out/prompt.json     how question and documents become one text, which the generator was tuned to

Adapters are merged in float32 and rounded once, to the precision that is asked for; for that the generator takes four
bytes of memory a parameter, whatever it was saved in, and a quantised base is read whole. What was written is read
back, and compared with the adapted model on the same tokens.
"""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from peft import PeftModel
from safetensors import SafetensorError
from torch import Tensor
from transformers import AutoModelForCausalLM

from fedrag.bundles.place import FILE, parts_in
from fedrag.errors import ConfigError, FedRAGError, StoreError
from fedrag.generators.causal import CausalLM
from fedrag.prompts import Prompt
from fedrag.types import Document

DType = Literal["float32", "bfloat16", "float16"]
_SLACK = 1e-3
"""Of the largest logit: what merging in float32 may move a logit by."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Exported:
    """What was written, and how near it is to the system's own generator on one prompt's tokens.

    `difference` is the largest one of a logit, `largest` the largest logit, `same` the share of tokens whose most
    likely next token is the same; all `None` for a system without a generator in its folder.
    """

    folders: tuple[str, ...]
    dtype: str
    difference: float | None = None
    largest: float | None = None
    same: float | None = None


def export(system: Path, out: Path, *, dtype: DType = "bfloat16") -> Exported:
    """Write a saved system's models into a new folder, whole or not at all.

    Raises `ConfigError` for a folder that is there, `StoreError` where there is no saved system, or what was written
    does not say what the adapted model says.
    """
    if dtype not in ("float32", "bfloat16", "float16"):
        raise ConfigError(f"dtype={dtype!r}: it must be float32, bfloat16 or float16")
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise ConfigError(f"{out} is there and not empty: name a new folder")
    version = parts_in(system)
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        aside = Path(tempfile.mkdtemp(prefix=f".{out.name}-", dir=out.parent))
    except OSError as error:
        raise ConfigError(f"{out} cannot be written ({error.strerror}): name a new folder elsewhere") from None
    try:
        for name in ("encoder", "reranker"):  # as saved they are merged; adapters to train on lie beside
            if (version / name).is_dir():
                shutil.copytree(version / name, aside / name, ignore=shutil.ignore_patterns("adapters"))
        prompt = json.loads((version / FILE).read_text(encoding="utf-8"))["prompt"]
        (aside / "prompt.json").write_text(json.dumps(prompt, indent=1) + "\n", encoding="utf-8")
        near: dict[str, float] = {}
        if (version / "generator").is_dir():
            near = _generator(version / "generator", aside / "generator", Prompt(**prompt), dtype)
        os.chmod(aside, 0o755)  # a temporary folder is its owner's alone
        os.replace(aside, out)
    except FedRAGError:
        raise
    except (OSError, ValueError, KeyError, TypeError, RuntimeError, SafetensorError) as error:
        raise StoreError(f"{system} cannot be exported ({type(error).__name__}: {error})") from error
    finally:
        shutil.rmtree(aside, ignore_errors=True)
    return Exported(folders=tuple(sorted(p.name for p in out.iterdir() if p.is_dir())), dtype=dtype, **near)


def _generator(saved: Path, out: Path, prompt: Prompt, dtype: DType) -> dict[str, float]:
    """Write the generator with its adapters merged; return how near the written one is."""
    generator = CausalLM(saved, dtype="float32")
    text = prompt.render("What is written here?", [Document("Nothing is written here. One, two, three.")])
    ids = torch.tensor([generator.prompt_ids(text)[: generator.max_length]], device=generator.device)  # [1, t]
    wanted = _logits(generator.model, ids)
    model: Any = generator.model
    whole: Any = model.merge_and_unload() if isinstance(model, PeftModel) else model
    whole.config._name_or_path = ""  # a path of this machine
    merged = float((_logits(whole, ids) - wanted).abs().max())
    largest = float(wanted.abs().max())
    if not merged <= _SLACK * max(largest, 1.0):
        raise StoreError(f"merging {saved} moved a logit by {merged:.3g}, more than rounding does: report it")
    whole.to(getattr(torch, dtype)).save_pretrained(out, safe_serialization=True)
    generator.tokenizer.save_pretrained(out)
    device = generator.device
    del generator, model, whole
    read: Any = AutoModelForCausalLM.from_pretrained(out, dtype=torch.float32)
    found = _logits(read.to(device).eval(), ids)
    same = (found.argmax(-1) == wanted.argmax(-1)).float().mean()
    return {"difference": float((found - wanted).abs().max()), "largest": largest, "same": float(same)}


def _logits(model: Any, ids: Tensor) -> Tensor:
    with torch.no_grad():
        return model(input_ids=ids).logits[0].float().cpu()  # [t, v]
