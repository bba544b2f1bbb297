// Keys and values in their blocks: where they are, what queries make of them, how they get there.

#pragma once

#include <limits>
#include <type_traits>

#include "functions.hpp"
#include "weights.hpp"

namespace lms {

constexpr int64_t PART = 256;  // keys in one softmax

// Where the keys and values of one row and KV head are, in elements from the cache's beginning.
struct Places {
    const int32_t *table;
    int64_t kv_head, num_kv_heads, block_size, head_dim;

    int64_t of(int64_t block, int64_t slot) const {
        return ((table[block] * num_kv_heads + kv_head) * block_size + slot) * head_dim;
    }
    int64_t of(int64_t position) const { return of(position / block_size, position % block_size); }

    // Of `count` positions from `first` on.
    void find(int64_t first, int64_t count, int64_t *out) const {
        int64_t block = first / block_size, slot = first % block_size;
        for (int64_t done = 0; done < count; ++block, slot = 0) {
            int64_t place = of(block, slot);
            for (; slot < block_size && done < count; ++slot, place += head_dim)
                out[done++] = place;
        }
    }
};

// Keys or values as rows: out (count, width), zeros beyond head_dim.
template <typename T>
void unpack(const T *cache, const int64_t *places, int64_t count, int64_t head_dim, int64_t width,
            float *out) {
    const int64_t whole = head_dim / LANES * LANES;
    for (int64_t key = 0; key < count; ++key, out += width) {
        const T *row = cache + places[key];
        for (int64_t d = 0; d < whole; d += LANES) store(out + d, load(row + d));
        if (whole < width) store(out + whole, load_some(row + whole, head_dim - whole));
    }
}

// scores (R, PART) of R queries (R, width) with `count` keys.
template <int R, typename T>
void score(const float *q, int64_t width, const T *keys, const int64_t *places, int64_t count,
           float *scores) {
    int64_t key = 0;
    for (; key + 4 <= count; key += 4) {
        const T *k[4];
        Floats sums[R][4];
        for (int i = 0; i < 4; ++i) {
            k[i] = keys + places[key + i];
            for (int r = 0; r < R; ++r) sums[r][i] = zeros();
        }
        for (int64_t d = 0; d < width; d += LANES) {
            Floats each[R];
            for (int r = 0; r < R; ++r) each[r] = load(q + r * width + d);
#pragma GCC unroll 4
            for (int i = 0; i < 4; ++i) {
                const Floats v = load(k[i] + d);
#pragma GCC unroll 3
                for (int r = 0; r < R; ++r) sums[r][i] = fma(v, each[r], sums[r][i]);
            }
        }
        for (int r = 0; r < R; ++r)
            _mm_storeu_ps(scores + r * PART + key, sum_four(sums[r]));
    }
    for (; key < count; ++key)
        for (int r = 0; r < R; ++r) {
            Floats sums[4] = {zeros(), zeros(), zeros(), zeros()};
            for (int64_t d = 0; d < width; d += LANES)
                sums[0] = fma(load(keys + places[key] + d), load(q + r * width + d), sums[0]);
            scores[r * PART + key] = _mm_cvtss_f32(sum_four(sums));
        }
}

// D vectors of sums (R, width) += weights (R, PART) · values
template <int R, int D, typename T>
void weigh_some(const float *weights, const T *values, const int64_t *places, int64_t count,
                int64_t width, float *sums) {
    Floats local[R][D];
    for (int r = 0; r < R; ++r)
        for (int d = 0; d < D; ++d) local[r][d] = load(sums + r * width + d * LANES);
    for (int64_t key = 0; key < count; ++key) {
        const T *row = values + places[key];
        Floats each[R];
        for (int r = 0; r < R; ++r) each[r] = every(weights[r * PART + key]);
#pragma GCC unroll 4
        for (int d = 0; d < D; ++d) {
            const Floats v = load(row + d * LANES);
#pragma GCC unroll 3
            for (int r = 0; r < R; ++r) local[r][d] = fma(v, each[r], local[r][d]);
        }
    }
    for (int r = 0; r < R; ++r)
        for (int d = 0; d < D; ++d) store(sums + r * width + d * LANES, local[r][d]);
}

template <int R, typename T>
void weigh(const float *weights, const T *values, const int64_t *places, int64_t count,
           int64_t width, float *sums) {
    int64_t d = 0;
    for (; d + 4 * LANES <= width; d += 4 * LANES)
        weigh_some<R, 4>(weights, values + d, places, count, width, sums + d);
    for (; d < width; d += LANES)
        weigh_some<R, 1>(weights, values + d, places, count, width, sums + d);
}

// use(query, R constant) for groups of queries that cover 0 … count - 1.
template <typename Use>
void by_three(int64_t count, const Use &use) {
    int64_t at = 0;
    for (; at + 3 <= count; at += 3) use(at, std::integral_constant<int, 3>());
    if (count - at == 2) use(at, std::integral_constant<int, 2>());
    if (count - at == 1) use(at, std::integral_constant<int, 1>());
}

// One head's key or value into its place. Says whether it is finite there.
template <typename T>
bool write_head(const lms_cache_shape &shape, const int32_t *table, int64_t position, int64_t head,
                const float *x, void *cache) {
    const Places places{table, head, shape.num_kv_heads, shape.block_size, shape.head_dim};
    T *out = static_cast<T *>(cache) + places.of(position);
    const float infinity = std::numeric_limits<float>::infinity();
    const Floats limit = every(std::is_same<T, Half>::value ? 65520.0f : infinity);
    const Ints magnitude = every_int(0x7fffffff);
    bool finite = true;
    for (int64_t d = 0; d < shape.head_dim; d += LANES) {
        const int64_t left = shape.head_dim - d;
        const Floats v = left < LANES ? load_some(x + d, left) : load(x + d);
        finite &= all_less(floats_of(and_bits(bits_of(v), magnitude)), limit);
        if (left < LANES) store_some(out + d, v, left);
        else store(out + d, v);
    }
    return finite;
}

inline bool write_any(const lms_cache_shape &shape, const int32_t *table, int64_t position,
                      int64_t head, const float *x, void *cache) {
    switch (shape.kv_form) {
        case LMS_FLOAT32: return write_head<float>(shape, table, position, head, x, cache);
        case LMS_FLOAT16: return write_head<Half>(shape, table, position, head, x, cache);
        default: return write_head<Bfloat>(shape, table, position, head, x, cache);
    }
}

}  // namespace lms
