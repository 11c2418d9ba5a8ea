"""Ablations: what each way of training is worth, measured alike over several seeds, in one resumable call."""

from fedrag.ablations.cell import Cell, Cost
from fedrag.ablations.result import Ablation, Column, Contrast
from fedrag.ablations.run import ablation

__all__ = ["Ablation", "Cell", "Column", "Contrast", "Cost", "ablation"]
