// RMS norm (B. Zhang, R. Sennrich, 2019), forward and backward.
//
//   rstd = 1 / sqrt(mean(x^2) + eps)      out = x rstd weight
//   with an addend: sum = x + addend, rounded to its type; then the norm of sum
//   d_x (+)= rstd (d_out w - x rstd^2 mean(x d_out w))      d_weight += sum over rows of d_out x rstd
//
// | tensor                           | shape | type                    |
// | x, addend, sum, out, d_out, d_x  | T x C | float32 or bfloat16 (T) |
// | weight                           | C     | float32 or bfloat16 (W) |
// | rstd                             | T x 1 | float32                 |
// | d_weight                         | C     | float32                 |
//
// Up to 1,024 columns a warp takes a row (8 rows a block), up to 8,192 a block of 256 threads; the row stays in registers,
// 32 elements a thread. Wider rows are read twice. Sums in float32 over a tree that depends on C alone; out is rounded once.
// Weight gradient: `column_sums`. Tolerance: 1e-5 (float32), 1e-2 (bfloat16) of the largest magnitude.
// Speed on an H100 80GB HBM3, 8192 x 896, forward, with an addend, backward, added, weight: bfloat16 12.6 us (2,330 GB/s), 22.5 us
// (2,613), 18.7 us (2,360), 22.8 us (2,580), 14.7 us (1,993); float32 23.0 us (2,559), 43.2 us (2,716), 31.5 us (2,800), 40.7 us
// (2,885), 25.3 us (2,323).

#include "common.cuh"
#include "groups.cuh"

constexpr int HELD = 32;       // elements of a row that a thread holds
constexpr int THREADS = 256;   // of a block

// Blocks that share a multiprocessor, which bounds registers.
template <typename T, bool WHOLE>
constexpr int BLOCKS = WHOLE ? (sizeof(T) == 2 ? 3 : 2) : 1;

template <int PER_ROW, typename F>
__device__ inline float row_sum(F x) { return PER_ROW == WARP ? warp_sum(x) : block_sum(x); }

// `WHOLE`: rows have whole groups and start at multiples of 16 bytes. Kernels of their own, because elements that may come one
// by one take a register each.
template <typename T, typename W, int PER_ROW, bool ADD, bool WHOLE>
__device__ void forward(const T* x, int x_pitch, const T* addend, int addend_pitch, T* sum_out, int sum_pitch, const W* weight,
                        T* out, int out_pitch, float* rstd, int rows, int cols, float eps) {
    constexpr int N = 16 / sizeof(T), GROUPS = HELD / N;
    long long row = (long long)blockIdx.x * (THREADS / PER_ROW) + threadIdx.x / PER_ROW;
    if (row >= rows) return;
    int lane = threadIdx.x % PER_ROW;
    x += row * x_pitch;
    out += row * out_pitch;
    Group<T, N> v[GROUPS];
    load_row(v, x, lane, PER_ROW, cols, WHOLE);
    if constexpr (ADD) {
        addend += row * addend_pitch;
        sum_out += row * sum_pitch;
        Group<T, N> more[GROUPS];
        load_row(more, addend, lane, PER_ROW, cols, WHOLE);
#pragma unroll
        for (int g = 0; g < GROUPS; ++g) {
            int c = (g * PER_ROW + lane) * N;
            if (c >= cols) continue;
#pragma unroll
            for (int i = 0; i < N; ++i) v[g].v[i] = from_float<T>(to_float(v[g].v[i]) + to_float(more[g].v[i]));
            store_part<T, N>(sum_out, c, cols, WHOLE, v[g]);
        }
    }
    float sum = 0.0f;
#pragma unroll
    for (int g = 0; g < GROUPS; ++g) {
#pragma unroll
        for (int i = 0; i < N; ++i) sum += to_float(v[g].v[i]) * to_float(v[g].v[i]);
    }
    float r = 1.0f / sqrtf(row_sum<PER_ROW>(sum) / (float)cols + eps);
    if (lane == 0) rstd[row] = r;
#pragma unroll
    for (int g = 0; g < GROUPS; ++g) {
        int c = (g * PER_ROW + lane) * N;
        if (c >= cols) continue;
        Group<W, N> w = load_part<W, N>(weight, c, cols, WHOLE);
#pragma unroll
        for (int i = 0; i < N; ++i) v[g].v[i] = from_float<T>(to_float(v[g].v[i]) * r * to_float(w.v[i]));
        store_part<T, N>(out, c, cols, WHOLE, v[g]);
    }
}

