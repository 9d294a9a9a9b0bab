// What the GPU does in the middle of a training: time of each kernel, and pauses by their length. Built and used as
// launch_gaps.cpp of record 005; it judges the steps from four to nine tenths of the run, a step ending with `adamw`.
#include <cupti.h>

#include <algorithm>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <mutex>
#include <utility>
#include <vector>
#include <cstring>
#include <map>
#include <string>

using Interval = std::pair<uint64_t, uint64_t>;
struct Seen { uint64_t start, end; const char *name; };
static std::vector<Seen> *intervals = new std::vector<Seen>();
static std::mutex *lock = new std::mutex();

// By value: the records are packed.
static void add(uint64_t start, uint64_t end, const char *name) { intervals->push_back({start, end, name}); }

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
            add(kernel->start, kernel->end, strdup(kernel->name));
        } else if (record->kind == CUPTI_ACTIVITY_KIND_MEMCPY) {
            auto *copy = reinterpret_cast<COPY *>(record);
            add(copy->start, copy->end, "copy");
        } else if (record->kind == CUPTI_ACTIVITY_KIND_MEMSET) {
            auto *set = reinterpret_cast<SET *>(record);
            add(set->start, set->end, "set");
        }
    }
    free(buffer);
}


static void report() {
    cuptiActivityFlushAll(1);
    std::lock_guard<std::mutex> guard(*lock);
    auto &all = *intervals;
    std::sort(all.begin(), all.end(), [](const Seen &a, const Seen &b) { return a.start < b.start; });
    std::vector<uint64_t> steps;
    for (auto &k : all) if (strstr(k.name, "adamw")) steps.push_back(k.end);
    if (steps.size() < 10) { fprintf(stderr, "few steps: %zu\n", steps.size()); return; }
    uint64_t begin = steps[steps.size() * 4 / 10], end = steps[steps.size() * 9 / 10];
    size_t n = steps.size() * 9 / 10 - steps.size() * 4 / 10;
    uint64_t covered = begin, busy = 0; double by[5] = {0}; size_t count[5] = {0};
    std::map<std::string, std::pair<double, size_t>> names; double total = 0;
    for (auto &k : all) {
        if (k.end <= begin || k.start >= end) continue;
        auto &f = names[k.name]; f.first += (k.end - k.start) / 1e6; f.second++; total += (k.end - k.start) / 1e6;
        if (k.start > covered) {
            double us = (k.start - covered) / 1e3; int c = us < 2 ? 0 : us < 10 ? 1 : us < 100 ? 2 : us < 1000 ? 3 : 4;
            by[c] += us / 1e3; count[c]++;
        }
        uint64_t s = std::max(k.start, covered);
        if (k.end > s) busy += k.end - s;
        covered = std::max(covered, k.end);
    }
    double span = (end - begin) / 1e6;
    fprintf(stderr, "PROF %zu steps %.3f ms each, busy %.2f %%, kernels' time %.3f ms a step\n", n, span / n, 100.0 * busy / 1e6 / span, total / n);
    const char *cls[5] = {"<2us", "<10us", "<100us", "<1ms", ">1ms"};
    for (int c = 0; c < 5; ++c) fprintf(stderr, "PROF gaps %s: %.3f ms a step, %.1f of them\n", cls[c], by[c] / n, (double)count[c] / n);
    std::vector<std::pair<double, std::string>> order;
    for (auto &f : names) order.push_back({f.second.first, f.first});
    std::sort(order.rbegin(), order.rend());
    for (size_t i = 0; i < order.size() && i < 40; ++i) fprintf(stderr, "PROF %8.3f ms %6.1f x  %s\n", order[i].first / n, (double)names[order[i].second].second / n, order[i].second.substr(0, 100).c_str());
}

extern "C" int InitializeInjection() {
    cuptiActivityRegisterCallbacks(requested, completed);
    for (auto kind : {CUPTI_ACTIVITY_KIND_CONCURRENT_KERNEL, CUPTI_ACTIVITY_KIND_MEMCPY, CUPTI_ACTIVITY_KIND_MEMSET})
        if (cuptiActivityEnable(kind) != CUPTI_SUCCESS) fprintf(stderr, "launch gaps: an activity is not traced\n");
    atexit(report);
    return 1;
}
