import io
import subprocess
import sys
from pathlib import Path

from rich.console import Console as RichConsole

from agentflow.doctor import Check, can_train, diagnose, render


def shown(checks: list[Check]) -> str:
    output = RichConsole(file=io.StringIO(), width=200)
    render(checks, output)
    assert isinstance(output.file, io.StringIO)
    return output.file.getvalue()


def test_only_required_findings_decide() -> None:
    fine = Check("torch", True, "2.13")
    absent = Check("vllm", False, "not installed", "pip install vllm", required=False)
    broken = Check("disk", False, "[full]", "Free some space.")
    assert can_train([fine, absent])
    assert not can_train([fine, broken])
    assert "MISSING" not in shown([fine, absent])
    text = shown([fine, absent, broken])
    assert "[full]" in text
    assert "-> Free some space." in text
    assert "cannot run yet" in text


def test_every_part_of_the_machine_is_named_and_keys_are_not_shown(tmp_path: Path) -> None:
    checks = {check.name: check for check in diagnose(tmp_path, {"SERPER_API_KEY": "s3cret", "BRAVE_API_KEY": ""})}
    assert {"python", "packages", "torch", "gpu", "transformers", "starter policy", "memory", "disk"} <= set(checks)
    assert "environment websearch" in checks
    assert checks["torch"].ok
    assert checks["disk"].ok
    assert checks["SERPER_API_KEY"].ok
    assert not checks["BRAVE_API_KEY"].ok
    assert "s3cret" not in shown(list(checks.values()))
    assert not any(checks[name].required for name in ("gpu", "vllm", "docker", "HF_TOKEN"))


def test_threads_in_force_and_the_load_are_named(tmp_path: Path) -> None:
    checks = {check.name: check for check in diagnose(tmp_path, {"OMP_NUM_THREADS": "3", "KMP_BLOCKTIME": "7"})}
    assert "run.threads=auto is at most 3 (" in checks["threads"].detail
    assert "OMP_NUM_THREADS=3" in checks["threads"].detail
    assert "how they wait: KMP_BLOCKTIME=7; load " in checks["threads"].detail
    assert not checks["threads"].required


def test_a_folder_that_cannot_be_written_is_said(tmp_path: Path) -> None:
    checks = {check.name: check for check in diagnose(tmp_path / "nowhere", {})}
    assert not checks["disk"].ok
    assert "cannot be written" in checks["disk"].detail
    assert "--out" in checks["disk"].fix


def test_it_can_be_asked_where_torch_is_broken() -> None:
    program = "import sys; sys.modules['torch'] = None; import agentflow.doctor"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == 0, done.stderr
