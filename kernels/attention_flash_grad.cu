// Gradients of attention_flash.cu: probabilities are computed again from lse (T. Dao, 2023: FlashAttention-2), without
// atomics: one kernel for the queries, one for keys and values.
//
//   p = exp(q k^T / sqrt(D) - lse)      d_s = p (d_out v^T - delta)      delta = sum over a head's columns of out d_out
//   d_q = d_s k / sqrt(D)      d_k = sum over a group's query heads of d_s^T q / sqrt(D)      d_v = the same of p^T d_out
//
// | tensor        | shape       | type     |                                                              |
// | q, d_out, d_q | T x Hq*D    | bfloat16 | query head h uses key-value head h / (Hq / Hkv)              |
// | kv, d_kv      | T x 2*Hkv*D | bfloat16 | keys of all heads, then values                               |
// | spans         | T x 2       | u32      | first token of the token's sequence, one past its last; in order |
// | lse, delta    | T x Hq      | float32  |                                                              |
//
// Queries: one block takes a tile of queries of one head, as in the forward.
// Keys and values: one block takes 64 keys of one key-value head. Its warps form teams that cover the 64 keys; the tiles of
// 32 queries of all heads of the group are dealt to the teams in turn. The teams' sums are added in a fixed tree at the end.
// p and d_s are rounded to bfloat16 for the products. Pointers and rows are multiples of 16 bytes.
// Tolerance: 1e-2 of the largest magnitude; in the Frobenius norm sqrt(2) 2^-8 / sqrt(3) = 3.2e-3, two roundings.
// Speed on an H100 80GB HBM3, d_q, then d_k and d_v: 14 and 2 heads of 64, 16 sequences of 512 tokens: 0.062 + 0.100 ms;
// 8 of 2048: 0.302 + 0.506 ms; 12 and 2 heads of 128, 16 of 512: 0.097 + 0.179 ms; 4 of 2048: 0.263 + 0.578 ms. With delta and
// as the five products that a backward needs: 107, 181, 109 and 150 TFLOP/s.

#include "attention.cuh"

