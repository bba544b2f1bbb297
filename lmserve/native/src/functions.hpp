// Functions of the elements of a vector.

#pragma once

#include "simd.hpp"

namespace lms {

// e^x to about 1e-7 of it; exactly 0 below -87.3, the infinite at 88.7 and beyond, NaN of NaN.
inline Floats exp(Floats x) {
    const Floats given = x;
    x = max(every(-87.5f), x);
    x = min(every(89.0f), x);
    const Floats n = round(mul(x, every(1.44269504f)));
    Floats r = fma(n, every(-0.693359375f), x);
    r = fma(n, every(2.12194440e-4f), r);
    Floats p = every(1.9875691500e-4f);
    p = fma(p, r, every(1.3981999507e-3f));
    p = fma(p, r, every(8.3334519073e-3f));
    p = fma(p, r, every(4.1665795894e-2f));
    p = fma(p, r, every(1.6666665459e-1f));
    p = fma(p, r, every(5.0000001201e-1f));
    p = fma(p, mul(r, r), add(r, every(1.0f)));
    // 2^n in two steps, for n may be 128
    const Ints half = to_ints(mul(n, every(0.5f)));
    const Ints rest = sub_ints(to_ints(n), half), one = every_int(127);
    p = mul(p, floats_of(shift_left(add_ints(half, one), 23)));
    p = mul(p, floats_of(shift_left(add_ints(rest, one), 23)));
    return where_less(given, every(-87.3f), zeros(), p);
}

inline float exp(float x) {
    alignas(64) float lanes[LANES];
    store(lanes, exp(every(x)));
    return lanes[0];
}

inline Floats silu(Floats x) {
    return div(x, add(every(1.0f), exp(sub(zeros(), x))));
}

inline Floats tanh(Floats x) {  // 1 - 2 / (e^2x + 1)
    const Floats e = exp(mul(x, every(2.0f)));
    return sub(every(1.0f), div(every(2.0f), add(e, every(1.0f))));
}

// limit * tanh(x / limit), in place
inline void cap(float limit, float *x, int64_t count) {
    for (int64_t at = 0; at < count; at += LANES) {
        const int64_t left = count - at;
        const Floats v = left < LANES ? load_some(x + at, left) : load(x + at);
        const Floats capped = mul(tanh(div(v, every(limit))), every(limit));
        if (left < LANES) store_some(x + at, capped, left);
        else store(x + at, capped);
    }
}

inline Floats gelu_tanh(Floats x) {
    const Floats inner = mul(mul(x, fma(mul(x, x), every(0.044715f), every(1.0f))),
                             every(0.7978845608f));
    return mul(mul(x, every(0.5f)), add(every(1.0f), tanh(inner)));
}

}  // namespace lms
