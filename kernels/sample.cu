// The choice of a token from each row of logits: the greatest, or a draw by top-k, top-p and temperature.
//
//   ids[i] = the token that src/sample.rs describes, the same to the last bit; 0xFFFFFFFF where there is none
//
// | tensor | shape | type                                                                                    |
// | logits | R x V | float32 or bfloat16                                                                     |
// | draws  | R x 8 | u32: ids allowed, top_k, top_p 2^31, uniform 2^24, log2(e) / temperature as float64, 0, 0 |
// | ids    | R x 1 | u32                                                                                     |
//
// One block a row. Weights are whole numbers, so sums in shared memory may be made in any order: they are exact. One read of
// the row finds the greatest logit, one sums weights by distance from it. Where a cumulated sum crosses a bound, the bin is
// divided until a single value is left: one or two reads. Last comes the token among those of the value. A row is read five to
// seven times, after the first time from the cache; a greedy one once. Tolerance: none, the same token.
// Speed on an H100 80GB HBM3, V = 151,936 in bfloat16: greedy 256 rows 33.6 us (2,315 GB/s), one row 6.9 us; drawn by top-p 0.95
// from flat logits 256 rows 471 us (165 GB/s by one read), one row 220 us.

#include "common.cuh"
#include "groups.cuh"

constexpr u32 NONE = 0xFFFFFFFFu;
constexpr int THREADS = 1024, BINS = 2048, BIN_BITS = 11;
// Bits of the greatest weight; the sum over 2^22 logits fits 64 bits.
constexpr int BITS = 40;
constexpr double BINS_TO_ONE = 32.0;
constexpr u32 ALL = 1u << 31;

struct Draw {
    u32 allowed, top_k, top_p, uniform;
    double scale;
    u32 unused[2];
};

struct Best {
    float value;
    u32 id;
};

// The greater value; of equals the lower id.
__device__ inline Best better(Best a, Best b) {
    bool second = b.value > a.value || (b.value == a.value && b.id < a.id);
    return second ? b : a;
}

__device__ inline Best warp_best(Best best) {
#pragma unroll
    for (int delta = WARP / 2; delta > 0; delta /= 2) {
        best = better(best, Best{__shfl_xor_sync(0xFFFFFFFFu, best.value, delta), __shfl_xor_sync(0xFFFFFFFFu, best.id, delta)});
    }
    return best;
}

// The greater one; NaN when one is.
__device__ inline float max_or_nan(float a, float b) {
    float out;
    asm("max.NaN.f32 %0, %1, %2;" : "=f"(out) : "f"(a), "f"(b));
    return out;
}
__device__ inline u32 max_or_nan_pairs(u32 a, u32 b) {
    u32 out;
    asm("max.NaN.bf16x2 %0, %1, %2;" : "=r"(out) : "r"(a), "r"(b));
    return out;
}
__device__ inline float greatest(const Group<float, 4>& g) {
    return max_or_nan(max_or_nan(g.v[0], g.v[1]), max_or_nan(g.v[2], g.v[3]));
}
__device__ inline float greatest(const Group<bf16, 8>& g) {
    uint4 pairs = *reinterpret_cast<const uint4*>(&g);
    u32 both = max_or_nan_pairs(max_or_nan_pairs(pairs.x, pairs.y), max_or_nan_pairs(pairs.z, pairs.w));
    return max_or_nan(low_bf16(both), high_bf16(both));
}

// The best of the groups that this thread takes: the first group with the greatest maximum, then the first element in it.
template <typename T>
__device__ inline Best over_row(const T* row, int allowed, bool wide, bool& poisoned) {
    constexpr int N = 16 / sizeof(T), AHEAD = 4;
    int stride = (int)blockDim.x * N, where = -1;
    float top = -INF;
    for (int first = (int)threadIdx.x * N; first < allowed; first += AHEAD * stride) {
        Group<T, N> v[AHEAD];
#pragma unroll
        for (int k = 0; k < AHEAD; ++k) {
            v[k] = load_group<T, N>(row, min(first + k * stride, allowed), allowed, wide, minus_infinity<T>());
        }
#pragma unroll
        for (int k = 0; k < AHEAD; ++k) {
            int c = first + k * stride;
            float most = greatest(v[k]);
            poisoned |= most != most;
            if (c < allowed && (where < 0 || most > top)) {
                top = most;
                where = c;
            }
        }
    }
    if (where < 0) return Best{-INF, NONE};
    for (int c = where; c < min(where + N, allowed); ++c) {
        if (to_float(row[c]) == top) return Best{top, (u32)c};
    }
    return Best{-INF, NONE};
}

