/* Kernels with AVX2, and with AVX-512 and VNNI. */
#pragma once
#include "kernels.h"

#ifdef X86

__attribute__((target("avx2"))) static uint32_t sign_scores_avx2(const uint8_t *block, const uint8_t *scales,
    const sign_query *query, int groups, int32_t *out) {
    /* Sums of pairs of bytes; `odd` holds the high bytes alone, and is taken off the low ones at the end. */
    const __m256i low = _mm256_set1_epi8(15);
    __m256i both = _mm256_setzero_si256(), odd = _mm256_setzero_si256();
    for (int g = 0; g < groups; g++) {
        /* Four sums of at most 63 fit into a byte. */
        __m256i sum = _mm256_setzero_si256();
        for (int half = 0; half < 64; half += 32, block += 32) {
            const uint8_t *here = query->lut + 128 * g + half;
            __m256i bytes = _mm256_loadu_si256((const __m256i *)block);
            __m256i a = _mm256_shuffle_epi8(_mm256_loadu_si256((const __m256i *)here), _mm256_and_si256(bytes, low));
            __m256i b = _mm256_shuffle_epi8(_mm256_loadu_si256((const __m256i *)(here + 64)),
                                            _mm256_and_si256(_mm256_srli_epi16(bytes, 4), low));
            sum = _mm256_add_epi8(sum, _mm256_add_epi8(a, b));
        }
        both = _mm256_add_epi16(both, sum);
        odd = _mm256_add_epi16(odd, _mm256_srli_epi16(sum, 8));
    }
    __m256i even = _mm256_sub_epi16(both, _mm256_slli_epi16(odd, 8));
    __m256i first = _mm256_unpacklo_epi16(even, odd), second = _mm256_unpackhi_epi16(even, odd);
    __m256i parts[2] = {_mm256_permute2x128_si256(first, second, 0x20), _mm256_permute2x128_si256(first, second, 0x31)};
    const __m256i half = _mm256_set1_epi16(query->lut_offset), least = _mm256_set1_epi32(query->threshold - 1);
    uint32_t mask = 0;
    for (int v = 0; v < CODE_LANES; v += 8) {
        __m256i part = _mm256_sub_epi16(parts[v / 16], half);
        __m128i eight = v % 16 ? _mm256_extracti128_si256(part, 1) : _mm256_castsi256_si128(part);
        __m256i scale = _mm256_cvtepu8_epi32(_mm_loadl_epi64((const __m128i *)(scales + v)));
        __m256i score = _mm256_mullo_epi32(_mm256_cvtepi16_epi32(eight), scale);
        _mm256_storeu_si256((__m256i *)(out + v), score);
        mask |= (uint32_t)_mm256_movemask_ps(_mm256_castsi256_ps(_mm256_cmpgt_epi32(score, least))) << v;
    }
    return mask;
}

__attribute__((target("avx2"))) static int32_t refine_dot_avx2(const uint8_t *row, const int8_t *query, int nibble_bytes,
                                                            int pair_bytes) {
    const __m256i low = _mm256_set1_epi8(15), pair = _mm256_set1_epi8(3), ones = _mm256_set1_epi16(1);
    __m256i total = _mm256_setzero_si256();
    uint8_t end[32] = {0};
    memcpy(end, row + nibble_bytes / 32 * 32, (size_t)(nibble_bytes % 32));
    for (int j = 0; j < nibble_bytes; j += 32) {
        /* Two products of at most 15 * 128 each, twice: well inside 16 bits. */
        __m256i bytes = _mm256_loadu_si256((const __m256i *)(nibble_bytes - j >= 32 ? row + j : end));
        __m256i a = _mm256_maddubs_epi16(_mm256_and_si256(bytes, low), _mm256_loadu_si256((const __m256i *)(query + j)));
        __m256i b = _mm256_maddubs_epi16(_mm256_and_si256(_mm256_srli_epi16(bytes, 4), low),
                                         _mm256_loadu_si256((const __m256i *)(query + nibble_bytes + j)));
        total = _mm256_add_epi32(total, _mm256_madd_epi16(_mm256_add_epi16(a, b), ones));
    }
    row += nibble_bytes;
    query += 2 * nibble_bytes;
    memset(end, 0, sizeof end);
    memcpy(end, row + pair_bytes / 32 * 32, (size_t)(pair_bytes % 32));
    for (int j = 0; j < pair_bytes; j += 32) {
        __m256i bytes = _mm256_loadu_si256((const __m256i *)(pair_bytes - j >= 32 ? row + j : end));
        __m256i some = _mm256_setzero_si256();
        for (int part = 0; part < 4; part++) {
            some = _mm256_add_epi16(some, _mm256_maddubs_epi16(_mm256_and_si256(bytes, pair),
                _mm256_loadu_si256((const __m256i *)(query + part * pair_bytes + j))));
            bytes = _mm256_srli_epi16(bytes, 2);
        }
        total = _mm256_add_epi32(total, _mm256_madd_epi16(some, ones));
    }
    int32_t part[8], sum = 0;
    _mm256_storeu_si256((__m256i *)part, total);
    for (int j = 0; j < 8; j++) sum += part[j];
    return sum;
}

