"""The websearch environment: search, open pages, answer a question of one or more hops."""

from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Annotated, Any, ClassVar, Self

import numpy as np
from pydantic import BaseModel, Field, model_validator

from agentflow.answers import exact_match, length_aware_bleu, token_f1
from agentflow.config import Config
from agentflow.environment import Expert, Split
from agentflow.environments.judging import JUDGE_SENTENCE, JUDGE_TERM, JudgeOptions, shared_judge
from agentflow.environments.tool_environment import ToolEnvironment, ToolResult
from agentflow.environments.websearch.expert import SearchExpert
from agentflow.environments.websearch.index import shared_index
from agentflow.environments.websearch.questions import questions
from agentflow.errors import ConfigError
from agentflow.questions import QuestionsConfig, load_questions
from agentflow.tools.search import MAX_RESULTS, Hit, SearchBackend
from agentflow.tools.search_backends import SearchConfig, make_backend
from agentflow.tools.tool import tool
from agentflow.trajectory import Task

_MAX_ANSWER_WORDS = 8
_IN_MEMORY = ("embedded", "corpus")


class WebSearchOptions(Config):
    """The options of the websearch environment."""

    seed: int = Field(0, ge=0, description="Fixes the embedded encyclopaedia and its questions.")
    pages: int = Field(4000, ge=200, le=4200, description="Pages of the embedded encyclopaedia, both splits together.")
    hops: tuple[Annotated[int, Field(ge=1, le=4)], ...] = Field(
        (1, 2, 3, 4), min_length=1, description="Numbers of hops, taken in turn."
    )
    train_tasks: int = Field(4096, ge=1, le=1_000_000, description="Questions of the training split.")
    heldout_tasks: int = Field(500, ge=1, description="Questions of the held-out split.")
    expert_noise: float = Field(
        0.0, ge=0, le=1, description="How often the scripted expert errs: 0 never, 1 as often as the starter's teacher."
    )
    search: SearchConfig = Field(default=SearchConfig(), description="The search engine.")
    questions: QuestionsConfig | None = Field(
        None, description="A question set of your own, in place of questions about the embedded encyclopaedia."
    )

    judge: JudgeOptions | None = Field(
        None, description="A language model that grades answers, as the term `judge`; null for none."
    )

    @model_validator(mode="after")
    def _answerable(self) -> Self:
        if self.questions is not None and self.search.backend == "embedded":
            raise ValueError("the embedded encyclopaedia cannot answer questions of your own: set search.backend")
        # A corpus or a retrieval server may hold the encyclopaedia; the web does not.
        if self.questions is None and self.search.backend not in ("embedded", "corpus", "retrieve"):
            raise ValueError(f"{self.search.backend} knows no embedded encyclopaedia: set questions.path as well")
        if self.search.backend == "embedded" and self.search.cache != "off":
            raise ValueError("the embedded search engine always answers alike: drop search.cache")
        return self


