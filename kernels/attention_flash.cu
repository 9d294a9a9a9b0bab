// Causal grouped-query attention over packed sequences on tensor cores, bfloat16 (T. Dao, 2023: FlashAttention-2).
//
//   out = softmax(q k^T / sqrt(D)) v      lse = log sum exp(q k^T / sqrt(D))
//
// | tensor | shape      | type     |                                                                       |
// | q, out | T x Hq*D   | bfloat16 | query head h uses key-value head h / (Hq / Hkv)                       |
// | kv     | T x 2*Hkv*D | bfloat16 | keys of all heads, then values                                       |
// | spans  | T x 2      | u32      | first token of the token's sequence, one past its last; in order      |
// | lse    | T x Hq     | float32  |                                                                       |
//
// One block takes a tile of queries of one head and runs over the keys from the first token of the tile's first sequence to
// its last query, tile by tile; the next tile is copied meanwhile. A warp owns 16 or 32 rows and passes over tiles of keys
// that none of them sees. Probabilities are powers of two of scores less a running maximum; sums are rescaled only when the
// maximum has grown by more than 2^8, so no probability is above 256. For the second product they are two numbers of
// bfloat16, rounded and what is left, 16 bits in all: rounded once, they alone would be 1.5e-3 off in the output of a long
// sequence whose values cancel. Every sum has one order: keys from the first to the last, of a tile's 16 or 64 the rest last.
// Pointers and rows are multiples of 16 bytes. Tolerance: 1e-2 of the largest magnitude (lse: 1e-5); in the Frobenius norm 2e-3
// (1.62e-3 measured, which is the output's own rounding), lse 1e-5.
// Speed on an H100 80GB HBM3: 14 and 2 heads of 64, 16 sequences of 512 tokens: 0.063 ms, 119 TFLOP/s; 8 of 2048: 0.298 ms,
// 202 TFLOP/s; 12 and 2 heads of 128, 16 of 512: 0.095 ms, 136 TFLOP/s; 4 of 2048: 0.247 ms, 209 TFLOP/s. The rest is not
// counted; a third of the products go into it.

#include "attention.cuh"

constexpr float GROWTH = 8.0f;

