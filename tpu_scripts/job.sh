#!/usr/bin/env bash
# One job on this host. tpu.sh calls it on every host; gke.yaml uses `attempt`.
#
#   job.sh start RESTARTS -- COMMAND...   start the command so that it outlives the connection
#   job.sh status                         whether it runs, or how it ended
#   job.sh logs                           follow its log until it ends, each line behind this host's name
#   job.sh stop                           send SIGTERM and wait until it has saved its state and ended
#   job.sh attempt N -- COMMAND...        become the command; with `--resume True` unless N is 0
#
# A command that exits with code 75 (EX_TEMPFAIL: told to stop), 134 (jax aborts the hosts that outlive another one) or
# 143 (SIGTERM came before Python listened) is started again, at most RESTARTS times: hosts that start again meet anew, whichever comes first.
# Any other code ends the job and is recorded. State: .job/HOST/{log.txt,pid,exit_code,lock}, and compiled/, jax's
# compiled programs of this job, for the command when it starts again (or JAX_COMPILATION_CACHE_DIR).
set -euo pipefail

readonly TEMPFAIL=75 LOST=134 EARLY=143
script=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)/job.sh
readonly script
cd "${script%/*}/.."
host=$(uname -n)
readonly host state=".job/$host"

fail() {
  printf 'error: %s: %s. %s.\n' "$host" "$1" "$2" >&2
  exit 2
}

say() { printf '[job %s] %s\n' "$(date -u +%FT%TZ)" "$*"; }

# numbered N -- COMMAND...: what start, loop and attempt are given
numbered() {
  local LC_ALL=C
  [[ ${1:-} =~ ^(0|[1-9][0-9]{0,5})$ ]] || fail "'${1:-}' is no count" "Give 0 or more before --"
  [[ ${2:-} == -- && -n ${3:-} ]] || fail "there is no command" "Give it after --"
}

# The loop's process id. Anything else in the file would reach other processes: -1 is all of them.
loop_id() {
  local id
  id=$(<"$state/pid")
  [[ $id =~ ^[1-9][0-9]{0,9}$ ]] || fail "$state/pid holds no process id" "End the job by hand"
  printf '%s' "$id"
}

# The lock is held by the loop and by the command, so that a command whose loop died still counts.
running() { [[ -e $state/lock ]] && ! flock -n "$state/lock" true; }

start() {
  local restarts=$1
  shift 2
  mkdir -p "$state"
  exec 9>"$state/lock"
  flock -n 9 || fail "a job is running already" "Wait for its end or stop it: tpu.sh stop"
  rm -rf "$state/exit_code" "$state/compiled"
  setsid nohup bash "$script" loop "$restarts" -- "$@" </dev/null >>"$state/log.txt" 2>&1 &
  echo $! >"$state/pid"
  echo "$host: started"
}

# Once: a second SIGTERM may mean "at once".
forward() {
  if [[ -n $child && -z $told ]]; then
    told=1
    kill -TERM "$child" 2>/dev/null || true
  fi
}

loop() {
  local restarts=$1 attempt=0 code=0 seen
  shift 2
  export JAX_COMPILATION_CACHE_DIR="${JAX_COMPILATION_CACHE_DIR-$PWD/$state/compiled}"
  signals=0 child='' told=''
  trap 'signals=$((signals + 1)); forward' TERM
  while true; do
    say "attempt $attempt:$(printf ' %q' "$@")"
    bash "$script" attempt "$attempt" -- "$@" &
    child=$!
    ((signals == 0)) || forward
    while true; do # a signal interrupts `wait`: its status is the command's only if none came
      seen=$signals code=0
      wait "$child" || code=$?
      ((seen == signals)) && break
    done
    child=''
    say "attempt $attempt ended with code $code"
    (((code == TEMPFAIL || code == LOST || code == EARLY) && signals == 0 && attempt < restarts)) || break
    attempt=$((attempt + 1))
  done
  echo "$code" >"$state/exit_code.new"
  mv "$state/exit_code.new" "$state/exit_code"
}

resumes() {
  local word previous=
  for word in "$@"; do
    [[ $word == --resume=@(True|auto) || ($previous == --resume && $word == @(True|auto)) ]] && return 0
    previous=$word
  done
  return 1
}

attempt() {
  local number=$1
  shift 2
  if ((number > 0)) && ! resumes "$@"; then
    set -- "$@" --resume True
  fi
  export PATH="$PWD/.venv/bin:$PATH"
  exec -- "$@"
}

status() {
  if running; then
    echo "$host: running"
  elif [[ -e $state/exit_code ]]; then
    echo "$host: ended with code $(<"$state/exit_code")"
  elif [[ -e $state/lock ]]; then
    echo "$host: killed before its end"
  else
    echo "$host: no job yet"
  fi
}

logs() {
  [[ -e $state/log.txt ]] || fail "no job has been started" "Start one: tpu.sh run -- COMMAND"
  local follow=() id
  if running; then
    id=$(loop_id)
    follow=(-F -s 0.5 "--pid=$id")
  fi
  tail -n 200 "${follow[@]}" "$state/log.txt" | sed -u "s|^|$host: |"
  status
}

stop() {
  local id
  if running; then
    id=$(loop_id)
    kill -TERM "$id" || fail "the job has lost its loop" "End it by hand: kill -KILL -- -$id"
    flock -w 600 "$state/lock" true || fail "still running after 600 s" "End it by hand: kill -KILL -- -$id"
  fi
  status
}

case ${1:-} in
start | loop | attempt)
  numbered "${@:2}"
  "$@"
  ;;
status | logs | stop) "$1" ;;
*) fail "'${1:-}' is no command" "See the head of $script" ;;
esac
