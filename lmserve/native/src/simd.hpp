// Vectors of floats, as wide as the library is built for: 16 with AVX-512, 8 with AVX2.

#pragma once

#include <immintrin.h>

#include <cstdint>
#include <cstring>
#include <limits>

#define ALWAYS_INLINE inline __attribute__((always_inline))  // so that sums stay in registers

namespace lms {

struct Half {
    uint16_t bits;
};
struct Bfloat {
    uint16_t bits;
};

#if defined(__AVX512F__)

constexpr int LANES = 16;
using Floats = __m512;
using Ints = __m512i;

inline __mmask16 first(int64_t count) { return static_cast<__mmask16>((1u << count) - 1); }

inline Floats zeros() { return _mm512_setzero_ps(); }
inline Floats every(float value) { return _mm512_set1_ps(value); }
inline Floats load(const float *p) { return _mm512_loadu_ps(p); }
inline Floats load(const Half *p) {
    return _mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i *>(p)));
}
inline Floats load(const Bfloat *p) {
    const __m256i bits = _mm256_loadu_si256(reinterpret_cast<const __m256i *>(p));
    return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(bits), 16));
}
inline Floats load_some(const float *p, int64_t count) {
    return _mm512_maskz_loadu_ps(first(count), p);
}
inline void store(float *p, Floats v) { _mm512_storeu_ps(p, v); }
inline void store_some(float *p, Floats v, int64_t count) {
    _mm512_mask_storeu_ps(p, first(count), v);
}
inline void store(Half *p, Floats v) {
    const __m256i bits = _mm512_cvtps_ph(v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
    _mm256_storeu_si256(reinterpret_cast<__m256i *>(p), bits);
}
inline Floats add(Floats a, Floats b) { return _mm512_add_ps(a, b); }
inline Floats sub(Floats a, Floats b) { return _mm512_sub_ps(a, b); }
inline Floats mul(Floats a, Floats b) { return _mm512_mul_ps(a, b); }
inline Floats div(Floats a, Floats b) { return _mm512_div_ps(a, b); }
inline Floats fma(Floats a, Floats b, Floats c) { return _mm512_fmadd_ps(a, b, c); }
inline Floats max(Floats a, Floats b) { return _mm512_max_ps(a, b); }  // b where one is NaN
inline Floats min(Floats a, Floats b) { return _mm512_min_ps(a, b); }  // b where one is NaN
inline Floats round(Floats a) {
    return _mm512_roundscale_ps(a, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
}
inline Ints to_ints(Floats a) { return _mm512_cvtps_epi32(a); }
inline Floats to_floats(Ints a) { return _mm512_cvtepi32_ps(a); }
inline Ints add_ints(Ints a, Ints b) { return _mm512_add_epi32(a, b); }
inline Ints sub_ints(Ints a, Ints b) { return _mm512_sub_epi32(a, b); }
inline Ints every_int(int32_t value) { return _mm512_set1_epi32(value); }
inline Ints max_ints(Ints a, Ints b) { return _mm512_max_epi32(a, b); }
inline Ints bits_of(Floats a) { return _mm512_castps_si512(a); }
inline Floats floats_of(Ints a) { return _mm512_castsi512_ps(a); }
inline Ints and_bits(Ints a, Ints b) { return _mm512_and_si512(a, b); }
inline Ints shift_left(Ints a, int count) { return _mm512_slli_epi32(a, count); }
inline Ints shift_right(Ints a, int count) { return _mm512_srli_epi32(a, count); }
// `a` where x is less than `limit`, else b; b where x is NaN
inline Floats where_less(Floats x, Floats limit, Floats a, Floats b) {
    return _mm512_mask_blend_ps(_mm512_cmp_ps_mask(x, limit, _CMP_LT_OQ), b, a);
}
inline bool all_less(Floats x, Floats limit) {  // false where one is NaN
    return _mm512_cmp_ps_mask(x, limit, _CMP_LT_OQ) == 0xffff;
}
inline __m256 low_half(Floats a) { return _mm512_castps512_ps256(a); }
inline __m256 high_half(Floats a) {
    return _mm256_castpd_ps(_mm512_extractf64x4_pd(_mm512_castps_pd(a), 1));
}
inline void store_bytes(int8_t *p, Ints a) {  // of each lane
    _mm_storeu_si128(reinterpret_cast<__m128i *>(p), _mm512_cvtsepi32_epi8(a));
}
inline void store_shorts(int16_t *p, Ints a) {
    _mm256_storeu_si256(reinterpret_cast<__m256i *>(p), _mm512_cvtsepi32_epi16(a));
}
inline int32_t largest(Ints a) { return _mm512_reduce_max_epi32(a); }
inline float sum(Floats a) {
    const __m256 b = _mm256_add_ps(low_half(a), high_half(a));
    const __m128 c = _mm_add_ps(_mm256_castps256_ps128(b), _mm256_extractf128_ps(b, 1));
    const __m128 d = _mm_add_ps(c, _mm_movehl_ps(c, c));
    return _mm_cvtss_f32(_mm_add_ss(d, _mm_shuffle_ps(d, d, 1)));
}

inline Ints load_ints(const void *p) { return _mm512_loadu_si512(p); }
inline void store_ints(void *p, Ints a) { _mm512_storeu_si512(p, a); }
inline Ints wide_bytes(const char *p) {  // 2 a lane, as shorts
    return _mm512_cvtepi8_epi16(_mm256_loadu_si256(reinterpret_cast<const __m256i *>(p)));
}
// sums + products of two pairs of shorts in each lane
inline Ints add_pairs(Ints sums, Ints a, Ints b) { return _mm512_dpwssd_epi32(sums, a, b); }
// sums + products of four unsigned bytes with four signed ones in each lane, in a form of its own
inline Ints add_fours(Ints sums, Ints a, const int8_t *b) {
    return _mm512_dpbusd_epi32(sums, a, load_ints(b));
}
inline Ints fours_to_ints(Ints sums) { return sums; }
// 4 * LANES bytes of two nibbles each: all low ones, then all high ones
inline void split_nibbles(const char *p, char *out) {
    const Ints both = load_ints(p), low_bits = _mm512_set1_epi8(15);
    store_ints(out, _mm512_and_si512(both, low_bits));
    store_ints(out + 64, _mm512_and_si512(_mm512_srli_epi16(both, 4), low_bits));
}
// 4 * LANES bytes, all first pairs and all second ones: the four of each lane
inline void join_pairs(const char *p, char *out) {
    const __m256i *pairs = reinterpret_cast<const __m256i *>(p);
    const Ints first = _mm512_cvtepu16_epi32(_mm256_loadu_si256(pairs));
    const Ints second = _mm512_cvtepu16_epi32(_mm256_loadu_si256(pairs + 1));
    store_ints(out, _mm512_or_si512(first, _mm512_slli_epi32(second, 16)));
}

#else

constexpr int LANES = 8;
using Floats = __m256;
using Ints = __m256i;

inline __m256i first(int64_t count) {
    const __m256i lanes = _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7);
    return _mm256_cmpgt_epi32(_mm256_set1_epi32(static_cast<int>(count)), lanes);
}

inline Floats zeros() { return _mm256_setzero_ps(); }
inline Floats every(float value) { return _mm256_set1_ps(value); }
inline Floats load(const float *p) { return _mm256_loadu_ps(p); }
inline Floats load(const Half *p) {
    return _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i *>(p)));
}
inline Floats load(const Bfloat *p) {
    const __m128i bits = _mm_loadu_si128(reinterpret_cast<const __m128i *>(p));
    return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(bits), 16));
}
inline Floats load_some(const float *p, int64_t count) {
    return _mm256_maskload_ps(p, first(count));
}
inline void store(float *p, Floats v) { _mm256_storeu_ps(p, v); }
inline void store_some(float *p, Floats v, int64_t count) {
    _mm256_maskstore_ps(p, first(count), v);
}
inline void store(Half *p, Floats v) {
    const __m128i bits = _mm256_cvtps_ph(v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
    _mm_storeu_si128(reinterpret_cast<__m128i *>(p), bits);
}
inline Floats add(Floats a, Floats b) { return _mm256_add_ps(a, b); }
inline Floats sub(Floats a, Floats b) { return _mm256_sub_ps(a, b); }
inline Floats mul(Floats a, Floats b) { return _mm256_mul_ps(a, b); }
inline Floats div(Floats a, Floats b) { return _mm256_div_ps(a, b); }
inline Floats fma(Floats a, Floats b, Floats c) { return _mm256_fmadd_ps(a, b, c); }
inline Floats max(Floats a, Floats b) { return _mm256_max_ps(a, b); }  // b where one is NaN
inline Floats min(Floats a, Floats b) { return _mm256_min_ps(a, b); }  // b where one is NaN
inline Floats round(Floats a) {
    return _mm256_round_ps(a, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
}
inline Ints to_ints(Floats a) { return _mm256_cvtps_epi32(a); }
inline Floats to_floats(Ints a) { return _mm256_cvtepi32_ps(a); }
inline Ints add_ints(Ints a, Ints b) { return _mm256_add_epi32(a, b); }
inline Ints sub_ints(Ints a, Ints b) { return _mm256_sub_epi32(a, b); }
inline Ints every_int(int32_t value) { return _mm256_set1_epi32(value); }
inline Ints max_ints(Ints a, Ints b) { return _mm256_max_epi32(a, b); }
inline Ints bits_of(Floats a) { return _mm256_castps_si256(a); }
inline Floats floats_of(Ints a) { return _mm256_castsi256_ps(a); }
inline Ints and_bits(Ints a, Ints b) { return _mm256_and_si256(a, b); }
inline Ints shift_left(Ints a, int count) { return _mm256_slli_epi32(a, count); }
inline Ints shift_right(Ints a, int count) { return _mm256_srli_epi32(a, count); }
// `a` where x is less than `limit`, else b; b where x is NaN
inline Floats where_less(Floats x, Floats limit, Floats a, Floats b) {
    return _mm256_blendv_ps(b, a, _mm256_cmp_ps(x, limit, _CMP_LT_OQ));
}
inline bool all_less(Floats x, Floats limit) {  // false where one is NaN
    return _mm256_movemask_ps(_mm256_cmp_ps(x, limit, _CMP_LT_OQ)) == 0xff;
}
inline void store_bytes(int8_t *p, Ints a) {  // of each lane
    const __m128i shorts =
        _mm_packs_epi32(_mm256_castsi256_si128(a), _mm256_extracti128_si256(a, 1));
    _mm_storel_epi64(reinterpret_cast<__m128i *>(p), _mm_packs_epi16(shorts, shorts));
}
inline void store_shorts(int16_t *p, Ints a) {
    const __m128i shorts =
        _mm_packs_epi32(_mm256_castsi256_si128(a), _mm256_extracti128_si256(a, 1));
    _mm_storeu_si128(reinterpret_cast<__m128i *>(p), shorts);
}
inline int32_t largest(Ints a) {
    const __m128i b =
        _mm_max_epi32(_mm256_castsi256_si128(a), _mm256_extracti128_si256(a, 1));
    const __m128i c = _mm_max_epi32(b, _mm_shuffle_epi32(b, 0x4e));
    return _mm_cvtsi128_si32(_mm_max_epi32(c, _mm_shuffle_epi32(c, 0xb1)));
}
inline float sum(Floats a) {
    const __m128 c = _mm_add_ps(_mm256_castps256_ps128(a), _mm256_extractf128_ps(a, 1));
    const __m128 d = _mm_add_ps(c, _mm_movehl_ps(c, c));
    return _mm_cvtss_f32(_mm_add_ss(d, _mm_shuffle_ps(d, d, 1)));
}

// Sums stay sums of one after another: GCC would make trees of them, and run out of registers.
inline Ints kept(Ints a) {
    __asm__("" : "+x"(a));
    return a;
}
inline Ints load_ints(const void *p) {
    return _mm256_loadu_si256(static_cast<const __m256i *>(p));
}
inline void store_ints(void *p, Ints a) { _mm256_storeu_si256(static_cast<__m256i *>(p), a); }
inline Ints wide_bytes(const char *p) {  // 2 a lane, as shorts
    return _mm256_cvtepi8_epi16(_mm_loadu_si128(reinterpret_cast<const __m128i *>(p)));
}
// sums + products of two pairs of shorts in each lane
inline Ints add_pairs(Ints sums, Ints a, Ints b) {
    return kept(_mm256_add_epi32(sums, _mm256_madd_epi16(a, b)));
}
// sums + products of four unsigned bytes with four signed ones in each lane, as pairs of shorts
inline Ints add_fours(Ints sums, Ints a, const int8_t *b) {
    return kept(_mm256_add_epi16(sums, _mm256_maddubs_epi16(a, load_ints(b))));
}
inline Ints fours_to_ints(Ints sums) { return _mm256_madd_epi16(sums, _mm256_set1_epi16(1)); }
// 4 * LANES bytes of two nibbles each: all low ones, then all high ones
inline void split_nibbles(const char *p, char *out) {
    const Ints both = load_ints(p), low_bits = _mm256_set1_epi8(15);
    store_ints(out, _mm256_and_si256(both, low_bits));
    store_ints(out + 32, _mm256_and_si256(_mm256_srli_epi16(both, 4), low_bits));
}
inline void join_pairs(const char *p, char *out) {
    const __m128i *pairs = reinterpret_cast<const __m128i *>(p);
    const Ints first = _mm256_cvtepu16_epi32(_mm_loadu_si128(pairs));
    const Ints second = _mm256_cvtepu16_epi32(_mm_loadu_si128(pairs + 1));
    store_ints(out, _mm256_or_si256(first, _mm256_slli_epi32(second, 16)));
}

#endif

// --- the same for both ----------------------------------------------------------------------

inline void store(Bfloat *p, Floats v) {  // to nearest, ties to even; a NaN stays one
    const Ints bits = bits_of(v);
    const Ints odd = and_bits(shift_right(bits, 16), every_int(1));
    Ints rounded = shift_right(add_ints(bits, add_ints(odd, every_int(0x7fff))), 16);
    alignas(64) int32_t wide[LANES], raw[LANES];
    std::memcpy(wide, &rounded, sizeof wide);
    std::memcpy(raw, &bits, sizeof raw);
    for (int lane = 0; lane < LANES; ++lane) {
        const bool nan = (raw[lane] & 0x7fffffff) > 0x7f800000;
        p[lane].bits = static_cast<uint16_t>(nan ? 0x7fc0 : wide[lane]);
    }
}

template <typename T>
Floats load_some(const T *p, int64_t count) {
    T all[LANES] = {};
    std::memcpy(all, p, count * sizeof(T));
    return load(all);
}

template <typename T>
void store_some(T *p, Floats v, int64_t count) {
    T all[LANES];
    store(all, v);
    std::memcpy(p, all, count * sizeof(T));
}

inline void transpose_8x8(__m256 (&v)[8]) {
    __m256 a[8], b[8];
    for (int i = 0; i < 8; i += 2) {
        a[i] = _mm256_unpacklo_ps(v[i], v[i + 1]);
        a[i + 1] = _mm256_unpackhi_ps(v[i], v[i + 1]);
    }
    for (int i = 0; i < 8; i += 4) {
        b[i] = _mm256_shuffle_ps(a[i], a[i + 2], 0x44);
        b[i + 1] = _mm256_shuffle_ps(a[i], a[i + 2], 0xee);
        b[i + 2] = _mm256_shuffle_ps(a[i + 1], a[i + 3], 0x44);
        b[i + 3] = _mm256_shuffle_ps(a[i + 1], a[i + 3], 0xee);
    }
    for (int i = 0; i < 4; ++i) {
        v[i] = _mm256_permute2f128_ps(b[i], b[i + 4], 0x20);
        v[i + 4] = _mm256_permute2f128_ps(b[i], b[i + 4], 0x31);
    }
}

// (LANES, LANES): rows become columns
inline void transpose(const float *from, float *to) {
    for (int row = 0; row < LANES; row += 8)
        for (int column = 0; column < LANES; column += 8) {
            __m256 v[8];
            for (int i = 0; i < 8; ++i) v[i] = _mm256_loadu_ps(from + (row + i) * LANES + column);
            transpose_8x8(v);
            for (int i = 0; i < 8; ++i) _mm256_storeu_ps(to + (column + i) * LANES + row, v[i]);
        }
}

// The sums of four vectors.
inline __m128 sum_four(const __m256 (&v)[4]) {
    const __m256 a = _mm256_add_ps(_mm256_unpacklo_ps(v[0], v[1]), _mm256_unpackhi_ps(v[0], v[1]));
    const __m256 b = _mm256_add_ps(_mm256_unpacklo_ps(v[2], v[3]), _mm256_unpackhi_ps(v[2], v[3]));
    const __m256 c = _mm256_add_ps(_mm256_shuffle_ps(a, b, 0x44), _mm256_shuffle_ps(a, b, 0xee));
    return _mm_add_ps(_mm256_castps256_ps128(c), _mm256_extractf128_ps(c, 1));
}
#if defined(__AVX512F__)
inline __m128 sum_four(const Floats (&v)[4]) {
    __m256 halves[4];
    for (int i = 0; i < 4; ++i) halves[i] = _mm256_add_ps(low_half(v[i]), high_half(v[i]));
    return sum_four(halves);
}
#endif

inline float largest(Floats a) {
    alignas(64) float lanes[LANES];
    store(lanes, a);
    float most = lanes[0];
    for (int lane = 1; lane < LANES; ++lane) most = lanes[lane] > most ? lanes[lane] : most;
    return most;
}

}  // namespace lms
