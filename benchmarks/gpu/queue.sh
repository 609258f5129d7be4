#!/usr/bin/env bash
# Runs jobs one after another on one GPU, and looks for new ones until ROOT/jobs/STOP exists.
#   queue.sh ROOT LANE
# LANE is the number of the GPU, with letters behind it for a second queue on the same one. Jobs are ROOT/jobs/LANE/*.job,
# in sorted order; `# timeout: SECONDS` in a job limits it (600 otherwise). Logs: ROOT/res/NAME.log; begin, end and exit
# code of each: ROOT/res/queue.tsv. The job's file is NAME.running, then NAME.done or NAME.failed; renamed to NAME.job it
# runs again. `kill $(cat ROOT/jobs/LANE.pid)` ends the one that runs.
set -u
root=$1 lane=$2
export CUDA_VISIBLE_DEVICES=${lane//[^0-9]/} ROOT=$root TREE=${TREE:-$PWD}
mkdir -p "$root/jobs/$lane" "$root/res" "$root/work"
while [ ! -e "$root/jobs/STOP" ]; do
  job=$(find "$root/jobs/$lane" -name '*.job' | sort | head -n 1)
  [ -n "$job" ] || { sleep 1; continue; }
  name=$(basename "$job" .job) running=${job%.job}.running
  mv "$job" "$running"
  limit=$(sed -n 's/^# timeout: *\([0-9]*\).*/\1/p' "$running" | head -n 1)
  printf '%s\t%s\t%s\tbegin\n' "$lane" "$name" "$(date +%T)" >> "$root/res/queue.tsv"
  timeout --kill-after=20 "${limit:-600}" bash "$running" >> "$root/res/$name.log" 2>&1 &
  echo $! > "$root/jobs/$lane.pid"
  wait $!
  code=$?
  rm -f "$root/jobs/$lane.pid"
  mv "$running" "${job%.job}.$([ $code = 0 ] && echo done || echo failed)"
  printf '%s\t%s\t%s\tend\t%s\n' "$lane" "$name" "$(date +%T)" "$code" >> "$root/res/queue.tsv"
done
