// The exact k best items of many users by dot product, for processors with AVX-512 VNNI.
//
// All items are first scored with vectors of 8-bit integers, four multiplications per lane and
// instruction. For every pair, Cauchy-Schwarz bounds the effect of the rounding: with u = u' + du
// and i = i' + di,
//
//     |u . i - u' . i'|  <=  |u'| |di| + |du| |i|
//
// so an item whose upper bound is below the k-th highest lower bound is not among the k best. The
// remaining items, a few hundred, are scored in double precision. No result depends on which users
// are searched for together, nor on the number of threads.
//
// Memory does not depend on the scores. If so many items are alike that their bounds cannot tell
// them apart, the items seen so far are scored exactly, the k best of them are kept, and the search
// continues. This is exact, because items come in the order of their rows, so that a later one with
// an equal score is no better.
//
// The mean of all items is subtracted from the items before they are rounded. It adds the same
// amount to all scores of a user, and what remains is smaller. Vectors are first divided by a power
// of two, all items by the same one and each user by their own, so that no bound overflows or
// vanishes, whatever finite numbers the vectors hold. Items are stored in blocks of 64: for each
// group of four dimensions, four bytes of each of the 64 items. The items' bytes are 128 too high,
// because the instruction multiplies unsigned by signed bytes; the accumulators start with the
// correction.

#include <immintrin.h>

#include <algorithm>
#include <atomic>
#include <cfloat>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <functional>
#include <system_error>
#include <thread>
#include <utility>
#include <vector>

#if !defined(__AVX512F__) || !defined(__AVX512BW__) || !defined(__AVX512VL__) || \
    !defined(__AVX512VNNI__)
#error "this processor has no AVX-512 VNNI"
#endif

namespace {

constexpr int kItems = 64;    // in a block: four registers of 16
constexpr int kUsers = 6;     // in a group: 24 accumulators and their operands fill 32 registers
constexpr int kGroups = 16;   // in a piece of work: 96 users share each read of the items
constexpr int kGrowth = 8;    // factor by which a search's buffer may grow; a power of 2
constexpr int kHalvings = 16; // steps of the bisection for the k-th bound
constexpr float kSlack = 1e-5f;  // times |u| |i|: more than all single-precision errors
constexpr double kRounded = 0x1p-22;  // times a score: closer scores may round to the same
                                      // single-precision number; then the lower row is better
constexpr double kTiny = 2. * FLT_TRUE_MIN;  // the same for scores near zero

struct Items {
    const float* vectors;   // (n, d)
    const uint8_t* packed;  // (blocks, quads, 64, 4)
    const float* scale;     // (blocks * 64,) a byte step, in 2^exponent; NaN: unavailable
    const float* bounds;    // (blocks, 2) the largest |di| and |i| of a block, in byte steps
    const double* mean;     // (d,)
    int64_t n, blocks;
    int d, quads, exponent;
};

struct User {
    int32_t offset;          // minus what the 128 in every byte of an item adds
    float length, rounding;  // |u'| and |du| with the slack, in byte steps
};

// The exponent of the power of two that a vector is divided by: its largest entry is then below 1.
int exponent_of(const float* vector, int64_t count) {
    // Without the sign, the bits of finite numbers compare like the numbers.
    uint32_t largest_bits = 0;
    for (int64_t j = 0; j < count; j++) {
        uint32_t bits;
        std::memcpy(&bits, vector + j, 4);
        largest_bits = std::max(largest_bits, bits & 0x7fffffffu);
    }
    float largest;
    std::memcpy(&largest, &largest_bits, 4);
    int exponent = 0;
    std::frexp(largest, &exponent);
    return exponent;
}

// Rounds a vector to bytes; returns its scale, and |v'| and |dv| in units of that scale.
float round_to_bytes(const double* vector, int d, int8_t* bytes, double* length, double* rounding) {
    const auto lanes = [&](int j) { return __mmask8(d - j < 8 ? (1u << (d - j)) - 1 : 0xff); };
    __m512d largest = _mm512_setzero_pd();
    for (int j = 0; j < d; j += 8)
        largest =
            _mm512_max_pd(largest, _mm512_abs_pd(_mm512_maskz_loadu_pd(lanes(j), vector + j)));
    const float scale = std::max(float(_mm512_reduce_max_pd(largest) / 127), FLT_MIN);
    const __m512d inverse = _mm512_set1_pd(1. / scale), end = _mm512_set1_pd(127);
    __m512d squares = _mm512_setzero_pd(), remainders = squares;
    for (int j = 0; j < d; j += 8) {
        const __m512d value = _mm512_maskz_loadu_pd(lanes(j), vector + j) * inverse;
        const __m512d nearest =
            _mm512_max_pd(-end, _mm512_min_pd(end, _mm512_roundscale_pd(value, 8)));
        squares += nearest * nearest;
        remainders += (value - nearest) * (value - nearest);
        _mm256_mask_cvtepi32_storeu_epi8(bytes + j, lanes(j), _mm512_cvtpd_epi32(nearest));
    }
    *length = std::sqrt(_mm512_reduce_add_pd(squares));
    *rounding = std::sqrt(_mm512_reduce_add_pd(remainders));
    return scale;
}

// Prefetches a vector while others are processed.
void fetch(const float* vector, int64_t d) {
    for (int64_t j = 0; j < d; j += 16) _mm_prefetch(vector + j, _MM_HINT_T0);
}

// The order of the summation is part of the result. A product of two floats is exact in a double.
double dot(const float* a, const float* b, int d) {
    double sums[16] = {};
    int j = 0;
    for (; j + 16 <= d; j += 16)
        for (int lane = 0; lane < 16; lane++) sums[lane] += double(a[j + lane]) * b[j + lane];
    for (; j < d; j++) sums[j % 16] += double(a[j]) * b[j];
    for (int half = 8; half; half /= 2)
        for (int lane = 0; lane < half; lane++) sums[lane] += sums[lane + half];
    return sums[0];
}

struct Scored {
    float score;
    int32_t row;
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
double rounds_to(float score) { return score - kRounded * std::fabs(score) - kTiny; }

// One user's search: the items that may be among the best, with bounds of their scores in units of
// the user's scale.
struct Search {
    std::vector<float> high, low;
    std::vector<int32_t> item;
    size_t size, full, max_size;
    float least;   // at least k items have a lower bound of this or more
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
        least = -INFINITY;
        reserve();
    }

