// Sum of partial results of a matrix product (see src/cuda/matmul.rs).
//
//   out[r, c] (+)= parts[0][r, c] + parts[1][r, c] + ...      in this order, float32, rounded once
//
// | tensor | shape     | type                |
// | parts  | P x (R C) | float32             |
// | out    | R x C     | float32 or bfloat16 |
//
// One thread an element. Tolerance: that of the product. Speed: see docs/KERNELS.md.

#include "common.cuh"

template <typename T>
__device__ void add(const float* parts, int count, long long size, T* out, int out_pitch, int cols, int accumulate) {
    long long i = (long long)blockIdx.x * blockDim.x + threadIdx.x;
    if (i >= size) return;
    float sum = parts[i];
    for (int p = 1; p < count; ++p) sum += parts[p * size + i];
    T* target = out + i / cols * out_pitch + i % cols;
    *target = from_float<T>(accumulate ? to_float(*target) + sum : sum);
}

#define DEFINE(T, suffix)                                                                                                  \
    extern "C" __global__ void __launch_bounds__(256) sum_parts_##suffix(const float* parts, int count, long long size,   \
                                                                         T* out, int out_pitch, int cols, int accumulate) { \
        add<T>(parts, count, size, out, out_pitch, cols, accumulate);                                                      \
    }
DEFINE(float, f32)
DEFINE(bf16, bf16)
