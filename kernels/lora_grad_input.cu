// The gradient by the input of a group of adapters on tensor cores (bfloat16), alone and inside of what follows it; the plain
// kernel is in lora_plain.cu.
//
//   d_x += sum of drop_m(d_u_m A_m)
//   swiglu: d_h' = d_h + drop(d_u A); gradients of gate and up from d_h' as in elementwise.cu; d_A += d_u^T drop(h) of
//     h = silu(gate) up, which is nowhere in memory
//   norm: d_n' = d_n + sum of drop_m(d_u_m A_m); d_x += the gradient through a norm of x as in rms_norm.cu; out = x rstd weight
//
// | tensor                 | shape                     | type     |
// | d_x, d_n, d_h, x, out  | T x K                     | bfloat16 |
// | gate_up, d_gate_up     | T x 2K                    | bfloat16 |
// | A_m                    | r x K                     | bfloat16 |
// | d_u                    | T x (n r)                 | bfloat16 |
// | weight                 | K                         | bfloat16 |
// | rstd                   | T x 1                     | float32  |
// | part_a                 | slices x r x K            | float32  |
//
// A warp takes 16 tokens x 32 features at a time. Lane (g, t) takes features 8 t .. 8 t + 8 of tokens g and g + 8; A is put in
// such an order that a lane's results are those features.
// input: a warp keeps its features for 128 tokens. swiglu: a block takes 64 features and a slice of tokens, two warps for each
// half of the features, in turn; r up to 16. norm: a block of 8 warps takes 16 tokens and up to 1,024 features.
// Sums in float32, in an order that depends on shapes alone. Tolerance: 1e-2 of the largest magnitude; masks exact.
// H100, T = 8192, r = 16, dropout, a layer of Qwen2.5-0.5B: swiglu 175 us (2,310 GB/s), norm of three modules 58 us and of
// two 48 us (1,270 and 1,530 GB/s), input of o 15 us.

#include "lora.cuh"
#include "mma.cuh"

// What d_u A is made of.
struct Inner {
    const bf16* d_u;
    int pitch, tokens, features, rank;
};

