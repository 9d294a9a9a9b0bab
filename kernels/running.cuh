// Maximum of a row and the sum of exp(x - maximum), in one read (M. Milakov, N. Gimelshein, 2018).

struct Running {
    float top;
    float sum;
};

// Exponentials of float32's accuracy, and of an accuracy that bfloat16 needs.
struct Exact {
    static __device__ float exp(float x) { return expf(x); }
};
struct Fast {
    static __device__ float exp(float x) {
        float out;
        asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(out) : "f"(x * 1.4426950408889634f));
        return out;
    }
};

// What is subtracted: a maximum of minus infinity would make every exponent NaN.
__device__ inline float base_of(float top) { return top == -INF ? 0.0f : top; }

// Of the elements that this thread takes: groups `thread`, `thread + threads`, ... in order. `load(n, c)` is its n-th, which
// starts at column c; minus infinity stands for what lies beyond the row.
template <typename Exp, typename T, typename Load>
__device__ inline Running over_groups(int cols, Load load) {
    constexpr int N = 16 / sizeof(T), AHEAD = 4;
    Running run = {-INF, 0.0f};
    int stride = (int)blockDim.x * N, number = 0;
    for (int first = (int)threadIdx.x * N; first < cols; first += AHEAD * stride, number += AHEAD) {
        Group<T, N> v[AHEAD];
#pragma unroll
        for (int k = 0; k < AHEAD; ++k) v[k] = load(number + k, min(first + k * stride, cols));
        float top = run.top;
#pragma unroll
        for (int k = 0; k < AHEAD; ++k) {
#pragma unroll
            for (int i = 0; i < N; ++i) top = fmaxf(top, element(v[k], i));
        }
        float base = base_of(top);
        run.sum *= Exp::exp(run.top - base);
        run.top = top;
#pragma unroll
        for (int k = 0; k < AHEAD; ++k) {
#pragma unroll
            for (int i = 0; i < N; ++i) run.sum += Exp::exp(element(v[k], i) - base);
        }
    }
    return run;
}
template <typename Exp, typename T>
__device__ inline Running over_row(const T* row, int cols, bool wide) {
    return over_groups<Exp, T>(cols, [&](int, int c) {
        return load_group<T, 16 / sizeof(T)>(row, c, cols, wide, minus_infinity<T>());
    });
}

// Of the whole block; every thread gets it.
template <typename Exp>
__device__ inline Running over_block(Running run) {
    float top = block_max(run.top);
    return Running{top, block_sum(run.sum * Exp::exp(run.top - base_of(top)))};
}
