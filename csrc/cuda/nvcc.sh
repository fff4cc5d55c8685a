#!/bin/sh
# nvcc.sh LOG COMMAND...: runs the command. LOG keeps what it said and, as its last line, the processor time it took;
# LOG.peak, where there is GNU time, the kilobytes of its largest process: tests/python/test_cuda_static.py reads both.
log=$1
shift
rm -f "$log.peak"
if /usr/bin/time -q -f %M -o "$log.peak" true 2>/dev/null; then
  /usr/bin/time -q -f %M -o "$log.peak" "$@" >"$log" 2>&1
else
  "$@" >"$log" 2>&1
fi
status=$?
cat "$log" >&2
times >>"$log"
exit $status
