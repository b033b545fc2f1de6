"""How often a server's model loads what a learner sends, by the plugin itself, in vLLM's own interpreter."""

import os
import subprocess
from pathlib import Path

from agentflow.policies.vllm.launch import server_python
from agentflow.policies.vllm.servers import ServerConfig

ROOT = Path(__file__).parents[3]
_LOADS = """
import os
from types import SimpleNamespace
import torch
from agentflow.policies.vllm.server_plugin import BufferEngine, BufferUpdateInfo

class Model(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.weight, self.num_loads = torch.nn.Parameter(torch.zeros(4), requires_grad=False), 0

    def load_weights(self, weights):
        self.num_loads += 1
        for _, tensor in weights:
            self.weight.data.copy_(tensor)

class ComputesMore(Model):
    def post_weight_load(self):
        pass

def engine_of(model):
    engine = BufferEngine.__new__(BufferEngine)
    engine.parallel_config, engine.model = SimpleNamespace(tensor_parallel_size=1, rank=0), model
    engine.init_transfer_engine(None)
    return engine

def learner(number):
    file = os.memfd_create("weights")
    os.write(file, torch.full((4,), float(number)).numpy().tobytes())
    path = f"/proc/{os.getpid()}/fd/{file}"
    return file, BufferUpdateInfo(["weight"], ["float32"], [[4]], [0], 16, path=path)

for kind in (Model, ComputesMore):
    model = kind()
    engine = engine_of(model)
    loads = []
    file, info = learner(1)
    for number in (1, 2, 3):
        os.pwrite(file, torch.full((4,), float(number)).numpy().tobytes(), 0)
        engine.receive_weights(info)
        assert model.weight.tolist() == [number] * 4
        loads.append(model.num_loads)
    engine.receive_weights(learner(7)[1])  # of another place
    assert model.weight.tolist() == [7] * 4
    print(*loads, model.num_loads)
"""


def test_a_load_that_only_copies_is_repeated_without_the_model_until_the_weights_come_from_elsewhere() -> None:
    done = subprocess.run(
        [server_python(ServerConfig()), "-c", _LOADS],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    assert done.stdout.splitlines()[-2:] == ["1 1 1 2", "1 2 3 4"], done.stderr[-2000:]
