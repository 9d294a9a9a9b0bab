// Gradients of the factors of adapters of a group of modules on tensor cores (bfloat16); the plain kernels are in lora_plain.cu.
//
//   d_B_m += scale d_y_m^T u_m     d_A_m += d_u_m^T drop_m(x)
//
// | tensor    | shape                     | type     |
// | x         | T x K                     | bfloat16 |
// | d_y       | T x N                     | bfloat16 |
// | u         | T x (n r)                 | float32  |
// | d_u       | T x (n r)                 | bfloat16 |
// | d_A, d_B  | r x K, N_m x r            | float32  |
// | part_a    | slices of A x (n r) x K   | float32  |
// | part_b    | slices of B x (sum of N_m) x r | float32 |
//
// Sums over tokens are cut into slices whose number depends on shapes alone; the slices' sums are added in order by `lora_sum` (lora_sum.cu).
// up: a block takes a slice of tokens and 256 columns of d_y, 64 tokens at a time through shared memory; d_B stays in registers.
// down: a block takes a slice and 64 features. Lane (g, t) takes features 8 g .. 8 g + 8 of tokens 4 t .. 4 t + 4: one 16-byte
//   load and one block of random bits each; pairs of tokens are put together in registers. Warps take tokens in turn.
// Tolerance: 1e-2 of the largest magnitude; masks exact.
// T = 8192, r = 16, dropout, a layer of Qwen2.5-0.5B, where SwiGLU's pass has done what its operands need, H200: up 24 us (49 MB
// of d_y, 2,040 GB/s), down 56 us (44 MB of x, 790 GB/s). H100, dropout, up and down of q, k, v: 10.3 us (2,290 GB/s) and 22.5 us
// (779); o: 8.9 us (2,129) and 11.3 us (1,488); gate, up: 60.4 us (2,730) and 17.5 us (971); down: 8.9 us (2,109) and 42.2 us (1,937).

#include "lora.cuh"
#include "mma.cuh"

// Two neighbouring ranks of an even number; `left`: how many there are from here on.
__device__ inline void store_ranks(float* p, float a, float b, int left) {
    if (left > 0) *reinterpret_cast<float2*>(p) = make_float2(a, b);
}

// --- d_B ---------------------------------------------------------------------------------------------------------------

constexpr int UP_THREADS = 128, UP_TOKENS = 64, UP_COLS = 256;

struct Up {
    const bf16* d_y;
    int d_y_pitch;
    const float* u;
    int u_pitch;
    float* part_b;
    int tokens, slice, rank;
};

// The part of the work that a block does.
struct UpTile {
    int module;
    int first;  // column inside the module
    int count;  // columns of the module
    int start;  // of the module in d_y
    int row;    // of the module in part_b
    int rows;   // of part_b
    int rank0, token0, token1;
};

__device__ inline UpTile up_tile(const Up& p, const Columns& columns) {
    UpTile tile{};
    int index = blockIdx.x;
#pragma unroll
    for (int m = 0; m + 1 < MODULES; ++m) {
        int tiles = (columns.count.of[m] + UP_COLS - 1) / UP_COLS;
        if (tile.module == m && index >= tiles) {
            index -= tiles;
            tile.row += columns.count.of[m];
            ++tile.module;
        }
    }
    tile.first = index * UP_COLS;
    tile.count = columns.count.at(tile.module);
    tile.start = columns.start.at(tile.module);
    tile.rows = columns.count.of[0] + columns.count.of[1] + columns.count.of[2];
    tile.rank0 = blockIdx.z * RANKS;
    tile.token0 = blockIdx.y * p.slice;
    tile.token1 = min(p.tokens, tile.token0 + p.slice);
    return tile;
}

// Where 8 ranks of a row of 16 lie, so that 8 rows are read without bank conflicts.
__device__ inline int rank_chunk(int row, int chunk) { return row * 32 + ((chunk ^ (row >> 2 & 1)) << 4); }

// Starts the copy of 64 tokens x 256 columns; 16-byte chunks of a row are exchanged by the row's number.
__device__ inline void up_load(u32 shared, const Up& p, const UpTile& tile, int token) {
    int chunk = threadIdx.x % 32, column = tile.first + 8 * chunk;
#pragma unroll
    for (int i = 0; i < UP_TOKENS * 32 / UP_THREADS; ++i) {
        int row = threadIdx.x / 32 + i * (UP_THREADS / 32);
        bool valid = token + row < tile.token1 && column < tile.count;
        const bf16* source = p.d_y + (valid ? (u64)(token + row) * p.d_y_pitch + tile.start + column : 0);
        copy_async_16(shared + row * 512 + ((chunk ^ (row & 7)) << 4), source, valid);
    }
}

