// The optimizer's family: gradient norm, clipping and the updates of Adam and AdamW over flat slabs.
//
//   norm = inv_labels sqrt(sum of g^2)      g' = g inv_labels min(1, clip / (norm + 1e-6)), the last factor computed in float64
//   and 1 for a clip that is 0 or infinite; `gradient` holds the gradient of the sum of losses
//   AdamW (I. Loshchilov, F. Hutter, 2019): p *= shrink where it decays, then with g = g'
//   Adam (D. Kingma, J. Ba, 2015): g = g' + decay p where it decays, then
//   m += (g - m) keep1      v = v beta2 + keep2 g g      p -= step_size (m / (sqrt(v) / correction + eps))
//   clip: g = g min(1, clip / (norm + 1e-6))
//
// | tensor                 | shape  | type                                                                            |
// | master, gradient, m, v | 1 x N  | float32                                                                         |
// | copy                   | 1 x N  | bfloat16: the updated master, rounded                                           |
// | partials               | blocks | float64: one for 4,096 elements                                                 |
// | norm                   | 1 x 1  | float32                                                                         |
// | scalars                | 1      | StepScalars: inv_labels, clip, step_size, correction, keep1, beta2, keep2, ...  |
// | segments               | S x 2  | u32: first element of a run, 1 where it decays; ascending, the first starts at 0 |
// | flag                   | 1 x 1  | u32: not 0 once a loss or a norm was not finite; stays until the host clears it |
//
// Operations are rounded one by one, never contracted: the bits of `engine`'s CPU formula. Norm: float64 sums of 4,096 elements,
// added in a fixed order (within 1e-6 of the CPU). An update does nothing when the norm is not finite or the flag is set.
// A thread two groups of 4 elements; one launch for all parameters. Tolerance: none, equal bits; norm 1e-6.
// Speed on an H100 80GB HBM3, 8,798,208 parameters: norm 15.2 us (2,318 GB/s), adamw 88.1 us (2,797), with the copy 94.2 us (2,802),
// adam with the copy 94.0 us (2,807), clip 26.7 us (2,638).

#include "common.cuh"
#include "groups.cuh"

constexpr int N = 4, ITEMS = 2, THREADS = 256;
constexpr int NORM_BLOCK = 4096;
constexpr u32 NO_SEGMENT = 0xFFFFFFFFu;   // no further run starts

extern "C" __global__ void __launch_bounds__(THREADS) grad_norm_partials(const float* gradient, int n, double* partials,
                                                                         int wide) {
    constexpr int GROUPS = NORM_BLOCK / N / THREADS;
    Group<float, N> g[GROUPS];
    long long first = (long long)blockIdx.x * NORM_BLOCK;
    int count = (int)min((long long)NORM_BLOCK, n - first);
#pragma unroll
    for (int k = 0; k < GROUPS; ++k) {
        g[k] = load_group<float, N>(gradient + first, (k * THREADS + (int)threadIdx.x) * N, count, wide);
    }
    double sum = 0.0;
#pragma unroll
    for (int k = 0; k < GROUPS; ++k) {
#pragma unroll
        for (int i = 0; i < N; ++i) sum += (double)g[k].v[i] * (double)g[k].v[i];
    }
    sum = block_sum(sum);
    if (threadIdx.x == 0) partials[blockIdx.x] = sum;
}

extern "C" __global__ void __launch_bounds__(1024) grad_norm(const double* partials, int blocks, float* norm,
                                                                 const StepScalars* scalars, u32* flag) {
    double sum = 0.0;
#pragma unroll 4
    for (int i = threadIdx.x; i < blocks; i += blockDim.x) sum += partials[i];
    sum = block_sum(sum);
    if (threadIdx.x == 0) {
        float value = (float)(sqrt(sum) * (double)scalars->inv_labels);
        *norm = value;
        if (flag && !isfinite(value)) *flag = 1;
    }
}

__device__ inline float clip_factor(double clip, float norm) {
    if (!(clip > 0.0) || !isfinite(clip)) return 1.0f;
    double factor = clip / ((double)norm + 1e-6);
    return (float)(factor < 1.0 ? factor : 1.0);
}

__device__ inline bool stopped(float norm, const u32* flag) { return !isfinite(norm) || (flag && *flag != 0); }

// Index of the run that holds element `i`: the last one that starts at or before it.
__device__ inline u32 segment_of(const uint2* segments, u32 count, u32 i) {
    u32 low = 0, high = count;
    while (high - low > 1) {
        u32 middle = (low + high) / 2;
        if (segments[middle].x <= i) low = middle;
        else high = middle;
    }
    return low;
}

struct Slabs {
    float* master;
    const float* gradient;
    float* m;
    float* v;
    bf16* copy;
};

struct Rule {
    float scale, clip, keep1, beta2, keep2, correction, eps, step_size, shrink, decay;
    bool decoupled;
};