// The best of a row, for every thread. No id where there is none to choose.
template <typename T>
__device__ Best best_of(const T* row, int allowed, bool wide) {
    __shared__ Best parts[WARP];
    bool poisoned = false;
    Best best = warp_best(over_row(row, allowed, wide, poisoned));
    if (threadIdx.x % WARP == 0) parts[threadIdx.x / WARP] = best;
    bool any = __syncthreads_or(poisoned);
    best = warp_best(parts[threadIdx.x % WARP]);
    if (any || !(fabsf(best.value) < INF)) best.id = NONE;
    return best;
}

// Floats in the order of their bits, for bfloat16 the upper half; zeros are equal.
__device__ inline u32 key_of(float x) {
    u32 bits = __float_as_uint(__fadd_rn(x, 0.0f));
    return bits ^ (bits >> 31 ? 0xFFFFFFFFu : 0x80000000u);
}
template <typename T>
constexpr int key_shift() { return sizeof(T) == 2 ? 16 : 0; }
template <typename T>
__device__ inline float value_of(u32 key) {
    bool positive = key >> (31 - key_shift<T>());
    u32 bits = positive ? key << key_shift<T>() : ((key + 1) << key_shift<T>()) - 1;
    return __uint_as_float(positive ? bits ^ 0x80000000u : ~bits);
}

// A row with what its weights need.
template <typename T>
struct Row {
    const T* logits;
    int allowed;
    bool wide;
    float top;
    double scale;

    __device__ double distance(float x) const { return __dmul_rn(__dsub_rn((double)top, (double)x), scale); }
    __device__ u32 bin(float x) const { return __double2uint_rz(fmin(__dmul_rn(distance(x), BINS_TO_ONE), BINS - 1.0)); }
    __device__ u32 key(float x) const { return key_of(x) >> key_shift<T>(); }
    // round(2^40 2^-d): the series of src/sample.rs, each product and sum rounded.
    __device__ u64 weight(float x) const {
        double d = distance(x);
        if (d >= BITS + 1.0) return 0;
        int n = __double2int_rz(d);
        double g = __dsub_rn(d, __dadd_rn((double)n, 0.5));
        constexpr double SERIES[12] = {
            0.7071067811865476,     -0.4901290717342736,     0.16986579209153746,    -0.03924733162061035,
            0.006801044314331813,   -0.0009428249382684685,  0.00010891940795373224, -1.0785311504483997e-05,
            9.344760325992282e-07,  -7.196993636633317e-08,  4.9885758477402514e-09, -3.1434702580641764e-10,
        };
        double power = SERIES[11];
#pragma unroll
        for (int k = 10; k >= 0; --k) power = __dadd_rn(__dmul_rn(power, g), SERIES[k]);
        double factor = __hiloint2double((1023 + BITS - n) << 20, 0);
        return __double2ull_rz(__dadd_rn(__dmul_rn(power, factor), 0.5));
    }
    // Calls f for those of a group that are in from .. to and not below `least`. One copy of f a word keeps the code short.
    template <int N, typename F>
    __device__ static void some_of(const Group<T, N>& group, int c, int from, int to, float least, F f) {
        constexpr int HALVES = 4 / sizeof(T);
        uint4 words = *reinterpret_cast<const uint4*>(&group);
        bool whole = c >= from && c + N <= to;
#pragma unroll 1
        for (int i = 0; i < N; i += HALVES) {
#pragma unroll
            for (int half = 0; half < HALVES; ++half) {
                float x = HALVES == 1 ? __uint_as_float(words.x) : half ? high_bf16(words.x) : low_bf16(words.x);
                int at = c + i + half;
                if (x >= least && (whole || (at >= from && at < to))) f(x, at);
            }
            words = make_uint4(words.y, words.z, words.w, 0);
        }
    }
    // Calls f(logit, column) for the columns from .. to whose logit is not below `least`.
    template <typename F>
    __device__ void each(int from, int to, float least, F f) const {
        constexpr int N = 16 / sizeof(T), AHEAD = 4;
        int stride = (int)blockDim.x * N;
        for (int first = from / N * N + (int)threadIdx.x * N; first < to; first += AHEAD * stride) {
            Group<T, N> v[AHEAD];
#pragma unroll
            for (int k = 0; k < AHEAD; ++k) {
                v[k] = load_group<T, N>(logits, min(first + k * stride, to), to, wide, minus_infinity<T>());
            }
#pragma unroll 1
            for (int c = first; c < min(to, first + AHEAD * stride); c += stride) {
                if (greatest(v[0]) >= least) some_of(v[0], c, from, to, least, f);
#pragma unroll
                for (int k = 0; k + 1 < AHEAD; ++k) v[k] = v[k + 1];
            }
        }
    }
};

