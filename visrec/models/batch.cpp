// The parts of a training step that are no matrix products: z-scored features with dropout, and
// pools. For processors with AVX-512.
//
// Each thread has its own rows or columns, so results do not depend on the number of threads.

#include <immintrin.h>

#include <algorithm>
#include <cstdint>
#include <system_error>
#include <thread>
#include <vector>

#if !defined(__AVX512F__) || !defined(__AVX512BW__) || !defined(__AVX512DQ__)
#error "this processor has no AVX-512"
#endif

namespace {

// Splits 0 to n between threads. If the system refuses a thread, this one does the rest of the
// work.
template <typename Work>
void share(int64_t n, int64_t threads, const Work& work) {
    threads = std::max<int64_t>(1, std::min(threads, n));
    const auto edge = [&](int64_t t) { return n * t / threads; };
    std::vector<std::thread> others;
    int64_t own = 1;
    try {
        for (int64_t t = 1; t < threads; t++, own++)
            others.emplace_back([&work, from = edge(t), to = edge(t + 1)] { work(from, to); });
    } catch (const std::system_error&) {
        work(edge(own), n);
    }
    work(0, edge(1));
    for (auto& other : others) other.join();
}

// The finalizer of splitmix64 (Steele et al. 2014); the same as
// `visrec.models.splitmix.splitmix64`.
inline uint64_t mixed(uint64_t v) {
    v = (v ^ (v >> 30)) * 0xBF58476D1CE4E5B9ull;
    v = (v ^ (v >> 27)) * 0x94D049BB133111EBull;
    return v ^ (v >> 31);
}

}  // namespace

extern "C" {

// scaled (m, d) = (feature - mean) * factor, or 0 where the feature's byte is below `zeroed`. Byte
// j of item i is byte j % 8 of mixed(mixed((i + 1) ^ seed) + j / 8). feature (m, d) is in half
// precision.
void visrec_scaled(const uint16_t* feature, int64_t m, int64_t d, const float* mean,
                   const float* factor, const int64_t* item, uint64_t seed, int64_t zeroed,
                   int64_t threads, float* scaled) {
    const __m128i least = _mm_set1_epi8(char(uint8_t(zeroed)));
    share(m, threads, [&](int64_t from, int64_t to) {
        std::vector<uint64_t> word((d + 15) / 16 * 2);
        const auto* byte = reinterpret_cast<const uint8_t*>(word.data());
        for (int64_t i = from; i < to; i++) {
            if (zeroed) {
                const uint64_t own = mixed(uint64_t(item[i] + 1) ^ seed);
                for (size_t w = 0; w < word.size(); w++) word[w] = mixed(own + w);
            }
            for (int64_t j = 0; j < d; j += 16) {
                const __mmask16 here = d - j >= 16 ? 0xffff : __mmask16((1u << (d - j)) - 1);
                __mmask16 kept = here;
                if (zeroed) {
                    const auto drawn = _mm_loadu_si128(reinterpret_cast<const __m128i*>(byte + j));
                    kept &= _mm_cmpge_epu8_mask(drawn, least);
                }
                const auto half = _mm256_maskz_loadu_epi16(here, feature + i * d + j);
                const auto is = _mm512_sub_ps(_mm512_cvtph_ps(half),
                                              _mm512_maskz_loadu_ps(here, mean + j));
                const auto by = _mm512_maskz_loadu_ps(here, factor + j);
                _mm512_mask_storeu_ps(scaled + i * d + j, here, _mm512_maskz_mul_ps(kept, is, by));
            }
        }
    });
}

// pooled (b, 2 d): the maxima of each list's rows, followed by their means; 0 for an empty list.
// best (b, d): the row of each maximum, the first one in case of ties; -1 for an empty list.
void visrec_pool(const float* vectors, int64_t d, const int64_t* offsets, const int64_t* values,
                 int64_t b, int64_t threads, float* pooled, int32_t* best) {
    share(b, threads, [&](int64_t from, int64_t to) {
        for (int64_t list = from; list < to; list++) {
            float* most = pooled + list * 2 * d;
            float* mean = most + d;
            int32_t* of = best + list * d;
            const int64_t begin = offsets[list], end = offsets[list + 1];
            if (begin == end) {
                std::fill(most, mean + d, 0.f);
                std::fill(of, of + d, -1);
                continue;
            }
            const float* first = vectors + values[begin] * d;
            std::copy(first, first + d, most);
            std::copy(first, first + d, mean);
            std::fill(of, of + d, int32_t(values[begin]));
            for (int64_t v = begin + 1; v < end; v++) {
                const float* row = vectors + values[v] * d;
                const int32_t at = int32_t(values[v]);
                for (int64_t j = 0; j < d; j++) {
                    of[j] = row[j] > most[j] ? at : of[j];
                    most[j] = row[j] > most[j] ? row[j] : most[j];
                    mean[j] += row[j];
                }
            }
            const float share = 1.f / float(end - begin);
            for (int64_t j = 0; j < d; j++) mean[j] *= share;
        }
    });
}

// The backward pass of visrec_pool. gradient (m, d) must be zero before. Each thread has its
// columns.
void visrec_pool_back(const float* of_pooled, const int32_t* best, const int64_t* offsets,
                      const int64_t* values, int64_t b, int64_t d, int64_t threads,
                      float* gradient) {
    share(d, threads, [&](int64_t from, int64_t to) {
        for (int64_t list = 0; list < b; list++) {
            const int64_t begin = offsets[list], end = offsets[list + 1];
            if (begin == end) continue;
            const float* most = of_pooled + list * 2 * d;
            const float* mean = most + d;
            const int32_t* of = best + list * d;
            const float share = 1.f / float(end - begin);
            for (int64_t v = begin; v < end; v++) {
                float* row = gradient + values[v] * d;
                for (int64_t j = from; j < to; j++) row[j] += mean[j] * share;
            }
            for (int64_t j = from; j < to; j++) gradient[of[j] * d + j] += most[j];
        }
    });
}

}