    void reserve() {  // room for one more block than a full buffer, and for one more register
        for (auto* array : {&high, &low}) array->resize(full + kItems + 16);
        item.resize(full + kItems + 16);
    }

    // Makes room if pruning has left more than half, because bounds are coarse or items are alike.
    void make_room(const Items& items, int k, std::vector<uint64_t>& ranked) {
        if (2 * size <= full) return;
        if (full == max_size) return keep_best(items, k, ranked);
        full *= 2;
        reserve();
    }

    void note(__mmask16 passed, __m512 highs, __m512 lows, __m512i items) {
        _mm512_storeu_ps(high.data() + size, _mm512_maskz_compress_ps(passed, highs));
        _mm512_storeu_ps(low.data() + size, _mm512_maskz_compress_ps(passed, lows));
        _mm512_storeu_si512(item.data() + size, _mm512_maskz_compress_epi32(passed, items));
        size += size_t(__builtin_popcount(passed));
    }

    // Drops excluded items and items that cannot be among the k best.
    void prune(int k) {
        mark_excluded();
        if (size > size_t(k)) least = std::max(least, bound(k) - margin);
        const __m512 worst = _mm512_set1_ps(least);
        size_t seen = 0;
        std::swap(seen, size);
        for (size_t one = 0; one < seen; one += 16) {
            const __m512 highs = _mm512_loadu_ps(high.data() + one);
            note(_mm512_cmp_ps_mask(highs, worst, _CMP_GE_OQ) & found(highs) & first(seen - one),
                 highs, _mm512_loadu_ps(low.data() + one), _mm512_loadu_si512(item.data() + one));
        }
    }

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
        ranked.resize(size);
        for (size_t one = 0; one < size; one++)
            ranked[one] = rank_of({exact(items, item[one]), item[one]});
        std::nth_element(ranked.begin(), ranked.begin() + (k - 1), ranked.end(), std::greater<>());
        const Scored last = item_of(ranked[size_t(k) - 1]);
        // The items that are kept stay in the order of their rows.
        ranked.resize(size_t(k));
        std::sort(ranked.begin(), ranked.end(), [](uint64_t a, uint64_t b) {
            return uint32_t(a) > uint32_t(b);
        });
        size_t from = 0;
        for (size_t to = 0; to < size_t(k); to++, from++) {
            while (item[from] != item_of(ranked[to]).row) from++;
            high[to] = high[from], low[to] = low[from], item[to] = item[from];
        }
        size = size_t(k);
        // Later items have higher rows, so they need a better score. A score that overflows cannot
        // be compared.
        if (std::isfinite(last.score)) {
            const float worst = float((rounds_to(last.score) - base) / unit);
            least = std::max(least, std::nextafter(worst, -INFINITY));
        }
    }

