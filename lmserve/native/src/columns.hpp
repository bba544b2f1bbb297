// Products of many rows, in columns of LANES rows, with a panel: one output after another.
//
// A piece of an output's weights is broadcast and multiplied with the same piece of several
// columns, which come straight from memory: half the instructions of lines.hpp.

#pragma once

#include "unpacked.hpp"

namespace lms {

constexpr int COLUMNS = 4;  // multiplied with each piece, at most
constexpr int64_t MOST_ROWS = COLUMNS * LANES;
constexpr int64_t SPAN_BYTES = 256;  // of each row, so that all stay in the first cache

// What is summed so far of an output and its columns: products, and beside them those with the
// minima of int4, or with the odd inputs of dense weights.
template <int C>
struct Sums {
    Floats products[C], least[C];
};

// Even and odd inputs apart, as in lines.hpp: two sums run side by side.
template <int C>
ALWAYS_INLINE void dense_span(const Unpacked &w, int output, const Inputs &in, int64_t row,
                              int64_t first, int64_t last, Sums<C> &sums) {
    const int64_t column = in.width * LANES;
    const float *x = in.dense + row * in.width;
    const float *weights = reinterpret_cast<const float *>(w.weights) + output;
    int64_t k = first;
    for (; k + 1 < last; k += 2) {
        const Floats even = every(weights[k * LANES]), odd = every(weights[(k + 1) * LANES]);
#pragma GCC unroll 4
        for (int c = 0; c < C; ++c) {
            const float *at = x + c * column + k * LANES;
            sums.products[c] = fma(even, load(at), sums.products[c]);
            sums.least[c] = fma(odd, load(at + LANES), sums.least[c]);
        }
    }
    if (k == last) return;
    const Floats even = every(weights[k * LANES]);
    for (int c = 0; c < C; ++c)
        sums.products[c] = fma(even, load(x + c * column + k * LANES), sums.products[c]);
}

template <int C>
ALWAYS_INLINE void int4_span(const Unpacked &w, int output, const Inputs &in, int64_t row,
                              int64_t first, int64_t last, Sums<C> &sums) {
    const int64_t column = in.width * LANES, scale_column = in.groups * LANES;
    const int8_t *x = in.bytes + row * in.width;
    const float *x_scales = in.byte_scales + row * in.groups;
    const float *x_sums = in.byte_sums + row * in.groups;
    for (int64_t g = first / GROUP; g < last / GROUP; ++g) {
        const char *weights = w.weights + (g * GROUP * LANES) + output * 4;
        const int8_t *pieces = x + g * GROUP * LANES;
        Ints totals[C];
        for (int c = 0; c < C; ++c) totals[c] = every_int(0);
#pragma GCC unroll 8
        for (int j = 0; j < GROUP / 4; ++j) {
            const Ints each = every_int(four_bytes(weights + j * 4 * LANES));
#pragma GCC unroll 4
            for (int c = 0; c < C; ++c)
                totals[c] = add_fours(totals[c], each, pieces + c * column + j * 4 * LANES);
        }
        const Floats scale = every(w.scales[g * LANES + output]);
        const Floats minimum = every(w.minima[g * LANES + output]);
#pragma GCC unroll 4
        for (int c = 0; c < C; ++c) {
            const int64_t at = c * scale_column + g * LANES;
            const Floats product = mul(to_floats(fours_to_ints(totals[c])), scale);
            sums.products[c] = fma(product, load(x_scales + at), sums.products[c]);
            sums.least[c] = fma(minimum, load(x_sums + at), sums.least[c]);
        }
    }
}

template <int C>
ALWAYS_INLINE void int8_span(const Unpacked &w, int output, const Inputs &in, int64_t row,
                              int64_t first, int64_t last, Sums<C> &sums) {
    const int64_t column = in.width * LANES, scale_column = in.groups * LANES;
    const int16_t *x = in.shorts + row * in.width;
    const float *x_scales = in.short_scales + row * in.groups;
    for (int64_t g = first / GROUP; g < last / GROUP; ++g) {
        const char *weights = w.weights + (g * GROUP / 2 * LANES + output) * 4;
        const int16_t *pieces = x + g * GROUP * LANES;
        Ints totals[C];
        for (int c = 0; c < C; ++c) totals[c] = every_int(0);
#pragma GCC unroll 4
        for (int j = 0; j < GROUP / 2; ++j) {
            const Ints each = every_int(four_bytes(weights + j * 4 * LANES));
#pragma GCC unroll 4
            for (int c = 0; c < C; ++c)
                totals[c] = add_pairs(totals[c], each,
                                      load_ints(pieces + c * column + j * 2 * LANES));
        }
        const Floats scale = every(w.scales[g * LANES + output]);
#pragma GCC unroll 4
        for (int c = 0; c < C; ++c)
            sums.products[c] = fma(mul(to_floats(totals[c]), scale),
                                   load(x_scales + c * scale_column + g * LANES),
                                   sums.products[c]);
    }
}

// C columns from `row` on: out (C * LANES, LANES)
template <int C>
void columns(const Unpacked &w, const Inputs &in, int64_t row, float *out) {
    Sums<C> sums[LANES];
    for (Sums<C> &each : sums)
        for (int c = 0; c < C; ++c) each.products[c] = each.least[c] = zeros();
    const int64_t span = SPAN_BYTES / (w.form == LMS_INT4 ? 1 : w.form == LMS_INT8 ? 2 : 4);
    for (int64_t first = 0; first < in.width; first += span) {
        const int64_t last = in.width - first < span ? in.width : first + span;
        for (int output = 0; output < LANES; ++output) {
            Sums<C> local = sums[output];
            switch (w.form) {
                case LMS_INT4: int4_span<C>(w, output, in, row, first, last, local); break;
                case LMS_INT8: int8_span<C>(w, output, in, row, first, last, local); break;
                default: dense_span<C>(w, output, in, row, first, last, local);
            }
            sums[output] = local;
        }
    }
    const bool has_two = w.form != LMS_INT8;
    for (int c = 0; c < C; ++c) {
        alignas(64) float square[LANES * LANES];
        for (int output = 0; output < LANES; ++output)
            store(square + output * LANES,
                  has_two ? add(sums[output].products[c], sums[output].least[c])
                          : sums[output].products[c]);
        transpose(square, out + c * LANES * LANES);
    }
}

// `count` rows from `row` on, a multiple of LANES: out (count, LANES)
inline void multiply_columns(const Unpacked &w, const Inputs &in, int64_t row, int64_t count,
                             float *out) {
    switch (count / LANES) {
        case 4: return columns<4>(w, in, row, out);
        case 3: return columns<3>(w, in, row, out);
        case 2: return columns<2>(w, in, row, out);
        default: return columns<1>(w, in, row, out);
    }
}

}  // namespace lms
