// Cross-entropy of logits against labels, with the gradient in place of the logits, and the sum of losses.
//
//   loss[i] = lse(logits[i]) - logits[i][label]      with gradient: logits[i] = (softmax - onehot) inv_labels
//   sum = sum of losses
//
// | tensor  | shape | type                                               |
// | logits  | R x V | float32 or bfloat16                                |
// | labels  | R x 1 | u32; 0xFFFFFFFF: no loss, a gradient of zeros      |
// | loss    | R x 1 | float32                                            |
// | scalars | 1     | StepScalars                                        |
// | sum     | 1 x 1 | float32                                            |
//
// One block a row. First read: maximum and sum of exponentials as it goes (`running.cuh`). Second read, from the end of the row
// backwards because that part is still in the cache: the gradient, rounded once to the logits' type. 2 reads and 1 write of
// the logits. A label that is no column makes the loss NaN and the gradient zero. Exponentials of bfloat16 logits are
// approximate (1e-5 relative). Tolerance: 1e-5 (float32), 1e-2 (bfloat16) of the largest magnitude.
// Sum: float64, thread by thread of one block, then a fixed tree. With `flag`, a sum that is not finite sets it to 1.

#include "common.cuh"
#include "groups.cuh"
#include "running.cuh"

constexpr u32 NONE = 0xFFFFFFFFu;

template <typename T>
__device__ void zero_row(T* row, int cols, bool wide) {
    constexpr int N = 16 / sizeof(T);
    for (int c = (int)threadIdx.x * N; c < cols; c += (int)blockDim.x * N) {
        store_group<T, N>(row, c, cols, wide, Group<T, N>{});
    }
}

template <typename Exp, typename T>
__device__ void gradient_row(T* row, Running run, int label, float inv_labels, int cols, bool wide) {
    constexpr int N = 16 / sizeof(T), AHEAD = 4;
    float factor = inv_labels / run.sum;
    int stride = (int)blockDim.x * N, start = (int)threadIdx.x * N;
    int groups = start < cols ? (cols - start - 1) / stride + 1 : 0;
    for (int last = groups - 1; last >= 0; last -= AHEAD) {
        Group<T, N> v[AHEAD];
#pragma unroll
        for (int k = 0; k < AHEAD; ++k) {
            if (last >= k) v[k] = load_group<T, N>(row, start + (last - k) * stride, cols, wide);
        }
#pragma unroll
        for (int k = 0; k < AHEAD; ++k) {
            if (last < k) continue;
            int c = start + (last - k) * stride;
#pragma unroll
            for (int i = 0; i < N; i += 2) {
                float g[2];
#pragma unroll
                for (int half = 0; half < 2; ++half) {
                    g[half] = Exp::exp(element(v[k], i + half) - run.top) * factor;
                    if (c + i + half == label) g[half] -= inv_labels;
                }
                put_pair(v[k], i, g[0], g[1]);
            }
            store_group<T, N>(row, c, cols, wide, v[k]);
        }
    }
}

template <typename Exp, typename T>
__device__ void forward(T* logits, int pitch, const u32* labels, float* loss, const StepScalars* scalars, int cols,
                        int gradient, bool wide) {
    T* row = logits + (long long)blockIdx.x * pitch;
    u32 label = labels[blockIdx.x];
    if (label >= (u32)cols) {
        if (threadIdx.x == 0) loss[blockIdx.x] = label == NONE ? 0.0f : __int_as_float(0x7FC00000);
        if (gradient) zero_row(row, cols, wide);
        return;
    }
    float at_label = to_float(row[label]);
    Running run = over_block<Exp>(over_row<Exp>(row, cols, wide));
    if (threadIdx.x == 0) loss[blockIdx.x] = logf(run.sum) - (at_label - run.top);
    if (gradient) gradient_row<Exp>(row, run, (int)label, scalars->inv_labels, cols, wide);
}

extern "C" __global__ void __launch_bounds__(512, 2) cross_entropy_f32(float* logits, int pitch, const u32* labels, float* loss,
                                                                    const StepScalars* scalars, int cols, int gradient,
                                                                    int wide) {
    forward<Exact>(logits, pitch, labels, loss, scalars, cols, gradient, wide);
}
extern "C" __global__ void __launch_bounds__(512, 2) cross_entropy_bf16(bf16* logits, int pitch, const u32* labels, float* loss,
                                                                     const StepScalars* scalars, int cols, int gradient,
                                                                     int wide) {
    forward<Fast>(logits, pitch, labels, loss, scalars, cols, gradient, wide);
}

extern "C" __global__ void __launch_bounds__(1024) sum_loss(const float* losses, int rows, float* sum, u32* flag) {
    double total = 0.0;
    for (int i = threadIdx.x; i < rows; i += blockDim.x) total += (double)losses[i];
    total = block_sum(total);
    if (threadIdx.x == 0) {
        *sum = (float)total;
        if (flag && !isfinite((float)total)) *flag = 1;
    }
}
