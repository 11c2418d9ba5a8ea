"""Objectives: what a training run makes better. One paper, one page."""