// A block a row of any width.
template <typename T, typename W, bool ADD>
__device__ void forward_long(const T* x, int x_pitch, const T* addend, int addend_pitch, T* sum_out, int sum_pitch,
                             const W* weight, T* out, int out_pitch, float* rstd, int cols, float eps, bool wide) {
    constexpr int N = 16 / sizeof(T);
    long long row = blockIdx.x;
    x += row * x_pitch;
    out += row * out_pitch;
    const T* normed = x;
    if constexpr (ADD) {
        addend += row * addend_pitch;
        sum_out += row * sum_pitch;
        normed = sum_out;
    }
    float sum = 0.0f;
    for (int c = threadIdx.x * N; c < cols; c += THREADS * N) {
        Group<T, N> v = load_group<T, N>(x, c, cols, wide);
        if constexpr (ADD) {
            Group<T, N> more = load_group<T, N>(addend, c, cols, wide);
#pragma unroll
            for (int i = 0; i < N; ++i) v.v[i] = from_float<T>(to_float(v.v[i]) + to_float(more.v[i]));
            store_group<T, N>(sum_out, c, cols, wide, v);
        }
#pragma unroll
        for (int i = 0; i < N; ++i) sum += to_float(v.v[i]) * to_float(v.v[i]);
    }
    float r = 1.0f / sqrtf(block_sum(sum) / (float)cols + eps);
    if (threadIdx.x == 0) rstd[row] = r;
    for (int c = threadIdx.x * N; c < cols; c += THREADS * N) {
        Group<T, N> v = load_group<T, N>(normed, c, cols, wide);
        Group<W, N> w = load_group<W, N>(weight, c, cols, wide);
#pragma unroll
        for (int i = 0; i < N; ++i) v.v[i] = from_float<T>(to_float(v.v[i]) * r * to_float(w.v[i]));
        store_group<T, N>(out, c, cols, wide, v);
    }
}

template <typename T, typename W, int PER_ROW, bool WHOLE>
__device__ void backward(const T* x, int x_pitch, const W* weight, const float* rstd, const T* d_out, int d_out_pitch, T* d_x,
                         int d_x_pitch, int rows, int cols, int accumulate) {
    constexpr int N = 16 / sizeof(T), GROUPS = HELD / N;
    long long row = (long long)blockIdx.x * (THREADS / PER_ROW) + threadIdx.x / PER_ROW;
    if (row >= rows) return;
    int lane = threadIdx.x % PER_ROW;
    x += row * x_pitch;
    d_out += row * d_out_pitch;
    d_x += row * d_x_pitch;
    Group<T, N> v[GROUPS], d[GROUPS], before[GROUPS] = {};
    load_row(v, x, lane, PER_ROW, cols, WHOLE);
    load_row(d, d_out, lane, PER_ROW, cols, WHOLE);
    float r = rstd[row], sum = 0.0f;
#pragma unroll
    for (int g = 0; g < GROUPS; ++g) {
        int c = (g * PER_ROW + lane) * N;
        if (c >= cols) continue;
        Group<W, N> w = load_part<W, N>(weight, c, cols, WHOLE);
#pragma unroll
        for (int i = 0; i < N; ++i) sum += element(v[g], i) * (element(d[g], i) * element(w, i));
    }
    if (accumulate) load_row(before, (const T*)d_x, lane, PER_ROW, cols, WHOLE);
    float factor = r * r * (row_sum<PER_ROW>(sum) / (float)cols);
#pragma unroll
    for (int g = 0; g < GROUPS; ++g) {
        int c = (g * PER_ROW + lane) * N;
        if (c >= cols) continue;
        Group<W, N> w = load_part<W, N>(weight, c, cols, WHOLE);
#pragma unroll
        for (int i = 0; i < N; i += 2) {
            float value[2];
#pragma unroll
            for (int k = 0; k < 2; ++k) {
                value[k] = r * (element(d[g], i + k) * element(w, i + k) - element(v[g], i + k) * factor);
                value[k] += element(before[g], i + k);
            }
            put_pair(v[g], i, value[0], value[1]);
        }
        store_part<T, N>(d_x, c, cols, WHOLE, v[g]);
    }
}

