// Attention over paged KV.
//
// The queries of a row are cut into tiles of some tokens, with all query heads of one KV head; the
// context into parts of PART keys, which begin at multiples of it. A tile takes part after part:
// scores, softmax within the part, weighted values; then the part joins what came before it. Each
// query's numbers are computed in the same order whatever its tile, so they depend neither on the
// batch nor on how a prompt was cut into chunks. Keys out of a query's sight weigh exactly zero.

#pragma once

#include "paged.hpp"
#include "pool.hpp"

namespace lms {

constexpr int64_t BLOCK = 64;  // keys unpacked at a time
constexpr int TILE = 32;       // queries in a tile, at most: tokens times heads
constexpr int64_t FEW_QUERIES = 6;  // these read the cache itself
constexpr float NOTHING = -std::numeric_limits<float>::infinity();

// What a query has seen: the largest score, the sum of weights relative to it, weighted values.
struct Seen {
    float *largest, *total, *values;  // (queries), (queries), (queries, width)
};

class Attention {
public:
    Attention(Pool &pool, const lms_cache_shape &shape)
        : pool_(pool), shape_(shape), group_(shape.num_heads / shape.num_kv_heads),
          width_((shape.head_dim + LANES - 1) / LANES * LANES), room_(pool.num_threads()) {}

    // Whose tokens, queries and outputs: (num_tokens, stride) with heads of head_dim in each.
    void attend(const lms_batch &batch, const lms_attention_options &options, const float *q,
                int64_t q_stride, const void *keys, const void *values, float *out,
                int64_t out_stride) {
        find_tiles(batch, options);
        const Step step{batch, options, q, q_stride, keys, values, out, out_stride};
        if (pieces_.empty()) {
            pool_.each(tiles_.size(), [&](int64_t i, int thread) {
                const Tile &tile = tiles_[i];
                const Seen seen = room_[thread].seen(tile_queries(), width_);
                run(step, tile, tile.first_part, tile.last_part, seen, thread);
                finish(step, tile, seen);
            });
            return;
        }
        // too few tiles for the threads: the parts of each side by side, then joined in order
        const int64_t floats = tile_queries() * (width_ + 2);
        float *all = pieces_room_.of<float>(pieces_.size() * floats);
        const auto seen_of = [&](int64_t i) {
            float *p = all + i * floats;
            return Seen{p, p + tile_queries(), p + 2 * tile_queries()};
        };
        pool_.each(pieces_.size(), [&](int64_t i, int thread) {
            const Piece &piece = pieces_[i];
            run(step, tiles_[piece.tile], piece.part, piece.part + 1, seen_of(i), thread);
        });
        for (size_t i = 0; i < pieces_.size();) {
            const Tile &tile = tiles_[pieces_[i].tile];
            const Seen seen = seen_of(i);
            size_t next = i + 1;
            for (; next < pieces_.size() && pieces_[next].tile == pieces_[i].tile; ++next)
                join(tile.num_tokens * group_, seen, seen_of(next));
            finish(step, tile, seen);
            i = next;
        }
    }

private:
    struct Tile {
        int64_t row, kv_head, token, position, num_tokens;  // `token` is in the step
        int64_t first_key, last_key;                        // that any of its queries sees
        int64_t first_part, last_part;
    };
    struct Piece {
        int64_t tile, part;
    };
    struct Step {
        const lms_batch &batch;
        const lms_attention_options &options;
        const float *q;
        int64_t q_stride;
        const void *keys, *values;
        float *out;
        int64_t out_stride;
    };
    struct Room {  // of a thread
        Buffer q, unpacked, scores, part, whole;

        static Seen of(Buffer &buffer, int64_t queries, int64_t width) {
            float *p = buffer.of<float>(queries * (width + 2));
            return {p, p + queries, p + 2 * queries};
        }
        Seen seen(int64_t queries, int64_t width) { return of(whole, queries, width); }
    };

    int64_t tile_queries() const { return group_ > TILE ? group_ : TILE; }

