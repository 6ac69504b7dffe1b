// The kernel against sums in integers, for a processor that only an emulator has. The entries of all
// vectors are small integers, so every score is exact and many are equal.

#include "kernel.cpp"

#include <cstdio>

namespace {

constexpr int64_t n = 1501, d = 70, b = 20, k = 60, threads = 2;
constexpr int64_t num_excluded = 40, num_targets = 3, num_profile = 9;

uint64_t state = 1;
int64_t random_below(int64_t limit) {  // by Knuth's linear congruential generator
    state = state * 6364136223846793005 + 1442695040888963407;
    return int64_t(state >> 33) % limit;
}

std::vector<float> random_vectors(int64_t count) {
    std::vector<float> vectors(count * d);
    for (float& entry : vectors) entry = float(random_below(9) - 4);
    return vectors;
}

// `size` rows for each user, each once and sorted.
std::vector<int64_t> random_rows(int64_t size) {
    std::vector<int64_t> rows;
    for (int64_t u = 0; u < b; u++)
        for (int64_t i = 0; i < size; i++) rows.push_back(n * i / size + random_below(n / size));
    return rows;
}

std::vector<int64_t> offsets_of(int64_t size) {
    std::vector<int64_t> offsets(b + 1);
    for (int64_t u = 0; u <= b; u++) offsets[u] = u * size;
    return offsets;
}

int64_t score(const float* item, const float* user) {
    int64_t sum = 0;
    for (int64_t j = 0; j < d; j++) sum += int64_t(item[j]) * int64_t(user[j]);
    return sum;
}

const std::vector<float> items = random_vectors(n), users = random_vectors(b);

int64_t score(int64_t row, int64_t u) { return score(&items[row * d], &users[u * d]); }

bool top_k_is_right(int64_t lead) {
    const int64_t blocks = (n + kItems - 1) / kItems, padded = blocks * kItems;
    const int64_t rest_bytes = (d - lead + 63) / 64 * 64, exponent = 3;
    std::vector<uint8_t> packed(padded * ((lead + 3) / 4 * 4)), rest(padded * rest_bytes);
    std::vector<float> scale(padded, NAN), bounds(blocks * 4), rest_scale(padded), length(padded);
    std::vector<int32_t> rows(padded);
    std::iota(rows.begin(), rows.begin() + n, 0);
    std::vector<double> wide_items, mean(d);
    for (const float entry : items) wide_items.push_back(std::ldexp(entry, -exponent));
    std::vector<uint8_t> unavailable(n);
    for (uint8_t& is_unavailable : unavailable) is_unavailable = random_below(10) == 0;
    visrec_pack(wide_items.data(), unavailable.data(), 0, n, d, lead, rest_bytes, packed.data(),
                scale.data(), bounds.data(), rest.data(), rest_scale.data(), length.data());
    const auto excluded = random_rows(num_excluded), offsets = offsets_of(num_excluded);
    std::vector<int64_t> found(b * k);
    std::vector<float> scores(b * k);
    visrec_top_k(items.data(), rows.data(), packed.data(), scale.data(), bounds.data(), rest.data(),
                 rest_scale.data(), length.data(), mean.data(), nullptr, n, d, lead, rest_bytes,
                 exponent, users.data(), b, offsets.data(), excluded.data(), k, threads,
                 found.data(), scores.data());
    for (int64_t u = 0; u < b; u++) {
        std::vector<std::pair<int64_t, int64_t>> expected;
        for (int64_t row = 0; row < n; row++)
            if (!unavailable[row] && !std::binary_search(&excluded[offsets[u]],
                                                         &excluded[offsets[u]] + num_excluded, row))
                expected.emplace_back(-score(row, u), row);
        std::sort(expected.begin(), expected.end());
        for (int64_t i = 0; i < k; i++)
            if (expected[i] != std::pair(-int64_t(scores[u * k + i]), found[u * k + i]))
                return false;
    }
    return true;
}

bool ranks_are_right() {
    // Targets are among the last 100 rows, and no profile has one of these.
    auto profiles = random_rows(num_profile), targets = random_rows(num_targets);
    for (int64_t& row : profiles) row = row * (n - 100) / n;
    for (int64_t& row : targets) row = n - 100 + row * 100 / n;
    const auto profile_offsets = offsets_of(num_profile), offsets = offsets_of(num_targets);
    for (const uint8_t is_wide : {0, 1}) {
        const std::vector<uint8_t> wide(b, is_wide);
        std::vector<int64_t> above(b * num_targets), others_above(above), others_equal(above);
        visrec_rank(items.data(), n, d, users.data(), b, profile_offsets.data(), profiles.data(),
                    offsets.data(), targets.data(), wide.data(), threads, above.data(),
                    others_above.data(), others_equal.data());
        for (int64_t t = 0; t < b * num_targets; t++) {
            const int64_t u = t / num_targets, own = score(targets[t], u);
            const int64_t *profile = &profiles[u * num_profile], *those = &targets[u * num_targets];
            int64_t expected[3] = {};
            for (int64_t row = 0; row < n; row++) {
                if (std::find(profile, profile + num_profile, row) < profile + num_profile) continue;
                const bool more = score(row, u) > own, equal = score(row, u) == own;
                const bool other = std::find(those, those + num_targets, row) == those + num_targets;
                expected[0] += more || (equal && row < targets[t]);
                expected[1] += more && other;
                expected[2] += equal && other;
            }
            if (above[t] != expected[0] || others_above[t] != expected[1] ||
                others_equal[t] != expected[2])
                return false;
        }
    }
    return true;
}

bool nearest_is_right() {
    const auto rows = random_rows(num_targets), lists = random_rows(num_profile);
    const auto offsets = offsets_of(num_profile);
    std::vector<int64_t> nearest(b * num_targets);
    visrec_nearest(items.data(), d, d, rows.data(), b, num_targets, offsets.data(), lists.data(),
                   threads, nearest.data());
    for (int64_t i = 0; i < b * num_targets; i++) {
        const auto cosine = [&](int64_t row) {
            const float *one = &items[rows[i] * d], *other = &items[row * d];
            return double(score(one, other)) / std::sqrt(double(score(other, other)));
        };
        const int64_t* list = &lists[i / num_targets * num_profile];
        for (int64_t j = 0; j < num_profile; j++)
            if (cosine(list[j]) > cosine(nearest[i]) + 1e-4) return false;
    }
    return true;
}

}  // namespace

int main() {
    const bool right[] = {top_k_is_right(d), top_k_is_right(32), ranks_are_right(),
                          nearest_is_right()};
    std::printf("top_k %d, with a rest %d, rank %d, nearest %d\n", right[0], right[1], right[2],
                right[3]);
    return !(right[0] && right[1] && right[2] && right[3]);
}
