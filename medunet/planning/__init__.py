"""Fingerprint and plan: arithmetic only."""

from medunet.planning.fingerprint import Fingerprint, fingerprint
from medunet.planning.plan import Budget, Plan, plan
from medunet.planning.words import in_words

__all__ = ["Budget", "Fingerprint", "Plan", "fingerprint", "in_words", "plan"]
