// Gradients of adapters by plain loops: float32, and shapes that the tensor-core kernels of lora_grad.cu do not take.
//
//   d_u_m = scale d_y_m B_m     d_B_m += scale d_y_m^T u_m     d_A_m += d_u_m^T drop_m(x)     d_x += sum of drop_m(d_u_m A_m)
//
// | tensor     | shape                       | type                        |
// | x, d_x, d_y | T x K, T x K, T x N        | float32 or bfloat16 (all)   |
// | A_m, B_m   | r x K, N_m x r              | as x                        |
// | u, d_u     | T x (n r)                   | float32                     |
// | part_a     | slices x (n r) x K          | float32                     |
// | part_b     | slices x (sum of N_m) x r   | float32                     |
//
// d_u: a block a token and 64 ranks, threads (part of the columns, rank), parts added in order. d_A, d_B: blocks of 32
// columns, a slice of tokens and 64 ranks, tokens in order; `lora_sum.cu` adds the slices. d_x: a thread an element.
// Tolerance: 1e-5 (float32), 1e-2 (bfloat16) of the largest magnitude; masks exact.
// Speed on an H100 80GB HBM3, T = 8192, r = 16, dropout, float32, groups q,k,v / o / gate,up / down of Qwen2.5-0.5B: d_u 100, 66, 604
// and 66 us (396, 456, 530 and 457 GB/s); d_B 185, 122, 1380 and 121 us (230, 274, 235 and 277); d_A 1291, 439, 880 and 2383 us
// (26, 72, 37 and 68); d_x 292, 110, 202 and 578 us (207, 537, 296 and 553).

#include "lora.cuh"

constexpr int THREADS = 256, WARPS = THREADS / WARP, SLOTS = PLAIN_RANKS / WARPS;

// Blocks (token, module, 64 ranks).
template <typename T>
__device__ void grad_u(const T* d_y, int d_y_pitch, const Each<const T*>& b, float* d_u, int d_u_pitch, const Columns& columns,
                       int rank, const StepScalars* scalars) {
    __shared__ float parts[THREADS];
    int module = blockIdx.y, count = columns.count.at(module);
    int rank0 = blockIdx.z * PLAIN_RANKS, own = min(rank - rank0, PLAIN_RANKS);
    int split = THREADS / own, part = threadIdx.x / own, k = threadIdx.x % own;
    const T* row = d_y + (u64)blockIdx.x * d_y_pitch + columns.start.at(module);
    const T* weights = b.at(module) + rank0;
    float sum = 0.0f;
    if (part < split) {
        for (int c = part; c < count; c += split) sum += to_float(row[c]) * to_float(weights[(u64)c * rank + k]);
    }
    parts[threadIdx.x] = sum;
    __syncthreads();
    if (part > 0) return;
    for (int i = 1; i < split; ++i) sum += parts[i * own + k];
    d_u[(u64)blockIdx.x * d_u_pitch + module * rank + rank0 + k] = scalars->lora_scale * sum;
}

// acc[slot] = sum over tokens of left[token][warp + 8 slot] right(token), `ranks` being left: right gives the lane's column.
template <typename F>
__device__ inline void outer(float (&acc)[SLOTS], const float* left, int pitch, int ranks, int start, int end, F right) {
    int warp = threadIdx.x / WARP;
    for (int token = start; token < end; ++token) {
        float v = right(token);
#pragma unroll
        for (int slot = 0; slot < SLOTS; ++slot) {
            if (warp + WARPS * slot < ranks) acc[slot] += left[(u64)token * pitch + warp + WARPS * slot] * v;
        }
    }
}

// The part of the work that a block does: blocks (32 columns, slice, (module, 64 ranks)).
struct Part {
    int module, rank0;
};
__device__ inline Part part_of(int rank) {
    int groups = (rank + PLAIN_RANKS - 1) / PLAIN_RANKS;
    return Part{(int)blockIdx.z / groups, (int)blockIdx.z % groups * PLAIN_RANKS};
}

template <typename T>
__device__ void grad_a(const T* x, int x_pitch, const float* d_u, int d_u_pitch, float* part_a, int modules, int tokens, int slice,
                       int features, int rank, const Dropout& dropout, const StepScalars* scalars) {
    auto [module, rank0] = part_of(rank);
    int warp = threadIdx.x / WARP, f = blockIdx.x * WARP + threadIdx.x % WARP;
    int start = blockIdx.y * slice, end = min(tokens, start + slice);
    if (f >= features) return;
    bool drop = drops(dropout, scalars);
    uint2 key = drop ? dropout_key(scalars, dropout.layer, dropout.modules.at(module)) : make_uint2(0, 0);
    float acc[SLOTS] = {};
    outer(acc, d_u + module * rank + rank0, d_u_pitch, rank - rank0, start, end, [&](int token) {
        bool keep = !drop || keeps(key, scalars->drop_threshold, token_of(dropout, token, end), f);
        return keep ? to_float(x[(u64)token * x_pitch + f]) : 0.0f;
    });
#pragma unroll
    for (int slot = 0; slot < SLOTS; ++slot) {
        int k = rank0 + warp + WARPS * slot;
        if (k < rank) part_a[((u64)(blockIdx.y * modules + module) * rank + k) * features + f] = acc[slot];
    }
}

