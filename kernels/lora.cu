// Low-rank adapters of a group of modules that share an input (E. J. Hu et al., "LoRA", 2021): the way forward.
//
//   down: u_m = drop_m(x) A_m^T      up: y_m += scale u_m B_m^T      pack: tail_m = scale B_m
//
// | tensor    | shape                         | type                        |
// | x, y      | T x K, T x N                  | float32 or bfloat16         |
// | A_m, B_m  | r x K, N_m x r                | as x (pack: either)         |
// | u         | T x (n r), modules in a row   | float32                     |
// | augmented | T x P, the columns behind x   | bfloat16(u), then zeros     |
// | tail      | N x P, behind a weight matrix | bfloat16, block-diagonal    |
//
// A product [x | u] [W | tail]^T then holds the adapters. A kept element of drop_m(x) is multiplied by
// 65536 / (65536 - threshold); sums here run over masked x, and are multiplied at their end.
//
// Tensor cores (bfloat16): a warp takes 32 tokens, or 16 where they are few, and every eighth (or sixth) chunk of 32 features. The
// order of features inside a sum is free, so lane (g, t) takes features 8 t .. 8 t + 8 of a chunk for tokens g, g + 8, g + 16,
// g + 24: one 16-byte load and one block of random bits for each, straight into fragments. The warps' partial sums are added in
// order, which does not depend on the number of tokens.
// Plain: one block a token and 64 ranks; lanes take features lane, lane + 32, ..., then a fixed tree.
// Tolerance: 1e-5 (float32), 1e-2 (bfloat16) of the largest magnitude; masks exact.
// H100, T = 8192, r = 16, four groups of a layer of Qwen2.5-0.5B: down 67 us (1,850 GB/s), with dropout 83 us (1,490);
// plain in float32 with dropout: down 201, 70, 136 and 323 us (155, 425, 225 and 497 GB/s), up 346, 252, 2679 and 252 us (223, 236,
// 239 and 236).

#include "lora.cuh"
#include "mma.cuh"

// Warps of a block by its modules: more modules need more registers.
constexpr int down_warps(int modules) { return modules == 1 ? 8 : 6; }
// Warps of the plain kernel.
constexpr int WARPS = 8;

struct DownArgs {
    const bf16* x;
    int x_pitch;
    float* u;
    int u_pitch;
    bf16* augmented;  // null: not wanted
    int augmented_pitch, augmented_cols;
    int tokens, features, rank;
};

// acc[module][16 tokens][ranks 0-7, 8-15] += this chunk.
template <int N, int HALVES>
__device__ inline void down_chunk(float (&acc)[N][HALVES][2][4], const uint4 (&x)[2 * HALVES], const Each<const bf16*>& a,
                                  const DownArgs& p, int rank, int feature, bool drop, u32 limit,
                                  const Token (&tokens)[2 * HALVES], const uint2 (&keys)[N]) {
    // All loads before the first branch: they overlap.
    uint4 weights[N][2];
#pragma unroll
    for (int m = 0; m < N; ++m) {
        const bf16* row = a.of[m] + (u64)rank * p.features + feature;
        bool inside = feature < p.features;
        weights[m][0] = load_16(row, inside && rank < p.rank);
        weights[m][1] = load_16(row + 8 * (u64)p.features, inside && rank + 8 < p.rank);
    }
#pragma unroll
    for (int m = 0; m < N; ++m) {
        const uint4 &low = weights[m][0], &high = weights[m][1];
        uint4 masked[2 * HALVES];
        if (drop) {
            draw(masked, tokens, (u32)feature / 8, N > 1 ? opaque(keys[m]) : keys[m]);
#pragma unroll
            for (int i = 0; i < 2 * HALVES; ++i) masked[i] = masked_8(x[i], masked[i], limit);
        } else {
#pragma unroll
            for (int i = 0; i < 2 * HALVES; ++i) masked[i] = x[i];
        }
#pragma unroll
        for (int half = 0; half < HALVES; ++half) {
            const uint4 &upper = masked[2 * half], &lower = masked[2 * half + 1];
            mma_bf16(acc[m][half][0], {upper.x, lower.x, upper.y, lower.y}, {low.x, low.y});
            mma_bf16(acc[m][half][1], {upper.x, lower.x, upper.y, lower.y}, {high.x, high.y});
            mma_bf16(acc[m][half][0], {upper.z, lower.z, upper.w, lower.w}, {low.z, low.w});
            mma_bf16(acc[m][half][1], {upper.z, lower.z, upper.w, lower.w}, {high.z, high.w});
        }
    }
}

