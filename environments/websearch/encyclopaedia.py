"""An encyclopaedia by seed: thousands of short pages about people, towns, institutions and works.

Every entity has a page, every relation of its kind is told on it once, in one of several phrasings, among sentences
that name other entities without answering anything. Train and held-out entities share the words of their names and
nothing else: a full name belongs to one split, and facts never cross. Marriages are mutual; all other facts are drawn
independently of each other.
"""

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache

from agentflow.environment import Split
from agentflow.environments.websearch.names import HELDOUT_SHARE, KINDS, Kind, is_woman, names_of
from agentflow.environments.websearch.relations import DISTRACTORS, LEADS, RELATIONS, Relation

SHARES: Mapping[Kind, float] = {"person": 0.45, "town": 0.15, "institution": 0.15, "work": 0.25}
"""Share of each kind among the pages."""
SPLITS: tuple[Split, ...] = ("train", "heldout")
_YEARS = (1800, 1899)
_NAMED_SHARE = 0.5
"""Share of sentences that name the page's entity; the others say `she`, `he` or `it`."""


@dataclass(frozen=True, slots=True)
class Entity:
    """What a page is about.

    Attributes:
        name: Its full name, unique in the encyclopaedia.
        kind: What it is.
        facts: The value of each of its relations, by the relation's name.
    """

    name: str
    kind: Kind
    facts: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class Page:
    """A page of the encyclopaedia.

    Attributes:
        title: The name of its entity.
        sentences: Its sentences in order, the lead first.
    """

    title: str
    sentences: tuple[str, ...]

    @property
    def text(self) -> str:
        """The page as prose."""
        return " ".join(self.sentences)


@dataclass(frozen=True, slots=True)
class Encyclopaedia:
    """All entities, by split, and all pages.

    Attributes:
        entities: The entities of each split, by name.
        pages: Every page of both splits, in the order of their titles.
    """

    entities: Mapping[Split, Mapping[str, Entity]]
    pages: tuple[Page, ...]


@lru_cache(maxsize=4)
def encyclopaedia(seed: int, num_pages: int) -> Encyclopaedia:
    """Write an encyclopaedia; the same seed and size give the same text.

    Args:
        seed: Fixes names, facts and phrasings.
        num_pages: Pages of both splits together.
    """
    rng = random.Random(f"encyclopaedia/{seed}")  # noqa: S311  reproducible, not secret
    entities: dict[Split, dict[str, Entity]] = {split: {} for split in SPLITS}
    pages = []
    for split in SPLITS:
        share = HELDOUT_SHARE if split == "heldout" else 1 - HELDOUT_SHARE
        own = {kind: rng.sample(names_of(kind, split), round(share * SHARES[kind] * num_pages)) for kind in KINDS}
        spouses = _marry(own["person"])
        for kind in KINDS:
            drawn = {name: draw_facts(name, kind, names=own, rng=rng) for name in own[kind]}
            entities[split] |= {name: Entity(name, kind, drawn[name] | spouses.get(name, {})) for name in drawn}
        pages += [write_page(entity, own, rng) for entity in entities[split].values()]
    return Encyclopaedia(entities, tuple(sorted(pages, key=lambda page: page.title)))


def _marry(people: Sequence[str]) -> Mapping[str, dict[str, str]]:
    """Pair people who are already in random order; an odd one keeps who was drawn, unrequited."""
    pairs = list(zip(people[::2], people[1::2], strict=False))
    return {one: {"spouse": other} for pair in pairs for one, other in (pair, pair[::-1])}


def draw_facts(name: str, kind: Kind, *, names: Mapping[Kind, Sequence[str]], rng: random.Random) -> dict[str, str]:
    """Draw a value for each relation of an entity: another entity of the right kind, or a year."""
    return {r.name: _draw_value(r, name, names=names, rng=rng) for r in RELATIONS if r.subject == kind}


def _draw_value(relation: Relation, subject: str, *, names: Mapping[Kind, Sequence[str]], rng: random.Random) -> str:
    if relation.value is None:
        return str(rng.randint(*_YEARS))
    return _draw_name(names[relation.value], rng, other_than=subject)


def _draw_name(names: Sequence[str], rng: random.Random, *, other_than: str) -> str:
    while (name := rng.choice(names)) == other_than:
        pass
    return name


def write_page(entity: Entity, names: Mapping[Kind, Sequence[str]], rng: random.Random) -> Page:
    """Tell every fact of an entity once, and two things that answer nothing."""
    sentences = [tell(relation, entity, rng) for relation in RELATIONS if relation.name in entity.facts]
    for template, kind in rng.sample(DISTRACTORS[entity.kind], 2):
        other = _draw_name(names[kind], rng, other_than=entity.name)
        sentences.append(_fill(template, entity, value=other, rng=rng))
    rng.shuffle(sentences)
    lead = rng.choice(LEADS[entity.kind]).format(n=entity.name)
    return Page(entity.name, (lead, *sentences))


def tell(relation: Relation, entity: Entity, rng: random.Random) -> str:
    """Tell one fact of an entity in a sentence."""
    return _fill(rng.choice(relation.told), entity, value=entity.facts[relation.name], rng=rng)


def _fill(template: str, entity: Entity, *, value: str, rng: random.Random) -> str:
    named = rng.random() < _NAMED_SHARE
    subject, possessive = (entity.name, f"{entity.name}'s") if named else _pronouns(entity)
    return template.format(s=subject, p=possessive, v=value)


def _pronouns(entity: Entity) -> tuple[str, str]:
    if entity.kind != "person":
        return "It", "Its"
    return ("She", "Her") if is_woman(entity.name) else ("He", "His")
