// SwiGLU's gradient with an adapter on its output h, on tensor cores (bfloat16), and on request sums for the adapters of gate
// and up, whose outputs' gradients it writes.
//
//   d_h' = d_h + drop(d_u A); gradients of gate and up from d_h' as in elementwise.cu; h = silu(gate) up is nowhere in memory
//   d_A += d_u^T drop(h)        d_B_gate += scale d_gate^T u_gate        d_B_up += scale d_up^T u_up
//
// | tensor             | shape                 | type     |
// | gate_up, d_gate_up | T x 2K                | bfloat16 |
// | d_h                | T x K                 | bfloat16 |
// | A                  | r x K                 | bfloat16 |
// | d_u                | T x r                 | bfloat16 |
// | u of gate and up   | T x 2 r'              | float32  |
// | part_a             | slices x r x K        | float32  |
// | part_b             | slices x 2K x r'      | float32  |
//
// A block takes 256 features and a slice of tokens, 16 tokens at a time through three stages of shared memory: rows of 512
// bytes, whose 16-byte chunks are exchanged by the row's number. A warp takes 32 features as in `lora_inner.cuh`, puts h and the
// gradients of gate and up where their factors were, reads them from there as fragments, and keeps its sums over tokens in
// registers; `lora_sum` adds those of the slices in order. r and r' up to 16.
// Tolerance: 1e-2 of the largest magnitude; masks exact.
// r = r' = 16, dropout, K = 4864, H200, T = 8192: 114 us (3,550 GB/s), with sums for gate and up 123 us (3,360); T = 2048: 32 us
// and 37 us.

#include "lora_inner.cuh"

constexpr int WARPS = 8, COLS = 32 * WARPS, TOKENS = 16, STAGES = 3;

// Bytes of a stage: rows of gate, up and d_h; u of 2 x 16 ranks; d_u of 16 ranks; words of the tokens' counters. Pitches of u and
// d_u let a warp read without bank conflicts. As `SWIGLU_STAGE` in src/cuda/ops/lora/swiglu.rs.
constexpr int ROW = 2 * COLS, TILE = TOKENS * ROW, U_PITCH = 36, D_U_PITCH = 48;
constexpr int U_AT = 3 * TILE, D_U_AT = U_AT + 4 * TOKENS * U_PITCH, COUNTERS_AT = D_U_AT + TOKENS * D_U_PITCH;
constexpr int STAGE = COUNTERS_AT + 3 * 4 * TOKENS;

struct Swiglu {
    const bf16* gate_up;
    int gate_up_pitch;
    const bf16* d_h;
    int d_h_pitch;
    bf16* d_gate_up;
    int d_gate_up_pitch;
    const float* u;  // of gate and up
    int u_pitch, u_rank;
};

// Where a 16-byte chunk of a row lies: neither lanes that each read a chunk of their tokens nor those that name the rows of a
// matrix meet in a bank. The same for rows that are 8 apart.
__device__ inline int chunk_at(int row, int chunk) { return row * ROW + ((chunk ^ (row % 2 * 4) ^ (row / 2 % 4)) << 4); }

