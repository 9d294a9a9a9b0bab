// The element-wise family: sums, biases, conversions, activations and SwiGLU, which share the walk over a matrix.
//
//   add: out = a + b      add_bias: y += bias      cast: out = x in another type      bias_grad: d_bias += sum of rows of d_y
//   relu: max(x, 0)                                            derivative 1 for x > 0, else 0
//   gelu_tanh: x/2 (1 + tanh(sqrt(2/pi) (x + 0.044715 x^3)))   (D. Hendrycks, K. Gimpel, 2016, approximated)
//   gelu_erf: x/2 (1 + erf(x / sqrt 2))                        (the same, exact)
//   silu: x s(x), s the logistic function                      derivative s (1 + x (1 - s))
//   swiglu: out = silu(gate) up, gate and up side by side (N. Shazeer, 2020)
//   swiglu_grad: d_up = d_out silu(gate), d_gate = d_out up s (1 + gate (1 - s)); on request also h = silu(gate) up
//
// | tensor                    | shape  | type                                            |
// | a, b, out, x, y, d_x, h   | T x C  | float32 or bfloat16 (T); cast: one of each       |
// | bias                      | C      | float32, or bfloat16 beside bfloat16             |
// | d_bias                    | C      | float32                                          |
// | gate_up, d_gate_up        | T x 2F | T                                                |
//
// A thread two groups of 16 bytes. Float32 inside, rounded once; exponentials are approximate (1e-5 relative) where the
// result is bfloat16. Add, add_bias, cast and ReLU are exact but for their one rounding. Tolerance of each other element: in
// float32 4 times 2^-23 of itself, or of the terms that cancel in it (tails of GELU, slopes); in bfloat16 one unit in the last
// place beside its rounding and 20 times 2^-23 of the terms; and 2e-6, 4e-3 of the largest magnitude. bias_grad is a reduction
// (1e-5). Operands of one call may be the same view.
// Speed on an H100 80GB HBM3 in bfloat16, 8192 x 896: add 16.7 us (2,643 GB/s), cast to float32 17.3 us (2,546); 8192 x 1152:
// add_bias 15.1 us (2,497), bias_grad 9.9 us (1,913); 8192 x 4864, value and gradient: relu 56 and 82 us (2,824 and 2,930),
// gelu_tanh 62 and 88 us (2,569 and 2,713), gelu_erf 68 and 94 us (2,361 and 2,539), silu 59 and 82 us (2,722 and 2,909), swiglu
// 82 and 135 us (2,928 and 2,961), with h 163 us (2,930). float32: 2,650 to 3,030 GB/s, bias_grad 1,872.

#include "common.cuh"
#include "groups.cuh"

constexpr int ITEMS = 2;

template <typename T>
__device__ inline float exp_for(float x);
template <>
__device__ inline float exp_for<float>(float x) { return expf(x); }
template <>
__device__ inline float exp_for<bf16>(float x) { return __expf(x); }

template <typename T>
__device__ inline float logistic(float x) {
    float d = 1.0f + exp_for<T>(-x);
    return sizeof(T) == 2 ? __fdividef(1.0f, d) : 1.0f / d;
}

struct Relu {
    template <typename T>
    static __device__ float value(float x) { return x > 0.0f || x != x ? x : 0.0f; }
    template <typename T>
    static __device__ float slope(float x) { return x > 0.0f ? 1.0f : 0.0f; }
};
struct Silu {
    template <typename T>
    static __device__ float value(float x) { return x * logistic<T>(x); }
    template <typename T>
    static __device__ float slope(float x) {
        float s = logistic<T>(x);
        return s * (1.0f + x * (1.0f - s));
    }
};
struct GeluTanh {
    static constexpr float SCALE = 0.79788456080286535588f, CUBIC = 0.044715f;
    template <typename T>
    static __device__ float value(float x) { return 0.5f * x * (1.0f + tanhf(SCALE * (x + CUBIC * x * x * x))); }
    template <typename T>
    static __device__ float slope(float x) {
        float t = tanhf(SCALE * (x + CUBIC * x * x * x));
        return 0.5f * (1.0f + t) + 0.5f * x * (1.0f - t * t) * SCALE * (1.0f + 3.0f * CUBIC * x * x);
    }
};
struct GeluErf {
    static constexpr float ROOT_HALF = 0.70710678118654752440f, DENSITY = 0.39894228040143267794f;
    template <typename T>
    static __device__ float value(float x) { return 0.5f * x * (1.0f + erff(x * ROOT_HALF)); }
    template <typename T>
    static __device__ float slope(float x) {
        return 0.5f * (1.0f + erff(x * ROOT_HALF)) + x * DENSITY * exp_for<T>(-0.5f * x * x);
    }
};

