"""The measures of one walk under way.

A turn reports by how much each measure changed, so that the sum over the turns is the measure where the episode ends,
however it ends: an episode that runs out of turns has a navigation error too.
"""

from collections.abc import Mapping

from agentflow.environments.navigation import metrics
from agentflow.environments.navigation.world import Leg, Walk

TERMS: Mapping[str, str] = {
    "success": "Whether the walker stopped within the radius of the goal.",
    "soft_success": "How near to the goal a successful stop was: 1 there, 0 at the radius.",
    "spl": "Success weighted by path length: the shortest way beside the walked one.",
    "oracle_success": "Whether any place of the way was within the radius.",
    "navigation_error": "Metres to the goal by the shortest way, where the episode ends; at most 1000.",
    "ndtw": "Likeness of the way to the expert's, by normalised dynamic time warping.",
    "sdtw": "The same for successful episodes, else 0.",
    "format": "Whether every call could be read and done.",
    "collisions": "Steps that a wall stopped or bent.",
    "actions": "Actions; one of 75 cm or 45 degrees is one.",
}
_FARTHEST = 1000.0
"""A place that no way leads to counts as this far."""


class Measures:
    """Follow one walk.

    Args:
        walk: The walk, for what it is compared with.
        radius: The distance at which a stop succeeds.
    """

    def __init__(self, walk: Walk, radius: float) -> None:
        self._shortest, self._reference, self._radius = walk.shortest, walk.reference, radius
        self._row = metrics.first_row(len(self._reference))
        self._told: dict[str, float] = {}
        self._distance: float | None = None
        self._near = self._stopped = False
        self._well_formed = True
        self._length = 0.0
        self._collisions = self.num_actions = 0
        self.add(walk.first)

    def add(self, leg: Leg) -> None:
        """Go on by a leg."""
        for place in leg.places if self._reference else ():
            self._row = metrics.next_row(self._row, place, self._reference)
        if leg.distances:
            self._distance = min(leg.distances[-1], _FARTHEST)
            self._near = self._near or bool(metrics.oracle_success(leg.distances, radius=self._radius))
        self._length += leg.length
        self._collisions += leg.num_collisions
        self.num_actions += leg.num_actions
        self._stopped = self._stopped or leg.stopped

    def add_error(self) -> None:
        """Count a call that could not be read or done."""
        self._well_formed = False

    def changes(self) -> dict[str, float]:
        """Return by how much each measure changed since the last call."""
        values = self.values()
        changes = {name: value - self._told.get(name, 0.0) for name, value in values.items()}
        self._told = values
        return changes

    def values(self) -> dict[str, float]:
        """Return each measure that is known, as if the episode ended here."""
        values = {
            "format": float(self._well_formed),
            "collisions": float(self._collisions),
            "actions": float(self.num_actions),
        }
        if self._distance is None:
            return {"success": 0.0, **values}
        succeeded = metrics.success(self._distance, stopped=self._stopped, radius=self._radius)
        values |= {
            "success": succeeded,
            "soft_success": metrics.soft_success(self._distance, stopped=self._stopped, radius=self._radius),
            "oracle_success": float(self._near),
            "navigation_error": self._distance,
        }
        if self._shortest is not None:
            values["spl"] = metrics.spl(succeeded, shortest=self._shortest, walked=self._length)
        if self._reference:
            likeness = metrics.ndtw(self._row[-1], num_reference=len(self._reference), radius=self._radius)
            values |= {"ndtw": likeness, "sdtw": succeeded * likeness}
        return values
