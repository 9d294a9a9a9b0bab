// Cross-entropy of logits against labels, with the gradient in place of the logits, and the sum of losses.
//
//   loss[i] = lse(logits[i]) - logits[i][label]      with gradient: logits[i] = softmax - onehot
//   sum = sum of losses
//
// | tensor  | shape | type                                               |
// | logits  | R x V | float32 or bfloat16                                |
// | labels  | R x 1 | u32; 0xFFFFFFFF: no loss, a gradient of zeros      |
// | loss    | R x 1 | float32                                            |
// | sum     | 1 x 1 | float32                                            |
//
// A block takes rows blockIdx.x, blockIdx.x + gridDim.x, ... one after another. First read: maximum and sum of exponentials as it
// goes (`running.cuh`). Second read: the gradient, rounded once to the logits' type. Of a row of whole groups as much as fits
// waits in shared memory, where each thread finds what it put there: the last `keep` of its groups. The others, read again at
// once, are still in the cache. Copies of the next row follow on the heels of the second read.
// A label that is no column makes the loss NaN and the gradient zero. Exponentials of bfloat16 logits are
// approximate (1e-5 relative). The gradient is that of the sum of losses: divided by the number of labels here, the nearly -1 at
// every label would be rounded alike, up to 0.4 % off in bfloat16, and the whole gradient with them. Tolerance: 1e-5 (float32), 1e-2 (bfloat16) of the largest magnitude.
// 1024 x 151,936 in bfloat16 with gradient, H200: 211 us (2,950 GB/s by one read and one write).
// H100 80GB HBM3, 256 rows, then 1024: 33 and 120 us (2,365 and 2,592 GB/s), with gradient 74 and 267 us (2,113 and 2,333).
// Sum: float64, thread by thread of one block, then a fixed tree. With `flag`, a sum that is not finite sets it to 1.

#include "common.cuh"
#include "groups.cuh"
#include "mma.cuh"
#include "running.cuh"

constexpr u32 NONE = 0xFFFFFFFFu;

template <typename T>
__device__ void zero_row(T* row, int cols, bool wide) {
    constexpr int N = 16 / sizeof(T);
    for (int c = (int)threadIdx.x * N; c < cols; c += (int)blockDim.x * N) {
        store_group<T, N>(row, c, cols, wide, Group<T, N>{});
    }
}

// What a thread keeps of a row.
template <typename T>
struct Kept {
    static constexpr int N = 16 / sizeof(T);
    u32 own;    // address of its first place
    int first;  // its first group there
    __device__ u32 place(int number) const { return own + (number - first) * (int)blockDim.x * 16; }
    __device__ int column(int number) const { return (number * (int)blockDim.x + (int)threadIdx.x) * N; }
    // Starts the copy of a group.
    __device__ void begin(const T* row, int number, int cols) const {
        int c = column(number);
        if (c < cols) copy_async_16(place(number), row + c, true);
    }
    __device__ Group<T, N> take(int number) const {
        uint4 raw = load_shared_16(place(number));
        return *reinterpret_cast<const Group<T, N>*>(&raw);
    }
};

template <typename Exp, typename T, int N>
__device__ inline void gradient_group(Group<T, N>& v, Running run, float factor) {
#pragma unroll
    for (int i = 0; i < N; i += 2) {
        put_pair(v, i, Exp::exp(element(v, i) - run.top) * factor, Exp::exp(element(v, i + 1) - run.top) * factor);
    }
}

