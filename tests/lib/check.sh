# Sourced by test scripts: counts checks and ends with "N passed, N failed".
#
#   check WHAT COMMAND...        passes when the command exits 0
#   expect WHAT STATUS PATTERN COMMAND...
#                                passes when it exits with STATUS and its output (both streams) matches
#                                the extended regular expression
#   finish                       prints the counts and exits
# Processes started with `spawn COMMAND...` ($spawned has the pid) are killed at the end, whatever happens.
: "${SPANLITE_BIN:?is set by tests/run}" "${SPAN_ROOT:?is set by tests/run}"
TMPDIR=${TMPDIR:-/tmp}
check_passed=0 check_failed=0 check_pids=()

pass() {
  check_passed=$((check_passed + 1))
  printf 'ok   %s\n' "$*"
}
fail() {
  check_failed=$((check_failed + 1))
  printf 'FAIL %s\n' "$*"
}
check() {
  local what=$1 out
  shift
  if out=$("$@" 2>&1 </dev/null); then pass "$what"; else
    fail "$what (status $?): $*"
    printf '%s\n' "$out" | tail -n 20
  fi
}
expect() {
  local what=$1 want=$2 pattern=$3 out status=0
  shift 3
  out=$("$@" 2>&1 </dev/null) || status=$?
  if [ "$status" = "$want" ] && grep -qE -e "$pattern" <<<"$out"; then pass "$what"; else
    fail "$what: status $status, wanted $want and /$pattern/: $*"
    printf '%s\n' "$out" | tail -n 20
  fi
}
spawn() {
  "$@" &
  spawned=$!
  check_pids+=("$spawned")
}
# Waits until a command succeeds, at most SECONDS.
eventually() {
  local end=$((SECONDS + $1))
  shift
  until "$@" >/dev/null 2>&1; do
    [ $SECONDS -lt $end ] || return 1
    sleep 0.02
  done
}
check_clean_up() {
  local pid
  for pid in "${check_pids[@]}"; do kill -9 "$pid" 2>/dev/null; done
  if [ "$(type -t clean_up)" = function ]; then clean_up; fi
}
finish() {
  printf '%d passed, %d failed\n' "$check_passed" "$check_failed"
  [ "$check_failed" = 0 ]
  exit
}
trap check_clean_up EXIT
