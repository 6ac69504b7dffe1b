// What the kernel needs of a processor: registers of 32-bit lanes and a few instructions. The
// compiler's flags decide for which instruction set they are defined; visrec/isas.py has the flags.
//
// Registers are vectors of the compiler, which provides +, - and *.

#pragma once

#include <algorithm>
#include <cstdint>

#if defined(__x86_64__)
#include <immintrin.h>
#elif defined(__ARM_FEATURE_DOTPROD)
#include <arm_neon.h>
#endif

namespace simd {

#if defined(__AVX512BW__) && defined(__AVX512VL__)

constexpr int kLanes = 16, kRegisters = 32, kColumns = 4;
#if defined(__AVX512VNNI__)
constexpr int kUsers = 6, kQuads = 1;
#else
constexpr int kUsers = 5, kQuads = 2;
#endif

#elif defined(__AVX2__) && defined(__FMA__)

constexpr int kLanes = 8, kRegisters = 16, kColumns = 2;
#if defined(__AVXVNNI__)
constexpr int kUsers = 6, kQuads = 1;
#else
constexpr int kUsers = 4, kQuads = 2;
#endif

#elif defined(__ARM_FEATURE_DOTPROD)

constexpr int kLanes = 4, kRegisters = 32, kColumns = 4, kUsers = 6, kQuads = 1;

#else
#error "the kernel does not support this instruction set"
#endif

typedef float Floats __attribute__((vector_size(4 * kLanes)));
typedef int32_t Ints __attribute__((vector_size(4 * kLanes)));
typedef uint32_t Mask;  // one bit per lane
constexpr Mask kAll = Mask((uint64_t(1) << kLanes) - 1);

// The first `count` lanes, or all if there are fewer.
inline Mask first(int64_t count) {
    return count < kLanes ? (Mask(1) << count) - 1 : kAll;
}

template <typename Register, typename Entry>
inline Register load(const Entry* from) {
    Register loaded;
    __builtin_memcpy(&loaded, from, sizeof loaded);
    return loaded;
}
inline Floats load(const float* from) { return load<Floats>(from); }
inline Ints load(const int32_t* from) { return load<Ints>(from); }

template <typename Register, typename Entry>
inline void store(Entry* to, Register stored) {
    __builtin_memcpy(to, &stored, sizeof stored);
}

inline Floats all(float value) { return value - Floats{}; }
inline Ints all(int32_t value) { return value - Ints{}; }
inline Floats to_floats(Ints values) { return __builtin_convertvector(values, Floats); }

// The largest lane; no lane may be NaN.
inline float largest(Floats values) {
    float lanes[kLanes];
    store(lanes, values);
    for (int half = kLanes / 2; half; half /= 2)
        for (int i = 0; i < half; i++) lanes[i] = std::max(lanes[i], lanes[i + half]);
    return lanes[0];
}
inline Floats larger(Floats a, Floats b) { return a > b ? a : b; }

// dot4 multiplies the bytes of items by those of users and adds the products of each four neighbours
// to a lane. Users' bytes are within +-kUserBytes. Items' bytes are within +-127, and are stored with
// kItemOffset added, which is not 0 where the instruction multiplies unsigned by signed bytes.
//
// dot does the same for kQuads registers of items. Where no instruction adds four products, it adds
// those of two registers in 16 bits before it adds them in 32: of bytes 0, 1, 4 and 5 of each eight,
// and of the other four. There the absolute values of a user's four bytes add up to kUserFour at
// most.

#if defined(__AVX512BW__) && defined(__AVX512VL__)

// Lanes where a >= b; not those where one of them is NaN.
inline Mask at_least(Floats a, Floats b) {
    return _mm512_cmp_ps_mask(a, b, _CMP_GE_OQ);
}
inline Floats multiply_add(Floats a, Floats b, Floats c) { return _mm512_fmadd_ps(a, b, c); }
inline int32_t sum(Ints values) { return _mm512_reduce_add_epi32(__m512i(values)); }
inline void prefetch(const void* address) {
    _mm_prefetch(static_cast<const char*>(address), _MM_HINT_T0);
}

// Writes the lanes of the mask next to each other. Up to a whole register may be overwritten.
inline void compress(float* to, Mask mask, Floats values) {
    _mm512_storeu_ps(to, _mm512_maskz_compress_ps(__mmask16(mask), values));
}
inline void compress(int32_t* to, Mask mask, Ints values) {
    _mm512_storeu_si512(to, _mm512_maskz_compress_epi32(__mmask16(mask), __m512i(values)));
}

constexpr int kItemOffset = 128;
#if defined(__AVX512VNNI__)
constexpr int kUserBytes = 127;
inline Ints dot4(Ints sum, Ints items, Ints users) {
    return Ints(_mm512_dpbusd_epi32(__m512i(sum), __m512i(items), __m512i(users)));
}
#else
// Two products of at most 255 * 64 fit into 16 bits, and so do four by bytes that add up to 128, so
// that nothing saturates.
constexpr int kUserBytes = 64;
inline __m512i pairs_of(Ints items, Ints users) {
    return _mm512_maddubs_epi16(__m512i(items), __m512i(users));
}
inline Ints add_pairs(Ints sum, __m512i pairs) {
    return sum + Ints(_mm512_madd_epi16(pairs, _mm512_set1_epi16(1)));
}
inline Ints dot4(Ints sum, Ints items, Ints users) {
    return add_pairs(sum, pairs_of(items, users));
}
inline Ints dot(Ints sum, const Ints (&items)[2], const Ints (&users)[2]) {
    const __m512i first = pairs_of(items[0], users[0]), second = pairs_of(items[1], users[1]);
    return add_pairs(sum, _mm512_add_epi16(first, second));
}
#endif

#elif defined(__AVX2__)

inline Mask at_least(Floats a, Floats b) {
    return Mask(_mm256_movemask_ps(_mm256_cmp_ps(a, b, _CMP_GE_OQ)));
}
inline Floats multiply_add(Floats a, Floats b, Floats c) { return _mm256_fmadd_ps(a, b, c); }
inline int32_t sum(Ints values) {
    const __m256i lanes = __m256i(values);
    __m128i four = _mm_add_epi32(_mm256_castsi256_si128(lanes), _mm256_extracti128_si256(lanes, 1));
    four = _mm_add_epi32(four, _mm_shuffle_epi32(four, 0x4e));
    return _mm_cvtsi128_si32(_mm_add_epi32(four, _mm_shuffle_epi32(four, 0xb1)));
}
inline void prefetch(const void* address) {
    _mm_prefetch(static_cast<const char*>(address), _MM_HINT_T0);
}

// The numbers of each mask's lanes, next to each other. (pext computes them, but slowly on Zen 1
// and 2.)
struct Orders {
    uint8_t lanes[256][8] = {};
    constexpr Orders() {
        for (int mask = 0; mask < 256; mask++)
            for (int lane = 0, to = 0; lane < 8; lane++)
                if (mask >> lane & 1) lanes[mask][to++] = uint8_t(lane);
    }
};
inline constexpr Orders kOrders;
inline __m256i order_of(Mask mask) {
    const void* lanes = kOrders.lanes[mask];
    return _mm256_cvtepu8_epi32(_mm_loadl_epi64(static_cast<const __m128i*>(lanes)));
}
inline void compress(float* to, Mask mask, Floats values) {
    _mm256_storeu_ps(to, _mm256_permutevar8x32_ps(values, order_of(mask)));
}
inline void compress(int32_t* to, Mask mask, Ints values) {
    const __m256i packed = _mm256_permutevar8x32_epi32(__m256i(values), order_of(mask));
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(to), packed);
}