// Adds the warps' sums of one module in order and writes them.
template <int WARPS, int TOKENS>
__device__ inline void down_store(const float (*parts)[TOKENS][RANKS + 8], const DownArgs& p, int module, int rank0, int token0,
                                  float scale) {
    for (int i = threadIdx.x; i < TOKENS * RANKS; i += WARPS * WARP) {
        int token = token0 + i / RANKS, rank = rank0 + i % RANKS;
        if (token >= p.tokens || rank >= p.rank) continue;
        float sum = 0.0f;
#pragma unroll
        for (int w = 0; w < WARPS; ++w) sum += parts[w][i / RANKS][i % RANKS];
        sum *= scale;
        int col = module * p.rank + rank;
        p.u[(u64)token * p.u_pitch + col] = sum;
        if (p.augmented != nullptr) p.augmented[(u64)token * p.augmented_pitch + col] = from_float<bf16>(sum);
    }
}

template <int N, int HALVES>
__device__ void down_mma(const DownArgs& p, const Each<const bf16*>& a, const Dropout& dropout, const StepScalars* scalars) {
    constexpr int WARPS = down_warps(N), TOKENS = 16 * HALVES;
    __shared__ float parts[WARPS][TOKENS][RANKS + 8];
    int lane = threadIdx.x % WARP, warp = threadIdx.x / WARP, g = lane / 4, t = lane % 4;
    int token0 = blockIdx.x * TOKENS, rank0 = blockIdx.y * RANKS;
    const bf16* rows = p.x + (u64)(token0 + g) * p.x_pitch + 8 * t;
    auto load = [&](uint4(&x)[2 * HALVES], int feature) {
#pragma unroll
        for (int i = 0; i < 2 * HALVES; ++i) {
            bool valid = feature + 8 * t < p.features && token0 + g + 8 * i < p.tokens;
            x[i] = load_16(rows + 8 * i * (u64)p.x_pitch + feature, valid);
        }
    };
    uint4 next[2 * HALVES];
    load(next, warp * 32);
    bool drop = drops(dropout, scalars);
    u32 limit = drop ? scalars->drop_threshold << 16 : 0;
    Token tokens[2 * HALVES];
    uint2 keys[N];
    if (drop) {
#pragma unroll
        for (int i = 0; i < 2 * HALVES; ++i) tokens[i] = token_of(dropout, token0 + g + 8 * i, p.tokens);
#pragma unroll
        for (int m = 0; m < N; ++m) keys[m] = dropout_key(scalars, dropout.layer, dropout.modules.of[m]);
    }
    float acc[N][HALVES][2][4] = {};
    for (int feature = warp * 32; feature < p.features; feature += WARPS * 32) {
        uint4 x[2 * HALVES];
#pragma unroll
        for (int i = 0; i < 2 * HALVES; ++i) x[i] = next[i];
        load(next, feature + WARPS * 32);
        down_chunk<N, HALVES>(acc, x, a, p, rank0 + g, feature + 8 * t, drop, limit, tokens, keys);
    }
    float scale = kept(dropout, scalars);
#pragma unroll
    for (int m = 0; m < N; ++m) {
        if (m > 0) __syncthreads();
#pragma unroll
        for (int i = 0; i < 8 * HALVES; ++i) {
            int half = i / 8, tile = i / 4 % 2, c = i % 4;
            parts[warp][16 * half + g + 8 * (c / 2)][8 * tile + 2 * t + c % 2] = acc[m][half][tile][c];
        }
        __syncthreads();
        down_store<WARPS, TOKENS>(parts, p, m, rank0, token0, scale);
    }
    // The columns that no module owns.
    int free = p.augmented_cols - N * p.rank;
    if (p.augmented == nullptr || blockIdx.y > 0) return;
    for (int i = threadIdx.x; i < TOKENS * free; i += WARPS * WARP) {
        int token = token0 + i / free;
        if (token >= p.tokens) break;
        p.augmented[(u64)token * p.augmented_pitch + N * p.rank + i % free] = from_float<bf16>(0.0f);
    }
}

