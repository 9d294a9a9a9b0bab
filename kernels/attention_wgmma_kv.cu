// The gradient of attention_wgmma.cu by keys and values.
//
// A block takes 128 keys of a key-value head: two warp groups, 64 keys each, over tiles of 64 queries of all heads of the
// group; a third warp group brings the tiles, which both use. Where keys are too few to fill the device, two or four blocks
// share them: a cluster, to whose blocks tiles are dealt in turn; their sums are added in order at the end.
// Scores are computed transposed (rows are keys), so that both right factors come from shared memory as they lie there, and
// all left factors from registers: keys and values stay there.
// Tiles of keys are taken in a given order, or from the first on; blocks that have most to do should begin first.
// With positions and a table, d_k is turned back by the rotation of rope.cu before it is rounded.
// Tolerance: 1e-2 of the largest magnitude.
// Speed on an H100 80GB HBM3, 14 and 2 heads (of the kernel before it freed stages ahead of tiles it passes over): 4 sequences
// of 512 tokens: 0.024 ms (158 TFLOP/s); 16 of 512: 0.053 ms (284); 8 of 2048: 0.247 ms (487); 2 of 4096: 0.243 ms (496).

#include "attention_wgmma.cuh"

#ifdef __CUDA_ARCH_FEAT_SM90_ALL

constexpr int GROUPS = 2, KEYS = GROUPS * TILE_ROWS, THREADS = (GROUPS + 1) * GROUP;
// A stage: queries, d_out, then lse, delta and starts of the queries.
constexpr u32 STAGE_ROWS = 2 * TILE, STAGE = 2 * TILE + 1024;
typedef Ring<6, 2, STAGE> Queries;
// Shared memory: the ring (at the end: sums), keys, values.
constexpr u32 KEY_TILES = (Queries::BYTES + 1023) / 1024 * 1024, VALUE_TILES = KEY_TILES + GROUPS * TILE;

// Operands in device memory.
struct Operands {
    const bf16 *q, *kv, *d_out;
    const uint2* spans;
    const float *lse, *delta;
    int q_pitch, kv_pitch, d_out_pitch, tokens, heads, kv_heads;
};
// What a block has to do: of tiles of all heads of its group, head by head, those with numbers rank, rank + BLOCKS, ...
struct Block {
    int kv_head, first, last, tiles, turns, rank;
    u32 memory;
};

__device__ inline u32 rank_in_cluster() {
    u32 rank;
    asm volatile("mov.u32 %0, %%cluster_ctarank;" : "=r"(rank));
    return rank;
}
// All blocks of the cluster are here, and see each other's shared memory as it is now.
__device__ inline void meet_cluster() {
    asm volatile("barrier.cluster.arrive.release.aligned;\nbarrier.cluster.wait.acquire.aligned;" ::: "memory");
}
// From the same place of another block's shared memory.
__device__ inline float read_other(const float* p, u32 other) {
    u32 address;
    float value;
    asm volatile("mapa.shared::cluster.u32 %0, %1, %2;" : "=r"(address) : "r"(shared_address(p)), "r"(other));
    asm volatile("ld.shared::cluster.f32 %0, [%1];" : "=f"(value) : "r"(address) : "memory");
    return value;
}

// Starts of a stage's queries.
__device__ inline const int* starts_of(const char* memory, u32 stage) {
    return reinterpret_cast<const int*>(memory + stage * STAGE + STAGE_ROWS) + 2 * TILE_ROWS;
}

// The group that brings tiles.
template <int BLOCKS>
__device__ inline void bring(const Operands& from, const Block& block, Queries ring) {
    int member = threadIdx.x % GROUP, head = block.kv_head * (from.heads / from.kv_heads), tile = block.rank;
    for (int started = 0; started < block.turns; ++started, tile += BLOCKS) {
        for (; tile >= block.tiles; tile -= block.tiles) ++head;
        ring.next();
        ring.wait_free();
        u32 at = ring.at();
        int row = block.first + tile * TILE_ROWS;
        load_tile<D, TILE_ROWS, GROUP>(at, from.q + head * D, from.q_pitch, row, from.tokens, member);
        load_tile<D, TILE_ROWS, GROUP>(at + TILE, from.d_out + head * D, from.d_out_pitch, row, from.tokens, member);
        int query = row + member % TILE_ROWS, known = min(query, from.tokens - 1);
        const float* statistic = member < TILE_ROWS ? from.lse : from.delta;
        copy_async_4(at + STAGE_ROWS + member * 4, statistic + (long long)known * from.heads + head, query < from.tokens);
        if (member < TILE_ROWS) copy_async_4(at + STAGE_ROWS + (2 * TILE_ROWS + member) * 4, from.spans + known, true);
        ring.copied(started);
    }
    ring.end(block.turns);
}