template <typename T>
__device__ void grad_b(const T* d_y, int d_y_pitch, const float* u, int u_pitch, float* part_b, const Columns& columns, int tokens,
                       int slice, int rank) {
    auto [module, rank0] = part_of(rank);
    int warp = threadIdx.x / WARP, c = blockIdx.x * WARP + threadIdx.x % WARP;
    int start = blockIdx.y * slice, end = min(tokens, start + slice);
    if (c >= columns.count.at(module)) return;
    int before = (module > 0 ? columns.count.of[0] : 0) + (module > 1 ? columns.count.of[1] : 0);
    int rows = columns.count.of[0] + columns.count.of[1] + columns.count.of[2];
    const T* column = d_y + columns.start.at(module) + c;
    float acc[SLOTS] = {};
    outer(acc, u + module * rank + rank0, u_pitch, rank - rank0, start, end,
          [&](int token) { return to_float(column[(u64)token * d_y_pitch]); });
#pragma unroll
    for (int slot = 0; slot < SLOTS; ++slot) {
        int k = rank0 + warp + WARPS * slot;
        if (k < rank) part_b[((u64)blockIdx.y * rows + before + c) * rank + k] = acc[slot];
    }
}

// Blocks (token, 256 features).
template <typename T>
__device__ void grad_input(const float* d_u, int d_u_pitch, const Each<const T*>& a, T* d_x, int d_x_pitch, int modules, int features,
                           int rank, const Dropout& dropout, const StepScalars* scalars) {
    int token = blockIdx.x, f = blockIdx.y * THREADS + threadIdx.x;
    if (f >= features) return;
    bool drop = drops(dropout, scalars);
    Token counter = drop ? token_of(dropout, token, token + 1) : Token{0, 0, 0};
    float total = 0.0f;
    for (int module = 0; module < modules; ++module) {
        if (drop) {
            uint2 key = dropout_key(scalars, dropout.layer, dropout.modules.at(module));
            if (!keeps(key, scalars->drop_threshold, counter, f)) continue;
        }
        const float* left = d_u + (u64)token * d_u_pitch + module * rank;
        const T* right = a.at(module) + f;
        float sum = 0.0f;
        for (int k = 0; k < rank; ++k) sum += left[k] * to_float(right[(u64)k * features]);
        total += sum;
    }
    T* target = d_x + (u64)token * d_x_pitch + f;
    *target = from_float<T>(to_float(*target) + kept(dropout, scalars) * total);
}

#define DEFINE(T, suffix)                                                                                                  \
    extern "C" __global__ void __launch_bounds__(THREADS) lora_grad_u_##suffix(                                          \
        const T* d_y, int d_y_pitch, EACH_PARAMETERS(const T*, b), float* d_u, int d_u_pitch, COLUMNS_PARAMETERS,         \
        int rank, const StepScalars* scalars) {                                                                            \
        grad_u<T>(d_y, d_y_pitch, EACH(const T*, b), d_u, d_u_pitch, COLUMNS, rank, scalars);                              \
    }                                                                                                                      \
    extern "C" __global__ void __launch_bounds__(THREADS) lora_grad_a_##suffix(                                          \
        const T* x, int x_pitch, const float* d_u, int d_u_pitch, float* part_a, int modules, int tokens, int slice,      \
        int features, int rank, DROPOUT_PARAMETERS) {                                                                      \
        grad_a<T>(x, x_pitch, d_u, d_u_pitch, part_a, modules, tokens, slice, features, rank, DROPOUT, scalars);          \
    }                                                                                                                      \
    extern "C" __global__ void __launch_bounds__(THREADS) lora_grad_b_##suffix(                                          \
        const T* d_y, int d_y_pitch, const float* u, int u_pitch, float* part_b, COLUMNS_PARAMETERS, int tokens,          \
        int slice, int rank) {                                                                                             \
        grad_b<T>(d_y, d_y_pitch, u, u_pitch, part_b, COLUMNS, tokens, slice, rank);                                       \
    }                                                                                                                      \
    extern "C" __global__ void __launch_bounds__(THREADS) lora_grad_input_##suffix(                                      \
        const float* d_u, int d_u_pitch, EACH_PARAMETERS(const T*, a), T* d_x, int d_x_pitch, int modules,                \
        int features, int rank, DROPOUT_PARAMETERS) {                                                                      \
        grad_input<T>(d_u, d_u_pitch, EACH(const T*, a), d_x, d_x_pitch, modules, features, rank, DROPOUT, scalars);      \
    }
DEFINE(float, f32)
DEFINE(bf16, bf16)
