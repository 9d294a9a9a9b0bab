// Tiles of bfloat16 rows in shared memory for attention on tensor cores, and the fragments read from them.
//
// A row of D elements is cut into chunks of 16 bytes; chunks of a row are permuted by its number, so that the eight rows
// that a matrix load reads at once lie in different banks.

#include "common.cuh"
#include "mma.cuh"

constexpr float LOG2_E = 1.4426950408889634f;
constexpr float LN_2 = 0.6931471805599453f;

// Byte of a chunk in a tile.
template <int D>
__device__ inline u32 chunk_offset(int row, int chunk) {
    constexpr int CHUNKS = D / 8;
    int place = CHUNKS >= 8 ? chunk ^ (row & 7) : chunk ^ ((row >> 1) & 3);
    return (u32)(row * CHUNKS + place) * 16;
}

// Starts the copy of rows first .. first + ROWS of D columns; rows from `end` on become zeros.
template <int D, int ROWS, int THREADS>
__device__ inline void load_tile(u32 tile, const bf16* from, int pitch, int first, int end, int thread) {
    constexpr int CHUNKS = D / 8;
    static_assert(ROWS * CHUNKS % THREADS == 0, "every thread copies the same number of chunks");
#pragma unroll
    for (int i = 0; i < ROWS * CHUNKS / THREADS; ++i) {
        int at = thread + i * THREADS, row = at / CHUNKS, chunk = at % CHUNKS;
        bool valid = first + row < end;
        const bf16* source = from + (long long)(valid ? first + row : 0) * pitch + chunk * 8;
        copy_async_16(tile + chunk_offset<D>(row, chunk), source, valid);
    }
}

// The left factor of a product: rows row .. row + 16, columns 16 k .. 16 k + 16.
template <int D>
__device__ inline void load_left(u32 (&a)[4], u32 tile, int row, int k) {
    int lane = threadIdx.x % WARP;
    load_matrix_4(a, tile + chunk_offset<D>(row + lane % 16, 2 * k + lane / 16));
}

// The left factor transposed: rows are the tile's columns 16 n .. 16 n + 16, the inner index runs over the tile's rows
// row .. row + 16.
template <int D>
__device__ inline void load_left_transposed(u32 (&a)[4], u32 tile, int row, int n) {
    int lane = threadIdx.x % WARP;
    load_matrix_4_transposed(a, tile + chunk_offset<D>(row + lane % 8 + lane / 16 * 8, 2 * n + lane / 8 % 2));
}

// The right factor, as two fragments of 8 columns: columns are the tile's rows row .. row + 16, the inner index runs over
// the tile's columns 16 k .. 16 k + 16.
template <int D>
__device__ inline void load_right(u32 (&b)[4], u32 tile, int row, int k) {
    int lane = threadIdx.x % WARP;
    load_matrix_4(b, tile + chunk_offset<D>(row + lane % 8 + lane / 16 * 8, 2 * k + lane / 8 % 2));
}

// The right factor: the inner index runs over the tile's rows row .. row + 16, columns are the tile's 16 n .. 16 n + 16.
template <int D>
__device__ inline void load_right_transposed(u32 (&b)[4], u32 tile, int row, int n) {
    int lane = threadIdx.x % WARP;
    load_matrix_4_transposed(b, tile + chunk_offset<D>(row + lane % 16, 2 * n + lane / 16));
}

// Two products with the right factor's two fragments.
__device__ inline void mma_pair(float (&d0)[4], float (&d1)[4], const u32 (&a)[4], const u32 (&b)[4]) {
    u32 b0[2] = {b[0], b[1]}, b1[2] = {b[2], b[3]};
    mma_bf16(d0, a, b0);
    mma_bf16(d1, a, b1);
}

// Sums of two neighbouring fragments of 8 columns as the left factor of the next product, 16 wide.
__device__ inline void as_left(u32 (&a)[4], const float (&d0)[4], const float (&d1)[4]) {
    a[0] = pack_bf16(d0[0], d0[1]);
    a[1] = pack_bf16(d0[2], d0[3]);
    a[2] = pack_bf16(d1[0], d1[1]);
    a[3] = pack_bf16(d1[2], d1[3]);
}
// What rounding to bfloat16 has left of them, as another left factor: both together have 16 bits.
__device__ inline void as_left_rest(u32 (&rest)[4], const u32 (&a)[4], const float (&d0)[4], const float (&d1)[4]) {
    rest[0] = rest_bf16(a[0], d0[0], d0[1]);
    rest[1] = rest_bf16(a[1], d0[2], d0[3]);
    rest[2] = rest_bf16(a[2], d1[0], d1[1]);
    rest[3] = rest_bf16(a[3], d1[2], d1[3]);
}

template <int N>
__device__ inline void clear(float (&x)[N][4]) {
#pragma unroll
    for (int i = 0; i < N; ++i) x[i][0] = x[i][1] = x[i][2] = x[i][3] = 0.0f;
}

// Writes rows first + group and first + group + 8 of a 16 x D block of sums, those before `end`.
template <int D>
__device__ inline void store_rows(bf16* to, int pitch, int first, int end, const float (&x)[D / 8][4], float low, float high) {
    int lane = threadIdx.x % WARP, row = first + lane / 4;
    u32* upper = reinterpret_cast<u32*>(to + (long long)row * pitch) + lane % 4;
    u32* lower = reinterpret_cast<u32*>(to + (long long)(row + 8) * pitch) + lane % 4;
#pragma unroll
    for (int n = 0; n < D / 8; ++n) {
        if (row < end) upper[n * 4] = pack_bf16(x[n][0] * low, x[n][1] * low);
        if (row + 8 < end) lower[n * 4] = pack_bf16(x[n][2] * high, x[n][3] * high);
    }
}
