// The way forward of adapters inside of the operation that makes their input, on tensor cores (bfloat16).
//
//   swiglu: h = silu(gate) up as in elementwise.cu, u = drop(h) A^T
//   norm: n = x rstd weight as in rms_norm.cu, u_m = drop_m(n) A_m^T
//
// | tensor    | shape                     | type                                    |
// | gate_up   | T x 2K                    | bfloat16                                |
// | x, h, n   | T x K                     | bfloat16                                |
// | weight    | K                         | bfloat16                                |
// | rstd      | T x 1                     | float32                                 |
// | A_m       | r x K                     | bfloat16                                |
// | u         | T x (n r)                 | float32                                 |
// | augmented | T x P, behind h or n      | bfloat16(u), then zeros                 |
//
// A block takes 16 tokens, a warp every eighth (or sixteenth) chunk of 32 features. Lane (g, t) takes features 8 t .. 8 t + 8 of
// a chunk for tokens g and g + 8, as in lora.cu. Sums over a row are those of its parts, added in order. swiglu: four stages of copies to
// shared memory, two blocks on a multiprocessor. norm: up to 1,024 features, which stay in registers. r up to 16.
// Tolerance: 1e-2 of the largest magnitude; masks exact.
// r = 16, dropout, a layer of Qwen2.5-0.5B, H200, T = 8192: swiglu 77 us (3,140 GB/s), norm of three modules 30 us, of two 24 us;
// T = 2048: 23 us, 10 us, 9 us.

#include "lora.cuh"
#include "mma.cuh"

constexpr int TOKENS = 16;
extern __shared__ __align__(16) u8 shared[];

struct Target {
    float* u;
    int u_pitch;
    bf16* augmented;
    int augmented_pitch, augmented_cols;
    int tokens, features, rank;
};

// acc[ranks 0-7, 8-15] += 16 tokens x 32 features of one module.
__device__ inline void add_chunk(float (&acc)[2][4], const uint4& upper, const uint4& lower, const uint4& low, const uint4& high) {
    mma_bf16(acc[0], {upper.x, lower.x, upper.y, lower.y}, {low.x, low.y});
    mma_bf16(acc[1], {upper.x, lower.x, upper.y, lower.y}, {high.x, high.y});
    mma_bf16(acc[0], {upper.z, lower.z, upper.w, lower.w}, {low.z, low.w});
    mma_bf16(acc[1], {upper.z, lower.z, upper.w, lower.w}, {high.z, high.w});
}

// Sums of 16 tokens lie in parts x modules of these in shared memory; their rows are read without bank conflicts.
constexpr int SUM_PITCH = RANKS + 8, SUM_TILE = TOKENS * SUM_PITCH;

template <int N>
__device__ inline void put_sums(float* parts, int part, const float (&acc)[N][2][4]) {
    int lane = threadIdx.x % WARP, g = lane / 4, t = lane % 4;
#pragma unroll
    for (int m = 0; m < N; ++m) {
#pragma unroll
        for (int i = 0; i < 4; ++i) {
            float* to = parts + (part * N + m) * SUM_TILE + (g + 8 * (i % 2)) * SUM_PITCH + i / 2 * 8 + 2 * t;
            *reinterpret_cast<float2*>(to) = make_float2(acc[m][i / 2][i % 2 * 2], acc[m][i / 2][i % 2 * 2 + 1]);
        }
    }
}

// Adds the parts in order and writes them, and zeros into the columns that no module owns.
template <int N, int PARTS>
__device__ void store_u(const float* parts, const Target& p, float scale) {
    int token0 = blockIdx.x * TOKENS;
    __syncthreads();
    for (int i = threadIdx.x; i < N * TOKENS * RANKS; i += blockDim.x) {
        int m = i / (TOKENS * RANKS), token = i / RANKS % TOKENS, rank = i % RANKS;
        if (token0 + token >= p.tokens || rank >= p.rank) continue;
        float sum = 0.0f;
#pragma unroll
        for (int part = 0; part < PARTS; ++part) sum += parts[(part * N + m) * SUM_TILE + token * SUM_PITCH + rank];
        sum *= scale;
        int col = m * p.rank + rank;
        p.u[(u64)(token0 + token) * p.u_pitch + col] = sum;
        p.augmented[(u64)(token0 + token) * p.augmented_pitch + col] = from_float<bf16>(sum);
    }
    int free = p.augmented_cols - N * p.rank;
    for (int i = threadIdx.x; i < TOKENS * free; i += blockDim.x) {
        int token = token0 + i / free;
        if (token >= p.tokens) break;
        p.augmented[(u64)token * p.augmented_pitch + N * p.rank + i % free] = from_float<bf16>(0.0f);
    }
}

