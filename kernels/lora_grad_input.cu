// The gradient by the input of a group of adapters on tensor cores (bfloat16), alone and inside of a norm's gradient; the
// plain kernel is in lora_plain.cu, SwiGLU's in lora_grad_swiglu.cu.
//
//   d_x += sum of drop_m(d_u_m A_m)
//   norm: d_n' = d_n + sum of drop_m(d_u_m A_m); d_x += the gradient through a norm of x as in rms_norm.cu; out = x rstd weight
//
// | tensor                 | shape                     | type     |
// | d_x, d_n, x, out       | T x K                     | bfloat16 |
// | A_m                    | r x K                     | bfloat16 |
// | d_u                    | T x (n r)                 | bfloat16 |
// | weight                 | K                         | bfloat16 |
// | rstd                   | T x 1                     | float32  |
//
// A warp takes 16 tokens x 32 features at a time (`lora_inner.cuh`).
// input: a warp keeps its features for 128 tokens, or fewer where there are not enough of them. norm: a block takes 16 tokens and up to 1,024 features; x and d_n wait in
// shared memory from the start to the end, A is read one module ahead.
// Sums in float32, in an order that depends on shapes alone. Tolerance: 1e-2 of
// the largest magnitude; masks exact.
// r = 16, dropout, a layer of Qwen2.5-0.5B, H200, T = 8192: norm of three modules 41 us, of two 37 us (2,030 GB/s), input of o
// 16 us; T = 2048: norms 13 us and 11 us.

#include "lora_inner.cuh"

// --- alone -------------------------------------------------------------------------------------------------------------

constexpr int INPUT_WARPS = 4;

template <int N>
__device__ void input_mma(const Inner& p, bf16* d_x, int d_x_pitch, const Each<const bf16*>& a, const Dropout& dropout,
                          const StepScalars* scalars, int turn) {
    int lane = threadIdx.x % WARP, g = lane / 4, t = lane % 4, chunks = (p.features + 31) / 32;
    int item = blockIdx.x * INPUT_WARPS + threadIdx.x / WARP;
    int feature = item % chunks * 32 + 8 * t, start = item / chunks * turn, end = min(p.tokens, start + turn);
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
        const bf16* d_u, int d_u_pitch, EACH_PARAMETERS(const bf16*, a), bf16* d_x, int d_x_pitch, int turn,              \
        int tokens, int features, int rank, DROPOUT_PARAMETERS) {                                                          \
        Inner p{d_u, d_u_pitch, tokens, features, rank};                                                                   \
        input_mma<N>(p, d_x, d_x_pitch, EACH(const bf16*, a), DROPOUT, scalars, turn);                                     \
    }
DEFINE_INPUT(1)
DEFINE_INPUT(2)
DEFINE_INPUT(3)

// --- inside of RMS norm's gradient -------------------------------------------------------------------------------------

// Sums over a row are those of 16 parts in order, each of two chunks of 32 features, whatever the number of warps.
constexpr int NORM_TOKENS = 16, NORM_COLS = 1024, NORM_PARTS = 16;

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

// What a thread finds again in shared memory: x and d_n of its tokens and features, chunk by chunk; nobody else reads it.
template <int WARPS>
struct Held {
    static constexpr int CHUNKS = NORM_COLS / 32 / WARPS;
    u32 base;
    __device__ u32 x(int chunk, int i) const { return base + 16 * (((chunk * 4 + i) * WARPS * WARP) + (int)threadIdx.x); }
    __device__ u32 d(int chunk, int i) const { return x(chunk, i + 2); }
};

// A as the right factor, still as it lies in memory: 8 features of ranks g and g + 8.
struct Rows {
    uint4 low, high;
};
__device__ inline Rows rows_of(const bf16* a, const Inner& p, int feature) {
    int g = threadIdx.x % WARP / 4;
    bool inside = feature < p.features;
    const bf16* row = a + (u64)g * p.features + feature;
    return Rows{load_16(row, inside && g < p.rank), load_16(row + 8 * (u64)p.features, inside && g + 8 < p.rank)};
}

