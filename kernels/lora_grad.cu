// Gradients of the adapters of a group of modules on tensor cores (bfloat16); the plain kernels are in lora_plain.cu.
//
//   d_u_m = scale d_y_m B_m     d_B_m += scale d_y_m^T u_m     d_A_m += d_u_m^T drop_m(x)     d_x += sum of drop_m(d_u_m A_m)
//
// | tensor    | shape                       | type     |
// | x, d_x    | T x K                       | bfloat16 |
// | d_y       | T x N                       | bfloat16 |
// | A_m, B_m  | r x K, N_m x r              | bfloat16 |
// | u, d_u    | T x (n r)                   | float32  |
// | d_A, d_B  | as A, B                     | float32  |
// | part_u    | column tiles x T x r        | float32  |
// | left      | n x (r up to a multiple of 16) x T', d_u transposed, zeros where it has none | bfloat16 |
// | part_a    | slices x (n r) x K          | float32  |
// | part_b    | slices x (sum of N_m) x r   | float32  |
//
// Sums over tokens are cut into slices whose number depends on T alone; the slices' sums are added in order by `lora_sum`.
// up: a block takes a slice of tokens and up to 512 columns of d_y, 64 tokens x 256 columns at a time through shared memory:
//   d_B stays in registers along the slice, d_u leaves with every 64 tokens as a partial sum over the block's columns.
// down: a block takes a slice and 64 features. Lane (g, t) takes features 8 g .. 8 g + 8 of tokens 4 t .. 4 t + 4: one 16-byte
//   load and one block of random bits each; pairs of tokens are put together in registers. Warps take tokens in turn.
// input: a warp takes 128 tokens x 32 features. Lane (g, t) takes features 8 t .. 8 t + 8 of tokens g, g + 8, ...; A is put in
//   such an order that a lane's results are those features.
// Tolerance: 1e-2 of the largest magnitude; masks exact.
// H100, T = 8192, r = 16, four groups of a layer of Qwen2.5-0.5B, with dropout (without): up 107 us (107; 208 MB of d_y),
// down 98 us (78; 124 MB of x), input 168 us (132; 247 MB of d_x), sums 39 us (39). Few tokens a warp at K = 896: latency,
// not bandwidth, and random numbers on top where modules share an input.

#include "lora.cuh"
#include "mma.cuh"

// Two neighbouring ranks of an even number; `left`: how many there are from here on.
__device__ inline void store_ranks(float* p, float a, float b, int left) {
    if (left > 0) *reinterpret_cast<float2*>(p) = make_float2(a, b);
}

// --- d_u and d_B -------------------------------------------------------------------------------------------------------

constexpr int UP_THREADS = 128, UP_TOKENS = 64, UP_COLS = 256, UP_HALVES = 2;

struct Up {
    const bf16* d_y;
    int d_y_pitch;
    const float* u;
    int u_pitch;
    float *part_u, *part_b;
    int tokens, slice, rank, halves;
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
    bool wide;  // ranks in multiples of 8
};

__device__ inline int up_tiles(int columns, int halves) { return (columns + UP_COLS * halves - 1) / (UP_COLS * halves); }

__device__ inline UpTile up_tile(const Up& p, const Columns& columns) {
    UpTile tile{};
    int index = blockIdx.x;
#pragma unroll
    for (int m = 0; m + 1 < MODULES; ++m) {
        int tiles = up_tiles(columns.count.of[m], p.halves);
        if (tile.module == m && index >= tiles) {
            index -= tiles;
            tile.row += columns.count.of[m];
            ++tile.module;
        }
    }
    tile.first = index * UP_COLS * p.halves;
    tile.count = columns.count.at(tile.module);
    tile.start = columns.start.at(tile.module);
    tile.rows = columns.count.of[0] + columns.count.of[1] + columns.count.of[2];
    tile.rank0 = blockIdx.z * RANKS;
    tile.token0 = blockIdx.y * p.slice;
    tile.token1 = min(p.tokens, tile.token0 + p.slice);
    tile.wide = p.rank % 8 == 0;
    return tile;
}