__attribute__((target("avx2"))) static void key_dots_avx2(const uint8_t *block, const int8_t *query, int groups,
                                                      int32_t *out) {
    /* Bytes up to 255 would overflow maddubs: widen to 16 bits first. */
    for (int pair_bytes = 0; pair_bytes < 4; pair_bytes++) {
        __m256i total = _mm256_setzero_si256();
        for (int g = 0; g < groups; g++) {
            int32_t four;
            memcpy(&four, query + 4 * g, 4);
            __m256i bytes = _mm256_cvtepu8_epi16(_mm_loadu_si128((const __m128i *)(block + 64 * g + 16 * pair_bytes)));
            __m256i signed_query = _mm256_cvtepi8_epi16(_mm_set1_epi32(four));
            total = _mm256_add_epi32(total, _mm256_madd_epi16(bytes, signed_query));
        }
        /* Two neighbouring sums belong to one list. */
        __m256i pairs = _mm256_hadd_epi32(total, total);
        int64_t a = _mm256_extract_epi64(pairs, 0), b = _mm256_extract_epi64(pairs, 2);
        memcpy(out + 4 * pair_bytes, &a, 8);
        memcpy(out + 4 * pair_bytes + 2, &b, 8);
    }
}

__attribute__((target("avx2"))) static void router_dots_avx2(const uint8_t *block, const int8_t *query, int nibble_bytes,
                                                             int32_t *out) {
    const __m256i low = _mm256_set1_epi8(15), ones = _mm256_set1_epi16(1);
    for (int part = 0; part < 2; part++) {
        __m256i total = _mm256_setzero_si256();
        for (int j = 0; j < nibble_bytes; j += 4) {
            int32_t first, second;
            memcpy(&first, query + j, 4);
            memcpy(&second, query + nibble_bytes + j, 4);
            __m256i bytes = _mm256_loadu_si256((const __m256i *)(block + 16 * j + 32 * part));
            __m256i a = _mm256_maddubs_epi16(_mm256_and_si256(bytes, low), _mm256_set1_epi32(first));
            __m256i b = _mm256_maddubs_epi16(_mm256_and_si256(_mm256_srli_epi16(bytes, 4), low),
                                             _mm256_set1_epi32(second));
            total = _mm256_add_epi32(total, _mm256_madd_epi16(_mm256_add_epi16(a, b), ones));
        }
        _mm256_storeu_si256((__m256i *)(out + 8 * part), total);
    }
}

__attribute__((target("avx2"))) static int32_t int8_dot_avx2(const int8_t *centroid, const int8_t *query, int dim) {
    __m256i total = _mm256_setzero_si256();
    for (int j = 0; j < dim; j += 16)
        total = _mm256_add_epi32(total, _mm256_madd_epi16(
            _mm256_cvtepi8_epi16(_mm_loadu_si128((const __m128i *)(centroid + j))),
            _mm256_cvtepi8_epi16(_mm_loadu_si128((const __m128i *)(query + j)))));
    int32_t part[8], sum = 0;
    _mm256_storeu_si256((__m256i *)part, total);
    for (int j = 0; j < 8; j++) sum += part[j];
    return sum;
}

__attribute__((target("avx2,fma,f16c"))) static float fp16_dot_avx2(const uint16_t *row, const float *query, int dim) {
    __m256 a = _mm256_setzero_ps(), b = _mm256_setzero_ps();
    int i = 0;
    for (; i + 16 <= dim; i += 16) {
        a = _mm256_fmadd_ps(_mm256_cvtph_ps(_mm_loadu_si128((const __m128i *)(row + i))), _mm256_loadu_ps(query + i), a);
        b = _mm256_fmadd_ps(_mm256_cvtph_ps(_mm_loadu_si128((const __m128i *)(row + i + 8))),
                            _mm256_loadu_ps(query + i + 8), b);
    }
    float part[8], sum = 0;
    _mm256_storeu_ps(part, _mm256_add_ps(a, b));
    for (int j = 0; j < 8; j++) sum += part[j];
    for (; i < dim; i++) sum += half_to_float(row[i]) * query[i];
    return sum;
}

