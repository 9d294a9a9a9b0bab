// What the kernels of attention for products of four warps share: tiles of 64 rows of a head of 64 columns.

#include "attention.cuh"
#include "wgmma.cuh"

constexpr int D = 64, TILE_ROWS = 64, GROUP = 4 * WARP;
constexpr u32 TILE = TILE_ROWS * D * 2;

#ifdef __CUDA_ARCH_FEAT_SM90_ALL

// d = a b^T, both tiles.
__device__ inline void product(float (&d)[8][4], u32 a, u32 b) {
    u64 left = tile_descriptor(a), right = tile_descriptor(b);
#pragma unroll
    for (int k = 0; k < D / 16; ++k) wgmma<0>(d, left + k * NEXT_COLUMNS, right + k * NEXT_COLUMNS, k > 0);
}
// The same with a in registers.
__device__ inline void product(float (&d)[8][4], const u32 (&a)[4][4], u32 b) {
    u64 right = tile_descriptor(b);
#pragma unroll
    for (int k = 0; k < D / 16; ++k) wgmma<0>(d, a[k], right + k * NEXT_COLUMNS, k > 0);
}
// d += a b for a 64 x 64 in registers and a tile.
__device__ inline void add_product(float (&d)[8][4], const u32 (&a)[4][4], u32 b) {
    u64 right = tile_descriptor(b);
#pragma unroll
    for (int k = 0; k < 4; ++k) wgmma<1>(d, a[k], right + k * NEXT_ROWS, 1);
}

// Shared memory that a group of warps fills, stage by stage in turn, and others read. Gates: a stage is full; it is free.
template <int STAGES, int AHEAD, u32 STAGE>
struct Ring {
    static constexpr u32 GATES = STAGES * STAGE, BYTES = GATES + STAGES * 16;
    u32 memory, stage, phase;

    // The place ahead of the first stage.
    __device__ inline void start(u32 at) {
        memory = at;
        stage = STAGES - 1;
        phase = 1;
    }
    // A stage is full when all threads of the filling group say so, free when all `readers` do: one a warp would be enough and
    // faster by a hundredth, but tools that look for races take a thread to know only who has arrived itself.
    __device__ inline void set_gates(int thread, int readers) {
        if (thread >= STAGES) return;
        gate_set(memory + GATES + thread * 16, GROUP);
        gate_set(memory + GATES + thread * 16 + 8, readers);
    }
    __device__ inline void next() {
        stage = stage == STAGES - 1 ? 0 : stage + 1;
        phase ^= stage == 0;
    }
    __device__ inline u32 at() const { return memory + stage * STAGE; }
    __device__ inline void wait_full() const { gate_wait(memory + GATES + stage * 16, phase); }
    __device__ inline void wait_free() const { gate_wait(memory + GATES + stage * 16 + 8, phase ^ 1); }
    __device__ inline void say_free(u32 stage) const { gate_arrive(memory + GATES + stage * 16 + 8); }
    // The stage's copies were started, as those of `started` stages before it: the one AHEAD of it is full.
    __device__ inline void copied(int started) const {
        copy_async_commit();
        if (started < AHEAD) return;
        copy_async_wait<AHEAD>();
        say_full(stage >= AHEAD ? stage - AHEAD : stage + STAGES - AHEAD);
    }
    // After the last.
    __device__ inline void end(int started) const {
        copy_async_wait<0>();
        for (int back = min(AHEAD, started) - 1; back >= 0; --back) say_full(stage >= back ? stage - back : stage + STAGES - back);
    }
    __device__ inline void say_full(u32 stage) const {
        fence_for_tensor_cores();
        gate_arrive(memory + GATES + stage * 16);
    }
};

// The block's tile.
__device__ inline int tile_of(const u32* order, u32 otherwise) {
    return (int)(order != nullptr ? min(order[blockIdx.y], gridDim.y - 1) : otherwise);
}

// How gradients by rotated queries and keys are turned back: the inverse of rope.cu's rotation; null positions: not at all.
struct Turn {
    const u32* positions;
    const float* table;
    int table_rows;
};
// Rows `row` and `row` + 8 of a tile's sums; halves of a head lie in the same thread.
__device__ inline void turn_back(float (&sums)[8][4], const Turn& turn, int row, int tokens) {
    if (turn.positions == nullptr) return;
#pragma unroll
    for (int h = 0; h < 2; ++h) {
        if (row + 8 * h >= tokens) continue;
        u32 position = min(turn.positions[row + 8 * h], (u32)turn.table_rows - 1);
        const float* angles = turn.table + (long long)position * D + 2 * (threadIdx.x % 4);
#pragma unroll
        for (int n = 0; n < 4; ++n) {
            float2 cos = *reinterpret_cast<const float2*>(angles + 8 * n), sin = *reinterpret_cast<const float2*>(angles + 8 * n + D / 2);
#pragma unroll
            for (int c = 0; c < 2; ++c) {
                float low = sums[n][2 * h + c], high = sums[n + 4][2 * h + c], x = c ? cos.y : cos.x, y = c ? sin.y : sin.x;
                sums[n][2 * h + c] = low * x + high * y;
                sums[n + 4][2 * h + c] = high * x - low * y;
            }
        }
    }
}

#endif
