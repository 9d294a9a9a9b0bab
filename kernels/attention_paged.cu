// Attention of single tokens over a cache of keys and values, for generation, and writing to that cache.
//
//   out[t] = softmax(q[t] k^T / sqrt(D)) v over the rows first .. first + seen of the cache      cache[rows[t]] = kv[t]
//
// | tensor  | shape       | type                                                                              |
// | q, out  | T x Hq*D    | float32 or bfloat16; query head h uses key-value head h / (Hq / Hkv)              |
// | cache   | R x 2*Hkv*D | the same; keys of all heads, then values                                          |
// | spans   | T x 2       | u32: first row, rows seen; rows from R on are not read; none seen: out is 0       |
// | scratch | T x Hq*parts*(D + 2) | float32: of each part its maximum, sum of powers, and weighted values    |
// | kv      | T x 2*Hkv*D | the type of the cache                                                             |
// | rows    | T x 1       | u32; R or more: the token is not written                                          |
//
// The rows seen are cut into parts, by their number alone, so that a token's bits do not depend on its neighbours. Pass one:
// a block of 4 warps takes a part of one token and key-value head, for all heads of the group, eight at a time. Pass two adds
// the parts in order. With one part at most, pass one writes the result. Scores are powers of two; sums in float32 in a fixed
// order. Keys and values are copied to shared memory in the background where rows are multiples of 16 bytes; for bfloat16
// and D = 64 or 128 the tensor cores multiply them, with the eight heads as columns and p as two numbers of bfloat16.
// Tolerance: 1e-5 (float32), 1e-2 (bfloat16) of the largest magnitude; in the Frobenius norm 1e-5, 2e-3.
// Speed on an H100 80GB HBM3, 14 and 2 heads of 64, both passes, by keys and values read: bfloat16 256 tokens over 512 rows 44 us
// (1,513 GB/s), 64 over 1024 25 us (1,330), one over 32,768 19 us (869); float32 65, 35 and 28 us (2,077, 1,899 and 1,187).
// 12 and 2 heads of 96, plain: 256 over 512 189 us (533). cache_write, 8192 x 256: 7.6 us (1,107), float32 8.9 us (1,885).

#include "attention.cuh"

constexpr int WARPS = 4, THREADS = WARPS * WARP, HEADS = 8, MOST_PARTS = 64, LEAST_ROWS = 128;

// Rows of a part; `part_rows` in src/cuda/ops/attention_paged.rs.
__device__ inline int part_rows(int seen) {
    int rows = (seen + MOST_PARTS - 1) / MOST_PARTS;
    return max((rows + LEAST_ROWS - 1) / LEAST_ROWS, 1) * LEAST_ROWS;
}

struct Span {
    u32 first;
    int seen;
};
__device__ inline Span span_of(const uint2* spans, int token, int cache_rows, int most) {
    u32 first = min(spans[token].x, (u32)cache_rows);
    u32 left = (u32)cache_rows - first;
    return {first, (int)min(min(spans[token].y, left), (u32)most)};
}

// Scores of 8 heads from the partial sums of `lanes` lanes (8, 16 or 32): lane l gets that of head l % 8.
__device__ inline float gather_heads(const float (&s)[HEADS], int lanes) {
    int lane = threadIdx.x % WARP;
    float a[4], b[2];
#pragma unroll
    for (int i = 0; i < 4; ++i) {
        float keep = lane & 4 ? s[i + 4] : s[i], give = lane & 4 ? s[i] : s[i + 4];
        a[i] = keep + __shfl_xor_sync(0xFFFFFFFFu, give, 4);
    }
#pragma unroll
    for (int i = 0; i < 2; ++i) {
        float keep = lane & 2 ? a[i + 2] : a[i], give = lane & 2 ? a[i] : a[i + 2];
        b[i] = keep + __shfl_xor_sync(0xFFFFFFFFu, give, 2);
    }
    float keep = lane & 1 ? b[1] : b[0], give = lane & 1 ? b[0] : b[1];
    float sum = keep + __shfl_xor_sync(0xFFFFFFFFu, give, 1);
    for (int offset = 8; offset < lanes; offset *= 2) sum += __shfl_xor_sync(0xFFFFFFFFu, sum, offset);
    return sum;
}