// `next`: the row that this block takes then, or null.
template <typename Exp, typename T>
__device__ void gradient_row(T* row, const T* next, const Kept<T>& kept, int groups, Running run, float factor, int cols, bool wide) {
    constexpr int N = 16 / sizeof(T), AHEAD = 4;
    for (int first = 0; first < kept.first; first += AHEAD) {
        Group<T, N> v[AHEAD];
#pragma unroll
        for (int k = 0; k < AHEAD; ++k) {
            if (first + k < kept.first) v[k] = load_group<T, N>(row, min(kept.column(first + k), cols), cols, wide);
        }
#pragma unroll
        for (int k = 0; k < AHEAD; ++k) {
            int c = kept.column(first + k);
            if (first + k >= kept.first || c >= cols) continue;
            gradient_group<Exp>(v[k], run, factor);
            store_group<T, N>(row, c, cols, wide, v[k]);
        }
    }
#pragma unroll 2
    for (int number = kept.first; number < groups; ++number) {
        int c = kept.column(number);
        if (c >= cols) break;
        Group<T, N> v = kept.take(number);
        if (next != nullptr) kept.begin(next, number, cols);
        gradient_group<Exp>(v, run, factor);
        store_part<T, N>(row, c, cols, true, v);
    }
}

template <typename Exp, typename T>
__device__ void forward(T* logits, int pitch, const u32* labels, float* loss, int rows, int cols,
                        int gradient, int keep, bool wide) {
    extern __shared__ __align__(16) u8 shared[];
    constexpr int N = 16 / sizeof(T);
    int groups = (cols + (int)blockDim.x * N - 1) / ((int)blockDim.x * N);
    Kept<T> kept{shared_address(shared) + 16 * threadIdx.x, groups - keep};
    auto next_of = [&](int i) {
        do i += gridDim.x;
        while (i < rows && labels[i] >= (u32)cols);
        return i;
    };
    auto row_of = [&](int i) { return logits + (long long)i * pitch; };
    int next = next_of((int)blockIdx.x - (int)gridDim.x);
    if (next < rows) {
        for (int number = kept.first; number < groups; ++number) kept.begin(row_of(next), number, cols);
    }
    copy_async_commit();
    for (int i = blockIdx.x; i < rows; i += gridDim.x) {
        T* row = row_of(i);
        u32 label = labels[i];
        if (label >= (u32)cols) {
            if (threadIdx.x == 0) loss[i] = label == NONE ? 0.0f : __int_as_float(0x7FC00000);
            if (gradient) zero_row(row, cols, wide);
            continue;
        }
        float at_label = to_float(row[label]);
        next = next_of(i);
        Running run = over_block<Exp>(over_groups<Exp, T>(cols, [&](int number, int c) {
            if (number < kept.first || c >= cols) return load_group<T, N>(row, c, cols, wide, minus_infinity<T>());
            if (number == kept.first) copy_async_wait<0>();
            return kept.take(number);
        }));
        if (threadIdx.x == 0) loss[i] = logf(run.sum) - (at_label - run.top);
        if (!gradient) continue;
        float factor = 1.0f / run.sum;
        gradient_row<Exp>(row, next < rows ? row_of(next) : nullptr, kept, groups, run, factor, cols, wide);
        copy_async_commit();
        // The thread that wrote the label's column takes what it lacks.
        if (threadIdx.x == label / N % blockDim.x) {
            row[label] = from_float<T>(Exp::exp(at_label - run.top) * factor - 1.0f);
        }
    }
}

// `keep`: groups of each thread that wait in shared memory; only with `wide`, rows of whole groups and `gradient`.
#define DEFINE(T, suffix, Exp)                                                                                             \
    extern "C" __global__ void __launch_bounds__(1024, 1) cross_entropy_##suffix(                                         \
        T* logits, int pitch, const u32* labels, float* loss, int rows, int cols,             \
        int gradient, int keep, int wide) {                                                                                \
        forward<Exp>(logits, pitch, labels, loss, rows, cols, gradient, keep, wide);                              \
    }
DEFINE(float, f32, Exact)
DEFINE(bf16, bf16, Fast)

extern "C" __global__ void __launch_bounds__(1024) sum_loss(const float* losses, int rows, float* sum, u32* flag) {
    double total = 0.0;
    for (int i = threadIdx.x; i < rows; i += blockDim.x) total += (double)losses[i];
    total = block_sum(total);
    if (threadIdx.x == 0) {
        *sum = (float)total;
        if (flag && !isfinite((float)total)) *flag = 1;
    }
}
