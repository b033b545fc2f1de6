"""Instructions: five families, each in several phrasings, of which the last is held out.

| family | what is told |
| --- | --- |
| `route` | every room of the way, and the landmark at its end |
| `relative` | the same, but the end is one metre before the landmark |
| `landmarks` | a landmark of every room of the way, but no room |
| `terse` | the first room, then the sides on which the doors are |
| `goal` | the landmark and its room alone: the way must be found |

An instruction uses facts of the house only, and never says how long the way is. Held-out phrasings are made of words
that occur in the others.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, TypeAlias, get_args

Family: TypeAlias = Literal["route", "relative", "landmarks", "terse", "goal"]
FAMILIES: tuple[Family, ...] = get_args(Family)


@dataclass(frozen=True, slots=True)
class Facts:
    """What an instruction may tell.

    Attributes:
        rooms: The rooms of the way by name, the first and the last included.
        sides: For each door but the first, on which side it is for whoever came through the one before.
        passed: A landmark of each room between the first and the last.
        goal: The landmark at the end.
    """

    rooms: tuple[str, ...]
    sides: tuple[str, ...]
    passed: tuple[str, ...]
    goal: str


def num_phrasings(family: Family) -> int:
    """Return the number of phrasings of a family, the held-out one included."""
    return len(_PHRASINGS[family])


def instruct(family: Family, phrasing: int, facts: Facts) -> str:
    """Write an instruction."""
    between = {"route": facts.rooms[1:], "relative": facts.rooms[1:], "landmarks": facts.passed}.get(
        family, facts.sides
    )
    first, join, last = _PHRASINGS[family][phrasing]
    words = {"start": facts.rooms[0], "next": facts.rooms[1], "room": facts.rooms[-1], "goal": facts.goal}
    told = [first.format(**words), *(join.format(item) for item in between), last.format(**words)]
    return "".join(told)


Phrasing: TypeAlias = tuple[str, str, str]
"""How it begins, what is said of each item on the way, how it ends."""
_ROUTE: Sequence[Phrasing] = (
    ("Walk from the {start}", " to the {}", " and stop at the {goal}."),
    ("Leave the {start}:", " go to the {},", " stop at the {goal}."),
    ("From the {start} walk through", " the {},", " to the {goal}."),
    ("Leave the {start} and walk", " to the {},", " and stop at the {goal}."),
)
_PHRASINGS: Mapping[Family, Sequence[Phrasing]] = {
    "route": _ROUTE,
    "relative": tuple(
        (first, join, last.replace("at the", "one metre before the").replace(" to the", " one metre before the"))
        for first, join, last in _ROUTE
    ),
    "landmarks": (
        ("Walk", " past the {},", " and stop at the {goal}."),
        ("Go", " by the {}, then", " to the {goal}."),
        ("Leave the {start}: walk", " by the {},", " and stop at the {goal}."),
        ("Leave the {start} and go", " past the {},", " to the {goal}."),
    ),
    "terse": (
        ("{next},", " then {},", " stop at the {goal}."),
        ("To the {next},", " {},", " and stop at the {goal}."),
        ("Go to the {next}:", " then {},", " to the {goal}."),
        ("Walk to the {next},", " {},", " then stop at the {goal}."),
    ),
    "goal": (
        ("Find the {goal} in the {room}.", "", ""),
        ("Go to the {room} and stop at the {goal}.", "", ""),
        ("Walk to the {goal} in the {room}.", "", ""),
        ("Find the {room} and walk to the {goal}.", "", ""),
    ),
}