// Keys, then values of a part on their way to shared memory, 16 bytes a thread and row, in tiles of ROUNDS rows for each
// thread; two tiles are under way at once. A thread reads what it has copied itself, so that no barrier is needed.
template <typename T>
struct Stream {
    static constexpr int N = Pack<T>::N, ROUNDS = 8;
    static constexpr u32 TILE = THREADS * 16 * ROUNDS;
    const T *keys, *values;
    int pitch, count, lanes, tiles;
    u32 memory;

    __device__ Stream(const T* keys, const T* values, int pitch, int count, int dim, void* memory)
        : keys(keys + threadIdx.x % (dim / N) * N),
          values(values + threadIdx.x % (dim / N) * N),
          pitch(pitch),
          count(count),
          lanes(dim / N),
          tiles((count + THREADS / (dim / N) * ROUNDS - 1) / (THREADS / (dim / N) * ROUNDS)),
          memory(shared_address(memory) + threadIdx.x * 16) {}

    __device__ int row(int tile, int round) const {
        return (tile * ROUNDS + round) * (THREADS / lanes) + threadIdx.x / lanes;
    }
    // Starts copy `at`: tiles of keys come first.
    __device__ void start(int at) const {
        if (at < 2 * tiles) {
            const T* from = at < tiles ? keys : values;
#pragma unroll
            for (int round = 0; round < ROUNDS; ++round) {
                int i = row(at < tiles ? at : at - tiles, round);
                copy_async_16(memory + (at & 1) * TILE + round * THREADS * 16, from + (long long)min(i, count - 1) * pitch,
                              i < count);
            }
        }
        copy_async_commit();
    }
    __device__ Pack<T> read(int at, int round) const {
        uint4 raw = load_shared_16(memory + (at & 1) * TILE + round * THREADS * 16);
        return *reinterpret_cast<Pack<T>*>(&raw);
    }
};

// scores[key * 8 + h] for the keys of the part.
template <typename T>
__device__ void score_wide(const Stream<T>& stream, const float* queries, float* scores, int dim) {
    constexpr int N = Pack<T>::N;
    float query[HEADS][N];
#pragma unroll
    for (int h = 0; h < HEADS; ++h) {
#pragma unroll
        for (int i = 0; i < N; ++i) query[h][i] = queries[h * dim + threadIdx.x % stream.lanes * N + i];
    }
    for (int tile = 0; tile < stream.tiles; ++tile) {
        copy_async_wait<1>();
#pragma unroll
        for (int round = 0; round < Stream<T>::ROUNDS; ++round) {
            Pack<T> x = stream.read(tile, round);
            float s[HEADS] = {};
#pragma unroll
            for (int i = 0; i < N; ++i) {
                float value = to_float(x.v[i]);
#pragma unroll
                for (int h = 0; h < HEADS; ++h) s[h] += value * query[h][i];
            }
            float sum = gather_heads(s, stream.lanes);
            int key = stream.row(tile, round);
            if (key < stream.count && threadIdx.x % stream.lanes < HEADS) scores[key * HEADS + threadIdx.x % HEADS] = sum;
        }
        stream.start(tile + 2);
    }
}
template <typename T>
__device__ void score(const T* keys, int pitch, const float* queries, float* scores, int count, int dim) {
    for (int key = threadIdx.x; key < count; key += THREADS) {
        float s[HEADS] = {};
        for (int c = 0; c < dim; ++c) {
            float x = to_float(keys[(long long)key * pitch + c]);
#pragma unroll
            for (int h = 0; h < HEADS; ++h) s[h] += x * queries[h * dim + c];
        }
#pragma unroll
        for (int h = 0; h < HEADS; ++h) scores[key * HEADS + h] = s[h];
    }
}

