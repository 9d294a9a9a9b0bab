// attention_flash.cu and attention_flash_grad.cu for D = 64 on sm_90a, where products of four warps read their right factor
// from shared memory (J. Shah and others, 2024: FlashAttention-3). The same operands, roundings and orders of sums, but for
// the size of tiles.
//
// Forward and d_q; d_k and d_v: attention_wgmma_kv.cu. A block of two warp groups takes 128 queries of a head, 64 each, over
// tiles of 64 keys.
// Tiles of queries are taken in a given order, or from the last on; blocks that have most to do should begin first.
// With positions and a table, d_q is turned back by the rotation of rope.cu before it is rounded.
// Tolerance: 1e-2 of the largest magnitude (lse: 1e-5); in the Frobenius norm 2e-3 forward, gradients 3.2e-3.
// Speed on an H100 80GB HBM3, 14 and 2 heads, forward, then d_q: 4 sequences of 512 tokens: 0.016 ms (117 TFLOP/s), 0.016 ms
// (178); 16 of 512: 0.047 ms (160), 0.044 ms (258); 8 of 2048: 0.213 ms (283), 0.197 ms (458); 2 of 4096: 0.203 ms (296),
// 0.186 ms (484). Forward without the rest of p, which is not counted: 0.014, 0.042, 0.175 and 0.164 ms.

#include "attention_wgmma.cuh"

#ifdef __CUDA_ARCH_FEAT_SM90_ALL

constexpr float GROWTH = 8.0f;
constexpr int QUERY_GROUPS = 2, ROWS = QUERY_GROUPS * TILE_ROWS, THREADS = QUERY_GROUPS * GROUP;

// What a warp group of queries needs to know of its rows.
struct Queries {
    int head, first, last, key0, tiles;      // of the block; keys from key0 on
    int group_first, group_last, row, column;  // of the group; of this thread: first row, first column
    int earliest, latest, start[2];            // first keys seen: by the group's first and last row, by this thread's rows
    bool idle;
};
__device__ inline Queries queries_of(const uint2* spans, int first, int tokens) {
    Queries at;
    int lane = threadIdx.x % WARP, warp = threadIdx.x / WARP;
    at.head = blockIdx.x;
    at.first = first;
    at.last = min(at.first + ROWS, tokens) - 1;
    at.key0 = (int)min(spans[at.first].x, (u32)at.first);
    at.tiles = (at.last - at.key0) / TILE_ROWS + 1;
    at.group_first = at.first + warp / 4 * TILE_ROWS;
    at.group_last = min(at.group_first + TILE_ROWS, tokens) - 1;
    at.idle = at.group_first >= tokens;
    at.row = at.first + warp * 16 + lane / 4;
    at.column = 2 * (lane % 4);
    at.earliest = at.idle ? 0 : (int)spans[at.group_first].x;
    at.latest = at.idle ? 0 : (int)spans[at.group_last].x;
#pragma unroll
    for (int h = 0; h < 2; ++h) at.start[h] = (int)spans[min(at.row + h * 8, tokens - 1)].x;
    return at;
}

// The block's rows of its head; ahead of all that waits for spans.
__device__ inline void load_queries(u32 tile, const bf16* from, int pitch, int first, int tokens) {
    load_tile<D, ROWS, THREADS>(tile, from + blockIdx.x * D, pitch, first, tokens, threadIdx.x);
}
__device__ inline void load_keys(u32 stage, const bf16* keys, const bf16* values, int pitch, const Queries& at, int tile) {
    int first = at.key0 + tile * TILE_ROWS;
    load_tile<D, TILE_ROWS, THREADS>(stage, keys, pitch, first, at.last + 1, threadIdx.x);
    load_tile<D, TILE_ROWS, THREADS>(stage + TILE, values, pitch, first, at.last + 1, threadIdx.x);
    copy_async_commit();
}

