#!/usr/bin/env bash
# Cloud TPU slices from nothing to a run and back, with gcloud; every command acts on all hosts at once.
set -euo pipefail

usage() {
  cat <<'END'
tpu.sh COMMAND [OPTIONS]

  create                    a TPU VM slice, or a queued request for one (--queued, --slices)
  setup                     copy the last commit to all hosts, make .venv there
  preflight [-- OPTIONS]    tpu_scripts/preflight.py on all hosts
  run -- COMMAND...         start the command on all hosts; it outlives this connection. Exit code 75 (told to stop) or
                            134 (another host is gone) starts it again with --resume; any other code ends it
  status                    state of the slice and of the job on each host
  logs                      follow the job's log
  stop                      SIGTERM to the job; returns when it has ended
  fetch FOLDER [DEST]       copy a folder of the runs back: from host 0, or with --bucket from there
  delete                    the slice, its disks included

  option          variable      meaning
  --name NAME     TPU_NAME      name of the slice (and of its queued request)
  --zone ZONE     TPU_ZONE      such as us-west4-a
  --project ID    TPU_PROJECT   without: gcloud's own
  --type TYPE     TPU_TYPE      such as v5litepod-16; for create
  --version V     TPU_VERSION   runtime version; without: the one that fits the type
  --spot          TPU_SPOT=1    cheaper, may be taken away at any time
  --queued        TPU_QUEUED=1  through a queued resource; give it to every command of this slice
  --slices N      TPU_SLICES    so many slices of this type in one queued resource (default 1)
  --bucket URL    TPU_BUCKET    gs://BUCKET[/PREFIX], for fetch
  --restarts N                  how often run starts again after code 75 or 134 (default 20)
  --worker W                    host whose log is shown: 0 (default), another number, or all
  --yes                         delete without asking
  --dry-run                     print the commands, run none
END
}

fail() {
  printf 'error: %s. %s.\n' "$1" "$2" >&2
  exit 2
}

# need VALUE OPTION VARIABLE
need() { [[ -n $1 ]] || fail "$2 is missing" "Give $2 or set $3"; }

# valid OPTION VALUE: refuses a value that gcloud could take for another option or another host; an empty one passes
valid() {
  local LC_ALL=C value=$2 label='[a-z]([a-z0-9-]{0,61}[a-z0-9])?' pattern problem cure
  case $1 in
  --name) pattern=$label problem="is no name" cure="Use a-z, 0-9 and -, a letter first" ;;
  --zone) pattern=$label problem="is no zone" cure="Give one such as us-west4-a" ;;
  --project) pattern='[A-Za-z0-9][A-Za-z0-9 .:_-]*' problem="is no project" cure="Give the project's id" ;;
  --type) pattern='[a-z0-9]+(-[a-z0-9]+)*' problem="is no TPU type" cure="Give one such as v5litepod-16" ;;
  --version) pattern='[a-z0-9][a-z0-9._-]*' problem="is no runtime version" cure="Give one such as v2-alpha-tpuv6e" ;;
  --bucket)
    pattern='gs://[a-z0-9][a-z0-9._-]*(/[A-Za-z0-9._=@+-]+)*/?'
    problem="is no bucket" cure="Give gs://NAME[/PREFIX]"
    ;;
  --slices) pattern='[1-9][0-9]{0,3}' problem="is no count" cure="Give 1 or more" ;;
  --restarts) pattern='0|[1-9][0-9]{0,5}' problem="is no count" cure="Give 0 or more" ;;
  --worker) pattern='0|[1-9][0-9]{0,4}|all' problem="is no host" cure="Give a number or all" ;;
  TPU_SPOT | TPU_QUEUED) pattern='[01]' problem="is neither 0 nor 1" cure="Set it to 1, or leave it out" ;;
  FOLDER) # what scp does with other characters depends on its version
    pattern='[A-Za-z0-9._/=@+][A-Za-z0-9._/=@+-]*'
    problem="cannot be copied" cure="Use letters, digits and . _ / = @ + - in names of run folders"
    ;;
  DEST)
    pattern='[^-:[:cntrl:]][^:[:cntrl:]]*'
    problem="is no local folder" cure="Give a path without ':' that does not begin with -, such as ./a"
    ;;
  esac
  [[ -z $value || $value =~ ^($pattern)$ ]] && return
  value=${value//[[:cntrl:]]/?}
  fail "$1 '${value:0:80}' $problem" "$cure"
}