__attribute__((target("avx2,fma"))) static float codes_dot_avx2(const int8_t *codes, const float *query, int dim) {
    __m256 a = _mm256_setzero_ps(), b = _mm256_setzero_ps();
    int i = 0;
    for (; i + 16 <= dim; i += 16) {
        __m128i some = _mm_loadu_si128((const __m128i *)(codes + i));
        a = _mm256_fmadd_ps(_mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(some)), _mm256_loadu_ps(query + i), a);
        b = _mm256_fmadd_ps(_mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_srli_si128(some, 8))),
                            _mm256_loadu_ps(query + i + 8), b);
    }
    float part[8], sum = 0;
    _mm256_storeu_ps(part, _mm256_add_ps(a, b));
    for (int j = 0; j < 8; j++) sum += part[j];
    for (; i < dim; i++) sum += (float)codes[i] * query[i];
    return sum;
}

/* Inner products of four vectors and some queries: each sum is made in the same way, whatever the number of queries. */
__attribute__((target("avx2,fma,f16c"), always_inline)) static inline void fp16_dots_avx2(const uint16_t *rows,
    const float *queries, int dim, int many, float *out) {
    __m256 sums[8];
    for (int s = 0; s < 4 * many; s++) sums[s] = _mm256_setzero_ps();
    int i = 0;
    for (; i + 8 <= dim; i += 8)
        for (int r = 0; r < 4; r++) {
            __m256 some = _mm256_cvtph_ps(_mm_loadu_si128((const __m128i *)(rows + (int64_t)r * dim + i)));
            for (int q = 0; q < many; q++)
                sums[4 * q + r] = _mm256_fmadd_ps(some, _mm256_loadu_ps(queries + q * dim + i), sums[4 * q + r]);
        }
    for (int s = 0; s < 4 * many; s++) {
        float part[8], sum = 0;
        _mm256_storeu_ps(part, sums[s]);
        for (int j = 0; j < 8; j++) sum += part[j];
        for (int64_t j = i; j < dim; j++) sum += half_to_float(rows[s % 4 * dim + j]) * queries[s / 4 * dim + j];
        out[s] = sum;
    }
}

__attribute__((target("avx2,fma,f16c"))) static void fp16_dot4_avx2(const uint16_t *rows, const float *query, int dim,
                                                              float *out) {
    fp16_dots_avx2(rows, query, dim, 1, out);
}

__attribute__((target("avx2,fma,f16c"))) static void fp16_dot16_avx2(const uint16_t *rows, const float *queries, int dim,
                                                               float *out) {
    fp16_dots_avx2(rows, queries, dim, 2, out);
    fp16_dots_avx2(rows, queries + 2 * (int64_t)dim, dim, 2, out + 8);
}

__attribute__((target("avx2"))) static int32_t bound_dot_avx2(const uint8_t *row, const int8_t *high, const int8_t *low,
                                                            int nibble_bytes, int pair_bytes) {
    const __m256i low_nibble = _mm256_set1_epi8(15), pair = _mm256_set1_epi8(3), ones = _mm256_set1_epi16(1);
    __m256i a = _mm256_setzero_si256(), b = _mm256_setzero_si256();
    uint8_t end[32] = {0};
    memcpy(end, row + nibble_bytes / 32 * 32, (size_t)(nibble_bytes % 32));
    for (int j = 0; j < nibble_bytes; j += 32) {
        /* Four products of at most 15 * 128 each: well inside 16 bits. */
        __m256i bytes = _mm256_loadu_si256((const __m256i *)(nibble_bytes - j >= 32 ? row + j : end));
        __m256i first = _mm256_and_si256(bytes, low_nibble);
        __m256i second = _mm256_and_si256(_mm256_srli_epi16(bytes, 4), low_nibble);
        __m256i x = _mm256_maddubs_epi16(first, _mm256_loadu_si256((const __m256i *)(high + j)));
        __m256i y = _mm256_maddubs_epi16(second, _mm256_loadu_si256((const __m256i *)(high + nibble_bytes + j)));
        a = _mm256_add_epi32(a, _mm256_madd_epi16(_mm256_add_epi16(x, y), ones));
        x = _mm256_maddubs_epi16(first, _mm256_loadu_si256((const __m256i *)(low + j)));
        y = _mm256_maddubs_epi16(second, _mm256_loadu_si256((const __m256i *)(low + nibble_bytes + j)));
        b = _mm256_add_epi32(b, _mm256_madd_epi16(_mm256_add_epi16(x, y), ones));
    }
    memset(end, 0, sizeof end);
    memcpy(end, row + nibble_bytes + pair_bytes / 32 * 32, (size_t)(pair_bytes % 32));
    for (int j = 0; j < pair_bytes; j += 32) {
        __m256i bytes = _mm256_loadu_si256((const __m256i *)(pair_bytes - j >= 32 ? row + nibble_bytes + j : end));
        __m256i x = _mm256_setzero_si256(), y = x;
        for (int at = 2 * nibble_bytes + j; at < 2 * nibble_bytes + j + 4 * pair_bytes; at += pair_bytes) {
            __m256i codes = _mm256_and_si256(bytes, pair);
            x = _mm256_add_epi16(x, _mm256_maddubs_epi16(codes, _mm256_loadu_si256((const __m256i *)(high + at))));
            y = _mm256_add_epi16(y, _mm256_maddubs_epi16(codes, _mm256_loadu_si256((const __m256i *)(low + at))));
            bytes = _mm256_srli_epi16(bytes, 2);
        }
        a = _mm256_add_epi32(a, _mm256_madd_epi16(x, ones));
        b = _mm256_add_epi32(b, _mm256_madd_epi16(y, ones));
    }
    __m256i both = _mm256_add_epi32(_mm256_slli_epi32(a, 7), b);
    __m128i four = _mm_add_epi32(_mm256_castsi256_si128(both), _mm256_extracti128_si256(both, 1));
    four = _mm_add_epi32(four, _mm_shuffle_epi32(four, 0x4e));
    return _mm_cvtsi128_si32(_mm_add_epi32(four, _mm_shuffle_epi32(four, 0xb1)));
}

