// Causal grouped-query attention over packed sequences, forward and backward: the plain version, for any type and D <= 256.
//
//   out = softmax(q k^T / sqrt(D)) v      lse = log sum exp(q k^T / sqrt(D))      delta = sum over a head of out d_out
//   p = exp(q k^T / sqrt(D) - lse)        d_s = p (d_out v^T - delta) / sqrt(D)
//   d_q = d_s k      d_k = sum over a group's query heads of d_s^T q      d_v = the same of p^T d_out
//
// | tensor             | shape       | type                                                                     |
// | q, out, d_out, d_q | T x Hq*D    | float32 or bfloat16; query head h uses key-value head h / (Hq / Hkv)     |
// | kv, d_kv           | T x 2*Hkv*D | the same; keys of all heads, then values                                 |
// | spans              | T x 2       | u32: first token of the token's sequence, one past its last; in order    |
// | lse, delta         | T x Hq      | float32                                                                  |
//
// One warp a row and head: lane l holds columns l, l + 32, ... Forward and d_q run over the keys from the first to the row
// itself with a running maximum; d_k and d_v over the group's heads and, for each, the queries from the key's own to the
// sequence's last. Sums in float32. Tolerance: 1e-5 (float32), 1e-2 (bfloat16) of the largest magnitude; in the Frobenius norm
// 1e-5 (float32), 2e-3 (bfloat16, gradients 3.2e-3).
// Speed on an H100 80GB HBM3, bfloat16, 14 and 2 heads of 64, 16 sequences of 512 tokens: forward 4.0 ms (1.9 TFLOP/s), d_q
// 4.1 ms (2.7), d_k and d_v 7.3 ms (2.1); delta, which every version shares, 0.0126 ms (2,360 GB/s).

#include "common.cuh"

constexpr int MOST_COLUMNS = 256, LANE_COLUMNS = MOST_COLUMNS / WARP, WARPS = 4;

// A head of one row, its columns dealt to the lanes; 0 beyond the last.
struct Row {
    float v[LANE_COLUMNS];
};

template <typename T>
__device__ inline Row load_row(const T* p, int dim) {
    Row row;
#pragma unroll
    for (int i = 0; i < LANE_COLUMNS; ++i) {
        int c = threadIdx.x % WARP + i * WARP;
        row.v[i] = c < dim ? to_float(p[c]) : 0.0f;
    }
    return row;
}
template <typename T>
__device__ inline void store_row(T* p, const Row& row, float factor, int dim) {
#pragma unroll
    for (int i = 0; i < LANE_COLUMNS; ++i) {
        int c = threadIdx.x % WARP + i * WARP;
        if (c < dim) p[c] = from_float<T>(row.v[i] * factor);
    }
}
__device__ inline float dot(const Row& a, const Row& b) {
    float sum = 0.0f;
#pragma unroll
    for (int i = 0; i < LANE_COLUMNS; ++i) sum += a.v[i] * b.v[i];
    return warp_sum(sum);
}
__device__ inline void add(Row& to, float factor, const Row& from) {
#pragma unroll
    for (int i = 0; i < LANE_COLUMNS; ++i) to.v[i] += factor * from.v[i];
}

// This warp's row and head, of `heads` a row.
struct Place {
    long long row;
    int head;
    bool inside;
};
__device__ inline Place place(int tokens, int heads) {
    long long at = (long long)blockIdx.x * WARPS + threadIdx.x / WARP;
    return {at / heads, (int)(at % heads), at < (long long)tokens * heads};
}

template <typename T>
__device__ void forward(const T* q, int q_pitch, const T* kv, int kv_pitch, const uint2* spans, T* out, int out_pitch,
                        float* lse, int tokens, int heads, int kv_heads, int dim, float scale) {
    Place at = place(tokens, heads);
    if (!at.inside) return;
    const T* keys = kv + at.head / (heads / kv_heads) * dim;
    const T* values = keys + kv_heads * dim;
    Row query = load_row(q + at.row * q_pitch + at.head * dim, dim), sums = {};
    float top = -INF, total = 0.0f;
    for (long long key = min(spans[at.row].x, (u32)at.row); key <= at.row; ++key) {
        float s = dot(query, load_row(keys + key * kv_pitch, dim)) * scale;
        float next = fmaxf(top, s), factor = expf(top - next), p = expf(s - next);
        top = next;
        total = total * factor + p;
#pragma unroll
        for (int i = 0; i < LANE_COLUMNS; ++i) sums.v[i] *= factor;
        add(sums, p, load_row(values + key * kv_pitch, dim));
    }
    store_row(out + at.row * out_pitch + at.head * dim, sums, 1.0f / total, dim);
    if (threadIdx.x % WARP == 0) lse[at.row * heads + at.head] = top + logf(total);
}

template <typename T>
__device__ void delta_rows(const T* out, int out_pitch, const T* d_out, int d_out_pitch, float* delta, int tokens, int heads,
                           int dim) {
    Place at = place(tokens, heads);
    if (!at.inside) return;
    float sum = dot(load_row(out + at.row * out_pitch + at.head * dim, dim),
                    load_row(d_out + at.row * d_out_pitch + at.head * dim, dim));
    if (threadIdx.x % WARP == 0) delta[at.row * heads + at.head] = sum;
}