__device__ inline void update(float& p, float g, float& m, float& v, bool decays, const Rule& rule) {
    g = __fmul_rn(__fmul_rn(g, rule.scale), rule.clip);
    if (decays && rule.decoupled) p = __fmul_rn(p, rule.shrink);
    if (decays && !rule.decoupled) g = __fadd_rn(g, __fmul_rn(rule.decay, p));
    m = __fadd_rn(m, __fmul_rn(__fsub_rn(g, m), rule.keep1));
    v = __fadd_rn(__fmul_rn(v, rule.beta2), __fmul_rn(__fmul_rn(rule.keep2, g), g));
    float denominator = __fadd_rn(__fdiv_rn(__fsqrt_rn(v), rule.correction), rule.eps);
    p = __fsub_rn(p, __fmul_rn(rule.step_size, __fdiv_rn(m, denominator)));
}

__device__ void step(Slabs slabs, int n, const float* norm, const StepScalars* s, const uint2* segments, u32 count,
                     const u32* flag, float decay, bool decoupled, bool wide) {
    if (stopped(*norm, flag)) return;
    Group<float, N> p[ITEMS], g[ITEMS], m[ITEMS], v[ITEMS];
    int at[ITEMS];
#pragma unroll
    for (int k = 0; k < ITEMS; ++k) {
        u32 group = (blockIdx.x * ITEMS + k) * THREADS + threadIdx.x;
        at[k] = group < ((u32)n + N - 1) / N ? (int)(group * N) : n;
        p[k] = load_group<float, N>(slabs.master, at[k], n, wide);
        g[k] = load_group<float, N>(slabs.gradient, at[k], n, wide);
        m[k] = load_group<float, N>(slabs.m, at[k], n, wide);
        v[k] = load_group<float, N>(slabs.v, at[k], n, wide);
    }
    __shared__ float shared_clip;
    if (threadIdx.x == 0) shared_clip = clip_factor(s->clip, *norm);
    __syncthreads();
    Rule rule = {s->inv_labels, shared_clip, s->keep1,     s->beta2,  s->keep2, s->correction,
                 s->eps,        s->step_size, s->shrink, decay,    decoupled};
#pragma unroll
    for (int k = 0; k < ITEMS; ++k) {
        if (at[k] >= n) continue;
        u32 segment = segment_of(segments, count, (u32)at[k]);
        u32 next = segment + 1 < count ? segments[segment + 1].x : NO_SEGMENT;
        bool decays = segments[segment].y != 0;
        Group<bf16, N> rounded;
#pragma unroll
        for (int i = 0; i < N; ++i) {
            while ((u32)(at[k] + i) >= next) {
                ++segment;
                decays = segments[segment].y != 0;
                next = segment + 1 < count ? segments[segment + 1].x : NO_SEGMENT;
            }
            update(p[k].v[i], g[k].v[i], m[k].v[i], v[k].v[i], decays, rule);
            rounded.v[i] = from_float<bf16>(p[k].v[i]);
        }
        store_group<float, N>(slabs.master, at[k], n, wide, p[k]);
        store_group<float, N>(slabs.m, at[k], n, wide, m[k]);
        store_group<float, N>(slabs.v, at[k], n, wide, v[k]);
        if (slabs.copy) store_group<bf16, N>(slabs.copy, at[k], n, wide, rounded);
    }
}

extern "C" __global__ void __launch_bounds__(THREADS) adamw(float* master, const float* gradient, float* m, float* v,
                                                            bf16* copy, int n, const float* norm, const StepScalars* scalars,
                                                            const uint2* segments, u32 count, const u32* flag, int wide) {
    step(Slabs{master, gradient, m, v, copy}, n, norm, scalars, segments, count, flag, 0.0f, true, wide);
}

extern "C" __global__ void __launch_bounds__(THREADS) adam(float* master, const float* gradient, float* m, float* v,
                                                           bf16* copy, int n, const float* norm, const StepScalars* scalars,
                                                           const uint2* segments, u32 count, const u32* flag, float decay,
                                                           int wide) {
    step(Slabs{master, gradient, m, v, copy}, n, norm, scalars, segments, count, flag, decay, false, wide);
}

extern "C" __global__ void __launch_bounds__(THREADS) clip(float* gradient, int n, const float* norm,
                                                           const StepScalars* scalars, int wide) {
    if (!isfinite(*norm)) return;
    float factor = clip_factor(scalars->clip, *norm);
    if (factor == 1.0f) return;
#pragma unroll
    for (int k = 0; k < ITEMS; ++k) {
        u32 group = (blockIdx.x * ITEMS + k) * THREADS + threadIdx.x;
        int at = group < ((u32)n + N - 1) / N ? (int)(group * N) : n;
        Group<float, N> g = load_group<float, N>(gradient, at, n, wide);
#pragma unroll
        for (int i = 0; i < N; ++i) g.v[i] = __fmul_rn(g.v[i], factor);
        store_group<float, N>(gradient, at, n, wide, g);
    }
}