call() {
  if [[ -n $dry_run ]]; then
    local line
    printf -v line ' %q' "$@"
    printf '%s\n' "${line# }"
  else
    "$@"
  fi
}

tpus() { call gcloud compute tpus "$@" "${where[@]}"; }

# hosts ssh|scp WORKER ARGUMENTS...: of the first slice's WORKER, or of all slices where WORKER is all
hosts() {
  local verb=$1 worker=$2 node=0
  shift 2
  [[ $worker == all ]] && node=all
  if ((slices > 1)); then
    tpus queued-resources "$verb" "$@" --node="$node" --worker="$worker"
  else
    tpus tpu-vm "$verb" "$@" --worker="$worker"
  fi
}

# on WORKER WORDS...: the words are one command of the remote shell, in the folder of the sources
on() {
  local worker=$1 line
  shift
  printf -v line ' %q' "$@"
  hosts ssh "$worker" "$name" --command="cd ~/fusion_jax &&$line"
}

runtime_version() {
  case $type in
  v5litepod-*) echo v2-alpha-tpuv5-lite ;;
  v5p-*) echo v2-alpha-tpuv5 ;;
  v6e-*) echo v2-alpha-tpuv6e ;;
  v[234]-*) echo tpu-ubuntu2204-base ;;
  v5e-*) fail "Cloud calls the type '$type' v5litepod-${type#v5e-}" "Give --type v5litepod-${type#v5e-}" ;;
  *) fail "no runtime version is known for the type '$type'" "Give --version or set TPU_VERSION" ;;
  esac
}

create() {
  need "$type" --type TPU_TYPE
  version=${version:-$(runtime_version)}
  if [[ -z $queued ]]; then
    tpus tpu-vm create "$name" --accelerator-type="$type" --version="$version" ${spot:+--spot}
    return
  fi
  local nodes=(--node-id="$name")
  ((slices == 1)) || nodes=(--node-count="$slices" --node-prefix="$name")
  tpus queued-resources create "$name" "${nodes[@]}" --accelerator-type="$type" --runtime-version="$version" \
    ${spot:+--spot}
}

setup() {
  local root
  root=$(git -C "$(dirname "${BASH_SOURCE[0]}")" rev-parse --show-toplevel) || fail "no git repository" "Work in a clone"
  [[ -z $(git -C "$root" status --porcelain) ]] || echo "note: changes that are not committed are not copied" >&2
  temporary=$(mktemp -d)
  trap 'rm -rf "$temporary"' EXIT
  call git -C "$root" archive --format=tar.gz --output="$temporary/fusion_jax.tar.gz" HEAD
  hosts scp all "$temporary/fusion_jax.tar.gz" "$name:"
  # Files of an earlier setup go, so that none that was deleted lives on; runs and .venv stay.
  hosts ssh all "$name" --command='set -e; mkdir -p ~/fusion_jax; cd ~/fusion_jax
if [ -f .files ]; then xargs -d "\n" rm -f -- <.files; fi
tar -xzf ~/fusion_jax.tar.gz; tar -tzf ~/fusion_jax.tar.gz | grep -v "/\$" >.files; rm ~/fusion_jax.tar.gz
bash tpu_scripts/venv.sh tpu'
}

status() {
  local state
  if [[ -n $queued ]]; then
    state=$(tpus queued-resources describe "$name" --format='value(state.state)')
  else
    state=$(tpus tpu-vm describe "$name" --format='value(state)')
  fi
  echo "$state"
  if [[ $state == READY || $state == ACTIVE || -n $dry_run ]]; then
    on all bash tpu_scripts/job.sh status
  fi
}