// Scores become powers of two less each head's maximum; `top` and `total` of the 8 heads.
__device__ void normalise(float* scores, float (*parts)[HEADS], float* top, float* total, int count) {
    int head = threadIdx.x % HEADS, warp = threadIdx.x / WARP, lane = threadIdx.x % WARP;
    constexpr int STEP = THREADS / HEADS;
    float m = -INF;
    for (int key = threadIdx.x / HEADS; key < count; key += STEP) m = fmaxf(m, scores[key * HEADS + head]);
    for (int offset = HEADS; offset < WARP; offset *= 2) m = fmaxf(m, __shfl_xor_sync(0xFFFFFFFFu, m, offset));
    if (lane < HEADS) parts[warp][head] = m;
    __syncthreads();
    m = fmaxf(fmaxf(parts[0][head], parts[1][head]), fmaxf(parts[2][head], parts[3][head]));
    float sum = 0.0f;
    for (int key = threadIdx.x / HEADS; key < count; key += STEP) {
        float p = exp2f(scores[key * HEADS + head] - m);
        scores[key * HEADS + head] = p;
        sum += p;
    }
    for (int offset = HEADS; offset < WARP; offset *= 2) sum += __shfl_xor_sync(0xFFFFFFFFu, sum, offset);
    __syncthreads();
    if (lane < HEADS) parts[warp][head] = sum;
    __syncthreads();
    if (threadIdx.x < HEADS) {
        top[head] = m;
        total[head] = (parts[0][head] + parts[1][head]) + (parts[2][head] + parts[3][head]);
    }
}

// sums[w][h * dim + c]: values weighted by the scores, a share for each warp (plain: all in the first).
template <typename T>
__device__ void weigh_wide(const Stream<T>& stream, const float* scores, float* sums, int dim) {
    constexpr int N = Pack<T>::N;
    float s[HEADS][N] = {};
    for (int tile = 0; tile < stream.tiles; ++tile) {
        copy_async_wait<1>();
#pragma unroll
        for (int round = 0; round < Stream<T>::ROUNDS; ++round) {
            int key = stream.row(tile, round);
            if (key >= stream.count) break;
            Pack<T> x = stream.read(stream.tiles + tile, round);
            Pack<float> low = load_pack(scores + key * HEADS), high = load_pack(scores + key * HEADS + 4);
#pragma unroll
            for (int i = 0; i < N; ++i) {
                float value = to_float(x.v[i]);
#pragma unroll
                for (int h = 0; h < 4; ++h) {
                    s[h][i] += value * low.v[h];
                    s[h + 4][i] += value * high.v[h];
                }
            }
        }
        stream.start(stream.tiles + tile + 2);
    }
    __syncwarp();
    for (int offset = stream.lanes; offset < WARP; offset *= 2) {
#pragma unroll
        for (int h = 0; h < HEADS; ++h) {
#pragma unroll
            for (int i = 0; i < N; ++i) s[h][i] += __shfl_xor_sync(0xFFFFFFFFu, s[h][i], offset);
        }
    }
    if (threadIdx.x % WARP < stream.lanes) {
        float* share = sums + threadIdx.x / WARP * HEADS * dim + threadIdx.x % stream.lanes * N;
#pragma unroll
        for (int h = 0; h < HEADS; ++h) {
#pragma unroll
            for (int i = 0; i < N; ++i) share[h * dim + i] = s[h][i];
        }
    }
}
template <typename T>
__device__ void weigh(const T* values, int pitch, const float* scores, float* sums, int count, int dim) {
    for (int c = threadIdx.x; c < dim; c += THREADS) {
        float s[HEADS] = {};
        for (int key = 0; key < count; ++key) {
            float x = to_float(values[(long long)key * pitch + c]);
#pragma unroll
            for (int h = 0; h < HEADS; ++h) s[h] += x * scores[key * HEADS + h];
        }
#pragma unroll
        for (int h = 0; h < HEADS; ++h) {
            sums[h * dim + c] = s[h];
            for (int w = 1; w < WARPS; ++w) sums[(w * HEADS + h) * dim + c] = 0.0f;
        }
    }
}

// Where a part's sums go: to `out` when there is no other part, else to `scratch`.
template <typename T>
struct Target {
    T* out;
    int out_pitch;
    float* scratch;
    int heads, dim;

    // `here` heads from `first` on, whose sums lie in a share for each warp.
    __device__ void put(const float* sums, const float* top, const float* total, int first, int here, int count) const {
        int token = blockIdx.x, part = blockIdx.z, parts = gridDim.z, n = HEADS * dim;
        for (int i = threadIdx.x; i < here * dim; i += THREADS) {
            int h = i / dim, c = i % dim;
            float sum = (sums[i] + sums[n + i]) + (sums[2 * n + i] + sums[3 * n + i]);
            if (parts == 1) {
                float inverse = count > 0 ? 1.0f / total[h] : 0.0f;
                out[(long long)token * out_pitch + (first + h) * dim + c] = from_float<T>(sum * inverse);
            } else {
                float* to = scratch + (((long long)token * heads + first + h) * parts + part) * (dim + 2);
                to[2 + c] = sum;
                if (c == 0) {
                    to[0] = top[h];
                    to[1] = total[h];
                }
            }
        }
    }
};