    float exact(const Items& items, int64_t row) const {
        return float(dot(vector, items.vectors + row * items.d, items.d));
    }

    // A number that at least k of the lower bounds reach, but few more than k.
    float bound(int k) const {
        float from = INFINITY, to = -INFINITY;
        size_t count = 0;
        for (size_t one = 0; one < size; one += 16) {
            const __m512 lows = _mm512_loadu_ps(low.data() + one);
            const __mmask16 these = first(size - one) & found(lows);
            from = std::min(from, _mm512_mask_reduce_min_ps(these, lows));
            to = std::max(to, _mm512_mask_reduce_max_ps(these, lows));
            count += size_t(__builtin_popcount(these));
        }
        if (count < size_t(k)) return -INFINITY;
        for (int halving = 0; halving < kHalvings && from < to; halving++) {
            const float middle = from + (to - from) / 2;
            const __m512 middles = _mm512_set1_ps(middle);
            size_t above = 0;
            for (size_t one = 0; one < size; one += 16)
                above += size_t(__builtin_popcount(
                    _mm512_cmp_ps_mask(_mm512_loadu_ps(low.data() + one), middles, _CMP_GE_OQ) &
                    first(size - one)));
            if (above >= size_t(k)) from = middle;
            else to = middle;
            if (above == size_t(k)) break;
        }
        return from;
    }

    static __mmask16 found(__m512 bounds) {  // excluded items have -inf
        return _mm512_cmp_ps_mask(bounds, _mm512_set1_ps(-INFINITY), _CMP_GT_OQ);
    }

    static __mmask16 first(size_t count) {
        return count < 16 ? __mmask16((1u << count) - 1) : __mmask16(0xffff);
    }
};

