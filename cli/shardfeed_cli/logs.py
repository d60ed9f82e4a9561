"""Logs on stderr: one line an event, for a person or as JSON."""

from __future__ import annotations

import logging
import sys
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Sequence

    from structlog.typing import EventDict, Processor

__all__ = ["show_logs"]


def show_logs(*, as_json: bool) -> None:
    """Show what this process logs from now on, ours and that of libraries: time, level, logger, event and facts."""
    import structlog

    shared: Sequence[Processor] = (
        structlog.stdlib.ExtraAdder(),
        structlog.stdlib.add_log_level,
        structlog.stdlib.add_logger_name,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
    )
    rendering: Sequence[Processor]
    if as_json:
        rendering = (structlog.processors.format_exc_info, structlog.processors.JSONRenderer(ensure_ascii=False))
    else:
        colours = sys.stderr.isatty()
        rendering = (
            _on_one_line,
            structlog.dev.ConsoleRenderer(colors=colours, pad_event_to=0, pad_level=False, sort_keys=False),
        )
    formatter = structlog.stdlib.ProcessorFormatter(
        foreign_pre_chain=shared,
        processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, *rendering],
    )
    handler = logging.StreamHandler()
    handler.setFormatter(formatter)
    logging.basicConfig(level=logging.INFO, handlers=[handler])


def _on_one_line(_logger: Any, _method: str, event: EventDict) -> EventDict:
    """Escape what does not print; a fact with blanks the renderer quotes, and escapes, itself."""
    for name, value in event.items():
        quoted = name != "event" and isinstance(value, str) and any(c.isspace() or c in "=\"'" for c in value)
        if isinstance(value, str) and name != "exception" and not quoted and not value.isprintable():
            event[name] = "".join(c if c.isprintable() else repr(c)[1:-1] for c in value)
    return event
