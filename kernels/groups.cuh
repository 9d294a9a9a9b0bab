// Groups of N neighbouring elements of a row: 16-byte accesses where a view allows them, element by element elsewhere, and
// sums over columns. Which thread takes which element does not depend on alignment, so neither do results.

template <typename T, int N>
struct alignas(N * sizeof(T) < 16 ? N * sizeof(T) : 16) Group {
    T v[N];
};

template <typename T>
__device__ inline T minus_infinity() { return from_float<T>(-INF); }

// Elements c .. c + N of a row; with `whole` all of them are there and the address is a multiple of 16 bytes (or of the
// group's size), without it `fill` stands for those from the row's end on.
template <typename T, int N>
__device__ inline Group<T, N> load_part(const T* row, int c, int cols, bool whole, T fill = T{}) {
    Group<T, N> group;
    if (whole) {
        if constexpr (sizeof(group) == 8) {
            *reinterpret_cast<uint2*>(&group) = *reinterpret_cast<const uint2*>(row + c);
        } else {
            static_assert(sizeof(group) % 16 == 0, "a group is 8 bytes or a multiple of 16");
#pragma unroll
            for (int i = 0; i < (int)sizeof(group) / 16; ++i) {
                reinterpret_cast<uint4*>(&group)[i] = reinterpret_cast<const uint4*>(row + c)[i];
            }
        }
    } else {
#pragma unroll
        for (int i = 0; i < N; ++i) group.v[i] = c + i < cols ? row[c + i] : fill;
    }
    return group;
}

template <typename T, int N>
__device__ inline void store_part(T* row, int c, int cols, bool whole, const Group<T, N>& group) {
    if (whole) {
        if constexpr (sizeof(group) == 8) {
            *reinterpret_cast<uint2*>(row + c) = *reinterpret_cast<const uint2*>(&group);
        } else {
#pragma unroll
            for (int i = 0; i < (int)sizeof(group) / 16; ++i) {
                reinterpret_cast<uint4*>(row + c)[i] = reinterpret_cast<const uint4*>(&group)[i];
            }
        }
    } else {
#pragma unroll
        for (int i = 0; i < N; ++i) {
            if (c + i < cols) row[c + i] = group.v[i];
        }
    }
}

// Element i, and elements i and i + 1 (i even), by way of whole words: groups that are kept for long stay packed in registers.
template <int N>
__device__ inline float element(const Group<float, N>& group, int i) { return group.v[i]; }
template <int N>
__device__ inline float element(const Group<bf16, N>& group, int i) {
    u32 word = reinterpret_cast<const u32*>(&group)[i / 2];
    return i % 2 == 0 ? low_bf16(word) : high_bf16(word);
}
template <int N>
__device__ inline void put_pair(Group<float, N>& group, int i, float first, float second) {
    group.v[i] = first;
    group.v[i + 1] = second;
}
template <int N>
__device__ inline void put_pair(Group<bf16, N>& group, int i, float first, float second) {
    reinterpret_cast<u32*>(&group)[i / 2] = pack_bf16(first, second);
}

// The same for any row. `wide`: rows start at multiples of 16 bytes.
template <typename T, int N>
__device__ inline Group<T, N> load_group(const T* row, int c, int cols, bool wide, T fill = T{}) {
    return load_part<T, N>(row, c, cols, wide && c + N <= cols, fill);
}
template <typename T, int N>
__device__ inline void store_group(T* row, int c, int cols, bool wide, const Group<T, N>& group) {
    store_part<T, N>(row, c, cols, wide && c + N <= cols, group);
}

// Groups lane, lane + threads, ... of a row, zeros from its end on. `whole`: `wide`, and the row has whole groups: one
// branch for all of them, so that the loads are in flight together.
template <typename T, int N, int GROUPS>
__device__ inline void load_row(Group<T, N> (&v)[GROUPS], const T* row, int lane, int threads, int cols, bool whole) {
    static_assert(sizeof(v[0]) == 16, "one access a group");
    if (whole) {
#pragma unroll
        for (int g = 0; g < GROUPS; ++g) {
            int c = (g * threads + lane) * N;
            uint4 raw = make_uint4(0, 0, 0, 0);
            if (c < cols) raw = *reinterpret_cast<const uint4*>(row + c);
            *reinterpret_cast<uint4*>(&v[g]) = raw;
        }
    } else {
#pragma unroll
        for (int g = 0; g < GROUPS; ++g) v[g] = load_part<T, N>(row, (g * threads + lane) * N, cols, false);
    }
}

// Elements of a group when operands have these types: 16 bytes of the larger one.
template <typename A, typename B>
constexpr int group_of() { return 16 / (sizeof(A) > sizeof(B) ? sizeof(A) : sizeof(B)); }

// Division by a number that the host knew: n / d for n below 2^31 (T. Granlund, P. Montgomery, 1994).
struct Divisor {
    u32 factor;
    u32 shift;
};

// `rows` rows of `groups` groups each, one group after another: `total` of them.
struct Walk {
    u32 total;
    u32 groups;
};
// Where a thread's k-th group lies.
struct Place {
    long long row;
    int c;
    bool live;
};
template <int N, int ITEMS>
__device__ inline Place place(Walk walk, Divisor by, int k) {
    u32 i = (blockIdx.x * ITEMS + k) * blockDim.x + threadIdx.x;
    u32 row = (__umulhi(i, by.factor) + i) >> by.shift;
    return Place{(long long)row, (int)(i - row * walk.groups) * N, i < walk.total};
}

struct Whole {
    static constexpr bool value = true;
};
struct Narrow {
    static constexpr bool value = false;
};

// out[c] += sum over rows of what `add(how, row, c, sum)` adds to `sum[0 .. N]` for the columns c .. c + N; `how.value` is what
// `load_part` takes. Blocks of 1024 threads: 2 groups of columns x 512 row lanes. A lane takes rows lane, lane + 512, ... in
// order; lanes are added by a fixed tree inside a warp, then warp by warp.
constexpr int SUM_LANES = 512;
template <int N, typename F>
__device__ inline void column_sums(int rows, int cols, float* out, bool wide, F add) {
    __shared__ float parts[WARP][2 * N];
    int side = threadIdx.x % 2, lane = threadIdx.x / 2;
    int c = ((int)blockIdx.x * 2 + side) * N;
    float sum[N] = {};
    if (c < cols && wide && cols % N == 0) {
#pragma unroll 4
        for (int row = lane; row < rows; row += SUM_LANES) add(Whole{}, (long long)row, c, sum);
    } else if (c < cols) {
        for (int row = lane; row < rows; row += SUM_LANES) add(Narrow{}, (long long)row, c, sum);
    }
#pragma unroll
    for (int i = 0; i < N; ++i) {
#pragma unroll
        for (int delta = WARP / 2; delta > 1; delta /= 2) sum[i] += __shfl_xor_sync(0xFFFFFFFFu, sum[i], delta);
    }
    __syncthreads();
    if (threadIdx.x % WARP < 2) {
#pragma unroll
        for (int i = 0; i < N; ++i) parts[threadIdx.x / WARP][side * N + i] = sum[i];
    }
    __syncthreads();
    int column = (int)blockIdx.x * 2 * N + (int)threadIdx.x;
    if (threadIdx.x < 2 * N && column < cols) {
        float total = 0.0f;
        for (int warp = 0; warp < WARP; ++warp) total += parts[warp][threadIdx.x];
        out[column] += total;
    }
}
