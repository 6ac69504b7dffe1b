// The exact k best items of many users by dot product. simd.h has the instructions.
//
// All items are first scored with vectors of 8-bit integers, four multiplications per lane. For every
// pair, Cauchy-Schwarz bounds the effect of the rounding: with u = u' + du and i = i' + di,
//
//     |u . i - u' . i'|  <=  |u'| |di| + |du| |i|
//
// so an item whose upper bound is below the k-th highest lower bound is not among the k best. The
// remaining items, a few hundred, are scored in double precision. No result depends on which users
// are searched for together, nor on the number of threads.
//
// Memory does not depend on the scores. If so many items are alike that their bounds cannot tell
// them apart, the items seen so far are scored exactly, the k best of them are kept, and the search
// continues.
//
// Where it pays (rotation.py), vectors are rotated so that the first dimensions, the lead, have most
// of a score. For all items only the lead is multiplied; for the rest, Cauchy-Schwarz bounds what it
// can add, and it is multiplied for the few items that may still be among the best.
//
// Items come in random order. So early on, the k-th score can be guessed from the share of the items
// that were seen. If a guess turns out to have been too high, the user is searched for again.
//
// The mean of all items is subtracted from the items before they are rounded. It adds the same
// amount to all scores of a user, and what remains is smaller. Vectors are first divided by a power
// of two, all items by the same one and each user by their own, so that no bound overflows or
// vanishes, whatever finite numbers the vectors hold. Items are stored in tiles, a few of which make
// a block of 64: for each group of four dimensions, four bytes of each of the tile's items. Where
// the instruction multiplies unsigned by signed bytes, the items' bytes are 128 too high, and the
// accumulators start with the correction.

#include "../threads.h"
#include "simd.h"

#include <algorithm>
#include <cfloat>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <functional>
#include <numeric>
#include <utility>
#include <vector>

namespace {

using simd::Floats, simd::Ints, simd::Mask, simd::kLanes;

constexpr int kItems = 64;  // in a block
// Users of a group, and registers of items that are multiplied at a time for each of them: with
// their accumulators and the operands, they fill the registers.
constexpr int kUsers = simd::kUsers, kColumns = simd::kColumns;
constexpr int kTile = kColumns * kLanes;
constexpr int kGroups = 96 / kUsers;  // in a piece of work: about 96 users share a read of the items
constexpr int kGrowth = 8;    // factor by which a search's buffer may grow; a power of 2
constexpr int64_t kFirstGuess = 8;  // blocks before the first guess of the k-th score
constexpr int kHalvings = 16; // steps of the bisection for the k-th bound
constexpr float kLeastScale = 0x1p-40f;  // a byte step, if the largest entry is near 1
constexpr float kSlack = 1e-5f;  // times |u| |i|: more than all single-precision errors
constexpr double kRounded = 0x1p-22;  // times a score: closer scores may round to the same
                                      // single-precision number; then the lower row is better
constexpr double kTiny = 2. * FLT_TRUE_MIN;  // the same for scores near zero

// Items are stored at positions, in the order in which they are scored. Their vectors are rotated,
// so that the first dimensions have most of a score: the lead, whose bytes take an even number of
// quads. The others are the rest, which may be empty.
struct Items {
    const float* vectors;   // (n, d) as given, in the order of the rows
    const int32_t* rows;    // (blocks * 64,) of each position
    const uint8_t* packed;  // (blocks * 64 / kTile, quads, kTile, 4)
    const float* scale;     // (blocks * 64,) a byte step, in 2^exponent; NaN: unavailable
    const float* bounds;    // (blocks, 4) the largest |di| and |i| of a block: of the lead in byte
                            // steps, of the rest in 2^exponent
    const uint8_t* rest;    // (blocks * 64, rest_bytes)
    const float* rest_scale;   // (blocks * 64,) a byte step of the rest, in 2^exponent
    const float* rest_length;  // (blocks * 64,) |i| of the rest, in 2^exponent
    const double* mean;        // (d,)
    const double* user_rotation;  // (d, d) by which users are multiplied; null for none
    int64_t n, blocks;
    int d, lead, quads, rest_bytes, exponent;
};

struct User {
    int32_t offset, rest_offset;  // minus what the 128 in every byte of an item adds
    float length, rounding;  // |u'| and |du| of the lead with the slack, in its byte steps
    float rest_length, rest_rounding, rest_scale;  // the same of the rest, and its byte step
};

// Calls `work` with each index j below d and with its lane, j % 16, in loops that become registers.
template <typename Work>
void in_lanes(int64_t d, Work work) {
    int64_t j = 0;
    for (; j + 16 <= d; j += 16)
        for (int lane = 0; lane < 16; lane++) work(j + lane, lane);
    for (; j < d; j++) work(j, j % 16);
}

double sum_of_lanes(double (&sums)[16]) {
    for (int half = 8; half; half /= 2)
        for (int lane = 0; lane < half; lane++) sums[lane] += sums[lane + half];
    return sums[0];
}

template <typename Float>
Float largest_entry(const Float* vector, int64_t d) {
    Float largest[16] = {};
    in_lanes(d, [&](int64_t j, int lane) {
        largest[lane] = std::max(largest[lane], std::fabs(vector[j]));
    });
    return *std::max_element(largest, largest + 16);
}

// The exponent of the power of two that a vector is divided by: its largest entry is then below 1.
template <typename Float>
int exponent_of(const Float* vector, int64_t d) {
    int exponent = 0;
    std::frexp(largest_entry(vector, d), &exponent);
    return exponent;
}

// The number of quads for the bytes of d dimensions.
int quads_of(int64_t d) { return int((d + 7) / 8 * 2); }

// The byte of a dimension among those of `quads` quads. Each four that simd.h adds in 16 bits are of
// dimensions far apart, because neighbours may be large together: the first dimensions of rotated
// vectors are the largest.
int byte_of(int j, int quads) {
    const int four = j % quads, nth = j / quads;
    return four / 2 * 8 + four % 2 * 2 + nth / 2 * 4 + nth % 2;
}

// The largest sum of four entries that simd.h adds in 16 bits.
double largest_four(const double* vector, int d, int quads) {
    double largest = 0;
    for (int four = 0; four < quads; four++) {
        double sum = 0;
        for (int j = four; j < d; j += quads) sum += std::fabs(vector[j]);
        largest = std::max(largest, sum);
    }
    return largest;
}

// A byte step that no entry has more than `levels` of; `least` or more.
float step_of(const double* vector, int d, int levels, float least) {
    return std::max(float(largest_entry(vector, d) / levels), least);
}

// The same for a vector that is multiplied by `simd::dot`.
float user_step_of(const double* vector, int d, int quads, float least) {
    if (simd::kQuads == 1) return step_of(vector, d, simd::kUserBytes, least);
    // Rounding adds at most 1 / 2 to each entry.
    return std::max(float(largest_four(vector, d, quads) / (simd::kUserFour - 2)), least);
}

// Rounds a vector to multiples of `scale`; returns |v'| and |dv| in units of it.
void round_to_bytes(const double* vector, int d, float scale, int8_t* bytes, double* length,
                    double* rounding) {
    const double inverse = 1. / scale;
    double squares[16] = {}, remainders[16] = {};
    in_lanes(d, [&](int64_t j, int lane) {
        const double value = vector[j] * inverse;
        const double nearest = std::nearbyint(value);  // within the levels: the scale is nearly exact
        squares[lane] += nearest * nearest;
        remainders[lane] += (value - nearest) * (value - nearest);
        bytes[j] = int8_t(nearest);
    });
    *length = std::sqrt(sum_of_lanes(squares));
    *rounding = std::sqrt(sum_of_lanes(remainders));
}

// Prefetches a vector while others are processed.
void fetch(const float* vector, int64_t d) {
    for (int64_t j = 0; j < d; j += 16) simd::prefetch(vector + j);
}

// The order of the summation is part of the result. A product of two floats is exact in a double.
double dot(const float* a, const float* b, int d) {
    double sums[16] = {};
    in_lanes(d, [&](int64_t j, int lane) { sums[lane] += double(a[j]) * b[j]; });
    return sum_of_lanes(sums);
}

struct Scored {
    float score;
    int32_t row;  // or position
};

// A number that is greater for a better item, which has a higher score or, in a tie, a lower row.
uint64_t rank_of(Scored item) {
    item.score += 0.f;  // so that -0 equals 0
    uint32_t bits;
    std::memcpy(&bits, &item.score, 4);
    bits ^= bits >> 31 ? 0xffffffffu : 0x80000000u;
    return uint64_t(bits) << 32 | uint32_t(~item.row);
}

Scored item_of(uint64_t rank) {
    uint32_t bits = uint32_t(rank >> 32);
    bits ^= bits >> 31 ? 0x80000000u : 0xffffffffu;
    Scored item{0, int32_t(~uint32_t(rank))};
    std::memcpy(&item.score, &bits, 4);
    return item;
}

// Slightly less than the smallest exact score that rounds to this one.
double least_rounding_to(float score) { return score - kRounded * std::fabs(score) - kTiny; }

// One user's search: the items that may be among the best, with bounds of their scores in units of
// the user's scale.
struct Search {
    std::vector<float> high, low;
    std::vector<int32_t> item;  // positions
    size_t size, full, max_size;
    float least;   // items with a higher bound below this are not among the k best
    float guess;   // the guess that `least` was raised to; -inf if it never was
    double unit;   // the score that a bound of 1 stands for
    double base;   // the score of the mean of all items, which is part of every score
    float margin;  // how far below the k-th an item with the same rounded score may be
    const float* vector;  // the user's
    const int64_t *excluded, *excluded_end;

