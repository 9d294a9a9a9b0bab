// Sum of partial results of a matrix product (see src/cuda/matmul.rs).
//
//   out[r, c] = parts[0][r, c] + parts[1][r, c] + ... + addend[r, c] + bias[c]      in this order, float32, rounded once
//
// | tensor | shape     | type                                    |
// | parts  | P x (R C) | float32                                 |
// | out    | R x C     | float32 or bfloat16                     |
// | addend | R x C     | that of out, which it may be; may be null |
// | bias   | 1 x C     | that of out; may be null                |
//
// One thread an element. Tolerance: that of the product, 1e-5 (float32), 1e-2 (bfloat16) of the largest magnitude.
// Speed on an H100 80GB HBM3: 2 parts of 9728 x 896 to bfloat16 41.4 us (2,105 GB/s), to float32 44.0 us (2,380); 9 of 896 x 896
// 12.1 us (2,529) and 12.5 us (2,578).

#include "common.cuh"

template <typename T>
__device__ void add(const float* parts, int count, long long size, T* out, int out_pitch, int cols, const T* addend,
                    int addend_pitch, const T* bias) {
    long long i = (long long)blockIdx.x * blockDim.x + threadIdx.x;
    if (i >= size) return;
    float sum = parts[i];
    for (int p = 1; p < count; ++p) sum += parts[p * size + i];
    long long row = i / cols, c = i % cols;
    if (addend) sum += to_float(addend[row * addend_pitch + c]);
    if (bias) sum += to_float(bias[c]);
    out[row * out_pitch + c] = from_float<T>(sum);
}

#define DEFINE(T, suffix)                                                                                                  \
    extern "C" __global__ void __launch_bounds__(256) sum_parts_##suffix(const float* parts, int count, long long size,   \
                                                                         T* out, int out_pitch, int cols,                 \
                                                                         const T* addend, int addend_pitch,               \
                                                                         const T* bias) {                                 \
        add<T>(parts, count, size, out, out_pitch, cols, addend, addend_pitch, bias);                                      \
    }
DEFINE(float, f32)
DEFINE(bf16, bf16)