__device__ void forward(const bf16* q, int q_pitch, const bf16* kv, int kv_pitch, const uint2* spans, bf16* out, int out_pitch,
                        float* lse, int tokens, int heads, int kv_heads, const u32* order, float scale) {
    extern __shared__ __align__(1024) uint4 memory[];
    u32 q_tile = shared_address(memory), stages = q_tile + QUERY_GROUPS * TILE;
    int first = tile_of(order, gridDim.y - 1 - blockIdx.y) * ROWS;
    load_queries(q_tile, q, q_pitch, first, tokens);
    Queries at = queries_of(spans, first, tokens);
    const bf16* keys = kv + at.head / (heads / kv_heads) * D;
    const bf16* values = keys + kv_heads * D;
    load_keys(stages, keys, values, kv_pitch, at, 0);
    q_tile += threadIdx.x / GROUP * TILE;

    float base2 = scale * LOG2_E, top[2] = {-INF, -INF}, total[2] = {0.0f, 0.0f};
    float sums[8][4], s[8][4];
    clear(sums);
    for (int tile = 0; tile < at.tiles; ++tile) {
        copy_async_wait<0>();
        fence_for_tensor_cores();
        __syncthreads();
        u32 stage = stages + (tile & 1) * 2 * TILE;
        if (tile + 1 < at.tiles) load_keys(stages + (~tile & 1) * 2 * TILE, keys, values, kv_pitch, at, tile + 1);
        int key = at.key0 + tile * TILE_ROWS;
        if (at.idle || key > at.group_last || key + TILE_ROWS <= at.earliest) continue;

        wgmma_fence();
        product(s, q_tile, stage);
        wgmma_commit();
        wgmma_wait<0>();
        if (key + TILE_ROWS - 1 > at.group_first || key < at.latest) {
#pragma unroll
            for (int n = 0; n < 8; ++n) {
#pragma unroll
                for (int c = 0; c < 4; ++c) {
                    int column = key + n * 8 + at.column + c % 2;
                    if (column > at.row + c / 2 * 8 || column < at.start[c / 2]) s[n][c] = -INF;
                }
            }
        }
        float next[2];
        bool grown = false;
#pragma unroll
        for (int h = 0; h < 2; ++h) {
            float m = top[h];
#pragma unroll
            for (int n = 0; n < 8; ++n) m = fmaxf(m, fmaxf(s[n][2 * h], s[n][2 * h + 1]));
            m = fmaxf(m, __shfl_xor_sync(0xFFFFFFFFu, m, 1));
            next[h] = fmaxf(m, __shfl_xor_sync(0xFFFFFFFFu, m, 2));
            grown |= (next[h] - top[h]) * base2 > GROWTH;
        }
        if (__any_sync(0xFFFFFFFFu, grown)) {
#pragma unroll
            for (int h = 0; h < 2; ++h) {
                float factor = next[h] == -INF ? 1.0f : exp2_fast((top[h] - next[h]) * base2);
                top[h] = next[h];
                total[h] *= factor;
#pragma unroll
                for (int n = 0; n < 8; ++n) {
                    sums[n][2 * h] *= factor;
                    sums[n][2 * h + 1] *= factor;
                }
            }
        }
        u32 p[4][4], rest[4][4];
#pragma unroll
        for (int h = 0; h < 2; ++h) {
            float less = top[h] == -INF ? 0.0f : top[h] * base2;
#pragma unroll
            for (int n = 0; n < 8; ++n) {
                s[n][2 * h] = exp2_fast(fmaf(s[n][2 * h], base2, -less));
                s[n][2 * h + 1] = exp2_fast(fmaf(s[n][2 * h + 1], base2, -less));
                total[h] += s[n][2 * h] + s[n][2 * h + 1];
            }
        }
#pragma unroll
        for (int k = 0; k < 4; ++k) {
            as_left(p[k], s[2 * k], s[2 * k + 1]);
            as_left_rest(rest[k], p[k], s[2 * k], s[2 * k + 1]);
        }
        wgmma_fence();
        add_product(sums, p, stage + TILE);
        add_product(sums, rest, stage + TILE);
        wgmma_commit();
        wgmma_wait<0>();
    }

    float inverse[2];
#pragma unroll
    for (int h = 0; h < 2; ++h) {
        float sum = total[h];
        sum += __shfl_xor_sync(0xFFFFFFFFu, sum, 1);
        sum += __shfl_xor_sync(0xFFFFFFFFu, sum, 2);
        inverse[h] = sum > 0.0f ? 1.0f / sum : 0.0f;
        long long row = at.row + h * 8;
        if (threadIdx.x % 4 == 0 && row < tokens) {
            lse[row * heads + at.head] = sum > 0.0f ? fmaf(top[h], scale, logf(sum)) : 0.0f;
        }
    }
    store_rows<D>(out + at.head * D, out_pitch, at.first + threadIdx.x / WARP * 16, tokens, sums, inverse[0], inverse[1]);
}