// A view in an argument list.
template <typename T>
struct View {
    T* data;
    int pitch;
    __device__ T* at(long long row) const { return data + row * pitch; }
};

template <typename A, typename B, typename F>
__device__ void map(View<const A> x, View<B> out, int cols, Walk walk, Divisor by, bool wide, F f) {
    constexpr int N = group_of<A, B>();
    Place at[ITEMS];
    Group<A, N> v[ITEMS];
#pragma unroll
    for (int k = 0; k < ITEMS; ++k) {
        at[k] = place<N, ITEMS>(walk, by, k);
        if (at[k].live) v[k] = load_group<A, N>(x.at(at[k].row), at[k].c, cols, wide);
    }
#pragma unroll
    for (int k = 0; k < ITEMS; ++k) {
        if (!at[k].live) continue;
        Group<B, N> result;
#pragma unroll
        for (int i = 0; i < N; ++i) result.v[i] = from_float<B>(f(to_float(v[k].v[i])));
        store_group<B, N>(out.at(at[k].row), at[k].c, cols, wide, result);
    }
}

// `b` has type B: with a pitch of 0 the same row for all.
template <typename T, typename B, typename F>
__device__ void map2(View<const T> a, View<const B> b, View<T> out, int cols, Walk walk, Divisor by, bool wide, F f) {
    constexpr int N = 16 / sizeof(T);
    Place at[ITEMS];
    Group<T, N> v[ITEMS];
    Group<B, N> w[ITEMS];
#pragma unroll
    for (int k = 0; k < ITEMS; ++k) {
        at[k] = place<N, ITEMS>(walk, by, k);
        if (!at[k].live) continue;
        v[k] = load_group<T, N>(a.at(at[k].row), at[k].c, cols, wide);
        w[k] = load_group<B, N>(b.at(at[k].row), at[k].c, cols, wide);
    }
#pragma unroll
    for (int k = 0; k < ITEMS; ++k) {
        if (!at[k].live) continue;
#pragma unroll
        for (int i = 0; i < N; ++i) v[k].v[i] = from_float<T>(f(to_float(v[k].v[i]), to_float(w[k].v[i])));
        store_group<T, N>(out.at(at[k].row), at[k].c, cols, wide, v[k]);
    }
}

template <typename T>
__device__ void swiglu(View<const T> gate_up, View<T> out, int cols, Walk walk, Divisor by, bool wide) {
    constexpr int N = 16 / sizeof(T);
    Place at[ITEMS];
    Group<T, N> gate[ITEMS], up[ITEMS];
#pragma unroll
    for (int k = 0; k < ITEMS; ++k) {
        at[k] = place<N, ITEMS>(walk, by, k);
        if (!at[k].live) continue;
        gate[k] = load_group<T, N>(gate_up.at(at[k].row), at[k].c, cols, wide);
        up[k] = load_group<T, N>(gate_up.at(at[k].row) + cols, at[k].c, cols, wide);
    }
#pragma unroll
    for (int k = 0; k < ITEMS; ++k) {
        if (!at[k].live) continue;
#pragma unroll
        for (int i = 0; i < N; ++i) {
            float g = to_float(gate[k].v[i]);
            gate[k].v[i] = from_float<T>(g * logistic<T>(g) * to_float(up[k].v[i]));
        }
        store_group<T, N>(out.at(at[k].row), at[k].c, cols, wide, gate[k]);
    }
}

template <typename T>
__device__ void swiglu_grad(View<const T> gate_up, View<const T> d_out, View<T> d_gate_up, View<T> h, int cols, Walk walk,
                            Divisor by, bool wide) {
    constexpr int N = 16 / sizeof(T);
    Place at[ITEMS];
    Group<T, N> gate[ITEMS], up[ITEMS], d[ITEMS];
#pragma unroll
    for (int k = 0; k < ITEMS; ++k) {
        at[k] = place<N, ITEMS>(walk, by, k);
        if (!at[k].live) continue;
        gate[k] = load_group<T, N>(gate_up.at(at[k].row), at[k].c, cols, wide);
        up[k] = load_group<T, N>(gate_up.at(at[k].row) + cols, at[k].c, cols, wide);
        d[k] = load_group<T, N>(d_out.at(at[k].row), at[k].c, cols, wide);
    }
#pragma unroll
    for (int k = 0; k < ITEMS; ++k) {
        if (!at[k].live) continue;
        Group<T, N> product;
#pragma unroll
        for (int i = 0; i < N; ++i) {
            float g = to_float(gate[k].v[i]), u = to_float(up[k].v[i]), by_out = to_float(d[k].v[i]);
            float s = logistic<T>(g);
            product.v[i] = from_float<T>(g * s * u);
            up[k].v[i] = from_float<T>(by_out * g * s);
            gate[k].v[i] = from_float<T>(by_out * u * s * (1.0f + g * (1.0f - s)));
        }
        T* target = d_gate_up.at(at[k].row);
        store_group<T, N>(target, at[k].c, cols, wide, gate[k]);
        store_group<T, N>(target + cols, at[k].c, cols, wide, up[k]);
        if (h.data) store_group<T, N>(h.at(at[k].row), at[k].c, cols, wide, product);
    }
}

