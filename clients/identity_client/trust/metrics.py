"""What happens to a peer's trust state, for whoever counts it."""

from __future__ import annotations


class TrustMetrics:
    """Override what you need; nothing is counted here.

    The methods are called on the stream's event loop, those of `observed` about four times a second: they must neither
    block nor raise.
    """

    def observed(self, staleness_seconds: float, entry_count: int, clock_skew_seconds: float) -> None:
        """How old the state is (infinite before the first snapshot), how many revocations it holds, and how far the
        service's clock is ahead of ours."""

    def snapshot_applied(self, entry_count: int) -> None:
        """A whole snapshot replaced what was held; so many revocations are held now."""

    def changes_applied(self, count: int) -> None:
        """So many changes were taken up."""

    def stream_ended(self, reason: str) -> None:
        """The stream broke off and is opened again."""

    def stream_renewed(self) -> None:
        """Another stream took over before the old one's token or connection was too old."""