    void find_tiles(const lms_batch &batch, const lms_attention_options &options) {
        tiles_.clear();
        pieces_.clear();
        const int64_t most = group_ > TILE ? 1 : TILE / group_;
        int64_t token = 0, num_parts = 0;
        for (int64_t row = 0; row < batch.num_rows; ++row)
            for (int64_t at = 0; at < batch.lens[row]; at += most) {
                const int64_t count = batch.lens[row] - at < most ? batch.lens[row] - at : most;
                const int64_t position = batch.starts[row] + at;
                int64_t first = options.window ? position - options.window + 1 : 0;
                first = first < 0 ? 0 : first;
                const int64_t last = position + count, last_part = (last + PART - 1) / PART;
                for (int64_t head = 0; head < shape_.num_kv_heads; ++head)
                    tiles_.push_back({row, head, token, position, count, first, last,
                                      first / PART, last_part});
                num_parts += (last_part - first / PART) * shape_.num_kv_heads;
                token += count;
            }
        const int64_t enough = 4 * pool_.num_threads();
        if (pool_.num_threads() == 1 || static_cast<int64_t>(tiles_.size()) >= enough ||
            num_parts < enough)
            return;
        for (size_t tile = 0; tile < tiles_.size(); ++tile)
            for (int64_t part = tiles_[tile].first_part; part < tiles_[tile].last_part; ++part)
                pieces_.push_back({static_cast<int64_t>(tile), part});
    }

    void run(const Step &step, const Tile &tile, int64_t first_part, int64_t last_part, Seen seen,
             int thread) {
        switch (shape_.kv_form) {
            case LMS_FLOAT32: return parts<float>(step, tile, first_part, last_part, seen, thread);
            case LMS_FLOAT16: return parts<Half>(step, tile, first_part, last_part, seen, thread);
            default: return parts<Bfloat>(step, tile, first_part, last_part, seen, thread);
        }
    }

    template <typename T>
    void parts(const Step &step, const Tile &tile, int64_t first_part, int64_t last_part, Seen seen,
               int thread) {
        Room &room = room_[thread];
        const int64_t head_dim = shape_.head_dim, queries = tile.num_tokens * group_;
        float *q = room.q.of<float>(queries * width_);
        for (int64_t t = 0; t < tile.num_tokens; ++t) {
            const float *given =
                step.q + (tile.token + t) * step.q_stride + tile.kv_head * group_ * head_dim;
            for (int64_t g = 0; g < group_; ++g) {
                float *query = q + (t * group_ + g) * width_;
                for (int64_t d = 0; d < head_dim; ++d)
                    query[d] = given[g * head_dim + d] * step.options.scale;
                for (int64_t d = head_dim; d < width_; ++d) query[d] = 0.0f;
            }
        }
        const int32_t *table = step.batch.tables + tile.row * step.batch.table_width;
        const Places places{table, tile.kv_head, shape_.num_kv_heads, shape_.block_size, head_dim};
        const T *keys = static_cast<const T *>(step.keys);
        const T *values = static_cast<const T *>(step.values);
        const Seen now = Room::of(room.part, tile_queries(), width_);
        for (int64_t part = first_part; part < last_part; ++part) {
            one_part(step.options, tile, part, q, places, keys, values,
                     part == first_part ? seen : now, room);
            if (part > first_part) join(queries, seen, now);
        }
    }

    template <typename T>
    void one_part(const lms_attention_options &options, const Tile &tile, int64_t part,
                  const float *q, const Places &places, const T *keys, const T *values, Seen seen,
                  Room &room) {
        const int64_t queries = tile.num_tokens * group_, begin = part * PART;
        // from a whole block on: a key's lane in the sum of weights is the same for every tile
        const int64_t first = (tile.first_key > begin ? tile.first_key : begin) / BLOCK * BLOCK;
        const int64_t last = tile.last_key < begin + PART ? tile.last_key : begin + PART;
        float *scores = room.scores.of<float>(tile_queries() * PART);
        int64_t found[PART];
        places.find(first, last - first, found);
        each_block(first, last, queries, keys, found, room, [&](auto rows, auto at, int64_t key,
                                                                int64_t count) {
            by_three(queries, [&](int64_t query, auto size) {
                score<size>(q + query * width_, width_, rows, at, count,
                            scores + query * PART + (key - first));
            });
        });
        for (int64_t query = 0; query < queries; ++query)
            soften(options, tile.position + query / group_, first, last, scores + query * PART,
                   seen.largest[query], seen.total[query]);
        std::memset(seen.values, 0, queries * width_ * sizeof(float));
        each_block(first, last, queries, values, found, room, [&](auto rows, auto at, int64_t key,
                                                                  int64_t count) {
            by_three(queries, [&](int64_t query, auto size) {
                weigh<size>(scores + query * PART + (key - first), rows, at, count, width_,
                            seen.values + query * width_);
            });
        });
    }

