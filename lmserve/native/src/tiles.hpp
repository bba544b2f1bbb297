// Products of integers in tiles (AMX): 16 rows, the LANES outputs of a panel and a group at once.
//
// A group's sums are exact, and what follows is in the order of lines.hpp: the same bits. What
// a tile takes beyond the last row is computed too, and left.

#pragma once

#include <utility>

#include "unpacked.hpp"

#if defined(__AMX_INT8__)
#include <sys/syscall.h>
#include <unistd.h>
#endif

namespace lms {

#if defined(__AMX_INT8__)

#define SUMS 0  // tiles: the compiler pastes them into names of registers
#define MORE_SUMS 1
#define ROWS 2
#define MORE_ROWS 3
#define WEIGHTS 4

// Linux saves tiles only for a process that has asked, and for its later threads.
inline bool tiles_allowed() {
    constexpr int REQUEST = 0x1023, TILE_DATA = 18;  // ARCH_REQ_XCOMP_PERM, of asm/prctl.h
    return syscall(SYS_arch_prctl, REQUEST, TILE_DATA) == 0;
}

// What tiles are loaded from is written before: the compiler does not see that they read it.
inline void written() { __asm__ volatile("" ::: "memory"); }

// While it lives, the tiles of this thread have the shapes of these products. Others in the process
// use tiles too, in shapes of their own.
class Tiles {
public:
    Tiles() {
        Shapes shapes;
        for (int tile : {SUMS, MORE_SUMS}) shapes.set(tile, TILE_ROWS, LANES * 4);
        for (int tile : {ROWS, MORE_ROWS}) shapes.set(tile, TILE_ROWS, GROUP);
        shapes.set(WEIGHTS, GROUP / 4, LANES * 4);
        __asm__ volatile("" ::"r"(&shapes) : "memory");  // the compiler thinks it reads 8 bytes
        _tile_loadconfig(&shapes);
    }
    ~Tiles() { _tile_release(); }

    Tiles(const Tiles &) = delete;
    Tiles &operator=(const Tiles &) = delete;

private:
    struct alignas(64) Shapes {
        uint8_t palette = 1, start = 0, reserved[14] = {};
        uint16_t bytes[16] = {};  // of a line
        uint8_t lines[16] = {};