template <typename T, typename W>
__device__ void backward_long(const T* x, int x_pitch, const W* weight, const float* rstd, const T* d_out, int d_out_pitch,
                              T* d_x, int d_x_pitch, int cols, int accumulate, bool wide) {
    constexpr int N = 16 / sizeof(T);
    long long row = blockIdx.x;
    x += row * x_pitch;
    d_out += row * d_out_pitch;
    d_x += row * d_x_pitch;
    float r = rstd[row], sum = 0.0f;
    for (int c = threadIdx.x * N; c < cols; c += THREADS * N) {
        Group<T, N> v = load_group<T, N>(x, c, cols, wide), d = load_group<T, N>(d_out, c, cols, wide);
        Group<W, N> w = load_group<W, N>(weight, c, cols, wide);
#pragma unroll
        for (int i = 0; i < N; ++i) sum += to_float(v.v[i]) * (to_float(d.v[i]) * to_float(w.v[i]));
    }
    float factor = r * r * (block_sum(sum) / (float)cols);
    for (int c = threadIdx.x * N; c < cols; c += THREADS * N) {
        Group<T, N> v = load_group<T, N>(x, c, cols, wide), d = load_group<T, N>(d_out, c, cols, wide), before = {};
        Group<W, N> w = load_group<W, N>(weight, c, cols, wide);
        if (accumulate) before = load_group<T, N>(d_x, c, cols, wide);
#pragma unroll
        for (int i = 0; i < N; ++i) {
            float value = r * (to_float(d.v[i]) * to_float(w.v[i]) - to_float(v.v[i]) * factor);
            v.v[i] = from_float<T>(to_float(before.v[i]) + value);
        }
        store_group<T, N>(d_x, c, cols, wide, v);
    }
}

// Kernels of a width class: `warp`, `block`, both also `narrow`, and `long`.
#define DEFINE_HELD(T, W, suffix, PER_ROW, width, WHOLE)                                                                   \
    extern "C" __global__ void __launch_bounds__(THREADS, BLOCKS<T, WHOLE>) rms_norm_##width##_##suffix(                   \
        const T* x, int x_pitch, const W* weight, T* out, int out_pitch, float* rstd, int rows, int cols, float eps,       \
        int wide) {                                                                                                        \
        forward<T, W, PER_ROW, false, WHOLE>(x, x_pitch, nullptr, 0, nullptr, 0, weight, out, out_pitch, rstd, rows,       \
            cols, eps);                                                                                                    \
    }                                                                                                                      \
    extern "C" __global__ void __launch_bounds__(THREADS, BLOCKS<T, WHOLE>) rms_norm_add_##width##_##suffix(               \
        const T* x, int x_pitch, const T* addend, int addend_pitch, T* sum, int sum_pitch, const W* weight, T* out,        \
        int out_pitch, float* rstd, int rows, int cols, float eps, int wide) {                                             \
        forward<T, W, PER_ROW, true, WHOLE>(x, x_pitch, addend, addend_pitch, sum, sum_pitch, weight, out, out_pitch,      \
            rstd, rows, cols, eps);                                                                                        \
    }                                                                                                                      \
    extern "C" __global__ void __launch_bounds__(THREADS, BLOCKS<T, WHOLE>) rms_norm_grad_##width##_##suffix(              \
        const T* x, int x_pitch, const W* weight, const float* rstd, const T* d_out, int d_out_pitch, T* d_x,              \
        int d_x_pitch, int rows, int cols, int accumulate, int wide) {                                                     \
        backward<T, W, PER_ROW, WHOLE>(x, x_pitch, weight, rstd, d_out, d_out_pitch, d_x, d_x_pitch, rows, cols,           \
            accumulate);                                                                                                   \
    }