#define DEFINE_DOWN(N, SUFFIX, HALVES)                                                                                      \
    extern "C" __global__ void __launch_bounds__(down_warps(N) * WARP, 2) lora_down_mma_##N##SUFFIX(                      \
        const bf16* x, int x_pitch, EACH_PARAMETERS(const bf16*, a), float* u, int u_pitch, bf16* augmented,              \
        int augmented_pitch, int augmented_cols, int tokens, int features, int rank, DROPOUT_PARAMETERS) {                 \
        DownArgs p{x, x_pitch, u, u_pitch, augmented, augmented_pitch, augmented_cols, tokens, features, rank};            \
        down_mma<N, HALVES>(p, EACH(const bf16*, a), DROPOUT, scalars);                                                    \
    }
DEFINE_DOWN(1, , 2)
DEFINE_DOWN(2, , 2)
DEFINE_DOWN(3, , 2)
DEFINE_DOWN(1, _few, 1)
DEFINE_DOWN(2, _few, 1)
DEFINE_DOWN(3, _few, 1)

// One block a token, module and 64 ranks; the masked features go through shared memory, warps take ranks.
template <typename T>
__device__ void down_plain(const T* x, int x_pitch, const Each<const T*>& a, float* u, int u_pitch, T* augmented,
                           int augmented_pitch, int augmented_cols, int modules, int features, int rank, const Dropout& dropout,
                           const StepScalars* scalars) {
    constexpr int CHUNK = 1024, SLOTS = PLAIN_RANKS / WARPS;
    __shared__ float part[CHUNK];
    int token = blockIdx.x, module = blockIdx.y, lane = threadIdx.x % WARP, warp = threadIdx.x / WARP;
    int first = blockIdx.z * PLAIN_RANKS + warp;
    bool drop = drops(dropout, scalars);
    Token counter = drop ? token_of(dropout, token, token + 1) : Token{0, 0, 0};
    uint2 key = drop ? dropout_key(scalars, dropout.layer, dropout.modules.at(module)) : make_uint2(0, 0);
    const T* weights = a.at(module);
    float acc[SLOTS] = {};
    for (int start = 0; start < features; start += CHUNK) {
        int count = min(CHUNK, features - start);
        __syncthreads();
        for (int i = threadIdx.x; i < count; i += blockDim.x) {
            float v = to_float(x[(u64)token * x_pitch + start + i]);
            part[i] = drop && !keeps(key, scalars->drop_threshold, counter, start + i) ? 0.0f : v;
        }
        __syncthreads();
#pragma unroll
        for (int slot = 0; slot < SLOTS; ++slot) {
            int k = first + WARPS * slot;
            if (k >= rank) break;
            for (int i = lane; i < count; i += WARP) acc[slot] += part[i] * to_float(weights[(u64)k * features + start + i]);
        }
    }
    float scale = kept(dropout, scalars);
#pragma unroll
    for (int slot = 0; slot < SLOTS; ++slot) {
        int k = first + WARPS * slot;
        if (k >= rank) break;
        float sum = warp_sum(acc[slot]) * scale;
        if (lane > 0) continue;
        u[(u64)token * u_pitch + module * rank + k] = sum;
        if (augmented != nullptr) augmented[(u64)token * augmented_pitch + module * rank + k] = from_float<T>(sum);
    }
    if (augmented == nullptr || module > 0 || blockIdx.z > 0) return;
    for (int c = modules * rank + threadIdx.x; c < augmented_cols; c += blockDim.x) {
        augmented[(u64)token * augmented_pitch + c] = from_float<T>(0.0f);
    }
}

