// Types, conversions, wide loads and reductions that every kernel uses.
//
// Reductions have a fixed tree: the same bits in every run. No kernel of this folder adds floats with
// atomics; whole numbers are exact in any order.

typedef unsigned char u8;
typedef unsigned short u16;
typedef unsigned int u32;
typedef unsigned long long u64;

constexpr int WARP = 32;
#define INF __int_as_float(0x7F800000)

// bfloat16 as its bits.
struct bf16 {
    u16 bits;
};

__device__ inline float to_float(float x) { return x; }
__device__ inline float to_float(bf16 x) { return __uint_as_float((u32)x.bits << 16); }

template <typename T>
__device__ inline T from_float(float x);
template <>
__device__ inline float from_float<float>(float x) { return x; }
// Nearest, ties to even.
template <>
__device__ inline bf16 from_float<bf16>(float x) {
    bf16 out;
    asm("cvt.rn.bf16.f32 %0, %1;" : "=h"(out.bits) : "f"(x));
    return out;
}

// Two floats as packed bfloat16, the first in the low half.
__device__ inline u32 pack_bf16(float low, float high) {
    u32 out;
    asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(out) : "f"(high), "f"(low));
    return out;
}
__device__ inline float low_bf16(u32 pair) { return __uint_as_float(pair << 16); }
__device__ inline float high_bf16(u32 pair) { return __uint_as_float(pair & 0xFFFF0000u); }
// What two floats have more than `pair`, which is them rounded: the rest of each is exact before it is rounded itself.
__device__ inline u32 rest_bf16(u32 pair, float low, float high) { return pack_bf16(low - low_bf16(pair), high - high_bf16(pair)); }

// 16 bytes at once: 4 floats or 8 bfloat16. The address must be a multiple of 16.
template <typename T>
struct alignas(16) Pack {
    static constexpr int N = 16 / sizeof(T);
    T v[N];
};
template <typename T>
__device__ inline Pack<T> load_pack(const T* p) {
    uint4 raw = *reinterpret_cast<const uint4*>(p);
    return *reinterpret_cast<Pack<T>*>(&raw);
}
template <typename T>
__device__ inline void store_pack(T* p, const Pack<T>& pack) {
    *reinterpret_cast<uint4*>(p) = *reinterpret_cast<const uint4*>(&pack);
}

__device__ inline float warp_sum(float x) {
#pragma unroll
    for (int delta = WARP / 2; delta > 0; delta /= 2) x += __shfl_xor_sync(0xFFFFFFFFu, x, delta);
    return x;
}
__device__ inline double warp_sum(double x) {
#pragma unroll
    for (int delta = WARP / 2; delta > 0; delta /= 2) x += __shfl_xor_sync(0xFFFFFFFFu, x, delta);
    return x;
}
__device__ inline float warp_max(float x) {
#pragma unroll
    for (int delta = WARP / 2; delta > 0; delta /= 2) x = fmaxf(x, __shfl_xor_sync(0xFFFFFFFFu, x, delta));
    return x;
}

// Sum over a block of up to 1024 threads (a multiple of 32); every thread gets it. May be called again at once.
template <typename F>
__device__ inline F block_sum(F x) {
    __shared__ F parts[WARP];
    int lane = threadIdx.x % WARP, warp = threadIdx.x / WARP, warps = blockDim.x / WARP;
    x = warp_sum(x);
    __syncthreads();
    if (lane == 0) parts[warp] = x;
    __syncthreads();
    x = lane < warps ? parts[lane] : F(0);
    return warp_sum(x);
}
__device__ inline float block_max(float x) {
    __shared__ float parts[WARP];
    int lane = threadIdx.x % WARP, warp = threadIdx.x / WARP, warps = blockDim.x / WARP;
    x = warp_max(x);
    __syncthreads();
    if (lane == 0) parts[warp] = x;
    __syncthreads();
    x = lane < warps ? parts[lane] : -INF;
    return warp_max(x);
}

// Numbers that change from one submission to the next. Written by the host before each run; the same struct as
// `StepScalars` in src/cuda/ops/mod.rs.
struct StepScalars {
    float inv_labels;      // 1 / label tokens of the optimizer step: what the summed gradient is multiplied by
    float lora_scale;      // alpha / r
    u32 step;              // optimizer steps done; keys dropout
    u32 drop_threshold;    // drop probability in 1/65536
    u32 seed_low;
    u32 seed_high;
    u32 seqs;              // sequences of the micro-batch
    u32 loss_rows;         // rows with a loss
    double clip;           // greatest gradient norm; 0: no clipping
    float step_size;       // lr / (1 - beta1^t)
    float correction;      // sqrt(1 - beta2^t)
    float keep1;           // 1 - beta1
    float beta2;
    float keep2;           // 1 - beta2
    float eps;
    float shrink;          // 1 - lr * decay
    u32 reserved;
};
