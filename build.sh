#!/usr/bin/env bash
# Set-up, demo and tests of chexspark. `./build.sh help` lists what it does.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")"

horovod_version=0.28.1
venv=$PWD/.venv
cache=${XDG_CACHE_HOME:-$HOME/.cache}/chexspark
gpu=no

help() {
  cat <<'TEXT'
./build.sh setup [--gpu]  install everything into .venv; --gpu builds Horovod with NCCL
./build.sh demo           set-up, then ingest, train, evaluate and report on synthetic X-rays (demo/)
./build.sh test [ARGS]    set-up, then the quick tests, two at a time; or pytest with ARGS
./build.sh lint           ruff and mypy, in an environment of their own: needs no Java, no compiler
./build.sh help           this text

Then: . .venv/bin/activate
TEXT
}

say() { printf '\033[1m%s\033[0m\n' "$*" >&2; }
fail() { echo "build.sh: $*" >&2; exit 2; }

# --- what the machine must have ------------------------------------------------------------

find_python() {
  local name
  for name in python3.11 python3 python; do
    if command -v "$name" >/dev/null &&
      "$name" -c 'import sys, sysconfig, os, venv, ensurepip
sys.exit(sys.version_info[:2] != (3, 11) or not os.path.exists(sysconfig.get_path("include") + "/Python.h"))' 2>/dev/null; then
      command -v "$name"
      return
    fi
  done
  return 1
}

has_java() {
  local java=${JAVA_HOME:+$JAVA_HOME/bin/}java
  command -v "$java" >/dev/null && "$java" -version 2>&1 | grep -q 'version "17'
}

has_compiler() {
  command -v g++ >/dev/null && command -v make >/dev/null &&
    echo 'int main() { if constexpr (true) return 0; }' | g++ -std=c++17 -x c++ -fsyntax-only - 2>/dev/null
}

