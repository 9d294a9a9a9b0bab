// attention_flash.cu and attention_flash_grad.cu for D = 64 on sm_90a, where products of four warps read their right factor
// from shared memory (J. Shah and others, 2024: FlashAttention-3). The same operands, roundings and orders of sums, but for
// the size of tiles.
//
// Forward and d_q: a block of two warp groups takes 128 queries of a head, 64 each, over tiles of 64 keys.
// d_k and d_v: a block of three warp groups takes 64 keys of a key-value head; tiles of 64 queries of all heads of the group
// are dealt to the groups in turn; their sums are added in order at the end. Where keys are too few to fill the device, a pair
// of blocks shares them: a cluster, whose second block's sums the first one reads from its shared memory.
// Tiles are taken in a given order, or from the last (queries) or first (keys) on; blocks that have most to do should begin first.
// With positions and a table, d_q and d_k are turned back by the rotation of rope.cu before they are rounded.
// Tolerance: 1e-2 of the largest magnitude (lse: 1e-5).
// Speed on an H100 80GB HBM3, 14 and 2 heads, forward, then d_q: 16 sequences of 512 tokens: 0.042 ms (181 TFLOP/s), 0.044 ms
// (255); 8 of 2048: 0.177 ms (340), 0.203 ms (444).

#include "attention.cuh"
#include "wgmma.cuh"

constexpr int D = 64, TILE_ROWS = 64, GROUP = 4 * WARP;
constexpr u32 TILE = TILE_ROWS * D * 2;

#ifdef __CUDA_ARCH_FEAT_SM90_ALL

constexpr float GROWTH = 8.0f;
constexpr int QUERY_GROUPS = 2, ROWS = QUERY_GROUPS * TILE_ROWS, THREADS = QUERY_GROUPS * GROUP;

// d = a b^T, both tiles.
__device__ inline void product(float (&d)[8][4], u32 a, u32 b) {
    u64 left = tile_descriptor(a), right = tile_descriptor(b);
#pragma unroll
    for (int k = 0; k < D / 16; ++k) wgmma<0>(d, left + k * NEXT_COLUMNS, right + k * NEXT_COLUMNS, k > 0);
}
// d += a b for a 64 x 64 in registers and a tile.
__device__ inline void add_product(float (&d)[8][4], const u32 (&a)[4][4], u32 b) {
    u64 right = tile_descriptor(b);
#pragma unroll
    for (int k = 0; k < 4; ++k) wgmma<1>(d, a[k], right + k * NEXT_ROWS, 1);
}

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

