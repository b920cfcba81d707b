"""Where each revision is, and the numbered list of what changed, for whoever routes jobs by residency."""

from __future__ import annotations

from workers.engine.core.residency_change import ResidencyChange, Tier

# An owner that never drains must not make the list grow without end: then only each revision's newest stays.
_MAX_UNDRAINED = 10_000


class ResidencyLog:
    """The present tiers and the changes since the last drain."""

    def __init__(self) -> None:
        self.epoch = 0
        self._tiers: dict[str, Tier] = {}
        self._undrained: list[ResidencyChange] = []

    def record(self, revision: str, tier: Tier) -> None:
        """Note a move; staying where it is changes nothing."""
        if self.tier_of(revision) == tier:
            return
        self.epoch += 1
        self._undrained.append(ResidencyChange(self.epoch, revision, tier))
        if tier == "none":
            del self._tiers[revision]
        else:
            self._tiers[revision] = tier
        if len(self._undrained) > _MAX_UNDRAINED:
            newest = {change.revision: change for change in self._undrained}
            self._undrained = sorted(newest.values(), key=lambda change: change.epoch)[-_MAX_UNDRAINED // 2 :]

    def drain(self) -> list[ResidencyChange]:
        """Return the changes since the last call, oldest first."""
        drained, self._undrained = self._undrained, []
        return drained

    def tier_of(self, revision: str) -> Tier:
        """Return where a revision is; `none` if nowhere."""
        return self._tiers.get(revision, "none")

    def tiers(self) -> dict[str, Tier]:
        """Return where every revision is that is anywhere."""
        return dict(self._tiers)
