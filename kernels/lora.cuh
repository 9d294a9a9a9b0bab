// What the kernels of adapters share: operands of a group of modules, dropout masks, guarded loads.

#include "common.cuh"
#include "philox.cuh"

// Modules that share an input.
constexpr int MODULES = 3;
// Ranks that a tensor-core kernel takes at once; a higher rank is cut into groups of them, the last may be short.
constexpr int RANKS = 16;
// The same of a plain kernel.
constexpr int PLAIN_RANKS = 64;

template <typename P>
struct Each {
    P of[MODULES];
    // Selects instead of indexing: an array of parameters that is indexed at run time would move to local memory.
    __device__ P at(int module) const { return module == 0 ? of[0] : (module == 1 ? of[1] : of[2]); }
};

// Columns of the output that belong to each module.
struct Columns {
    Each<int> start, count;
};

// Whose masks: null samples mean no dropout.
struct Dropout {
    const u32* samples;    // T x 2
    const u32* positions;  // T
    u32 layer;
    Each<u32> modules;
};

__device__ inline bool drops(const Dropout& d, const StepScalars* s) { return d.samples != nullptr && s->drop_threshold > 0; }
__device__ inline float kept(const Dropout& d, const StepScalars* s) {
    return d.samples != nullptr ? keep_scale(s->drop_threshold) : 1.0f;
}

// The counter words of one token.
struct Token {
    u32 position, low, high;
};
__device__ inline Token token_of(const Dropout& d, int t, int tokens) {
    if (t >= tokens) return Token{0, 0, 0};
    return Token{d.positions[t], d.samples[2 * (u64)t], d.samples[2 * (u64)t + 1]};
}

// The counter words of four tokens from `t` on, a multiple of 4. `wide`: whole groups of four, at multiples of 16 bytes.
__device__ inline bool wide_tokens(const Dropout& d, int tokens) {
    return tokens % 4 == 0 && ((u64)d.samples | (u64)d.positions) % 16 == 0;
}
__device__ inline void tokens_of(Token (&c)[4], const Dropout& d, int t, int tokens, bool wide) {
    if (wide) {
        uint4 zero = make_uint4(0, 0, 0, 0);
        bool valid = t < tokens;
        uint4 p = valid ? *reinterpret_cast<const uint4*>(d.positions + t) : zero;
        uint4 s = valid ? *reinterpret_cast<const uint4*>(d.samples + 2 * (u64)t) : zero;
        uint4 r = valid ? *reinterpret_cast<const uint4*>(d.samples + 2 * (u64)t + 4) : zero;
        c[0] = Token{p.x, s.x, s.y};
        c[1] = Token{p.y, s.z, s.w};
        c[2] = Token{p.z, r.x, r.y};
        c[3] = Token{p.w, r.z, r.w};
    } else {
#pragma unroll
        for (int i = 0; i < 4; ++i) c[i] = token_of(d, t + i, tokens);
    }
}

// The random bits of features 8 * block .. 8 * block + 8 of several tokens.
template <int R>
__device__ inline void draw(uint4 (&bits)[R], const Token (&tokens)[R], u32 block, uint2 key) {
#pragma unroll
    for (int i = 0; i < R; ++i) bits[i] = make_uint4(block, tokens[i].position, tokens[i].low, tokens[i].high);
    philox4x32_many(bits, key);
}

// Keeps the compiler from carrying a key's whole schedule through a loop in registers.
__device__ inline uint2 opaque(uint2 key) {
    asm volatile("" : "+r"(key.x), "+r"(key.y));
    return key;
}

// Two neighbouring bfloat16 with the dropped ones zeroed; `limit` is the threshold in the upper half.
__device__ inline u32 masked_pair(u32 pair, u32 bits, u32 limit) {
    pair = bits << 16 < limit ? pair & 0xFFFF0000u : pair;
    return bits < limit ? pair & 0x0000FFFFu : pair;
}
__device__ inline uint4 masked_8(uint4 x, uint4 bits, u32 limit) {
    return make_uint4(masked_pair(x.x, bits.x, limit), masked_pair(x.y, bits.y, limit), masked_pair(x.z, bits.z, limit),
                      masked_pair(x.w, bits.w, limit));
}

// Whether one feature of one token is kept: the plain kernels' mask.
__device__ inline bool keeps(uint2 key, u32 threshold, const Token& token, int feature) {
    uint4 bits = dropout_bits(key, (u32)feature / 8, token.position, token.low, token.high);
    return half_word(bits, feature % 8) >= threshold;
}

// One of the four words, by a number that is known when the loop around it is unrolled.
__device__ inline u32 word(const uint4& v, int i) { return i == 0 ? v.x : (i == 1 ? v.y : (i == 2 ? v.z : v.w)); }

// Number i of 8.
__device__ inline float number(const uint4& v, int i) { return i % 2 == 0 ? low_bf16(word(v, i / 2)) : high_bf16(word(v, i / 2)); }

__device__ inline uint4 load_16(const bf16* p, bool valid) {
    return valid ? *reinterpret_cast<const uint4*>(p) : make_uint4(0, 0, 0, 0);
}

// Parameters of a kernel, at most 8 bytes each, and the values that they make.
#define EACH_PARAMETERS(P, name) P name##0, P name##1, P name##2
#define EACH(P, name) (Each<P>{{name##0, name##1, name##2}})
#define DROPOUT_PARAMETERS \
    const u32 *samples, const u32 *positions, u32 layer, u32 module0, u32 module1, u32 module2, const StepScalars *scalars
#define DROPOUT (Dropout{samples, positions, layer, {{module0, module1, module2}}})
#define COLUMNS_PARAMETERS int start0, int count0, int start1, int count1, int start2, int count2
#define COLUMNS (Columns{{{start0, start1, start2}}, {{count0, count1, count2}}})
