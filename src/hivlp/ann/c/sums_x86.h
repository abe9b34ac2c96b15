/* What scoring_x86.h and bounds.c do alike at the end of four rows. */
#pragma once

#include <stdint.h>

#include "platform.h"

/* Four sums of sixteen at once: pairs of rows are interleaved and added, and pairs of these. */
__attribute__((target("avx512f"), always_inline)) static inline void add_up_four(const __m512i *sums, int32_t *out) {
    __m512i a = _mm512_add_epi32(_mm512_unpacklo_epi32(sums[0], sums[1]), _mm512_unpackhi_epi32(sums[0], sums[1]));
    __m512i b = _mm512_add_epi32(_mm512_unpacklo_epi32(sums[2], sums[3]), _mm512_unpackhi_epi32(sums[2], sums[3]));
    a = _mm512_add_epi32(_mm512_unpacklo_epi64(a, b), _mm512_unpackhi_epi64(a, b));
    __m256i c = _mm256_add_epi32(_mm512_castsi512_si256(a), _mm512_extracti64x4_epi64(a, 1));
    _mm_storeu_si128((__m128i *)out, _mm_add_epi32(_mm256_castsi256_si128(c), _mm256_extracti128_si256(c, 1)));
}
