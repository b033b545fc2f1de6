"""The words of ActiveVLN's simulator protocol, and how actions of this environment are said in them.

    POST /environments   {"ids2configs": {id: {"env_name": "vlnce", "env_config": {...}}}}
    POST /batch/reset    {"ids2seeds": {id: seed}}     -> {"results": {id: [observations, info]}}
    POST /batch/step     {"ids2actions": {id: text}}   -> {"results": {id: [observation, reward, done, info]}}
    POST /batch/close    {"env_ids": [id, ...]}
    POST /batch/warmup   {"cfgs": [env_config, ...]}

An observation is `{"obs_str": text, "multi_modal_data": {"<image>": [{"__pil_image__": base64 of a PNG}]}}`, an action
the text of one to three actions: `turn left 30 degrees, move forward 75cm`.
"""

import re
from base64 import b64decode
from collections.abc import Mapping, Sequence
from typing import Any, Literal, TypeAlias

from agentflow.environments.navigation.body import STOP
from agentflow.errors import EnvironmentFailure
from agentflow.messages import Image

PORT = 5001
PICTURE = "<image>"
FORMAT_MISMATCH = "unexpected format."
STEPS_EXCEEDED = "number of steps exceeded."
TURNS_EXCEEDED = "number of turns exceeded."
SUCCESS = "successfully reached the goal."
NOT_REACHED = "stopped but goal not reached."

ActionSpace: TypeAlias = Literal["r2r", "rxr"]
DEGREES: Mapping[str, int] = {"r2r": 15, "rxr": 30}
"""What one turn is, in each action space."""
_ACTION = re.compile(r"move forward (25|50|75)cm|turn (left|right) (\d+) degrees|stop")


def say(action: str, space: ActionSpace) -> str:
    """Return an action in the protocol's words: `LL` is `turn left 30 degrees` in the space `r2r`."""
    if action == STOP:
        return "stop"
    if action[0] == "F":
        return f"move forward {25 * len(action)}cm"
    return f"turn {'left' if action[0] == 'L' else 'right'} {DEGREES[space] * len(action)} degrees"


def understand(text: str, space: ActionSpace) -> str | None:
    """Return an action from the protocol's words; None if it is none."""
    found = _ACTION.fullmatch(text.strip())
    if found is None:
        return None
    if found[0] == "stop":
        return STOP
    if found[1]:
        return "F" * (int(found[1]) // 25)
    times, rest = divmod(int(found[3]), DEGREES[space])
    return found[2][0].upper() * times if not rest and 1 <= times <= 3 else None


def read_observation(observation: Any) -> tuple[str, tuple[Image, ...]]:
    """Return the text of an observation without its placeholders, and its pictures.

    Raises:
        EnvironmentFailure: It is of another form.
    """
    try:
        pictures = observation.get("multi_modal_data", {}).get(PICTURE, [])
        images = tuple(Image("image/png", b64decode(picture["__pil_image__"])) for picture in pictures)
        text = re.sub(r"\n{2,}", "\n", observation["obs_str"].replace(PICTURE, "")).strip()
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise EnvironmentFailure(f"the simulator answered {str(observation)[:80]!r}: {error!r}") from error
    return text, images


def unpack(answer: Any, env_id: str, names: Sequence[str]) -> list[Any]:
    """Return what an answer says of one environment.

    Raises:
        EnvironmentFailure: It says nothing of it, or not as many things as are named.
    """
    results = answer.get("results") if isinstance(answer, Mapping) else None
    found = results.get(env_id) if isinstance(results, Mapping) else None
    if not isinstance(found, list) or len(found) != len(names):
        raise EnvironmentFailure(f"the simulator answered {str(answer)[:80]!r}, not ({', '.join(names)})")
    return found
