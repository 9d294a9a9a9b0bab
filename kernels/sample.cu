// The greatest logit of each row, for greedy decoding.
//
//   ids[i] = the lowest c below `allowed` with the greatest logits[i][c]; 0xFFFFFFFF where one of them is NaN
//
// | tensor | shape | type                |
// | logits | R x V | float32 or bfloat16 |
// | ids    | R x 1 | u32                 |
//
// One block a row. Exact.

#include "common.cuh"
#include "groups.cuh"

constexpr u32 NONE = 0xFFFFFFFFu;

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

template <typename T>
__device__ void argmax(const T* logits, int pitch, u32* ids, int allowed, bool wide) {
    __shared__ Best parts[WARP];
    const T* row = logits + (long long)blockIdx.x * pitch;
    bool poisoned = false;
    Best best = warp_best(over_row(row, allowed, wide, poisoned));
    if (threadIdx.x % WARP == 0) parts[threadIdx.x / WARP] = best;
    bool any = __syncthreads_or(poisoned);
    if (threadIdx.x < WARP) {
        best = threadIdx.x < blockDim.x / WARP ? parts[threadIdx.x] : Best{-INF, NONE};
        best = warp_best(best);
        if (threadIdx.x == 0) ids[blockIdx.x] = any ? NONE : best.id;
    }
}

extern "C" __global__ void __launch_bounds__(1024) argmax_f32(const float* logits, int pitch, u32* ids, int allowed, int wide) {
    argmax(logits, pitch, ids, allowed, wide);
}
extern "C" __global__ void __launch_bounds__(1024) argmax_bf16(const bf16* logits, int pitch, u32* ids, int allowed, int wide) {
    argmax(logits, pitch, ids, allowed, wide);
}
