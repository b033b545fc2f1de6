"""On a GPU a server's process reads the learner's weights where they are."""

import json
import subprocess
import sys
from typing import Any

import pytest
import torch

from agentflow.policies.vllm.digests import digests
from agentflow.policies.vllm.gpu_memory import gpu_name
from agentflow.policies.vllm.weights import WeightBuffer
from tests.integration.vllm.served import starter
from tests.processes import started

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")]

READER = """
import json, sys, torch
from agentflow.policies.vllm.digests import digests
from agentflow.policies.vllm.gpu_memory import opened, visible_gpus
for line in sys.stdin:
    info = json.loads(line)
    flat = opened(info["gpu_memory"], torch.device("cuda", visible_gpus().index(info["gpu"])))
    print(json.dumps(digests({"flat": flat})), flush=True)
"""


def digest_of_all(buffer: WeightBuffer) -> str:
    return f"{sum(int(word, 16) for word in buffer.digests().values()) % (1 << 64):016x}"


def test_another_process_reads_each_update_of_the_weights() -> None:
    model: Any = starter().model
    model.cuda()
    buffer = WeightBuffer(lambda: dict(model.named_parameters()))
    names = [gpu_name(model.device)]
    told = []
    with started([sys.executable, "-c", READER], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as reader:
        assert reader.stdin is not None and reader.stdout is not None
        for _ in range(3):
            with torch.no_grad():
                next(model.parameters()).mul_(2.0)
            buffer.publish()
            reader.stdin.write(json.dumps(buffer.update_info(names)) + "\n")
            reader.stdin.flush()
            told.append(json.loads(reader.stdout.readline())["others"])
            assert told[-1] == digest_of_all(buffer)
    assert len(set(told)) == 3
    buffer.close()


def test_servers_that_do_not_see_the_gpu_read_a_copy_on_the_host() -> None:
    model: Any = starter().model
    model.cuda()
    buffer = WeightBuffer(lambda: dict(model.named_parameters()))
    with torch.no_grad():
        next(model.parameters()).mul_(2.0)
    buffer.publish()
    info = buffer.update_info(["another"])
    with open(info["path"], "rb") as file:
        held = torch.frombuffer(bytearray(file.read()), dtype=torch.uint8)
    assert digests({"flat": held}) == {"others": digest_of_all(buffer)}
    buffer.close()