// Sums of a group's 64 keys.
template <int BLOCKS>
__device__ inline void add_up(float (&d_k)[8][4], float (&d_v)[8][4], const Block& block, Queries ring,
                              const char* memory, float base2) {
    int lane = threadIdx.x % WARP, team = threadIdx.x / GROUP, warp = threadIdx.x % GROUP / WARP;
    int first = block.first + team * TILE_ROWS, last = min(first + TILE_ROWS - 1, block.last);
    u32 keys[4][4], values[4][4];
#pragma unroll
    for (int k = 0; k < 4; ++k) {
        load_left<D>(keys[k], block.memory + KEY_TILES + team * TILE, warp * 16, k);
        load_left<D>(values[k], block.memory + VALUE_TILES + team * TILE, warp * 16, k);
    }
    float s[8][4], d_s[8][4];
    int left = block.turns, tile = block.rank - BLOCKS, query = 0, key = first + warp * 16 + lane / 4, column = 2 * (lane % 4);
    u32 before = ~0u;  // the stage that is still in use
    // The next tile that sees these keys. Nothing stays in use while others are passed over: the ring would not get round.
    auto seek = [&] {
        while (left-- > 0) {
            tile += BLOCKS;
            while (tile >= block.tiles) tile -= block.tiles;
            ring.next();
            ring.wait_full();
            query = block.first + tile * TILE_ROWS;
            if (query + TILE_ROWS > first && starts_of(memory, ring.stage)[0] <= last) return true;
            if (before != ~0u) {
                wgmma_wait<0>();
                ring.say_free(before);
                before = ~0u;
            }
            ring.say_free(ring.stage);
        }
        return false;
    };
    // Starts its products.
    auto begin = [&] {
        wgmma_fence();
        product(s, keys, ring.at());
        wgmma_commit();
        product(d_s, values, ring.at() + TILE);
        wgmma_commit();
    };
    if (!seek()) return;
    begin();
    for (;;) {
        wgmma_wait<1>();
        settle(s);
        if (before != ~0u) ring.say_free(before);
        before = ring.stage;
        u32 at = ring.at();
        const int* row_start = starts_of(memory, before);
        const float* row_lse = reinterpret_cast<const float*>(row_start) - 2 * TILE_ROWS + column;
        if (query < first + TILE_ROWS - 1 || row_start[TILE_ROWS - 1] > first) {
#pragma unroll
            for (int n = 0; n < 8; ++n) {
                int2 start = *reinterpret_cast<const int2*>(row_start + n * 8 + column);
#pragma unroll
                for (int c = 0; c < 4; ++c) {
                    int row = key + c / 2 * 8;
                    if (row > query + n * 8 + column + c % 2 || row < (c % 2 ? start.y : start.x)) s[n][c] = -INF;
                }
            }
        }
#pragma unroll
        for (int n = 0; n < 8; ++n) {
            float2 less = *reinterpret_cast<const float2*>(row_lse + n * 8);
            less.x *= LOG2_E;
            less.y *= LOG2_E;
#pragma unroll
            for (int c = 0; c < 4; ++c) s[n][c] = exp2_fast(fmaf(s[n][c], base2, c % 2 ? -less.y : -less.x));
        }
        // The product for d_v runs while d_s is computed.
        u32 p[4][4], d_p[4][4];
#pragma unroll
        for (int k = 0; k < 4; ++k) as_left(p[k], s[2 * k], s[2 * k + 1]);
        wgmma_fence();
        add_product(d_v, p, at + TILE);
        wgmma_commit();
        wgmma_wait<1>();
        settle(d_s);
#pragma unroll
        for (int n = 0; n < 8; ++n) {
            float2 mean = *reinterpret_cast<const float2*>(row_lse + TILE_ROWS + n * 8);
#pragma unroll
            for (int c = 0; c < 4; ++c) s[n][c] *= d_s[n][c] - (c % 2 ? mean.y : mean.x);
        }
#pragma unroll
        for (int k = 0; k < 4; ++k) as_left(d_p[k], s[2 * k], s[2 * k + 1]);
        wgmma_fence();
        add_product(d_k, d_p, at);
        wgmma_commit();
        if (!seek()) break;
        begin();
    }
    wgmma_wait<0>();
    settle(d_k);
    settle(d_v);
}

// Writes a group's gradients by keys (part 0) or values (1).
__device__ inline void write(float (&sums)[8][4], int part, int row, bf16* d_kv, int pitch, const Operands& from, const Block& block,
                             const Turn& turn, float scale) {
    if (part == 0) turn_back(sums, turn, row + threadIdx.x % WARP / 4, from.tokens);
    float factor = part == 0 ? scale : 1.0f;
    store_rows<D>(d_kv + (part * from.kv_heads + block.kv_head) * D, pitch, row, from.tokens, sums, factor, factor);
}

