// The rows that a product multiplies, in the forms that the weights ask for.
//
// Integers are quantised by row and group: a scale for every 32 values, of the group's largest.
// So a row's numbers are its own, whoever shares the step.

#pragma once

#include "pool.hpp"
#include "weights.hpp"

namespace lms {

constexpr int64_t FEW_ROWS = 2 * LANES;  // below, lines are faster (measured)
constexpr float SMALLEST = 1e-30f;       // groups below are zeros

// Integers of so many rows and more go in tiles, where the processor has them (tiles.hpp).
constexpr int64_t TILE_ROWS = 16;
#if defined(__AMX_INT8__)
constexpr int64_t FEW_TILED = TILE_ROWS;
#else
constexpr int64_t FEW_TILED = std::numeric_limits<int64_t>::max();
#endif

struct Forms {
    bool dense = false, bytes = false, shorts = false;

    void need(const lms_weight &w) {
        (w.form == LMS_INT4 ? bytes : w.form == LMS_INT8 ? shorts : dense) = true;
    }
};

// The first rows lie in columns of LANES rows, for kernels that work on as many rows at once; what
// is left of them lies in lines, row after row. Within a column, or a line, a piece is as many
// inputs as an instruction multiplies: 4 bytes, 2 shorts or 1 float. Integers that go in tiles all do:
// (tiles, groups, TILE_ROWS, GROUP), shorts as their high and their low bytes.
class Inputs {
public:
    int64_t width = 0, groups = 0;
    int64_t in_columns = 0;        // so many rows
    bool in_tiles = false;         // the integers
    float *dense = nullptr;        // (rows, width)
    int8_t *bytes = nullptr;       // (rows, width), for int4
    float *byte_scales = nullptr;  // (rows, groups)
    float *byte_sums = nullptr;    // (rows, groups): of the values, as quantised
    int16_t *shorts = nullptr;     // (rows, width), for int8
    int8_t *high_bytes = nullptr;  // (rows, width): the shorts in tiles
    uint8_t *low_bytes = nullptr;
    float *short_scales = nullptr;

    void make_room(int64_t rows, int64_t num_in, Forms forms) {
        forms_ = forms;
        width = num_in;
        groups = num_in / GROUP;
        in_columns = rows < FEW_ROWS ? 0 : rows / LANES * LANES;
        in_tiles = rows >= FEW_TILED;
        if (forms.dense) dense = dense_.of<float>(rows * width);
        if (in_tiles) rows = (rows + TILE_ROWS - 1) / TILE_ROWS * TILE_ROWS;
        if (forms.bytes) {
            bytes = bytes_.of<int8_t>(rows * width);
            byte_scales = byte_scales_.of<float>(rows * groups);
            byte_sums = byte_sums_.of<float>(rows * groups);
        }
        if (forms.shorts) {
            shorts = shorts_.of<int16_t>(rows * width);
            high_bytes = reinterpret_cast<int8_t *>(shorts);
            low_bytes = reinterpret_cast<uint8_t *>(shorts) + rows * width;
            short_scales = short_scales_.of<float>(rows * groups);
        }
    }

    // One row as it is.
    void set(int64_t row, const float *x) {
        if (forms_.dense) spread<1>(row, x, width, dense);
        if (forms_.bytes) quantise<4>(row, x, 127.0f, bytes, byte_scales, byte_sums);
        if (forms_.shorts) quantise<2>(row, x, 32767.0f, shorts, short_scales, nullptr);
    }

    // One row, normed; `room` takes `width` floats.
    void set(int64_t row, const float *x, const float *factors, float eps, float *room) {
        rms_norm(x, factors, width, eps, room);
        set(row, room);
    }

