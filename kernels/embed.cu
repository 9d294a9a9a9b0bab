// Embedding: rows of a table by token, and the gradient by the table.
//
//   out[t] = table[min(ids[t], V - 1)]      d_table[ids[t]] += d_out[t], tokens in ascending order
//
// | tensor     | shape       | type                                                             |
// | ids        | T x 1       | u32                                                              |
// | table      | V x C       | float32 or bfloat16 (A)                                          |
// | out        | T x C       | float32 or bfloat16 (B), rounded once                            |
// | order      | T x 1       | u32: tokens sorted by (id, token)                                |
// | runs       | (T + 1) x 1 | u32: where in `order` each distinct id starts; then the end of the last |
// | count      | 1 x 1       | u32: distinct ids                                                |
// | d_out      | T x C       | float32 or bfloat16                                              |
// | d_table    | V x C       | float32                                                          |
//
// Forward: a thread a group of elements. Gradient: a block takes one distinct id and a slice of columns and adds its tokens to
// what the table's row holds, one after another, in float32: the bits of the plain loop. Blocks beyond `count` leave at once,
// so a launch made for T tokens serves any number. Numbers in the index tensors are clamped: nothing outside is touched.
// Tolerance: none, equal bits (a table of another type: rounded once).
// Speed on an H100 80GB HBM3, 8192 x 896: bfloat16 10.7 us (2,736 GB/s), float32 23.1 us (2,548); gradient of bfloat16 where one
// token in ten is the same 113 us (391 GB/s); that token's rows are added one
// after another.

#include "common.cuh"
#include "groups.cuh"

template <typename A, typename B>
__device__ void forward(const u32* ids, const A* table, int table_pitch, u32 vocabulary, B* out, int out_pitch, int cols,
                        Walk walk, Divisor by, bool wide) {
    constexpr int N = group_of<A, B>(), ITEMS = 2;
    Place at[ITEMS];
    Group<A, N> v[ITEMS];
#pragma unroll
    for (int k = 0; k < ITEMS; ++k) {
        at[k] = place<N, ITEMS>(walk, by, k);
        if (!at[k].live) continue;
        long long id = min(ids[at[k].row], vocabulary - 1);
        v[k] = load_group<A, N>(table + id * table_pitch, at[k].c, cols, wide);
    }
#pragma unroll
    for (int k = 0; k < ITEMS; ++k) {
        if (!at[k].live) continue;
        Group<B, N> result;
#pragma unroll
        for (int i = 0; i < N; ++i) result.v[i] = from_float<B>(to_float(v[k].v[i]));
        store_group<B, N>(out + at[k].row * out_pitch, at[k].c, cols, wide, result);
    }
}

constexpr u32 AHEAD = 16;   // tokens read before they are added

template <typename T>
__device__ void grad(const u32* ids, const u32* order, const u32* runs, const u32* count, const T* d_out, int d_out_pitch,
                     float* d_table, int d_table_pitch, u32 tokens, u32 vocabulary, int cols, bool wide) {
    constexpr int N = 4;
    u32 run = blockIdx.x;
    int c = (int)(blockIdx.y * blockDim.x + threadIdx.x) * N;
    if (run >= *count || c >= cols) return;
    u32 begin = runs[run], end = min(runs[run + 1], tokens);
    if (begin >= end) return;
    long long id = min(ids[min(order[begin], tokens - 1)], vocabulary - 1);
    float* target = d_table + id * d_table_pitch;
    Group<float, N> sum = load_group<float, N>(target, c, cols, wide);
    for (u32 first = begin; first < end; first += AHEAD) {
        Group<T, N> d[AHEAD];
#pragma unroll
        for (u32 k = 0; k < AHEAD; ++k) {
            if (first + k >= end) continue;
            long long token = min(order[first + k], tokens - 1);
            d[k] = load_group<T, N>(d_out + token * d_out_pitch, c, cols, wide);
        }
#pragma unroll
        for (u32 k = 0; k < AHEAD; ++k) {
            if (first + k >= end) continue;
#pragma unroll
            for (int i = 0; i < N; ++i) sum.v[i] += to_float(d[k].v[i]);
        }
    }
    store_group<float, N>(target, c, cols, wide, sum);
}

#define DEFINE(A, B, suffix)                                                                                               \
    extern "C" __global__ void __launch_bounds__(256) embed_##suffix(const u32* ids, const A* table, int table_pitch,      \
                                                                     u32 vocabulary, B* out, int out_pitch, int cols,      \
                                                                     Walk walk, Divisor by, int wide) {                    \
        forward<A, B>(ids, table, table_pitch, vocabulary, out, out_pitch, cols, walk, by, wide);                          \
    }
DEFINE(float, float, f32_f32)
DEFINE(float, bf16, f32_bf16)
DEFINE(bf16, float, bf16_f32)
DEFINE(bf16, bf16, bf16_bf16)

#define DEFINE_GRAD(T, suffix)                                                                                             \
    extern "C" __global__ void __launch_bounds__(256) embed_grad_##suffix(                                                 \
        const u32* ids, const u32* order, const u32* runs, const u32* count, const T* d_out, int d_out_pitch,              \
        float* d_table, int d_table_pitch, u32 tokens, u32 vocabulary, int cols, int wide) {                               \
        grad<T>(ids, order, runs, count, d_out, d_out_pitch, d_table, d_table_pitch, tokens, vocabulary, cols, wide);      \
    }
DEFINE_GRAD(float, f32)
DEFINE_GRAD(bf16, bf16)