// 64-bit sums as two words: additions of whole numbers, exact in any order.
struct Bins {
    u32 low[BINS];
    u32 high[BINS];

    __device__ void clear() {
        for (int i = threadIdx.x; i < BINS; i += blockDim.x) low[i] = high[i] = 0;
        __syncthreads();
    }
    __device__ void add(u32 bin, u64 value) {
        u32 part = (u32)value, carry = (u32)(value >> 32);
        if (part) {
            u32 before = atomicAdd(&low[bin], part);
            carry += before + part < before;
        }
        if (carry) atomicAdd(&high[bin], carry);
    }
    __device__ u64 get(int i) const { return ((u64)high[i] << 32) | low[i]; }
};

// Bins cumulated: what lies before the two bins of this thread, and in them.
struct Sums {
    u64 before, first, second, total;
};
struct Found {
    u32 bin;
    u64 before, inside;
};

__device__ Sums cumulate(const Bins& bins) {
    __shared__ u64 parts[WARP];
    __syncthreads();
    Sums sums = {0, bins.get(2 * threadIdx.x), bins.get(2 * threadIdx.x + 1), 0};
    u64 own = sums.first + sums.second, up_to = own;
#pragma unroll
    for (int delta = 1; delta < WARP; delta *= 2) {
        u64 other = __shfl_up_sync(0xFFFFFFFFu, up_to, delta);
        if ((int)threadIdx.x % WARP >= delta) up_to += other;
    }
    if (threadIdx.x % WARP == WARP - 1) parts[threadIdx.x / WARP] = up_to;
    __syncthreads();
    sums.before = up_to - own;
    for (int warp = 0; warp < THREADS / WARP; ++warp) {
        if (warp < (int)threadIdx.x / WARP) sums.before += parts[warp];
        sums.total += parts[warp];
    }
    return sums;
}

// The bin in which the sum reaches `need`, which is above 0 and at most all of it.
__device__ Found locate(const Sums& sums, u64 need) {
    __shared__ Found found;
    __syncthreads();
    u64 middle = sums.before + sums.first;
    if (sums.before < need && need <= middle) found = {2 * threadIdx.x, sums.before, sums.first};
    if (middle < need && need <= middle + sums.second) found = {2 * threadIdx.x + 1, middle, sums.second};
    __syncthreads();
    return found;
}

// Positions low .. high in at most BINS equal parts, by this many bits.
__device__ inline int part_bits(u32 low, u32 high) { return max(WARP - __clz(high - low) - BIN_BITS, 0); }

// The value inside of a bin at which the measure reaches `need`: its key, and the measure before it and of all that have it.
template <typename T, typename Measure>
__device__ Found divide(const Row<T>& row, Bins& bins, Found found, u32 floor, u64 need, Measure measure) {
    // Ends of the bin, moved apart by more than their rounding errors.
    double step = 1.0 / (BINS_TO_ONE * row.scale), near = found.bin * step, far = (found.bin + 1.0) * step;
    double margin = 1e-12 * (fabs((double)row.top) + far);
    u32 high = row.key(__double2float_ru((double)row.top - near + margin));
    u32 low = found.bin == BINS - 1 ? row.key(-INF) : row.key(__double2float_rd((double)row.top - far - margin));
    low = max(low, floor);
    u32 bin = found.bin;
    for (;;) {
        int bits = part_bits(low, high);
        bins.clear();
        float most = value_of<T>(high);
        row.each(0, row.allowed, value_of<T>(low), [&](float x, int) {
            if (x <= most && row.bin(x) == bin) bins.add((high - row.key(x)) >> bits, measure(x));
        });
        Found part = locate(cumulate(bins), need - found.before);
        found = {high - (part.bin << bits), found.before + part.before, part.inside};
        if (bits == 0) return found;
        high = found.bin;
        u32 width = (1u << bits) - 1;
        low = high - low > width ? high - width : low;
    }
}