// Starts the copies of 16 tokens; zeros beyond `end`.
template <bool ABOVE>
__device__ inline void load_stage(u32 stage, const Swiglu& s, const Inner& p, const Dropout& dropout, int token, int end) {
    int thread = threadIdx.x, chunk = thread % 32, feature = blockIdx.x * COLS + 8 * chunk;
#pragma unroll
    for (int i = 0; i < TOKENS / WARPS; ++i) {
        int row = thread / 32 + i * WARPS;
        bool valid = token + row < end && feature < p.features;
        u64 at = valid ? token + row : 0;
        u32 target = stage + chunk_at(row, chunk);
        const bf16* gate = s.gate_up + at * s.gate_up_pitch + (valid ? feature : 0);
        copy_async_16(target, gate, valid);
        copy_async_16(target + TILE, gate + (valid ? p.features : 0), valid);
        copy_async_16(target + 2 * TILE, s.d_h + at * s.d_h_pitch + (valid ? feature : 0), valid);
    }
    if (ABOVE) {
#pragma unroll
        for (int i = 0; i < 2; ++i) {
            int row = thread / 32 + i * WARPS, module = thread % 32 / 16, rank = thread % 16;
            bool valid = token + row < end && rank < s.u_rank;
            const float* source = s.u + (valid ? (u64)(token + row) * s.u_pitch + module * s.u_rank + rank : 0);
            copy_async_4(stage + U_AT + 4 * (row * U_PITCH + thread % 32), source, valid);
        }
    }
    if (thread < 128) {
        int row = thread / 8, rank = thread % 8 * 2;
        bool valid = token + row < end && rank < p.rank;
        const bf16* source = p.d_u + (valid ? (u64)(token + row) * p.pitch + rank : 0);
        copy_async_4(stage + D_U_AT + row * D_U_PITCH + 2 * rank, source, valid);
    } else if (dropout.samples != nullptr && thread < 128 + 3 * TOKENS) {
        int row = (thread - 128) % TOKENS, which = (thread - 128) / TOKENS;
        bool valid = token + row < end;
        const u32* source = which == 0 ? dropout.positions + (valid ? token + row : 0)
                                       : dropout.samples + (valid ? 2 * (u64)(token + row) + which - 1 : 0);
        copy_async_4(stage + COUNTERS_AT + 4 * (which * TOKENS + row), source, valid);
    }
}

// Gradients of gate and up by d = d_h + scale * sum, and h, of 8 features of a token.
__device__ inline void swiglu_8(uint4& gate, uint4& up, uint4 d_h, const float (&sum)[8], float scale, uint4& h) {
    u32 results[3][4];
#pragma unroll
    for (int j = 0; j < 4; ++j) {
        float d_gate[2], d_up[2], product[2];
#pragma unroll
        for (int k = 0; k < 2; ++k) {
            int i = 2 * j + k;
            float g = number(gate, i), u = number(up, i), d = number(d_h, i) + scale * sum[i];
            float s = sigmoid_fast(g), silu = g * s;
            product[k] = silu * u;
            d_up[k] = d * silu;
            d_gate[k] = d * u * (s + silu * (1.0f - s));
        }
        results[0][j] = pack_bf16(d_gate[0], d_gate[1]);
        results[1][j] = pack_bf16(d_up[0], d_up[1]);
        results[2][j] = pack_bf16(product[0], product[1]);
    }
    gate = make_uint4(results[0][0], results[0][1], results[0][2], results[0][3]);
    up = make_uint4(results[1][0], results[1][1], results[1][2], results[1][3]);
    h = make_uint4(results[2][0], results[2][1], results[2][2], results[2][3]);
}

// acc[16 ranks x 8 features] += factor^T v over the 16 tokens of a tile, four times; `factor`: ranks x tokens.
__device__ inline void add_outer(float (&acc)[4][4], const u32 (&factor)[4], u32 tile) {
    int lane = threadIdx.x % WARP, warp = threadIdx.x / WARP;
#pragma unroll
    for (int j = 0; j < 4; j += 2) {
        u32 v[4];
        load_matrix_4_transposed(v, tile + chunk_at(lane % 16, 4 * warp + j + lane / 16));
        mma_bf16(acc[j], factor, {v[0], v[1]});
        mma_bf16(acc[j + 1], factor, {v[2], v[3]});
    }
}

// u of gate or up, ranks x tokens.
__device__ inline void u_factor(u32 (&factor)[4], u32 stage, int module) {
    int lane = threadIdx.x % WARP, g = lane / 4, t = lane % 4;
    u32 at = stage + U_AT + 4 * (2 * t * U_PITCH + 16 * module + g);
#pragma unroll
    for (int i = 0; i < 4; ++i) {
        u32 from = at + 4 * (i / 2 * 8 * U_PITCH + i % 2 * 8);
        factor[i] = pack_bf16(load_shared_float(from), load_shared_float(from + 4 * U_PITCH));
    }
}