template <int D, int ATOMS, int WARPS, int KEYS, int STEP>
__device__ void flash_grad_q(const bf16* q, int q_pitch, const bf16* kv, int kv_pitch, const uint2* spans, const float* lse,
                             const float* delta, const bf16* d_out, int d_out_pitch, bf16* d_q, int d_q_pitch, int tokens,
                             int heads, int kv_heads, float scale) {
    constexpr int ROWS = 16 * ATOMS * WARPS, THREADS = WARP * WARPS;
    constexpr u32 TILE = KEYS * D * 2;
    extern __shared__ uint4 memory[];
    u32 q_tile = shared_address(memory), d_tile = q_tile + ROWS * D * 2, stages = d_tile + ROWS * D * 2;

    int lane = threadIdx.x % WARP, warp = threadIdx.x / WARP;
    int head = blockIdx.x, first = (gridDim.y - 1 - blockIdx.y) * ROWS;
    int last = min(first + ROWS, tokens) - 1;
    const bf16* keys = kv + head / (heads / kv_heads) * D;
    const bf16* values = keys + kv_heads * D;
    int key0 = (int)min(spans[first].x, (u32)first);
    int tiles = (last - key0) / KEYS + 1;

    auto load = [&](int tile) {
        u32 stage = stages + (tile & 1) * 2 * TILE;
        load_tile<D, KEYS, THREADS>(stage, keys, kv_pitch, key0 + tile * KEYS, last + 1, threadIdx.x);
        load_tile<D, KEYS, THREADS>(stage + TILE, values, kv_pitch, key0 + tile * KEYS, last + 1, threadIdx.x);
        copy_async_commit();
    };
    load_tile<D, ROWS, THREADS>(q_tile, q + head * D, q_pitch, first, tokens, threadIdx.x);
    load_tile<D, ROWS, THREADS>(d_tile, d_out + head * D, d_out_pitch, first, tokens, threadIdx.x);
    copy_async_commit();
    load(0);

    int warp_first = first + warp * 16 * ATOMS, warp_last = min(warp_first + 16 * ATOMS, tokens) - 1;
    bool idle = warp_first >= tokens;
    int earliest = idle ? 0 : (int)spans[warp_first].x, latest = idle ? 0 : (int)spans[warp_last].x;
    int row0 = warp_first + lane / 4, column0 = 2 * (lane % 4);
    int start[ATOMS][2];
    float less[ATOMS][2], mean[ATOMS][2];
#pragma unroll
    for (int a = 0; a < ATOMS; ++a) {
#pragma unroll
        for (int h = 0; h < 2; ++h) {
            int row = min(row0 + a * 16 + h * 8, tokens - 1);
            start[a][h] = (int)spans[row].x;
            less[a][h] = lse[(long long)row * heads + head] * LOG2_E;
            mean[a][h] = delta[(long long)row * heads + head];
        }
    }

    copy_async_wait<1>();
    __syncthreads();
    u32 left[ATOMS][D / 16][4], d_left[ATOMS][D / 16][4];
#pragma unroll
    for (int a = 0; a < ATOMS; ++a) {
#pragma unroll
        for (int k = 0; k < D / 16; ++k) {
            load_left<D>(left[a][k], q_tile, (warp * ATOMS + a) * 16, k);
            load_left<D>(d_left[a][k], d_tile, (warp * ATOMS + a) * 16, k);
        }
    }

    float base2 = scale * LOG2_E;
    float sums[ATOMS][D / 8][4];
#pragma unroll
    for (int a = 0; a < ATOMS; ++a) clear(sums[a]);

    for (int tile = 0; tile < tiles; ++tile) {
        copy_async_wait<0>();
        __syncthreads();
        if (tile + 1 < tiles) load(tile + 1);
        u32 key_tile = stages + (tile & 1) * 2 * TILE, value_tile = key_tile + TILE;
#pragma unroll
        for (int step = 0; step < KEYS; step += STEP) {
            int key = key0 + tile * KEYS + step;
            if (idle || key > warp_last || key + STEP <= earliest) continue;
            float s[ATOMS][STEP / 8][4], d_s[ATOMS][STEP / 8][4];
#pragma unroll
            for (int a = 0; a < ATOMS; ++a) {
                clear(s[a]);
                clear(d_s[a]);
            }
#pragma unroll
            for (int k = 0; k < D / 16; ++k) {
#pragma unroll
                for (int n = 0; n < STEP / 16; ++n) {
                    u32 b[4];
                    load_right<D>(b, key_tile, step + n * 16, k);
#pragma unroll
                    for (int a = 0; a < ATOMS; ++a) mma_pair(s[a][2 * n], s[a][2 * n + 1], left[a][k], b);
                    load_right<D>(b, value_tile, step + n * 16, k);
#pragma unroll
                    for (int a = 0; a < ATOMS; ++a) mma_pair(d_s[a][2 * n], d_s[a][2 * n + 1], d_left[a][k], b);
                }
            }
            bool edge = key + STEP - 1 > warp_first || key < latest;
#pragma unroll
            for (int a = 0; a < ATOMS; ++a) {
#pragma unroll
                for (int n = 0; n < STEP / 8; ++n) {
#pragma unroll
                    for (int c = 0; c < 4; ++c) {
                        float p = exp2_fast(fmaf(s[a][n][c], base2, -less[a][c / 2]));
                        if (edge) {
                            int at = key + n * 8 + column0 + c % 2, row = row0 + a * 16 + c / 2 * 8;
                            if (at > row || at < start[a][c / 2]) p = 0.0f;
                        }
                        d_s[a][n][c] = p * (d_s[a][n][c] - mean[a][c / 2]);
                    }
                }
            }
#pragma unroll
            for (int k = 0; k < STEP / 16; ++k) {
                u32 p[ATOMS][4];
#pragma unroll
                for (int a = 0; a < ATOMS; ++a) as_left(p[a], d_s[a][2 * k], d_s[a][2 * k + 1]);
#pragma unroll
                for (int n = 0; n < D / 16; ++n) {
                    u32 b[4];
                    load_right_transposed<D>(b, key_tile, step + k * 16, n);
#pragma unroll
                    for (int a = 0; a < ATOMS; ++a) mma_pair(sums[a][2 * n], sums[a][2 * n + 1], p[a], b);
                }
            }
        }
    }
#pragma unroll
    for (int a = 0; a < ATOMS; ++a) {
        store_rows<D>(d_q + head * D, d_q_pitch, warp_first + a * 16, tokens, sums[a], scale, scale);
    }
}