    void start(int64_t capacity, double a_unit, double all_have, const float* user,
               const int64_t* first, const int64_t* last) {
        vector = user, excluded = first, excluded_end = last;
        unit = a_unit, base = all_have;
        margin = float((kRounded * std::fabs(base) + kTiny) / unit);
        size = 0, full = size_t(capacity), max_size = kGrowth * full;
        least = guess = -INFINITY;
        reserve();
    }

    void reserve() {  // room for one more block than a full buffer, and for one more register
        for (auto* array : {&high, &low}) array->resize(full + kItems + kLanes);
        item.resize(full + kItems + kLanes);
    }

    // Makes room if pruning has left more than half, because bounds are coarse or items are alike.
    void make_room(const Items& items, int k, std::vector<uint64_t>& ranked) {
        if (2 * size <= full) return;
        if (full == max_size) return keep_best(items, k, ranked);
        full *= 2;
        reserve();
    }

    void note(Mask passed, Floats highs, Floats lows, Ints items) {
        simd::compress(high.data() + size, passed, highs);
        simd::compress(low.data() + size, passed, lows);
        simd::compress(item.data() + size, passed, items);
        size += size_t(__builtin_popcount(passed));
    }

    // Drops excluded items and items that cannot be among the k best.
    void prune(int k) {
        mark_excluded();
        if (size > size_t(k)) least = std::max(least, bound(k) - margin);
        const Floats worst = simd::all(std::max(least, -FLT_MAX));  // excluded items have -inf
        size_t seen = 0;
        std::swap(seen, size);
        for (size_t one = 0; one < seen; one += kLanes) {
            const Floats highs = simd::load(high.data() + one);
            note(simd::at_least(highs, worst) & simd::first(int64_t(seen - one)), highs,
                 simd::load(low.data() + one), simd::load(item.data() + one));
        }
    }

