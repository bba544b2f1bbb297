// Products of a few rows, in lines, with a panel: LANES outputs at once.

#pragma once

#include "inputs.hpp"

namespace lms {

// The next panel comes from memory while this one is multiplied: panels are short, and the
// processor does not look beyond a page by itself.
inline void fetch(const char *p, int64_t bytes) {
    for (int64_t at = 0; at < bytes; at += 64) _mm_prefetch(p + at, _MM_HINT_T0);
}

// Even and odd inputs apart: two sums run side by side.
template <int R, typename T>
void dense_lines(const T *panel, const Inputs &in, int64_t row, float *out) {
    const int64_t width = in.width;
    const float *x = in.dense + row * width;
    Floats even[R], odd[R];
    for (int r = 0; r < R; ++r) even[r] = odd[r] = zeros();
    int64_t k = 0;
    for (; k + 1 < width; k += 2) {
        const Floats a = load(panel + k * LANES), b = load(panel + (k + 1) * LANES);
#pragma GCC unroll 8
        for (int r = 0; r < R; ++r) {
            even[r] = fma(a, every(x[r * width + k]), even[r]);
            odd[r] = fma(b, every(x[r * width + k + 1]), odd[r]);
        }
    }
    if (k < width) {
        const Floats a = load(panel + k * LANES);
        for (int r = 0; r < R; ++r) even[r] = fma(a, every(x[r * width + k]), even[r]);
    }
    for (int r = 0; r < R; ++r) store(out + r * LANES, add(even[r], odd[r]));
}

// Sums of 32 inputs of R rows, in 32 bits: int4 codes with bytes.
template <int R>
void int4_group(const char *codes, const int8_t *x, int64_t width, Ints (&sums)[R]) {
#if defined(__AVX512F__)
    const Ints low_bits = _mm512_set1_epi8(15);
    for (int r = 0; r < R; ++r) sums[r] = _mm512_setzero_si512();
#pragma GCC unroll 1
    for (int j = 0; j < 4; ++j) {
        const Ints both = _mm512_loadu_si512(codes + j * 64);
        const Ints low = _mm512_and_si512(both, low_bits);
        const Ints high = _mm512_and_si512(_mm512_srli_epi16(both, 4), low_bits);
#pragma GCC unroll 8
        for (int r = 0; r < R; ++r) {
            const int8_t *at = x + r * width + 8 * j;
            sums[r] = _mm512_dpbusd_epi32(sums[r], low, _mm512_set1_epi32(four_bytes(at)));
            sums[r] = _mm512_dpbusd_epi32(sums[r], high, _mm512_set1_epi32(four_bytes(at + 4)));
        }
    }
#else
    // eight pairs of 15 * 127 fit in 16 bits
    const Ints low_bits = _mm256_set1_epi8(15), ones = _mm256_set1_epi16(1);
    for (int r = 0; r < R; ++r) sums[r] = _mm256_setzero_si256();
#pragma GCC unroll 1
    for (int j = 0; j < 4; ++j) {
        const Ints both = _mm256_loadu_si256(reinterpret_cast<const __m256i *>(codes + j * 32));
        const Ints low = _mm256_and_si256(both, low_bits);
        const Ints high = _mm256_and_si256(_mm256_srli_epi16(both, 4), low_bits);
#pragma GCC unroll 8
        for (int r = 0; r < R; ++r) {
            const int8_t *at = x + r * width + 8 * j;
            const Ints a = _mm256_maddubs_epi16(low, _mm256_set1_epi32(four_bytes(at)));
            const Ints b = _mm256_maddubs_epi16(high, _mm256_set1_epi32(four_bytes(at + 4)));
            sums[r] = kept(_mm256_add_epi16(sums[r], _mm256_add_epi16(a, b)));
        }
    }
    for (int r = 0; r < R; ++r) sums[r] = _mm256_madd_epi16(sums[r], ones);
#endif
}

// Sums of 32 inputs of R rows, in 32 bits: int8 codes with shorts.
template <int R>
void int8_group(const char *codes, const int16_t *x, int64_t width, Ints (&sums)[R]) {
    for (int r = 0; r < R; ++r) sums[r] = every_int(0);
#pragma GCC unroll 4
    for (int j = 0; j < GROUP / 2; ++j) {
        const Ints w = wide_bytes(codes + j * 2 * LANES);
#pragma GCC unroll 8
        for (int r = 0; r < R; ++r)
            sums[r] = add_pairs(sums[r], w, every_int(four_bytes(x + r * width + 2 * j)));
    }
}

template <int R>
void int4_lines(const char *panel, const Panels &panels, const Inputs &in, int64_t row,
                float *out) {
    const int64_t width = in.width, groups = in.groups;
    const Half *scales = reinterpret_cast<const Half *>(panel + panels.codes);
    const int8_t *x = in.bytes + row * width;
    const float *x_scales = in.byte_scales + row * groups, *x_sums = in.byte_sums + row * groups;
    Floats products[R], least[R];
    for (int r = 0; r < R; ++r) products[r] = least[r] = zeros();
    for (int64_t g = 0; g < groups; ++g) {
        const char *codes = panel + g * GROUP / 2 * LANES;
        fetch(codes + panels.bytes, GROUP / 2 * LANES);
        Ints sums[R];
        int4_group<R>(codes, x + g * GROUP, width, sums);
        const Floats scale = load(scales + g * 2 * LANES);
        const Floats minimum = load(scales + g * 2 * LANES + LANES);
#pragma GCC unroll 8
        for (int r = 0; r < R; ++r) {
            const Floats product = mul(to_floats(sums[r]), scale);
            products[r] = fma(product, every(x_scales[r * groups + g]), products[r]);
            least[r] = fma(minimum, every(x_sums[r * groups + g]), least[r]);
        }
    }
    for (int r = 0; r < R; ++r) store(out + r * LANES, add(products[r], least[r]));
}

template <int R>
void int8_lines(const char *panel, const Panels &panels, const Inputs &in, int64_t row,
                float *out) {
    const int64_t width = in.width, groups = in.groups;
    const Half *scales = reinterpret_cast<const Half *>(panel + panels.codes);
    const int16_t *x = in.shorts + row * width;
    const float *x_scales = in.short_scales + row * groups;
    Floats products[R];
    for (int r = 0; r < R; ++r) products[r] = zeros();
    for (int64_t g = 0; g < groups; ++g) {
        const char *codes = panel + g * GROUP * LANES;
        fetch(codes + panels.bytes, GROUP * LANES);
        Ints sums[R];
        int8_group<R>(codes, x + g * GROUP, width, sums);
        const Floats scale = load(scales + g * LANES);
#pragma GCC unroll 8
        for (int r = 0; r < R; ++r)
            products[r] = fma(mul(to_floats(sums[r]), scale), every(x_scales[r * groups + g]),
                              products[r]);
    }
    for (int r = 0; r < R; ++r) store(out + r * LANES, products[r]);
}

template <int R>
void lines(const lms_weight &w, const Panels &panels, const char *panel, const Inputs &in,
           int64_t row, float *out) {
    switch (w.form) {
        case LMS_FLOAT32:
            return dense_lines<R>(reinterpret_cast<const float *>(panel), in, row, out);
        case LMS_FLOAT16:
            return dense_lines<R>(reinterpret_cast<const Half *>(panel), in, row, out);
        case LMS_BFLOAT16:
            return dense_lines<R>(reinterpret_cast<const Bfloat *>(panel), in, row, out);
        case LMS_INT4: return int4_lines<R>(panel, panels, in, row, out);
        default: return int8_lines<R>(panel, panels, in, row, out);
    }
}

// `count` rows from `row` on: out (count, LANES)
inline void multiply_lines(const lms_weight &w, const Panels &panels, const char *panel,
                           const Inputs &in, int64_t row, int64_t count, float *out) {
    for (; count >= 4; row += 4, count -= 4, out += 4 * LANES)
        lines<4>(w, panels, panel, in, row, out);
    switch (count) {
        case 3: return lines<3>(w, panels, panel, in, row, out);
        case 2: return lines<2>(w, panels, panel, in, row, out);
        case 1: return lines<1>(w, panels, panel, in, row, out);
        default: return;
    }
}

}  // namespace lms
