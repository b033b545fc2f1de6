"""Write the files of a slot of one's own: `agentflow algos new NAME --slot losses`."""

import keyword
import re
from collections.abc import Mapping
from pathlib import Path

from agentflow.errors import ConfigError, StorageError

_NAME = re.compile(r"[a-z][a-z0-9_]*")

_LOSS = """
from typing import Annotated

from pydantic import Field

from agentflow.trainers.slots.base import Number, number
from agentflow.trainers.slots.losses.surrogates import Surrogate


class {name}(Surrogate):
    \"\"\"Maximise `min(rho, cap) A`: replace it by what your method maximises at each token.\"\"\"

    cap: Annotated[Number, number(gt=0)] = Field(2.0, description="Largest ratio that counts.")

    def objective(self, tokens, ratio_S):
        return ratio_S.clamp(max=float(self.cap)) * tokens.advantages_S
"""
_ADVANTAGE = """
import numpy as np

from agentflow.trainers.slots.base import Advantage


class {name}(Advantage):
    \"\"\"The return minus the mean of the group: replace it by what your method calls better than expected.\"\"\"

    def __call__(self, batch, columns, state):
        groups = range(batch.group_N.max() + 1)
        mean_G = np.array([batch.returns_N[batch.group_N == group].mean() for group in groups])
        return (batch.returns_N - mean_G[batch.group_N])[batch.trajectory_S]
"""
_REWARD = """
from dataclasses import replace

from pydantic import Field

from agentflow.trainers.slots.base import Reward


class {name}(Reward):
    \"\"\"Charge each turn a little: replace it by what your method pays.\"\"\"

    price: float = Field(0.01, ge=0, description="What a turn costs.")

    def __call__(self, judged, now):
        return [replace(each, earned=tuple(map(self._charged, each.earned))) for each in judged]

    def _charged(self, earned):
        return earned.paid("turns", -self.price * len(earned.terms))
"""
_KEEP = """
from dataclasses import replace

from pydantic import Field

from agentflow.trainers.slots.base import Keep


class {name}(Keep):
    \"\"\"Leave out the groups that nearly always succeed: replace it by what your method learns from.\"\"\"

    most: float = Field(0.9, ge=0, le=1, description="Share of successes above which a group is left out.")

    def __call__(self, judged, credits, now):
        return [replace(each, cause="too_easy", kept=False) if self._easy(each) else each for each in judged]

    def _easy(self, judged):
        return sum(bool(each.success) for each in judged.earned) > self.most * len(judged.earned)
"""
_TEMPLATES: Mapping[str, tuple[str, str]] = {
    "losses": ("loss: [{{kind: '{spec}'}}]", _LOSS),
    "advantages": ("advantage: {{kind: '{spec}'}}", _ADVANTAGE),
    "rewards": ("rewards: [{{kind: '{spec}'}}]", _REWARD),
    "keeps": ("keep: [{{kind: '{spec}'}}]", _KEEP),
}
SLOTS = tuple(_TEMPLATES)


def scaffold_slot(name: str, slot: str, folder: Path) -> list[Path]:
    """Write `NAME.py`, a slot that works, and `NAME.yaml`, a recipe with it.

    Args:
        name: The module's name in snake_case; the class is named likewise in CamelCase.
        slot: One of `SLOTS`.
        folder: Where to write; it is made if it does not exist.

    Returns:
        The files written: the class, then the recipe.

    Raises:
        ConfigError: The name or the slot cannot be used, or one of the files exists.
        StorageError: The folder cannot be written.
    """
    if not _NAME.fullmatch(name) or keyword.iskeyword(name):
        raise ConfigError(f"{name!r} is no name of a module.", "Use small letters, digits and _: my_loss.")
    if slot not in SLOTS:
        raise ConfigError(f"There is no file to start from for {slot!r}.", f"Known: {', '.join(SLOTS)}.")
    line, code = _TEMPLATES[slot]
    python, recipe = folder / f"{name}.py", folder / f"{name}.yaml"
    found = "".join(part.capitalize() for part in name.split("_"))
    value = line.format(spec=f"{python}:{found}")
    texts = {
        python: f'"""What this method does, and where it is described."""\n{code.format(name=found)}',
        recipe: f"# {found}: what this method does, and where it is described.\nextends: flow-grpo\n{value}\n",
    }
    for path in texts:
        if path.exists():
            raise ConfigError(f"{path} exists.", "Choose another name, or delete it first.")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for path, text in texts.items():
            path.write_text(text, encoding="utf-8")
    except OSError as error:
        raise StorageError(f"Cannot write {error.filename}: {error.strerror}.", "Choose another folder.") from error
    return list(texts)