        void set(int tile, int64_t num_lines, int num_bytes) {
            lines[tile] = static_cast<uint8_t>(num_lines);
            bytes[tile] = static_cast<uint16_t>(num_bytes);
        }
    };
};

// use(0) … use(R - 1), of which every one is code of its own: sums stay in registers.
template <int R, typename Use>
ALWAYS_INLINE void each_row(const Use &use) {
    [&]<int... r>(std::integer_sequence<int, r...>) __attribute__((always_inline)) {
        (use(r), ...);
    }(std::make_integer_sequence<int, R>());
}

template <int R>
void int4_tile(const Unpacked &w, const Inputs &in, int64_t row, float *out) {
    alignas(64) int32_t totals[2][TILE_ROWS * LANES];
    const int8_t *x = in.bytes + row * in.width;
    const float *x_scales = in.byte_scales + row * in.groups;
    const auto multiply = [&](int64_t g) __attribute__((always_inline)) {
        _tile_loadd(WEIGHTS, w.weights + g * GROUP * LANES, LANES * 4);
        _tile_loadd(ROWS, x + g * TILE_ROWS * GROUP, GROUP);
        _tile_zero(SUMS);
        _tile_dpbsud(SUMS, ROWS, WEIGHTS);
        _tile_stored(SUMS, totals[g % 2], LANES * 4);
    };
    Floats sums[R];
    each_row<R>([&](int r) { sums[r] = zeros(); });
    multiply(0);
    for (int64_t g = 0; g < in.groups; ++g, x_scales += TILE_ROWS) {
        if (g + 1 < in.groups) multiply(g + 1);  // while this group's are scaled
        const Floats scale = load(w.scales + g * LANES);
        each_row<R>([&](int r) __attribute__((always_inline)) {
            const Floats product = mul(to_floats(load_ints(totals[g % 2] + r * LANES)), scale);
            sums[r] = fma(product, every(x_scales[r]), sums[r]);
        });
    }
    each_row<R>([&](int r) { store(out + r * LANES, sums[r]); });
    // the minima apart: both sums of all rows would not fit in registers
    const float *x_sums = in.byte_sums + row * in.groups;
    each_row<R>([&](int r) { sums[r] = zeros(); });
    for (int64_t g = 0; g < in.groups; ++g, x_sums += TILE_ROWS) {
        const Floats minimum = load(w.minima + g * LANES);
        each_row<R>([&](int r) __attribute__((always_inline)) {
            sums[r] = fma(minimum, every(x_sums[r]), sums[r]);
        });
    }
    each_row<R>([&](int r) { store(out + r * LANES, add(load(out + r * LANES), sums[r])); });
}

// Inputs of 16 bits, as two of 8.
template <int R>
void int8_tile(const Unpacked &w, const Inputs &in, int64_t row, float *out) {
    alignas(64) int32_t highs[2][TILE_ROWS * LANES], lows[2][TILE_ROWS * LANES];
    const int8_t *high = in.high_bytes + row * in.width;
    const uint8_t *low = in.low_bytes + row * in.width;
    const float *x_scales = in.short_scales + row * in.groups;
    const auto multiply = [&](int64_t g) __attribute__((always_inline)) {
        _tile_loadd(WEIGHTS, w.weights + g * GROUP * LANES, LANES * 4);
        _tile_loadd(ROWS, high + g * TILE_ROWS * GROUP, GROUP);
        _tile_loadd(MORE_ROWS, low + g * TILE_ROWS * GROUP, GROUP);
        _tile_zero(SUMS);
        _tile_zero(MORE_SUMS);
        _tile_dpbssd(SUMS, ROWS, WEIGHTS);
        _tile_dpbusd(MORE_SUMS, MORE_ROWS, WEIGHTS);
        _tile_stored(SUMS, highs[g % 2], LANES * 4);
        _tile_stored(MORE_SUMS, lows[g % 2], LANES * 4);
    };
    Floats sums[R];
    each_row<R>([&](int r) { sums[r] = zeros(); });
    multiply(0);
    for (int64_t g = 0; g < in.groups; ++g, x_scales += TILE_ROWS) {
        if (g + 1 < in.groups) multiply(g + 1);
        const Floats scale = load(w.scales + g * LANES);
        each_row<R>([&](int r) __attribute__((always_inline)) {
            const Ints total = add_ints(shift_left(load_ints(highs[g % 2] + r * LANES), 8),
                                        load_ints(lows[g % 2] + r * LANES));
            sums[r] = fma(mul(to_floats(total), scale), every(x_scales[r]), sums[r]);
        });
    }
    each_row<R>([&](int r) { store(out + r * LANES, sums[r]); });
}

template <int R>
void tile(const Unpacked &w, const Inputs &in, int64_t row, float *out) {
    if (w.form == LMS_INT4) int4_tile<R>(w, in, row, out);
    else int8_tile<R>(w, in, row, out);
}

// `count` rows from `row` on, a multiple of TILE_ROWS: out (count rounded up to 4, LANES)
inline void multiply_tiles(const Unpacked &w, const Inputs &in, int64_t row, int64_t count,
                           float *out) {
    written();
    for (; count > 12; row += TILE_ROWS, count -= TILE_ROWS, out += TILE_ROWS * LANES)
        tile<16>(w, in, row, out);
    if (count > 8) tile<12>(w, in, row, out);
    else if (count > 4) tile<8>(w, in, row, out);
    else if (count > 0) tile<4>(w, in, row, out);
}

#undef SUMS
#undef MORE_SUMS
#undef ROWS
#undef MORE_ROWS
#undef WEIGHTS

#else

inline bool tiles_allowed() { return true; }  // none are used
struct Tiles {
    Tiles() {}
};
inline void multiply_tiles(const Unpacked &, const Inputs &, int64_t, int64_t, float *) {}

#endif

}  // namespace lms