__device__ void grad_q(const bf16* q, int q_pitch, const bf16* kv, int kv_pitch, const uint2* spans, const float* lse,
                       const float* delta, const bf16* d_out, int d_out_pitch, bf16* d_q, int d_q_pitch, int tokens, int heads,
                       int kv_heads, const Turn& turn, const u32* order, float scale) {
    extern __shared__ __align__(1024) uint4 memory[];
    u32 q_tile = shared_address(memory), d_tile = q_tile + QUERY_GROUPS * TILE, stages = d_tile + QUERY_GROUPS * TILE;
    int first = tile_of(order, gridDim.y - 1 - blockIdx.y) * ROWS;
    load_queries(q_tile, q, q_pitch, first, tokens);
    load_queries(d_tile, d_out, d_out_pitch, first, tokens);
    Queries at = queries_of(spans, first, tokens);
    const bf16* keys = kv + at.head / (heads / kv_heads) * D;
    const bf16* values = keys + kv_heads * D;
    load_keys(stages, keys, values, kv_pitch, at, 0);
    q_tile += threadIdx.x / GROUP * TILE;
    d_tile += threadIdx.x / GROUP * TILE;

    float less[2], mean[2], base2 = scale * LOG2_E;
#pragma unroll
    for (int h = 0; h < 2; ++h) {
        long long row = min(at.row + h * 8, tokens - 1);
        less[h] = lse[row * heads + at.head] * LOG2_E;
        mean[h] = delta[row * heads + at.head];
    }
    float sums[8][4], s[8][4], d_s[8][4];
    clear(sums);
    for (int tile = 0; tile < at.tiles; ++tile) {
        copy_async_wait<0>();
        fence_for_tensor_cores();
        __syncthreads();
        u32 stage = stages + (tile & 1) * 2 * TILE;
        if (tile + 1 < at.tiles) load_keys(stages + (~tile & 1) * 2 * TILE, keys, values, kv_pitch, at, tile + 1);
        int key = at.key0 + tile * TILE_ROWS;
        if (at.idle || key > at.group_last || key + TILE_ROWS <= at.earliest) continue;

        wgmma_fence();
        product(s, q_tile, stage);
        wgmma_commit();
        product(d_s, d_tile, stage + TILE);
        wgmma_commit();
        wgmma_wait<1>();
        bool edge = key + TILE_ROWS - 1 > at.group_first || key < at.latest;
#pragma unroll
        for (int n = 0; n < 8; ++n) {
#pragma unroll
            for (int c = 0; c < 4; ++c) {
                s[n][c] = exp2_fast(fmaf(s[n][c], base2, -less[c / 2]));
                if (edge) {
                    int column = key + n * 8 + at.column + c % 2;
                    if (column > at.row + c / 2 * 8 || column < at.start[c / 2]) s[n][c] = 0.0f;
                }
            }
        }
        wgmma_wait<0>();
        u32 p[4][4];
#pragma unroll
        for (int n = 0; n < 8; ++n) {
#pragma unroll
            for (int c = 0; c < 4; ++c) s[n][c] *= d_s[n][c] - mean[c / 2];
        }
#pragma unroll
        for (int k = 0; k < 4; ++k) as_left(p[k], s[2 * k], s[2 * k + 1]);
        wgmma_fence();
        add_product(sums, p, stage);
        wgmma_commit();
        wgmma_wait<0>();
    }
    turn_back(sums, turn, at.row, tokens);
    store_rows<D>(d_q + at.head * D, d_q_pitch, at.first + threadIdx.x / WARP * 16, tokens, sums, scale, scale);
}

extern "C" __global__ void __launch_bounds__(THREADS, 2)
    attention_wgmma(const bf16* q, int q_pitch, const bf16* kv, int kv_pitch, const uint2* spans, bf16* out, int out_pitch,
                    float* lse, int tokens, int heads, int kv_heads, const u32* order, float scale) {
    forward(q, q_pitch, kv, kv_pitch, spans, out, out_pitch, lse, tokens, heads, kv_heads, order, scale);
}
extern "C" __global__ void __launch_bounds__(THREADS, 2)
    attention_wgmma_grad_q(const bf16* q, int q_pitch, const bf16* kv, int kv_pitch, const uint2* spans, const float* lse,
                           const float* delta, const bf16* d_out, int d_out_pitch, bf16* d_q, int d_q_pitch, int tokens, int heads, int kv_heads,
                           const u32* positions, const float* table, int table_rows, const u32* order,
    float scale) {
    grad_q(q, q_pitch, kv, kv_pitch, spans, lse, delta, d_out, d_out_pitch, d_q, d_q_pitch, tokens, heads, kv_heads, Turn{positions, table, table_rows}, order, scale);
}
#endif