class WebSearch(ToolEnvironment):
    """Answer questions whose answers lie one to four pages deep in a searchable encyclopaedia.

    Raises:
        ConfigError: An option is wrong, or the search engine lacks one.
        CredentialError: The search engine's key is not set.
    """

    options_model = WebSearchOptions
    instructions = "Answer the question. Search, open pages, then give the answer alone."
    outcome = "exact_match"
    max_turns = 12
    reward_terms: ClassVar[Mapping[str, str]] = {
        "exact_match": "Whether the answer equals a gold answer after normalisation.",
        "answer_f1": "Token F1 of the answer against the best gold answer.",
        "answer_bleu": "Length-aware BLEU of the answer against the best gold answer.",
        "answer_format": "Whether the answer is short and on one line.",
        "retrieval": "Share of the facts on the way to the answer that this turn's results show for the first time.",
    }

    options: WebSearchOptions
    _chain: tuple[str, ...]
    _seen: set[str]

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        judge = self.options.judge
        self._judge = None if judge is None else shared_judge(judge, roles=self.roles)
        self.reward_terms = self.terms_with(self.options)  # type: ignore[misc]  # by option
        self.waits_outside = self.options.search.backend not in _IN_MEMORY or self._judge is not None
        self._backend = _shared_backend(self.options.search, self.options.seed, self.options.pages)

    @classmethod
    def terms_with(cls, options: BaseModel) -> Mapping[str, str]:
        """Return the reward terms: a judge adds one."""
        judged = isinstance(options, WebSearchOptions) and options.judge is not None
        return {**cls.reward_terms, JUDGE_TERM: JUDGE_SENTENCE} if judged else cls.reward_terms

    def tasks(self, split: Split) -> Sequence[Task]:
        """Return the questions of a split."""
        options = self.options
        if options.questions is not None:
            return _question_set(options.questions, split)
        count = options.train_tasks if split == "train" else options.heldout_tasks
        return questions(options.seed, options.pages, split=split, hops=options.hops, count=count)

    @tool
    async def search(self, query: str, k: Annotated[int, Field(ge=1, le=MAX_RESULTS)] = 3) -> str:
        """Search for pages.

        Args:
            query: What to look for.
            k: How many results.
        """
        hits = await self._backend.search(query, k)
        return "\n".join(f"{i}. {_name(hit)}: {hit.snippet}" for i, hit in enumerate(hits, 1)) or "No results."

    @tool
    async def open(self, page: str) -> str:
        """Open a page.

        Args:
            page: Its title, or the address beside it.
        """
        found = await self._backend.open(page)
        return f"{found.title}. {found.text}"

    async def on_reset(self, task: Task, rng: np.random.Generator) -> None:
        """Forget what has been found."""
        self._chain = tuple(value for *_, value in task.metadata.get("chain", ()))
        self._seen = set()

    async def turn_terms(self, results: Sequence[ToolResult]) -> Mapping[str, float]:
        """Pay each value on the way to the answer the first time it is shown, whoever asked for it."""
        if not self._chain:
            return {}
        # An error repeats what the policy wrote: a guess must not be paid as a find.
        new = {value for value in self._chain for result in results if result.ok and value in result.text} - self._seen
        self._seen |= new
        return {"retrieval": len(new) / len(self._chain)}

    async def score(self, task: Task, answer: str) -> Mapping[str, float]:
        """Compare the answer with the gold answers, and ask the judge if there is one."""
        golds = [task.answer] if isinstance(task.answer, str) else list(task.answer)
        terms = {
            "exact_match": exact_match(answer, golds),
            "answer_f1": token_f1(answer, golds),
            "answer_bleu": length_aware_bleu(answer, golds),
            "answer_format": float(0 < len(answer.split()) <= _MAX_ANSWER_WORDS and "\n" not in answer),
        }
        return terms if self._judge is None else {**terms, JUDGE_TERM: await self._judge.score(task, answer)}

    def expert(self, task: Task, seed: int) -> Expert:
        """Return a scripted searcher that knows the way and, with `expert_noise`, sometimes leaves it.

        Raises:
            ConfigError: The question is not one of the embedded encyclopaedia.
        """
        if "chain" not in task.metadata:
            raise ConfigError(
                f"The expert cannot play {task.id!r}: it knows the embedded encyclopaedia only.",
                "Imitate a run's successes: agentflow sft --from-run RUN.",
            )
        index = shared_index(self.options.seed, self.options.pages)
        return SearchExpert(task, index, noise=self.options.expert_noise, seed=seed)


def _name(hit: Hit) -> str:
    return hit.title if hit.page in ("", hit.title) else f"{hit.title} ({hit.page})"


@lru_cache(maxsize=8)
def _question_set(config: QuestionsConfig, split: Split) -> tuple[Task, ...]:
    return tuple(load_questions(config, split))


@lru_cache(maxsize=8)
def _shared_backend(config: SearchConfig, seed: int, num_pages: int) -> SearchBackend:
    """Return the search engine that all episodes with these options share."""
    return make_backend(config, also={"embedded": lambda *_: shared_index(seed, num_pages)})
