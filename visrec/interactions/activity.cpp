// What is known of items at moments: see `visrec.interactions.activity`.
//
// An item is described by one thread, so results do not depend on the number of threads.

#include "../threads.h"

#include <algorithm>
#include <cmath>
#include <cstdint>

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
    parallel_for(c, std::min(threads, c / 64), [=](int64_t from, int64_t to) {
        for (int64_t i = from; i < to; i++) {
            const int64_t* begin = time + offsets[item[i]];
            const int64_t* end = time + offsets[item[i] + 1];
            // Two pointers for each window, which only move forward with the moments.
            for (int64_t k = 0; k < w; k++) {
                const int64_t *first = begin, *last = begin;
                for (int64_t m = 0; m < g; m++) {
                    while (last < end && *last < moment[m]) last++;
                    while (first < last && *first < moment[m] - window[k]) first++;
                    features[(m * c + i) * (w + 2) + k] = log[last - first];
                }
            }
            for (int64_t m = 0; m < g; m++) {
                float* age = features + (m * c + i) * (w + 2) + w;
                const bool is_known = begin < end && *begin < moment[m];
                const int64_t days = is_known ? day_of(moment[m], day) - day_of(*begin, day) : 0;
                age[0] = std::nearbyint(log[days] * age_steps) / age_steps * age_scale;
                age[1] = is_known ? 1.f : 0.f;
            }
        }
    });
}

}
