"""The words of the embedded houses: rooms, things, colours, and which pairs of the last two are held out."""

from agentflow.environment import Split

ROOMS = tuple(
    "kitchen cellar office pantry bedroom bathroom library hall studio attic nursery garage "
    "laundry workshop gallery chapel lounge archive greenhouse larder".split()
)
THINGS = tuple("lamp chair vase crate piano clock mirror plant stove carpet desk shelf bench globe".split())
COLOURS = tuple("red blue green yellow white black".split())


def is_held_out(colour: int, thing: int) -> bool:
    """Say whether no house of the training split may hold this pair; each colour and each thing is in some pair."""
    return (colour + thing) % len(COLOURS) == 0


def landmark_names(split: Split) -> tuple[str, ...]:
    """Return the landmarks of a split, such as `red lamp`: 70 in training, 14 others held out."""
    held_out = split == "heldout"
    return tuple(
        f"{colour} {thing}"
        for i, colour in enumerate(COLOURS)
        for j, thing in enumerate(THINGS)
        if is_held_out(i, j) == held_out
    )