#define KERNEL extern "C" __global__ void __launch_bounds__(256)
#define WALK int cols, Walk walk, Divisor by, int wide

#define DEFINE_CAST(A, B, suffix)                                                                                          \
    KERNEL cast_##suffix(const A* x, int x_pitch, B* out, int out_pitch, WALK) {                                           \
        map(View<const A>{x, x_pitch}, View<B>{out, out_pitch}, cols, walk, by, wide, [](float v) { return v; });          \
    }
DEFINE_CAST(float, bf16, f32_bf16)
DEFINE_CAST(bf16, float, bf16_f32)

#define DEFINE_BIAS(T, B, suffix)                                                                                          \
    KERNEL add_bias_##suffix(T* y, int y_pitch, const B* bias, WALK) {                                                     \
        map2(View<const T>{y, y_pitch}, View<const B>{bias, 0}, View<T>{y, y_pitch}, cols, walk, by, wide,                 \
             [](float v, float w) { return v + w; });                                                                      \
    }
DEFINE_BIAS(float, float, f32_f32)
DEFINE_BIAS(bf16, bf16, bf16_bf16)
DEFINE_BIAS(bf16, float, bf16_f32)

#define DEFINE_ACTIVATION(T, suffix, name, Rule)                                                                           \
    KERNEL name##_##suffix(const T* x, int x_pitch, T* out, int out_pitch, WALK) {                                         \
        map(View<const T>{x, x_pitch}, View<T>{out, out_pitch}, cols, walk, by, wide,                                      \
            [](float v) { return Rule::value<T>(v); });                                                                    \
    }                                                                                                                      \
    KERNEL name##_grad_##suffix(const T* x, int x_pitch, const T* d_out, int d_out_pitch, T* d_x, int d_x_pitch, WALK) {   \
        map2(View<const T>{x, x_pitch}, View<const T>{d_out, d_out_pitch}, View<T>{d_x, d_x_pitch}, cols, walk, by, wide,  \
             [](float v, float d) { return d * Rule::slope<T>(v); });                                                      \
    }
#define DEFINE(T, suffix)                                                                                                  \
    KERNEL add_##suffix(const T* a, int a_pitch, const T* b, int b_pitch, T* out, int out_pitch, WALK) {                   \
        map2(View<const T>{a, a_pitch}, View<const T>{b, b_pitch}, View<T>{out, out_pitch}, cols, walk, by, wide,          \
             [](float v, float w) { return v + w; });                                                                      \
    }                                                                                                                      \
    KERNEL swiglu_##suffix(const T* gate_up, int gate_up_pitch, T* out, int out_pitch, WALK) {                             \
        swiglu(View<const T>{gate_up, gate_up_pitch}, View<T>{out, out_pitch}, cols, walk, by, wide);                      \
    }                                                                                                                      \
    KERNEL swiglu_grad_##suffix(const T* gate_up, int gate_up_pitch, const T* d_out, int d_out_pitch, T* d_gate_up,        \
                                int d_gate_up_pitch, T* h, int h_pitch, WALK) {                                            \
        swiglu_grad(View<const T>{gate_up, gate_up_pitch}, View<const T>{d_out, d_out_pitch},                              \
                    View<T>{d_gate_up, d_gate_up_pitch}, View<T>{h, h_pitch}, cols, walk, by, wide);                       \
    }                                                                                                                      \
    extern "C" __global__ void __launch_bounds__(1024) bias_grad_##suffix(const T* d_y, int d_y_pitch, float* d_bias,      \
                                                                          int rows, int cols, int wide) {                  \
        constexpr int N = 16 / sizeof(T);                                                                                  \
        column_sums<N>(rows, cols, d_bias, wide, [=](auto how, long long row, int c, float(&sum)[N]) {                     \
            Group<T, N> d = load_part<T, N>(d_y + row * d_y_pitch, c, cols, how.value);                                    \
            for (int i = 0; i < N; ++i) sum[i] += to_float(d.v[i]);                                                        \
        });                                                                                                                \
    }                                                                                                                      \
    DEFINE_ACTIVATION(T, suffix, relu, Relu)                                                                               \
    DEFINE_ACTIVATION(T, suffix, gelu_tanh, GeluTanh)                                                                      \
    DEFINE_ACTIVATION(T, suffix, gelu_erf, GeluErf)                                                                        \
    DEFINE_ACTIVATION(T, suffix, silu, Silu)
DEFINE(float, f32)
DEFINE(bf16, bf16)
