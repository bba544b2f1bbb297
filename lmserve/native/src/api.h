// What Python calls, through ctypes: a plain C interface, so that a library needs neither torch's
// headers nor Python's to be built. The structs are written again in `lmserve/native/library.py`;
// change LMS_ABI with them.
//
// All memory is the caller's and outlives the call; pointers are to contiguous arrays unless a
// stride is given. A call uses a pool's threads and scratch memory, so one call at a time a pool.

#pragma once

#include <stdint.h>

#define LMS_ABI 2

#ifdef __cplusplus
extern "C" {
#endif
#pragma GCC visibility push(default)  // the rest of a library is hidden

int32_t lms_abi(void);
int32_t lms_lanes(void);  // outputs in a panel of a packed weight
// Whether the system lets this process use the instructions; ask before any pool is made.
int32_t lms_allowed(void);

// --- threads --------------------------------------------------------------------------------

typedef struct lms_pool lms_pool;

// The calling thread is one of them. NULL where the system has not so many.
lms_pool *lms_pool_new(int32_t num_threads);
void lms_pool_free(lms_pool *pool);

// --- weights --------------------------------------------------------------------------------

// Forms of a weight; the first three are also those of the KV cache.
enum {
    LMS_FLOAT32 = 0,
    LMS_FLOAT16 = 1,
    LMS_BFLOAT16 = 2,
    LMS_INT4 = 3,  // 0 … 15, a scale and a minimum for each 32 values of an output, float16
    LMS_INT8 = 4,  // -127 … 127, a scale for each 32 values of an output, float16
};

// `num_out` outputs of `num_in` inputs. `data` is packed by the functions below.
typedef struct {
    int32_t form, num_out, num_in, reserved;
    const void *data;
    const float *bias;  // (num_out), or NULL
} lms_weight;

int64_t lms_packed_bytes(int32_t form, int32_t num_out, int32_t num_in);

// Packs all rows. The quantised forms take `num_in` in multiples of 32.
void lms_pack_dense(int32_t form, int32_t num_out, int32_t num_in, const void *values,
                    void *packed);
void lms_pack_int4(int32_t num_out, int32_t num_in, const uint8_t *codes,  // (num_out, num_in)
                   const float *scales, const float *minima,  // (num_out, num_in / 32)
                   void *packed);
void lms_pack_int8(int32_t num_out, int32_t num_in, const int8_t *codes, const float *scales,
                   void *packed);

// Rows of a weight as float32: (count, num_in). What an embedding looks up; for the tests.
void lms_rows(const lms_weight *weight, const int64_t *rows, int64_t count, float *out);

// out (rows, num_out) = x (rows, num_in) · weight + bias. A product alone: for the tests.
void lms_linear(lms_pool *pool, const lms_weight *weight, const float *x, int64_t rows, float *out);

// --- attention ------------------------------------------------------------------------------

// Keys, and likewise values, of a layer are (blocks, num_kv_heads, block_size, head_dim).
typedef struct {
    int32_t num_heads, num_kv_heads, head_dim, block_size, kv_form, reserved;
} lms_cache_shape;

// The rows of a step: row i runs lens[i] tokens from position starts[i] on; they lie one row after
// another, num_tokens in all.
typedef struct {
    int32_t num_rows, num_tokens, table_width, reserved;
    const int32_t *starts;  // (num_rows)
    const int32_t *lens;    // (num_rows)
    const int32_t *tables;  // (num_rows, table_width): block tables
} lms_batch;

typedef struct {
    float scale;
    float softcap;   // 0: none
    int32_t window;  // positions a query sees, its own included; 0: all
    int32_t reserved;
} lms_attention_options;

// k and v (num_tokens, num_kv_heads, head_dim) into the cache.
void lms_write_kv(lms_pool *pool, const lms_cache_shape *shape, const lms_batch *batch,
                  const float *k, const float *v, void *keys, void *values);

// q and out are (num_tokens, num_heads, head_dim). What the batch runs is in the cache already.
void lms_attend(lms_pool *pool, const lms_cache_shape *shape, const lms_batch *batch,
                const lms_attention_options *options, const float *q, const void *keys,
                const void *values, float *out);

// --- the decoder ----------------------------------------------------------------------------

enum { LMS_SILU = 0, LMS_GELU_TANH = 1 };

typedef struct {
    const float *attention_norm, *mlp_norm;  // (hidden): factors
    const float *qk_norm;  // (num_heads + num_kv_heads, head_dim), or NULL
    const float *out_norm, *down_norm;  // (hidden): of what attention and mlp give, or NULL
    const float *cos, *sin;  // (positions, head_dim / 2)
    lms_weight q, k, v, out, gate, up, down;
    lms_attention_options attention;
    void *keys, *values;
} lms_layer;

typedef struct {
    lms_cache_shape cache;
    int32_t num_layers, hidden, intermediate, activation;
    float norm_eps, embed_scale, final_softcap;  // softcap 0: none
    int32_t reserved;
    const float *norm;  // (hidden)
    lms_weight embedding, head;
    const lms_layer *layers;
} lms_decoder;

// Tokens (num_tokens) through all layers: x (num_tokens, hidden), and whether all that was
// computed for a token is finite, (num_tokens).
void lms_forward(lms_pool *pool, const lms_decoder *decoder, const lms_batch *batch,
                 const int64_t *tokens, float *x, uint8_t *finite);

// The final norm, and the head: out (rows, hidden) or (rows, vocabulary).
void lms_normed(lms_pool *pool, const lms_decoder *decoder, const float *x, int64_t rows,
                float *out);
void lms_logits(lms_pool *pool, const lms_decoder *decoder, const float *x, int64_t rows,
                float *out);

// Of logits (rows, vocabulary): the likeliest token of each row, the first of several, and whether
// all its logits are finite, (rows) both.
void lms_choose(lms_pool *pool, const float *logits, int64_t rows, int64_t vocabulary,
                int64_t *best, uint8_t *finite);

// How a row's token is drawn: of its logits over `temperature`, by `uniform` in [0, 1).
typedef struct {
    double top_p, min_p, uniform;
    float temperature;
    int32_t top_k;  // 0: all
} lms_drawing;

// A token of each row. Logits may be -infinity, but not all of a row.
void lms_draw(lms_pool *pool, const float *logits, int64_t rows, int64_t vocabulary,
              const lms_drawing *drawings, int64_t *tokens);

#pragma GCC visibility pop
#ifdef __cplusplus
}
#endif