fetch() {
  (($# == 1 || $# == 2)) || fail "fetch takes FOLDER [DEST]" "Give the run's folder, such as runs/a"
  local folder=${1%/} destination=${2:-.}
  [[ -n $folder ]] || fail "FOLDER is empty" "Give the run's folder, such as runs/a"
  valid FOLDER "$folder"
  valid DEST "$destination"
  if [[ -n $bucket ]]; then
    call gcloud storage cp --recursive "${bucket%/}/$folder" "$destination" ${project:+--project="$project"}
    return
  fi
  [[ $folder == /* ]] || folder="fusion_jax/$folder"
  hosts scp 0 "$name:$folder" "$destination" --recurse
}

delete() {
  if [[ -z $yes && -z $dry_run ]]; then
    local answer=
    printf "Delete '%s' in %s and all that is on its disks? [y/N] " "$name" "$zone" >&2
    read -r answer || true
    [[ $answer == [yY] ]] || fail "not deleted" "Answer y or give --yes"
  fi
  if [[ -n $queued ]]; then
    tpus queued-resources delete "$name" --force --quiet
  else
    tpus tpu-vm delete "$name" --quiet
  fi
}

name=${TPU_NAME:-} zone=${TPU_ZONE:-} project=${TPU_PROJECT:-} type=${TPU_TYPE:-} version=${TPU_VERSION:-}
spot=${TPU_SPOT:-0} queued=${TPU_QUEUED:-0} slices=${TPU_SLICES:-1} bucket=${TPU_BUCKET:-}
restarts=20 worker=0 yes='' dry_run='' words=()
[[ $spot != 0 ]] || spot=''
[[ $queued != 0 ]] || queued=''

command=${1:-}
case $command in
create | setup | preflight | run | status | logs | stop | fetch | delete) shift ;;
'' | -h | --help | help)
  usage
  exit 0
  ;;
*) fail "'$command' is no command" "See tpu.sh --help" ;;
esac

while (($#)); do
  case $1 in
  --name | --zone | --project | --type | --version | --slices | --bucket | --restarts | --worker)
    (($# > 1)) && [[ -n $2 ]] || fail "$1 has no value" "See tpu.sh --help"
    printf -v "${1#--}" %s "$2"
    shift 2
    ;;
  --spot | --queued | --yes)
    printf -v "${1#--}" 1
    shift
    ;;
  --dry-run)
    dry_run=1
    shift
    ;;
  -h | --help)
    usage
    exit 0
    ;;
  --)
    shift
    words+=("$@")
    break
    ;;
  -*) fail "'$1' is no option" "See tpu.sh --help; what is meant for the hosts comes after --" ;;
  *)
    words+=("$1")
    shift
    ;;
  esac
done

case $command in
run | preflight | fetch) ;;
*) ((${#words[@]} == 0)) || fail "$command takes no '${words[0]}'" "See tpu.sh --help" ;;
esac
for option in name zone project type version bucket slices restarts worker; do
  valid "--$option" "${!option}"
done
valid TPU_SPOT "${TPU_SPOT:-}"
valid TPU_QUEUED "${TPU_QUEUED:-}"
((slices == 1)) || queued=1
if [[ $command != fetch || -z $bucket ]]; then
  need "$name" --name TPU_NAME
  need "$zone" --zone TPU_ZONE
fi
if [[ -z $dry_run ]] && ! command -v gcloud >/dev/null; then
  fail "gcloud is not installed" "Install the Google Cloud CLI: https://cloud.google.com/sdk/docs/install"
fi
where=(--zone="$zone" ${project:+--project="$project"})

case $command in
run)
  ((${#words[@]})) || fail "run has no command" "Give it after --: tpu.sh run -- python experiments/wrpo.py"
  on all bash tpu_scripts/job.sh start "$restarts" -- "${words[@]}"
  ;;
preflight)
  on all .venv/bin/python tpu_scripts/preflight.py --hosts.coordinator auto ${words[@]+"${words[@]}"}
  ;;
logs | stop)
  [[ $command == logs ]] || worker=all
  on "$worker" bash tpu_scripts/job.sh "$command"
  ;;
fetch) fetch ${words[@]+"${words[@]}"} ;;
*) "$command" ;;
esac
