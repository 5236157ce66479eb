"""Fingerprint and plan: arithmetic only."""

from medunet.planning.fingerprint import Fingerprint, fingerprint
from medunet.planning.plan import Budget, Plan, in_words, plan

__all__ = ["Budget", "Fingerprint", "Plan", "fingerprint", "in_words", "plan"]