// Where 8 ranks of a row of 16 lie, so that 8 rows are read without bank conflicts.
__device__ inline int rank_chunk(int row, int chunk) { return row * 32 + ((chunk ^ (row >> 2 & 1)) << 4); }

// Starts the copy of 64 tokens x 256 columns; 16-byte chunks of a row are exchanged by the row's number.
__device__ inline void up_load(u32 shared, const Up& p, const UpTile& tile, int token, int first) {
    int chunk = threadIdx.x % 32, column = first + 8 * chunk;
#pragma unroll
    for (int i = 0; i < UP_TOKENS * 32 / UP_THREADS; ++i) {
        int row = threadIdx.x / 32 + i * (UP_THREADS / 32);
        bool valid = token + row < tile.token1 && column < tile.count;
        const bf16* source = p.d_y + (valid ? (u64)(token + row) * p.d_y_pitch + tile.start + column : 0);
        copy_async_16(shared + row * 512 + ((chunk ^ (row & 7)) << 4), source, valid);
    }
}

// B of the block's columns to shared memory.
__device__ inline void up_load_b(u8* shared, const bf16* b, const Up& p, const UpTile& tile) {
    for (int i = threadIdx.x; i < UP_COLS * p.halves * 2; i += UP_THREADS) {
        int row = i / 2, column = tile.first + row, rank = tile.rank0 + 8 * (i % 2);
        const bf16* source = b + (u64)column * p.rank + rank;
        Pack<bf16> pack{};
        if (column < tile.count && tile.wide) {
            if (rank < p.rank) pack = load_pack(source);
        } else if (column < tile.count) {
#pragma unroll
            for (int k = 0; k < 8; ++k) {
                if (rank + k < p.rank) pack.v[k] = source[k];
            }
        }
        store_pack(reinterpret_cast<bf16*>(shared + rank_chunk(row, i % 2)), pack);
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

// d_u of the warp's 16 tokens += 256 columns.
__device__ inline void up_d_u(float (&acc)[2][4], u32 stage, u32 b, int half) {
    int lane = threadIdx.x % WARP, warp = threadIdx.x / WARP, row = 16 * warp + lane % 16;
#pragma unroll
    for (int step = 0; step < UP_COLS / 16; ++step) {
        u32 left[4], right[4];
        load_matrix_4(left, stage + row * 512 + (((2 * step + lane / 16) ^ (row & 7)) << 4));
        load_matrix_4_transposed(right, b + rank_chunk(half * UP_COLS + 16 * step + lane % 16, lane / 16));
        mma_bf16(acc[0], left, {right[0], right[1]});
        mma_bf16(acc[1], left, {right[2], right[3]});
    }
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

__device__ inline void up_write_d_u(const float (&acc)[2][4], const Up& p, const UpTile& tile, int token) {
    int lane = threadIdx.x % WARP, g = lane / 4, t = lane % 4;
    token += 16 * (threadIdx.x / WARP) + g;
#pragma unroll
    for (int n = 0; n < 2; ++n) {
#pragma unroll
        for (int low = 0; low < 2; ++low) {
            int rank = tile.rank0 + 8 * n + 2 * t;
            if (token + 8 * low >= tile.token1) continue;
            float* target = p.part_u + ((u64)blockIdx.x * p.tokens + token + 8 * low) * p.rank + rank;
            store_ranks(target, acc[n][2 * low], acc[n][2 * low + 1], p.rank - rank);
        }
    }
}

__device__ inline void up_write_d_b(const float (&acc)[4][2][4], const Up& p, const UpTile& tile, int half) {
    int lane = threadIdx.x % WARP, g = lane / 4, t = lane % 4;
    int column = tile.first + half * UP_COLS + 64 * (threadIdx.x / WARP) + g;
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
extern "C" __global__ void __launch_bounds__(UP_THREADS, 2)
    lora_grad_up_mma(const bf16* d_y, int d_y_pitch, const float* u, int u_pitch, EACH_PARAMETERS(const bf16*, b), float* part_u,
                     float* part_b, COLUMNS_PARAMETERS, int tokens, int slice, int rank, int halves) {
    extern __shared__ __align__(128) u8 shared[];
    constexpr int STAGE = UP_TOKENS * UP_COLS * 2;
    u8 *shared_u = shared + 2 * STAGE, *shared_b = shared_u + UP_TOKENS * 32;
    u32 stages = shared_address(shared), address_u = shared_address(shared_u), address_b = shared_address(shared_b);
    Up p{d_y, d_y_pitch, u, u_pitch, part_u, part_b, tokens, slice, rank, halves};
    UpTile tile = up_tile(p, COLUMNS);
    int lane = threadIdx.x % WARP, turn = 0;
    auto start = [&](int stage) {
        int token = tile.token0 + stage / halves * UP_TOKENS, first = tile.first + stage % halves * UP_COLS;
        if (token < tile.token1) up_load(stages + stage % 2 * STAGE, p, tile, token, first);
        copy_async_commit();
    };
    start(0);
    start(1);
    up_load_b(shared_b, EACH(const bf16*, b).at(tile.module), p, tile);
    float next[8], acc_b[UP_HALVES][4][2][4] = {};
    up_load_u(next, p, tile, tile.token0);
    for (int token = tile.token0; token < tile.token1; token += UP_TOKENS) {
        up_store_u(shared_u, next);
        up_load_u(next, p, tile, token + UP_TOKENS);
        u32 fragments[4][4];
        float acc_u[2][4] = {};
#pragma unroll
        for (int half = 0; half < UP_HALVES; ++half) {
            if (half >= halves) break;
            copy_async_wait<1>();
            __syncthreads();
            if (half == 0) {
#pragma unroll
                for (int i = 0; i < 4; ++i) {
                    load_matrix_4_transposed(fragments[i], address_u + rank_chunk(16 * i + lane % 16, lane / 16));
                }
            }
            up_d_u(acc_u, stages + turn % 2 * STAGE, address_b, half);
            up_d_b(acc_b[half], stages + turn % 2 * STAGE, fragments);
            __syncthreads();
            start(turn + 2);
            ++turn;
        }
        up_write_d_u(acc_u, p, tile, token);
    }
#pragma unroll
    for (int half = 0; half < UP_HALVES; ++half) {
        if (half < halves) up_write_d_b(acc_b[half], p, tile, half);
    }
}

// --- d_A ---------------------------------------------------------------------------------------------------------------

constexpr int DOWN_WARPS = 4, DOWN_COLS = 64;

__device__ inline u32 word(const uint4& v, int i) { return i == 0 ? v.x : (i == 1 ? v.y : (i == 2 ? v.z : v.w)); }

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
    lora_grad_down_mma(const bf16* x, int x_pitch, const bf16* left, float* part_a, int modules, int tokens, int slice, int features,
                       int rank, DROPOUT_PARAMETERS) {
    __shared__ __align__(16) float parts[DOWN_WARPS][RANKS][DOWN_COLS + 4];
    Dropout dropout = DROPOUT;
    int lane = threadIdx.x % WARP, warp = threadIdx.x / WARP, g = lane / 4, t = lane % 4;
    int groups = (rank + RANKS - 1) / RANKS, module = blockIdx.x / groups, rank0 = blockIdx.x % groups * RANKS;
    int column = blockIdx.z * DOWN_COLS + 8 * g, padded = gridDim.y * slice;
    int end = min(tokens, (int)(blockIdx.y + 1) * slice);
    bool inside = column < features;
    const bf16* upper = left + (u64)(blockIdx.x * RANKS + g) * padded;
    auto load = [&](uint4(&v)[4], uint2(&a)[2], int token) {
        bool any = token < end;
#pragma unroll
        for (int i = 0; i < 4; ++i) v[i] = load_16(x + (u64)(token + i) * x_pitch + column, inside && token + i < end);
        a[0] = any ? *reinterpret_cast<const uint2*>(upper + token) : make_uint2(0, 0);
        a[1] = any ? *reinterpret_cast<const uint2*>(upper + 8 * (u64)padded + token) : make_uint2(0, 0);
    };
    uint4 next[4];
    uint2 next_a[2];
    Token counters[4] = {};
    int token = blockIdx.y * slice + 16 * warp + 4 * t;
    load(next, next_a, token);
    bool drop = drops(dropout, scalars), wide = wide_tokens(dropout, tokens);
    u32 limit = drop ? scalars->drop_threshold << 16 : 0;
    uint2 key = drop ? dropout_key(scalars, dropout.layer, dropout.modules.at(module)) : make_uint2(0, 0);
    if (drop) tokens_of(counters, dropout, token, end, wide);
    float acc[8][4] = {};
    // All lanes of a warp leave together: the warp's first token decides.
    for (; token - 4 * t < end; token += 16 * DOWN_WARPS) {
        uint4 v[4], bits[4];
        u32 a[4] = {next_a[0].x, next_a[1].x, next_a[0].y, next_a[1].y};
#pragma unroll
        for (int i = 0; i < 4; ++i) {
            v[i] = next[i];
            bits[i] = make_uint4((u32)column / 8, counters[i].position, counters[i].low, counters[i].high);
        }
        load(next, next_a, token + 16 * DOWN_WARPS);
        if (drop) {
            tokens_of(counters, dropout, token + 16 * DOWN_WARPS, end, wide);
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

// --- sums of partial sums, in order ------------------------------------------------------------------------------------

// d_u = scale * sum over the module's column tiles of part_u, and the left factor of d_A. Blocks (64 tokens, (module, 16 ranks)).
extern "C" __global__ void __launch_bounds__(256)
    lora_sum_u(const float* part_u, float* d_u, int d_u_pitch, bf16* left, COLUMNS_PARAMETERS, int tokens, int rank, int halves,
               const StepScalars* scalars) {
    __shared__ __align__(16) bf16 turned[RANKS][64 + 8];
    Columns columns = COLUMNS;
    int groups = (rank + RANKS - 1) / RANKS, module = blockIdx.y / groups, rank0 = blockIdx.y % groups * RANKS;
    int first = (module > 0 ? up_tiles(columns.count.of[0], halves) : 0) + (module > 1 ? up_tiles(columns.count.of[1], halves) : 0);
    int tiles = up_tiles(columns.count.at(module), halves), padded = gridDim.x * 64;
    float scale = scalars->lora_scale, sums[4] = {};
#pragma unroll
    for (int i = 0; i < 4; ++i) {
        int token = blockIdx.x * 64 + threadIdx.x / RANKS + 16 * i, k = rank0 + threadIdx.x % RANKS;
        if (token >= tokens || k >= rank) continue;
        const float* source = part_u + ((u64)first * tokens + token) * rank + k;
#pragma unroll 4
        for (int tile = 0; tile < tiles; ++tile) sums[i] += source[(u64)tile * tokens * rank];
        sums[i] *= scale;
        d_u[(u64)token * d_u_pitch + module * rank + k] = sums[i];
    }
#pragma unroll
    for (int i = 0; i < 4; ++i) turned[threadIdx.x % RANKS][threadIdx.x / RANKS + 16 * i] = from_float<bf16>(sums[i]);
    __syncthreads();
    int row = threadIdx.x / 8, eight = threadIdx.x % 8 * 8;
    if (row >= RANKS) return;
    store_pack(left + (u64)(blockIdx.y * RANKS + row) * padded + blockIdx.x * 64 + eight, load_pack(&turned[row][eight]));
}

// d_A += kept scale * sum over slices of part_a; d_B += scale * sum over slices of part_b. Blocks (elements, A or B of a module).
extern "C" __global__ void __launch_bounds__(256)
    lora_sum(const float* part_a, const float* part_b, EACH_PARAMETERS(float*, d_a), EACH_PARAMETERS(float*, d_b),
             COLUMNS_PARAMETERS, int modules, int slices, int features, int rank, int dropout, const StepScalars* scalars) {
    Columns columns = COLUMNS;
    bool is_a = (int)blockIdx.y < modules;
    int module = blockIdx.y - (is_a ? 0 : modules);
    u64 count = (u64)rank * (is_a ? features : columns.count.at(module));
    u64 i = (u64)blockIdx.x * blockDim.x + threadIdx.x;
    if (i >= count) return;
    int before = (module > 0 ? columns.count.of[0] : 0) + (module > 1 ? columns.count.of[1] : 0);
    int rows = columns.count.of[0] + columns.count.of[1] + columns.count.of[2];
    u64 stride = (u64)rank * (is_a ? modules * features : rows);
    const float* source = (is_a ? part_a + (u64)module * count : part_b + (u64)before * rank) + i;
    float sum = 0.0f;
#pragma unroll 8
    for (int slice = 0; slice < slices; ++slice) sum += source[slice * stride];
    float factor = is_a ? (dropout != 0 ? keep_scale(scalars->drop_threshold) : 1.0f) : scalars->lora_scale;
    float* target = (is_a ? EACH(float*, d_a).at(module) : EACH(float*, d_b).at(module)) + i;
    *target += factor * sum;
}

// --- d_x ---------------------------------------------------------------------------------------------------------------

constexpr int INPUT_TOKENS = 128, INPUT_WARPS = 4;

struct Input {
    const float* d_u;
    int d_u_pitch;
    bf16* d_x;
    int d_x_pitch, tokens, features, rank;
};

// A of 16 ranks x 32 features as the right factor of four products; result columns 2 t, 2 t + 1 of product j are features
// 8 t + 2 j, + 1 of the chunk.
__device__ inline void input_right(u32 (&b)[8], const bf16* a, const Input& p, int rank0, int feature) {
    int g = threadIdx.x % WARP / 4;
    bool inside = feature < p.features;
    const bf16* row = a + (u64)(rank0 + g) * p.features + feature;
    uint4 low = load_16(row, inside && rank0 + g < p.rank);
    uint4 high = load_16(row + 8 * (u64)p.features, inside && rank0 + g + 8 < p.rank);
#pragma unroll
    for (int j = 0; j < 4; ++j) {
        b[2 * j] = transpose_8x8(word(low, j));
        b[2 * j + 1] = transpose_8x8(word(high, j));
    }
}

// d_u of tokens g, g + 8 as the left factor, `column` being the lane's first. What lies past the last token or rank is taken
// from the last one: those results are not stored, and those ranks of A are zero.
__device__ inline void input_left(u32 (&a)[4], const Input& p, int token, int column, int left) {
#pragma unroll
    for (int i = 0; i < 4; ++i) {
        int row = min(token + 8 * (i % 2), p.tokens - 1), skip = min(8 * (i / 2), left - 2);
        float2 v = *reinterpret_cast<const float2*>(p.d_u + (u64)row * p.d_u_pitch + column + skip);
        a[i] = pack_bf16(v.x, v.y);
    }
}

// Adds one module's share of tokens g, g + 8 (i = 0, 1) x 8 features of the lane, where the mask keeps it.
__device__ inline void input_add(float (&sum)[2][8], const float (&v)[4][4], bool drop, const uint4* bits, u32 limit) {
#pragma unroll
    for (int i = 0; i < 2; ++i) {
#pragma unroll
        for (int j = 0; j < 4; ++j) {
            u32 pair = drop ? word(bits[i], j) : 0xFFFFFFFFu;
            sum[i][2 * j] += pair << 16 >= limit ? v[j][2 * i] : 0.0f;
            sum[i][2 * j + 1] += pair >= limit ? v[j][2 * i + 1] : 0.0f;
        }
    }
}

__device__ inline uint4 input_result(uint4 d_x, const float (&sum)[8], float scale) {
    return make_uint4(pack_bf16(low_bf16(d_x.x) + scale * sum[0], high_bf16(d_x.x) + scale * sum[1]),
                      pack_bf16(low_bf16(d_x.y) + scale * sum[2], high_bf16(d_x.y) + scale * sum[3]),
                      pack_bf16(low_bf16(d_x.z) + scale * sum[4], high_bf16(d_x.z) + scale * sum[5]),
                      pack_bf16(low_bf16(d_x.w) + scale * sum[6], high_bf16(d_x.w) + scale * sum[7]));
}

// d_u A of 16 tokens x 32 features of one module.
__device__ inline void input_product(float (&v)[4][4], u32 (&left)[4], const u32 (&right)[8], const bf16* a, const Input& p,
                                     int module, int token, int feature) {
#pragma unroll
    for (int j = 0; j < 4; ++j) mma_bf16(v[j], left, {right[2 * j], right[2 * j + 1]});
    for (int rank0 = RANKS; rank0 < p.rank; rank0 += RANKS) {
        u32 more[8];
        int rank = rank0 + 2 * (threadIdx.x % 4);
        input_left(left, p, token, module * p.rank + rank, p.rank - rank);
        input_right(more, a, p, rank0, feature);
#pragma unroll
        for (int j = 0; j < 4; ++j) mma_bf16(v[j], left, {more[2 * j], more[2 * j + 1]});
    }
}

template <int N>
__device__ void input_mma(const Input& p, const Each<const bf16*>& a, const Dropout& dropout, const StepScalars* scalars) {
    int lane = threadIdx.x % WARP, g = lane / 4, t = lane % 4, chunks = (p.features + 31) / 32;
    int item = blockIdx.x * INPUT_WARPS + threadIdx.x / WARP;
    int feature = item % chunks * 32 + 8 * t, start = item / chunks * INPUT_TOKENS, end = min(p.tokens, start + INPUT_TOKENS);
    bool inside = feature < p.features;
    auto load = [&](uint4(&v)[2], int token) {
#pragma unroll
        for (int i = 0; i < 2; ++i) {
            v[i] = load_16(p.d_x + (u64)(token + 8 * i) * p.d_x_pitch + feature, inside && token + 8 * i < end);
        }
    };
    uint4 next[2], after[2];
    load(next, start + g);
    load(after, start + g + 16);
    bool drop = drops(dropout, scalars);
    u32 limit = drop ? scalars->drop_threshold << 16 : 0;
    float scale = kept(dropout, scalars);
    uint2 keys[N];
    u32 right[N][8];
#pragma unroll
    for (int m = 0; m < N; ++m) {
        if (drop) keys[m] = dropout_key(scalars, dropout.layer, dropout.modules.of[m]);
        input_right(right[m], a.of[m], p, 0, feature);
    }
    for (int token = start + g; token - g < end; token += 16) {
        uint4 d_x[2] = {next[0], next[1]};
        next[0] = after[0], next[1] = after[1];
        load(after, token + 32);
        u32 left[N][4];
#pragma unroll
        for (int m = 0; m < N; ++m) input_left(left[m], p, token, m * p.rank + 2 * t, p.rank - 2 * t);
        Token counters[2] = {};
        if (drop) counters[0] = token_of(dropout, token, end), counters[1] = token_of(dropout, token + 8, end);
        float sum[2][8] = {};
#pragma unroll
        for (int m = 0; m < N; ++m) {
            uint4 bits[2];
            float v[4][4] = {};
            input_product(v, left[m], right[m], a.of[m], p, m, token, feature);
            if (drop) draw(bits, counters, (u32)feature / 8, N > 1 ? opaque(keys[m]) : keys[m]);
            input_add(sum, v, drop, bits, limit);
        }
#pragma unroll
        for (int i = 0; i < 2; ++i) {
            if (!inside || token + 8 * i >= end) continue;
            uint4 result = input_result(d_x[i], sum[i], scale);
            *reinterpret_cast<uint4*>(p.d_x + (u64)(token + 8 * i) * p.d_x_pitch + feature) = result;
        }
    }
}

#define DEFINE_INPUT(N)                                                                                                     \
    extern "C" __global__ void __launch_bounds__(INPUT_WARPS* WARP, N > 1 ? 3 : 4) lora_grad_input_mma_##N(                                        \
        const float* d_u, int d_u_pitch, EACH_PARAMETERS(const bf16*, a), bf16* d_x, int d_x_pitch, int tokens,           \
        int features, int rank, DROPOUT_PARAMETERS) {                                                                      \
        input_mma<N>(Input{d_u, d_u_pitch, d_x, d_x_pitch, tokens, features, rank}, EACH(const bf16*, a), DROPOUT, scalars); \
    }
DEFINE_INPUT(1)
DEFINE_INPUT(2)
DEFINE_INPUT(3)