__attribute__((target("avx2"))) static void bound_dots_avx2(const uint8_t *const *rows, const int8_t *high,
                                                          const int8_t *low, int nibble_bytes, int pair_bytes, int32_t *out) {
    for (int r = 0; r < TOGETHER; r++) out[r] = bound_dot_avx2(rows[r], high, low, nibble_bytes, pair_bytes);
}

/* Float32 to float16; no processor has AVX2 without F16C. */
__attribute__((target("avx2,f16c"))) static int to_float16_avx2(const float *numbers, int64_t groups, uint16_t *halves) {
    __m256 odd = _mm256_setzero_ps();
    for (int64_t g = 0; g < groups; g++, numbers += 8, halves += 8) {
        __m256 some = _mm256_loadu_ps(numbers);
        odd = _mm256_or_ps(odd, _mm256_cmp_ps(some, some, _CMP_UNORD_Q));
        _mm_storeu_si128((__m128i *)halves, _mm256_cvtps_ph(some, _MM_FROUND_TO_NEAREST_INT));
    }
    return !_mm256_movemask_ps(odd);
}

#define WIDE "avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,f16c,fma"

/* Four sums of sixteen at once: pairs of rows are interleaved and added, and pairs of these. */
__attribute__((target("avx512f"), always_inline)) static inline void add_up_four(const __m512i *sums, int32_t *out) {
    __m512i a = _mm512_add_epi32(_mm512_unpacklo_epi32(sums[0], sums[1]), _mm512_unpackhi_epi32(sums[0], sums[1]));
    __m512i b = _mm512_add_epi32(_mm512_unpacklo_epi32(sums[2], sums[3]), _mm512_unpackhi_epi32(sums[2], sums[3]));
    a = _mm512_add_epi32(_mm512_unpacklo_epi64(a, b), _mm512_unpackhi_epi64(a, b));
    __m256i c = _mm256_add_epi32(_mm512_castsi512_si256(a), _mm512_extracti64x4_epi64(a, 1));
    _mm_storeu_si128((__m128i *)out, _mm_add_epi32(_mm256_castsi256_si128(c), _mm256_extracti128_si256(c, 1)));
}

/* Sums of a 64-byte piece of sign codes in a query's LUT. */
#define SUMS(piece, lut)                                                                        \
    _mm512_add_epi8(_mm512_shuffle_epi8(_mm512_loadu_si512(lut), _mm512_and_si512(piece, low)), \
                    _mm512_shuffle_epi8(_mm512_loadu_si512((lut) + 64),                         \
                                        _mm512_and_si512(_mm512_srli_epi16(piece, 4), low)))
