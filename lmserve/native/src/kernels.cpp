// The one translation unit of a library: what api.h declares.

#include "api.h"
#include "choice.hpp"
#include "decoder.hpp"

using namespace lms;

struct lms_pool : Workspace {
    using Workspace::Workspace;

    std::vector<Draw> draws = std::vector<Draw>(pool.num_threads());  // of each thread
};

extern "C" {

int32_t lms_abi(void) { return LMS_ABI; }
int32_t lms_lanes(void) { return LANES; }
int32_t lms_allowed(void) { return tiles_allowed(); }

lms_pool *lms_pool_new(int32_t num_threads) {
    try {
        return new lms_pool(num_threads);
    } catch (const std::exception &) {
        return nullptr;
    }
}
void lms_pool_free(lms_pool *pool) { delete pool; }

int64_t lms_packed_bytes(int32_t form, int32_t num_out, int32_t num_in) {
    const Panels panels(form, num_out, num_in);
    return panels.count * panels.bytes;
}

void lms_pack_dense(int32_t form, int32_t num_out, int32_t num_in, const void *values,
                    void *packed) {
    char *out = static_cast<char *>(packed);
    if (form == LMS_FLOAT32) pack_dense(num_out, num_in, static_cast<const float *>(values), out);
    else pack_dense(num_out, num_in, static_cast<const Half *>(values), out);
}

void lms_pack_int4(int32_t num_out, int32_t num_in, const uint8_t *codes, const float *scales,
                   const float *minima, void *packed) {
    pack_int4(num_out, num_in, codes, scales, minima, static_cast<char *>(packed));
}

void lms_pack_int8(int32_t num_out, int32_t num_in, const int8_t *codes, const float *scales,
                   void *packed) {
    pack_int8(num_out, num_in, codes, scales, static_cast<char *>(packed));
}

void lms_rows(const lms_weight *weight, const int64_t *rows, int64_t count, float *out) {
    for (int64_t i = 0; i < count; ++i) unpack_row(*weight, rows[i], out + i * weight->num_in);
}

void lms_linear(lms_pool *pool, const lms_weight *weight, const float *x, int64_t rows,
                float *out) {
    Forms forms;
    forms.need(*weight);
    pool->in.make_room(rows, weight->num_in, forms);
    pool->rows(rows, weight->num_in,
               [&](int64_t row, int) { pool->in.set(row, x + row * weight->num_in); });
    pool->multiply<1>(rows, {{weight, out, weight->num_out, false}});
}

void lms_write_kv(lms_pool *pool, const lms_cache_shape *shape, const lms_batch *batch,
                  const float *k, const float *v, void *keys, void *values) {
    const Place *places = find_places(*pool, *batch);
    const int64_t head_dim = shape->head_dim, width = shape->num_kv_heads * head_dim;
    pool->rows(batch->num_tokens, width, [&](int64_t token, int) {
        const Place &at = places[token];
        for (int64_t head = 0; head < shape->num_kv_heads; ++head) {
            const int64_t from = token * width + head * head_dim;
            write_any(*shape, at.table, at.position, head, k + from, keys);
            write_any(*shape, at.table, at.position, head, v + from, values);
        }
    });
}

void lms_attend(lms_pool *pool, const lms_cache_shape *shape, const lms_batch *batch,
                const lms_attention_options *options, const float *q, const void *keys,
                const void *values, float *out) {
    const int64_t width = int64_t{shape->num_heads} * shape->head_dim;
    pool->attention(*shape).attend(*batch, *options, q, width, keys, values, out, width);
}

void lms_forward(lms_pool *pool, const lms_decoder *decoder, const lms_batch *batch,
                 const int64_t *tokens, float *x, uint8_t *finite) {
    Decoder(*pool, *decoder).forward(*batch, tokens, x, finite);
}

void lms_normed(lms_pool *pool, const lms_decoder *decoder, const float *x, int64_t rows,
                float *out) {
    Decoder(*pool, *decoder).normed(x, rows, out);
}

void lms_logits(lms_pool *pool, const lms_decoder *decoder, const float *x, int64_t rows,
                float *out) {
    Decoder(*pool, *decoder).logits(x, rows, out);
}

void lms_choose(lms_pool *pool, const float *logits, int64_t rows, int64_t vocabulary,
                int64_t *best, uint8_t *finite) {
    pool->rows(rows, vocabulary, [&](int64_t row, int) {
        finite[row] = choose(logits + row * vocabulary, vocabulary, best + row);
    });
}

void lms_draw(lms_pool *pool, const float *logits, int64_t rows, int64_t vocabulary,
              const lms_drawing *drawings, int64_t *tokens) {
    pool->rows(rows, vocabulary, [&](int64_t row, int thread) {
        const float *x = logits + row * vocabulary;
        tokens[row] = pool->draws[thread](x, vocabulary, drawings[row]);
    });
}

}  // extern "C"
