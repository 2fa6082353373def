"""`identity doctor`: looks at everything that the service stands on, changes nothing, and says what to do."""

from __future__ import annotations

from sqlalchemy.exc import DBAPIError

from ..storage import inspection
from .database import examine_database
from .findings import Finding, Patient, Severity, as_json, as_text, worst
from .machine import examine_machine

__all__ = ["Finding", "Patient", "Severity", "as_json", "as_text", "examine", "worst"]


async def examine(patient: Patient) -> list[Finding]:
    """Every check, in an order in which causes come before effects."""
    return [*examine_machine(patient), *await examine_database(patient), *await _redis(patient)]


async def _redis(patient: Patient) -> list[Finding]:
    if not patient.settings.redis_url:
        return []
    from .redis import examine_redis

    try:
        feed = await inspection.look(patient.settings.database, inspection.feed_position)
    except (DBAPIError, OSError):
        feed = None  # told by the check of the database
    return await examine_redis(patient, feed)
