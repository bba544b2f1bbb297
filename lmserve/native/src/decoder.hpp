// A step of a decoder of the Llama family: all layers, in one call.

#pragma once

#include "attention.hpp"
#include "product.hpp"

namespace lms {

// Work of so many floats is not worth waking anyone for.
constexpr int64_t ALONE = 4096;

// The threads, and all the memory that calls need for the time they run.
class Workspace {
public:
    explicit Workspace(int num_threads)
        : pool(num_threads), panels(pool.num_threads()), more_panels(pool.num_threads()),
          lines(pool.num_threads()) {}

    template <int N>
    void multiply(int64_t rows, const Product (&products)[N]) {
        lms::multiply(pool, panels, in, rows, products);
    }

    Attention &attention(const lms_cache_shape &shape) {
        if (!attention_ || std::memcmp(&shape, &shape_, sizeof shape) != 0) {
            attention_.reset(new Attention(pool, shape));
            shape_ = shape;
        }
        return *attention_;
    }

    // run(row, thread) for each, `width` floats of work a row.
    template <typename Run>
    void rows(int64_t count, int64_t width, const Run &run) {
        if (count * width <= ALONE) {
            for (int64_t row = 0; row < count; ++row) run(row, 0);
            return;
        }
        const int64_t share = count / (pool.num_threads() * 4) + 1;
        pool.ranges(count, share, [&](int64_t begin, int64_t end, int thread) {
            for (int64_t row = begin; row < end; ++row) run(row, thread);
        });
    }

    Pool pool;
    Inputs in;
    std::vector<PanelRoom> panels, more_panels;  // of each thread
    std::vector<Buffer> lines;                   // a row, of each thread
    Buffer qkv, attended, gated, given, places, sound;

private:
    std::unique_ptr<Attention> attention_;
    lms_cache_shape shape_{};
};

// Where each token of a step lies: its row's block table, and its position.
struct Place {
    const int32_t *table;
    int64_t position;
};

inline const Place *find_places(Workspace &space, const lms_batch &batch) {
    Place *places = space.places.of<Place>(batch.num_tokens);
    Place *place = places;
    for (int64_t row = 0; row < batch.num_rows; ++row)
        for (int64_t at = 0; at < batch.lens[row]; ++at)
            *place++ = {batch.tables + row * batch.table_width, batch.starts[row] + at};
    return places;
}

// The half-split form: x[i] and x[i + half] turn together.
inline void rotate(float *x, int64_t head_dim, const float *cos, const float *sin) {
    const int64_t half = head_dim / 2;
    int64_t i = 0;
    for (; i + LANES <= half; i += LANES) {
        const Floats a = load(x + i), b = load(x + half + i), c = load(cos + i), s = load(sin + i);
        store(x + i, sub(mul(a, c), mul(b, s)));
        store(x + half + i, fma(b, c, mul(a, s)));
    }
    for (; i < half; ++i) {
        const float a = x[i], b = x[half + i];
        x[i] = a * cos[i] - b * sin[i];
        x[half + i] = b * cos[i] + a * sin[i];
    }
}

class Decoder {
public:
    Decoder(Workspace &space, const lms_decoder &model)
        : space_(space), model_(model), cache_(model.cache),
          q_width_(int64_t{cache_.num_heads} * cache_.head_dim),
          kv_width_(int64_t{cache_.num_kv_heads} * cache_.head_dim),
          qkv_width_(q_width_ + 2 * kv_width_) {}

    void forward(const lms_batch &batch, const int64_t *tokens, float *x, uint8_t *finite) {
        rows_ = batch.num_tokens;
        places_ = find_places(space_, batch);
        sound_ = space_.sound.of<uint8_t>(rows_);
        std::memset(sound_, 1, rows_);
        qkv_ = space_.qkv.of<float>(rows_ * qkv_width_);
        attended_ = space_.attended.of<float>(rows_ * q_width_);
        gated_ = space_.gated.of<float>(rows_ * model_.intermediate);
        given_ = space_.given.of<float>(rows_ * model_.hidden);
        const int64_t hidden = model_.hidden;
        space_.rows(rows_, hidden, [&](int64_t row, int) {
            float *out = x + row * hidden;
            unpack_row(model_.embedding, tokens[row], out);
            if (model_.embed_scale != 1.0f)
                for (int64_t k = 0; k < hidden; ++k) out[k] *= model_.embed_scale;
        });
        for (int32_t index = 0; index < model_.num_layers; ++index) {
            const lms_layer &layer = model_.layers[index];
            attend(layer, batch, x);
            feed_forward(layer, x);
        }
        for (int64_t row = 0; row < rows_; ++row)
            finite[row] = sound_[row] && is_finite(x + row * hidden);
    }

    void normed(const float *x, int64_t rows, float *out) {
        const int64_t hidden = model_.hidden;
        space_.rows(rows, hidden, [&](int64_t row, int) {
            Inputs::rms_norm(x + row * hidden, model_.norm, hidden, model_.norm_eps,
                             out + row * hidden);
        });
    }

