"""What every test relies on: one torch thread, the same examples, no model hub, and GPU tests that say if skipped."""

import faulthandler
import os
import shutil
import subprocess
import threading

# Set before transformers, datasets or torch is imported by a test module.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.update(HF_HUB_OFFLINE="1", HF_DATASETS_OFFLINE="1", TRANSFORMERS_OFFLINE="1", TOKENIZERS_PARALLELISM="false")

import pytest
import torch
from _pytest.faulthandler import fault_handler_stderr_fd_key, get_timeout_config_value
from hypothesis import settings

torch.set_num_threads(1)
# The same examples in every run, and no time limit: a busy machine must not turn a test red.
settings.register_profile("agentflow", deadline=None, derandomize=True)
settings.load_profile("agentflow")


_PROGRAMS = {"dockerd": "docker.io"}
_INSTALL_S = 300


def pytest_configure(config: pytest.Config) -> None:
    """Install what the suite needs beside Python packages, once, where it may, and bound the end of the interpreter."""
    is_worker = hasattr(config, "workerinput")
    missing = [package for program, package in _PROGRAMS.items() if shutil.which(program) is None]
    if missing and not is_worker and os.getuid() == 0 and shutil.which("apt-get"):
        os.environ["AGENTFLOW_NOT_INSTALLED"] = _install(missing)  # workers inherit it, for their reasons to skip
    # Ordinary exit handlers run only once all threads have ended. xdist kills a worker that takes 10 s.
    patience_s = 8 if is_worker else 90
    threading._register_atexit(faulthandler.dump_traceback_later, patience_s, exit=True, file=2)  # type: ignore[attr-defined]


def _install(packages: list[str]) -> str:
    """Install packages of the system; why one is missing afterwards, or nothing."""
    environment, problems = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}, []
    for words in (["update"], *(["install", "--yes", "--no-install-recommends", package] for package in packages)):
        command = ["apt-get", "--quiet", *words]
        try:
            done = subprocess.run(command, check=False, stdout=subprocess.DEVNULL, env=environment, timeout=_INSTALL_S)
        except subprocess.TimeoutExpired:
            return f"`{' '.join(command)}` did not end within {_INSTALL_S} s"
        if done.returncode:
            problems.append(f"`{' '.join(command)}` ended with code {done.returncode}")
    return "; ".join(problems)


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_teardown(item: pytest.Item) -> None:
    """Limit the time of what follows a test that failed, too: pytest lifts its limit at the first exception."""
    limit_s = get_timeout_config_value(item.config)
    if limit_s:
        faulthandler.dump_traceback_later(limit_s, file=item.config.stash[fault_handler_stderr_fd_key], exit=True)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skip tests marked `gpu` where torch sees no CUDA device."""
    if torch.cuda.is_available():
        return
    skip = pytest.mark.skip(reason="needs a CUDA device, and torch sees none")
    for item in items:
        if "gpu" in item.keywords:
            item.add_marker(skip)
