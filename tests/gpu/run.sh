#!/usr/bin/env bash
# Everything that needs a GPU, in at most eight minutes on one of the H100's generation; figures in Markdown at the end.
#
#   bash tests/gpu/run.sh [FOLDER]          default: gpu-figures
#
# Needs a Python with AgentFlow (PYTHON, default .venv/bin/python, else python3), and for the rollout one with vLLM
# (AGENTFLOW_VLLM_PYTHON); without it the rollout is left out, and says so. Exit code: the number of parts that failed.
set -u
cd "$(dirname "$0")/../.."
out=${1:-gpu-figures}
python=${PYTHON:-.venv/bin/python}
[ -x "$python" ] || python=python3
mkdir -p "$out"
failed=0

part() { # NAME SECONDS COMMAND...: run one part within its time, note what became of it
    local name=$1 limit=$2 start=$SECONDS
    shift 2
    echo "== $name"
    if timeout "$limit" "$@" > "$out/$name.txt" 2> "$out/$name.err"; then
        echo "$name: done in $((SECONDS - start)) s" | tee -a "$out/parts.txt"
    else
        echo "$name: failed with code $? after $((SECONDS - start)) s" | tee -a "$out/parts.txt"
        tail -n 20 "$out/$name.txt" "$out/$name.err"
        failed=$((failed + 1))
    fi
}

: > "$out/parts.txt"
export HF_HUB_OFFLINE=1 TOKENIZERS_PARALLELISM=false
"$python" -c 'import torch, sys; sys.exit(not torch.cuda.is_available())' || { echo "torch sees no GPU"; exit 1; }
nvidia-smi --query-gpu=name,memory.total,driver_version --format=csv,noheader > "$out/gpu.txt" 2>&1

# CUDA packing, FlexAttention (windows, soft caps, sinks), the sampler's cache, bfloat16, CUDA IPC.
part tests 180 "$python" -m pytest -q -p no:cacheprovider -rs tests/gpu
# tokens/s, memory, share of the peak: forest against rows.
part update 150 "$python" -m tests.benchmarks.gpu --save-model "$out/model"
if [ -n "${AGENTFLOW_VLLM_PYTHON:-}" ] || "$python" -c 'import vllm' 2> /dev/null; then
    part rollout 150 "$python" -m agentflow bench rollout --policy vllm --model "$out/model" --episodes 256 --concurrency 256 \
        --repeats 1 'policy.servers.args=[--gpu-memory-utilization=0.4]'
else
    echo "rollout: left out, there is no vLLM (AGENTFLOW_VLLM_PYTHON)" | tee -a "$out/parts.txt"
fi
rm -rf "$out/model"

echo
cat "$out/gpu.txt" "$out/parts.txt"
for name in update rollout; do [ -f "$out/$name.txt" ] && cat "$out/$name.txt"; done
exit "$failed"