template <typename T, bool WIDE>
__device__ void parts_of(const T* q, int q_pitch, const T* cache, int cache_pitch, int cache_rows, const uint2* spans, T* out,
                         int out_pitch, float* scratch, int most, int heads, int kv_heads, int dim, float scale) {
    __shared__ float shares[WARPS][HEADS], top[HEADS], total[HEADS];
    extern __shared__ uint4 memory[];
    int token = blockIdx.x, kv_head = blockIdx.y, part = blockIdx.z;
    Target<T> target{out, out_pitch, scratch, heads, dim};
    Span span = span_of(spans, token, cache_rows, most);
    int rows = part_rows(span.seen), begin = part * rows;
    if (part > 0 && begin >= span.seen) return;
    int count = min(rows, span.seen - begin), group = heads / kv_heads;
    float* queries = reinterpret_cast<float*>(memory) + (WIDE ? 2 * Stream<T>::TILE / 4 : 0);
    float* sums = queries + HEADS * dim;
    float* scores = sums + WARPS * HEADS * dim;
    const T* keys = cache + ((long long)span.first + begin) * cache_pitch + kv_head * dim;
    const T* values = keys + kv_heads * dim;

    // Plain: never used.
    Stream<T> stream(keys, values, cache_pitch, count, WIDE ? dim : Stream<T>::N, memory);
    for (int base = 0; base < group; base += HEADS) {
        int first = kv_head * group + base, here = min(HEADS, group - base);
        if (WIDE) {
            stream.start(0);
            stream.start(1);
        }
        __syncthreads();
        for (int i = threadIdx.x; i < HEADS * dim; i += THREADS) {
            bool used = i / dim < here;
            queries[i] = used ? to_float(q[(long long)token * q_pitch + first * dim + i]) * (scale * LOG2_E) : 0.0f;
        }
        __syncthreads();
        if (WIDE) {
            score_wide(stream, queries, scores, dim);
        } else {
            score(keys, cache_pitch, queries, scores, count, dim);
        }
        __syncthreads();
        normalise(scores, shares, top, total, count);
        __syncthreads();
        if (WIDE) {
            weigh_wide(stream, scores, sums, dim);
        } else {
            weigh(values, cache_pitch, scores, sums, count, dim);
        }
        __syncthreads();
        target.put(sums, top, total, first, here, count);
    }
}

