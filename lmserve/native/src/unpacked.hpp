// A panel's weights as columns.hpp and tiles.hpp read them.

#pragma once

#include "inputs.hpp"

namespace lms {

// A panel's weights, unpacked: pieces of 32 bits of each output, in the order of the panel. Of int8
// that is two inputs, as shorts; for tiles four, as bytes.
class Unpacked {
public:
    Unpacked() = default;
    Unpacked(const lms_weight &w, const Inputs &in, Buffer &room)
        : form(w.form), width_(w.num_in), by_fours_(in.in_tiles) {
        const int64_t groups = width_ / GROUP;
        char *p = room.of<char>((width_ * 4 + groups * 8) * LANES);
        weights = own_ = p;
        scales = reinterpret_cast<float *>(p + width_ * 4 * LANES);
        minima = scales + groups * LANES;
    }

    void take(const char *panel, int64_t codes) {
        const Half *halves = reinterpret_cast<const Half *>(panel + codes);
        switch (form) {
            case LMS_FLOAT32: weights = panel; return;
            case LMS_FLOAT16: return widen(reinterpret_cast<const Half *>(panel));
            case LMS_BFLOAT16: return widen(reinterpret_cast<const Bfloat *>(panel));
            case LMS_INT4:
                for (int64_t at = 0; at < width_ / 2 * LANES; at += 4 * LANES)
                    split_nibbles(panel + at, own_ + 2 * at);
                for (int64_t g = 0; g < width_ / GROUP; ++g) {
                    store(scales + g * LANES, load(halves + 2 * g * LANES));
                    store(minima + g * LANES, load(halves + (2 * g + 1) * LANES));
                }
                return;
            default:
                if (by_fours_)
                    for (int64_t k = 0; k < width_; k += 4)
                        join_pairs(panel + k * LANES, own_ + k * LANES);
                else
                    for (int64_t k = 0; k < width_; k += 2)
                        store_ints(own_ + k * 2 * LANES, wide_bytes(panel + k * LANES));
                for (int64_t g = 0; g < width_ / GROUP; ++g)
                    store(scales + g * LANES, load(halves + g * LANES));
        }
    }

    int form = 0;
    const char *weights = nullptr;  // (pieces, LANES) of 4 bytes
    float *scales = nullptr, *minima = nullptr;  // (groups, LANES)

private:
    template <typename T>
    void widen(const T *values) {
        float *out = reinterpret_cast<float *>(own_);
        for (int64_t k = 0; k < width_ * LANES; k += LANES) store(out + k, load(values + k));
    }

    int64_t width_ = 0;
    bool by_fours_ = false;
    char *own_ = nullptr;
};

}  // namespace lms