#define DEFINE_LONG(T, W, suffix)                                                                                          \
    extern "C" __global__ void __launch_bounds__(THREADS) rms_norm_long_##suffix(                                          \
        const T* x, int x_pitch, const W* weight, T* out, int out_pitch, float* rstd, int rows, int cols, float eps,       \
        int wide) {                                                                                                        \
        forward_long<T, W, false>(x, x_pitch, nullptr, 0, nullptr, 0, weight, out, out_pitch, rstd, cols, eps, wide);      \
    }                                                                                                                      \
    extern "C" __global__ void __launch_bounds__(THREADS) rms_norm_add_long_##suffix(                                      \
        const T* x, int x_pitch, const T* addend, int addend_pitch, T* sum, int sum_pitch, const W* weight, T* out,        \
        int out_pitch, float* rstd, int rows, int cols, float eps, int wide) {                                             \
        forward_long<T, W, true>(x, x_pitch, addend, addend_pitch, sum, sum_pitch, weight, out, out_pitch, rstd, cols,     \
                                 eps, wide);                                                                               \
    }                                                                                                                      \
    extern "C" __global__ void __launch_bounds__(THREADS) rms_norm_grad_long_##suffix(                                     \
        const T* x, int x_pitch, const W* weight, const float* rstd, const T* d_out, int d_out_pitch, T* d_x,              \
        int d_x_pitch, int rows, int cols, int accumulate, int wide) {                                                     \
        backward_long<T, W>(x, x_pitch, weight, rstd, d_out, d_out_pitch, d_x, d_x_pitch, cols, accumulate, wide);         \
    }
#define DEFINE(T, W, suffix)                  \
    DEFINE_HELD(T, W, suffix, WARP, warp, true) \
    DEFINE_HELD(T, W, suffix, WARP, warp_narrow, false) \
    DEFINE_HELD(T, W, suffix, THREADS, block, true) \
    DEFINE_HELD(T, W, suffix, THREADS, block_narrow, false) \
    DEFINE_LONG(T, W, suffix)
DEFINE(float, float, f32_f32)
DEFINE(bf16, bf16, bf16_bf16)
DEFINE(bf16, float, bf16_f32)

#define DEFINE_WEIGHT(T, suffix)                                                                                           \
    extern "C" __global__ void __launch_bounds__(1024) rms_norm_weight_grad_##suffix(                                      \
        const T* x, int x_pitch, const float* rstd, const T* d_out, int d_out_pitch, float* d_weight, int rows, int cols,  \
        int wide) {                                                                                                        \
        constexpr int N = 16 / sizeof(T);                                                                                  \
        column_sums<N>(rows, cols, d_weight, wide, [=](auto how, long long row, int c, float(&sum)[N]) {                   \
            Group<T, N> v = load_part<T, N>(x + row * x_pitch, c, cols, how.value);                                        \
            Group<T, N> d = load_part<T, N>(d_out + row * d_out_pitch, c, cols, how.value);                                \
            float r = rstd[row];                                                                                           \
            for (int i = 0; i < N; ++i) sum[i] += to_float(d.v[i]) * to_float(v.v[i]) * r;                                 \
        });                                                                                                                \
    }
DEFINE_WEIGHT(float, f32)
DEFINE_WEIGHT(bf16, bf16)
