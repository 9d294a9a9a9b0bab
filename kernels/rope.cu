// Rotary position embedding (J. Su and others, 2021) of the halves of each head, in place.
//
//   x[i], x[i + D/2]  =  x[i] cos - x[i + D/2] sin,  x[i + D/2] cos + x[i] sin      (sin negated with `inverse`)
//
// | tensor    | shape   | type                                        |
// | x         | T x n*D | float32 or bfloat16                         |
// | positions | T x 1   | u32; beyond the table: its last row         |
// | table     | P x D   | float32: D/2 cosines, then D/2 sines        |
//
// Wide: a thread takes 16 bytes of each half; plain: one element of each.
// Tolerance of each element: 2^-23 of |x[i] cos| + |x[i + D/2] sin|, in bfloat16 one unit in the last place beside; and 2e-6
// (float32), 4e-3 (bfloat16) of the largest magnitude.
// Speed on an H100 80GB HBM3, 8192 tokens, 16 heads of 64: bfloat16 13.5 us (2,481 GB/s), float32 25.2 us (2,665).

#include "common.cuh"

// Which row, and the first column of the low half, for a thread that takes `n` elements of each half.
struct Place {
    long long row;
    int column, at;
};
__device__ inline Place place(int item, int heads, int half, int n) {
    int parts = half / n, part = item % parts, head = item / parts % heads;
    return {item / parts / heads, head * 2 * half + part * n, part * n};
}

template <typename T, int N>
__device__ inline void rotate(T (&low)[N], T (&high)[N], const float (&cos)[N], const float (&sin)[N], int inverse) {
#pragma unroll
    for (int i = 0; i < N; ++i) {
        float a = to_float(low[i]), b = to_float(high[i]), s = inverse ? -sin[i] : sin[i];
        low[i] = from_float<T>(a * cos[i] - b * s);
        high[i] = from_float<T>(b * cos[i] + a * s);
    }
}

template <typename T>
__device__ void plain(T* x, int pitch, const u32* positions, const float* table, int table_rows, int items, int heads,
                      int half, int inverse) {
    int item = blockIdx.x * blockDim.x + threadIdx.x;
    if (item >= items) return;
    Place at = place(item, heads, half, 1);
    const float* angles = table + (long long)min(positions[at.row], (u32)table_rows - 1) * 2 * half + at.at;
    T* target = x + at.row * pitch + at.column;
    T low[1] = {target[0]}, high[1] = {target[half]};
    float cos[1] = {angles[0]}, sin[1] = {angles[half]};
    rotate<T, 1>(low, high, cos, sin, inverse);
    target[0] = low[0];
    target[half] = high[0];
}

template <typename T>
__device__ void wide(T* x, int pitch, const u32* positions, const float* table, int table_rows, int items, int heads,
                     int half, int inverse) {
    constexpr int N = Pack<T>::N;
    int item = blockIdx.x * blockDim.x + threadIdx.x;
    if (item >= items) return;
    Place at = place(item, heads, half, N);
    const float* angles = table + (long long)min(positions[at.row], (u32)table_rows - 1) * 2 * half + at.at;
    T* target = x + at.row * pitch + at.column;
    Pack<T> low = load_pack(target), high = load_pack(target + half);
    float cos[N], sin[N];
#pragma unroll
    for (int i = 0; i < N; i += 4) {
        Pack<float> c = load_pack(angles + i), s = load_pack(angles + half + i);
#pragma unroll
        for (int j = 0; j < 4; ++j) {
            cos[i + j] = c.v[j];
            sin[i + j] = s.v[j];
        }
    }
    rotate<T, N>(low.v, high.v, cos, sin, inverse);
    store_pack(target, low);
    store_pack(target + half, high);
}

#define PARAMETERS(T)                                                                                                       \
    (T* x, int pitch, const u32* positions, const float* table, int table_rows, int items, int heads, int half, int inverse)
#define ARGUMENTS (x, pitch, positions, table, table_rows, items, heads, half, inverse)
#define DEFINE(T, suffix)                                                                                                   \
    extern "C" __global__ void rope_##suffix PARAMETERS(T) { plain<T> ARGUMENTS; }                                         \
    extern "C" __global__ void rope_wide_##suffix PARAMETERS(T) { wide<T> ARGUMENTS; }
DEFINE(float, f32)
DEFINE(bf16, bf16)