check_machine() {
  local missing=()
  find_python >/dev/null || missing+=(python3.11 python3.11-venv python3.11-dev)
  has_java || missing+=(openjdk-17-jre-headless)
  has_compiler || missing+=(g++ make)
  [ ${#missing[@]} -eq 0 ] && return
  local command="apt-get install -y ${missing[*]}"
  if [ "$(id -u)" != 0 ] || ! command -v apt-get >/dev/null; then
    fail "Python 3.11 (with venv and headers), Java 17 and a C++17 compiler are needed; run: sudo $command"
  fi
  say "installing ${missing[*]}"
  apt-get update -qq
  DEBIAN_FRONTEND=noninteractive $command >/dev/null
  find_python >/dev/null && has_java && has_compiler ||
    fail "still not all there after: $command (if JAVA_HOME is set, it must be a Java 17)"
}

# --- the stack ----------------------------------------------------------------------------

# What the stack was installed from: the lock, and the functions below that install it.
stack_stamp() {
  { cat conf/requirements.lock; echo $horovod_version; declare -f install_stack install_horovod build_horovod; } |
    sha256sum | cut -d' ' -f1
}
package_stamp() { cat pyproject.toml setup.py | sha256sum | cut -d' ' -f1; }

pip() { "$venv/bin/python" -m pip --disable-pip-version-check -qq "$@"; }

install_stack() {
  say "installing the locked stack into .venv"
  rm -rf "$venv"
  "$(find_python)" -m venv "$venv"
  pip install -r conf/requirements.lock
  [ $gpu = no ] || pip install -c conf/requirements.lock 'tensorflow[and-cuda]'
  install_horovod
}

# The package, where its metadata or commands have changed: its modules are read from the checkout.
install_package() {
  [ "$(cat "$venv/.package" 2>/dev/null)" != "$(package_stamp)" ] || return 0
  pip install --no-deps --no-build-isolation --editable .
  package_stamp >"$venv/.package"
}

configure_spark() {
  local conf=$venv/lib/python3.11/site-packages/pyspark/conf
  mkdir -p "$conf"
  cp conf/spark/* "$conf/"
}

install_horovod() {
  local operations=gloo tensorflow wheels
  [ $gpu = no ] || operations=nccl
  tensorflow=$("$venv/bin/python" -c 'from importlib.metadata import version; print(version("tensorflow"))')
  wheels=$cache/horovod-$horovod_version-tensorflow-$tensorflow-py311-$(uname -m)-g++$(g++ -dumpversion)-$operations
  if ! ls "$wheels"/horovod-*.whl >/dev/null 2>&1; then
    say "building Horovod $horovod_version with $operations (minutes; kept in $cache)"
    mkdir -p "$cache"
    local aside
    aside=$(mktemp -d "$cache/building.XXXXXX")
    build_horovod "$aside"
    rm -rf "$wheels"
    mv "$aside" "$wheels"
  fi
  pip install --no-deps "$wheels"/horovod-*.whl
}

build_horovod() {
  export HOROVOD_WITH_TENSORFLOW=1 HOROVOD_WITHOUT_PYTORCH=1 HOROVOD_WITHOUT_MXNET=1
  export HOROVOD_WITH_GLOO=1 HOROVOD_WITHOUT_MPI=1 HOROVOD_CPU_OPERATIONS=GLOO
  export CMAKE_POLICY_VERSION_MINIMUM=3.5 MAKEFLAGS=-j$(nproc) CXXFLAGS="-include cstdint ${CXXFLAGS:-}"
  if [ $gpu = yes ]; then
    command -v nvcc >/dev/null || [ -n "${HOROVOD_CUDA_HOME:-}" ] ||
      fail "--gpu needs CUDA's nvcc: install the CUDA 12 toolkit, or set HOROVOD_CUDA_HOME to it"
    export HOROVOD_GPU=CUDA HOROVOD_GPU_OPERATIONS=NCCL
    export HOROVOD_NCCL_HOME=${HOROVOD_NCCL_HOME:-$venv/lib/python3.11/site-packages/nvidia/nccl}
  fi
  local log=$1/build.log
  # Without pip's own cache, which does not know what a wheel was built against.
  if ! PATH=$venv/bin:$PATH pip wheel --no-cache-dir --no-deps --no-build-isolation --no-binary horovod \
    --wheel-dir "$1" "horovod==$horovod_version" >"$log" 2>&1; then
    tail -30 "$log" >&2
    fail "Horovod did not build; the whole log: $log"
  fi
}

activate() {
  # shellcheck disable=SC1091
  . "$venv/bin/activate"
  unset SPARK_HOME PYTHONPATH  # another Spark's would be taken before the one in .venv
}

setup() {
  case ${1:-} in
    '') ;;
    --gpu) gpu=yes ;;
    *) fail "setup knows --gpu, not '$1'" ;;
  esac
  local wanted
  wanted=$(stack_stamp)-$gpu
  # Once built for GPUs, a plain `demo` or `test` leaves it so.
  if [ $gpu = no ] && [ "$(cat "$venv/.chexspark" 2>/dev/null)" = "$(stack_stamp)-yes" ]; then wanted=$(stack_stamp)-yes; fi
  if [ "$(cat "$venv/.chexspark" 2>/dev/null)" = "$wanted" ]; then
    install_package
    configure_spark
    activate
  else
    check_machine
    install_stack
    install_package
    configure_spark
    activate
    say "two ranks on Spark, one allreduce"
    spark-submit --master 'local[2]' chexspark/cluster/smoke_test.py
    echo "$wanted" >"$venv/.chexspark"
    say "set up; activate it with: . .venv/bin/activate"
  fi
}

# --- what it is for -----------------------------------------------------------------------

demo() {
  setup
  rm -rf demo
  submit() { spark-submit --master 'local[2]' "$@"; }
  say "1/5 synthetic X-rays"
  chexspark phantom --out demo/nih --images 1200 --size 64
  say "2/5 ingest"
  submit jobs/ingest.py --images demo/nih/images --labels demo/nih/Data_Entry_2017.csv \
    --boxes demo/nih/BBox_List_2017.csv --out demo/store --size 64
  say "3/5 train"
  submit jobs/train.py --data demo/store --run demo/run --recipe chexnet --epochs 8 --num-proc 2
  say "4/5 evaluate"
  submit jobs/evaluate.py --data demo/store --run demo/run
  say "5/5 report"
  submit jobs/report.py --run demo/run
}

run_tests() {
  setup
  # By file, so that what a file's tests share is made once.
  [ $# -gt 0 ] || set -- -m 'not slow and not cluster' -n 2 --dist loadfile
  python -m pytest "$@"
}

lint() {
  local tools
  tools=$cache/lint-$(sha256sum conf/lint.lock | cut -c1-12)
  if [ ! -f "$tools/whole" ]; then
    say "installing ruff and mypy (kept in $cache)"
    rm -rf "$tools"
    python3 -m venv "$tools" || fail "lint needs a python3 with venv; run: sudo apt-get install -y python3-venv"
    "$tools/bin/python" -m pip --disable-pip-version-check -qq install -r conf/lint.lock
    touch "$tools/whole"
  fi
  "$tools/bin/ruff" check . && "$tools/bin/ruff" format --check . && "$tools/bin/mypy"
}

case ${1:-help} in
  setup) shift; setup "$@"; say "chexspark is set up in .venv" ;;
  demo) demo ;;
  test) shift; run_tests "$@" ;;
  lint) lint ;;
  help | -h | --help) help ;;
  *) help >&2; fail "there is no '$1'" ;;
esac
