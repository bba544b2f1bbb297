// How weights lie in memory, and the way there and back.
//
// A panel is LANES outputs, the last one filled up with zeros. Within it an input (or a few of
// them) of all its outputs lies together, so that a product works on LANES outputs at once:
//
//   dense   each input: LANES values
//   int4    codes of each group, 4 pieces of LANES x 4 bytes: byte 4n+i of piece j holds inputs
//           8j+i (low) and 8j+4+i (high) of output n; then of each group LANES scales, LANES minima
//   int8    codes of each group, 16 pieces of LANES x 2 bytes: byte 2n+i of piece j is input 2j+i
//           of output n; then of each group LANES scales

#pragma once

#include "api.h"
#include "simd.hpp"

namespace lms {

constexpr int GROUP = 32;  // inputs that share a scale

struct Panels {
    int64_t count, bytes, codes;  // of a weight; of a panel; of its codes

    Panels(int form, int64_t num_out, int64_t num_in) : count((num_out + LANES - 1) / LANES) {
        const int64_t values = num_in * LANES, groups = num_in / GROUP;
        int64_t scales = 0;
        switch (form) {
            case LMS_FLOAT32: codes = values * 4; break;
            case LMS_INT4: codes = values / 2, scales = groups * LANES * 4; break;
            case LMS_INT8: codes = values, scales = groups * LANES * 2; break;
            default: codes = values * 2;
        }
        bytes = (codes + scales + 63) / 64 * 64;
    }
    explicit Panels(const lms_weight &w) : Panels(w.form, w.num_out, w.num_in) {}
};

inline Half to_half(float value) { return {static_cast<uint16_t>(_cvtss_sh(value, 0))}; }
inline float to_float(Half value) { return _cvtsh_ss(value.bits); }
inline float to_float(float value) { return value; }
inline float to_float(Bfloat value) {
    const uint32_t bits = static_cast<uint32_t>(value.bits) << 16;
    float out;
    std::memcpy(&out, &bits, sizeof out);
    return out;
}

inline int32_t four_bytes(const void *p) {
    int32_t word;
    std::memcpy(&word, p, sizeof word);
    return word;
}

// --- there ----------------------------------------------------------------------------------

template <typename T>
void pack_dense(int64_t num_out, int64_t num_in, const T *values, char *packed) {
    const Panels panels(sizeof(T) == 4 ? LMS_FLOAT32 : LMS_FLOAT16, num_out, num_in);
    std::memset(packed, 0, panels.count * panels.bytes);
    for (int64_t n = 0; n < num_out; ++n) {
        T *panel = reinterpret_cast<T *>(packed + n / LANES * panels.bytes) + n % LANES;
        for (int64_t k = 0; k < num_in; ++k) panel[k * LANES] = values[n * num_in + k];
    }
}

inline void pack_int4(int64_t num_out, int64_t num_in, const uint8_t *codes, const float *scales,
                      const float *minima, char *packed) {
    const Panels panels(LMS_INT4, num_out, num_in);
    const int64_t groups = num_in / GROUP;
    std::memset(packed, 0, panels.count * panels.bytes);
    for (int64_t n = 0; n < num_out; ++n) {
        char *panel = packed + n / LANES * panels.bytes;
        const int64_t lane = n % LANES;
        for (int64_t k = 0; k < num_in; k += 8) {
            const uint8_t *given = codes + n * num_in + k;
            uint8_t *piece = reinterpret_cast<uint8_t *>(panel) + k / 8 * LANES * 4 + lane * 4;
            for (int i = 0; i < 4; ++i)
                piece[i] = static_cast<uint8_t>(given[i] | given[i + 4] << 4);
        }
        Half *both = reinterpret_cast<Half *>(panel + panels.codes) + lane;
        for (int64_t g = 0; g < groups; ++g) {
            both[g * 2 * LANES] = to_half(scales[n * groups + g]);
            both[g * 2 * LANES + LANES] = to_half(minima[n * groups + g]);
        }
    }
}

inline void pack_int8(int64_t num_out, int64_t num_in, const int8_t *codes, const float *scales,
                      char *packed) {
    const Panels panels(LMS_INT8, num_out, num_in);
    const int64_t groups = num_in / GROUP;
    std::memset(packed, 0, panels.count * panels.bytes);
    for (int64_t n = 0; n < num_out; ++n) {
        char *panel = packed + n / LANES * panels.bytes;
        const int64_t lane = n % LANES;
        for (int64_t k = 0; k < num_in; k += 2)
            std::memcpy(panel + k * LANES + lane * 2, codes + n * num_in + k, 2);
        Half *all = reinterpret_cast<Half *>(panel + panels.codes) + lane;
        for (int64_t g = 0; g < groups; ++g) all[g * LANES] = to_half(scales[n * groups + g]);
    }
}

// --- and back -------------------------------------------------------------------------------

template <typename T>
void dense_row(const T *values, int64_t num_in, float *out) {
    for (int64_t k = 0; k < num_in; ++k) out[k] = to_float(values[k * LANES]);
}

// One output of a weight: its num_in values.
inline void unpack_row(const lms_weight &w, int64_t row, float *out) {
    const Panels panels(w);
    const char *panel = static_cast<const char *>(w.data) + row / LANES * panels.bytes;
    const int64_t lane = row % LANES, num_in = w.num_in;
    const Half *scales = reinterpret_cast<const Half *>(panel + panels.codes) + lane;
    switch (w.form) {
        case LMS_FLOAT32:
            return dense_row(reinterpret_cast<const float *>(panel) + lane, num_in, out);
        case LMS_FLOAT16:
            return dense_row(reinterpret_cast<const Half *>(panel) + lane, num_in, out);
        case LMS_BFLOAT16:
            return dense_row(reinterpret_cast<const Bfloat *>(panel) + lane, num_in, out);
        case LMS_INT4:
            for (int64_t k = 0; k < num_in; ++k) {
                const int64_t piece = k / 8 * LANES * 4, byte = lane * 4 + k % 4;
                const int both = reinterpret_cast<const uint8_t *>(panel)[piece + byte];
                const int code = k % 8 < 4 ? both & 15 : both >> 4;
                const Half *pair = scales + k / GROUP * 2 * LANES;
                out[k] = static_cast<float>(code) * to_float(pair[0]) + to_float(pair[LANES]);
            }
            return;
        default:
            for (int64_t k = 0; k < num_in; ++k) {
                const int8_t code =
                    reinterpret_cast<const int8_t *>(panel)[k / 2 * 2 * LANES + lane * 2 + k % 2];
                out[k] = static_cast<float>(code) * to_float(scales[k / GROUP * LANES]);
            }
    }
}

}  // namespace lms
