#!/bin/bash
# usage: sanitize.sh GPU_TESTS_OF_KERNELS [FILTER]: every test alone under racecheck and memcheck, ten at a time
tests=$1
one() {
    local summary
    mkdir -p logs
    compute-sanitizer --tool "$1" --print-limit 5 "$3" --test-threads=1 --exact "$2" > "logs/$1.${2//::/.}" 2>&1
    echo "$1 $2 rc=$? $(grep -E '^test result|SUMMARY' "logs/$1.${2//::/.}" | tr '\n' ' ')"
}
export -f one
"$tests" --list --format terse | sed -n 's/: test$//p' | grep -v bench | grep -E "${2:-.}" > names
for tool in racecheck memcheck; do sed "s/^/$tool /" names; done | xargs -P 10 -L 1 bash -c 'one "$0" "$1" '"$tests"