// Rows of ranks, columns of features, or the other way round; product j holds features 8 j + 2 t, + 1 from `first` on.
__device__ inline void store_a(const float (&acc)[4][4], float* part, int rank, int features, int first) {
    int g = threadIdx.x % WARP / 4, t = threadIdx.x % 4;
#pragma unroll
    for (int i = 0; i < 8; ++i) {
        int row = g + 8 * (i / 4), j = i % 4, feature = first + 8 * j + 2 * t;
        if (row >= rank || feature >= features) continue;
        *reinterpret_cast<float2*>(part + (u64)row * features + feature) = make_float2(acc[j][i / 4 * 2], acc[j][i / 4 * 2 + 1]);
    }
}
__device__ inline void store_b(const float (&acc)[4][4], float* part, int rank, int features, int first) {
    int g = threadIdx.x % WARP / 4, t = threadIdx.x % 4;
#pragma unroll
    for (int i = 0; i < 16; ++i) {
        int row = first + 8 * (i / 4) + 2 * t + i % 2, of = g + 8 * (i % 4 / 2);
        if (of < rank && row < features) part[(u64)row * rank + of] = acc[i / 4][i % 4];
    }
}

// Sums over tokens so far.
template <bool ABOVE>
struct Sums {
    float a[4][4];
    float b[ABOVE ? 2 : 1][4][4];
};

// 16 tokens of a stage; `token` is the lane's first.
template <bool ABOVE>
__device__ inline void take_stage(Sums<ABOVE>& sums, u32 stage, const Swiglu& s, const Inner& p, const u32 (&right)[8], bool drop,
                                  u32 limit, float scale, uint2 key, int token, int end, int feature) {
    int lane = threadIdx.x % WARP, warp = threadIdx.x / WARP, g = lane / 4, t = lane % 4;
    u32 left[4], d_u = stage + D_U_AT + lane % 16 * D_U_PITCH + 16 * (lane / 16);
    load_matrix_4(left, d_u);
    float product[4][4] = {};
#pragma unroll
    for (int j = 0; j < 4; ++j) mma_bf16(product[j], left, {right[2 * j], right[2 * j + 1]});
    uint4 bits[2];
    if (drop) {
        Token counters[2];
#pragma unroll
        for (int i = 0; i < 2; ++i) {
            u32 at = stage + COUNTERS_AT + 4 * (g + 8 * i);
            counters[i] = Token{load_shared_4(at), load_shared_4(at + 4 * TOKENS), load_shared_4(at + 8 * TOKENS)};
        }
        draw(bits, counters, (u32)feature / 8, key);
    }
    float sum[2][8] = {};
    add_kept(sum, product, drop, bits, limit);
#pragma unroll
    for (int i = 0; i < 2; ++i) {
        u32 at = stage + chunk_at(g + 8 * i, 4 * warp + t);
        uint4 gate = load_shared_16(at), up = load_shared_16(at + TILE), h;
        swiglu_8(gate, up, load_shared_16(at + 2 * TILE), sum[i], scale, h);
        if (feature < p.features && token + 8 * i < end) {
            bf16* target = s.d_gate_up + (u64)(token + 8 * i) * s.d_gate_up_pitch + feature;
            *reinterpret_cast<uint4*>(target) = gate;
            *reinterpret_cast<uint4*>(target + p.features) = up;
        }
        if (ABOVE) store_shared_16(at, gate), store_shared_16(at + TILE, up);
        store_shared_16(at + 2 * TILE, drop ? masked_8(h, bits[i], limit) : h);
    }
    // The warp alone reads what its lanes wrote.
    __syncwarp();
    u32 factor[4];
    load_matrix_4_transposed(factor, d_u);
    // Matrices of the transpose come as tokens 0-7, 8-15 of ranks 0-7, then of ranks 8-15.
    add_outer(sums.a, {factor[0], factor[2], factor[1], factor[3]}, stage + 2 * TILE);
    if (ABOVE) {
        u_factor(factor, stage, 0);
        add_outer(sums.b[0], factor, stage);
        u_factor(factor, stage, 1);
        add_outer(sums.b[ABOVE ? 1 : 0], factor, stage + TILE);
    }
}