// Geometry by head dimension: rows of a warp in units of 16, warps of a block, keys of a tile.
template <int D, int ATOMS, int WARPS, int KEYS>
__device__ void flash_forward(const bf16* q, int q_pitch, const bf16* kv, int kv_pitch, const uint2* spans, bf16* out,
                              int out_pitch, float* lse, int tokens, int heads, int kv_heads, float scale) {
    constexpr int ROWS = 16 * ATOMS * WARPS, THREADS = WARP * WARPS;
    constexpr u32 TILE = KEYS * D * 2;
    extern __shared__ uint4 memory[];
    u32 q_tile = shared_address(memory), stages = q_tile + ROWS * D * 2;

    int lane = threadIdx.x % WARP, warp = threadIdx.x / WARP;
    int head = blockIdx.x, first = (gridDim.y - 1 - blockIdx.y) * ROWS;
    int last = min(first + ROWS, tokens) - 1;
    q += head * D;
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
    load_tile<D, ROWS, THREADS>(q_tile, q, q_pitch, first, tokens, threadIdx.x);
    copy_async_commit();
    load(0);

    // This warp's rows, and the first key that each of this thread's rows sees.
    int warp_first = first + warp * 16 * ATOMS, warp_last = min(warp_first + 16 * ATOMS, tokens) - 1;
    bool idle = warp_first >= tokens;
    int earliest = idle ? 0 : (int)spans[warp_first].x, latest = idle ? 0 : (int)spans[warp_last].x;
    int row0 = warp_first + lane / 4, column0 = 2 * (lane % 4);
    int start[ATOMS][2];
#pragma unroll
    for (int a = 0; a < ATOMS; ++a) {
#pragma unroll
        for (int h = 0; h < 2; ++h) start[a][h] = (int)spans[min(row0 + a * 16 + h * 8, tokens - 1)].x;
    }

    copy_async_wait<1>();
    __syncthreads();
    u32 left[ATOMS][D / 16][4];
#pragma unroll
    for (int a = 0; a < ATOMS; ++a) {
#pragma unroll
        for (int k = 0; k < D / 16; ++k) load_left<D>(left[a][k], q_tile, (warp * ATOMS + a) * 16, k);
    }

    float base2 = scale * LOG2_E;
    float sums[ATOMS][D / 8][4], top[ATOMS][2], total[ATOMS][2];
#pragma unroll
    for (int a = 0; a < ATOMS; ++a) {
        clear(sums[a]);
        top[a][0] = top[a][1] = -INF;
        total[a][0] = total[a][1] = 0.0f;
    }

    for (int tile = 0; tile < tiles; ++tile) {
        copy_async_wait<0>();
        __syncthreads();
        if (tile + 1 < tiles) load(tile + 1);
        int key = key0 + tile * KEYS;
        if (idle || key > warp_last || key + KEYS <= earliest) continue;
        u32 key_tile = stages + (tile & 1) * 2 * TILE, value_tile = key_tile + TILE;

        float s[ATOMS][KEYS / 8][4];
#pragma unroll
        for (int a = 0; a < ATOMS; ++a) clear(s[a]);
#pragma unroll
        for (int k = 0; k < D / 16; ++k) {
#pragma unroll
            for (int n = 0; n < KEYS / 16; ++n) {
                u32 b[4];
                load_right<D>(b, key_tile, n * 16, k);
#pragma unroll
                for (int a = 0; a < ATOMS; ++a) mma_pair(s[a][2 * n], s[a][2 * n + 1], left[a][k], b);
            }
        }
        if (key + KEYS - 1 > warp_first || key < latest) {
#pragma unroll
            for (int a = 0; a < ATOMS; ++a) {
#pragma unroll
                for (int n = 0; n < KEYS / 8; ++n) {
#pragma unroll
                    for (int c = 0; c < 4; ++c) {
                        int at = key + n * 8 + column0 + c % 2, row = row0 + a * 16 + c / 2 * 8;
                        if (at > row || at < start[a][c / 2]) s[a][n][c] = -INF;
                    }
                }
            }
        }

        // The maximum of each row, and whether the sums must be rescaled to it.
        float next[ATOMS][2];
        bool grown = false;
#pragma unroll
        for (int a = 0; a < ATOMS; ++a) {
#pragma unroll
            for (int h = 0; h < 2; ++h) {
                float m = top[a][h];
#pragma unroll
                for (int n = 0; n < KEYS / 8; ++n) m = fmaxf(m, fmaxf(s[a][n][2 * h], s[a][n][2 * h + 1]));
                m = fmaxf(m, __shfl_xor_sync(0xFFFFFFFFu, m, 1));
                next[a][h] = fmaxf(m, __shfl_xor_sync(0xFFFFFFFFu, m, 2));
                grown |= (next[a][h] - top[a][h]) * base2 > GROWTH;
            }
        }
        if (__any_sync(0xFFFFFFFFu, grown)) {
#pragma unroll
            for (int a = 0; a < ATOMS; ++a) {
#pragma unroll
                for (int h = 0; h < 2; ++h) {
                    float factor = next[a][h] == -INF ? 1.0f : exp2_fast((top[a][h] - next[a][h]) * base2);
                    top[a][h] = next[a][h];
                    total[a][h] *= factor;
#pragma unroll
                    for (int n = 0; n < D / 8; ++n) {
                        sums[a][n][2 * h] *= factor;
                        sums[a][n][2 * h + 1] *= factor;
                    }
                }
            }
        }
#pragma unroll
        for (int a = 0; a < ATOMS; ++a) {
#pragma unroll
            for (int h = 0; h < 2; ++h) {
                float less = top[a][h] == -INF ? 0.0f : top[a][h] * base2;
#pragma unroll
                for (int n = 0; n < KEYS / 8; ++n) {
                    float p0 = exp2_fast(fmaf(s[a][n][2 * h], base2, -less));
                    float p1 = exp2_fast(fmaf(s[a][n][2 * h + 1], base2, -less));
                    s[a][n][2 * h] = p0;
                    s[a][n][2 * h + 1] = p1;
                    total[a][h] += p0 + p1;
                }
            }
        }
#pragma unroll
        for (int k = 0; k < KEYS / 16; ++k) {
            u32 p[ATOMS][4], rest[ATOMS][4];
#pragma unroll
            for (int a = 0; a < ATOMS; ++a) {
                as_left(p[a], s[a][2 * k], s[a][2 * k + 1]);
                as_left_rest(rest[a], p[a], s[a][2 * k], s[a][2 * k + 1]);
            }
#pragma unroll
            for (int n = 0; n < D / 16; ++n) {
                u32 b[4];
                load_right_transposed<D>(b, value_tile, k * 16, n);
#pragma unroll
                for (int a = 0; a < ATOMS; ++a) {
                    mma_pair(sums[a][2 * n], sums[a][2 * n + 1], p[a], b);
                    mma_pair(sums[a][2 * n], sums[a][2 * n + 1], rest[a], b);
                }
            }
        }
    }

#pragma unroll
    for (int a = 0; a < ATOMS; ++a) {
        float inverse[2];
#pragma unroll
        for (int h = 0; h < 2; ++h) {
            float sum = total[a][h];
            sum += __shfl_xor_sync(0xFFFFFFFFu, sum, 1);
            sum += __shfl_xor_sync(0xFFFFFFFFu, sum, 2);
            inverse[h] = sum > 0.0f ? 1.0f / sum : 0.0f;
            int row = row0 + a * 16 + h * 8;
            if (lane % 4 == 0 && row < tokens) {
                lse[(long long)row * heads + head] = sum > 0.0f ? fmaf(top[a][h], scale, logf(sum)) : 0.0f;
            }
        }
        store_rows<D>(out + head * D, out_pitch, warp_first + a * 16, tokens, sums[a], inverse[0], inverse[1]);
    }
}

#define DEFINE(D, ATOMS, WARPS, KEYS, BLOCKS)                                                                               \
    extern "C" __global__ void __launch_bounds__(WARP* WARPS, BLOCKS)                                                      \
        attention_flash_##D(const bf16* q, int q_pitch, const bf16* kv, int kv_pitch, const uint2* spans, bf16* out,       \
                            int out_pitch, float* lse, int tokens, int heads, int kv_heads, float scale) {                 \
        flash_forward<D, ATOMS, WARPS, KEYS>(q, q_pitch, kv, kv_pitch, spans, out, out_pitch, lse, tokens, heads,          \
                                             kv_heads, scale);                                                             \
    }
DEFINE(32, 2, 4, 64, 3)
DEFINE(64, 2, 4, 64, 2)
DEFINE(128, 1, 8, 64, 1)
