// d_u A of a group of adapters on tensor cores, masked: what kernels of the gradient by the input share.
//
// A warp takes 16 tokens x 32 features at a time. Lane (g, t) takes features 8 t .. 8 t + 8 of tokens g and g + 8; A is put in
// such an order that a lane's results are those features.

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