constexpr int BLOCK_KEYS = 64, BLOCK_WARPS = 8, TEAM_QUERIES = 32;

// Shared memory of one stage of one team: queries, d_out, then lse, delta and starts of the queries.
template <int D>
struct Stage {
    static constexpr u32 TILE = TEAM_QUERIES * D * 2;
    static constexpr u32 ROWS = 2 * TILE;
    static constexpr u32 BYTES = 2 * TILE + 3 * TEAM_QUERIES * 4;
};

template <int D, int ATOMS>
__device__ void flash_grad_kv(const bf16* q, int q_pitch, const bf16* kv, int kv_pitch, const uint2* spans, const float* lse,
                              const float* delta, const bf16* d_out, int d_out_pitch, bf16* d_kv, int d_kv_pitch, int tokens,
                              int heads, int kv_heads, float scale) {
    constexpr int TEAM_WARPS = BLOCK_KEYS / (16 * ATOMS), TEAMS = BLOCK_WARPS / TEAM_WARPS, TEAM = TEAM_WARPS * WARP;
    constexpr u32 TILE = BLOCK_KEYS * D * 2;
    extern __shared__ uint4 memory[];
    u32 key_tile = shared_address(memory), value_tile = key_tile + TILE;

    int lane = threadIdx.x % WARP, team = threadIdx.x / TEAM, member = threadIdx.x % TEAM;
    u32 team_offset = 2 * TILE + team * 2 * Stage<D>::BYTES;
    int kv_head = blockIdx.x, group = heads / kv_heads, first = blockIdx.y * BLOCK_KEYS;
    int last = min(first + BLOCK_KEYS, tokens) - 1;
    int end = (int)min(max(spans[last].y, (u32)last + 1), (u32)tokens);
    int tiles = (end - first + TEAM_QUERIES - 1) / TEAM_QUERIES, total = group * tiles;

    auto load = [&](int turn, int stage) {
        int head = kv_head * group + turn / tiles, from = first + turn % tiles * TEAM_QUERIES;
        u32 at = key_tile + team_offset + stage * Stage<D>::BYTES;
        load_tile<D, TEAM_QUERIES, TEAM>(at, q + head * D, q_pitch, from, tokens, member);
        load_tile<D, TEAM_QUERIES, TEAM>(at + Stage<D>::TILE, d_out + head * D, d_out_pitch, from, tokens, member);
        int row = min(from + lane, tokens - 1);
        bool valid = from + lane < tokens;
        u32 rows = at + Stage<D>::ROWS + lane * 4;
        if (member < WARP) {
            copy_async_4(rows, lse + (long long)row * heads + head, valid);
            copy_async_4(rows + 2 * TEAM_QUERIES * 4, spans + row, true);
        } else if (member < 2 * WARP) {
            copy_async_4(rows + TEAM_QUERIES * 4, delta + (long long)row * heads + head, valid);
        }
        copy_async_commit();
    };
    const bf16* keys = kv + kv_head * D;
    load_tile<D, BLOCK_KEYS, WARP * BLOCK_WARPS>(key_tile, keys, kv_pitch, first, tokens, threadIdx.x);
    load_tile<D, BLOCK_KEYS, WARP * BLOCK_WARPS>(value_tile, keys + kv_heads * D, kv_pitch, first, tokens, threadIdx.x);
    copy_async_commit();
    if (team < total) load(team, 0);
    copy_async_wait<0>();
    __syncthreads();

    int warp_row = member / WARP * 16 * ATOMS, key = first + warp_row, last_key = min(key + 16 * ATOMS, tokens) - 1;
    float base2 = scale * LOG2_E;
    float d_k[ATOMS][D / 8][4], d_v[ATOMS][D / 8][4];
#pragma unroll
    for (int a = 0; a < ATOMS; ++a) {
        clear(d_k[a]);
        clear(d_v[a]);
    }

    // Every team goes round as often, the last time perhaps without work: races are looked for by counting a warp's barriers.
    for (int turn = team, stage = 0; turn - team < total; turn += TEAMS, stage ^= 1) {
        copy_async_wait<0>();
        barrier(1 + team, TEAM);
        if (turn >= total) break;
        if (turn + TEAMS < total) load(turn + TEAMS, stage ^ 1);
        u32 offset = team_offset + stage * Stage<D>::BYTES;
        u32 q_tile = key_tile + offset, d_tile = q_tile + Stage<D>::TILE;
        const float* row_lse = reinterpret_cast<const float*>(reinterpret_cast<const char*>(memory) + offset + Stage<D>::ROWS);
        const float* row_delta = row_lse + TEAM_QUERIES;
        const int* row_start = reinterpret_cast<const int*>(row_delta + TEAM_QUERIES);
        int query = first + turn % tiles * TEAM_QUERIES;
        if (query + TEAM_QUERIES <= key || row_start[0] > last_key) continue;

        // Scores transposed: rows are keys, columns queries.
        float s[ATOMS][TEAM_QUERIES / 8][4], d_s[ATOMS][TEAM_QUERIES / 8][4];
#pragma unroll
        for (int a = 0; a < ATOMS; ++a) {
            clear(s[a]);
            clear(d_s[a]);
        }
#pragma unroll
        for (int k = 0; k < D / 16; ++k) {
            u32 left[ATOMS][4];
#pragma unroll
            for (int a = 0; a < ATOMS; ++a) load_left<D>(left[a], key_tile, warp_row + a * 16, k);
#pragma unroll
            for (int n = 0; n < TEAM_QUERIES / 16; ++n) {
                u32 b[4];
                load_right<D>(b, q_tile, n * 16, k);
#pragma unroll
                for (int a = 0; a < ATOMS; ++a) mma_pair(s[a][2 * n], s[a][2 * n + 1], left[a], b);
            }
        }
#pragma unroll
        for (int k = 0; k < D / 16; ++k) {
            u32 left[ATOMS][4];
#pragma unroll
            for (int a = 0; a < ATOMS; ++a) load_left<D>(left[a], value_tile, warp_row + a * 16, k);
#pragma unroll
            for (int n = 0; n < TEAM_QUERIES / 16; ++n) {
                u32 b[4];
                load_right<D>(b, d_tile, n * 16, k);
#pragma unroll
                for (int a = 0; a < ATOMS; ++a) mma_pair(d_s[a][2 * n], d_s[a][2 * n + 1], left[a], b);
            }
        }
        bool edge = query < key + 16 * ATOMS - 1 || row_start[TEAM_QUERIES - 1] > key;
#pragma unroll
        for (int n = 0; n < TEAM_QUERIES / 8; ++n) {
            int column = n * 8 + 2 * (lane % 4);
            float2 less = *reinterpret_cast<const float2*>(row_lse + column);
            float2 mean = *reinterpret_cast<const float2*>(row_delta + column);
            int2 start = *reinterpret_cast<const int2*>(row_start + column);
            less.x *= LOG2_E;
            less.y *= LOG2_E;
#pragma unroll
            for (int a = 0; a < ATOMS; ++a) {
#pragma unroll
                for (int c = 0; c < 4; ++c) {
                    float p = exp2_fast(fmaf(s[a][n][c], base2, c % 2 ? -less.y : -less.x));
                    if (edge) {
                        int row = key + a * 16 + lane / 4 + c / 2 * 8, at = query + column + c % 2;
                        if (row > at || row < (c % 2 ? start.y : start.x)) p = 0.0f;
                    }
                    s[a][n][c] = p;
                    d_s[a][n][c] = p * (d_s[a][n][c] - (c % 2 ? mean.y : mean.x));
                }
            }
        }
#pragma unroll
        for (int k = 0; k < TEAM_QUERIES / 16; ++k) {
            u32 p[ATOMS][4], d_p[ATOMS][4];
#pragma unroll
            for (int a = 0; a < ATOMS; ++a) {
                as_left(p[a], s[a][2 * k], s[a][2 * k + 1]);
                as_left(d_p[a], d_s[a][2 * k], d_s[a][2 * k + 1]);
            }
#pragma unroll
            for (int n = 0; n < D / 16; ++n) {
                u32 b[4];
                load_right_transposed<D>(b, d_tile, k * 16, n);
#pragma unroll
                for (int a = 0; a < ATOMS; ++a) mma_pair(d_v[a][2 * n], d_v[a][2 * n + 1], p[a], b);
                load_right_transposed<D>(b, q_tile, k * 16, n);
#pragma unroll
                for (int a = 0; a < ATOMS; ++a) mma_pair(d_k[a][2 * n], d_k[a][2 * n + 1], d_p[a], b);
            }
        }
    }

    // Teams of the upper half hand their sums to those of the lower half, until one has all.
    float* parts = reinterpret_cast<float*>(memory) + 2 * TILE / 4;
#pragma unroll
    for (int half = TEAMS / 2; half > 0; half /= 2) {
        __syncthreads();
        float* part = parts + (long long)(team % half) * (2 * ATOMS * D / 2) * TEAM + member;
        bool gives = team >= half && team < 2 * half, takes = team < half;
        if (gives) {
#pragma unroll
            for (int i = 0; i < ATOMS * D / 2; ++i) {
                part[i * TEAM] = d_k[i / (D / 2)][i / 4 % (D / 8)][i % 4];
                part[(i + ATOMS * D / 2) * TEAM] = d_v[i / (D / 2)][i / 4 % (D / 8)][i % 4];
            }
        }
        __syncthreads();
        if (takes) {
#pragma unroll
            for (int i = 0; i < ATOMS * D / 2; ++i) {
                d_k[i / (D / 2)][i / 4 % (D / 8)][i % 4] += part[i * TEAM];
                d_v[i / (D / 2)][i / 4 % (D / 8)][i % 4] += part[(i + ATOMS * D / 2) * TEAM];
            }
        }
    }
    if (team > 0) return;
#pragma unroll
    for (int a = 0; a < ATOMS; ++a) {
        store_rows<D>(d_kv + kv_head * D, d_kv_pitch, key + a * 16, tokens, d_k[a], scale, scale);
        store_rows<D>(d_kv + (kv_heads + kv_head) * D, d_kv_pitch, key + a * 16, tokens, d_v[a], 1.0f, 1.0f);
    }
}