// A of 16 ranks x 32 features as the right factor of four products; result columns 2 t, 2 t + 1 of product j are features
// 8 t + 2 j, + 1 of the chunk.
__device__ inline void right_factor(u32 (&b)[8], const bf16* a, const Inner& p, int rank0, int feature) {
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

// d_u of tokens g, g + 8 as the left factor, `column` being the lane's first of `left` that the module has from there on. What
// lies past the last token or rank is taken from the last one: those results are not stored, and those ranks of A are zero.
__device__ inline void left_factor(u32 (&a)[4], const Inner& p, int token, int column, int left) {
#pragma unroll
    for (int i = 0; i < 4; ++i) {
        int row = min(token + 8 * (i % 2), p.tokens - 1), skip = min(8 * (i / 2), left - 2);
        a[i] = *reinterpret_cast<const u32*>(p.d_u + (u64)row * p.pitch + column + skip);
    }
}

// d_u A of 16 tokens x 32 features of one module.
__device__ inline void inner_product(float (&v)[4][4], const u32 (&left)[4], const u32 (&right)[8], const bf16* a, const Inner& p,
                                     int module, int token, int feature) {
#pragma unroll
    for (int j = 0; j < 4; ++j) mma_bf16(v[j], left, {right[2 * j], right[2 * j + 1]});
    for (int rank0 = RANKS; rank0 < p.rank; rank0 += RANKS) {
        u32 more[8], further[4];
        int rank = rank0 + 2 * (threadIdx.x % 4);
        left_factor(further, p, token, module * p.rank + rank, p.rank - rank);
        right_factor(more, a, p, rank0, feature);
#pragma unroll
        for (int j = 0; j < 4; ++j) mma_bf16(v[j], further, {more[2 * j], more[2 * j + 1]});
    }
}

// Adds one module's share of tokens g, g + 8 (i = 0, 1) x 8 features of the lane, where the mask keeps it.
__device__ inline void add_kept(float (&sum)[2][8], const float (&v)[4][4], bool drop, const uint4* bits, u32 limit) {
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

// 8 numbers + scale * sum, rounded.
__device__ inline uint4 plus_8(uint4 v, const float (&sum)[8], float scale) {
    return make_uint4(pack_bf16(low_bf16(v.x) + scale * sum[0], high_bf16(v.x) + scale * sum[1]),
                      pack_bf16(low_bf16(v.y) + scale * sum[2], high_bf16(v.y) + scale * sum[3]),
                      pack_bf16(low_bf16(v.z) + scale * sum[4], high_bf16(v.z) + scale * sum[5]),
                      pack_bf16(low_bf16(v.w) + scale * sum[6], high_bf16(v.w) + scale * sum[7]));
}

// --- alone -------------------------------------------------------------------------------------------------------------

constexpr int INPUT_TOKENS = 128, INPUT_WARPS = 4;

template <int N>
__device__ void input_mma(const Inner& p, bf16* d_x, int d_x_pitch, const Each<const bf16*>& a, const Dropout& dropout,
                          const StepScalars* scalars) {
    int lane = threadIdx.x % WARP, g = lane / 4, t = lane % 4, chunks = (p.features + 31) / 32;
    int item = blockIdx.x * INPUT_WARPS + threadIdx.x / WARP;
    int feature = item % chunks * 32 + 8 * t, start = item / chunks * INPUT_TOKENS, end = min(p.tokens, start + INPUT_TOKENS);
    bool inside = feature < p.features;
    auto load = [&](uint4(&v)[2], int token) {
#pragma unroll
        for (int i = 0; i < 2; ++i) v[i] = load_16(d_x + (u64)(token + 8 * i) * d_x_pitch + feature, inside && token + 8 * i < end);
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
        right_factor(right[m], a.of[m], p, 0, feature);
    }
    for (int token = start + g; token - g < end; token += 16) {
        uint4 before[2] = {next[0], next[1]};
        next[0] = after[0], next[1] = after[1];
        load(after, token + 32);
        u32 left[N][4];
#pragma unroll
        for (int m = 0; m < N; ++m) left_factor(left[m], p, token, m * p.rank + 2 * t, p.rank - 2 * t);
        Token counters[2] = {};
        if (drop) counters[0] = token_of(dropout, token, end), counters[1] = token_of(dropout, token + 8, end);
        float sum[2][8] = {};
#pragma unroll
        for (int m = 0; m < N; ++m) {
            uint4 bits[2];
            float v[4][4] = {};
            inner_product(v, left[m], right[m], a.of[m], p, m, token, feature);
            if (drop) draw(bits, counters, (u32)feature / 8, N > 1 ? opaque(keys[m]) : keys[m]);
            add_kept(sum, v, drop, bits, limit);
        }
#pragma unroll
        for (int i = 0; i < 2; ++i) {
            if (!inside || token + 8 * i >= end) continue;
            *reinterpret_cast<uint4*>(d_x + (u64)(token + 8 * i) * d_x_pitch + feature) = plus_8(before[i], sum[i], scale);
        }
    }
}

#define DEFINE_INPUT(N)                                                                                                     \
    extern "C" __global__ void __launch_bounds__(INPUT_WARPS* WARP, N > 1 ? 3 : 4) lora_grad_input_mma_##N(               \
        const bf16* d_u, int d_u_pitch, EACH_PARAMETERS(const bf16*, a), bf16* d_x, int d_x_pitch, int tokens,            \
        int features, int rank, DROPOUT_PARAMETERS) {                                                                      \
        input_mma<N>(Inner{d_u, d_u_pitch, tokens, features, rank}, d_x, d_x_pitch, EACH(const bf16*, a), DROPOUT, scalars); \
    }
DEFINE_INPUT(1)
DEFINE_INPUT(2)
DEFINE_INPUT(3)

// --- inside of SwiGLU's gradient ---------------------------------------------------------------------------------------

constexpr int SWIGLU_WARPS = 4, SWIGLU_COLS = 64;

// Gradients of gate and up by d = d_h + scale * sum, and h, masked, of 8 features of a token.
__device__ inline void swiglu_8(uint4& gate, uint4& up, uint4 d_h, const float (&sum)[8], float scale, uint4& h) {
    u32 results[3][4];
#pragma unroll
    for (int j = 0; j < 4; ++j) {
        float d_gate[2], d_up[2], product[2];
#pragma unroll
        for (int k = 0; k < 2; ++k) {
            int i = 2 * j + k;
            float g = number(gate, i), u = number(up, i), d = number(d_h, i) + scale * sum[i];
            float s = __fdividef(1.0f, 1.0f + __expf(-g));
            product[k] = g * s * u;
            d_up[k] = d * g * s;
            d_gate[k] = d * u * s * (1.0f + g * (1.0f - s));
        }
        results[0][j] = pack_bf16(d_gate[0], d_gate[1]);
        results[1][j] = pack_bf16(d_up[0], d_up[1]);
        results[2][j] = pack_bf16(product[0], product[1]);
    }
    gate = make_uint4(results[0][0], results[0][1], results[0][2], results[0][3]);
    up = make_uint4(results[1][0], results[1][1], results[1][2], results[1][3]);
    h = make_uint4(results[2][0], results[2][1], results[2][2], results[2][3]);
}

// Adds the two warps of each half of the features and writes their sum.
__device__ inline void swiglu_store(const float (&acc)[4][4], float* part_a, int rank, int features) {
    __shared__ __align__(16) float parts[2][RANKS][SWIGLU_COLS + 4];
    int lane = threadIdx.x % WARP, warp = threadIdx.x / WARP, g = lane / 4, t = lane % 4;
#pragma unroll
    for (int j = 0; j < 4; ++j) {
#pragma unroll
        for (int c = 0; c < 4; ++c) parts[warp / 2][g + 8 * (c / 2)][warp % 2 * 32 + 8 * t + 2 * j + c % 2] = acc[j][c];
    }
    __syncthreads();
    for (int i = threadIdx.x; i < RANKS * SWIGLU_COLS / 4; i += SWIGLU_WARPS * WARP) {
        int row = i / (SWIGLU_COLS / 4), four = i % (SWIGLU_COLS / 4) * 4, column = blockIdx.x * SWIGLU_COLS + four;
        if (row >= rank || column >= features) continue;
        float4 a = *reinterpret_cast<const float4*>(&parts[0][row][four]), b = *reinterpret_cast<const float4*>(&parts[1][row][four]);
        *reinterpret_cast<float4*>(part_a + ((u64)blockIdx.y * rank + row) * features + column) =
            make_float4(a.x + b.x, a.y + b.y, a.z + b.z, a.w + b.w);
    }
}

// Blocks (64 features, slice of tokens, a multiple of 32).
extern "C" __global__ void __launch_bounds__(SWIGLU_WARPS* WARP, 4)
    lora_grad_swiglu_mma(const bf16* gate_up, int gate_up_pitch, const bf16* d_h, int d_h_pitch, bf16* d_gate_up,
                         int d_gate_up_pitch, const bf16* d_u, int d_u_pitch, const bf16* a, float* part_a, int tokens, int slice,
                         int features, int rank, DROPOUT_PARAMETERS) {
    Inner p{d_u, d_u_pitch, tokens, features, rank};
    Dropout dropout = DROPOUT;
    int lane = threadIdx.x % WARP, warp = threadIdx.x / WARP, g = lane / 4, t = lane % 4;
    int feature = blockIdx.x * SWIGLU_COLS + warp % 2 * 32 + 8 * t;
    int start = blockIdx.y * slice + warp / 2 * 16, end = min(tokens, (int)(blockIdx.y + 1) * slice);
    bool inside = feature < features;
    auto load = [&](uint4(&v)[3][2], int token) {
#pragma unroll
        for (int i = 0; i < 2; ++i) {
            bool valid = inside && token + 8 * i < end;
            const bf16* pair = gate_up + (u64)(token + 8 * i) * gate_up_pitch + feature;
            v[0][i] = load_16(pair, valid);
            v[1][i] = load_16(pair + features, valid);
            v[2][i] = load_16(d_h + (u64)(token + 8 * i) * d_h_pitch + feature, valid);
        }
    };
    uint4 next[3][2];
    load(next, start + g);
    bool drop = drops(dropout, scalars);
    u32 limit = drop ? scalars->drop_threshold << 16 : 0;
    float scale = kept(dropout, scalars);
    uint2 key = drop ? dropout_key(scalars, dropout.layer, dropout.modules.of[0]) : make_uint2(0, 0);
    u32 right[8];
    right_factor(right, a, p, 0, feature);
    float acc[4][4] = {};
    for (int token = start + g; token - g < end; token += 32) {
        uint4 v[3][2], bits[2], h[2];
#pragma unroll
        for (int k = 0; k < 3; ++k) v[k][0] = next[k][0], v[k][1] = next[k][1];
        load(next, token + 32);
        u32 left[4];
        left_factor(left, p, token, 2 * t, rank - 2 * t);
        if (drop) {
            Token counters[2] = {token_of(dropout, token, end), token_of(dropout, token + 8, end)};
            draw(bits, counters, (u32)feature / 8, key);
        }
        float product[4][4] = {}, sum[2][8] = {};
#pragma unroll
        for (int j = 0; j < 4; ++j) mma_bf16(product[j], left, {right[2 * j], right[2 * j + 1]});
        add_kept(sum, product, drop, bits, limit);
#pragma unroll
        for (int i = 0; i < 2; ++i) {
            swiglu_8(v[0][i], v[1][i], v[2][i], sum[i], scale, h[i]);
            if (inside && token + 8 * i < end) {
                bf16* target = d_gate_up + (u64)(token + 8 * i) * d_gate_up_pitch + feature;
                *reinterpret_cast<uint4*>(target) = v[0][i];
                *reinterpret_cast<uint4*>(target + features) = v[1][i];
            }
            if (drop) h[i] = masked_8(h[i], bits[i], limit);
        }
        u32 turned[4] = {transpose_8x8(left[0]), transpose_8x8(left[2]), transpose_8x8(left[1]), transpose_8x8(left[3])};
#pragma unroll
        for (int j = 0; j < 4; ++j) mma_bf16(acc[j], turned, {transpose_8x8(word(h[0], j)), transpose_8x8(word(h[1], j))});
    }
    swiglu_store(acc, part_a, rank, features);
}

// --- inside of RMS norm's gradient -------------------------------------------------------------------------------------

constexpr int NORM_WARPS = 8, NORM_TOKENS = 16, NORM_CHUNKS = 4;

struct Norm {
    const bf16* x;
    int x_pitch;
    const bf16* weight;
    const float* rstd;
    const bf16* d_out;
    int d_out_pitch;
    bf16* d_x;
    int d_x_pitch;
    bf16* out;  // null: not wanted
    int out_pitch;
};

// d += the adapters' share; returns what it adds to the sums of x d weight of tokens g and g + 8.
template <int N>
__device__ inline float2 norm_chunk(uint4 (&d)[2], const Norm& n, const Inner& p, const Each<const bf16*>& a,
                                    const u32 (&left)[N][4], int token, int feature, bool drop, u32 limit, float scale,
                                    const Token (&counters)[2], const uint2 (&keys)[N]) {
    bool inside = feature < p.features;
    uint4 x[2], w = load_16(n.weight + feature, inside);
#pragma unroll
    for (int i = 0; i < 2; ++i) x[i] = load_16(n.x + (u64)(token + 8 * i) * n.x_pitch + feature, inside && token + 8 * i < p.tokens);
    float sum[2][8] = {};
#pragma unroll
    for (int m = 0; m < N; ++m) {
        uint4 bits[2];
        u32 right[8];
        float v[4][4] = {};
        right_factor(right, a.of[m], p, 0, feature);
        inner_product(v, left[m], right, a.of[m], p, m, token, feature);
        if (drop) draw(bits, counters, (u32)feature / 8, opaque(keys[m]));
        add_kept(sum, v, drop, bits, limit);
    }
    float dots[2] = {};
#pragma unroll
    for (int i = 0; i < 2; ++i) {
        d[i] = plus_8(d[i], sum[i], scale);
#pragma unroll
        for (int k = 0; k < 8; ++k) dots[i] += number(x[i], k) * (number(d[i], k) * number(w, k));
    }
    return make_float2(dots[0], dots[1]);
}

// Adds the gradient of 8 features of a token to d_x, and writes out.
__device__ inline void norm_finish(const uint4& d, const Norm& n, int token, int feature, float r, float factor) {
    uint4 x = load_16(n.x + (u64)token * n.x_pitch + feature, true), w = load_16(n.weight + feature, true);
    uint4* target = reinterpret_cast<uint4*>(n.d_x + (u64)token * n.d_x_pitch + feature);
    uint4 before = *target;
    u32 results[2][4];
#pragma unroll
    for (int j = 0; j < 4; ++j) {
        float value[2], normed[2];
#pragma unroll
        for (int k = 0; k < 2; ++k) {
            int i = 2 * j + k;
            value[k] = r * (number(d, i) * number(w, i) - number(x, i) * factor) + number(before, i);
            normed[k] = number(x, i) * r * number(w, i);
        }
        results[0][j] = pack_bf16(value[0], value[1]);
        results[1][j] = pack_bf16(normed[0], normed[1]);
    }
    *target = make_uint4(results[0][0], results[0][1], results[0][2], results[0][3]);
    if (n.out == nullptr) return;
    *reinterpret_cast<uint4*>(n.out + (u64)token * n.out_pitch + feature) =
        make_uint4(results[1][0], results[1][1], results[1][2], results[1][3]);
}

template <int N>
__device__ void norm_mma(const Norm& n, const Inner& p, const Each<const bf16*>& a, const Dropout& dropout, const StepScalars* scalars) {
    __shared__ float parts[NORM_WARPS][NORM_TOKENS];
    // d_n' until the sums over its row are known; each thread reads what it wrote.
    __shared__ uint4 held[NORM_CHUNKS][2][NORM_WARPS * WARP];
    int lane = threadIdx.x % WARP, warp = threadIdx.x / WARP, g = lane / 4, t = lane % 4;
    int token = blockIdx.x * NORM_TOKENS + g, first = warp * 32 + 8 * t;
    auto load = [&](uint4(&d)[2], int feature) {
#pragma unroll
        for (int i = 0; i < 2; ++i) {
            bool valid = feature < p.features && token + 8 * i < p.tokens;
            d[i] = load_16(n.d_out + (u64)(token + 8 * i) * n.d_out_pitch + feature, valid);
        }
    };
    uint4 next[2];
    load(next, first);
    u32 left[N][4];
    uint2 keys[N];
    bool drop = drops(dropout, scalars);
    u32 limit = drop ? scalars->drop_threshold << 16 : 0;
    float scale = kept(dropout, scalars);
#pragma unroll
    for (int m = 0; m < N; ++m) {
        left_factor(left[m], p, token, m * p.rank + 2 * t, p.rank - 2 * t);
        keys[m] = drop ? dropout_key(scalars, dropout.layer, dropout.modules.of[m]) : make_uint2(0, 0);
    }
    Token counters[2] = {};
    if (drop) counters[0] = token_of(dropout, token, p.tokens), counters[1] = token_of(dropout, token + 8, p.tokens);
    float2 dots = make_float2(0.0f, 0.0f);
    // All lanes of a warp leave together: its first feature decides.
#pragma unroll 1
    for (int c = 0, feature = first; feature - 8 * t < p.features; ++c, feature += NORM_WARPS * 32) {
        uint4 d[2] = {next[0], next[1]};
        load(next, feature + NORM_WARPS * 32);
        float2 more = norm_chunk<N>(d, n, p, a, left, token, feature, drop, limit, scale, counters, keys);
        dots = make_float2(dots.x + more.x, dots.y + more.y);
        held[c][0][threadIdx.x] = d[0], held[c][1][threadIdx.x] = d[1];
    }
#pragma unroll
    for (int delta = 1; delta < 4; delta *= 2) {
        dots.x += __shfl_xor_sync(0xFFFFFFFFu, dots.x, delta);
        dots.y += __shfl_xor_sync(0xFFFFFFFFu, dots.y, delta);
    }
    if (t == 0) parts[warp][g] = dots.x, parts[warp][g + 8] = dots.y;
    __syncthreads();
#pragma unroll
    for (int i = 0; i < 2; ++i) {
        if (token + 8 * i >= p.tokens) continue;
        float total = 0.0f, r = n.rstd[token + 8 * i];
#pragma unroll
        for (int w = 0; w < NORM_WARPS; ++w) total += parts[w][g + 8 * i];
        float factor = r * r * (total / (float)p.features);
#pragma unroll
        for (int c = 0; c < NORM_CHUNKS; ++c) {
            int feature = first + c * NORM_WARPS * 32;
            if (feature < p.features) norm_finish(held[c][i][threadIdx.x], n, token + 8 * i, feature, r, factor);
        }
    }
}

#define DEFINE_NORM(N)                                                                                                      \
    extern "C" __global__ void __launch_bounds__(NORM_WARPS* WARP, 2) lora_grad_norm_mma_##N(                             \
        const bf16* x, int x_pitch, const bf16* weight, const float* rstd, const bf16* d_out, int d_out_pitch, bf16* d_x, \
        int d_x_pitch, bf16* out, int out_pitch, const bf16* d_u, int d_u_pitch, EACH_PARAMETERS(const bf16*, a),         \
        int tokens, int features, int rank, DROPOUT_PARAMETERS) {                                                          \
        Norm n{x, x_pitch, weight, rstd, d_out, d_out_pitch, d_x, d_x_pitch, out, out_pitch};                              \
        norm_mma<N>(n, Inner{d_u, d_u_pitch, tokens, features, rank}, EACH(const bf16*, a), DROPOUT, scalars);             \
    }
DEFINE_NORM(1)
DEFINE_NORM(2)
DEFINE_NORM(3)