    // Raises `least` to a guess of the final k-th lower bound. Items come in random order, so about
    // `share * k` of the k best have been seen; three standard deviations are added.
    void raise(int k, double share) {
        const double expected = share * k;
        const int sure = int(expected + 3 * std::sqrt(expected) + 3);
        mark_excluded();
        if (sure >= k || size <= size_t(sure)) return;
        guess = std::max(guess, bound(sure));
        least = std::max(least, guess - margin);
    }

    // Whether the guess was right: then no item that it dropped is among the k best.
    bool guessed_well(int k) { return guess == -INFINITY || bound(k) >= guess; }

    // Marks excluded items. Items and the user's exclusions are both sorted, so each entry of the
    // shorter list is looked up once in the longer one.
    void mark_excluded() {
        if (!size || excluded == excluded_end) return;
        const auto mark = [&](size_t one) { high[one] = low[one] = -INFINITY; };
        const auto begin = item.begin(), end = begin + int64_t(size);
        const int64_t* next = std::upper_bound(excluded, excluded_end, int64_t(item[size - 1]));
        if (next - excluded < int64_t(size))
            for (; excluded < next; excluded++) {
                const auto found = std::lower_bound(begin, end, *excluded);
                if (found != end && *found == *excluded) mark(size_t(found - begin));
            }
        else
            for (size_t one = 0; one < size; one++) {
                excluded = std::lower_bound(excluded, next, int64_t(item[one]));
                if (excluded < next && *excluded == item[one]) mark(one);
            }
        excluded = next;
    }

    // Keeps the k best by their exact scores, if bounds cannot tell more than k items apart. Not
    // inlined, because the loop over blocks is faster without it.
    __attribute__((noinline)) void keep_best(const Items& items, int k,
                                             std::vector<uint64_t>& ranked) {
        ranked.clear();
        for (size_t one = 0; one < size; one++) ranked.push_back(rank(items, item[one]));
        std::vector<uint64_t> best = ranked;
        std::nth_element(best.begin(), best.begin() + (k - 1), best.end(), std::greater<>());
        const uint64_t last = best[size_t(k) - 1];
        size_t to = 0;
        for (size_t one = 0; one < size; one++)
            if (ranked[one] >= last) {
                high[to] = high[one], low[to] = low[one], item[to] = item[one];
                to++;
            }
        size = to;
        // Other items need a score that is as good. A score that overflows cannot be compared.
        const float score = item_of(last).score;
        if (std::isfinite(score)) {
            const float worst = float((least_rounding_to(score) - base) / unit);
            least = std::max(least, std::nextafter(worst, -INFINITY));
        }
    }

    uint64_t rank(const Items& items, int32_t position) const {
        const int32_t row = items.rows[position];
        return rank_of({float(dot(vector, items.vectors + int64_t(row) * items.d, items.d)), row});
    }