template <bool ABOVE>
__device__ void swiglu(const Swiglu& s, const Inner& p, const bf16* a, float* part_a, float* part_b, int slice,
                       const Dropout& dropout, const StepScalars* scalars) {
    extern __shared__ __align__(128) u8 shared[];
    u32 stages = shared_address(shared);
    int warp = threadIdx.x / WARP, t = threadIdx.x % 4, g = threadIdx.x % WARP / 4;
    int first = blockIdx.x * COLS + 32 * warp, feature = first + 8 * t;
    int start = blockIdx.y * slice, end = min(p.tokens, start + slice);
    auto begin = [&](int turn) {
        int token = start + turn * TOKENS;
        if (token < end) load_stage<ABOVE>(stages + turn % STAGES * STAGE, s, p, dropout, token, end);
        copy_async_commit();
    };
#pragma unroll
    for (int turn = 0; turn < STAGES - 1; ++turn) begin(turn);
    bool drop = drops(dropout, scalars);
    u32 limit = drop ? scalars->drop_threshold << 16 : 0;
    float scale = kept(dropout, scalars);
    uint2 key = drop ? dropout_key(scalars, dropout.layer, dropout.modules.of[0]) : make_uint2(0, 0);
    u32 right[8];
    right_factor(right, a, p, 0, feature);
    Sums<ABOVE> sums = {};
    for (int token = start, turn = 0; token < end; token += TOKENS, ++turn) {
        copy_async_wait<STAGES - 2>();
        __syncthreads();
        // The stage that all warps are done with.
        begin(turn + STAGES - 1);
        take_stage<ABOVE>(sums, stages + turn % STAGES * STAGE, s, p, right, drop, limit, scale, opaque(key), token + g, end, feature);
    }
    store_a(sums.a, part_a + (u64)blockIdx.y * p.rank * p.features, p.rank, p.features, first);
    if (!ABOVE) return;
    u64 rows = (u64)p.features * s.u_rank;
    store_b(sums.b[0], part_b + 2 * blockIdx.y * rows, s.u_rank, p.features, first);
    store_b(sums.b[ABOVE ? 1 : 0], part_b + (2 * blockIdx.y + 1) * rows, s.u_rank, p.features, first);
}

// Blocks (256 features, slice of tokens, a multiple of 16); with u and part_b or without.
#define DEFINE(ABOVE, name)                                                                                                \
    extern "C" __global__ void __launch_bounds__(WARPS* WARP, 2)                                                          \
        name(const bf16* gate_up, int gate_up_pitch, const bf16* d_h, int d_h_pitch, bf16* d_gate_up,                     \
             int d_gate_up_pitch, const bf16* d_u, int d_u_pitch, const bf16* a, float* part_a, const float* u,           \
             int u_pitch, int u_rank, float* part_b, int tokens, int slice, int features, int rank, DROPOUT_PARAMETERS) { \
        Swiglu s{gate_up, gate_up_pitch, d_h, d_h_pitch, d_gate_up, d_gate_up_pitch, u, u_pitch, u_rank};                  \
        swiglu<ABOVE>(s, Inner{d_u, d_u_pitch, tokens, features, rank}, a, part_a, part_b, slice, DROPOUT, scalars);       \
    }
DEFINE(false, lora_grad_swiglu_mma)
DEFINE(true, lora_grad_swiglu_above_mma)