// The same on tensor cores.
template <int D>
__device__ void parts_mma(const bf16* q, int q_pitch, const bf16* cache, int cache_pitch, int cache_rows, const uint2* spans,
                          bf16* out, int out_pitch, float* scratch, int most, int heads, int kv_heads, float scale) {
    constexpr int ROWS = 8192 / D, ATOMS = ROWS / (16 * WARPS);
    constexpr u32 TILE = ROWS * D * 2;
    __shared__ float shares[WARPS][HEADS], top[HEADS], total[HEADS];
    extern __shared__ uint4 memory[];
    int token = blockIdx.x, kv_head = blockIdx.y, part = blockIdx.z;
    Target<bf16> target{out, out_pitch, scratch, heads, D};
    Span span = span_of(spans, token, cache_rows, most);
    int rows = part_rows(span.seen), begin = part * rows;
    if (part > 0 && begin >= span.seen) return;
    int count = min(rows, span.seen - begin), group = heads / kv_heads, tiles = (count + ROWS - 1) / ROWS;
    const bf16* keys = cache + ((long long)span.first + begin) * cache_pitch + kv_head * D;
    const bf16* values = keys + kv_heads * D;
    u32 tile_memory = shared_address(memory);
    // The sums take the first tile's place once all is read: the last tile of values is the second.
    float* sums = reinterpret_cast<float*>(memory);
    float* scores = sums + 2 * TILE / 4;
    int lane = threadIdx.x % WARP, warp = threadIdx.x / WARP, own = warp * 16 * ATOMS, pair = 2 * (lane % 4);

    auto start = [&](int at) {
        if (at < 2 * tiles) {
            int first = (at < tiles ? at : at - tiles) * ROWS;
            load_tile<D, ROWS, THREADS>(tile_memory + (at & 1) * TILE, at < tiles ? keys : values, cache_pitch, first, count,
                                        threadIdx.x);
        }
        copy_async_commit();
    };
    for (int base = 0; base < group; base += HEADS) {
        int first = kv_head * group + base, here = min(HEADS, group - base);
        __syncthreads();
        start(0);
        start(1);
        u32 queries[D / 16][2];
        const bf16* query = q + (long long)token * q_pitch + (first + min(lane / 4, here - 1)) * D + pair;
#pragma unroll
        for (int k = 0; k < D / 16; ++k) {
#pragma unroll
            for (int i = 0; i < 2; ++i) {
                u32 two = *reinterpret_cast<const u32*>(query + k * 16 + i * 8);
                queries[k][i] = lane / 4 < here ? two : 0;
            }
        }
        for (int tile = 0; tile < tiles; ++tile) {
            copy_async_wait<1>();
            __syncthreads();
#pragma unroll
            for (int a = 0; a < ATOMS; ++a) {
                float s[4] = {};
#pragma unroll
                for (int k = 0; k < D / 16; ++k) {
                    u32 left[4];
                    load_left<D>(left, tile_memory + (tile & 1) * TILE, own + a * 16, k);
                    mma_bf16(s, left, queries[k]);
                }
#pragma unroll
                for (int h = 0; h < 2; ++h) {
                    int key = tile * ROWS + own + a * 16 + lane / 4 + h * 8;
                    float factor = scale * LOG2_E;
                    scores[key * HEADS + pair] = key < count ? s[2 * h] * factor : -INF;
                    scores[key * HEADS + pair + 1] = key < count ? s[2 * h + 1] * factor : -INF;
                }
            }
            __syncthreads();
            start(tile + 2);
        }
        normalise(scores, shares, top, total, tiles * ROWS);
        float o[D / 16][4];
        clear(o);
        for (int tile = 0; tile < tiles; ++tile) {
            copy_async_wait<1>();
            __syncthreads();
#pragma unroll
            for (int a = 0; a < ATOMS; ++a) {
                const float* p = scores + (tile * ROWS + own + a * 16 + pair) * HEADS + lane / 4;
                u32 right[2] = {pack_bf16(p[0], p[HEADS]), pack_bf16(p[8 * HEADS], p[9 * HEADS])};
                u32 rest[2] = {rest_bf16(right[0], p[0], p[HEADS]), rest_bf16(right[1], p[8 * HEADS], p[9 * HEADS])};
#pragma unroll
                for (int n = 0; n < D / 16; ++n) {
                    u32 left[4];
                    load_left_transposed<D>(left, tile_memory + ((tiles + tile) & 1) * TILE, own + a * 16, n);
                    mma_bf16(o[n], left, right);
                    mma_bf16(o[n], left, rest);
                }
            }
            __syncthreads();
            start(tiles + tile + 2);
        }
        __syncthreads();
#pragma unroll
        for (int n = 0; n < D / 16; ++n) {
#pragma unroll
            for (int c = 0; c < 4; ++c) {
                sums[(warp * HEADS + pair + c % 2) * D + n * 16 + lane / 4 + c / 2 * 8] = o[n][c];
            }
        }
        __syncthreads();
        target.put(sums, top, total, first, here, count);
    }
}