// --- SwiGLU ------------------------------------------------------------------------------------------------------------

constexpr int SWIGLU_WARPS = 8, STAGES = 4;
// 16-byte places of a thread in a stage: gate and up of two tokens, two rows of A.
constexpr int PLACES = 6, SWIGLU_STAGE = PLACES * SWIGLU_WARPS * WARP * 16;

__device__ inline uint4 swiglu_8(const uint4& gate, const uint4& up) {
    u32 out[4];
#pragma unroll
    for (int j = 0; j < 4; ++j) {
        float value[2];
#pragma unroll
        for (int k = 0; k < 2; ++k) {
            float g = number(gate, 2 * j + k);
            value[k] = g * sigmoid_fast(g) * number(up, 2 * j + k);
        }
        out[j] = pack_bf16(value[0], value[1]);
    }
    return make_uint4(out[0], out[1], out[2], out[3]);
}

// Each thread copies what it will use itself, four stages of 32 features a warp.
extern "C" __global__ void __launch_bounds__(SWIGLU_WARPS* WARP, 2)
    lora_down_swiglu_mma(const bf16* gate_up, int gate_up_pitch, bf16* h, int h_pitch, const bf16* a, float* u, int u_pitch,
                         bf16* augmented, int augmented_pitch, int augmented_cols, int tokens, int features, int rank,
                         DROPOUT_PARAMETERS) {
    constexpr int STRIDE = SWIGLU_WARPS * 32;
    Target p{u, u_pitch, augmented, augmented_pitch, augmented_cols, tokens, features, rank};
    Dropout dropout = DROPOUT;
    int lane = threadIdx.x % WARP, warp = threadIdx.x / WARP, g = lane / 4, t = lane % 4, token = blockIdx.x * TOKENS + g;
    int first = warp * 32 + 8 * t;
    u32 own = shared_address(shared) + 16 * threadIdx.x;
    auto place = [&](int turn, int which) { return own + turn % STAGES * SWIGLU_STAGE + which * SWIGLU_WARPS * WARP * 16; };
    auto begin = [&](int turn) {
        int feature = first + turn * STRIDE;
#pragma unroll
        for (int i = 0; i < 2; ++i) {
            bool valid = feature < features && token + 8 * i < tokens, has = feature < features && g + 8 * i < rank;
            const bf16* gate = gate_up + (valid ? (u64)(token + 8 * i) * gate_up_pitch + feature : 0);
            copy_async_16(place(turn, i), gate, valid);
            copy_async_16(place(turn, 2 + i), gate + (valid ? features : 0), valid);
            copy_async_16(place(turn, 4 + i), a + (has ? (u64)(g + 8 * i) * features + feature : 0), has);
        }
        copy_async_commit();
    };
#pragma unroll
    for (int turn = 0; turn < STAGES - 1; ++turn) begin(turn);
    bool drop = drops(dropout, scalars);
    u32 limit = drop ? scalars->drop_threshold << 16 : 0;
    uint2 key = drop ? dropout_key(scalars, dropout.layer, dropout.modules.of[0]) : make_uint2(0, 0);
    Token counters[2] = {};
    if (drop) counters[0] = token_of(dropout, token, tokens), counters[1] = token_of(dropout, token + 8, tokens);
    float acc[1][2][4] = {};
    // All lanes of a warp leave together: its first feature decides.
    for (int turn = 0, feature = first; feature - 8 * t < features; ++turn, feature += STRIDE) {
        begin(turn + STAGES - 1);
        copy_async_wait<STAGES - 1>();
        uint4 out[2];
#pragma unroll
        for (int i = 0; i < 2; ++i) {
            out[i] = swiglu_8(load_shared_16(place(turn, i)), load_shared_16(place(turn, 2 + i)));
            if (feature < features && token + 8 * i < tokens) {
                *reinterpret_cast<uint4*>(h + (u64)(token + 8 * i) * h_pitch + feature) = out[i];
            }
        }
        if (drop) {
            uint4 bits[2];
            draw(bits, counters, (u32)feature / 8, opaque(key));
            out[0] = masked_8(out[0], bits[0], limit), out[1] = masked_8(out[1], bits[1], limit);
        }
        add_chunk(acc[0], out[0], out[1], load_shared_16(place(turn, 4)), load_shared_16(place(turn, 5)));
    }
    copy_async_wait<0>();
    __syncthreads();
    put_sums(reinterpret_cast<float*>(shared), warp, acc);
    store_u<1, SWIGLU_WARPS>(reinterpret_cast<float*>(shared), p, kept(dropout, scalars));
}

