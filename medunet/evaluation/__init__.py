"""Metrics, scores and the report."""

from medunet.evaluation.scores import evaluate, read_scores, summarise, write_scores

__all__ = ["evaluate", "read_scores", "summarise", "write_scores"]
