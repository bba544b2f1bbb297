// Tokens of rows of logits: the likeliest, or one drawn.

#pragma once

#include <algorithm>
#include <cfloat>
#include <cmath>
#include <vector>

#include "api.h"
#include "functions.hpp"

namespace lms {

// The first of the largest; says whether all are finite.
inline bool choose(const float *x, int64_t count, int64_t *best) {
    constexpr int64_t PART = 64 * LANES;
    float most = -INFINITY;
    int64_t first = 0, last = 1;            // the part that has it
    Floats spoilt[2] = {zeros(), zeros()};  // 0 as long as all are finite
    float spoilt_rest = 0;
    for (int64_t begin = 0; begin < count; begin += PART) {
        const int64_t end = std::min(begin + PART, count);
        Floats high[2] = {every(-INFINITY), every(-INFINITY)};
        int64_t at = begin;
        for (; at + 2 * LANES <= end; at += 2 * LANES)
            for (int i = 0; i < 2; ++i) {
                const Floats v = load(x + at + i * LANES);
                high[i] = max(v, high[i]);
                spoilt[i] = fma(v, zeros(), spoilt[i]);
            }
        float here = largest(max(high[0], high[1]));
        for (; at < end; ++at) {
            here = x[at] > here ? x[at] : here;
            spoilt_rest += x[at] * 0.0f;
        }
        if (here > most) most = here, first = begin, last = end;
    }
    *best = first;
    for (int64_t at = first; at < last; ++at)
        if (x[at] == most) {
            *best = at;
            break;
        }
    return sum(add(spoilt[0], spoilt[1])) + spoilt_rest == 0.0f;
}

// Draws from one row. Its bits depend on nothing but the row.
class Draw {
public:
    int64_t operator()(const float *x, int64_t count, const lms_drawing &how) {
        weigh(x, count, how.temperature);
        const bool cut = how.top_k > 0 || how.min_p > 0 || how.top_p < 1;
        return cut ? from_likeliest(how) : from_all(how.uniform);
    }

private:
    static constexpr int64_t PART = 16 * LANES;
    static constexpr float STEP = 0.125f;

    struct Candidate {
        float weight;
        int32_t token;
        bool operator<(const Candidate &other) const {  // the likelier first
            return weight != other.weight ? weight > other.weight : token < other.token;
        }
    };

    // Weights: 1 for the likeliest token. Filled up to whole parts with 0.
    void weigh(const float *x, int64_t count, float temperature) {
        int64_t best;
        choose(x, count, &best);
        const Floats most = every(x[best]), by = every(std::max(temperature, FLT_MIN));
        num_parts_ = (count + PART - 1) / PART;
        weights_.resize(num_parts_ * PART);
        std::fill(weights_.begin() + count, weights_.end(), 0.0f);
        sums_.resize(num_parts_);
        total_ = 0;
        for (int64_t part = 0; part < num_parts_; ++part) {
            Floats all = zeros();
            for (int64_t at = part * PART; at < std::min((part + 1) * PART, count); at += LANES) {
                const int64_t left = count - at;
                const Floats v = left < LANES ? load_some(x + at, left) : load(x + at);
                const Floats weight = exp(div(sub(v, most), by));
                if (left < LANES) store_some(weights_.data() + at, weight, left);
                else store(weights_.data() + at, weight);
                all = add(all, load(weights_.data() + at));
            }
            total_ += sums_[part] = sum(all);
        }
    }

    int64_t from_all(double uniform) const {
        const double target = uniform * total_;
        double before = 0;
        int64_t last = 0;
        for (int64_t part = 0; part < num_parts_; ++part) {
            if (before + sums_[part] <= target && part + 1 < num_parts_) {
                before += sums_[part];
                continue;
            }
            double reached = before;  // a little off the part's sum, perhaps: on with the next
            for (int64_t at = part * PART; at < (part + 1) * PART; ++at) {
                if (weights_[at] == 0) continue;
                last = at;
                reached += weights_[at];
                if (reached > target) return at;
            }
            before += sums_[part];
        }
        return last;
    }

    int64_t from_likeliest(const lms_drawing &how) {
        // top_p is a share of what top_k and min_p leave: where neither is on, of all
        const bool plain = how.top_k <= 0 && how.min_p <= 0;
        kept_.clear();
        double mass = 0;
        for (float above = INFINITY, bound = 0.5f; above > FLT_MIN; above = bound, bound *= STEP) {
            const auto begin = static_cast<int64_t>(kept_.size());
            collect(bound, above);
            std::sort(kept_.begin() + begin, kept_.end());
            const auto end = static_cast<int64_t>(kept_.size());
            for (int64_t at = begin; at < end; ++at) {
                const bool out = (how.top_k > 0 && at >= how.top_k) ||
                                 kept_[at].weight < how.min_p ||
                                 (plain && mass >= how.top_p * total_);
                if (at > 0 && out) {
                    kept_.resize(at);
                    return from_kept(how, plain ? INFINITY : how.top_p * mass);
                }
                mass += kept_[at].weight;
            }
        }
        return from_kept(how, plain ? INFINITY : how.top_p * mass);
    }

    // Of weights from `bound` up to `above`, none of them 0.
    void collect(float bound, float above) {
        const Floats low = every(std::max(bound, FLT_MIN));
        for (int64_t at = 0; at < num_parts_ * PART; at += LANES) {
            if (all_less(load(weights_.data() + at), low)) continue;
            for (int64_t lane = at; lane < at + LANES; ++lane) {
                const float weight = weights_[lane];
                if (weight >= bound && weight > 0 && weight < above)
                    kept_.push_back({weight, static_cast<int32_t>(lane)});
            }
        }
    }

    // Those that come before the mass `most` is reached, and one of them.
    int64_t from_kept(const lms_drawing &how, double most) const {
        if (kept_.empty()) return 0;  // of logits that are not numbers
        double mass = 0;
        size_t num = 0;
        while (num < kept_.size() && (num == 0 || mass < most)) mass += kept_[num++].weight;
        const double target = how.uniform * mass;
        double reached = 0;
        for (size_t at = 0; at < num; ++at) {
            reached += kept_[at].weight;
            if (reached > target) return kept_[at].token;
        }
        return kept_[num - 1].token;
    }

    std::vector<float> weights_;
    std::vector<double> sums_;  // of the parts
    std::vector<Candidate> kept_;
    int64_t num_parts_ = 0;
    double total_ = 0;
};

}  // namespace lms