#define PARAMETERS(result)                                                                                                  \
    (const bf16* q, int q_pitch, const bf16* kv, int kv_pitch, const uint2* spans, const float* lse, const float* delta,   \
     const bf16* d_out, int d_out_pitch, bf16* result, int result##_pitch, int tokens, int heads, int kv_heads, float scale)
#define ARGUMENTS(result)                                                                                                   \
    (q, q_pitch, kv, kv_pitch, spans, lse, delta, d_out, d_out_pitch, result, result##_pitch, tokens, heads, kv_heads, scale)
#define DEFINE(D, ATOMS, WARPS, KEYS, STEP, BLOCKS)                                                                         \
    extern "C" __global__ void __launch_bounds__(WARP* WARPS, BLOCKS) attention_flash_grad_q_##D PARAMETERS(d_q) {         \
        flash_grad_q<D, ATOMS, WARPS, KEYS, STEP> ARGUMENTS(d_q);                                                          \
    }                                                                                                                      \
    extern "C" __global__ void __launch_bounds__(WARP* BLOCK_WARPS, 1) attention_flash_grad_kv_##D PARAMETERS(d_kv) {      \
        flash_grad_kv<D, ATOMS> ARGUMENTS(d_kv);                                                                           \
    }
DEFINE(32, 2, 4, 64, 32, 2)
DEFINE(64, 2, 4, 64, 32, 2)
DEFINE(128, 1, 8, 64, 32, 1)