    static void rms_norm(const float *x, const float *factors, int64_t width, float eps, float *y) {
        Floats squares = zeros();
        const int64_t whole = width / LANES * LANES;
        for (int64_t k = 0; k < whole; k += LANES) {
            const Floats v = load(x + k);
            squares = fma(v, v, squares);
        }
        if (whole < width) {
            const Floats v = load_some(x + whole, width - whole);
            squares = fma(v, v, squares);
        }
        const float mean = sum(squares) / static_cast<float>(width);
        const Floats scale = every(1.0f / __builtin_sqrtf(mean + eps));
        for (int64_t k = 0; k < whole; k += LANES)
            store(y + k, mul(mul(load(x + k), scale), load(factors + k)));
        for (int64_t k = whole; k < width; k += LANES) {
            const Floats v = mul(load_some(x + k, width - k), scale);
            store_some(y + k, mul(v, load_some(factors + k, width - k)), width - k);
        }
    }

private:
    // One row of `count` values, in pieces, into its line or its place in a column.
    template <int PIECE, typename T>
    void spread(int64_t row, const T *values, int64_t count, T *out) const {
        if (row >= in_columns) {
            std::memcpy(out + row * count, values, count * sizeof(T));
            return;
        }
        T *place = out + row / LANES * LANES * count + row % LANES * PIECE;
        for (int64_t k = 0; k < count; k += PIECE, place += LANES * PIECE)
            std::memcpy(place, values + k, PIECE * sizeof(T));
    }

    template <int PIECE, typename T>
    void quantise(int64_t row, const float *x, float levels, T *out, float *scales,
                  float *sums) const {
        const bool in_line = row >= in_columns && !in_tiles;
        const int64_t step = in_line ? PIECE : LANES * PIECE;
        T *place = in_line ? out + row * width
                           : out + row / LANES * LANES * width + row % LANES * PIECE;
        const int64_t scale_step = in_line ? 1 : LANES;
        int64_t at = in_line ? row * groups : row / LANES * LANES * groups + row % LANES;
        for (int64_t g = 0; g < groups; ++g, at += scale_step, x += GROUP) {
            const Floats inverse = every(scale_of(x, levels, scales[at]));
            Ints total = every_int(0);
            alignas(64) T codes[GROUP];
            for (int k = 0; k < GROUP; k += LANES) {
                const Ints v = to_ints(mul(load(x + k), inverse));
                store_codes(codes + k, v);
                total = add_ints(total, v);
            }
            if (sums) sums[at] = scales[at] * sum(to_floats(total));
            if (in_tiles)
                put_in_tile(row, g, codes);
            else
                for (int k = 0; k < GROUP; k += PIECE, place += step)
                    std::memcpy(place, codes + k, PIECE * sizeof(T));
        }
    }

    static_assert(TILE_ROWS == LANES || FEW_TILED > TILE_ROWS);  // scales lie as in columns

    int64_t tile_place(int64_t row, int64_t group) const {
        return row / TILE_ROWS * TILE_ROWS * width + (group * TILE_ROWS + row % TILE_ROWS) * GROUP;
    }
    void put_in_tile(int64_t row, int64_t group, const int8_t *codes) const {
        std::memcpy(bytes + tile_place(row, group), codes, GROUP);
    }
    void put_in_tile(int64_t row, int64_t group, const int16_t *codes) const {
        const int64_t at = tile_place(row, group);
        for (int k = 0; k < GROUP; ++k) {
            high_bytes[at + k] = static_cast<int8_t>(codes[k] >> 8);
            low_bytes[at + k] = static_cast<uint8_t>(codes[k]);
        }
    }

    static void store_codes(int8_t *p, Ints v) { store_bytes(p, v); }
    static void store_codes(int16_t *p, Ints v) { store_shorts(p, v); }

    // The scale of a group, and what its values are multiplied with. By their bits as integers a
    // NaN is the largest of all: it becomes the scale, and so reaches every output.
    static float scale_of(const float *x, float levels, float &scale) {
        Ints most = every_int(0);
        for (int k = 0; k < GROUP; k += LANES)
            most = max_ints(most, and_bits(bits_of(load(x + k)), every_int(0x7fffffff)));
        const int32_t bits = largest(most);
        float peak;
        std::memcpy(&peak, &bits, sizeof peak);
        if (peak < SMALLEST) {
            scale = 0.0f;
            return 0.0f;
        }
        scale = peak / levels;
        return levels / peak;
    }

    Forms forms_;
    Buffer dense_, bytes_, byte_scales_, byte_sums_, shorts_, short_scales_;
};

}  // namespace lms