    // A number that at least k of the lower bounds reach, but few more than k.
    float bound(int k) {
        simd::store(low.data() + size, simd::all(-INFINITY));  // the last register is read whole
        const auto count_from = [&](float least_low) {
            size_t count = 0;
            for (size_t one = 0; one < size; one += kLanes)
                count += size_t(__builtin_popcount(
                    simd::at_least(simd::load(low.data() + one), simd::all(least_low))));
            return count;
        };
        if (count_from(-FLT_MAX) < size_t(k)) return -INFINITY;
        Floats lowest = simd::all(INFINITY), highest = simd::all(-INFINITY);
        for (size_t one = 0; one < size; one += kLanes) {
            const Floats lows = simd::load(low.data() + one);
            const Floats found = lows >= simd::all(-FLT_MAX) ? lows : simd::all(INFINITY);
            lowest = found < lowest ? found : lowest;
            highest = simd::larger(lows, highest);
        }
        float from = -simd::largest(-lowest), to = simd::largest(highest);
        for (int halving = 0; halving < kHalvings && from < to; halving++) {
            const float middle = from + (to - from) / 2;
            const size_t above = count_from(middle);
            if (above >= size_t(k)) from = middle;
            else to = middle;
            if (above == size_t(k)) break;
        }
        return from;
    }
};

// The integer scores of a group of users for a block of items.
void multiply(const uint8_t* item, const int8_t* bytes, int quads, const int32_t* offsets,
              int32_t (*sums)[kItems]) {
    for (int tile = 0; tile < kItems; tile += kTile) {
        const int32_t* user = reinterpret_cast<const int32_t*>(bytes);
        Ints sum[kUsers][kColumns];
#pragma GCC unroll 8
        for (int u = 0; u < kUsers; u++)
#pragma GCC unroll 8
            for (int c = 0; c < kColumns; c++) sum[u][c] = simd::all(offsets[u]);
        for (int q = 0; q < quads; q += simd::kQuads) {
            Ints column[kColumns][simd::kQuads];
#pragma GCC unroll 8
            for (int i = 0; i < simd::kQuads; i++)
#pragma GCC unroll 8
                for (int c = 0; c < kColumns; c++)
                    column[c][i] = simd::load<Ints>(item + (i * kColumns + c) * 4 * kLanes);
#pragma GCC unroll 8
            for (int u = 0; u < kUsers; u++) {
                Ints quad[simd::kQuads];
#pragma GCC unroll 8
                for (int i = 0; i < simd::kQuads; i++) quad[i] = simd::all(user[i * kUsers + u]);
#pragma GCC unroll 8
                for (int c = 0; c < kColumns; c++)
                    sum[u][c] = simd::dot(sum[u][c], column[c], quad);
            }
            item += simd::kQuads * kTile * 4, user += simd::kQuads * kUsers;
        }
#pragma GCC unroll 8
        for (int u = 0; u < kUsers; u++)
#pragma GCC unroll 8
            for (int c = 0; c < kColumns; c++) simd::store(sums[u] + tile + c * kLanes, sum[u][c]);
    }
}

// An item that may be among a user's best by its lead.
struct Passed {
    int32_t user, position;
    float high, low;  // without the rest
};

// Adds the rest to the scores of items of one block; notes those that may still be among the best.
void add_rests(const Items& items, const std::vector<Passed>& all_passed, const int8_t* bytes,
               const User* users, Search* searches, int k, std::vector<uint64_t>& ranked) {
    for (const Passed& passed : all_passed) {
        const User& user = users[passed.user];
        const int8_t* user_bytes = bytes + int64_t(passed.user) * items.rest_bytes;
        const uint8_t* item_bytes = items.rest + int64_t(passed.position) * items.rest_bytes;
        Ints sums = {};
        for (int j = 0; j < items.rest_bytes; j += 4 * kLanes)
            sums = simd::dot4(sums, simd::load<Ints>(item_bytes + j),
                              simd::load<Ints>(user_bytes + j));
        const float rest = float(user.rest_offset + simd::sum(sums)) * user.rest_scale *
                           items.rest_scale[passed.position];
        const float* bound = items.bounds + passed.position / kItems * 4;
        const float rounding =
            user.rest_scale * (user.rest_length * bound[2] + user.rest_rounding * bound[3]);
        Search& search = searches[passed.user];
        const float high = passed.high + rest + rounding;
        if (high < search.least) continue;
        search.high[search.size] = high;
        search.low[search.size] = passed.low + rest - rounding;
        search.item[search.size++] = passed.position;
        if (search.size < search.full) continue;
        search.prune(k);
        search.make_room(items, k, ranked);
    }
}

// Scores one block of items for one group of users; notes the items that may be among the best.
// Those that pass by their lead are only added to `passed_items`, and their rests fetched, which
// takes as long as scoring the block for other users.
void score_block(const Items& items, int64_t block, const int8_t* bytes, const User* users,
                 int64_t first_user, int count, Search* searches, int k,
                 std::vector<uint64_t>& ranked, std::vector<Passed>& passed_items) {
    // The largest error that rounding can have caused is added to all scores of a block.
    int32_t error[kUsers], offsets[kUsers];
    for (int u = 0; u < kUsers; u++) {
        const float* bound = items.bounds + 4 * block;
        error[u] = int32_t(users[u].length * bound[0] + users[u].rounding * bound[1]) + 1;
        offsets[u] = users[u].offset + error[u];
    }
    alignas(64) int32_t sums[kUsers][kItems];
    multiply(items.packed + block * items.quads * kItems * 4, bytes, items.quads, offsets, sums);
    const float *scale = items.scale + block * kItems, *rest = items.rest_length + block * kItems;
    for (int u = 0; u < count; u++) {
        Search& search = searches[u];
        const Floats least = simd::all(search.least);
        const auto high_of = [&](int r) {
            return simd::to_floats(simd::load(sums[u] + r)) * simd::load(scale + r);
        };
        if (items.rest_bytes) {
            const Floats rest_most = simd::all((users[u].rest_length + users[u].rest_rounding) *
                                               users[u].rest_scale);
            for (int r = 0; r < kItems; r += kLanes) {
                const Floats high = high_of(r);
                Mask passed = simd::at_least(
                    simd::multiply_add(rest_most, simd::load(rest + r), high), least);
                for (; passed; passed &= passed - 1) {
                    const int item = r + __builtin_ctz(passed);
                    const auto position = int32_t(block * kItems + item);
                    for (int j = 0; j < items.rest_bytes; j += 64)
                        simd::prefetch(items.rest + int64_t(position) * items.rest_bytes + j);
                    const float item_high = float(sums[u][item]) * scale[item];
                    passed_items.push_back({int32_t(first_user + u), position, item_high,
                                            item_high - 2 * float(error[u]) * scale[item]});
                }
            }
            continue;
        }
        // In most blocks no item passes: that takes one branch to find out.
        Floats largest = simd::all(-INFINITY);  // so that it is no NaN, which unavailable items have
        for (int r = 0; r < kItems; r += kLanes) largest = simd::larger(high_of(r), largest);
        if (!simd::at_least(largest, least)) continue;
        const Floats twice = simd::all(-2.f * float(error[u]));
        for (int r = 0; r < kItems; r += kLanes) {
            const Floats high = high_of(r);
            const Mask passed = simd::at_least(high, least);
            if (!passed) continue;
            int32_t position[kLanes];
            std::iota(position, position + kLanes, int32_t(block * kItems + r));
            search.note(passed, high, simd::multiply_add(twice, simd::load(scale + r), high),
                        simd::load(position));
        }
        if (search.size < search.full) continue;
        search.prune(k);
        search.make_room(items, k, ranked);
    }
}

// A thread's memory. A thread processes one piece of the users after another.
struct Worker {
    std::vector<Search> searches{size_t(kUsers) * kGroups};
    std::vector<User> users;
    std::vector<int8_t> bytes, rest_bytes, user_bytes;
    std::vector<double> rotated, wide;
    std::vector<Scored> remaining;
    std::vector<uint64_t> ranked;
    std::vector<Passed> passed_items;

    // Rotates users' vectors like the items, a few at a time, which share a read of the matrix. It is
    // not left to a BLAS, whose threads wait for more work on the cores that the search needs.
    void rotate(const Items& items, const float* vectors, int64_t count) {
        constexpr int64_t kTogether = 8;
        const int64_t d = items.d;
        rotated.assign(count * d, 0);
        if (!items.user_rotation) std::copy(vectors, vectors + count * d, rotated.begin());
        else
            for (int64_t first = 0; first < count; first += kTogether)
                for (int64_t i = 0; i < d; i++)
                    for (int64_t u = first; u < std::min(count, first + kTogether); u++) {
                        const double entry = vectors[u * d + i];
                        const double* row = items.user_rotation + i * d;
                        double* to = rotated.data() + u * d;
                        for (int64_t j = 0; j < d; j++) to[j] += entry * row[j];
                    }
    }

