// What is known of items at moments: see `visrec.interactions.activity`.
//
// An item is described by one thread, so results do not depend on the number of threads.

#include "../threads.h"

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <vector>

extern "C" {

// features (g, c, w + 2) of item[c] at moment[g]: for each window the entry of `log` for the number
// of days in [moment - window, moment); the entry of `log` for the age, which is the moment less the
// first day, rounded to 1 / age_steps and scaled; and 1. All are 0 for an item without a day before
// the moment. Moments, windows and days are in days. The days on which item i was taken, in ascending
// order, are taken[offsets[i]] to taken[offsets[i + 1] - 1]. Moments ascend.
void visrec_activity(const int32_t* taken, const int64_t* offsets, const int64_t* item, int64_t c,
                     const int64_t* moment, int64_t g, const int64_t* window, int64_t w,
                     const float* log, float age_steps, float age_scale, int64_t threads,
                     float* features) {
    parallel_for(c, std::min(threads, c / 64), [=](int64_t from, int64_t to) {
        std::vector<const int32_t*> first(w), last(w);  // each window's days
        std::vector<float> counts(w);
        for (int64_t i = from; i < to; i++) {
            const int32_t* begin = taken + offsets[item[i]];
            const int32_t* end = taken + offsets[item[i] + 1];
            std::fill(first.begin(), first.end(), begin);
            std::fill(last.begin(), last.end(), begin);
            std::fill(counts.begin(), counts.end(), log[0]);
            // Counts change only when a day enters or leaves a window.
            int64_t next_change = begin < end ? int64_t(*begin) + 1 : INT64_MAX;
            for (int64_t m = 0; m < g; m++) {
                float* of_item = features + (m * c + i) * (w + 2);
                if (moment[m] >= next_change) {
                    next_change = INT64_MAX;
                    for (int64_t k = 0; k < w; k++) {
                        while (last[k] < end && *last[k] < moment[m]) last[k]++;
                        while (first[k] < last[k] && *first[k] < moment[m] - window[k]) first[k]++;
                        counts[k] = log[last[k] - first[k]];
                        if (last[k] < end)
                            next_change = std::min(next_change, int64_t(*last[k]) + 1);
                        if (first[k] < last[k])
                            next_change = std::min(next_change, *first[k] + window[k] + 1);
                    }
                }
                std::copy(counts.begin(), counts.end(), of_item);
                const bool is_known = begin < end && *begin < moment[m];
                const int64_t age = is_known ? moment[m] - *begin : 0;
                of_item[w] = std::nearbyint(log[age] * age_steps) / age_steps * age_scale;
                of_item[w + 1] = is_known ? 1.f : 0.f;
            }
        }
    });
}

}
