"""Every error that medunet raises on purpose.

    MedunetError                 exit code 2: bad input or usage, nothing written
    ├── InputError               a file that is missing, unreadable or not what it claims
    │   ├── DatasetError         a dataset folder that cannot be trained on
    │   └── GeometryError        two grids that should agree and do not
    ├── PlanError                a plan that cannot be made, or a hand edit that does not fit
    ├── BundleError              a bundle that is incomplete or a config that does not resolve
    ├── NetworkError             a network or an input size that does not fit it
    ├── TrainingError            a run that cannot go on as it is
    ├── ResourceError            memory or disk ran out
    │   └── DiskFullError        a file that the disk has no room for
    ├── MismatchError            an input that the model was not trained for (``--force`` overrides)
    ├── PartialFailureError      exit code 1: some cases failed, the others are done
    └── UnsafeError              exit code 3: refused as unsafe

A message says what, where, got, do - in one sentence.
"""

from __future__ import annotations

import os


class MedunetError(Exception):
    """Root of all errors that a user can do something about."""

    exit_code = 2


class InputError(MedunetError):
    """A file that is missing, unreadable or not what it claims to be."""


class DatasetError(InputError):
    """A dataset folder that cannot be used as it is."""


class GeometryError(InputError):
    """Two grids that should agree and do not."""


class PlanError(MedunetError):
    """A plan that cannot be made, or a hand edit that does not fit."""


class BundleError(MedunetError):
    """A bundle that is incomplete, or a config that does not resolve."""


class NetworkError(MedunetError, ValueError):
    """A network definition or an input size that does not fit."""


class TrainingError(MedunetError):
    """A training run that cannot go on as it is."""


class ResourceError(MedunetError):
    """Memory or disk ran out."""


class DiskFullError(ResourceError):
    """A file that the disk has no room for; `place` is that file, or its folder."""

    def __init__(self, message: str, place: str | os.PathLike[str] = "") -> None:
        super().__init__(message)
        self.place = place


class MismatchError(MedunetError):
    """An input that the model was not made for."""


class PartialFailureError(MedunetError):
    """Some cases failed, the others are done."""

    exit_code = 1


class UnsafeError(MedunetError):
    """Refused as unsafe."""

    exit_code = 3


def root_cause(error: BaseException) -> BaseException:
    """The first medunet error in the chain of causes of `error`, else its innermost cause.

    MONAI and Ignite wrap errors in RuntimeError; the sentence that helps the user is further down.
    """
    seen: list[BaseException] = []
    current: BaseException | None = error
    while current is not None and current not in seen:
        if isinstance(current, MedunetError):
            return current
        seen.append(current)
        current = current.__cause__ or current.__context__
    return seen[-1]
