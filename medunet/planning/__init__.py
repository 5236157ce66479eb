"""Fingerprint and plan: arithmetic only."""

from medunet.planning.fingerprint import Fingerprint, fingerprint
from medunet.planning.plan import plan
from medunet.planning.record import Budget, Plan, in_words

__all__ = ["Budget", "Fingerprint", "Plan", "fingerprint", "in_words", "plan"]
