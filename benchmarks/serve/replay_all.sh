#!/bin/bash
# All replays of docs/results/serve_replay.md, a process of two pinned cores for each model, load and rate, side by side.
# Call it again until every line says `done`: no call takes much longer than SECONDS_EACH, and each goes on where the last
# one ended.
#
#   PARENT=model IN=inputs OUT=build/replay benchmarks/serve/replay_all.sh [overload]
#
# IN holds NAME/ (adapters, or models with weights of their own and no PARENT), NAME.layers.safetensors (layer_router.py)
# and LOAD.json (outrider bench load).
# With `overload`, the overload of one model, over HTTP as well, on eight cores. CORE: the first core to use.
set -u
cd "$(dirname "$0")/../.."
export PYTHONPATH=python${PYTHONPATH:+:$PYTHONPATH} OMP_NUM_THREADS=2
python=${PYTHON:-python3} models=${MODELS:-"outrider_token outrider_window16 readme_tied"} loads=${LOADS:-"azure mooncake"}
rates=${RATES:-"0.3 0.9 1.2"}
common=(${PARENT:+--parent "$PARENT"} --weights int8 --option decode_tokens=32 --option prefill_tokens="${CHUNK:-64}"
        --option running_max=64 --ttft-factor 10 --tpot-factor 15)
core=${CORE:-0}
mkdir -p "$OUT"
if [ "${1:-}" = overload ]; then
  taskset -c "$core-$((core + 7))" "$python" benchmarks/serve/replay.py overload "$IN/outrider_token" --load "$IN/azure.json" \
    --out "$OUT/overload.json" --threads 4 --seconds "${OVERLOAD_SECONDS:-25}" --http "${common[@]}" \
    --option running_max=32
  exit
fi
for load in $loads; do
  for model in $models; do
    for rate in $rates; do
      name=${model}_${load}_$rate
      taskset -c "$core,$((core + 1))" "$python" benchmarks/serve/replay.py serve "$IN/$model" --load "$IN/$load.json" \
        --out "$OUT/$name.json" --threads 2 --repetitions "${REPETITIONS:-3}" --rate "$rate" --equal-times \
        --seconds "${SECONDS_EACH:-400}" --layer-router "$IN/$model.layers.safetensors" "${common[@]}" \
        > "$OUT/$name.log" 2>&1 &
      core=$(((core + 2) % $(nproc --all)))
    done
  done
done
wait
for log in "$OUT"/*_*.log; do
  echo "$log: $(grep -c '#' "$log") runs in this call, $(grep -q '"done": true' "${log%.log}.json" && echo done || tail -1 "$log")"
done