    // Rounds a user's rotated vector, divided by 2^exponent.
    double round(const Items& items, int exponent, int64_t u) {
        const int lead = items.lead, width = 4 * items.quads;
        const double power = std::ldexp(1., -exponent);
        for (int j = 0; j < items.d; j++) wide[j] = rotated[u * items.d + j] * power;
        double length, rounding;
        User& user = users[u];
        const float scale = user_step_of(wide.data(), lead, items.quads, kLeastScale);
        round_to_bytes(wide.data(), lead, scale, user_bytes.data(), &length, &rounding);
        user.length = float(length);
        user.rounding = float(rounding + kSlack * (length + rounding));
        for (int j = 0; j < lead; j++) user.offset -= simd::kItemOffset * user_bytes[j];
        int8_t* group = bytes.data() + u / kUsers * kUsers * width;
        for (int j = 0; j < lead; j++) {
            const int byte = byte_of(j, items.quads);
            group[(byte / 4 * kUsers + u % kUsers) * 4 + byte % 4] = user_bytes[j];
        }
        if (!items.rest_bytes) return scale;
        int8_t* rest = rest_bytes.data() + u * items.rest_bytes;
        const float rest_scale =
            step_of(wide.data() + lead, items.d - lead, simd::kUserBytes, kLeastScale);
        round_to_bytes(wide.data() + lead, items.d - lead, rest_scale, rest, &length, &rounding);
        user.rest_scale = rest_scale / scale;
        user.rest_length = float(length);
        user.rest_rounding = float(rounding + kSlack * (length + rounding));
        for (int j = 0; j < items.d - lead; j++) user.rest_offset -= simd::kItemOffset * rest[j];
        return scale;
    }

    void run(const Items& items, const float* vectors, int64_t count, const int64_t* offsets,
             const int64_t* excluded, int k, int64_t* rows, float* scores, bool guessing = true) {
        const int width = 4 * items.quads;
        users.assign(searches.size(), User{});
        bytes.assign(searches.size() * width, 0);
        rest_bytes.assign(searches.size() * items.rest_bytes, 0);
        user_bytes.assign(width, 0);
        wide.resize(items.d);
        rotate(items, vectors, count);
        for (int64_t u = 0; u < count; u++) {
            const float* vector = vectors + u * items.d;
            const int exponent = exponent_of(rotated.data() + u * items.d, items.d);
            const double scale = round(items, exponent, u);
            double base = 0;
            for (int j = 0; j < items.d; j++) base += vector[j] * items.mean[j];
            const int64_t capacity = std::min<int64_t>(4 * int64_t(k), items.n) + 256;
            searches[u].start(capacity, std::ldexp(scale, exponent + items.exponent), base, vector,
                              excluded + offsets[u], excluded + offsets[u + 1]);
        }
        const int64_t size = items.quads * kItems * 4;
        const int64_t prefetch_bytes = (size / kGroups + 63) / 64 * 64;
        int64_t next_guess = guessing ? kFirstGuess : items.blocks;
        for (int64_t block = 0; block < items.blocks; block++) {
            if (block == next_guess) {
                const double seen_share = double(block) / double(items.blocks);
                for (int64_t u = 0; u < count; u++) searches[u].raise(k, seen_share);
                next_guess *= 2;
            }
            for (int64_t u = 0; u < count; u += kUsers) {
                // Prefetches part of the next block while this one is multiplied.
                const uint8_t* coming =
                    items.packed + (block + 1) * size + u / kUsers * prefetch_bytes;
                for (int64_t j = 0; j < prefetch_bytes; j += 64) simd::prefetch(coming + j);
                score_block(items, block, bytes.data() + u * width, users.data() + u, u,
                            int(std::min<int64_t>(kUsers, count - u)), searches.data() + u, k,
                            ranked, passed_items);
            }
            if (passed_items.empty()) continue;
            add_rests(items, passed_items, rest_bytes.data(), users.data(), searches.data(), k,
                      ranked);
            passed_items.clear();
        }
        std::vector<int64_t> again;
        for (int64_t u = 0; u < count; u++) {
            finish(items, searches[u], k, rows + u * k, scores + u * k);
            if (!searches[u].guessed_well(k)) again.push_back(u);
        }
        for (const int64_t u : again)
            run(items, vectors + u * items.d, 1, offsets + u, excluded, k, rows + u * k,
                scores + u * k, false);
    }

    // Scores the remaining items in double precision, the most promising ones first, until no bound
    // reaches the k-th best score so far.
    void finish(const Items& items, Search& search, int k, int64_t* rows, float* scores) {
        search.prune(k);
        remaining.clear(), ranked.clear();
        for (size_t one = 0; one < search.size; one++)
            remaining.push_back({search.high[one], search.item[one]});
        const auto is_better = [](const Scored& a, const Scored& b) { return a.score > b.score; };
        const auto likely = remaining.begin() + std::min<int64_t>(k, remaining.size());
        std::nth_element(remaining.begin(), likely, remaining.end(), is_better);
        rescore(items, search, remaining.begin(), likely, [&](uint64_t rank, const Scored&) {
            ranked.push_back(rank);
            return true;
        });
        if (likely < remaining.end()) {
            std::make_heap(ranked.begin(), ranked.end(), std::greater<>());  // the worst is first
            double worst = least_rounding_to(item_of(ranked[0]).score);
            const auto may_be_best = [&](const Scored& one) {
                return !(double(one.score) * search.unit + search.base < worst);
            };
            const auto end = std::partition(likely, remaining.end(), may_be_best);
            std::sort(likely, end, is_better);
            rescore(items, search, likely, end, [&](uint64_t rank, const Scored& one) {
                if (rank > ranked[0]) {
                    std::pop_heap(ranked.begin(), ranked.end(), std::greater<>());
                    ranked.back() = rank;
                    std::push_heap(ranked.begin(), ranked.end(), std::greater<>());
                    worst = least_rounding_to(item_of(ranked[0]).score);
                }
                return may_be_best(one);
            });
        }
        std::sort(ranked.begin(), ranked.end(), std::greater<>());
        for (size_t position = 0; position < size_t(k); position++) {
            const Scored best =
                position < ranked.size() ? item_of(ranked[position]) : Scored{-INFINITY, -1};
            rows[position] = best.row;
            scores[position] = best.score;
        }
    }

