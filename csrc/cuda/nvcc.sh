#!/bin/sh
# nvcc.sh LOG COMMAND...: runs the command. LOG keeps what it said and, as its last line, the processor time it took:
# tests/python/test_cuda_static.py reads both.
log=$1
shift
"$@" >"$log" 2>&1
status=$?
cat "$log" >&2
times >>"$log"
exit $status