// The thread's 8 numbers of u of 64 tokens.
__device__ inline void up_load_u(float (&v)[8], const Up& p, const UpTile& tile, int token) {
    token += threadIdx.x / 2;
    int rank = tile.rank0 + 8 * (threadIdx.x % 2);
    const float* source = p.u + (u64)token * p.u_pitch + tile.module * p.rank + rank;
#pragma unroll
    for (int k = 0; k < 8; ++k) v[k] = token < tile.token1 && rank + k < p.rank ? source[k] : 0.0f;
}
__device__ inline void up_store_u(u8* shared, const float (&v)[8]) {
    uint4 packed = make_uint4(pack_bf16(v[0], v[1]), pack_bf16(v[2], v[3]), pack_bf16(v[4], v[5]), pack_bf16(v[6], v[7]));
    *reinterpret_cast<uint4*>(shared + rank_chunk(threadIdx.x / 2, threadIdx.x % 2)) = packed;
}

// d_B of the warp's 64 columns += 64 tokens.
__device__ inline void up_d_b(float (&acc)[4][2][4], u32 stage, const u32 (&u)[4][4]) {
    int lane = threadIdx.x % WARP, warp = threadIdx.x / WARP;
#pragma unroll
    for (int step = 0; step < UP_TOKENS / 16; ++step) {
        int row = 16 * step + lane % 8 + 8 * (lane / 16);
#pragma unroll
        for (int i = 0; i < 4; ++i) {
            u32 left[4];
            load_matrix_4_transposed(left, stage + row * 512 + (((8 * warp + 2 * i + lane / 8 % 2) ^ (row & 7)) << 4));
            mma_bf16(acc[i][0], left, {u[step][0], u[step][1]});
            mma_bf16(acc[i][1], left, {u[step][2], u[step][3]});
        }
    }
}

__device__ inline void up_write_d_b(const float (&acc)[4][2][4], const Up& p, const UpTile& tile) {
    int lane = threadIdx.x % WARP, g = lane / 4, t = lane % 4;
    int column = tile.first + 64 * (threadIdx.x / WARP) + g;
#pragma unroll
    for (int i = 0; i < 8; ++i) {
        if (column + 8 * i >= tile.count) continue;
        float* row = p.part_b + ((u64)blockIdx.y * tile.rows + tile.row + column + 8 * i) * p.rank;
#pragma unroll
        for (int n = 0; n < 2; ++n) {
            int rank = tile.rank0 + 8 * n + 2 * t;
            const float* v = &acc[i / 2][n][2 * (i % 2)];
            store_ranks(row + rank, v[0], v[1], p.rank - rank);
        }
    }
}

// Blocks (column tile, slice, 16 ranks).
extern "C" __global__ void __launch_bounds__(UP_THREADS, 3)
    lora_grad_up_mma(const bf16* d_y, int d_y_pitch, const float* u, int u_pitch, float* part_b, COLUMNS_PARAMETERS, int tokens,
                     int slice, int rank) {
    extern __shared__ __align__(128) u8 shared[];
    constexpr int STAGE = UP_TOKENS * UP_COLS * 2;
    u8* shared_u = shared + 2 * STAGE;
    u32 stages = shared_address(shared), address_u = shared_address(shared_u);
    Up p{d_y, d_y_pitch, u, u_pitch, part_b, tokens, slice, rank};
    UpTile tile = up_tile(p, COLUMNS);
    int lane = threadIdx.x % WARP;
    auto start = [&](int stage) {
        int token = tile.token0 + stage * UP_TOKENS;
        if (token < tile.token1) up_load(stages + stage % 2 * STAGE, p, tile, token);
        copy_async_commit();
    };
    start(0);
    start(1);
    float next[8], acc[4][2][4] = {};
    up_load_u(next, p, tile, tile.token0);
    for (int token = tile.token0, turn = 0; token < tile.token1; token += UP_TOKENS, ++turn) {
        up_store_u(shared_u, next);
        up_load_u(next, p, tile, token + UP_TOKENS);
        u32 fragments[4][4];
        copy_async_wait<1>();
        __syncthreads();
#pragma unroll
        for (int i = 0; i < 4; ++i) load_matrix_4_transposed(fragments[i], address_u + rank_chunk(16 * i + lane % 16, lane / 16));
        up_d_b(acc, stages + turn % 2 * STAGE, fragments);
        __syncthreads();
        start(turn + 2);
    }
    up_write_d_b(acc, p, tile);
}

// --- d_A ---------------------------------------------------------------------------------------------------------------

constexpr int DOWN_WARPS = 4, DOWN_COLS = 64;

// acc[feature j of 8] += d_u^T x over the 16 tokens.
__device__ inline void down_product(float (&acc)[8][4], const u32 (&a)[4], const uint4 (&x)[4]) {
#pragma unroll
    for (int j = 0; j < 8; ++j) {
        u32 pick = j % 2 == 0 ? 0x5410 : 0x7632;
        u32 first = __byte_perm(word(x[0], j / 2), word(x[1], j / 2), pick);
        u32 second = __byte_perm(word(x[2], j / 2), word(x[3], j / 2), pick);
        mma_bf16(acc[j], a, {first, second});
    }
}

