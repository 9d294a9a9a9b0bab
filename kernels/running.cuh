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
    static __device__ float exp(float x) { return __expf(x); }
};

// What is subtracted: a maximum of minus infinity would make every exponent NaN.
__device__ inline float base_of(float top) { return top == -INF ? 0.0f : top; }

// Of the elements that this thread takes: groups `thread`, `thread + threads`, ... in order.
template <typename Exp, typename T>
__device__ inline Running over_row(const T* row, int cols, bool wide) {
    constexpr int N = 16 / sizeof(T), AHEAD = 4;
    Running run = {-INF, 0.0f};
    int stride = (int)blockDim.x * N;
    for (int first = (int)threadIdx.x * N; first < cols; first += AHEAD * stride) {
        Group<T, N> v[AHEAD];
#pragma unroll
        for (int k = 0; k < AHEAD; ++k) {
            v[k] = load_group<T, N>(row, min(first + k * stride, cols), cols, wide, minus_infinity<T>());
        }
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

// Of the whole block; every thread gets it.
template <typename Exp>
__device__ inline Running over_block(Running run) {
    float top = block_max(run.top);
    return Running{top, block_sum(run.sum * Exp::exp(run.top - base_of(top)))};
}