/* Scores of a block for some queries: of the codes with an even position, and of those with an odd one. */
__attribute__((target(WIDE), always_inline)) static inline void sign_scores_of_avx512(const uint8_t *block,
    const uint8_t *scales, const sign_query *queries, int many, int groups, __m512i *evens, __m512i *odds) {
    const __m512i low = _mm512_set1_epi8(15);
    __m512i both[TOGETHER], odd[TOGETHER];
    for (int q = 0; q < many; q++) both[q] = odd[q] = _mm512_setzero_si512();
    /* Four sums of at most 63 fit into a byte. */
    int g = 0;
    for (; g + 2 <= groups; g += 2) {
        __m512i first = _mm512_loadu_si512(block + 64 * g), second = _mm512_loadu_si512(block + 64 * g + 64);
        for (int q = 0; q < many; q++) {
            const uint8_t *lut = queries[q].lut + 128 * g;
            __m512i sum = _mm512_add_epi8(SUMS(first, lut), SUMS(second, lut + 128));
            both[q] = _mm512_add_epi16(both[q], sum);
            odd[q] = _mm512_add_epi16(odd[q], _mm512_srli_epi16(sum, 8));
        }
    }
    if (g < groups) {
        __m512i piece = _mm512_loadu_si512(block + 64 * g);
        for (int q = 0; q < many; q++) {
            __m512i sum = SUMS(piece, queries[q].lut + 128 * g);
            both[q] = _mm512_add_epi16(both[q], sum);
            odd[q] = _mm512_add_epi16(odd[q], _mm512_srli_epi16(sum, 8));
        }
    }
    __m256i pairs = _mm256_loadu_si256((const __m256i *)scales);
    __m512i even_scales = _mm512_cvtepu16_epi32(_mm256_and_si256(pairs, _mm256_set1_epi16(255)));
    __m512i odd_scales = _mm512_cvtepu16_epi32(_mm256_srli_epi16(pairs, 8));
    for (int q = 0; q < many; q++) {
        __m512i even = _mm512_sub_epi16(both[q], _mm512_slli_epi16(odd[q], 8));
        /* The upper half is the same codes' other dims. */
        __m256i e = _mm256_add_epi16(_mm512_castsi512_si256(even), _mm512_extracti64x4_epi64(even, 1));
        __m256i o = _mm256_add_epi16(_mm512_castsi512_si256(odd[q]), _mm512_extracti64x4_epi64(odd[q], 1));
        const __m256i half = _mm256_set1_epi16(queries[q].lut_offset);
        /* A product of 16 bits each, quicker than one of 32: a scale's upper half is zero. */
        evens[q] = _mm512_madd_epi16(_mm512_cvtepi16_epi32(_mm256_sub_epi16(e, half)), even_scales);
        odds[q] = _mm512_madd_epi16(_mm512_cvtepi16_epi32(_mm256_sub_epi16(o, half)), odd_scales);
    }
}

__attribute__((target(WIDE))) static uint32_t sign_scores_avx512(const uint8_t *block, const uint8_t *scales,
    const sign_query *query, int groups, int32_t *out) {
    __m512i even, odd;
    uint32_t mask = 0;
    int32_t scores[CODE_LANES];
    sign_scores_of_avx512(block, scales, query, 1, groups, &even, &odd);
    _mm512_storeu_si512(scores, even);
    _mm512_storeu_si512(scores + 16, odd);
    for (int v = 0; v < CODE_LANES; v++) {
        out[v] = scores[v % 2 * 16 + v / 2];
        mask |= (uint32_t)(out[v] >= query->threshold) << v;
    }
    return mask;
}

__attribute__((target(WIDE), always_inline)) static inline void sign_scan_of_avx512(const block_run *run,
    const sign_query *queries, int many, int groups, hits *out) {
    __m512i even[TOGETHER], odd[TOGETHER];
    int32_t scores[CODE_LANES];
    for (int q = 0; q < many; q++) out[q].count = 0;
    for (int64_t b = 0; b < run->count; b++) {
        sign_scores_of_avx512(run->codes + b * groups * 64, run->scales + b * CODE_LANES, queries, many, groups, even, odd);
        for (int q = 0; q < many; q++) {
            const __m512i least = _mm512_set1_epi32(queries[q].threshold);
            uint32_t of_even = _mm512_cmpge_epi32_mask(even[q], least), of_odd = _mm512_cmpge_epi32_mask(odd[q], least);
            if (!(of_even | of_odd)) continue;
            _mm512_storeu_si512(scores, even[q]);
            _mm512_storeu_si512(scores + 16, odd[q]);
            hit *to = out[q].of + out[q].count;
            for (uint32_t mask = of_even | of_odd << 16; mask; mask &= mask - 1) {
                uint32_t v = (uint32_t)__builtin_ctz(mask);
                *to++ = (hit){scores[v], (uint32_t)(b * CODE_LANES) + v % 16 * 2 + v / 16};
            }
            out[q].count = (int)(to - out[q].of);
        }
    }
}

__attribute__((target(WIDE))) static void sign_scan_avx512(const block_run *run, const sign_query *queries, int many, int groups,
                                                     hits *out) {
    /* As constants, so that all sums stay in registers. */
    if (many == 1) sign_scan_of_avx512(run, queries, 1, groups, out);
    else if (many == 2) sign_scan_of_avx512(run, queries, 2, groups, out);
    else if (many == 3) sign_scan_of_avx512(run, queries, 3, groups, out);
    else sign_scan_of_avx512(run, queries, TOGETHER, groups, out);
}