// d += the adapters' share of one chunk; `next`: A of its first module, then that of the next chunk's,
// which starts at `then`.
template <int N>
__device__ inline void norm_share(float (&sum)[2][8], Rows& next, const Inner& p, const Each<const bf16*>& a,
                                  const u32 (&left)[N][4], int token, int feature, int then, bool drop, u32 limit,
                                  const Token (&counters)[2], const uint2* keys) {
#pragma unroll
    for (int m = 0; m < N; ++m) {
        u32 right[8];
#pragma unroll
        for (int j = 0; j < 4; ++j) {
            right[2 * j] = transpose_8x8(word(next.low, j));
            right[2 * j + 1] = transpose_8x8(word(next.high, j));
        }
        next = rows_of(a.of[(m + 1) % N], p, m + 1 < N ? feature : then);
        uint4 bits[2];
        float v[4][4] = {};
        inner_product(v, left[m], right, a.of[m], p, m, token, feature);
        if (drop) draw(bits, counters, (u32)feature / 8, keys[m]);
        add_kept(sum, v, drop, bits, limit);
    }
}

// Adds the gradient of 8 features of a token to `before`, and makes the norm's output.
__device__ inline void norm_finish(uint4& before, uint4& out, const uint4& d, const uint4& x, const uint4& w, float r, float factor) {
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
    before = make_uint4(results[0][0], results[0][1], results[0][2], results[0][3]);
    out = make_uint4(results[1][0], results[1][1], results[1][2], results[1][3]);
}

// Puts a part's sums of tokens g and g + 8 where `row_sums` finds them.
__device__ inline void put_part(float (*parts)[NORM_TOKENS], int part, float (&sums)[2]) {
    int lane = threadIdx.x % WARP;
#pragma unroll
    for (int i = 0; i < 2; ++i) {
#pragma unroll
        for (int delta = 1; delta < 4; delta *= 2) sums[i] += __shfl_xor_sync(0xFFFFFFFFu, sums[i], delta);
        if (lane % 4 == 0) parts[part][lane / 4 + 8 * i] = sums[i];
    }
}
__device__ inline void row_sums(float (&total)[2], const float (*parts)[NORM_TOKENS]) {
    __syncthreads();
#pragma unroll
    for (int i = 0; i < 2; ++i) {
        total[i] = 0.0f;
#pragma unroll
        for (int part = 0; part < NORM_PARTS; ++part) total[i] += parts[part][threadIdx.x % WARP / 4 + 8 * i];
    }
}