// The same with loads of 16 bytes: D / N lanes a head, a power of two.
template <typename T>
__device__ void delta_wide(const T* out, int out_pitch, const T* d_out, int d_out_pitch, float* delta, int tokens, int heads,
                           int dim) {
    constexpr int N = Pack<T>::N;
    int lanes = dim / N;
    long long item = (long long)blockIdx.x * blockDim.x + threadIdx.x, pair = item / lanes;
    bool inside = pair < (long long)tokens * heads;
    long long row = inside ? pair / heads : 0;
    int head = inside ? (int)(pair % heads) : 0, column = head * dim + (int)(item % lanes) * N;
    Pack<T> a = load_pack(out + row * out_pitch + column), b = load_pack(d_out + row * d_out_pitch + column);
    float sum = 0.0f;
#pragma unroll
    for (int i = 0; i < N; ++i) sum += to_float(a.v[i]) * to_float(b.v[i]);
    for (int offset = lanes / 2; offset > 0; offset /= 2) sum += __shfl_xor_sync(0xFFFFFFFFu, sum, offset);
    if (inside && item % lanes == 0) delta[pair] = sum;
}

template <typename T>
__device__ void grad_q(const T* q, int q_pitch, const T* kv, int kv_pitch, const uint2* spans, const float* lse,
                       const float* delta, const T* d_out, int d_out_pitch, T* d_q, int d_q_pitch, int tokens, int heads,
                       int kv_heads, int dim, float scale) {
    Place at = place(tokens, heads);
    if (!at.inside) return;
    const T* keys = kv + at.head / (heads / kv_heads) * dim;
    const T* values = keys + kv_heads * dim;
    Row query = load_row(q + at.row * q_pitch + at.head * dim, dim), sums = {};
    Row d = load_row(d_out + at.row * d_out_pitch + at.head * dim, dim);
    float less = lse[at.row * heads + at.head], mean = delta[at.row * heads + at.head];
    for (long long key = min(spans[at.row].x, (u32)at.row); key <= at.row; ++key) {
        Row k = load_row(keys + key * kv_pitch, dim);
        float p = expf(dot(query, k) * scale - less);
        add(sums, p * (dot(d, load_row(values + key * kv_pitch, dim)) - mean), k);
    }
    store_row(d_q + at.row * d_q_pitch + at.head * dim, sums, scale, dim);
}

template <typename T>
__device__ void grad_kv(const T* q, int q_pitch, const T* kv, int kv_pitch, const uint2* spans, const float* lse,
                        const float* delta, const T* d_out, int d_out_pitch, T* d_kv, int d_kv_pitch, int tokens, int heads,
                        int kv_heads, int dim, float scale) {
    Place at = place(tokens, kv_heads);
    if (!at.inside) return;
    int group = heads / kv_heads, k_column = at.head * dim, v_column = (kv_heads + at.head) * dim;
    Row k = load_row(kv + at.row * kv_pitch + k_column, dim), v = load_row(kv + at.row * kv_pitch + v_column, dim);
    Row d_k = {}, d_v = {};
    long long end = min(spans[at.row].y, (u32)tokens);
    for (int head = at.head * group; head < (at.head + 1) * group; ++head) {
        for (long long row = at.row; row < end; ++row) {
            Row query = load_row(q + row * q_pitch + head * dim, dim), d = load_row(d_out + row * d_out_pitch + head * dim, dim);
            float p = expf(dot(query, k) * scale - lse[row * heads + head]);
            add(d_v, p, d);
            add(d_k, p * (dot(d, v) - delta[row * heads + head]), query);
        }
    }
    store_row(d_kv + at.row * d_kv_pitch + k_column, d_k, scale, dim);
    store_row(d_kv + at.row * d_kv_pitch + v_column, d_v, 1.0f, dim);
}

#define PARAMETERS(T, result)                                                                                               \
    (const T* q, int q_pitch, const T* kv, int kv_pitch, const uint2* spans, const float* lse, const float* delta,         \
     const T* d_out, int d_out_pitch, T* result, int result##_pitch, int tokens, int heads, int kv_heads, int dim,         \
     float scale)
#define ARGUMENTS(T, result)                                                                                                \
    (q, q_pitch, kv, kv_pitch, spans, lse, delta, d_out, d_out_pitch, result, result##_pitch, tokens, heads, kv_heads, dim, \
     scale)
#define DELTA_PARAMETERS(T)                                                                                                 \
    (const T* out, int out_pitch, const T* d_out, int d_out_pitch, float* delta, int tokens, int heads, int dim)
#define DELTA_ARGUMENTS (out, out_pitch, d_out, d_out_pitch, delta, tokens, heads, dim)
#define DEFINE(T, suffix)                                                                                                   \
    extern "C" __global__ void attention_##suffix(const T* q, int q_pitch, const T* kv, int kv_pitch, const uint2* spans,  \
                                                  T* out, int out_pitch, float* lse, int tokens, int heads, int kv_heads, \
                                                  int dim, float scale) {                                                  \
        forward<T>(q, q_pitch, kv, kv_pitch, spans, out, out_pitch, lse, tokens, heads, kv_heads, dim, scale);             \
    }                                                                                                                      \
    extern "C" __global__ void attention_delta_##suffix DELTA_PARAMETERS(T) { delta_rows<T> DELTA_ARGUMENTS; }             \
    extern "C" __global__ void attention_delta_wide_##suffix DELTA_PARAMETERS(T) { delta_wide<T> DELTA_ARGUMENTS; }        \
    extern "C" __global__ void attention_grad_q_##suffix PARAMETERS(T, d_q) { grad_q<T> ARGUMENTS(T, d_q); }               \
    extern "C" __global__ void attention_grad_kv_##suffix PARAMETERS(T, d_kv) { grad_kv<T> ARGUMENTS(T, d_kv); }
DEFINE(float, f32)
DEFINE(bf16, bf16)