    // use(rows, places, key, count) for the keys or values first … last - 1: for many queries
    // block after block, unpacked, for few where they are.
    template <typename T, typename Use>
    void each_block(int64_t first, int64_t last, int64_t queries, const T *cache,
                    const int64_t *found, Room &room, const Use &use) {
        if (queries <= FEW_QUERIES && shape_.head_dim == width_)
            return use(cache, found, first, last - first);
        float *unpacked = room.unpacked.of<float>(BLOCK * width_);
        int64_t lines[BLOCK];
        for (int64_t i = 0; i < BLOCK; ++i) lines[i] = i * width_;
        for (int64_t key = first; key < last; key += BLOCK) {
            const int64_t count = last - key < BLOCK ? last - key : BLOCK;
            unpack(cache, found + (key - first), count, shape_.head_dim, width_, unpacked);
            use(static_cast<const float *>(unpacked), static_cast<const int64_t *>(lines), key,
                count);
        }
    }

    // Scores of keys first … last - 1 become weights, relative to the largest that is in sight.
    void soften(const lms_attention_options &options, int64_t position, int64_t first,
                int64_t last, float *scores, float &largest, float &total) const {
        const int64_t sight = options.window ? position - options.window + 1 : 0;
        const int64_t count = last - first, end = (count + LANES - 1) / LANES * LANES;
        const int64_t from = sight > first ? sight - first : 0;
        const int64_t to = (position + 1 < last ? position + 1 : last) - first;
        for (int64_t key = 0; key < from && key < end; ++key) scores[key] = NOTHING;
        for (int64_t key = to < 0 ? 0 : to; key < end; ++key) scores[key] = NOTHING;
        if (options.softcap > 0 && from < to) cap(options.softcap, scores + from, to - from);
        Floats most = every(NOTHING);
        for (int64_t key = 0; key < end; key += LANES) most = max(most, load(scores + key));
        largest = lms::largest(most);
        total = 0.0f;
        if (largest == NOTHING) {
            std::memset(scores, 0, end * sizeof(float));
            return;
        }
        Floats sums = zeros();
        for (int64_t key = 0; key < end; key += LANES) {
            const Floats weight = exp(sub(load(scores + key), every(largest)));
            store(scores + key, weight);
            sums = add(sums, weight);
        }
        total = sum(sums);
    }

    // What was seen so far, and then what `next` saw.
    void join(int64_t queries, Seen seen, Seen next) const {
        for (int64_t query = 0; query < queries; ++query) {
            float *values = seen.values + query * width_;
            const float *more = next.values + query * width_;
            const float a = seen.largest[query], b = next.largest[query];
            if (b == NOTHING) continue;
            const float most = a > b ? a : b;
            const float keep = a == NOTHING ? 0.0f : exp(a - most), take = exp(b - most);
            seen.largest[query] = most;
            seen.total[query] = seen.total[query] * keep + next.total[query] * take;
            for (int64_t d = 0; d < width_; d += LANES)
                store(values + d, fma(load(values + d), every(keep),
                                      mul(load(more + d), every(take))));
        }
    }

    void finish(const Step &step, const Tile &tile, Seen seen) const {
        const int64_t head_dim = shape_.head_dim;
        for (int64_t query = 0; query < tile.num_tokens * group_; ++query) {
            const int64_t head = tile.kv_head * group_ + query % group_;
            float *out = step.out + (tile.token + query / group_) * step.out_stride +
                         head * head_dim;
            const Floats scale = every(1.0f / seen.total[query]);
            for (int64_t d = 0; d < head_dim; d += LANES) {
                const Floats v = mul(load(seen.values + query * width_ + d), scale);
                if (d + LANES <= head_dim) store(out + d, v);
                else store_some(out + d, v, head_dim - d);
            }
        }
    }

    Pool &pool_;
    const lms_cache_shape shape_;
    const int64_t group_, width_;
    std::vector<Room> room_;
    Buffer pieces_room_;
    std::vector<Tile> tiles_;
    std::vector<Piece> pieces_;
};

}  // namespace lms
