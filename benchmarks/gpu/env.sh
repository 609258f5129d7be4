# Sourced by jobs: IN has the inputs that README.md beside this file lists, RES gets results, WORK_ROOT is kept.
export IN=${IN:-$ROOT/in} RES=${RES:-$ROOT/res} WORK_ROOT=${WORK_ROOT:-$ROOT/work}
export PYTHONPATH=$TREE/python${PYTHONPATH:+:$PYTHONPATH} PYTHONUNBUFFERED=1 TOKENIZERS_PARALLELISM=true HF_HUB_OFFLINE=1
cd "$TREE" || exit 1
say() { echo "[$(date +%T)] $*"; }
