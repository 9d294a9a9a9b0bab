// NF4 back to numbers (T. Dettmers et al., "QLoRA", 2023), bit for bit as `model::nf4` and bitsandbytes do it.
//
//   absmax[b] = table[absmax_code[b]] nested[b / 256] + offset      out[i] = bfloat16(level[code[i]] absmax[i / 64])
//
// | tensor         | shape               | type                        |
// | codes          | ceil(R C / 2)       | u8, even element high       |
// | absmax         | ceil(R C / 64)      | float32, or u8 with a table |
// | table          | 256                 | float32                     |
// | nested         | ceil(absmax / 256)  | float32                     |
// | offset         | 1                   | float32                     |
// | out            | R x C               | bfloat16 or float32         |
//
// Elements are counted flat, row after row, so a block of 64 may cross rows. Every product and sum rounds by itself, once.
// A float32 output holds the rounded bfloat16 too. Wide: 8 elements a thread, when C is a multiple of 8.
// Tolerance: none, equal bits. H100: 2.7 TB/s, read and written, for a matrix of 104 M elements.

#include "common.cuh"

__device__ const float LEVELS[16] = {
    -1.0f,          -0.6961928f,   -0.52507305f, -0.3949175f,  -0.28444138f, -0.18477343f, -0.091050036f, 0.0f,
    0.0795803f,     0.1609302f,    0.2461123f,   0.33791524f,  0.44070983f,  0.562617f,    0.72295684f,   1.0f,
};

// The largest magnitudes of blocks: float32, or 8-bit codes of a table when `codes` is given.
struct Maxima {
    const float* plain;
    const u8* codes;
    const float* offset;
    const float* nested;
};

__device__ inline float maximum(const Maxima& maxima, const float* table, u64 block) {
    if (maxima.codes == nullptr) return maxima.plain[block];
    return __fadd_rn(__fmul_rn(table[maxima.codes[block]], maxima.nested[block / 256]), *maxima.offset);
}

template <typename T>
__device__ inline T rounded(float level, float max) {
    return from_float<T>(to_float(from_float<bf16>(__fmul_rn(level, max))));
}

// Levels and table to shared memory.
__device__ inline void tables(float* levels, float* table, const Maxima& maxima, const float* given) {
    if (threadIdx.x < 16) levels[threadIdx.x] = LEVELS[threadIdx.x];
    if (maxima.codes != nullptr) table[threadIdx.x] = given[threadIdx.x];
    __syncthreads();
}

template <typename T>
__device__ inline void store_8(T* out, const T (&v)[8]) {
    constexpr int N = Pack<T>::N;
#pragma unroll
    for (int part = 0; part < 8 / N; ++part) {
        Pack<T> pack;
#pragma unroll
        for (int i = 0; i < N; ++i) pack.v[i] = v[part * N + i];
        store_pack(out + part * N, pack);
    }
}

// 256 threads, 4 groups of 8 elements each, 256 groups apart: loads and stores of a warp are contiguous.
template <typename T>
__device__ void wide(const u8* codes, Maxima maxima, const float* given, T* out, int pitch, u32 groups, u32 row_groups) {
    __shared__ float levels[16], table[256];
    tables(levels, table, maxima, given);
    u32 first = blockIdx.x * 1024u + threadIdx.x;
    u32 packed[4];
    float max[4];
#pragma unroll
    for (int i = 0; i < 4; ++i) {
        u32 group = first + 256u * i;
        if (group >= groups) break;
        packed[i] = reinterpret_cast<const u32*>(codes)[group];
        max[i] = maximum(maxima, table, group / 8);
    }
#pragma unroll
    for (int i = 0; i < 4; ++i) {
        u32 group = first + 256u * i;
        if (group >= groups) break;
        T v[8];
#pragma unroll
        for (int byte = 0; byte < 4; ++byte) {
            u32 pair = packed[i] >> (8 * byte);
            v[2 * byte] = rounded<T>(levels[pair >> 4 & 15], max[i]);
            v[2 * byte + 1] = rounded<T>(levels[pair & 15], max[i]);
        }
        u32 row = group / row_groups;
        store_8(out + (u64)row * pitch + (group - row * row_groups) * 8, v);
    }
}

// One element a thread.
template <typename T>
__device__ void narrow(const u8* codes, Maxima maxima, const float* given, T* out, int pitch, u64 count, int cols) {
    __shared__ float levels[16], table[256];
    tables(levels, table, maxima, given);
    u64 i = (u64)blockIdx.x * 256u + threadIdx.x;
    if (i >= count) return;
    u8 pair = codes[i / 2];
    float level = levels[i % 2 == 0 ? pair >> 4 : pair & 15];
    u64 row = i / cols;
    out[row * pitch + (i - row * cols)] = rounded<T>(level, maximum(maxima, table, i / 64));
}

// `groups` and `row_groups`: all, and those of a row.
#define DEFINE(T, suffix)                                                                                                  \
    extern "C" __global__ void __launch_bounds__(256) nf4_wide_##suffix(                                                 \
        const u8* codes, const float* plain, const u8* max_codes, const float* offset, const float* nested,               \
        const float* table, T* out, int pitch, int groups, int row_groups) {                                               \
        wide<T>(codes, Maxima{plain, max_codes, offset, nested}, table, out, pitch, (u32)groups, (u32)row_groups);        \
    }                                                                                                                      \
    extern "C" __global__ void __launch_bounds__(256) nf4_narrow_##suffix(                                               \
        const u8* codes, const float* plain, const u8* max_codes, const float* offset, const float* nested,               \
        const float* table, T* out, int pitch, long long count, int cols) {                                                \
        narrow<T>(codes, Maxima{plain, max_codes, offset, nested}, table, out, pitch, (u64)count, cols);                  \
    }
DEFINE(float, f32)
DEFINE(bf16, bf16)