    // Calls `take` with the rank of each item, and the item, until it returns false.
    template <typename Iterator, typename Take>
    void rescore(const Items& items, const Search& search, Iterator first, Iterator last,
                 Take take) {
        constexpr int64_t kAhead = 3;  // rows to prefetch ahead of the one being multiplied
        const auto fetch_row = [&](const Scored& one) {
            fetch(items.vectors + int64_t(items.rows[one.row]) * items.d, items.d);
        };
        std::for_each(first, first + std::min(kAhead, last - first), fetch_row);
        for (; first < last; first++) {
            if (last - first > kAhead) fetch_row(first[kAhead]);
            if (!take(search.rank(items, first->row), *first)) return;
        }
    }
};

constexpr int kList = 2 * kLanes;  // items of a user's list, in two registers
constexpr int kRows = 4;           // rows that share each read of these items

// Up to `kList` vectors, scaled to length 1, as columns: (d, kList). After the last, the first is
// repeated.
void gather_columns(const float* vectors, int64_t stride, int64_t d, const int64_t* list,
                    int64_t count, float* unit) {
    for (int64_t i = 0; i < count; i++) fetch(vectors + list[i] * stride, d);
    for (int64_t i = 0; i < count; i++) {
        const float* vector = vectors + list[i] * stride;
        const double square = dot(vector, vector, int(d));
        const double inverse = square > 0 ? 1 / std::sqrt(square) : 0;
        for (int64_t j = 0; j < d; j++) unit[j * kList + i] = float(vector[j] * inverse);
    }
    for (int64_t j = 0; j < d; j++)
        std::fill(unit + j * kList + count, unit + (j + 1) * kList, unit[j * kList]);
}

// The largest product of each of four rows with the columns, and its column. Rows are divided by
// powers of two so that no product overflows; this does not change the order of the columns.
void nearest_column(const float* vectors, int64_t stride, int64_t d, const int64_t* rows,
                    const float* unit, float* largest, int64_t* column) {
    const float* row[kRows];
    float power[kRows];
    Floats left[kRows] = {}, right[kRows] = {};
    for (int r = 0; r < kRows; r++) {
        row[r] = vectors + rows[r] * stride;
        power[r] = std::ldexp(1.f, -std::clamp(exponent_of(row[r], d), -126, 126));
    }
    for (int64_t j = 0; j < d; j++) {
        const Floats left_columns = simd::load(unit + j * kList);
        const Floats right_columns = simd::load(unit + j * kList + kLanes);
#pragma GCC unroll 4
        for (int r = 0; r < kRows; r++) {
            const Floats factor = simd::all(row[r][j] * power[r]);
            left[r] = simd::multiply_add(factor, left_columns, left[r]);
            right[r] = simd::multiply_add(factor, right_columns, right[r]);
        }
    }
    for (int r = 0; r < kRows; r++) {
        largest[r] = simd::largest(simd::larger(left[r], right[r]));
        const Floats best = simd::all(largest[r]);
        const uint64_t equal =
            simd::at_least(left[r], best) | uint64_t(simd::at_least(right[r], best)) << kLanes;
        column[r] = __builtin_ctzll(equal);
    }
}

// Ranking: computes all scores in single precision and compares them with those of a few targets.

constexpr int kRankItems = 2 * kLanes;  // two registers, so that a block of items stays in the cache
constexpr int kRankUsers = simd::kRegisters == 32 ? 12 : 6;  // in a group
constexpr int kRankGroups = 32;  // in a piece of work

// A score summed like those of `products`: from the first dimension to the last, rounded each time.
float product(const float* a, const float* b, int64_t d) {
    float sum = 0;
    for (int64_t j = 0; j < d; j++) sum = std::fma(a[j], b[j], sum);
    return sum;
}

// The scores of a group of users (d, kRankUsers) for a block of items (d, kRankItems).
void products(const float* item, const float* user, int64_t d, float (*sums)[kRankItems]) {
    Floats left[kRankUsers], right[kRankUsers];
#pragma GCC unroll 12
    for (int u = 0; u < kRankUsers; u++) left[u] = right[u] = Floats{};
    for (int64_t j = 0; j < d; j++, item += kRankItems, user += kRankUsers) {
        const Floats first = simd::load(item), second = simd::load(item + kLanes);
#pragma GCC unroll 12
        for (int u = 0; u < kRankUsers; u++) {
            const Floats by = simd::all(user[u]);
            left[u] = simd::multiply_add(first, by, left[u]);
            right[u] = simd::multiply_add(second, by, right[u]);
        }
    }
#pragma GCC unroll 12
    for (int u = 0; u < kRankUsers; u++) {
        simd::store(sums[u], left[u]);
        simd::store(sums[u] + kLanes, right[u]);
    }
}

// A held-out item of a user: its score, and how many items are above it or equal to it. NaN is
// above everything, and everything is above NaN.
struct Target {
    double score;
    int64_t row, above = 0, equal = 0, equal_before = 0;