// The block's tile.
__device__ inline int tile_of(const u32* order, u32 otherwise) {
    return (int)(order != nullptr ? min(order[blockIdx.y], gridDim.y - 1) : otherwise);
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
        u32 p[4][4];
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
        for (int k = 0; k < 4; ++k) as_left(p[k], s[2 * k], s[2 * k + 1]);
        wgmma_fence();
        add_product(sums, p, stage + TILE);
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

// How gradients by rotated queries and keys are turned back: the inverse of rope.cu's rotation; null positions: not at all.
struct Turn {
    const u32* positions;
    const float* table;
    int table_rows;
};
// Rows `row` and `row` + 8 of a tile's sums; halves of a head lie in the same thread.
__device__ inline void turn_back(float (&sums)[8][4], const Turn& turn, int row, int tokens) {
    if (turn.positions == nullptr) return;
#pragma unroll
    for (int h = 0; h < 2; ++h) {
        if (row + 8 * h >= tokens) continue;
        u32 position = min(turn.positions[row + 8 * h], (u32)turn.table_rows - 1);
        const float* angles = turn.table + (long long)position * D + 2 * (threadIdx.x % 4);
#pragma unroll
        for (int n = 0; n < 4; ++n) {
            float2 cos = *reinterpret_cast<const float2*>(angles + 8 * n), sin = *reinterpret_cast<const float2*>(angles + 8 * n + D / 2);
#pragma unroll
            for (int c = 0; c < 2; ++c) {
                float low = sums[n][2 * h + c], high = sums[n + 4][2 * h + c], x = c ? cos.y : cos.x, y = c ? sin.y : sin.x;
                sums[n][2 * h + c] = low * x + high * y;
                sums[n + 4][2 * h + c] = high * x - low * y;
            }
        }
    }
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

constexpr int TEAMS = 3;
// One stage of a team: queries, d_out, then lse, delta and starts of the queries.
constexpr u32 STAGE_ROWS = 2 * TILE, STAGE = 2 * TILE + 1024;

__device__ inline u32 block_of_pair() {
    u32 rank;
    asm volatile("mov.u32 %0, %%cluster_ctarank;" : "=r"(rank));
    return rank;
}
// Both blocks of a pair are here, and see each other's shared memory as it is now.
__device__ inline void meet_pair() {
    asm volatile("barrier.cluster.arrive.release.aligned;\nbarrier.cluster.wait.acquire.aligned;" ::: "memory");
}
// From the same place of the other block's shared memory.
__device__ inline float read_other(const float* p, u32 other) {
    u32 address;
    float value;
    asm volatile("mapa.shared::cluster.u32 %0, %1, %2;" : "=r"(address) : "r"(shared_address(p)), "r"(other));
    asm volatile("ld.shared::cluster.f32 %0, [%1];" : "=f"(value) : "r"(address) : "memory");
    return value;
}

// Adds the sums of the pair's second block to those of its first, which alone returns true.
__device__ inline bool add_pair(float (&d_k)[8][4], float (&d_v)[8][4], float* parts, int team) {
    u32 block = block_of_pair();
    if (block == 1 && team == 0) {
#pragma unroll
        for (int i = 0; i < D / 2; ++i) {
            parts[i * GROUP] = d_k[i / 4][i % 4];
            parts[(i + D / 2) * GROUP] = d_v[i / 4][i % 4];
        }
    }
    meet_pair();
    if (block == 0 && team == 0) {
#pragma unroll
        for (int i = 0; i < D / 2; ++i) {
            d_k[i / 4][i % 4] += read_other(parts + i * GROUP, 1);
            d_v[i / 4][i % 4] += read_other(parts + (i + D / 2) * GROUP, 1);
        }
    }
    meet_pair();
    return block == 0;
}

template <int BLOCKS>
__device__ void grad_kv(const bf16* q, int q_pitch, const bf16* kv, int kv_pitch, const uint2* spans, const float* lse,
                        const float* delta, const bf16* d_out, int d_out_pitch, bf16* d_kv, int d_kv_pitch, int tokens,
                        int heads, int kv_heads, const Turn& turn, const u32* order, float scale) {
    extern __shared__ __align__(1024) uint4 memory[];
    u32 key_tile = shared_address(memory), value_tile = key_tile + TILE;
    int lane = threadIdx.x % WARP, team = threadIdx.x / GROUP, member = threadIdx.x % GROUP;
    u32 team_offset = 2 * TILE + team * 2 * STAGE;
    int kv_head = blockIdx.x, group = heads / kv_heads, first = tile_of(order, blockIdx.y) * TILE_ROWS;
    const bf16* keys = kv + kv_head * D;
    if (team == 0) load_tile<D, TILE_ROWS, GROUP>(key_tile, keys, kv_pitch, first, tokens, member);
    if (team == 1) load_tile<D, TILE_ROWS, GROUP>(value_tile, keys + kv_heads * D, kv_pitch, first, tokens, member);
    copy_async_commit();
    int last = min(first + TILE_ROWS, tokens) - 1;
    int end = (int)min(max(spans[last].y, (u32)last + 1), (u32)tokens);
    int tiles = (end - first + TILE_ROWS - 1) / TILE_ROWS, total = group * tiles;

    auto load = [&](int turn, int stage) {
        int head = kv_head * group + turn / tiles, from = first + turn % tiles * TILE_ROWS;
        u32 at = key_tile + team_offset + stage * STAGE;
        load_tile<D, TILE_ROWS, GROUP>(at, q + head * D, q_pitch, from, tokens, member);
        load_tile<D, TILE_ROWS, GROUP>(at + TILE, d_out + head * D, d_out_pitch, from, tokens, member);
        int query = from + member % TILE_ROWS, row = min(query, tokens - 1);
        u32 rows = at + STAGE_ROWS + member * 4;
        const float* statistic = member < TILE_ROWS ? lse : delta;
        copy_async_4(rows, statistic + (long long)row * heads + head, query < tokens);
        if (member < TILE_ROWS) copy_async_4(rows + 2 * TILE_ROWS * 4, spans + row, true);
        copy_async_commit();
    };
    int turn0 = BLOCKS == 1 ? team : (int)block_of_pair() * TEAMS + team;
    if (turn0 < total) load(turn0, 0);
    copy_async_wait<0>();
    fence_for_tensor_cores();
    __syncthreads();

    float base2 = scale * LOG2_E;
    float d_k[8][4], d_v[8][4], s[8][4], d_s[8][4];
    clear(d_k);
    clear(d_v);
    // As often for every team: see attention_flash_grad.cu.
    for (int turn = turn0, stage = 0; turn - turn0 < total; turn += BLOCKS * TEAMS, stage ^= 1) {
        copy_async_wait<0>();
        fence_for_tensor_cores();
        barrier(1 + team, GROUP);
        if (turn >= total) break;
        if (turn + BLOCKS * TEAMS < total) load(turn + BLOCKS * TEAMS, stage ^ 1);
        u32 offset = team_offset + stage * STAGE, q_tile = key_tile + offset, d_tile = q_tile + TILE;
        const float* row_lse = reinterpret_cast<const float*>(reinterpret_cast<const char*>(memory) + offset + STAGE_ROWS);
        const float* row_delta = row_lse + TILE_ROWS;
        const int* row_start = reinterpret_cast<const int*>(row_delta + TILE_ROWS);
        int query = first + turn % tiles * TILE_ROWS;
        if (row_start[0] > last) continue;

        // Scores transposed: rows are keys, columns queries.
        wgmma_fence();
        product(s, key_tile, q_tile);
        wgmma_commit();
        product(d_s, value_tile, d_tile);
        wgmma_commit();
        wgmma_wait<1>();
        bool edge = query < first + TILE_ROWS - 1 || row_start[TILE_ROWS - 1] > first;
        int key = first + member / WARP * 16 + lane / 4;
#pragma unroll
        for (int n = 0; n < 8; ++n) {
            int column = n * 8 + 2 * (lane % 4);
            float2 less = *reinterpret_cast<const float2*>(row_lse + column);
            less.x *= LOG2_E;
            less.y *= LOG2_E;
#pragma unroll
            for (int c = 0; c < 4; ++c) s[n][c] = exp2_fast(fmaf(s[n][c], base2, c % 2 ? -less.y : -less.x));
            if (edge) {
                int2 start = *reinterpret_cast<const int2*>(row_start + column);
#pragma unroll
                for (int c = 0; c < 4; ++c) {
                    int row = key + c / 2 * 8;
                    if (row > query + column + c % 2 || row < (c % 2 ? start.y : start.x)) s[n][c] = 0.0f;
                }
            }
        }
        // The product for d_v runs while d_s is computed.
        u32 p[4][4], d_p[4][4];
#pragma unroll
        for (int k = 0; k < 4; ++k) as_left(p[k], s[2 * k], s[2 * k + 1]);
        wgmma_fence();
        add_product(d_v, p, d_tile);
        wgmma_commit();
        wgmma_wait<1>();
#pragma unroll
        for (int n = 0; n < 8; ++n) {
            float2 mean = *reinterpret_cast<const float2*>(row_delta + n * 8 + 2 * (lane % 4));
#pragma unroll
            for (int c = 0; c < 4; ++c) s[n][c] *= d_s[n][c] - (c % 2 ? mean.y : mean.x);
        }
#pragma unroll
        for (int k = 0; k < 4; ++k) as_left(d_p[k], s[2 * k], s[2 * k + 1]);
        wgmma_fence();
        add_product(d_k, d_p, q_tile);
        wgmma_commit();
        wgmma_wait<0>();
    }

    // The first team adds the others' sums in order.
    float* parts = reinterpret_cast<float*>(memory) + 2 * TILE / 4 + member;
    __syncthreads();
    if (team > 0) {
        float* part = parts + (team - 1) * D * GROUP;
#pragma unroll
        for (int i = 0; i < D / 2; ++i) {
            part[i * GROUP] = d_k[i / 4][i % 4];
            part[(i + D / 2) * GROUP] = d_v[i / 4][i % 4];
        }
    }
    __syncthreads();
    for (int other = 0; team == 0 && other < TEAMS - 1; ++other) {
        const float* part = parts + other * D * GROUP;
#pragma unroll
        for (int i = 0; i < D / 2; ++i) {
            d_k[i / 4][i % 4] += part[i * GROUP];
            d_v[i / 4][i % 4] += part[(i + D / 2) * GROUP];
        }
    }
    bool writes = team == 0;
    if constexpr (BLOCKS == 2) {
        __syncthreads();
        writes = add_pair(d_k, d_v, parts, team) && writes;
    }
    if (!writes) return;
    int row = first + member / WARP * 16;
    turn_back(d_k, turn, row + lane / 4, tokens);
    store_rows<D>(d_kv + kv_head * D, d_kv_pitch, row, tokens, d_k, scale, scale);
    store_rows<D>(d_kv + (kv_heads + kv_head) * D, d_kv_pitch, row, tokens, d_v, 1.0f, 1.0f);
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
extern "C" __global__ void __launch_bounds__(TEAMS* GROUP, 1)
    attention_wgmma_grad_kv(const bf16* q, int q_pitch, const bf16* kv, int kv_pitch, const uint2* spans, const float* lse,
                            const float* delta, const bf16* d_out, int d_out_pitch, bf16* d_kv, int d_kv_pitch, int tokens,
                            int heads, int kv_heads, const u32* positions, const float* table, int table_rows, const u32* order,
    float scale) {
    grad_kv<1>(q, q_pitch, kv, kv_pitch, spans, lse, delta, d_out, d_out_pitch, d_kv, d_kv_pitch, tokens, heads, kv_heads,
               Turn{positions, table, table_rows}, order, scale);
}
extern "C" __global__ void __cluster_dims__(1, 1, 2) __launch_bounds__(TEAMS* GROUP, 1)
    attention_wgmma_grad_kv_pair(const bf16* q, int q_pitch, const bf16* kv, int kv_pitch, const uint2* spans, const float* lse,
                                 const float* delta, const bf16* d_out, int d_out_pitch, bf16* d_kv, int d_kv_pitch, int tokens,
                                 int heads, int kv_heads, const u32* positions, const float* table, int table_rows, const u32* order,
    float scale) {
    grad_kv<2>(q, q_pitch, kv, kv_pitch, spans, lse, delta, d_out, d_out_pitch, d_kv, d_kv_pitch, tokens, heads, kv_heads,
               Turn{positions, table, table_rows}, order, scale);
}

#endif
