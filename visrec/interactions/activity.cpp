// What is known of items at moments: see `visrec.interactions.activity`.
//
// An item is described by one thread, so results do not depend on the number of threads.

#include "../threads.h"

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <vector>

namespace {

// The day of a time, rounded down: times before 1970 are negative.
int64_t day_of(int64_t time, int64_t day) { return time / day - (time % day < 0); }

}  // namespace

extern "C" {

// features (g, c, w + 2) of item[c] at moment[g]: for each window the entry of `log` for the number
// of times in [moment - window, moment); the entry of `log` for the days since the first time,
// rounded to 1 / age_steps and scaled; and 1. All are 0 for an item without a time before the
// moment. The times of item i, in ascending order, are time[offsets[i]] to time[offsets[i + 1] - 1].
// Moments ascend.
void visrec_activity(const int64_t* time, const int64_t* offsets, const int64_t* item, int64_t c,
                     const int64_t* moment, int64_t g, const int64_t* window, int64_t w,
                     int64_t day, const float* log, float age_steps, float age_scale,
                     int64_t threads, float* features) {
    std::vector<int64_t> moment_day(g);
    for (int64_t m = 0; m < g; m++) moment_day[m] = day_of(moment[m], day);
    parallel_for(c, std::min(threads, c / 64), [=, &moment_day](int64_t from, int64_t to) {
        std::vector<const int64_t*> first(w), last(w);  // each window's times
        std::vector<float> counts(w);
        for (int64_t i = from; i < to; i++) {
            const int64_t* begin = time + offsets[item[i]];
            const int64_t* end = time + offsets[item[i] + 1];
            const int64_t first_day = begin < end ? day_of(*begin, day) : 0;
            std::fill(first.begin(), first.end(), begin);
            std::fill(last.begin(), last.end(), begin);
            std::fill(counts.begin(), counts.end(), log[0]);
            // Counts change only when a time enters or leaves a window.
            int64_t next_change = begin < end ? *begin + 1 : INT64_MAX;
            for (int64_t m = 0; m < g; m++) {
                float* of_item = features + (m * c + i) * (w + 2);
                if (moment[m] >= next_change) {
                    next_change = INT64_MAX;
                    for (int64_t k = 0; k < w; k++) {
                        while (last[k] < end && *last[k] < moment[m]) last[k]++;
                        while (first[k] < last[k] && *first[k] < moment[m] - window[k]) first[k]++;
                        counts[k] = log[last[k] - first[k]];
                        if (last[k] < end) next_change = std::min(next_change, *last[k] + 1);
                        if (first[k] < last[k])
                            next_change = std::min(next_change, *first[k] + window[k] + 1);
                    }
                }
                std::copy(counts.begin(), counts.end(), of_item);
                const bool is_known = begin < end && *begin < moment[m];
                const int64_t days = is_known ? moment_day[m] - first_day : 0;
                of_item[w] = std::nearbyint(log[days] * age_steps) / age_steps * age_scale;
                of_item[w + 1] = is_known ? 1.f : 0.f;
            }
        }
    });
}

}
