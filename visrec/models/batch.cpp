// Two operations of a training step, for processors with AVX-512 or AVX2: z-scored features with
// dropout, and max and mean pooling. (The rest of a step is matrix products, which torch computes.)
//
// A row or column is computed by one thread, so results do not depend on the number of threads. Both
// instruction sets give the same bits.

#include "../threads.h"

#include <immintrin.h>

#include <algorithm>
#include <cstdint>
#include <vector>

#if defined(__AVX512F__) && defined(__AVX512BW__) && defined(__AVX512VL__)
#define VISREC_AVX512
#elif !defined(__AVX2__) || !defined(__F16C__)
#error "this processor has neither AVX-512 nor AVX2"
#endif

namespace {

// The finalizer of splitmix64 (Steele et al. 2014); the same as
// `visrec.models.splitmix.splitmix64`.
inline uint64_t splitmix64(uint64_t v) {
    v = (v ^ (v >> 30)) * 0xBF58476D1CE4E5B9ull;
    v = (v ^ (v >> 27)) * 0x94D049BB133111EBull;
    return v ^ (v >> 31);
}

// The first `count` of 16 features: (feature - mean) * factor, or 0 where `drawn` < `threshold`.
#ifdef VISREC_AVX512

inline void scale_16(const uint16_t* feature, const float* mean, const float* factor,
                     const uint8_t* drawn, int64_t threshold, int64_t count, float* scaled) {
    const __mmask16 exists = count >= 16 ? 0xffff : __mmask16((1u << count) - 1);
    __mmask16 kept = exists;
    if (threshold) {
        const auto drawn_16 = _mm_loadu_si128(reinterpret_cast<const __m128i*>(drawn));
        kept &= _mm_cmpge_epu8_mask(drawn_16, _mm_set1_epi8(char(uint8_t(threshold))));
    }
    const auto half = _mm256_maskz_loadu_epi16(exists, feature);
    const auto centered =
        _mm512_sub_ps(_mm512_cvtph_ps(half), _mm512_maskz_loadu_ps(exists, mean));
    const auto factors = _mm512_maskz_loadu_ps(exists, factor);
    _mm512_mask_storeu_ps(scaled, exists, _mm512_maskz_mul_ps(kept, centered, factors));
}

#else

inline void scale_16(const uint16_t* feature, const float* mean, const float* factor,
                     const uint8_t* drawn, int64_t threshold, int64_t count, float* scaled) {
    if (count < 16) {
        for (int64_t j = 0; j < count; j++) {
            const float value = (_cvtsh_ss(feature[j]) - mean[j]) * factor[j];
            scaled[j] = drawn[j] < threshold ? 0.f : value;
        }
        return;
    }
    for (int64_t j = 0; j < 16; j += 8) {
        const auto half = _mm_loadu_si128(reinterpret_cast<const __m128i*>(feature + j));
        const auto centered = _mm256_sub_ps(_mm256_cvtph_ps(half), _mm256_loadu_ps(mean + j));
        const auto value = _mm256_mul_ps(centered, _mm256_loadu_ps(factor + j));
        const auto byte = _mm_loadl_epi64(reinterpret_cast<const __m128i*>(drawn + j));
        const auto drawn_8 = _mm256_cvtepu8_epi32(byte);
        const auto dropped = _mm256_cmpgt_epi32(_mm256_set1_epi32(int(threshold)), drawn_8);
        _mm256_storeu_ps(scaled + j, _mm256_andnot_ps(_mm256_castsi256_ps(dropped), value));
    }
}

#endif

}  // namespace

extern "C" {

// scaled (m, d) = (feature - mean) * factor, or 0 where the random byte of this item and feature is
// below `threshold`. For feature j of the item in catalogue row i, this is byte j % 8 of the word
// splitmix64(splitmix64((i + 1) ^ seed) + j / 8), as in `visrec.models.dropout.drop_features`.
// feature (m, d) is in half precision.
void visrec_scaled(const uint16_t* feature, int64_t m, int64_t d, const float* mean,
                   const float* factor, const int64_t* item, uint64_t seed, int64_t threshold,
                   int64_t threads, float* scaled) {
    parallel_for(m, threads, [&](int64_t from, int64_t to) {
        std::vector<uint64_t> word((d + 15) / 16 * 2);
        const auto* byte = reinterpret_cast<const uint8_t*>(word.data());
        for (int64_t i = from; i < to; i++) {
            if (threshold) {
                const uint64_t item_hash = splitmix64(uint64_t(item[i] + 1) ^ seed);
                for (size_t w = 0; w < word.size(); w++) word[w] = splitmix64(item_hash + w);
            }
            for (int64_t j = 0; j < d; j += 16) {
                scale_16(feature + i * d + j, mean + j, factor + j, byte + j, threshold, d - j,
                         scaled + i * d + j);
            }
        }
    });
}

// pooled (b, 2 d): for each list the maxima of its rows of `vectors`, followed by their means; 0
// for an empty list. best (b, d): the row of each maximum, the first one in case of ties; -1 for
// an empty list.
void visrec_pool(const float* vectors, int64_t d, const int64_t* offsets, const int64_t* values,
                 int64_t b, int64_t threads, float* pooled, int32_t* best) {
    parallel_for(b, threads, [&](int64_t from, int64_t to) {
        for (int64_t list = from; list < to; list++) {
            float* maximum = pooled + list * 2 * d;
            float* mean = maximum + d;
            int32_t* best_row = best + list * d;
            const int64_t begin = offsets[list], end = offsets[list + 1];
            if (begin == end) {
                std::fill(maximum, mean + d, 0.f);
                std::fill(best_row, best_row + d, -1);
                continue;
            }
            const float* first = vectors + values[begin] * d;
            std::copy(first, first + d, maximum);
            std::copy(first, first + d, mean);
            std::fill(best_row, best_row + d, int32_t(values[begin]));
            for (int64_t v = begin + 1; v < end; v++) {
                const float* row = vectors + values[v] * d;
                const int32_t row_index = int32_t(values[v]);
                for (int64_t j = 0; j < d; j++) {
                    best_row[j] = row[j] > maximum[j] ? row_index : best_row[j];
                    maximum[j] = row[j] > maximum[j] ? row[j] : maximum[j];
                    mean[j] += row[j];
                }
            }
            const float weight = 1.f / float(end - begin);
            for (int64_t j = 0; j < d; j++) mean[j] *= weight;
        }
    });
}

// The backward pass of visrec_pool. gradient (m, d) must be zero at the start. Each thread
// computes some of the columns.
void visrec_pool_back(const float* pooled_gradient, const int32_t* best, const int64_t* offsets,
                      const int64_t* values, int64_t b, int64_t d, int64_t threads,
                      float* gradient) {
    parallel_for(d, threads, [&](int64_t from, int64_t to) {
        for (int64_t list = 0; list < b; list++) {
            const int64_t begin = offsets[list], end = offsets[list + 1];
            if (begin == end) continue;
            const float* max_gradient = pooled_gradient + list * 2 * d;
            const float* mean_gradient = max_gradient + d;
            const int32_t* best_row = best + list * d;
            const float weight = 1.f / float(end - begin);
            for (int64_t v = begin; v < end; v++) {
                float* row = gradient + values[v] * d;
                for (int64_t j = from; j < to; j++) row[j] += mean_gradient[j] * weight;
            }
            for (int64_t j = from; j < to; j++) gradient[best_row[j] * d + j] += max_gradient[j];
        }
    });
}

}