    void add(const float* scores, int64_t first, uint32_t exists) {
        const Floats own = simd::all(float(score));
        const Floats left = simd::load(scores), right = simd::load(scores + kLanes);
        const auto both = [](Mask one, Mask two) { return one | two << kLanes; };
        const uint32_t no_more = both(simd::at_least(own, left), simd::at_least(own, right));
        const uint32_t no_less = both(simd::at_least(left, own), simd::at_least(right, own));
        const uint32_t more = ~no_more, same = no_more & no_less;
        above += __builtin_popcount(more & exists);
        if (same & exists) {
            equal += __builtin_popcount(same & exists);
            const int64_t before = std::clamp<int64_t>(row - first, 0, kRankItems);
            equal_before += __builtin_popcountll(same & exists & ((uint64_t(1) << before) - 1));
        }
    }

    // Counts an item, or removes it from the counts if `times` is -1.
    void count(double item_score, int64_t item_row, int64_t times) {
        above += times * !(item_score <= score);
        equal += times * (item_score == score);
        equal_before += times * (item_score == score && item_row < row);
    }
};

struct Ranker {
    std::vector<float> memory, vectors;
    std::vector<std::vector<Target>> targets{size_t(kRankUsers) * kRankGroups};

    // Ranks one user's targets in double precision, if single precision would overflow or vanish.
    void run_wide(const float* items, int64_t n, int64_t d, const float* user, int64_t u) {
        for (Target& target : targets[u])
            target = {dot(items + target.row * d, user, int(d)), target.row};
        for (int64_t row = 0; row < n; row++) {
            const double item_score = dot(items + row * d, user, int(d));
            for (Target& target : targets[u]) target.count(item_score, row, 1);
        }
    }

    void run(const float* items, int64_t n, int64_t d, const float* users, int64_t count,
             const int64_t* target_offsets, const int64_t* target_rows) {
        memory.resize(d * kRankItems + 16);
        float* block = memory.data() + (64 - reinterpret_cast<uintptr_t>(memory.data()) % 64) / 4;
        vectors.assign(targets.size() * d, 0);
        for (int64_t u = 0; u < count; u++) {
            float* group = vectors.data() + u / kRankUsers * kRankUsers * d;
            for (int64_t j = 0; j < d; j++)
                group[j * kRankUsers + u % kRankUsers] = users[u * d + j];
            targets[u].clear();
            for (int64_t t = target_offsets[u]; t < target_offsets[u + 1]; t++) {
                const int64_t row = target_rows[t];
                targets[u].push_back({product(items + row * d, users + u * d, d), row});
            }
        }
        for (int64_t first = 0; first < n; first += kRankItems) {
            const int64_t size = std::min<int64_t>(kRankItems, n - first);
            for (int64_t i = 0; i < kRankItems; i++) {
                const float* item = items + (first + std::min(i, size - 1)) * d;
                for (int64_t j = 0; j < d; j++) block[j * kRankItems + i] = item[j];
            }
            const uint32_t exists = uint32_t((uint64_t(1) << size) - 1);
            alignas(64) float sums[kRankUsers][kRankItems];
            for (int64_t u = 0; u < count; u += kRankUsers) {
                products(block, vectors.data() + u * d, d, sums);
                for (int64_t i = 0; i < std::min<int64_t>(kRankUsers, count - u); i++)
                    for (Target& target : targets[u + i]) target.add(sums[i], first, exists);
            }
        }
    }
};

}  // namespace