// One thread an element of y; blocks (token, 256 columns of a module, module).
template <typename T>
__device__ void up_plain(const float* u, int u_pitch, const Each<const T*>& b, T* y, int y_pitch, const Columns& columns, int rank,
                         const StepScalars* scalars) {
    int module = blockIdx.z, c = blockIdx.y * blockDim.x + threadIdx.x;
    if (c >= columns.count.at(module)) return;
    u += (u64)blockIdx.x * u_pitch + module * rank;
    const T* row = b.at(module) + (u64)c * rank;
    float sum = 0.0f;
    for (int k = 0; k < rank; ++k) sum += u[k] * to_float(row[k]);
    T* target = y + (u64)blockIdx.x * y_pitch + columns.start.at(module) + c;
    *target = from_float<T>(to_float(*target) + scalars->lora_scale * sum);
}

// One thread an element of the tail; blocks of whole rows.
template <typename T>
__device__ void pack(const Each<const T*>& b, bf16* tail, int pitch, int rows, int cols, const Columns& columns, int rank,
                     const StepScalars* scalars) {
    u64 i = (u64)blockIdx.x * blockDim.x + threadIdx.x;
    int row = (int)(i / cols), col = (int)(i % cols);
    if (row >= rows) return;
    int module = col / rank;
    float value = 0.0f;
    if (module < MODULES && b.at(module) != nullptr) {
        int own = row - columns.start.at(module);
        bool inside = own >= 0 && own < columns.count.at(module);
        if (inside) value = scalars->lora_scale * to_float(b.at(module)[(u64)own * rank + col % rank]);
    }
    tail[(u64)row * pitch + col] = from_float<bf16>(value);
}

// What `pack` writes behind one weight; the same struct as in src/cuda/ops/lora/pack.rs.
struct PackEntry {
    const bf16* b[MODULES];
    bf16* tail;
    int pitch, rows, cols, rank;
    int start[MODULES], count[MODULES];
};

// Behind all weights at once: one thread 8 columns of a row. Blocks (256 groups of 8, entry).
extern "C" __global__ void __launch_bounds__(256) lora_pack_all(const PackEntry* entries, const StepScalars* scalars) {
    const PackEntry& e = entries[blockIdx.y];
    int groups = e.cols / 8, i = blockIdx.x * blockDim.x + threadIdx.x, row = i / groups, first = i % groups * 8;
    if (row >= e.rows) return;
    Pack<bf16> out{};
    for (int k = 0; k < 8; ++k) {
        int module = (first + k) / e.rank;
        if (module >= MODULES || e.b[module] == nullptr) break;
        int own = row - e.start[module];
        if (own < 0 || own >= e.count[module]) continue;
        out.v[k] = from_float<bf16>(scalars->lora_scale * to_float(e.b[module][(u64)own * e.rank + (first + k) % e.rank]));
    }
    store_pack(e.tail + (u64)row * e.pitch + first, out);
}

#define DEFINE(T, suffix)                                                                                                  \
    extern "C" __global__ void __launch_bounds__(256) lora_down_##suffix(                                                \
        const T* x, int x_pitch, EACH_PARAMETERS(const T*, a), float* u, int u_pitch, T* augmented, int augmented_pitch,  \
        int augmented_cols, int modules, int features, int rank, DROPOUT_PARAMETERS) {                                     \
        down_plain<T>(x, x_pitch, EACH(const T*, a), u, u_pitch, augmented, augmented_pitch, augmented_cols, modules,     \
                      features, rank, DROPOUT, scalars);                                                                   \
    }                                                                                                                      \
    extern "C" __global__ void __launch_bounds__(256) lora_up_##suffix(                                                  \
        const float* u, int u_pitch, EACH_PARAMETERS(const T*, b), T* y, int y_pitch, COLUMNS_PARAMETERS, int rank,       \
        const StepScalars* scalars) {                                                                                      \
        up_plain<T>(u, u_pitch, EACH(const T*, b), y, y_pitch, COLUMNS, rank, scalars);                                    \
    }                                                                                                                      \
    extern "C" __global__ void __launch_bounds__(256) lora_pack_##suffix(EACH_PARAMETERS(const T*, b), bf16* tail,       \
                                                                         int pitch, int rows, int cols,                   \
                                                                         COLUMNS_PARAMETERS, int rank,                    \
                                                                         const StepScalars* scalars) {                    \
        pack<T>(EACH(const T*, b), tail, pitch, rows, cols, COLUMNS, rank, scalars);                                       \
    }
DEFINE(float, f32)
DEFINE(bf16, bf16)
