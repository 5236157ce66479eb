"""An event of a run beside Ignite's."""

from __future__ import annotations

from collections.abc import Callable

from ignite.engine import Engine, EventEnum


class RunEvents(EventEnum):
    """``PREPARED``: whatever may refuse a run has looked at it, and its cases are stored; no step was trained yet.

    Only now is anything removed that an earlier run left.
    """

    PREPARED = "prepared"


def on_prepared(engine: Engine, handler: Callable[[Engine], object]) -> None:
    """Call `handler` when a run is prepared."""
    engine.register_events(*RunEvents)
    engine.add_event_handler(RunEvents.PREPARED, handler)
