// Tensor-core products of four warps, a warp group, on sm_90a: m64n64k16, bfloat16 with float32 sums.
//
// Tiles are rows of 64 bfloat16 (128 bytes), swizzled as in attention.cuh, which is the hardware's 128-byte pattern; they
// start at multiples of 1024 bytes. Sums lie as those of mma.m16n8k16 with warp w of the group at rows 16 w; left factors
// from registers likewise.

#ifdef __CUDA_ARCH_FEAT_SM90_ALL

// A tile for the tensor cores; groups of eight rows are 1024 bytes apart.
__device__ inline u64 tile_descriptor(u32 address) {
    return (u64)((address & 0x3FFFF) >> 4) | (u64)1 << 16 | (u64)(1024 >> 4) << 32 | (u64)1 << 62;
}
// The descriptor of a tile's next 16 columns, and of its next 16 rows.
constexpr u64 NEXT_COLUMNS = 32 >> 4, NEXT_ROWS = 16 * 128 >> 4;

#define SUMS_OF(d)                                                                                                          \
    "+f"(d[0][0]), "+f"(d[0][1]), "+f"(d[0][2]), "+f"(d[0][3]), "+f"(d[1][0]), "+f"(d[1][1]), "+f"(d[1][2]),               \
        "+f"(d[1][3]), "+f"(d[2][0]), "+f"(d[2][1]), "+f"(d[2][2]), "+f"(d[2][3]), "+f"(d[3][0]), "+f"(d[3][1]),           \
        "+f"(d[3][2]), "+f"(d[3][3]), "+f"(d[4][0]), "+f"(d[4][1]), "+f"(d[4][2]), "+f"(d[4][3]), "+f"(d[5][0]),           \
        "+f"(d[5][1]), "+f"(d[5][2]), "+f"(d[5][3]), "+f"(d[6][0]), "+f"(d[6][1]), "+f"(d[6][2]), "+f"(d[6][3]),           \
        "+f"(d[7][0]), "+f"(d[7][1]), "+f"(d[7][2]), "+f"(d[7][3])
#define SUM_NAMES                                                                                                           \
    "{%0,%1,%2,%3,%4,%5,%6,%7,%8,%9,%10,%11,%12,%13,%14,%15,%16,%17,%18,%19,%20,%21,%22,%23,%24,%25,%26,%27,%28,%29,%30,"  \
    "%31}"

// d (+)= a b: a is 64 rows x 16 columns of a tile; b 16 x 64: columns are the tile's rows, or with TRANSPOSED its columns.
template <int TRANSPOSED>
__device__ inline void wgmma(float (&d)[8][4], u64 a, u64 b, int add) {
    asm volatile(
        "{\n.reg .pred p;\nsetp.ne.b32 p, %34, 0;\n"
        "wgmma.mma_async.sync.aligned.m64n64k16.f32.bf16.bf16 " SUM_NAMES ", %32, %33, p, 1, 1, 0, %35;\n}"
        : SUMS_OF(d)
        : "l"(a), "l"(b), "r"(add), "n"(TRANSPOSED));
}
// The same with a from registers.
template <int TRANSPOSED>
__device__ inline void wgmma(float (&d)[8][4], const u32 (&a)[4], u64 b, int add) {
    asm volatile(
        "{\n.reg .pred p;\nsetp.ne.b32 p, %37, 0;\n"
        "wgmma.mma_async.sync.aligned.m64n64k16.f32.bf16.bf16 " SUM_NAMES ", {%32,%33,%34,%35}, %36, p, 1, 1, %38;\n}"
        : SUMS_OF(d)
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b), "r"(add), "n"(TRANSPOSED));
}

// Before the first product after registers of sums or factors were written.
__device__ inline void wgmma_fence() { asm volatile("wgmma.fence.sync.aligned;" ::: "memory"); }
__device__ inline void wgmma_commit() { asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory"); }
// Waits until at most PENDING committed groups of products are under way.
template <int PENDING>
__device__ inline void wgmma_wait() {
    asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(PENDING) : "memory");
}
// The sums as they are once the products have been waited for: no reader of them comes earlier.
__device__ inline void settle(float (&d)[8][4]) {
#pragma unroll
    for (int n = 0; n < 8; ++n) asm volatile("" : "+f"(d[n][0]), "+f"(d[n][1]), "+f"(d[n][2]), "+f"(d[n][3])::"memory");
}
// Registers of each thread of the group from here on.
template <int REGISTERS>
__device__ inline void take_registers() {
    asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;" ::"n"(REGISTERS));
}
template <int REGISTERS>
__device__ inline void leave_registers() {
    asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;" ::"n"(REGISTERS));
}

// A barrier in shared memory (8 bytes) that opens each time `arrivals` threads have arrived: its phases are numbered from 0.
__device__ inline void gate_set(u32 gate, u32 arrivals) {
    asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(gate), "r"(arrivals) : "memory");
}
__device__ inline void gate_arrive(u32 gate) {
    asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];" ::"r"(gate) : "memory");
}
// Waits until phases up to this one (its lowest bit counts) are over.
__device__ inline void gate_wait(u32 gate, u32 phase) {
    asm volatile(
        "{\n.reg .pred open;\nAGAIN:\nmbarrier.try_wait.parity.shared::cta.b64 open, [%0], %1;\n@open bra DONE;\nbra AGAIN;\n"
        "DONE:\n}" ::"r"(gate),
        "r"(phase & 1)
        : "memory");
}
// Makes this thread's writes to shared memory visible to the tensor cores; before the barrier.
__device__ inline void fence_for_tensor_cores() { asm volatile("fence.proxy.async.shared::cta;" ::: "memory"); }

#endif