// --- norm --------------------------------------------------------------------------------------------------------------

// Sums over a row are those of 16 parts in order, each of two chunks of 32 features, whatever the number of warps.
constexpr int NORM_PARTS = 16;

// Sum of squares over a token's row, for tokens g and g + 8 (i = 0, 1). Chunks c and c + 1 (c even) are a part's.
template <int WARPS, int CHUNKS>
__device__ inline void row_squares(float (&total)[2], const uint4 (&x)[CHUNKS][2]) {
    __shared__ float parts[NORM_PARTS][TOKENS];
    int lane = threadIdx.x % WARP, warp = threadIdx.x / WARP, g = lane / 4;
#pragma unroll
    for (int c = 0; c < CHUNKS; c += 2) {
#pragma unroll
        for (int i = 0; i < 2; ++i) {
            float sum = 0.0f;
#pragma unroll
            for (int k = 0; k < 16; ++k) sum += number(x[c + k / 8][i], k % 8) * number(x[c + k / 8][i], k % 8);
#pragma unroll
            for (int delta = 1; delta < 4; delta *= 2) sum += __shfl_xor_sync(0xFFFFFFFFu, sum, delta);
            if (lane % 4 == 0) parts[warp + WARPS * (c / 2)][g + 8 * i] = sum;
        }
    }
    __syncthreads();
#pragma unroll
    for (int i = 0; i < 2; ++i) {
        total[i] = 0.0f;
#pragma unroll
        for (int part = 0; part < NORM_PARTS; ++part) total[i] += parts[part][g + 8 * i];
    }
}

// x becomes x r weight, rounded.
__device__ inline uint4 norm_8(const uint4& x, const uint4& w, float r) {
    u32 out[4];
#pragma unroll
    for (int j = 0; j < 4; ++j) {
        out[j] = pack_bf16(number(x, 2 * j) * r * number(w, 2 * j), number(x, 2 * j + 1) * r * number(w, 2 * j + 1));
    }
    return make_uint4(out[0], out[1], out[2], out[3]);
}

// 8 features of ranks g and g + 8 of A.
struct Rows {
    uint4 low, high;
};
__device__ inline Rows rows_of(const bf16* a, const Target& p, int feature) {
    int g = threadIdx.x % WARP / 4;
    bool inside = feature < p.features;
    const bf16* row = a + (u64)g * p.features + feature;
    return Rows{load_16(row, inside && g < p.rank), load_16(row + 8 * (u64)p.features, inside && g + 8 < p.rank)};
}

