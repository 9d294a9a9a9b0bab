// Philox4x32-10 (J. K. Salmon and others, SC 2011), with the counter layout of `model::philox`.

__device__ inline uint4 philox4x32(uint4 c, uint2 k) {
#pragma unroll
    for (int round = 0; round < 10; ++round) {
        if (round > 0) {
            k.x += 0x9E3779B9u;
            k.y += 0xBB67AE85u;
        }
        u32 high0 = __umulhi(0xD2511F53u, c.x), low0 = 0xD2511F53u * c.x;
        u32 high1 = __umulhi(0xCD9E8D57u, c.z), low1 = 0xCD9E8D57u * c.z;
        c = make_uint4(high1 ^ c.y ^ k.x, low1, high0 ^ c.w ^ k.y, low0);
    }
    return c;
}

// Several counters under one key: its schedule is computed once, and the chains of products overlap.
template <int R>
__device__ inline void philox4x32_many(uint4 (&c)[R], uint2 k) {
#pragma unroll
    for (int round = 0; round < 10; ++round) {
        if (round > 0) {
            k.x += 0x9E3779B9u;
            k.y += 0xBB67AE85u;
        }
#pragma unroll
        for (int i = 0; i < R; ++i) {
            u32 high0 = __umulhi(0xD2511F53u, c[i].x), low0 = 0xD2511F53u * c[i].x;
            u32 high1 = __umulhi(0xCD9E8D57u, c[i].z), low1 = 0xCD9E8D57u * c[i].z;
            c[i] = make_uint4(high1 ^ c[i].y ^ k.x, low1, high0 ^ c[i].w ^ k.y, low0);
        }
    }
}

constexpr u32 PURPOSE_DROPOUT = 3;

// Key of the dropout stream of one module (0 to 6) of a layer at an optimizer step.
__device__ inline uint2 dropout_key(const StepScalars* s, u32 layer, u32 module) {
    uint4 block = philox4x32(make_uint4(PURPOSE_DROPOUT, s->step, layer, module), make_uint2(s->seed_low, s->seed_high));
    return make_uint2(block.x, block.y);
}

// 16 random bits for each of the features 8 * block .. 8 * block + 8 of a token: half-word `f % 8`, low half first.
__device__ inline uint4 dropout_bits(uint2 key, u32 block, u32 position, u32 sample_low, u32 sample_high) {
    return philox4x32(make_uint4(block, position, sample_low, sample_high), key);
}
__device__ inline u32 half_word(uint4 bits, int lane) {
    u32 word = lane < 4 ? (lane < 2 ? bits.x : bits.y) : (lane < 6 ? bits.z : bits.w);
    return (lane % 2 == 0) ? (word & 0xFFFFu) : (word >> 16);
}
// What a kept element is multiplied by.
__device__ inline float keep_scale(u32 threshold) { return 65536.0f / (65536.0f - (float)threshold); }
