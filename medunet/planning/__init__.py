"""Fingerprint and plan: arithmetic only."""

from medunet.planning.fingerprint import Fingerprint, fingerprint
from medunet.planning.plan import Budget, Plan, plan

__all__ = ["Budget", "Fingerprint", "Plan", "fingerprint", "plan"]
