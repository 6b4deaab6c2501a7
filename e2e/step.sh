#!/usr/bin/env bash
# step.sh WHAT COMMAND... : runs a command, and says what it is and how long it took.
set -euo pipefail
what=$1
shift
printf '\n==> %s\n' "$what"
start=$SECONDS
rc=0
"$@" || rc=$?
if [ "$rc" = 0 ]; then
  printf '    %s: done in %ss\n' "$what" $((SECONDS - start))
else
  printf '    %s: FAILED after %ss (exit %s)\n' "$what" $((SECONDS - start)) "$rc" >&2
fi
exit "$rc"