template <int BLOCKS>
__device__ inline void grad_kv(const Operands& from, bf16* d_kv, int d_kv_pitch, const Turn& turn, const u32* order, float scale) {
    extern __shared__ __align__(1024) char memory[];
    int team = threadIdx.x / GROUP, member = threadIdx.x % GROUP;
    Queries ring;
    ring.start(shared_address(memory));
    Block block;
    block.memory = shared_address(memory);
    block.kv_head = blockIdx.x;
    block.first = tile_of(order, blockIdx.y) * KEYS;
    block.rank = BLOCKS == 1 ? 0 : (int)rank_in_cluster();
    if (team < GROUPS) {
        const bf16* keys = from.kv + block.kv_head * D;
        int first = block.first + team * TILE_ROWS;
        load_tile<D, TILE_ROWS, GROUP>(block.memory + KEY_TILES + team * TILE, keys, from.kv_pitch, first, from.tokens, member);
        load_tile<D, TILE_ROWS, GROUP>(block.memory + VALUE_TILES + team * TILE, keys + from.kv_heads * D, from.kv_pitch, first,
                                       from.tokens, member);
    } else {
        ring.set_gates(member, GROUPS * GROUP);
    }
    copy_async_commit();
    block.last = min(block.first + KEYS, from.tokens) - 1;
    int end = (int)min(max(from.spans[block.last].y, (u32)block.last + 1), (u32)from.tokens);
    block.tiles = (end - block.first + TILE_ROWS - 1) / TILE_ROWS;
    block.turns = (from.heads / from.kv_heads * block.tiles - block.rank + BLOCKS - 1) / BLOCKS;
    __syncthreads();

    if (team == GROUPS) {
        leave_registers<40>();
        bring<BLOCKS>(from, block, ring);
        if constexpr (BLOCKS > 1) {
            meet_cluster();
            meet_cluster();
        }
    } else {
        take_registers<232>();
        copy_async_wait<0>();
        barrier(1 + team, GROUP);
        float d_k[8][4], d_v[8][4];
        clear(d_k);
        clear(d_v);
        settle(d_k);
        settle(d_v);
        add_up<BLOCKS>(d_k, d_v, block, ring, memory, scale * LOG2_E);
        int row = block.first + team * TILE_ROWS + member / WARP * 16;
        if constexpr (BLOCKS == 1) {
            write(d_k, 0, row, d_kv, d_kv_pitch, from, block, turn, scale);
            write(d_v, 1, row, d_kv, d_kv_pitch, from, block, turn, scale);
        } else {
            // Each block adds one of two, or of four, kinds of sums of all blocks: of keys or values, of a group or of both.
            float* parts = reinterpret_cast<float*>(memory) + member;
            barrier(1 + GROUPS, GROUPS * GROUP);
#pragma unroll
            for (int i = 0; i < D / 2; ++i) {
                parts[(team * D + i) * GROUP] = d_k[i / 4][i % 4];
                parts[(team * D + i + D / 2) * GROUP] = d_v[i / 4][i % 4];
            }
            meet_cluster();
            int part = BLOCKS == 2 ? block.rank : block.rank / 2;
            if (BLOCKS == 2 || team == block.rank % 2) {
                const float* mine = parts + (team * D + part * D / 2) * GROUP;
#pragma unroll
                for (int i = 0; i < D / 2; ++i) d_k[i / 4][i % 4] = read_other(mine + i * GROUP, 0);
                for (int other = 1; other < BLOCKS; ++other) {
#pragma unroll
                    for (int i = 0; i < D / 2; ++i) d_k[i / 4][i % 4] += read_other(mine + i * GROUP, other);
                }
                write(d_k, part, row, d_kv, d_kv_pitch, from, block, turn, scale);
            }
            meet_cluster();
        }
    }
}

#define PARAMETERS                                                                                                          \
    const bf16 *q, int q_pitch, const bf16 *kv, int kv_pitch, const uint2 *spans, const float *lse, const float *delta,     \
        const bf16 *d_out, int d_out_pitch, bf16 *d_kv, int d_kv_pitch, int tokens, int heads, int kv_heads,                \
        const u32 *positions, const float *table, int table_rows, const u32 *order, float scale
#define ARGUMENTS                                                                                                           \
    Operands{q, kv, d_out, spans, lse, delta, q_pitch, kv_pitch, d_out_pitch, tokens, heads, kv_heads}, d_kv, d_kv_pitch,   \
        Turn{positions, table, table_rows}, order, scale

extern "C" __global__ void __launch_bounds__(THREADS, 1) attention_wgmma_grad_kv(PARAMETERS) { grad_kv<1>(ARGUMENTS); }
extern "C" __global__ void __cluster_dims__(1, 1, 2) __launch_bounds__(THREADS, 1) attention_wgmma_grad_kv_2(PARAMETERS) {
    grad_kv<2>(ARGUMENTS);
}
extern "C" __global__ void __cluster_dims__(1, 1, 4) __launch_bounds__(THREADS, 1) attention_wgmma_grad_kv_4(PARAMETERS) {
    grad_kv<4>(ARGUMENTS);
}

#endif