template <int N, int WARPS>
__device__ void norm_mma(const Norm& n, const Inner& p, const Each<const bf16*>& a, const Dropout& dropout, const StepScalars* scalars) {
    extern __shared__ __align__(16) u8 shared[];
    __shared__ float parts[NORM_PARTS][NORM_TOKENS];
    __shared__ uint2 keys[N];
    constexpr int CHUNKS = Held<WARPS>::CHUNKS;
    Held<WARPS> held{shared_address(shared)};
    int lane = threadIdx.x % WARP, warp = threadIdx.x / WARP, g = lane / 4, t = lane % 4;
    int token = blockIdx.x * NORM_TOKENS + g, first = warp * 32 + 8 * t;
    // Chunks c and c + 1 (c even) are a part's.
    auto feature_of = [&](int c) { return first + 32 * (WARPS * (c / 2) + NORM_PARTS * (c % 2)); };
#pragma unroll
    for (int c = 0; c < CHUNKS; ++c) {
#pragma unroll
        for (int i = 0; i < 2; ++i) {
            int feature = feature_of(c);
            bool valid = feature < p.features && token + 8 * i < p.tokens;
            u64 row = valid ? token + 8 * i : 0;
            copy_async_16(held.x(c, i), n.x + row * n.x_pitch + (valid ? feature : 0), valid);
            copy_async_16(held.d(c, i), n.d_out + row * n.d_out_pitch + (valid ? feature : 0), valid);
        }
        copy_async_commit();
    }
    Rows next = rows_of(a.of[0], p, first);
    u32 left[N][4];
    bool drop = drops(dropout, scalars);
    u32 limit = drop ? scalars->drop_threshold << 16 : 0;
    float scale = kept(dropout, scalars);
    if (drop && threadIdx.x < N) keys[threadIdx.x] = dropout_key(scalars, dropout.layer, dropout.modules.at(threadIdx.x));
#pragma unroll
    for (int m = 0; m < N; ++m) left_factor(left[m], p, token, m * p.rank + 2 * t, p.rank - 2 * t);
    Token counters[2] = {};
    if (drop) counters[0] = token_of(dropout, token, p.tokens), counters[1] = token_of(dropout, token + 8, p.tokens);
    __syncthreads();
    float dots[2] = {};
#pragma unroll 1
    for (int c = 0, feature = first, then; c < CHUNKS; ++c, feature = then) {
        then = feature + 32 * (c % 2 == 0 ? NORM_PARTS : WARPS - NORM_PARTS);
        if (c == 0) copy_async_wait<CHUNKS - 1>();
        if (c == 1) copy_async_wait<0>();
        // All lanes of a warp skip together: its first feature decides.
        if (feature - 8 * t < p.features) {
            uint4 w = load_16(n.weight + feature, feature < p.features);
            float sum[2][8] = {};
            norm_share<N>(sum, next, p, a, left, token, feature, then, drop, limit, counters, keys);
#pragma unroll
            for (int i = 0; i < 2; ++i) {
                uint4 x = load_shared_16(held.x(c, i)), d = plus_8(load_shared_16(held.d(c, i)), sum[i], scale);
                store_shared_16(held.d(c, i), d);
#pragma unroll
                for (int k = 0; k < 8; ++k) dots[i] += number(x, k) * (number(d, k) * number(w, k));
            }
        } else {
            next = rows_of(a.of[0], p, then);
        }
        if (c % 2 == 0) continue;
        put_part(parts, warp + WARPS * (c / 2), dots);
        dots[0] = dots[1] = 0.0f;
    }
    uint4 before[CHUNKS][2];
#pragma unroll
    for (int c = 0; c < CHUNKS; ++c) {
#pragma unroll
        for (int i = 0; i < 2; ++i) {
            int feature = feature_of(c);
            bool valid = feature < p.features && token + 8 * i < p.tokens;
            before[c][i] = load_16(n.d_x + (u64)(token + 8 * i) * n.d_x_pitch + feature, valid);
        }
    }
    float r[2] = {n.rstd[min(token, p.tokens - 1)], n.rstd[min(token + 8, p.tokens - 1)]};
    row_sums(dots, parts);
#pragma unroll
    for (int c = 0; c < CHUNKS; ++c) {
        int feature = feature_of(c);
        if (feature >= p.features) continue;
        uint4 w = load_16(n.weight + feature, true), out;
#pragma unroll
        for (int i = 0; i < 2; ++i) {
            if (token + 8 * i >= p.tokens) continue;
            float factor = r[i] * r[i] * (dots[i] / (float)p.features);
            norm_finish(before[c][i], out, load_shared_16(held.d(c, i)), load_shared_16(held.x(c, i)), w, r[i], factor);
            *reinterpret_cast<uint4*>(n.d_x + (u64)(token + 8 * i) * n.d_x_pitch + feature) = before[c][i];
            if (n.out != nullptr) *reinterpret_cast<uint4*>(n.out + (u64)(token + 8 * i) * n.out_pitch + feature) = out;
        }
    }
}

// Blocks of 8 warps, two at once; of 16 where there are too few of them.
#define DEFINE_NORM(N, WARPS, suffix)                                                                                      \
    extern "C" __global__ void __launch_bounds__(WARPS* WARP, 16 / WARPS) lora_grad_norm_mma_##N##suffix(                 \
        const bf16* x, int x_pitch, const bf16* weight, const float* rstd, const bf16* d_out, int d_out_pitch, bf16* d_x, \
        int d_x_pitch, bf16* out, int out_pitch, const bf16* d_u, int d_u_pitch, EACH_PARAMETERS(const bf16*, a),         \
        int tokens, int features, int rank, DROPOUT_PARAMETERS) {                                                          \
        Norm n{x, x_pitch, weight, rstd, d_out, d_out_pitch, d_x, d_x_pitch, out, out_pitch};                              \
        norm_mma<N, WARPS>(n, Inner{d_u, d_u_pitch, tokens, features, rank}, EACH(const bf16*, a), DROPOUT, scalars);      \
    }
DEFINE_NORM(1, 8, )
DEFINE_NORM(2, 8, )
DEFINE_NORM(3, 8, )
DEFINE_NORM(1, 16, _wide)
DEFINE_NORM(2, 16, _wide)
DEFINE_NORM(3, 16, _wide)