constexpr int kItemOffset = 128;
#if defined(__AVXVNNI__)
constexpr int kUserBytes = 127;
inline Ints dot4(Ints sum, Ints items, Ints users) {
    return Ints(_mm256_dpbusd_avx_epi32(__m256i(sum), __m256i(items), __m256i(users)));
}
#else
constexpr int kUserBytes = 64;  // as above
inline __m256i pairs_of(Ints items, Ints users) {
    return _mm256_maddubs_epi16(__m256i(items), __m256i(users));
}
inline Ints add_pairs(Ints sum, __m256i pairs) {
    return sum + Ints(_mm256_madd_epi16(pairs, _mm256_set1_epi16(1)));
}
inline Ints dot4(Ints sum, Ints items, Ints users) {
    return add_pairs(sum, pairs_of(items, users));
}
inline Ints dot(Ints sum, const Ints (&items)[2], const Ints (&users)[2]) {
    const __m256i first = pairs_of(items[0], users[0]), second = pairs_of(items[1], users[1]);
    return add_pairs(sum, _mm256_add_epi16(first, second));
}
#endif

#else

inline Mask at_least(Floats a, Floats b) {
    const uint32_t bits[4] = {1, 2, 4, 8};
    return vaddvq_u32(vandq_u32(vcgeq_f32(a, b), vld1q_u32(bits)));
}
inline Floats multiply_add(Floats a, Floats b, Floats c) { return vfmaq_f32(c, a, b); }
inline int32_t sum(Ints values) { return vaddvq_s32(values); }
inline void prefetch(const void* address) { __builtin_prefetch(address); }

template <typename Register, typename Entry>
inline void compress(Entry* to, Mask mask, Register values) {
    for (int lane = 0; lane < kLanes; lane++) {
        *to = values[lane];
        to += mask >> lane & 1;
    }
}

constexpr int kItemOffset = 0, kUserBytes = 127;
inline Ints dot4(Ints sum, Ints items, Ints users) {
    return Ints(vdotq_s32(int32x4_t(sum), int8x16_t(items), int8x16_t(users)));
}

#endif

constexpr int kUserFour = 128;
inline Ints dot(Ints sum, const Ints (&items)[1], const Ints (&users)[1]) {
    return dot4(sum, items[0], users[0]);
}

}  // namespace simd