// The integer scores of a group of users for a block of items.
void multiply(const uint8_t* item, const int8_t* bytes, int quads, const int32_t* offsets,
              int32_t (*sums)[kItems]) {
    const int32_t* user = reinterpret_cast<const int32_t*>(bytes);
    // Accumulators are named variables, because an array of them would be kept in memory.
#define EACH_USER(DO) DO(0) DO(1) DO(2) DO(3) DO(4) DO(5)
#define BEGIN(U) \
    __m512i a##U = _mm512_set1_epi32(offsets[U]), b##U = a##U, c##U = a##U, d##U = a##U;
#define ADD(U)                                      \
    four = _mm512_set1_epi32(user[U]);              \
    a##U = _mm512_dpbusd_epi32(a##U, first, four);  \
    b##U = _mm512_dpbusd_epi32(b##U, second, four); \
    c##U = _mm512_dpbusd_epi32(c##U, third, four);  \
    d##U = _mm512_dpbusd_epi32(d##U, fourth, four);
#define END(U)                              \
    _mm512_store_si512(sums[U], a##U);      \
    _mm512_store_si512(sums[U] + 16, b##U); \
    _mm512_store_si512(sums[U] + 32, c##U); \
    _mm512_store_si512(sums[U] + 48, d##U);
    EACH_USER(BEGIN)
    for (int q = 0; q < quads; q++, item += kItems * 4, user += kUsers) {
        const __m512i first = _mm512_load_si512(item), second = _mm512_load_si512(item + 64),
                      third = _mm512_load_si512(item + 128), fourth = _mm512_load_si512(item + 192);
        __m512i four;
        EACH_USER(ADD)
    }
    EACH_USER(END)
#undef EACH_USER
#undef BEGIN
#undef ADD
#undef END
}

// Scores one block of items for one group of users; notes the items that may be among the best.
void score_block(const Items& items, int64_t block, const int8_t* bytes, const User* users,
                 int count, Search* searches, int k, std::vector<uint64_t>& ranked) {
    // The largest error that rounding can have caused is added to all scores of a block.
    int32_t error[kUsers], offsets[kUsers];
    for (int u = 0; u < kUsers; u++) {
        const float* bound = items.bounds + 2 * block;
        error[u] = int32_t(users[u].length * bound[0] + users[u].rounding * bound[1]) + 1;
        offsets[u] = users[u].offset + error[u];
    }
    alignas(64) int32_t sums[kUsers][kItems];
    multiply(items.packed + block * items.quads * kItems * 4, bytes, items.quads, offsets, sums);
    const float* scale = items.scale + block * kItems;
    for (int u = 0; u < count; u++) {
        Search& search = searches[u];
        const __m512 least = _mm512_set1_ps(search.least);
        __m512 high[4];
        __mmask16 passed[4];
        for (int r = 0; r < 4; r++) {
            const __m512i sum = _mm512_load_si512(sums[u] + 16 * r);
            high[r] = _mm512_mul_ps(_mm512_cvtepi32_ps(sum), _mm512_load_ps(scale + 16 * r));
            passed[r] = _mm512_cmp_ps_mask(high[r], least, _CMP_GE_OQ);
        }
        if (!(passed[0] | passed[1] | passed[2] | passed[3])) continue;
        const __m512 twice = _mm512_set1_ps(-2.f * float(error[u]));
        __m512i row = _mm512_add_epi32(
            _mm512_set1_epi32(int32_t(block * kItems)),
            _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15));
        for (int r = 0; r < 4; r++, row = _mm512_add_epi32(row, _mm512_set1_epi32(16)))
            if (passed[r]) {
                const __m512 low = _mm512_fmadd_ps(twice, _mm512_load_ps(scale + 16 * r), high[r]);
                search.note(passed[r], high[r], low, row);
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
    std::vector<int8_t> bytes, user_bytes;
    std::vector<double> wide;
    std::vector<Scored> remaining;
    std::vector<uint64_t> ranked;

    void run(const Items& items, const float* vectors, int64_t count, const int64_t* offsets,
             const int64_t* excluded, int k, int64_t* rows, float* scores) {
        const int width = 4 * items.quads;
        users.assign(searches.size(), User{});
        bytes.assign(searches.size() * width, 0);
        user_bytes.assign(width, 0);
        for (int64_t u = 0; u < count; u++) {
            const float* vector = vectors + u * items.d;
            wide.assign(vector, vector + items.d);
            const int exponent = exponent_of(vector, items.d);
            for (double& entry : wide) entry *= std::ldexp(1., -exponent);
            double length, rounding;
            User& user = users[u];
            const float scale =
                round_to_bytes(wide.data(), items.d, user_bytes.data(), &length, &rounding);
            user.length = float(length);
            user.rounding = float(rounding + kSlack * (length + rounding));
            for (int j = 0; j < items.d; j++) user.offset -= 128 * user_bytes[j];
            int8_t* group = bytes.data() + u / kUsers * kUsers * width;
            for (int q = 0; q < items.quads; q++)
                std::memcpy(group + (q * kUsers + u % kUsers) * 4, user_bytes.data() + 4 * q, 4);
            double base = 0;
            for (int j = 0; j < items.d; j++) base += vector[j] * items.mean[j];
            const int64_t capacity = std::min<int64_t>(4 * int64_t(k), items.n) + 256;
            searches[u].start(capacity, std::ldexp(double(scale), exponent + items.exponent), base,
                              vector, excluded + offsets[u], excluded + offsets[u + 1]);
        }
        const int64_t size = items.quads * kItems * 4, share = (size / kGroups + 63) / 64 * 64;
        for (int64_t block = 0; block < items.blocks; block++)
            for (int64_t u = 0; u < count; u += kUsers) {
                // Prefetches part of the next block while this one is multiplied.
                const uint8_t* coming = items.packed + (block + 1) * size + u / kUsers * share;
                for (int64_t j = 0; j < share; j += 64) _mm_prefetch(coming + j, _MM_HINT_T0);
                score_block(items, block, bytes.data() + u * width, users.data() + u,
                            int(std::min<int64_t>(kUsers, count - u)), searches.data() + u, k,
                            ranked);
            }
        for (int64_t u = 0; u < count; u++)
            finish(items, searches[u], k, rows + u * k, scores + u * k);
    }

    // Scores the remaining items in double precision, the most promising ones first.
    void finish(const Items& items, Search& search, int k, int64_t* rows, float* scores) {
        search.prune(k);
        remaining.clear(), ranked.clear();
        for (size_t one = 0; one < search.size; one++)
            remaining.push_back({search.high[one], search.item[one]});
        const size_t likely = std::min<size_t>(k, remaining.size());
        std::nth_element(remaining.begin(), remaining.begin() + likely, remaining.end(),
                         [](const Scored& a, const Scored& b) { return a.score > b.score; });
        rescore(items, search, remaining.data(), likely);
        if (likely < remaining.size()) {
            const double worst =
                rounds_to(item_of(*std::min_element(ranked.begin(), ranked.end())).score);
            const auto is_worse = [&](const Scored& one) {
                return double(one.score) * search.unit + search.base < worst;
            };
            const auto end = std::remove_if(remaining.begin() + likely, remaining.end(), is_worse);
            rescore(items, search, remaining.data() + likely, end - remaining.begin() - likely);
        }
        const size_t found = std::min<size_t>(k, ranked.size());
        std::nth_element(ranked.begin(), ranked.begin() + found, ranked.end(), std::greater<>());
        std::sort(ranked.begin(), ranked.begin() + found, std::greater<>());
        for (size_t position = 0; position < size_t(k); position++) {
            const Scored best =
                position < found ? item_of(ranked[position]) : Scored{-INFINITY, -1};
            rows[position] = best.row;
            scores[position] = best.score;
        }
    }

    void rescore(const Items& items, const Search& search, const Scored* these, size_t count) {
        const auto at = [&](size_t one) { return items.vectors + int64_t(these[one].row) * items.d; };
        constexpr size_t kAhead = 3;  // rows to prefetch ahead of the one being multiplied
        for (size_t one = 0; one < count + kAhead; one++) {
            if (one < count) fetch(at(one), items.d);
            if (one >= kAhead) {
                const int32_t row = these[one - kAhead].row;
                ranked.push_back(rank_of({search.exact(items, row), row}));
            }
        }
    }
};

constexpr int kList = 32;  // items of a user's list, in two registers
constexpr int kRows = 4;   // rows that share each read of these items

// Up to 32 vectors, scaled to length 1, as columns: (d, 32), zeros after the last.
void gather_columns(const float* vectors, int64_t d, const int64_t* list, int64_t count,
                    float* unit) {
    for (int64_t i = 0; i < count; i++) fetch(vectors + list[i] * d, d);
    std::fill(unit, unit + d * kList, 0.f);
    for (int64_t i = 0; i < count; i++) {
        const float* vector = vectors + list[i] * d;
        const double square = dot(vector, vector, int(d));
        const double inverse = square > 0 ? 1 / std::sqrt(square) : 0;
        for (int64_t j = 0; j < d; j++) unit[j * kList + i] = float(vector[j] * inverse);
    }
}

// The largest product of each of four rows with the columns, and its column. Rows are divided by
// powers of two so that no product overflows; this does not change the order of the columns.
void nearest_column(const float* vectors, int64_t d, const int64_t* rows, const float* unit,
                    int64_t count, float* largest, int64_t* column) {
    const float* row[kRows];
    float power[kRows];
    __m512 left[kRows], right[kRows];
    for (int r = 0; r < kRows; r++) {
        row[r] = vectors + rows[r] * d;
        power[r] = std::ldexp(1.f, -std::clamp(exponent_of(row[r], d), -126, 126));
        left[r] = right[r] = _mm512_setzero_ps();
    }
    for (int64_t j = 0; j < d; j++) {
        const __m512 left_columns = _mm512_load_ps(unit + j * kList);
        const __m512 right_columns = _mm512_load_ps(unit + j * kList + 16);
#pragma GCC unroll 4
        for (int r = 0; r < kRows; r++) {
            const __m512 factor = _mm512_set1_ps(row[r][j] * power[r]);
            left[r] = _mm512_fmadd_ps(factor, left_columns, left[r]);
            right[r] = _mm512_fmadd_ps(factor, right_columns, right[r]);
        }
    }
    const uint32_t exists = count < kList ? (1u << count) - 1 : ~0u;
    for (int r = 0; r < kRows; r++) {
        const __m512 no_column = _mm512_set1_ps(-INFINITY);
        const __m512 one = _mm512_mask_mov_ps(no_column, __mmask16(exists), left[r]);
        const __m512 two = _mm512_mask_mov_ps(no_column, __mmask16(exists >> 16), right[r]);
        largest[r] = _mm512_reduce_max_ps(_mm512_max_ps(one, two));
        const __m512 best = _mm512_set1_ps(largest[r]);
        const uint32_t equal = uint32_t(_mm512_cmp_ps_mask(one, best, _CMP_EQ_OQ)) |
                               uint32_t(_mm512_cmp_ps_mask(two, best, _CMP_EQ_OQ)) << 16;
        column[r] = __builtin_ctz(equal | 1u << 31);
    }
}

// Ranking: computes all scores in single precision and compares them with those of a few targets.

constexpr int kRankItems = 32;   // two registers of 16, so that a block of items stays in the cache
constexpr int kRankUsers = 12;   // in a group
constexpr int kRankGroups = 32;  // in a piece of work

// A score summed like those of `products`: from the first dimension to the last, rounded each time.
float product(const float* a, const float* b, int64_t d) {
    float sum = 0;
    for (int64_t j = 0; j < d; j++) sum = std::fma(a[j], b[j], sum);
    return sum;
}

// The scores of a group of users (d, 12) for a block of items (d, 32).
void products(const float* item, const float* user, int64_t d, float (*sums)[kRankItems]) {
#define EACH_USER(DO) \
    DO(0) DO(1) DO(2) DO(3) DO(4) DO(5) DO(6) DO(7) DO(8) DO(9) DO(10) DO(11)
#define BEGIN(U) __m512 a##U = _mm512_setzero_ps(), b##U = a##U;
#define ADD(U)                                \
    by = _mm512_set1_ps(user[U]);             \
    a##U = _mm512_fmadd_ps(first, by, a##U);  \
    b##U = _mm512_fmadd_ps(second, by, b##U);
#define END(U)                       \
    _mm512_store_ps(sums[U], a##U);  \
    _mm512_store_ps(sums[U] + 16, b##U);
    EACH_USER(BEGIN)
    for (int64_t j = 0; j < d; j++, item += kRankItems, user += kRankUsers) {
        const __m512 first = _mm512_load_ps(item), second = _mm512_load_ps(item + 16);
        __m512 by;
        EACH_USER(ADD)
    }
    EACH_USER(END)
#undef EACH_USER
#undef BEGIN
#undef ADD
#undef END
}

// A held-out item of a user: its score, and how many items are above it or equal to it. NaN is
// above everything, and everything is above NaN.
struct Target {
    double score;
    int64_t row, above = 0, equal = 0, equal_before = 0;

    void add(const float* scores, int64_t first, uint32_t exists) {
        const __m512 own = _mm512_set1_ps(float(score));
        const __m512 left = _mm512_load_ps(scores), right = _mm512_load_ps(scores + 16);
        const uint32_t more = uint32_t(_mm512_cmp_ps_mask(left, own, _CMP_NLE_UQ)) |
                              uint32_t(_mm512_cmp_ps_mask(right, own, _CMP_NLE_UQ)) << 16;
        const uint32_t same = uint32_t(_mm512_cmp_ps_mask(left, own, _CMP_EQ_OQ)) |
                              uint32_t(_mm512_cmp_ps_mask(right, own, _CMP_EQ_OQ)) << 16;
        above += __builtin_popcount(more & exists);
        if (same & exists) {
            equal += __builtin_popcount(same & exists);
            const int64_t before = std::min<int64_t>(std::max<int64_t>(row - first, 0), 32);
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
            const uint32_t exists = size < kRankItems ? (1u << size) - 1 : ~0u;
            alignas(64) float sums[kRankUsers][kRankItems];
            for (int64_t u = 0; u < count; u += kRankUsers) {
                products(block, vectors.data() + u * d, d, sums);
                for (int64_t i = 0; i < std::min<int64_t>(kRankUsers, count - u); i++)
                    for (Target& target : targets[u + i]) target.add(sums[i], first, exists);
            }
        }
    }
};

// Runs `work` in several threads. Each takes the next piece whenever it has finished one.
template <typename Work>
void in_threads(int64_t threads, int64_t pieces, Work work) {
    std::atomic<int64_t> next{0};
    auto take = [&] { work([&] { return next++; }); };
    std::vector<std::thread> others;
    try {
        for (int64_t t = 1; t < std::min(threads, pieces); t++) others.emplace_back(take);
    } catch (const std::system_error&) {
        // The system refuses more threads; the existing ones do the work.
    }
    take();
    for (auto& other : others) other.join();
}

}  // namespace

extern "C" {

// Rounds (n, d) vectors, divided by 2^exponent, to bytes. unavailable (n,): which items are; null
// if none is.
// packed (blocks * 64 * d, with d rounded up to a multiple of 4) and scale (blocks * 64) are
// 64-byte aligned.
void visrec_pack(const float* vectors, const uint8_t* unavailable, int64_t n, int64_t d,
                 uint8_t* packed, float* scale, float* bounds, double* mean, int32_t* exponent) {
    const int64_t quads = (d + 3) / 4, blocks = (n + kItems - 1) / kItems;
    std::fill(mean, mean + d, 0.);
    for (int64_t row = 0; row < n; row++)
        for (int64_t j = 0; j < d; j++) mean[j] += vectors[row * d + j];
    for (int64_t j = 0; j < d; j++) mean[j] /= double(n);
    *exponent = exponent_of(vectors, n * d);
    const double power = std::ldexp(1., -*exponent);
    std::vector<int8_t> item_bytes(4 * quads);
    std::vector<double> wide(d);
    for (int64_t row = 0; row < blocks * kItems; row++) {
        if (row % kItems == 0) bounds[row / kItems * 2] = bounds[row / kItems * 2 + 1] = 0;
        if (row >= n || (unavailable && unavailable[row])) {
            scale[row] = NAN;
            continue;
        }
        for (int64_t j = 0; j < d; j++) wide[j] = (vectors[row * d + j] - mean[j]) * power;
        double length, rounding;
        scale[row] = round_to_bytes(wide.data(), int(d), item_bytes.data(), &length, &rounding);
        float* bound = bounds + row / kItems * 2;
        bound[0] = std::max(bound[0], float(rounding * (1 + kSlack)));
        bound[1] = std::max(bound[1], float((length + rounding) * (1 + kSlack)));
        uint8_t* block = packed + row / kItems * kItems * 4 * quads;
        for (int64_t q = 0; q < quads; q++)
            for (int j = 0; j < 4; j++)
                block[(q * kItems + row % kItems) * 4 + j] = uint8_t(item_bytes[4 * q + j] + 128);
    }
}

// The k best items of b users (b, d): rows and scores (b, k), best first, -1 and -inf behind the
// last. offsets (b + 1) and excluded: each user's excluded rows, sorted.
void visrec_top_k(const float* vectors, const uint8_t* packed, const float* scale,
                  const float* bounds, const double* mean, int64_t n, int64_t d, int64_t exponent,
                  const float* users, int64_t b, const int64_t* offsets, const int64_t* excluded,
                  int64_t k, int64_t threads, int64_t* rows, float* scores) {
    const Items items{vectors, packed, scale, bounds,
                      mean,    n, (n + kItems - 1) / kItems, int(d), int((d + 3) / 4),
                      int(exponent)};
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
// come last.
void visrec_nearest(const float* vectors, int64_t d, const int64_t* rows, int64_t b, int64_t k,
                    const int64_t* offsets, const int64_t* lists, int64_t threads,
                    int64_t* nearest) {
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
                gather_columns(vectors, d, lists + one, count, unit);
                for (int64_t position = 0; position < num_wanted; position += kRows) {
                    int64_t four[kRows], column[kRows];
                    float largest[kRows];
                    for (int r = 0; r < kRows; r++) {
                        four[r] = wanted[std::min(position + r, num_wanted - 1)];
                        const int64_t ahead = std::min(position + r + kRows, num_wanted - 1);
                        fetch(vectors + wanted[ahead] * d, d);
                    }
                    nearest_column(vectors, d, four, unit, count, largest, column);
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
