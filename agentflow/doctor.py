"""What this machine can run, what is missing, and the fix.

Nothing here may fail because the machine is broken: whatever a probe raises becomes its finding.
"""

import importlib
import importlib.metadata
import math
import os
import platform
import re
import shutil
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from rich.console import Console as RichConsole
from rich.table import Table
from rich.text import Text

from agentflow.environment import ENTRY_POINT_GROUP, load_environment
from agentflow.errors import ConfigError
from agentflow.policies.vllm.launch import server_python
from agentflow.policies.vllm.servers import ServerConfig
from agentflow.starter_policies import starter_folders
from agentflow.threads import NUMBER, available_cores, num_threads, waiting

DISTRIBUTION = "agentflow-rl"
DEFAULT_ENVIRONMENT = "websearch"
KEYS = {
    "BRAVE_API_KEY": "Brave search",
    "SERPER_API_KEY": "Serper search",
    "TAVILY_API_KEY": "Tavily search",
    "SEARXNG_URL": "your own SearXNG",
    "OPENAI_API_KEY": "OpenAI-compatible models, such as a judge",
    "HF_TOKEN": "private models of the Hugging Face hub",
}
"""The environment variables that hold keys or addresses, and what each is for."""
EXTRAS = {
    "deepspeed": "training over several GPUs",
    "tantivy": "search in corpora of millions of pages",
}
"""Packages that nothing needs by default, and what each is for."""
PROGRAMS = {"docker": "containers as sandboxes"}
"""Programs that nothing needs by default, and what each is for."""
_STARTER_FILES = ("config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json", "chat_template.jinja")
_MIN_DISK_GB = 1.0
_MIN_MEMORY_GB = 2.0
_GB = 1e9


@dataclass(frozen=True, slots=True)
class Check:
    """One finding.

    Attributes:
        name: What was looked at.
        ok: Whether it is as it should be.
        detail: What was found.
        fix: What to type, install or set; empty where there is nothing to mend.
        required: Whether a default training needs it.
    """

    name: str
    ok: bool
    detail: str
    fix: str = ""
    required: bool = True


def diagnose(folder: Path = Path(), environ: Mapping[str, str] = os.environ) -> list[Check]:
    """Look at everything that a default training, or a larger one, needs.

    Args:
        folder: Where runs would be written.
        environ: The environment variables.
    """
    probes: list[tuple[str, Callable[[], Check]]] = [
        ("python", _python),
        ("packages", _packages),
        ("torch", lambda: _package_version("torch")),
        ("threads", lambda: _threads(environ)),
        ("gpu", _gpu),
        ("transformers", lambda: _package_version("transformers")),
        ("starter policy", _starter),
        ("memory", _memory),
        ("disk", lambda: _disk(folder)),
    ]
    checks = [_probe(name, probe) for name, probe in probes]
    checks += [_environment(name) for name in _environment_names()]
    checks += [_probe("vllm", _vllm)]
    checks += [_extra(name, purpose) for name, purpose in EXTRAS.items()]
    checks += [_program(name, purpose) for name, purpose in PROGRAMS.items()]
    return checks + [_key(name, purpose, environ) for name, purpose in KEYS.items()]


def can_train(checks: Sequence[Check]) -> bool:
    """Say whether a default training can run."""
    return all(check.ok for check in checks if check.required)


def render(checks: Sequence[Check], output: RichConsole) -> None:
    """Print the findings, each with its fix, and the verdict."""
    table = Table(box=None, show_header=False, padding=(0, 2, 0, 0))
    for check in checks:
        mark, style = ("ok", "green") if check.ok else ("MISSING", "red") if check.required else ("-", "dim")
        table.add_row(Text(mark, style), Text(check.name), Text(check.detail))
        if check.fix:
            table.add_row("", "", Text(f"-> {check.fix}", "yellow"))
    output.print(table)
    if can_train(checks):
        output.print(f"A default training can run: agentflow train --env {DEFAULT_ENVIRONMENT}", markup=False)
    else:
        output.print("A default training cannot run yet: see MISSING above.")


def _probe(name: str, probe: Callable[[], Check]) -> Check:
    try:
        return probe()
    except Exception as error:  # noqa: BLE001  a broken package may raise anything at import
        detail = " ".join(f"{type(error).__name__}: {error}".split())
        return Check(name, False, detail, f"Reinstall: pip install --force-reinstall {DISTRIBUTION}")


def _python() -> Check:
    ok = sys.version_info >= (3, 11)
    detail = f"{platform.python_version()} on {platform.system()} {platform.machine()}"
    return Check("python", ok, detail, "" if ok else "Install Python 3.11 or newer.")


def _packages() -> Check:
    names = [
        re.split(r"[^A-Za-z0-9._-]", line, maxsplit=1)[0]
        for line in importlib.metadata.requires(DISTRIBUTION) or ()
        if "extra ==" not in line
    ]
    missing = [name for name in names if not _is_installed(name)]
    if missing:
        return Check("packages", False, f"not installed: {', '.join(missing)}", f"pip install {' '.join(missing)}")
    return Check("packages", True, f"all {len(names)} dependencies are installed")