__attribute__((target(WIDE))) static int32_t refine_dot_avx512(const uint8_t *row, const int8_t *query, int nibble_bytes,
                                                            int pair_bytes) {
    const __m512i low = _mm512_set1_epi8(15), pair = _mm512_set1_epi8(3);
    __m512i a = _mm512_setzero_si512(), b = _mm512_setzero_si512();
    for (int j = 0; j < nibble_bytes; j += 64) {
        __mmask64 there = nibble_bytes - j >= 64 ? ~(__mmask64)0 : ((__mmask64)1 << (nibble_bytes - j)) - 1;
        __m512i bytes = _mm512_maskz_loadu_epi8(there, row + j);
        a = _mm512_dpbusd_epi32(a, _mm512_and_si512(bytes, low), _mm512_loadu_si512(query + j));
        b = _mm512_dpbusd_epi32(b, _mm512_and_si512(_mm512_srli_epi16(bytes, 4), low),
                                _mm512_loadu_si512(query + nibble_bytes + j));
    }
    row += nibble_bytes;
    query += 2 * nibble_bytes;
    for (int j = 0; j < pair_bytes; j += 64) {
        __mmask64 there = pair_bytes - j >= 64 ? ~(__mmask64)0 : ((__mmask64)1 << (pair_bytes - j)) - 1;
        __m512i bytes = _mm512_maskz_loadu_epi8(there, row + j);
        const int8_t *of = query + j;
        a = _mm512_dpbusd_epi32(a, _mm512_and_si512(bytes, pair), _mm512_loadu_si512(of));
        b = _mm512_dpbusd_epi32(b, _mm512_and_si512(_mm512_srli_epi16(bytes, 2), pair), _mm512_loadu_si512(of + pair_bytes));
        a = _mm512_dpbusd_epi32(a, _mm512_and_si512(_mm512_srli_epi16(bytes, 4), pair),
                                _mm512_loadu_si512(of + 2 * pair_bytes));
        b = _mm512_dpbusd_epi32(b, _mm512_and_si512(_mm512_srli_epi16(bytes, 6), pair),
                                _mm512_loadu_si512(of + 3 * pair_bytes));
    }
    return _mm512_reduce_add_epi32(_mm512_add_epi32(a, b));
}

__attribute__((target(WIDE))) static void refine_dot4_avx512(const uint8_t *const *rows, const int8_t *query, int nibble_bytes,
                                                           int pair_bytes, int32_t *out) {
    const __m512i low = _mm512_set1_epi8(15), pair = _mm512_set1_epi8(3);
    __m512i sums[4];
    for (int r = 0; r < 4; r++) sums[r] = _mm512_setzero_si512();
    for (int j = 0; j < nibble_bytes; j += 64) {
        __mmask64 there = nibble_bytes - j >= 64 ? ~(__mmask64)0 : ((__mmask64)1 << (nibble_bytes - j)) - 1;
        __m512i first = _mm512_loadu_si512(query + j), second = _mm512_loadu_si512(query + nibble_bytes + j);
        for (int r = 0; r < 4; r++) {
            __m512i bytes = _mm512_maskz_loadu_epi8(there, rows[r] + j);
            sums[r] = _mm512_dpbusd_epi32(sums[r], _mm512_and_si512(bytes, low), first);
            sums[r] = _mm512_dpbusd_epi32(sums[r], _mm512_and_si512(_mm512_srli_epi16(bytes, 4), low), second);
        }
    }
    query += 2 * nibble_bytes;
    for (int j = 0; j < pair_bytes; j += 64) {
        __mmask64 there = pair_bytes - j >= 64 ? ~(__mmask64)0 : ((__mmask64)1 << (pair_bytes - j)) - 1;
        __m512i a = _mm512_loadu_si512(query + j), b = _mm512_loadu_si512(query + pair_bytes + j);
        __m512i c = _mm512_loadu_si512(query + 2 * pair_bytes + j), d = _mm512_loadu_si512(query + 3 * pair_bytes + j);
        for (int r = 0; r < 4; r++) {
            __m512i bytes = _mm512_maskz_loadu_epi8(there, rows[r] + nibble_bytes + j);
            sums[r] = _mm512_dpbusd_epi32(sums[r], _mm512_and_si512(bytes, pair), a);
            sums[r] = _mm512_dpbusd_epi32(sums[r], _mm512_and_si512(_mm512_srli_epi16(bytes, 2), pair), b);
            sums[r] = _mm512_dpbusd_epi32(sums[r], _mm512_and_si512(_mm512_srli_epi16(bytes, 4), pair), c);
            sums[r] = _mm512_dpbusd_epi32(sums[r], _mm512_and_si512(_mm512_srli_epi16(bytes, 6), pair), d);
        }
    }
    add_up_four(sums, out);
}