// One block a token and head; warp w adds parts w, w + 4, ...
template <typename T>
__device__ void join(const float* scratch, const uint2* spans, T* out, int out_pitch, int cache_rows, int most, int parts,
                     int heads, int dim) {
    __shared__ float weights[MOST_PARTS], all;
    extern __shared__ uint4 memory[];
    float* sums = reinterpret_cast<float*>(memory);
    int token = blockIdx.x / heads, head = blockIdx.x % heads, lane = threadIdx.x % WARP, warp = threadIdx.x / WARP;
    int seen = span_of(spans, token, cache_rows, most).seen, rows = part_rows(seen), used = (seen + rows - 1) / rows;
    int stride = dim + 2;
    const float* from = scratch + (long long)blockIdx.x * parts * stride;
    if (warp == 0) {
        float top[2], total[2];
#pragma unroll
        for (int i = 0; i < 2; ++i) {
            int part = lane + i * WARP;
            top[i] = part < used ? from[part * stride] : -INF;
            total[i] = part < used ? from[part * stride + 1] : 0.0f;
        }
        float most_of_all = warp_max(fmaxf(top[0], top[1])), sum = 0.0f;
#pragma unroll
        for (int i = 0; i < 2; ++i) {
            float weight = lane + i * WARP < used ? exp2f(top[i] - most_of_all) : 0.0f;
            weights[lane + i * WARP] = weight;
            sum += total[i] * weight;
        }
        sum = warp_sum(sum);
        if (lane == 0) all = sum;
    }
    __syncthreads();
    for (int c = lane; c < dim; c += WARP) {
        float sum = 0.0f;
#pragma unroll 8
        for (int part = warp; part < used; part += WARPS) sum += from[part * stride + 2 + c] * weights[part];
        sums[warp * dim + c] = sum;
    }
    __syncthreads();
    float inverse = used > 0 ? 1.0f / all : 0.0f;
    for (int c = threadIdx.x; c < dim; c += THREADS) {
        float sum = (sums[c] + sums[dim + c]) + (sums[2 * dim + c] + sums[3 * dim + c]);
        out[(long long)token * out_pitch + head * dim + c] = from_float<T>(sum * inverse);
    }
}

template <typename T>
__device__ void write(const T* kv, int kv_pitch, const u32* rows, T* cache, int cache_pitch, int cache_rows, int cols) {
    u32 row = rows[blockIdx.x];
    if (row >= (u32)cache_rows) return;
    const T* from = kv + (long long)blockIdx.x * kv_pitch;
    T* to = cache + (long long)row * cache_pitch;
    for (int c = threadIdx.x; c < cols; c += blockDim.x) to[c] = from[c];
}

#define PARAMETERS(T)                                                                                                       \
    (const T* q, int q_pitch, const T* cache, int cache_pitch, int cache_rows, const uint2* spans, T* out, int out_pitch,  \
     float* scratch, int most, int heads, int kv_heads, int dim, float scale)
#define ARGUMENTS                                                                                                           \
    (q, q_pitch, cache, cache_pitch, cache_rows, spans, out, out_pitch, scratch, most, heads, kv_heads, dim, scale)
#define DEFINE(T, suffix)                                                                                                   \
    extern "C" __global__ void __launch_bounds__(THREADS) attention_paged_##suffix PARAMETERS(T) {                         \
        parts_of<T, false> ARGUMENTS;                                                                                      \
    }                                                                                                                      \
    extern "C" __global__ void __launch_bounds__(THREADS, 4) attention_paged_wide_##suffix PARAMETERS(T) {                    \
        parts_of<T, true> ARGUMENTS;                                                                                       \
    }                                                                                                                      \
    extern "C" __global__ void __launch_bounds__(THREADS) attention_paged_join_##suffix(const float* scratch, const uint2* spans, T* out,             \
                                                             int out_pitch, int cache_rows, int most,                      \
                                                             int parts, int heads, int dim) {                              \
        join<T>(scratch, spans, out, out_pitch, cache_rows, most, parts, heads, dim);                              \
    }                                                                                                                      \
    extern "C" __global__ void cache_write_##suffix(const T* kv, int kv_pitch, const u32* rows, T* cache, int cache_pitch, \
                                                    int cache_rows, int cols) {                                            \
        write<T>(kv, kv_pitch, rows, cache, cache_pitch, cache_rows, cols);                                                \
    }
DEFINE(float, f32)
DEFINE(bf16, bf16)

#define DEFINE_MMA(D, BLOCKS)                                                                                               \
    extern "C" __global__ void __launch_bounds__(THREADS, BLOCKS)                                                          \
        attention_paged_mma_##D(const bf16* q, int q_pitch, const bf16* cache, int cache_pitch, int cache_rows,            \
                                const uint2* spans, bf16* out, int out_pitch, float* scratch, int most, int heads,         \
                                int kv_heads, float scale) {                                                               \
        parts_mma<D>(q, q_pitch, cache, cache_pitch, cache_rows, spans, out, out_pitch, scratch, most, heads, kv_heads,    \
                     scale);                                                                                               \
    }
DEFINE_MMA(64, 6)
DEFINE_MMA(128, 5)
