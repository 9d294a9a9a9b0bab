// Share of time in which no kernel and no copy runs on the GPU, for any CUDA program:
//   H=$CUPTI/include/cupti_activity.h; newest() { grep -o "} CUpti_Activity$1[0-9]*;" $H | tr -d '}; ' | sort -uV | tail -1; }
//   g++ -O2 -shared -fPIC -DKERNEL=$(newest Kernel) -DCOPY=$(newest Memcpy) -DSET=$(newest Memset) -I$CUPTI/include
//     launch_gaps.cpp -o gaps.so -L$CUPTI/lib64 -lcupti      (one line)
//   CUDA_INJECTION64_PATH=$PWD/gaps.so LAUNCH_GAPS_SECONDS=2 PROGRAM ...
// It judges the last so many seconds of activity before the program ends; kernels inside graphs count one by one.
#include <cupti.h>

#include <algorithm>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <mutex>
#include <utility>
#include <vector>

using Interval = std::pair<uint64_t, uint64_t>;
static std::vector<Interval> *intervals = new std::vector<Interval>();
static std::mutex *lock = new std::mutex();

// By value: the records are packed.
static void add(uint64_t start, uint64_t end) { intervals->emplace_back(start, end); }

static void CUPTIAPI requested(uint8_t **buffer, size_t *size, size_t *records) {
    *size = 8 << 20;
    *buffer = static_cast<uint8_t *>(aligned_alloc(8, *size));
    *records = 0;
}

static void CUPTIAPI completed(CUcontext, uint32_t, uint8_t *buffer, size_t, size_t valid) {
    std::lock_guard<std::mutex> guard(*lock);
    CUpti_Activity *record = nullptr;
    while (valid > 0 && cuptiActivityGetNextRecord(buffer, valid, &record) == CUPTI_SUCCESS) {
        if (record->kind == CUPTI_ACTIVITY_KIND_CONCURRENT_KERNEL || record->kind == CUPTI_ACTIVITY_KIND_KERNEL) {
            auto *kernel = reinterpret_cast<KERNEL *>(record);
            add(kernel->start, kernel->end);
        } else if (record->kind == CUPTI_ACTIVITY_KIND_MEMCPY) {
            auto *copy = reinterpret_cast<COPY *>(record);
            add(copy->start, copy->end);
        } else if (record->kind == CUPTI_ACTIVITY_KIND_MEMSET) {
            auto *set = reinterpret_cast<SET *>(record);
            add(set->start, set->end);
        }
    }
    free(buffer);
}

static void report() {
    cuptiActivityFlushAll(1);
    std::lock_guard<std::mutex> guard(*lock);
    std::sort(intervals->begin(), intervals->end());
    if (intervals->empty()) {
        fprintf(stderr, "launch gaps: nothing was seen\n");
        return;
    }
    const char *given = getenv("LAUNCH_GAPS_SECONDS");
    const double seconds = given ? atof(given) : 2.0;
    const uint64_t end = intervals->back().second;
    const uint64_t begin = std::max(intervals->front().first, end - static_cast<uint64_t>(seconds * 1e9));
    uint64_t busy = 0, covered = begin, longest = 0;
    size_t launches = 0, pauses = 0;
    for (auto [first, last] : *intervals) {
        if (last <= begin) continue;
        ++launches;
        if (first > covered) {
            longest = std::max(longest, first - covered);
            ++pauses;
        }
        first = std::max(first, covered);
        if (last > first) busy += last - first;
        covered = std::max(covered, last);
    }
    const double span = static_cast<double>(end - begin);
    fprintf(stderr, "launch gaps: %.2f %% of %.3f s (%zu launches, %zu pauses, the longest %.1f us)\n",
            100.0 * (1.0 - busy / span), span / 1e9, launches, pauses, longest / 1e3);
}

extern "C" int InitializeInjection() {
    cuptiActivityRegisterCallbacks(requested, completed);
    for (auto kind : {CUPTI_ACTIVITY_KIND_CONCURRENT_KERNEL, CUPTI_ACTIVITY_KIND_MEMCPY, CUPTI_ACTIVITY_KIND_MEMSET})
        if (cuptiActivityEnable(kind) != CUPTI_SUCCESS) fprintf(stderr, "launch gaps: an activity is not traced\n");
    atexit(report);
    return 1;
}
