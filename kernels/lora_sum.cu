// Gradients of adapters from the sums over slices of tokens, many of them in one launch.
//
//   target[i] += factor (parts[i] + parts[stride + i] + parts[2 stride + i] + ...)      in this order, float32
//
// | tensor  | shape                                        | type    |
// | list    | one entry for each target, up to 32          | structs |
// | parts   | slices of them, `stride` elements apart      | float32 |
// | target  | `count` elements: an A or a B of a module    | float32 |
//
// A block takes 1,024 elements of one target, a thread four neighbours. Tolerance: 1e-5 of the largest magnitude.
// H100, the four gradients of SwiGLU's step in a layer of Qwen2.5-0.5B at r = 16: 10 us (1,860 GB/s).

#include "common.cuh"
#include "philox.cuh"

// One target; the same struct as in src/cuda/ops/lora/sum.rs.
struct SumEntry {
    const float* parts;
    float* target;
    u32 count, stride, slices;
    u32 factor;  // 0: 1, 1: what kept elements are multiplied by, 2: the adapters' scale
    u32 first;   // block of the entry
    u32 wide;    // 16 bytes at a time
};

constexpr int ENTRIES = 32;

// Comes with the launch: no memory of the device has to be filled for it.
struct SumList {
    SumEntry entries[ENTRIES];
};

constexpr int AHEAD = 8;

__device__ inline float factor_of(u32 which, const StepScalars* s) {
    return which == 0 ? 1.0f : (which == 1 ? keep_scale(s->drop_threshold) : s->lora_scale);
}

extern "C" __global__ void __launch_bounds__(256)
    lora_sum(const __grid_constant__ SumList list, int count, const StepScalars* scalars) {
    int lane = threadIdx.x % WARP;
    bool begun = lane < count && list.entries[lane].first <= blockIdx.x;
    SumEntry e = list.entries[__popc(__ballot_sync(0xFFFFFFFFu, begun)) - 1];
    u32 i = ((blockIdx.x - e.first) * blockDim.x + threadIdx.x) * 4;
    if (i >= e.count) return;
    float factor = factor_of(e.factor, scalars);
    if (e.wide) {
        float4* target = reinterpret_cast<float4*>(e.target + i);
        float4 sum = make_float4(0.0f, 0.0f, 0.0f, 0.0f), before = *target;
        for (u32 slice = 0; slice < e.slices; slice += AHEAD) {
            float4 part[AHEAD];
#pragma unroll
            for (int k = 0; k < AHEAD; ++k) {
                const float* source = e.parts + (slice + k) * (u64)e.stride + i;
                part[k] = slice + k < e.slices ? *reinterpret_cast<const float4*>(source) : make_float4(0.0f, 0.0f, 0.0f, 0.0f);
            }
#pragma unroll
            for (int k = 0; k < AHEAD; ++k) {
                sum = make_float4(sum.x + part[k].x, sum.y + part[k].y, sum.z + part[k].z, sum.w + part[k].w);
            }
        }
        *target = make_float4(before.x + factor * sum.x, before.y + factor * sum.y, before.z + factor * sum.z,
                              before.w + factor * sum.w);
        return;
    }
    for (u32 k = i; k < min(i + 4, e.count); ++k) {
        float sum = 0.0f;
#pragma unroll 8
        for (u32 slice = 0; slice < e.slices; ++slice) sum += e.parts[slice * (u64)e.stride + k];
        e.target[k] += factor * sum;
    }
}