__attribute__((target(WIDE))) static void key_dots_avx512(const uint8_t *block, const int8_t *query, int groups,
                                                      int32_t *out) {
    __m512i a = _mm512_setzero_si512(), b = _mm512_setzero_si512();
    int g = 0;
    for (; g + 2 <= groups; g += 2) {
        int32_t first, second;
        memcpy(&first, query + 4 * g, 4);
        memcpy(&second, query + 4 * g + 4, 4);
        a = _mm512_dpbusd_epi32(a, _mm512_loadu_si512(block + 64 * g), _mm512_set1_epi32(first));
        b = _mm512_dpbusd_epi32(b, _mm512_loadu_si512(block + 64 * g + 64), _mm512_set1_epi32(second));
    }
    if (g < groups) {
        int32_t first;
        memcpy(&first, query + 4 * g, 4);
        a = _mm512_dpbusd_epi32(a, _mm512_loadu_si512(block + 64 * g), _mm512_set1_epi32(first));
    }
    _mm512_storeu_si512(out, _mm512_add_epi32(a, b));
}

__attribute__((target(WIDE))) static void router_dots_avx512(const uint8_t *block, const int8_t *query, int nibble_bytes,
                                                             int32_t *out) {
    const __m512i low = _mm512_set1_epi8(15);
    __m512i sums[4] = {_mm512_setzero_si512(), _mm512_setzero_si512(), _mm512_setzero_si512(), _mm512_setzero_si512()};
    for (int j = 0; j < nibble_bytes; j += 8)
        for (int of = 0; of < 2; of++) {
            int32_t first, second;
            memcpy(&first, query + j + 4 * of, 4);
            memcpy(&second, query + nibble_bytes + j + 4 * of, 4);
            __m512i bytes = _mm512_loadu_si512(block + 16 * j + 64 * of);
            sums[of] = _mm512_dpbusd_epi32(sums[of], _mm512_and_si512(bytes, low), _mm512_set1_epi32(first));
            sums[2 + of] = _mm512_dpbusd_epi32(sums[2 + of], _mm512_and_si512(_mm512_srli_epi16(bytes, 4), low),
                                               _mm512_set1_epi32(second));
        }
    _mm512_storeu_si512(out, _mm512_add_epi32(_mm512_add_epi32(sums[0], sums[1]), _mm512_add_epi32(sums[2], sums[3])));
}

__attribute__((target(WIDE))) static int32_t int8_dot_avx512(const int8_t *centroid, const int8_t *query, int dim) {
    /* dpbusd takes unsigned bytes: 128 is added to the centroid, and its product taken off again. */
    const __m512i more = _mm512_set1_epi8((char)128);
    __m512i sum = _mm512_setzero_si512(), beyond = _mm512_setzero_si512();
    for (int j = 0; j < dim; j += 64) {
        __mmask64 there = dim - j >= 64 ? ~(__mmask64)0 : ((__mmask64)1 << (dim - j)) - 1;
        __m512i some = _mm512_maskz_loadu_epi8(there, query + j);
        sum = _mm512_dpbusd_epi32(sum, _mm512_xor_si512(_mm512_maskz_loadu_epi8(there, centroid + j), more), some);
        beyond = _mm512_dpbusd_epi32(beyond, more, some);
    }
    return _mm512_reduce_add_epi32(_mm512_sub_epi32(sum, beyond));
}

__attribute__((target(WIDE))) static float fp16_dot_avx512(const uint16_t *row, const float *query, int dim) {
    __m512 a = _mm512_setzero_ps(), b = _mm512_setzero_ps();
    int i = 0;
    for (; i + 32 <= dim; i += 32) {
        a = _mm512_fmadd_ps(_mm512_cvtph_ps(_mm256_loadu_si256((const __m256i *)(row + i))), _mm512_loadu_ps(query + i),
                            a);
        b = _mm512_fmadd_ps(_mm512_cvtph_ps(_mm256_loadu_si256((const __m256i *)(row + i + 16))),
                            _mm512_loadu_ps(query + i + 16), b);
    }
    float sum = _mm512_reduce_add_ps(_mm512_add_ps(a, b));
    for (; i < dim; i++) sum += half_to_float(row[i]) * query[i];
    return sum;
}