def _threads(environ: Mapping[str, str]) -> Check:
    cores, load = available_cores(), os.getloadavg()[0]
    most = num_threads("auto", sys.maxsize, cores=cores, environ=environ)
    given = [f"{cores.allowed} cores, {cores.physical} of them physical"]
    given += [f"time for {cores.quota:g}"] if math.isfinite(cores.quota) else []
    given += [f"{NUMBER}={environ[NUMBER]}"] if NUMBER in environ else []
    is_free = load <= cores.usable
    detail = (
        f"run.threads=auto is at most {most} ({', '.join(given)}); how they wait: "
        f"{waiting(environ) or 'as OpenMP has it'}; load {load:.1f}"
    )
    fix = "" if is_free else "Other programs keep the cores busy: a run takes its turn, and longer."
    return Check("threads", is_free, detail, fix, required=False)


def _gpu() -> Check:
    torch = importlib.import_module("torch")
    if not torch.cuda.is_available():
        fix = "None is needed for the starter policy. For larger models: a CUDA build of torch and a driver."
        return Check("gpu", False, "none that torch can use: training runs on the CPU in float32", fix, required=False)
    names = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    memory_gb = torch.cuda.get_device_properties(0).total_memory / _GB
    bf16 = "bfloat16" if torch.cuda.is_bf16_supported() else "no bfloat16: float32"
    detail = f"{len(names)} x {names[0]}, {memory_gb:.0f} GB each, CUDA {torch.version.cuda}, {bf16}"
    return Check("gpu", True, detail, required=False)


def _package_version(name: str) -> Check:
    importlib.import_module(name)
    return Check(name, True, importlib.metadata.version(name))


def _starter() -> Check:
    folders = starter_folders()
    wanted = [folder / name for folder in folders.values() for name in _STARTER_FILES]
    missing = [f"{file.parent.name}/{file.name}" for file in wanted if not file.is_file()]
    if missing:
        fix = f"Reinstall {DISTRIBUTION}, or train a model of your own: --model FOLDER_OR_HUB_ID"
        return Check("starter policy", False, f"{', '.join(missing)} missing from the package", fix)
    sizes_mb = {name: sum(file.stat().st_size for file in folder.iterdir()) / 1e6 for name, folder in folders.items()}
    return Check("starter policy", True, ", ".join(f"{name} {size_mb:.1f} MB" for name, size_mb in sizes_mb.items()))


def _memory() -> Check:
    free_gb = _available_memory_bytes() / _GB
    ok = free_gb >= _MIN_MEMORY_GB
    fix = "" if ok else f"Close other programs: a default training needs about {_MIN_MEMORY_GB:.0f} GB."
    return Check("memory", ok, f"{free_gb:.1f} GB available", fix)


def _available_memory_bytes() -> int:
    meminfo, limit = Path("/proc/meminfo"), Path("/sys/fs/cgroup/memory.max")
    available = re.search(r"MemAvailable:\s+(\d+) kB", meminfo.read_text()) if meminfo.exists() else None
    free = int(available[1]) * 1024 if available else os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    if limit.exists() and (most := limit.read_text().strip()).isdigit():
        used = int(limit.with_name("memory.current").read_text())
        return min(free, int(most) - used)
    return free


def _disk(folder: Path) -> Check:
    shown = folder.resolve()
    try:
        with tempfile.TemporaryFile(dir=folder) as file:
            file.write(b"x" * 4096)
            file.flush()
    except OSError as error:
        return Check("disk", False, f"{shown} cannot be written: {error.strerror}", "Choose another folder with --out.")
    free_gb = shutil.disk_usage(folder).free / _GB
    ok = free_gb >= _MIN_DISK_GB
    fix = "" if ok else f"Free some space: checkpoints of a default training take up to {_MIN_DISK_GB:.0f} GB."
    return Check("disk", ok, f"{free_gb:.1f} GB free in {shown}", fix)


def _environment_names() -> list[str]:
    return sorted(point.name for point in importlib.metadata.entry_points(group=ENTRY_POINT_GROUP))


def _environment(name: str) -> Check:
    def load() -> Check:
        environment = load_environment(name)
        return Check(f"environment {name}", True, f"{environment.__module__}:{environment.__name__}")

    return replace(_probe(f"environment {name}", load), required=name == DEFAULT_ENVIRONMENT)


def _vllm() -> Check:
    try:
        found = server_python(ServerConfig())
    except ConfigError as error:
        return Check("vllm", False, f"{error.problem} For --policy vllm.", error.remedy, required=False)
    return Check("vllm", True, f"{found}: servers for --policy vllm", required=False)


def _extra(name: str, purpose: str) -> Check:
    if _is_installed(name):
        return Check(name, True, f"{importlib.metadata.version(name)}: {purpose}", required=False)
    return Check(name, False, f"not installed: {purpose}", f"pip install {name}", required=False)


def _program(name: str, purpose: str) -> Check:
    path = shutil.which(name)
    detail = f"{path}: {purpose}" if path else f"not found: {purpose}"
    return Check(name, path is not None, detail, required=False)


def _key(name: str, purpose: str, environ: Mapping[str, str]) -> Check:
    is_set = bool(environ.get(name))
    return Check(name, is_set, f"{'set' if is_set else 'not set'}: {purpose}", required=False)


def _is_installed(name: str) -> bool:
    try:
        importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return False
    return True
