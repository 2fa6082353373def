"""What a guard tells whoever measures it."""

from __future__ import annotations


class Hooks:
    """Override what you want to count. The methods are called on the request path, from any thread: count, and return.
    What they raise is logged and changes nothing. A method without a rule is told as an empty name, so that callers
    cannot invent names."""

    def on_judged(self, method: str) -> None:
        """A call was judged, whatever came of it."""

    def on_refused(self, method: str, reason: str) -> None:
        """A call was refused, or a running stream ended."""

    def on_would_refuse(self, method: str, reason: str) -> None:
        """The same in report-only mode: the call went through."""

    def on_accepted_stale(self, method: str) -> None:
        """A call was admitted although the trust state is older than allowed (on_stale="accept")."""