__attribute__((target(WIDE))) static float codes_dot_avx512(const int8_t *codes, const float *query, int dim) {
    __m512 a = _mm512_setzero_ps(), b = _mm512_setzero_ps();
    int i = 0;
    for (; i + 32 <= dim; i += 32) {
        __m256i some = _mm256_loadu_si256((const __m256i *)(codes + i));
        a = _mm512_fmadd_ps(_mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm256_castsi256_si128(some))),
                            _mm512_loadu_ps(query + i), a);
        b = _mm512_fmadd_ps(_mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm256_extracti128_si256(some, 1))),
                            _mm512_loadu_ps(query + i + 16), b);
    }
    float sum = _mm512_reduce_add_ps(_mm512_add_ps(a, b));
    for (; i < dim; i++) sum += (float)codes[i] * query[i];
    return sum;
}

__attribute__((target(WIDE), always_inline)) static inline void fp16_dots_avx512(const uint16_t *rows, const float *queries,
    int dim, int many, float *out) {
    __m512 sums[16];
    for (int s = 0; s < 4 * many; s++) sums[s] = _mm512_setzero_ps();
    int i = 0;
    for (; i + 16 <= dim; i += 16)
        for (int r = 0; r < 4; r++) {
            __m512 some = _mm512_cvtph_ps(_mm256_loadu_si256((const __m256i *)(rows + (int64_t)r * dim + i)));
            for (int q = 0; q < many; q++)
                sums[4 * q + r] = _mm512_fmadd_ps(some, _mm512_loadu_ps(queries + q * dim + i), sums[4 * q + r]);
        }
    for (int s = 0; s < 4 * many; s++) {
        out[s] = _mm512_reduce_add_ps(sums[s]);
        for (int64_t j = i; j < dim; j++) out[s] += half_to_float(rows[s % 4 * dim + j]) * queries[s / 4 * dim + j];
    }
}

__attribute__((target(WIDE))) static void fp16_dot4_avx512(const uint16_t *rows, const float *query, int dim, float *out) {
    fp16_dots_avx512(rows, query, dim, 1, out);
}

__attribute__((target(WIDE))) static void fp16_dot16_avx512(const uint16_t *rows, const float *queries, int dim,
                                                       float *out) {
    fp16_dots_avx512(rows, queries, dim, 4, out);
}

__attribute__((target(WIDE))) static void bound_dots_avx512(const uint8_t *const *rows, const int8_t *high,
                                                          const int8_t *low, int nibble_bytes, int pair_bytes, int32_t *out) {
    const __m512i low_nibble = _mm512_set1_epi8(15), pair = _mm512_set1_epi8(3);
    __m512i large[TOGETHER], small[TOGETHER];
    for (int r = 0; r < TOGETHER; r++) large[r] = small[r] = _mm512_setzero_si512();
    for (int j = 0; j < nibble_bytes; j += 64) {
        __mmask64 there = nibble_bytes - j >= 64 ? ~(__mmask64)0 : ((__mmask64)1 << (nibble_bytes - j)) - 1;
        __m512i high_first = _mm512_loadu_si512(high + j), high_second = _mm512_loadu_si512(high + nibble_bytes + j);
        __m512i low_first = _mm512_loadu_si512(low + j), low_second = _mm512_loadu_si512(low + nibble_bytes + j);
        for (int r = 0; r < TOGETHER; r++) {
            __m512i bytes = _mm512_maskz_loadu_epi8(there, rows[r] + j);
            __m512i first = _mm512_and_si512(bytes, low_nibble);
            __m512i second = _mm512_and_si512(_mm512_srli_epi16(bytes, 4), low_nibble);
            large[r] = _mm512_dpbusd_epi32(_mm512_dpbusd_epi32(large[r], first, high_first), second, high_second);
            small[r] = _mm512_dpbusd_epi32(_mm512_dpbusd_epi32(small[r], first, low_first), second, low_second);
        }
    }
    for (int j = 0; j < pair_bytes; j += 64) {
        __mmask64 there = pair_bytes - j >= 64 ? ~(__mmask64)0 : ((__mmask64)1 << (pair_bytes - j)) - 1;
        for (int part = 0; part < 4; part++) {
            int at = 2 * nibble_bytes + part * pair_bytes + j;
            __m512i of_high = _mm512_loadu_si512(high + at), of_low = _mm512_loadu_si512(low + at);
            for (int r = 0; r < TOGETHER; r++) {
                __m512i bytes = _mm512_maskz_loadu_epi8(there, rows[r] + nibble_bytes + j);
                __m512i codes = _mm512_and_si512(_mm512_srl_epi16(bytes, _mm_cvtsi32_si128(2 * part)), pair);
                large[r] = _mm512_dpbusd_epi32(large[r], codes, of_high);
                small[r] = _mm512_dpbusd_epi32(small[r], codes, of_low);
            }
        }
    }
    for (int r = 0; r < TOGETHER; r++) large[r] = _mm512_add_epi32(_mm512_slli_epi32(large[r], 7), small[r]);
    add_up_four(large, out);
}
#endif
