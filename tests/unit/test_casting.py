"""Who speaks for each role, and what is said where a run file cannot mean it."""

from pathlib import Path
from typing import Any

import pytest

from agentflow.casting import Casting, ExpertRole, PolicyRole, TextRole, check_roles, read_roles, text_roles
from agentflow.config import load_config, read_yaml, to_yaml
from agentflow.errors import ConfigError
from agentflow.models import ModelConfig, load_model
from agentflow.policies.frozen import FrozenModels
from agentflow.policies.in_process import TransformersPolicy
from agentflow.renderer import Renderer
from agentflow.roles import PLANNER
from agentflow.speakers import ExpertSpeaker, SpeechConfig, TextSpeaker, TokenSpeaker
from agentflow.starter_policies import Part
from agentflow.trainers.settings import TrainConfig

LOCAL = {"model": "m", "base_url": "http://127.0.0.1:1/v1", "key_variable": ""}


def run(*words: str) -> TrainConfig:
    return load_config(TrainConfig, overrides=["env.name=websearch", *words])


def test_the_planner_is_a_trained_policy_without_a_word_and_others_speak_text() -> None:
    roles = run("roles.judge.model=m", "roles.guide.speaks=expert", "roles.verifier={speaks: policy}").roles
    assert roles[PLANNER] == PolicyRole(trained=True)
    assert roles["judge"] == TextRole(model="m")
    assert roles["guide"] == ExpertRole()
    assert roles["verifier"] == PolicyRole()
    assert list(text_roles(roles)) == ["judge"]


def test_roles_come_back_from_a_runs_file(tmp_path: Path) -> None:
    config = run(
        "roles.planner={speaks: expert}", "roles.judge.model=m", "roles.verifier={speaks: policy, model: {path: x/y}}"
    )
    file = tmp_path / "config.yaml"
    file.write_text(to_yaml(config))
    assert load_config(TrainConfig, [file]).roles == config.roles
    assert read_yaml(file)["roles"]["verifier"]["model"]["path"] == "x/y"


@pytest.mark.parametrize(
    ("word", "said"),
    [
        ("roles.judge.backend=openai", r"no option 'roles.judge.backend'. Write roles.judge.speaks=openai"),
        ("roles.judge.speaks=opnai", r"'opnai' is not known. Did you mean 'openai'"),
        ("roles.judge={speaks: policy, max_tokens: 3}", r"roles.judge has no option 'max_tokens'"),
        ("roles.my-judge.model=m", r"'my-judge' is no name of a role"),
        ("roles.planner={speaks: openai, model: m}", r"roles.planner.trained = false.*speaks=policy, or expert"),
        ("roles.planner.trained=false", r"learns from the turns of 'planner'. Set roles.planner.trained=true"),
        ("roles.verifier={speaks: policy, trained: true}", r"Set roles.verifier.trained=false"),
        ("roles.planner.temperature=0.5", r"Set policy.temperature"),
        ("roles.planner.model.path=m", r"Set model.path"),
        ("policy.backend=scripted", r"Set roles.planner.speaks=expert"),
        ("policy.servers=2", r"Set policy.servers.count=2"),
        ("policy.urls=[http://a]", r"no option 'policy.urls'. Did you mean 'policy.servers.urls'"),
        ("policy.server_args=[--x]", r"no option 'policy.server_args'. Did you mean 'policy.servers'"),
        ("policy.servers.gpus=1", r"policy.servers.gpus does nothing without servers"),
    ],
)
def test_what_a_run_cannot_mean_is_said_with_what_to_write(word: str, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        run(word)


def test_each_role_has_its_speaker_and_equal_models_are_loaded_once() -> None:
    loaded = load_model(ModelConfig())
    renderer = Renderer(loaded.tokenizer)
    policy = TransformersPolicy(loaded.model, sorted(renderer.stop_ids))
    own: dict[str, Any] = {"speaks": "policy", "model": {"path": "starter-code"}}
    roles = read_roles(
        {
            "judge": LOCAL,
            "guide": {"speaks": "expert"},
            "generator": {"speaks": "policy"},
            "verifier": {**own, "max_turn_tokens": 3, "temperature": 0.5},
            "executor": own,
        }
    )
    check_roles(roles)
    casting = Casting(
        policy,
        renderer,
        texts=FrozenModels(text_roles(roles)),
        limits=SpeechConfig(max_turn_tokens=9, max_episode_tokens=100),
        temperature=1.0,
        part=Part(env="websearch"),
    )
    speakers = casting.speakers(roles)
    assert isinstance(speakers["judge"], TextSpeaker) and isinstance(speakers["guide"], ExpertSpeaker)
    policies = {name: s.batching for name, s in speakers.items() if isinstance(s, TokenSpeaker)}
    assert policies[PLANNER] is policies["generator"] is policy
    assert policies["verifier"] is policies["executor"] is not policy
    with pytest.raises(ConfigError, match=r"roles.verifier may say 9999 tokens in one thread, more than the 2048"):
        casting.speakers(read_roles({"verifier": {**own, "max_episode_tokens": 9999}}))