// A is read one module ahead.
template <int N, int WARPS>
__device__ void norm_down(const bf16* x, int x_pitch, const bf16* weight, bf16* n, int n_pitch, float* rstd, float eps,
                          const Each<const bf16*>& a, const Target& p, const Dropout& dropout, const StepScalars* scalars) {
    constexpr int CHUNKS = 32 / WARPS;
    int lane = threadIdx.x % WARP, warp = threadIdx.x / WARP, g = lane / 4, t = lane % 4, token = blockIdx.x * TOKENS + g;
    int first = warp * 32 + 8 * t;
    auto feature_of = [&](int c) { return first + 32 * (WARPS * (c / 2) + NORM_PARTS * (c % 2)); };
    float* parts = reinterpret_cast<float*>(shared);
    uint4 v[CHUNKS][2];
#pragma unroll
    for (int c = 0; c < CHUNKS; ++c) {
#pragma unroll
        for (int i = 0; i < 2; ++i) {
            int feature = feature_of(c);
            v[c][i] = load_16(x + (u64)(token + 8 * i) * x_pitch + feature, feature < p.features && token + 8 * i < p.tokens);
        }
    }
    Rows next = rows_of(a.of[0], p, first);
    bool drop = drops(dropout, scalars);
    u32 limit = drop ? scalars->drop_threshold << 16 : 0;
    __shared__ uint2 keys[N];
    Token counters[2] = {};
    if (drop) counters[0] = token_of(dropout, token, p.tokens), counters[1] = token_of(dropout, token + 8, p.tokens);
    if (drop && threadIdx.x < N) keys[threadIdx.x] = dropout_key(scalars, dropout.layer, dropout.modules.at(threadIdx.x));
    float squares[2], r[2];
    row_squares<WARPS>(squares, v);
#pragma unroll
    for (int i = 0; i < 2; ++i) {
        r[i] = 1.0f / sqrtf(squares[i] / (float)p.features + eps);
        if (warp == 0 && t == 0 && token + 8 * i < p.tokens) rstd[token + 8 * i] = r[i];
    }
    float acc[N][2][4] = {};
#pragma unroll
    for (int c = 0; c < CHUNKS; ++c) {
        int feature = feature_of(c);
        if (c > 0 && c % 2 == 0) {
            put_sums(parts, warp + WARPS * (c / 2 - 1), acc);
#pragma unroll
            for (int i = 0; i < N * 8; ++i) acc[i / 8][i / 4 % 2][i % 4] = 0.0f;
        }
        if (feature - 8 * t >= p.features) {
            next = rows_of(a.of[0], p, feature_of(c + 1));
            continue;
        }
        uint4 w = load_16(weight + feature, feature < p.features);
#pragma unroll
        for (int i = 0; i < 2; ++i) {
            v[c][i] = norm_8(v[c][i], w, r[i]);
            if (feature < p.features && token + 8 * i < p.tokens) {
                *reinterpret_cast<uint4*>(n + (u64)(token + 8 * i) * n_pitch + feature) = v[c][i];
            }
        }
#pragma unroll
        for (int m = 0; m < N; ++m) {
            Rows now = next;
            next = rows_of(a.of[(m + 1) % N], p, m + 1 < N ? feature : feature_of(c + 1));
            uint4 masked[2] = {v[c][0], v[c][1]};
            if (drop) {
                uint4 bits[2];
                draw(bits, counters, (u32)feature / 8, keys[m]);
                masked[0] = masked_8(masked[0], bits[0], limit), masked[1] = masked_8(masked[1], bits[1], limit);
            }
            add_chunk(acc[m], masked[0], masked[1], now.low, now.high);
        }
    }
    put_sums(parts, warp + WARPS * (CHUNKS / 2 - 1), acc);
    store_u<N, NORM_PARTS>(parts, p, kept(dropout, scalars));
}

// Blocks of 8 warps, two at once; of 16 where there are too few of them.
#define DEFINE_NORM(N, WARPS, suffix)                                                                                      \
    extern "C" __global__ void __launch_bounds__(WARPS* WARP, 16 / WARPS) lora_down_norm_mma_##N##suffix(                 \
        const bf16* x, int x_pitch, const bf16* weight, bf16* n, int n_pitch, float* rstd, float eps,                     \
        EACH_PARAMETERS(const bf16*, a), float* u, int u_pitch, bf16* augmented, int augmented_pitch, int augmented_cols, \
        int tokens, int features, int rank, DROPOUT_PARAMETERS) {                                                          \
        Target p{u, u_pitch, augmented, augmented_pitch, augmented_cols, tokens, features, rank};                          \
        norm_down<N, WARPS>(x, x_pitch, weight, n, n_pitch, rstd, eps, EACH(const bf16*, a), p, DROPOUT, scalars);         \
    }
DEFINE_NORM(1, 8, )
DEFINE_NORM(2, 8, )
DEFINE_NORM(3, 8, )
DEFINE_NORM(1, 16, _wide)
DEFINE_NORM(2, 16, _wide)
DEFINE_NORM(3, 16, _wide)