extern "C" {

// Rounds (count, d) vectors at positions from `first` on, centred, rotated and divided by
// 2^exponent, to bytes. first: a multiple of 64. unavailable (count,): which items are. The others
// are whole arrays of `Items`.
void visrec_pack(const double* rotated, const uint8_t* unavailable, int64_t first, int64_t count,
                 int64_t d, int64_t lead, int64_t rest_bytes, uint8_t* packed, float* scale,
                 float* bounds, uint8_t* rest, float* rest_scale, float* rest_length) {
    const int64_t quads = quads_of(lead), rest_width = d - lead;
    std::vector<int8_t> item_bytes(std::max(lead, rest_width));
    std::vector<int64_t> to(lead);  // where in a tile the bytes of a dimension begin
    for (int64_t j = 0; j < lead; j++) {
        const int byte = byte_of(int(j), int(quads));
        to[j] = byte / 4 * kTile * 4 + byte % 4;
    }
    const auto add_offset = [&] {
        for (int8_t& byte : item_bytes) byte = int8_t(byte + simd::kItemOffset);
    };
    double length, rounding;
    for (int64_t i = first; i < first + count; i++) {
        if (unavailable[i - first]) continue;
        const double* vector = rotated + (i - first) * d;
        float* bound = bounds + i / kItems * 4;
        scale[i] = step_of(vector, int(lead), 127, FLT_MIN);
        round_to_bytes(vector, int(lead), scale[i], item_bytes.data(), &length, &rounding);
        bound[0] = std::max(bound[0], float(rounding * (1 + kSlack)));
        bound[1] = std::max(bound[1], float((length + rounding) * (1 + kSlack)));
        uint8_t* tile = packed + i / kTile * kTile * 4 * quads + i % kTile * 4;
        add_offset();
        for (int64_t j = 0; j < lead; j++) tile[to[j]] = uint8_t(item_bytes[j]);
        if (!rest_bytes) continue;
        rest_scale[i] = step_of(vector + lead, int(rest_width), 127, FLT_MIN);
        round_to_bytes(vector + lead, int(rest_width), rest_scale[i], item_bytes.data(), &length,
                       &rounding);
        rest_length[i] = float((length + rounding) * rest_scale[i] * (1 + kSlack));
        bound[2] = std::max(bound[2], float(rounding * rest_scale[i] * (1 + kSlack)));
        bound[3] = std::max(bound[3], rest_length[i]);
        add_offset();
        std::memcpy(rest + i * rest_bytes, item_bytes.data(), size_t(rest_width));
    }
}

// The k best items of b users (b, d): rows and scores (b, k), best first, -1 and -inf behind the
// last. offsets (b + 1) and excluded: each user's excluded positions, sorted. The others are those of
// `Items`.
void visrec_top_k(const float* vectors, const int32_t* item_rows, const uint8_t* packed,
                  const float* scale, const float* bounds, const uint8_t* rest,
                  const float* rest_scale, const float* rest_length, const double* mean,
                  const double* user_rotation, int64_t n, int64_t d, int64_t lead,
                  int64_t rest_bytes, int64_t exponent, const float* users, int64_t b,
                  const int64_t* offsets, const int64_t* excluded, int64_t k, int64_t threads,
                  int64_t* rows, float* scores) {
    const Items items{vectors,        item_rows,       packed,
                      scale,          bounds,          rest,
                      rest_scale,     rest_length,     mean,
                      user_rotation,  n,               (n + kItems - 1) / kItems,
                      int(d),         int(lead),       quads_of(lead),
                      int(rest_bytes), int(exponent)};
    // Pieces are of equal size, up to rounding, and none is larger than a worker's memory.
    const int64_t max_users = int64_t(kUsers) * kGroups;
    const int64_t pieces = std::max<int64_t>((b + max_users - 1) / max_users, 1);
    in_threads(threads, pieces, [&](auto next) {
        Worker worker;
        for (int64_t piece; (piece = next()) < pieces;) {
            const int64_t first = piece * b / pieces, count = (piece + 1) * b / pieces - first;
            worker.run(items, users + first * d, count, offsets + first, excluded, int(k),
                       rows + first * k, scores + first * k);
        }
    });
}

// For each of (b, k) rows, the row of the user's list with the largest cosine. Ties go to the one
// that comes first in the list. The result is -1 for an empty list and for rows of -1, which must
// come last. stride: floats from one vector to the next, of which the first d are its numbers.
void visrec_nearest(const float* vectors, int64_t stride, int64_t d, const int64_t* rows,
                    int64_t b, int64_t k, const int64_t* offsets, const int64_t* lists,
                    int64_t threads, int64_t* nearest) {
    in_threads(threads, b, [&](auto next) {
        std::vector<float> memory(d * kList + 16);
        float* unit = memory.data() + (64 - reinterpret_cast<uintptr_t>(memory.data()) % 64) / 4;
        std::vector<float> best(k);
        for (int64_t u; (u = next()) < b;) {
            const int64_t* wanted = rows + u * k;
            const int64_t num_wanted = std::find(wanted, wanted + k, -1) - wanted;
            std::fill(best.begin(), best.end(), -INFINITY);
            std::fill(nearest + u * k, nearest + (u + 1) * k, -1);
            for (int64_t one = offsets[u]; one < offsets[u + 1]; one += kList) {
                const int64_t count = std::min<int64_t>(kList, offsets[u + 1] - one);
                gather_columns(vectors, stride, d, lists + one, count, unit);
                for (int64_t position = 0; position < num_wanted; position += kRows) {
                    int64_t four[kRows], column[kRows];
                    float largest[kRows];
                    for (int r = 0; r < kRows; r++) {
                        four[r] = wanted[std::min(position + r, num_wanted - 1)];
                        const int64_t ahead = std::min(position + r + kRows, num_wanted - 1);
                        fetch(vectors + wanted[ahead] * stride, d);
                    }
                    nearest_column(vectors, stride, d, four, unit, largest, column);
                    for (int r = 0; r < kRows && position + r < num_wanted; r++)
                        if (largest[r] > best[position + r]) {
                            best[position + r] = largest[r];
                            nearest[u * k + position + r] = lists[one + column[r]];
                        }
                }
            }
        }
    });
}

// Ranks the targets of b users among all items but those of the user's profile. above: how many
// items have a higher score, or an equal one and a lower row; others_above and others_equal: how
// many items that are not targets have a higher or an equal score. No target may be in the profile.
// wide (b): users whose scores are computed in double precision.
void visrec_rank(const float* vectors, int64_t n, int64_t d, const float* users, int64_t b,
                 const int64_t* profile_offsets, const int64_t* profiles,
                 const int64_t* target_offsets, const int64_t* targets, const uint8_t* wide,
                 int64_t threads, int64_t* above, int64_t* others_above, int64_t* others_equal) {
    // As many users as possible share a block of items, but every thread gets some.
    const int64_t max_users = int64_t(kRankUsers) * kRankGroups;
    const int64_t pieces =
        std::max({(b + max_users - 1) / max_users, std::min(threads, b), int64_t(1)});
    in_threads(threads, pieces, [&](auto next) {
        Ranker ranker;
        std::vector<int64_t> profile;
        for (int64_t piece; (piece = next()) < pieces;) {
            const int64_t first = piece * b / pieces, count = (piece + 1) * b / pieces - first;
            ranker.run(vectors, n, d, users + first * d, count, target_offsets + first, targets);
            for (int64_t u = 0; u < count; u++) {
                std::vector<Target>& user_targets = ranker.targets[u];
                const float* user = users + (first + u) * d;
                if (wide[first + u]) ranker.run_wide(vectors, n, d, user, u);
                profile.assign(profiles + profile_offsets[first + u],
                               profiles + profile_offsets[first + u + 1]);
                std::sort(profile.begin(), profile.end());
                profile.erase(std::unique(profile.begin(), profile.end()), profile.end());
                for (const int64_t row : profile) {
                    const float* item = vectors + row * d;
                    const double item_score =
                        wide[first + u] ? dot(item, user, int(d)) : product(item, user, d);
                    for (Target& target : user_targets) target.count(item_score, row, -1);
                }
                int64_t position = target_offsets[first + u];
                for (const Target& target : user_targets) {
                    Target others = target;
                    for (const Target& each : user_targets) others.count(each.score, each.row, -1);
                    const bool above_itself = std::isnan(target.score);
                    above[position] = target.above + target.equal_before - above_itself;
                    others_above[position] = others.above;
                    others_equal[position++] = others.equal;
                }
            }
        }
    });
}
}