// The column of the token number `index` of those whose logit has this key.
template <typename T>
__device__ u32 column_of(const Row<T>& row, Bins& bins, u32 key, u64 index) {
    u32 low = 0, high = row.allowed - 1;
    float value = value_of<T>(key);
    for (;;) {
        int bits = part_bits(low, high);
        bins.clear();
        row.each((int)low, (int)high + 1, value, [&](float x, int c) {
            if (x == value) bins.add(((u32)c - low) >> bits, 1);
        });
        Found part = locate(cumulate(bins), index + 1);
        index -= part.before;
        low += part.bin << bits;
        if (bits == 0) return low;
        high = min(high, low + ((1u << bits) - 1));
    }
}

template <typename T>
__device__ u32 drawn(const Row<T>& row, const Draw& draw) {
    __shared__ Bins first, second;
    auto one = [](float) { return (u64)1; };
    auto weight = [&](float x) { return row.weight(x); };
    u32 floor = 0;
    u64 surplus = 0;
    if (draw.top_k > 0 && draw.top_k < (u32)row.allowed) {
        first.clear();
        row.each(0, row.allowed, -INF, [&](float x, int) { first.add(row.bin(x), 1); });
        Found last = divide(row, second, locate(cumulate(first), draw.top_k), 0, draw.top_k, one);
        floor = last.bin;
        surplus = (last.before + last.inside - draw.top_k) * row.weight(value_of<T>(floor));
    }
    first.clear();
    // Logits without a weight are left out, by a bound further away than any rounding error.
    double away = (BITS + 2) / row.scale;
    float least = __double2float_rd((double)row.top - away - 1e-12 * (fabs((double)row.top) + away));
    least = floor > 0 ? fmaxf(least, value_of<T>(floor)) : least;
    row.each(0, row.allowed, least, [&](float x, int) { first.add(row.bin(x), row.weight(x)); });
    Sums sums = cumulate(first);
    u64 kept = sums.total - surplus;
    if (draw.top_p < ALL) {
        u64 low = kept * draw.top_p;
        u64 share = ((__umul64hi(kept, draw.top_p) << 33) | (low >> 31)) + ((low & (ALL - 1)) != 0);
        Found last = divide(row, second, locate(sums, share), floor, share, weight);
        u64 one_weight = row.weight(value_of<T>(last.bin)), more = share - last.before;
        kept = last.before + (more + one_weight - 1) / one_weight * one_weight;
    }
    u64 below = (__umul64hi(kept, draw.uniform) << 40) | ((kept * draw.uniform) >> 24);
    Found found = divide(row, second, locate(sums, below + 1), floor, below + 1, weight);
    return column_of(row, second, found.bin, (below - found.before) / row.weight(value_of<T>(found.bin)));
}

template <typename T>
__device__ void choose(const T* logits, int pitch, const Draw* draws, u32* ids, int cols, bool wide) {
    const T* row = logits + (long long)blockIdx.x * pitch;
    Draw draw = draws[blockIdx.x];
    int allowed = (int)min(draw.allowed, (u32)cols);
    Best best = best_of(row, allowed, wide);
    u32 id = best.id;
    if (id != NONE && draw.scale != 0.0) id = drawn(Row<T>{row, allowed, wide, best.value, draw.scale}, draw);
    if (threadIdx.x == 0) ids[blockIdx.x] = id;
}

extern "C" __global__ void __launch_bounds__(THREADS) choose_f32(const float* logits, int pitch, const Draw* draws, u32* ids,
                                                                 int cols, int wide) {
    choose(logits, pitch, draws, ids, cols, wide);
}
extern "C" __global__ void __launch_bounds__(THREADS) choose_bf16(const bf16* logits, int pitch, const Draw* draws, u32* ids,
                                                                  int cols, int wide) {
    choose(logits, pitch, draws, ids, cols, wide);
}
