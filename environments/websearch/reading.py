"""The reading drill: a passage, then a question about each of its facts, one a turn.

Following a relation from a name to its value is what a small policy learns last, and a search episode asks for it
only a few times. Here every turn does, so it comes before imitation of the searcher.
"""

import random
from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache
from typing import Annotated, Any, ClassVar, Literal, TypeAlias

from pydantic import Field

from agentflow.answers import exact_match
from agentflow.config import Config
from agentflow.environment import Environment, Expert, Observation, Split, StepResult
from agentflow.environments.websearch.encyclopaedia import Entity, draw_facts, tell, write_page
from agentflow.environments.websearch.names import KINDS, Kind, names_of
from agentflow.environments.websearch.relations import RELATIONS, Relation
from agentflow.errors import EnvironmentFailure
from agentflow.messages import Message
from agentflow.trajectory import Task

Names: TypeAlias = Mapping[Kind, tuple[str, ...]]
Passage: TypeAlias = tuple[str, list[list[str]]]
"""A text, and pairs of a question and its answer."""


class ReadingOptions(Config):
    """The options of the reading drill."""

    style: Literal["echo", "pairs", "facts", "pages"] = Field(
        "pages",
        description="`echo`: a list of names to say again; `pairs`: names and their partners; `facts`: single facts of "
        "many entities; `pages`: whole pages with what answers nothing.",
    )
    sizes: tuple[Annotated[int, Field(ge=1, le=64)], ...] = Field(
        (1, 2, 4, 8), min_length=1, description="Names, facts or pages of a passage, in turn."
    )
    num_tasks: int = Field(20_000, ge=1, description="Passages of each split.")


class Reading(Environment):
    """Read a passage and answer a question about each of its facts."""

    options_model = ReadingOptions
    outcome = "accuracy"
    max_turns = 320
    reward_terms: ClassVar[Mapping[str, str]] = {"accuracy": "The answer's share of the passage's questions, if right."}

    options: ReadingOptions

    def tasks(self, split: Split) -> Sequence[Task]:
        """Return the passages of a split."""
        return _Passages(self.options, split)

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Observation, dict[str, Any]]:
        """Show the passage and ask the first question."""
        super().reset(seed=seed)
        tasks = self.tasks("train")
        self._task: Task = (options or {}).get("task") or tasks[int(self.np_random.integers(len(tasks)))]
        self._turn = 0
        self._right = 0
        first = f"{self._task.prompt} {self._task.answer[0][0]}".strip()
        return (Message("user", first),), {"task_id": self._task.id}

    def step(self, action: Message) -> StepResult:
        """Score an answer and ask the next question."""
        questions = self._task.answer
        if self._turn >= len(questions):
            raise EnvironmentFailure("step after the last question: call reset first")
        right = exact_match(action.content, [questions[self._turn][1]])
        self._turn += 1
        self._right += int(right)
        over = self._turn == len(questions)
        observation = () if over else (Message("user", questions[self._turn][0]),)
        reward = right / len(questions)
        info = {"reward_terms": {"accuracy": reward}, "success": over and self._right == len(questions)}
        return observation, reward, over, False, info

    async def areset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> Any:
        """Reset without a thread: nothing here waits."""
        return self.reset(seed=seed, options=options)

    async def astep(self, action: Message) -> StepResult:
        """Step without a thread: nothing here waits."""
        return self.step(action)

    def gold_answer(self, task: Task) -> str | None:
        """Return None: a passage takes an answer for each of its questions."""
        return None

    def expert(self, task: Task, seed: int) -> Expert:
        """Return a reader who is always right."""
        return _Reader([value for _, value in task.answer])


class _Reader:
    def __init__(self, answers: Sequence[str]) -> None:
        self._answers = iter(answers)

    def act(self, observation: Observation) -> Message:
        return Message("assistant", next(self._answers))


class _Passages(Sequence[Task]):
    """The passages of a split, each written when it is asked for."""

    def __init__(self, options: ReadingOptions, split: Split) -> None:
        self._options = options
        self._split = split
        self._names: Names = {kind: names_of(kind, split) for kind in KINDS}

    def __len__(self) -> int:
        return self._options.num_tasks

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, slice):
            return [self._write(i) for i in range(len(self))[index]]
        return self._write(range(len(self))[index])

    def _write(self, index: int) -> Task:
        style, sizes = self._options.style, self._options.sizes
        size = sizes[index % len(sizes)]
        rng = random.Random(f"reading/{style}/{self._split}/{index}")  # noqa: S311  reproducible, not secret
        passage, questions = _STYLES[style](size, self._names, rng)
        return Task(f"{self._split}-{index:05d}", passage, rng.sample(questions, len(questions)), {"size": size})


def _echo(size: int, names: Names, rng: random.Random) -> Passage:
    listed = ", ".join(rng.choice(names[rng.choice(KINDS)]) for _ in range(size))
    return f"{listed}.", [["", listed]]


def _pairs(size: int, names: Names, rng: random.Random) -> Passage:
    pairs = [(key, rng.choice(names[rng.choice(KINDS)])) for key in rng.sample(names["person"], size)]
    return " ".join(f"{key}: {value}." for key, value in pairs), [[f"{key}:", value] for key, value in pairs]


def _facts(size: int, names: Names, rng: random.Random) -> Passage:
    sentences, questions = [], []
    for entity in _entities(size, names, rng):
        relation = rng.choice([relation for relation in RELATIONS if relation.subject == entity.kind])
        sentences.append(f"{entity.name}: {tell(relation, entity, rng)}")
        questions.append(_question(relation, entity, rng))
    return " ".join(sentences), questions


def _pages(size: int, names: Names, rng: random.Random) -> Passage:
    entities = _entities(size, names, rng)
    pages = [write_page(entity, names, rng) for entity in entities]
    asked = [(relation, entity) for entity in entities for relation in RELATIONS if relation.name in entity.facts]
    text = "\n".join(f"{page.title}. {page.text}" for page in pages)
    return text, [_question(relation, entity, rng) for relation, entity in asked]


_STYLES: Mapping[str, Callable[[int, Names, random.Random], Passage]] = {
    "echo": _echo,
    "pairs": _pairs,
    "facts": _facts,
    "pages": _pages,
}


def _entities(count: int, names: Names, rng: random.Random) -> list[Entity]:
    """Make up entities of different names that are easily taken for each other, as the results of a search are."""
    kinds: dict[str, Kind] = {}
    while len(kinds) < count:
        if kinds and rng.random() < _ALIKE_SHARE:
            like = rng.choice(list(kinds))
            kind = kinds[like]
            kinds[rng.choice(_alike(names[kind])[rng.choice(_telling_words(like))])] = kind
        else:
            kind = rng.choice(KINDS)
            kinds[rng.choice(names[kind])] = kind
    return [Entity(name, kind, draw_facts(name, kind, names=names, rng=rng)) for name, kind in kinds.items()]


_ALIKE_SHARE = 0.7
"""Share of the names of a passage that have a word in common with another."""


@lru_cache
def _alike(names: tuple[str, ...]) -> Mapping[str, Sequence[str]]:
    """Index names by their words."""
    found: dict[str, list[str]] = {}
    for name in names:
        for word in _telling_words(name):
            found.setdefault(word, []).append(name)
    return found


def _telling_words(name: str) -> list[str]:
    return [word for word in name.split() if word != "The"]


def _question(relation: Relation, entity: Entity, rng: random.Random) -> list[str]:
    return [f"{rng.choice(relation.asked)} of {entity.name}", entity.facts[relation.name]]
