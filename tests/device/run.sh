#!/usr/bin/env bash
# Builds, tests and times the CUDA back end on a machine with a GPU, nvcc and gcc; of this project's libraries only
# jansson is needed, and can be brought along.
#   tests/device/run.sh deps DIR            where jansson is installed: its header and library into DIR
#   tests/device/run.sh run DIR OUT PART... on the machine with the GPU: build, run, logs to OUT, ONE table at the end
# PART: tests, sample (tests of the sampler), loop (tests of the device loop), sanitize, bench (attention, products, steps, prefill), or bench:WORDS for
# bench_cuda's words, as bench:step,8b. JOBS: compile jobs (default: all cores). CPUS: cores to keep to (taskset list; default: all).
# Exit: 0 all passed, 1 something failed, 77 no GPU.
set -uo pipefail
cd "$(dirname "$0")/../.."
root=$PWD

if [ "${1:-}" = deps ]; then
    mkdir -p "$2/include" "$2/lib"
    cp /usr/include/jansson.h /usr/include/jansson_config.h "$2/include" 2>/dev/null || cp /usr/include/jansson.h \
        /usr/include/*/jansson_config.h "$2/include"
    cp -L "$(ldconfig -p | awk '/libjansson\.so\.4 /{print $NF; exit}')" "$2/lib/libjansson.so.4"
    cp "$2/lib/libjansson.so.4" "$2/lib/libjansson.so"
    exit
fi
[ "${1:-}" = run ] && [ $# -ge 4 ] || { sed -n 2,9p "$0" >&2; exit 64; }

deps=$(realpath "$2") out=$3
shift 3
parts=("$@")
mkdir -p "$out"
[ -n "${CPUS:-}" ] && taskset -pc "$CPUS" $$ >/dev/null
gpu=$(nvidia-smi --query-gpu=name,driver_version,memory.total --format=csv,noheader 2>/dev/null) || { echo "no GPU"; exit 77; }
table="$out/table.txt"
: >"$table"
failed=0

wants() {
    local p
    for p in "${parts[@]}"; do
        case "$p" in "$1" | "$1":*) return 0 ;; esac
    done
    return 1
}
# one NAME LIMIT_S COMMAND...: run, log, add a row to the table.
one() {
    local name=$1 limit=$2 start=$SECONDS rc result
    shift 2
    timeout "$limit" "$@" >"$out/$name.log" 2>&1
    rc=$?
    case $rc in
    0) result=ok ;;
    77) result=skipped ;;
    124) result="over ${limit}s" failed=1 ;;
    *) result="FAILED ($rc)" failed=1 ;;
    esac
    printf '%-22s %-12s %4d s  %s\n' "$name" "$result" $((SECONDS - start)) \
        "$(grep -E 'passed, |ERROR SUMMARY|RACECHECK SUMMARY' "$out/$name.log" | tail -1)" >>"$table"
    return $rc
}

# --- build: plain compiler calls, all at once -------------------------------------------------------------------
build=${BUILD:-$(mktemp -d)}
bin=$build/bin
mkdir -p "$bin" "$build/obj"
flags="-std=gnu17 -O2 -D_GNU_SOURCE -DDS_HAVE_CUDA -DDS_VERSION=\"device\" -DDS_SOURCE_DIR=\"$root\" -DDS_BIN_DIR=\"$bin\" -I$root \
-I$deps/include -ffp-contract=off -fno-math-errno"
object() { echo "$build/obj/$(echo "$1" | tr / _).o"; }
compile() { # one source; a level's file gets its instruction set
    local isa= src=$1
    case $src in
    *_avx2.c) isa="-O3 -mavx2 -mfma -mf16c" ;;
    *_avx512bf16.c) isa="-O3 -mavx512f -mavx512bw -mavx512vl -mavx512dq -mavx512bf16 -mavx512vnni -mavx2 -mfma -mf16c" ;;
    *_avx512.c) isa="-O3 -mavx512f -mavx512bw -mavx512vl -mavx512dq -mavx2 -mfma -mf16c" ;;
    esac
    case $src in
    *.cu) nvcc -std=c++17 -O3 -lineinfo -I"$root" -I"$deps/include" -gencode=arch=compute_90a,code=sm_90a -c "$src" -o "$(object "$src")" ;;
    *) gcc $flags $isa -c "$src" -o "$(object "$src")" ;;
    esac
}
export -f compile object
export build root deps flags
engine=$(ls worker/*.c | grep -vE '/(main|link[a-z_]*|serve|identity|request)\.c$' | xargs grep -L 'proto/')
library=$(ls base/*.c kernels/*.c kernels/cpu/*.c kernels/cuda/*.cu kernels/cuda/sm90/*.cu worker/model/*.c worker/request.c 2>/dev/null)
tests="tests/lib/test.c tests/device/bench_cuda.cu"
programs=$(ls tests/kernel/test_{linear,rows,attention,sample,cuda,cuda_lost,step}.c tests/golden/test_{cuda,dspark}.c \
    tests/unit/test_{same_tokens,loop,resident}.c 2>/dev/null)
make() {
    printf '%s\n' $library $engine $tests $programs | xargs -P "${JOBS:-$(nproc)}" -I{} bash -c 'compile {} || echo "not built: {}"' || return 1
    rm -f "$build/library.a"
    ar rcs "$build/library.a" $(for s in $library $engine; do o=$(object "$s"); [ -e "$o" ] && echo "$o"; done) || return 1
    for s in $programs tests/device/bench_cuda.cu; do
        local name main=
        name=$(echo "$s" | sed -E 's|tests/([a-z]+)/test_(.*)\.c|test_\1_\2|; s|.*/(bench_.*)\.cu|\1|')
        case $s in *.c) main=$(object tests/lib/test.c) ;; esac
        nvcc -o "$bin/$name" "$(object "$s")" $main "$build/library.a" -L"$deps/lib" -ljansson -lpthread -ldl -lm || echo "not linked: $name"
    done
}
export LD_LIBRARY_PATH="$deps/lib:$(dirname "$(find / -name 'libcublasLt.so.13' -not -path '/proc/*' 2>/dev/null | head -1)")"
if [ ! -x "$bin/bench_cuda" ]; then
    export -f make
    export library engine tests programs bin
    one build 300 bash -c make
    grep -E 'error|not built|not linked' "$out/build.log" | head -20
