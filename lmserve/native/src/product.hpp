// Products of rows with packed weights.
//
// Three kinds of kernels. Those of lines.hpp multiply a few rows with the LANES outputs of a panel
// at once; those of columns.hpp multiply columns of LANES rows with one output after another; those
// of tiles.hpp do both at once, where the processor can. Each number is the same operations in the
// same order in all: a row's bits do not depend on the rows beside it, and rows may be split
// between them in any way.

#pragma once

#include "columns.hpp"
#include "lines.hpp"
#include "tiles.hpp"

namespace lms {

// What a thread needs for a panel: its results, and its weights as Unpacked.
struct PanelRoom {
    Buffer weights, results;
};

// A weight whose panels are multiplied one by one.
class Multiplier {
public:
    Multiplier(const lms_weight &weight, const Inputs &in, PanelRoom &room)
        : panels(weight), weight_(weight), in_(in),
          results_(room.results.of<float>(MOST_ROWS * LANES)) {
        is_tiled_ = in.in_tiles && (weight.form == LMS_INT4 || weight.form == LMS_INT8);
        is_unpacked_ = is_tiled_ || in.in_columns;
        if (is_unpacked_) unpacked_ = Unpacked(weight, in, room.weights);
    }

    void take(int64_t panel) {
        panel_ = panel;
        data_ = static_cast<const char *>(weight_.data) + panel * panels.bytes;
        if (is_unpacked_) unpacked_.take(data_, panels.codes);
    }

    // The rows `row` … of the panel: (count, LANES). A block is either in columns or in lines.
    const float *rows(int64_t row, int64_t count) {
        if (is_tiled_)
            multiply_tiles(unpacked_, in_, row, count, results_);
        else if (row < in_.in_columns)
            multiply_columns(unpacked_, in_, row, count, results_);
        else
            multiply_lines(weight_, panels, data_, in_, row, count, results_);
        if (weight_.bias) {
            const int64_t left = weight_.num_out - panel_ * LANES;
            const float *bias = weight_.bias + panel_ * LANES;
            const Floats b = left < LANES ? load_some(bias, left) : load(bias);
            for (int64_t r = 0; r < count; ++r)
                store(results_ + r * LANES, add(load(results_ + r * LANES), b));
        }
        return results_;
    }

    const Panels panels;

private:
    const lms_weight &weight_;
    const Inputs &in_;
    Unpacked unpacked_;
    bool is_tiled_, is_unpacked_;
    float *results_;
    int64_t panel_ = 0;
    const char *data_ = nullptr;
};

// use(row, count) for blocks of rows that cover 0 … rows - 1.
template <typename Use>
void blocks(const Inputs &in, int64_t rows, const Use &use) {
    for (int64_t row = 0; row < in.in_columns; row += MOST_ROWS)
        use(row, in.in_columns - row < MOST_ROWS ? in.in_columns - row : MOST_ROWS);
    if (in.in_columns < rows) use(in.in_columns, rows - in.in_columns);
}

// One of the products of a phase.
struct Product {
    const lms_weight *weight;
    float *out;      // (rows, stride): the product's own columns begin here
    int64_t stride;
    bool adds;       // to what `out` holds
};

inline void put(const Product &product, int64_t row, int64_t panel, Floats v) {
    float *out = product.out + row * product.stride + panel * LANES;
    const int64_t left = product.weight->num_out - panel * LANES;
    if (left >= LANES)
        store(out, product.adds ? add(load(out), v) : v);
    else
        store_some(out, product.adds ? add(load_some(out, left), v) : v, left);
}

inline int64_t grain_of(int64_t panels, int num_threads) {
    const int64_t chunks = num_threads * 4;
    return panels < chunks ? 1 : (panels + chunks - 1) / chunks;
}

// All products of one input, as one phase.
template <int N>
void multiply(Pool &pool, std::vector<PanelRoom> &rooms, const Inputs &in, int64_t rows,
              const Product (&products)[N]) {
    int64_t total = 0;
    for (const Product &each : products) total += Panels(*each.weight).count;
    const int64_t grain = grain_of(total, pool.num_threads());
    pool.ranges(total, grain, [&](int64_t begin, int64_t end, int thread) {
        const Tiles tiles;
        for (const Product &each : products) {
            Multiplier product(*each.weight, in, rooms[thread]);
            const int64_t count = product.panels.count;
            for (int64_t p = begin < 0 ? 0 : begin; p < end && p < count; ++p) {
                product.take(p);
                blocks(in, rows, [&](int64_t row, int64_t num_rows) {
                    const float *results = product.rows(row, num_rows);
                    for (int64_t r = 0; r < num_rows; ++r)
                        put(each, row + r, p, load(results + r * LANES));
                });
            }
            begin -= count;
            end -= count;
            if (end <= 0) return;
        }
    });
}

// activation(x · gate) * (x · up) into out (rows, gate.num_out)
template <typename Activation>
void multiply_gated(Pool &pool, std::vector<PanelRoom> &rooms, std::vector<PanelRoom> &more_rooms,
                    const Inputs &in, int64_t rows, const lms_weight &gate, const lms_weight &up,
                    float *out, const Activation &activation) {
    const Product product{&gate, out, gate.num_out, false};
    const int64_t count = Panels(gate).count, grain = grain_of(count, pool.num_threads());
    pool.ranges(count, grain, [&](int64_t begin, int64_t end, int thread) {
        const Tiles tiles;
        Multiplier gates(gate, in, rooms[thread]), ups(up, in, more_rooms[thread]);
        for (int64_t p = begin; p < end; ++p) {
            gates.take(p);
            ups.take(p);
            blocks(in, rows, [&](int64_t row, int64_t num_rows) {
                const float *g = gates.rows(row, num_rows), *u = ups.rows(row, num_rows);
                for (int64_t r = 0; r < num_rows; ++r)
                    put(product, row + r, p,
                        mul(activation(load(g + r * LANES)), load(u + r * LANES)));
            });
        }
    });
}

}  // namespace lms