// Adds the warps' sums in order and writes them.
__device__ inline void down_store(const float (*parts)[RANKS][DOWN_COLS + 4], float* target, int ranks, int features) {
    for (int i = threadIdx.x; i < RANKS * DOWN_COLS / 4; i += DOWN_WARPS * WARP) {
        int row = i / (DOWN_COLS / 4), four = i % (DOWN_COLS / 4) * 4;
        if (row >= ranks || (int)(blockIdx.z * DOWN_COLS) + four >= features) continue;
        float4 sum = make_float4(0.0f, 0.0f, 0.0f, 0.0f);
#pragma unroll
        for (int w = 0; w < DOWN_WARPS; ++w) {
            float4 part = *reinterpret_cast<const float4*>(&parts[w][row][four]);
            sum = make_float4(sum.x + part.x, sum.y + part.y, sum.z + part.z, sum.w + part.w);
        }
        *reinterpret_cast<float4*>(target + (u64)row * features + blockIdx.z * DOWN_COLS + four) = sum;
    }
}

// Blocks ((module, 16 ranks), slice, 64 features).
extern "C" __global__ void __launch_bounds__(DOWN_WARPS* WARP, 4)
    lora_grad_down_mma(const bf16* x, int x_pitch, const bf16* d_u, int d_u_pitch, float* part_a, int modules, int tokens, int slice,
                       int features, int rank, DROPOUT_PARAMETERS) {
    __shared__ __align__(16) float parts[DOWN_WARPS][RANKS][DOWN_COLS + 4];
    Dropout dropout = DROPOUT;
    int lane = threadIdx.x % WARP, warp = threadIdx.x / WARP, g = lane / 4, t = lane % 4;
    int groups = (rank + RANKS - 1) / RANKS, module = blockIdx.x / groups, rank0 = blockIdx.x % groups * RANKS;
    int column = blockIdx.z * DOWN_COLS + 8 * g, end = min(tokens, (int)(blockIdx.y + 1) * slice);
    bool inside = column < features;
    const bf16* inner = d_u + module * rank + rank0 + 2 * t;
    // Pairs of ranks of 8 tokens each, in the order that their transposes are wanted in: lane t gets tokens 4 t .. 4 t + 4.
    auto load = [&](uint4(&v)[4], u32(&a)[4], int first) {
#pragma unroll
        for (int i = 0; i < 4; ++i) {
            int token = first + 4 * t + i;
            v[i] = load_16(x + (u64)token * x_pitch + column, inside && token < end);
            token = first + 4 * (g / 2) + g % 2 + 2 * (i / 2);
            bool valid = token < end && rank0 + 2 * t + 8 * (i % 2) < rank;
            a[i] = valid ? *reinterpret_cast<const u32*>(inner + (u64)token * d_u_pitch + 8 * (i % 2)) : 0;
        }
    };
    uint4 next[4];
    u32 next_a[4];
    Token counters[4] = {};
    int first = blockIdx.y * slice + 16 * warp;
    load(next, next_a, first);
    bool drop = drops(dropout, scalars), wide = wide_tokens(dropout, tokens);
    u32 limit = drop ? scalars->drop_threshold << 16 : 0;
    uint2 key = drop ? dropout_key(scalars, dropout.layer, dropout.modules.at(module)) : make_uint2(0, 0);
    if (drop) tokens_of(counters, dropout, first + 4 * t, end, wide);
    float acc[8][4] = {};
    for (; first < end; first += 16 * DOWN_WARPS) {
        uint4 v[4], bits[4];
        u32 a[4];
#pragma unroll
        for (int i = 0; i < 4; ++i) {
            v[i] = next[i];
            a[i] = transpose_8x8(next_a[i]);
            bits[i] = make_uint4((u32)column / 8, counters[i].position, counters[i].low, counters[i].high);
        }
        load(next, next_a, first + 16 * DOWN_WARPS);
        if (drop) {
            tokens_of(counters, dropout, first + 16 * DOWN_WARPS + 4 * t, end, wide);
            philox4x32_many(bits, opaque(key));
#pragma unroll
            for (int i = 0; i < 4; ++i) v[i] = masked_8(v[i], bits[i], limit);
        }
        down_product(acc, a, v);
    }
    // The lane holds features 16 t .. 16 t + 16 of ranks g and g + 8.
#pragma unroll
    for (int i = 0; i < 8; ++i) {
        int c = i / 2 % 2, high = i / 4, j = i % 2 * 4;
        float4 four = make_float4(acc[j][2 * high + c], acc[j + 1][2 * high + c], acc[j + 2][2 * high + c], acc[j + 3][2 * high + c]);
        *reinterpret_cast<float4*>(&parts[warp][g + 8 * high][16 * t + 8 * c + j]) = four;
    }
    __syncthreads();
    u64 row = (u64)blockIdx.y * modules * rank + module * rank + rank0;
    down_store(parts, part_a + row * features, rank - rank0, features);
}