fi

# --- run ----------------------------------------------------------------------------------------------------------
cases() { # cases PREFIX SUFFIXES...: PREFIX_LEVEL_SUFFIX for each level
    local prefix=$1 level suffix
    shift
    for level in auto invariant portable; do
        for suffix in "${@:-}"; do echo "${prefix}_cuda_$level${suffix:+_$suffix}"; done
    done
}
if wants tests; then
    one opens 60 "$bin/test_kernel_cuda" cuda_opens
    one rows 60 "$bin/test_kernel_rows" $(cases rmsnorm) $(cases silu_mul) $(cases embed)
    one linear 90 "$bin/test_kernel_linear" $(cases linear f32 bf16 f16 i8)
    one attention 90 "$bin/test_kernel_attention" $(cases attention f32 bf16) $(cases qkv)
    for c in gather_and_cell large_products rows_do_not_depend_on_each_other groups_and_rounded_inputs long_contexts; do
        one "$c" 60 "$bin/test_kernel_cuda" "cuda_$c"
    done
    one lost 60 "$bin/test_kernel_cuda_lost"
    one golden 90 "$bin/test_golden_cuda"
    for p in test_unit_same_tokens test_golden_dspark test_kernel_step test_unit_loop test_unit_resident; do
        names=$(nm "$bin/$p" 2>/dev/null | grep -oE ' t test_[a-z0-9_]*cuda[a-z0-9_]*' | sed 's/.* test_//' | tr '\n' ' ')
        [ -n "$names" ] && one "${p#test_}" 120 "$bin/$p" $names
    done
fi
if wants loop; then
    one step 60 "$bin/test_kernel_step" admit_cuda accept_cuda odds_cuda block_cuda draw_cuda graph_cuda
    one loop 120 "$bin/test_unit_loop" same_tokens_{plain,vanilla,gated,rnn,dflash}_cuda
    one resident 120 "$bin/test_unit_resident" worlds_{plain,vanilla,rnn,dflash}_cuda
fi
if wants sample; then
    for level in auto invariant portable; do # mostly the reference on the CPU: at the same time
        one "sample_$level" 120 "$bin/test_kernel_sample" "sample_draws_cuda_$level" "sample_distribution_cuda_$level" \
            "sample_reports_cuda_$level" "sample_rules_cuda_$level" "sample_coupling_cuda_$level" &
    done
    wait
fi
if wants bench; then
    words=
    for p in "${parts[@]}"; do case "$p" in bench:*) words="$words ${p#bench:}" ;; esac; done
    for w in ${words:-attention linear,8b step,prefill,8b linear,4b step,4b}; do
        one "bench_$w" 100 "$bin/bench_cuda" $(echo "$w" | tr , ' ')
    done
fi
if wants sanitize; then
    one memcheck 90 compute-sanitizer --tool memcheck --error-exitcode 9 "$bin/test_kernel_cuda" cuda_gather_and_cell \
        cuda_groups_and_rounded_inputs cuda_long_contexts &
    one racecheck 90 compute-sanitizer --tool racecheck --error-exitcode 9 "$bin/test_kernel_cuda" cuda_gather_and_cell \
        cuda_groups_and_rounded_inputs &
    one memcheck_sample 90 compute-sanitizer --tool memcheck --error-exitcode 9 "$bin/test_kernel_sample" sample_rules_cuda_auto &
    one racecheck_sample 90 compute-sanitizer --tool racecheck --error-exitcode 9 "$bin/test_kernel_sample" sample_reports_cuda_auto &
    wait
    grep -q FAILED "$table" && failed=1
fi
for log in "$out"/*.log; do
    grep -E '^ +[^ ]+:[0-9]+: |^  FAILED|=====.*(Invalid|Race|hazard)|bench_cuda.cu:' "$log" | head -12 | sed "s|^|$(basename "$log"): |"
done
for log in "$out"/bench_*.log; do [ -e "$log" ] && cat "$log"; done
printf '\n%s\n' "$gpu"
cat "$table"
exit $failed