    void logits(const float *x, int64_t rows, float *out) {
        Forms forms;
        forms.need(model_.head);
        rows_ = rows;
        take_normed(x, model_.norm, forms);
        const int64_t vocab = model_.head.num_out;
        space_.multiply<1>(rows, {{&model_.head, out, vocab, false}});
        if (model_.final_softcap > 0)
            space_.rows(rows, vocab, [&](int64_t row, int) {
                cap(model_.final_softcap, out + row * vocab, vocab);
            });
    }

private:
    void attend(const lms_layer &layer, const lms_batch &batch, float *x) {
        Forms forms;
        forms.need(layer.q), forms.need(layer.k), forms.need(layer.v);
        take_normed(x, layer.attention_norm, forms);
        space_.multiply<3>(rows_,
                    {{&layer.q, qkv_, qkv_width_, false},
                     {&layer.k, qkv_ + q_width_, qkv_width_, false},
                     {&layer.v, qkv_ + q_width_ + kv_width_, qkv_width_, false}});
        space_.rows(rows_, qkv_width_, [&](int64_t row, int) { place(layer, row); });
        space_.attention(cache_).attend(batch, layer.attention, qkv_, qkv_width_, layer.keys,
                                        layer.values, attended_, q_width_);
        add_product(layer.out, attended_, q_width_, layer.out_norm, x);
    }

    // A token's queries and keys are normed and turned, its keys and values written.
    void place(const lms_layer &layer, int64_t row) {
        const int64_t head_dim = cache_.head_dim, turned = cache_.num_heads + cache_.num_kv_heads;
        const Place &at = places_[row];
        const float *cos = layer.cos + at.position * (head_dim / 2);
        const float *sin = layer.sin + at.position * (head_dim / 2);
        float *heads = qkv_ + row * qkv_width_;
        for (int64_t head = 0; head < turned; ++head) {
            float *each = heads + head * head_dim;
            if (layer.qk_norm)
                Inputs::rms_norm(each, layer.qk_norm + head * head_dim, head_dim, model_.norm_eps,
                                 each);
            rotate(each, head_dim, cos, sin);
        }
        bool finite = true;
        for (int64_t head = 0; head < cache_.num_kv_heads; ++head) {
            const float *k = heads + q_width_ + head * head_dim;
            finite &= write_any(cache_, at.table, at.position, head, k, layer.keys);
            finite &= write_any(cache_, at.table, at.position, head, k + kv_width_, layer.values);
        }
        if (!finite) sound_[row] = 0;
    }

    void feed_forward(const lms_layer &layer, float *x) {
        Forms forms;
        forms.need(layer.gate), forms.need(layer.up);
        take_normed(x, layer.mlp_norm, forms);
        if (model_.activation == LMS_SILU)
            multiply_gated(space_.pool, space_.panels, space_.more_panels, space_.in, rows_,
                           layer.gate, layer.up, gated_,
                           [](Floats v) { return silu(v); });
        else
            multiply_gated(space_.pool, space_.panels, space_.more_panels, space_.in, rows_,
                           layer.gate, layer.up, gated_,
                           [](Floats v) { return gelu_tanh(v); });
        add_product(layer.down, gated_, model_.intermediate, layer.down_norm, x);
    }

    // x += norm(given · weight), or without a norm
    void add_product(const lms_weight &weight, const float *given, int64_t width,
                     const float *norm, float *x) {
        const int64_t hidden = model_.hidden;
        Forms forms;
        forms.need(weight);
        space_.in.make_room(rows_, width, forms);
        space_.rows(rows_, width,
                    [&](int64_t row, int) { space_.in.set(row, given + row * width); });
        if (norm == nullptr) {
            space_.multiply<1>(rows_, {{&weight, x, hidden, true}});
            return;
        }
        space_.multiply<1>(rows_, {{&weight, given_, hidden, false}});
        space_.rows(rows_, hidden, [&](int64_t row, int) {
            float *to = x + row * hidden, *from = given_ + row * hidden;
            Inputs::rms_norm(from, norm, hidden, model_.norm_eps, from);
            for (int64_t k = 0; k < hidden; ++k) to[k] += from[k];
        });
    }

    void take_normed(const float *x, const float *norm, Forms forms) {
        const int64_t hidden = model_.hidden;
        space_.in.make_room(rows_, hidden, forms);
        space_.rows(rows_, hidden, [&](int64_t row, int thread) {
            float *room = space_.lines[thread].of<float>(hidden);
            space_.in.set(row, x + row * hidden, norm, model_.norm_eps, room);
        });
    }

    bool is_finite(const float *x) const {
        const int64_t whole = model_.hidden / LANES * LANES;
        Floats totals = zeros();  // finite only where all terms are
        for (int64_t k = 0; k < whole; k += LANES) totals = add(totals, load(x + k));
        float total = sum(totals);
        for (int64_t k = whole; k < model_.hidden; ++k) total += x[k];
        return total - total == 0.0f;
    }

    Workspace &space_;
    const lms_decoder &model_;
    const lms_cache_shape &cache_;
    const int64_t q_width_, kv_width_, qkv_width_;
    int64_t rows_ = 0;
    const Place *places_ = nullptr;
    uint8_t *sound_ = nullptr;
    float *qkv_ = nullptr, *attended_ = nullptr, *gated_ = nullptr, *given_ = nullptr;
};

}  // namespace lms
