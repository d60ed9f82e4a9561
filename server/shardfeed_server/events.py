"""What a server says: events with facts, through the standard library's logging, whoever has set that up.

So a program that embeds a server sees records like any other's, with the facts as their attributes; the command
line shows them on one line each, or as JSON.
"""

from __future__ import annotations

import logging

import structlog

__all__ = ["logger"]


def logger(name: str) -> structlog.stdlib.BoundLogger:
    """Return a logger whose methods take an event in words, and facts by name."""
    bound: structlog.stdlib.BoundLogger = structlog.wrap_logger(
        logging.getLogger(name),
        processors=[structlog.stdlib.filter_by_level, structlog.stdlib.render_to_log_kwargs],
        wrapper_class=structlog.stdlib.BoundLogger,
    )
    return bound
