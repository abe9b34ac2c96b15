/* The inner loops of hivlp's engine: scoring packed codes, choosing lists, re-ranking rows.
 *
 * Plain C with a variant for each instruction set, chosen once at run time; `hivlp.engine.reference` says the same in
 * numpy and is what the tests compare with. Every score but the last is a sum of small integers, so that all variants
 * agree to the last bit.
 *
 * Signs, one bit a dimension: 32 vectors share a block. For every 16 dimensions a block holds 64 bytes: byte v has
 * dimensions 0-3 of vector v in its low half and 4-7 in its high half, byte 32 + v has 8-11 and 12-15. A query is a
 * table of 16 sums (0..31) for every four dimensions. The sum, less its middle, times the vector's own factor (a byte)
 * is what the signs say of the product with the rest of the vector beyond its list's centre.
 * Nibbles, four bits a dimension: a row a vector. For every 128 dimensions a row holds 64 bytes: dimension j in the low
 * half of byte j, dimension 64 + j in its high half.
 * Keys of lists, a byte a dimension (128 more than the value): 16 lists share a block, four dimensions to 64 bytes.
 */
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <math.h>

#if defined(_WIN32)
#define EXPORT __declspec(dllexport)
#else
#define EXPORT __attribute__((visibility("default")))
#endif

#if (defined(__x86_64__) || defined(__i386__)) && (defined(__GNUC__) || defined(__clang__))
#define X86 1
#include <immintrin.h>
#endif
#if defined(__aarch64__)
#define ARM64 1
#include <arm_neon.h>
#endif

#define LANES 16      /* lists a block of keys */
#define SIGN_LANES 32 /* vectors a block of signs */
enum { GENERIC = 0, AVX2 = 1, AVX512 = 2, NEON = 3 };

/* Scores of one block of signs, one a vector; returns a bit for each that is at least `bar`. */
typedef uint32_t (*signs_fn)(const uint8_t *block, const uint8_t *factors, const uint8_t *table, int groups,
                             int16_t middle, int32_t bar, int32_t *out);
/* Sum of products of one row of nibbles and a query. */
typedef int32_t (*nibbles_fn)(const uint8_t *row, const int8_t *query, int groups);
/* Sums of products of one block of keys and a query, one a list. */
typedef void (*keys_fn)(const uint8_t *block, const int8_t *query, int groups, int32_t *out);
/* Sum of products of a list's centre and a query; dim is a multiple of 16. */
typedef int32_t (*bytes_fn)(const int8_t *centre, const int8_t *query, int dim);
/* Sum of products of a float16 row and a float32 query. */
typedef float (*dot_fn)(const uint16_t *row, const float *query, int dim);
/* The same for four rows, one after the other. */
typedef void (*dot4_fn)(const uint16_t *rows, const float *query, int dim, float *out);

/* ---- generic ---------------------------------------------------------------------------------------------------- */

static uint32_t signs_generic(const uint8_t *block, const uint8_t *factors, const uint8_t *table, int groups,
                              int16_t middle, int32_t bar, int32_t *out) {
    uint32_t mask = 0;
    for (int v = 0; v < SIGN_LANES; v++) {
        const uint8_t *bytes = block + v, *sums = table;
        int32_t sum = -middle;
        for (int g = 0; g < groups; g++, bytes += 64, sums += 128) {
            uint8_t first = bytes[0], second = bytes[SIGN_LANES];
            sum += sums[first & 15] + sums[64 + (first >> 4)] + sums[32 + (second & 15)] + sums[96 + (second >> 4)];
        }
        out[v] = sum * factors[v];
        mask |= (uint32_t)(out[v] >= bar) << v;
    }
    return mask;
}

static int32_t nibbles_generic(const uint8_t *row, const int8_t *query, int groups) {
    int32_t sum = 0;
    for (int g = 0; g < groups; g++, row += 64, query += 128)
        for (int j = 0; j < 64; j++) sum += (row[j] & 15) * query[j] + (row[j] >> 4) * query[64 + j];
    return sum;
}

static void keys_generic(const uint8_t *block, const int8_t *query, int groups, int32_t *out) {
    memset(out, 0, LANES * sizeof(int32_t));
    for (int g = 0; g < groups; g++, block += 64, query += 4)
        for (int v = 0; v < LANES; v++)
            for (int j = 0; j < 4; j++) out[v] += block[4 * v + j] * query[j];
}

static int32_t bytes_generic(const int8_t *centre, const int8_t *query, int dim) {
    int32_t sum = 0;
    for (int j = 0; j < dim; j++) sum += centre[j] * query[j];
    return sum;
}

static float half_to_float(uint16_t half) {
    uint32_t sign = (uint32_t)(half & 0x8000) << 16, exponent = (half >> 10) & 31, fraction = half & 1023, bits;
    if (exponent == 31) bits = sign | 0x7f800000 | fraction << 13;
    else if (exponent) bits = sign | (exponent + 112) << 23 | fraction << 13;
    else { float tiny = (float)fraction * 5.9604644775390625e-8f; return sign ? -tiny : tiny; }
    float value;
    memcpy(&value, &bits, 4);
    return value;
}

static float dot_generic(const uint16_t *row, const float *query, int dim) {
    float sum[8] = {0};
    int i = 0;
    for (; i + 8 <= dim; i += 8)
        for (int j = 0; j < 8; j++) sum[j] += half_to_float(row[i + j]) * query[i + j];
    for (; i < dim; i++) sum[0] += half_to_float(row[i]) * query[i];
    return ((sum[0] + sum[1]) + (sum[2] + sum[3])) + ((sum[4] + sum[5]) + (sum[6] + sum[7]));
}

static void dot4_generic(const uint16_t *rows, const float *query, int dim, float *out) {
    for (int r = 0; r < 4; r++) out[r] = dot_generic(rows + (int64_t)r * dim, query, dim);
}

/* ---- x86 -------------------------------------------------------------------------------------------------------- */
#ifdef X86
__attribute__((target("avx2"))) static uint32_t signs_avx2(const uint8_t *block, const uint8_t *factors,
    const uint8_t *table, int groups, int16_t middle, int32_t bar, int32_t *out) {
    /* Sums of pairs of bytes; `odd` holds the high bytes alone, and is taken off the low ones at the end. */
    const __m256i low = _mm256_set1_epi8(15);
    __m256i both = _mm256_setzero_si256(), odd = _mm256_setzero_si256();
    for (int g = 0; g < groups;) {
        /* Eight sums of at most 31 fit into a byte. */
        __m256i sum = _mm256_setzero_si256();
        for (int stop = g + 2 < groups ? g + 2 : groups; g < stop; g++)
            for (int half = 0; half < 64; half += 32, block += 32) {
                const uint8_t *here = table + 128 * g + half;
                __m256i bytes = _mm256_loadu_si256((const __m256i *)block);
                __m256i a = _mm256_shuffle_epi8(_mm256_loadu_si256((const __m256i *)here),
                                                _mm256_and_si256(bytes, low));
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
    const __m256i half = _mm256_set1_epi16(middle), least = _mm256_set1_epi32(bar - 1);
    uint32_t mask = 0;
    for (int v = 0; v < SIGN_LANES; v += 8) {
        __m256i part = _mm256_sub_epi16(parts[v / 16], half);
        __m128i eight = v % 16 ? _mm256_extracti128_si256(part, 1) : _mm256_castsi256_si128(part);
        __m256i factor = _mm256_cvtepu8_epi32(_mm_loadl_epi64((const __m128i *)(factors + v)));
        __m256i score = _mm256_mullo_epi32(_mm256_cvtepi16_epi32(eight), factor);
        _mm256_storeu_si256((__m256i *)(out + v), score);
        mask |= (uint32_t)_mm256_movemask_ps(_mm256_castsi256_ps(_mm256_cmpgt_epi32(score, least))) << v;
    }
    return mask;
}

__attribute__((target("avx2"))) static int32_t nibbles_avx2(const uint8_t *row, const int8_t *query, int groups) {
    const __m256i low = _mm256_set1_epi8(15), ones = _mm256_set1_epi16(1);
    __m256i total = _mm256_setzero_si256();
    for (int g = 0; g < groups; g++, row += 64, query += 128)
        for (int half = 0; half < 64; half += 32) {
            /* Two products of at most 15 * 128 each, twice: well inside 16 bits. */
            __m256i bytes = _mm256_loadu_si256((const __m256i *)(row + half));
            __m256i a = _mm256_maddubs_epi16(_mm256_and_si256(bytes, low),
                                             _mm256_loadu_si256((const __m256i *)(query + half)));
            __m256i b = _mm256_maddubs_epi16(_mm256_and_si256(_mm256_srli_epi16(bytes, 4), low),
                                             _mm256_loadu_si256((const __m256i *)(query + 64 + half)));
            total = _mm256_add_epi32(total, _mm256_madd_epi16(_mm256_add_epi16(a, b), ones));
        }
    int32_t part[8], sum = 0;
    _mm256_storeu_si256((__m256i *)part, total);
    for (int j = 0; j < 8; j++) sum += part[j];
    return sum;
}

__attribute__((target("avx2"))) static void keys_avx2(const uint8_t *block, const int8_t *query, int groups,
                                                      int32_t *out) {
    /* Bytes up to 255 would overflow maddubs: widen to 16 bits first. */
    for (int quarter = 0; quarter < 4; quarter++) {
        __m256i total = _mm256_setzero_si256();
        for (int g = 0; g < groups; g++) {
            int32_t four;
            memcpy(&four, query + 4 * g, 4);
            __m256i bytes = _mm256_cvtepu8_epi16(_mm_loadu_si128((const __m128i *)(block + 64 * g + 16 * quarter)));
            __m256i signed_query = _mm256_cvtepi8_epi16(_mm_set1_epi32(four));
            total = _mm256_add_epi32(total, _mm256_madd_epi16(bytes, signed_query));
        }
        /* Two neighbouring sums belong to one list. */
        __m256i pairs = _mm256_hadd_epi32(total, total);
        int64_t a = _mm256_extract_epi64(pairs, 0), b = _mm256_extract_epi64(pairs, 2);
        memcpy(out + 4 * quarter, &a, 8);
        memcpy(out + 4 * quarter + 2, &b, 8);
    }
}

__attribute__((target("avx2"))) static int32_t bytes_avx2(const int8_t *centre, const int8_t *query, int dim) {
    __m256i total = _mm256_setzero_si256();
    for (int j = 0; j < dim; j += 16)
        total = _mm256_add_epi32(total, _mm256_madd_epi16(
            _mm256_cvtepi8_epi16(_mm_loadu_si128((const __m128i *)(centre + j))),
            _mm256_cvtepi8_epi16(_mm_loadu_si128((const __m128i *)(query + j)))));
    int32_t part[8], sum = 0;
    _mm256_storeu_si256((__m256i *)part, total);
    for (int j = 0; j < 8; j++) sum += part[j];
    return sum;
}

__attribute__((target("avx2,fma,f16c"))) static float dot_avx2(const uint16_t *row, const float *query, int dim) {
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

__attribute__((target("avx2,fma,f16c"))) static void dot4_avx2(const uint16_t *rows, const float *query, int dim,
                                                              float *out) {
    __m256 sums[4] = {_mm256_setzero_ps(), _mm256_setzero_ps(), _mm256_setzero_ps(), _mm256_setzero_ps()};
    int i = 0;
    for (; i + 8 <= dim; i += 8) {
        __m256 values = _mm256_loadu_ps(query + i);
        for (int r = 0; r < 4; r++)
            sums[r] = _mm256_fmadd_ps(_mm256_cvtph_ps(_mm_loadu_si128((const __m128i *)(rows + (int64_t)r * dim + i))),
                                      values, sums[r]);
    }
    for (int r = 0; r < 4; r++) {
        float part[8], sum = 0;
        _mm256_storeu_ps(part, sums[r]);
        for (int j = 0; j < 8; j++) sum += part[j];
        for (int j = i; j < dim; j++) sum += half_to_float(rows[(int64_t)r * dim + j]) * query[j];
        out[r] = sum;
    }
}

#define WIDE "avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,f16c,fma"
#define PAIR_OF_SUMS(at)                                                                                     \
    _mm512_add_epi8(_mm512_shuffle_epi8(_mm512_loadu_si512(table + 128 * (at)),                              \
                                        _mm512_and_si512(_mm512_loadu_si512(block + 64 * (at)), low)),       \
                    _mm512_shuffle_epi8(_mm512_loadu_si512(table + 128 * (at) + 64),                         \
                                        _mm512_and_si512(_mm512_srli_epi16(_mm512_loadu_si512(block + 64 * (at)), 4), low)))
__attribute__((target(WIDE))) static uint32_t signs_avx512(const uint8_t *block, const uint8_t *factors,
    const uint8_t *table, int groups, int16_t middle, int32_t bar, int32_t *out) {
    const __m512i low = _mm512_set1_epi8(15);
    __m512i both = _mm512_setzero_si512(), odd = _mm512_setzero_si512(), sum;
    int g = 0;
    /* Eight sums of at most 31 fit into a byte. */
    for (; g + 4 <= groups; g += 4, block += 256, table += 512) {
        sum = _mm512_add_epi8(_mm512_add_epi8(PAIR_OF_SUMS(0), PAIR_OF_SUMS(1)),
                              _mm512_add_epi8(PAIR_OF_SUMS(2), PAIR_OF_SUMS(3)));
        both = _mm512_add_epi16(both, sum);
        odd = _mm512_add_epi16(odd, _mm512_srli_epi16(sum, 8));
    }
    for (; g < groups; g++, block += 64, table += 128) {
        sum = PAIR_OF_SUMS(0);
        both = _mm512_add_epi16(both, sum);
        odd = _mm512_add_epi16(odd, _mm512_srli_epi16(sum, 8));
    }
    __m512i even = _mm512_sub_epi16(both, _mm512_slli_epi16(odd, 8));
    /* The upper half is the same vectors' other dimensions. */
    __m256i e = _mm256_add_epi16(_mm512_castsi512_si256(even), _mm512_extracti64x4_epi64(even, 1));
    __m256i o = _mm256_add_epi16(_mm512_castsi512_si256(odd), _mm512_extracti64x4_epi64(odd, 1));
    __m256i first = _mm256_unpacklo_epi16(e, o), second = _mm256_unpackhi_epi16(e, o);
    const __m256i half = _mm256_set1_epi16(middle);
    const __m512i least = _mm512_set1_epi32(bar);
    __m256i x = _mm256_sub_epi16(_mm256_permute2x128_si256(first, second, 0x20), half);
    __m256i y = _mm256_sub_epi16(_mm256_permute2x128_si256(first, second, 0x31), half);
    __m512i u = _mm512_mullo_epi32(_mm512_cvtepi16_epi32(x),
                                   _mm512_cvtepu8_epi32(_mm_loadu_si128((const __m128i *)factors)));
    __m512i v = _mm512_mullo_epi32(_mm512_cvtepi16_epi32(y),
                                   _mm512_cvtepu8_epi32(_mm_loadu_si128((const __m128i *)(factors + 16))));
    _mm512_storeu_si512(out, u);
    _mm512_storeu_si512(out + 16, v);
    return (uint32_t)_mm512_cmpge_epi32_mask(u, least) | (uint32_t)_mm512_cmpge_epi32_mask(v, least) << 16;
}

__attribute__((target(WIDE))) static int32_t nibbles_avx512(const uint8_t *row, const int8_t *query, int groups) {
    const __m512i low = _mm512_set1_epi8(15);
    __m512i a = _mm512_setzero_si512(), b = _mm512_setzero_si512();
    for (int g = 0; g < groups; g++, row += 64, query += 128) {
        __m512i bytes = _mm512_loadu_si512(row);
        a = _mm512_dpbusd_epi32(a, _mm512_and_si512(bytes, low), _mm512_loadu_si512(query));
        b = _mm512_dpbusd_epi32(b, _mm512_and_si512(_mm512_srli_epi16(bytes, 4), low), _mm512_loadu_si512(query + 64));
    }
    return _mm512_reduce_add_epi32(_mm512_add_epi32(a, b));
}

__attribute__((target(WIDE))) static void keys_avx512(const uint8_t *block, const int8_t *query, int groups,
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

__attribute__((target(WIDE))) static float dot_avx512(const uint16_t *row, const float *query, int dim) {
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

__attribute__((target(WIDE))) static void dot4_avx512(const uint16_t *rows, const float *query, int dim, float *out) {
    __m512 sums[4] = {_mm512_setzero_ps(), _mm512_setzero_ps(), _mm512_setzero_ps(), _mm512_setzero_ps()};
    int i = 0;
    for (; i + 16 <= dim; i += 16) {
        __m512 values = _mm512_loadu_ps(query + i);
        for (int r = 0; r < 4; r++)
            sums[r] = _mm512_fmadd_ps(
                _mm512_cvtph_ps(_mm256_loadu_si256((const __m256i *)(rows + (int64_t)r * dim + i))), values, sums[r]);
    }
    for (int r = 0; r < 4; r++) {
        out[r] = _mm512_reduce_add_ps(sums[r]);
        for (int j = i; j < dim; j++) out[r] += half_to_float(rows[(int64_t)r * dim + j]) * query[j];
    }
}
#endif

/* ---- Arm -------------------------------------------------------------------------------------------------------- */
#ifdef ARM64
static uint32_t signs_neon(const uint8_t *block, const uint8_t *factors, const uint8_t *table, int groups,
                           int16_t middle, int32_t bar, int32_t *out) {
    const uint8x16_t low = vdupq_n_u8(15);
    uint32_t mask = 0;
    for (int part = 0; part < 2; part++) {
        uint16x8_t first = vdupq_n_u16(0), second = vdupq_n_u16(0);
        for (int g = 0; g < groups; g++) {
            uint8x16_t sum = vdupq_n_u8(0);
            for (int half = 0; half < 2; half++) {
                const uint8_t *here = table + 128 * g + 32 * half;
                uint8x16_t bytes = vld1q_u8(block + 64 * g + 32 * half + 16 * part);
                sum = vaddq_u8(sum, vaddq_u8(vqtbl1q_u8(vld1q_u8(here), vandq_u8(bytes, low)),
                                             vqtbl1q_u8(vld1q_u8(here + 64), vshrq_n_u8(bytes, 4))));
            }
            first = vaddw_u8(first, vget_low_u8(sum));
            second = vaddw_high_u8(second, sum);
        }
        uint16_t sums[16];
        vst1q_u16(sums, first);
        vst1q_u16(sums + 8, second);
        for (int v = 0; v < 16; v++) {
            int32_t score = ((int32_t)sums[v] - middle) * factors[16 * part + v];
            out[16 * part + v] = score;
            mask |= (uint32_t)(score >= bar) << (16 * part + v);
        }
    }
    return mask;
}

static int32_t nibbles_neon(const uint8_t *row, const int8_t *query, int groups) {
    const uint8x16_t low = vdupq_n_u8(15);
    int32x4_t total = vdupq_n_s32(0);
    for (int g = 0; g < groups; g++, row += 64, query += 128)
        for (int j = 0; j < 64; j += 16) {
            uint8x16_t bytes = vld1q_u8(row + j);
            int8x16_t a = vreinterpretq_s8_u8(vandq_u8(bytes, low)), b = vreinterpretq_s8_u8(vshrq_n_u8(bytes, 4));
            int8x16_t x = vld1q_s8(query + j), y = vld1q_s8(query + 64 + j);
            int16x8_t sum = vmull_s8(vget_low_s8(a), vget_low_s8(x));
            sum = vmlal_high_s8(sum, a, x);
            sum = vmlal_s8(sum, vget_low_s8(b), vget_low_s8(y));
            sum = vmlal_high_s8(sum, b, y);
            total = vpadalq_s16(total, sum);
        }
    return vaddvq_s32(total);
}
#endif

/* ---- choice of variant ------------------------------------------------------------------------------------------ */

static signs_fn score_signs = signs_generic;
static nibbles_fn score_nibbles = nibbles_generic;
static keys_fn score_keys = keys_generic;
static bytes_fn dot_bytes = bytes_generic;
static dot_fn dot_half = dot_generic;
static dot4_fn dot_four = dot4_generic;

/* Use the widest variant that this processor has, but none above `most` (for tests). Returns the one chosen. */
EXPORT int hivlp_choose(int most) {
    int chosen = GENERIC;
    score_signs = signs_generic;
    score_nibbles = nibbles_generic;
    score_keys = keys_generic;
    dot_bytes = bytes_generic;
    dot_half = dot_generic;
    dot_four = dot4_generic;
#ifdef X86
    __builtin_cpu_init();
    if (most >= AVX2 && __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) {
        score_signs = signs_avx2;
        score_nibbles = nibbles_avx2;
        score_keys = keys_avx2;
        dot_bytes = bytes_avx2;
        dot_half = dot_avx2;
        dot_four = dot4_avx2;
        chosen = AVX2;
    }
    if (most >= AVX512 && chosen == AVX2 && __builtin_cpu_supports("avx512vnni") &&
        __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512vl") &&
        __builtin_cpu_supports("avx512dq")) {
        score_signs = signs_avx512;
        score_nibbles = nibbles_avx512;
        score_keys = keys_avx512;
        dot_half = dot_avx512;
        dot_four = dot4_avx512;
        chosen = AVX512;
    }
#endif
#ifdef ARM64
    if (most >= NEON) {
        score_signs = signs_neon;
        score_nibbles = nibbles_neon;
        chosen = NEON;
    }
#endif
    return chosen;
}

EXPORT void hivlp_signs(const uint8_t *blocks, const uint8_t *factors, int64_t count, const uint8_t *table, int groups,
                        int middle, int bar, int32_t *out, uint32_t *masks) {
    for (int64_t b = 0; b < count; b++)
        masks[b] = score_signs(blocks + b * groups * 64, factors + b * SIGN_LANES, table, groups, (int16_t)middle, bar,
                               out + b * SIGN_LANES);
}

EXPORT void hivlp_nibbles(const uint8_t *rows, int64_t count, const int8_t *query, int groups, int32_t *out) {
    for (int64_t i = 0; i < count; i++) out[i] = score_nibbles(rows + i * groups * 64, query, groups);
}

EXPORT void hivlp_keys(const uint8_t *blocks, int64_t count, const int8_t *query, int groups, int32_t *out) {
    for (int64_t b = 0; b < count; b++) score_keys(blocks + b * groups * 64, query, groups, out + b * LANES);
}

EXPORT void hivlp_dot4(const uint16_t *rows, const float *query, int dim, float *out) {
    dot_four(rows, query, dim, out);
}

EXPORT void hivlp_bytes(const int8_t *rows, int64_t count, const int8_t *query, int dim, int32_t *out) {
    for (int64_t i = 0; i < count; i++) out[i] = dot_bytes(rows + i * dim, query, dim);
}

EXPORT void hivlp_dot(const uint16_t *rows, const int64_t *which, int64_t count, const float *query, int dim,
                      float *out) {
    for (int64_t i = 0; i < count; i++) out[i] = dot_half(rows + (which ? which[i] : i) * dim, query, dim);
}

/* ---- choosing the best ------------------------------------------------------------------------------------------ */

typedef struct { int32_t score; uint32_t row; } candidate;

/* A total order, so that what is kept depends on no accident of arrival: higher score first, then lower row. */
static inline uint64_t rank_of(candidate c) { return (uint64_t)((uint32_t)c.score ^ 0x80000000u) << 32 | (uint32_t)~c.row; }

/* Bring the `keep` best of `count` candidates to the front, in no order; returns the least of their ranks. */
static uint64_t keep_best(candidate *list, int64_t count, int64_t keep) {
    int64_t left = 0, right = count - 1, wanted = keep - 1;
    while (left < right) {
        uint64_t a = rank_of(list[left]), b = rank_of(list[(left + right) / 2]), c = rank_of(list[right]);
        uint64_t pivot = a > b ? (b > c ? b : a > c ? c : a) : (a > c ? a : b > c ? c : b);
        int64_t i = left, j = right;
        while (i <= j) {
            while (rank_of(list[i]) > pivot) i++;
            while (rank_of(list[j]) < pivot) j--;
            if (i <= j) {
                candidate t = list[i];
                list[i++] = list[j];
                list[j--] = t;
            }
        }
        if (wanted <= j) right = j;
        else if (wanted >= i) left = i;
        else break;
    }
    return rank_of(list[wanted]);
}

static inline int32_t ordered(float value) {
    /* Floats as integers of the same order. */
    int32_t bits;
    memcpy(&bits, &value, 4);
    return bits ^ ((bits >> 31) & 0x7fffffff);
}

typedef struct {
    const uint16_t *map;       /* (dims, fine_dim) float16: what a query looks like to the codes */
    const float *amplitude;    /* (dims) mean absolute residual, which a sign stands for */
    const float *step;         /* (dims) what one step of a nibble stands for */
    const uint8_t *keys;       /* blocks of 16 list keys */
    const float *key_bias;     /* (lists) */
    const int8_t *centres;     /* (lists, dims) what the signs of a list are counted from */
    const int64_t *starts;     /* (lists + 1) first block of each list */
    const uint8_t *signs;      /* blocks of 32 codes, list after list */
    const uint8_t *factors;    /* 32 a block, in steps of factor_scale */
    const uint32_t *rows;      /* 32 a block: the row of each code, UINT32_MAX where there is none */
    const uint8_t *nibbles;    /* (rows, nibble_groups * 64) */
    const uint16_t *fine;      /* (rows, fine_dim) float16 */
    int64_t count;             /* of rows; a code of any other row is skipped */
    int64_t lists;
    int32_t dims;              /* a multiple of 16 */
    int32_t nibble_groups;     /* of 128 dimensions */
    int32_t fine_dim;
    float key_scale;           /* what one step of a key stands for */
    float centre_scale;
    float factor_scale;
} engine;

typedef struct { int64_t lists, codes, nibbles, fine; } work_done;

#define BUCKETS 1024

/* The `keep` best candidates so far, and some more. The bar is a score that at least `keep` of them reach, so that what
 * lies below it need not be offered. Counting how many scores fall into each of some buckets moves it up all the time
 * for next to nothing; the candidates themselves are only looked at again when there is no room left. */
typedef struct {
    candidate *list;
    int64_t count, keep, room;
    int64_t above;  /* candidates in the buckets from `lowest` up */
    int32_t bar, base, lowest;
    int shift;      /* of scores to buckets; -1 before there is a bar */
    uint32_t buckets[BUCKETS];
} pool;

static void empty_pool(pool *p) {
    p->count = 0;
    p->bar = INT32_MIN;
    p->shift = -1;
}

static inline uint32_t *bucket_of(pool *p, int32_t score) {
    uint32_t at = (uint32_t)(score - p->base) >> p->shift;
    return p->buckets + (at < BUCKETS ? at : BUCKETS - 1);
}

/* Leave no more than the best `keep`; what lies below the bar goes at a glance. Returns the least of their ranks. */
static uint64_t settle(pool *p) {
    int64_t count = 0;
    for (int64_t i = 0; i < p->count; i++) {
        p->list[count] = p->list[i];
        count += p->list[i].score >= p->bar;
    }
    p->count = count;
    if (count <= p->keep) return 0;
    p->count = p->keep;
    return keep_best(p->list, count, p->keep);
}

/* Move the bar to the worst of the best `keep` and count from there. */
static void lay_buckets(pool *p) {
    int32_t most = INT32_MIN;
    p->base = p->bar = (int32_t)((uint32_t)(settle(p) >> 32) ^ 0x80000000u);
    p->above = p->keep;
    for (int64_t i = 0; i < p->keep; i++)
        if (p->list[i].score > most) most = p->list[i].score;
    /* Better ones may come: twice the range. */
    uint32_t range = 2 * ((uint32_t)most - (uint32_t)p->base);
    p->shift = 0;
    while (range >> p->shift >= BUCKETS) p->shift++;
    p->lowest = 0;
    memset(p->buckets, 0, sizeof p->buckets);
    for (int64_t i = 0; i < p->keep; i++) ++*bucket_of(p, p->list[i].score);
}

static inline void raise_bar(pool *p) {
    while (p->above - p->buckets[p->lowest] >= p->keep) {
        p->above -= p->buckets[p->lowest++];
        p->bar = p->base + (int32_t)((uint32_t)p->lowest << p->shift);
    }
}

static inline void offer(pool *p, int32_t score, uint32_t place) {
    if (score < p->bar) return; /* it went up since this block was scored */
    p->list[p->count].score = score;
    p->list[p->count++].row = place;
    if (p->shift >= 0) {
        ++*bucket_of(p, score);
        p->above++;
    }
    if (p->count == (p->shift >= 0 ? p->room : 2 * p->keep)) lay_buckets(p);
}

static inline int passes(const uint8_t *allowed, uint32_t row) {
    return allowed == NULL || (allowed[row >> 3] >> (row & 7) & 1);
}

/* All that is derived from one query, and the memory that a search needs. */
typedef struct {
    float *z;          /* (dims) */
    int8_t *small;     /* (dims) the same in steps of small_scale */
    int8_t *nibble;    /* (128 * nibble_groups) z * step, scaled */
    uint8_t *table;    /* (dims / 16, 128) */
    float *scores;     /* (lists) */
    candidate *order;  /* (lists) */
    pool p;
    uint32_t *seen;    /* (slots) a hash table of rows */
    int64_t slots;     /* a power of two */
    float small_scale, table_unit;
    int32_t middle;    /* of the table's sums */
} scratch;

static void free_scratch(scratch *s) {
    free(s->z); free(s->small); free(s->nibble); free(s->table); free(s->scores); free(s->order); free(s->p.list);
    free(s->seen);
}

static int make_scratch(scratch *s, const engine *e, int64_t shortlist) {
    int64_t lanes = (e->lists + LANES - 1) / LANES * LANES + LANES;
    memset(s, 0, sizeof *s);
    s->z = malloc((size_t)e->dims * sizeof(float));
    s->small = malloc((size_t)e->dims);
    s->nibble = calloc((size_t)e->nibble_groups * 128 + 64, 1);
    s->table = malloc((size_t)e->dims * 8 + 64);
    s->scores = malloc((size_t)lanes * sizeof(float));
    s->order = malloc((size_t)lanes * sizeof(candidate));
    s->p.keep = shortlist;
    s->p.room = 8 * shortlist + SIGN_LANES;
    for (s->slots = 64; s->slots < 2 * shortlist; s->slots *= 2) {}
    s->seen = malloc((size_t)s->slots * sizeof(uint32_t));
    s->p.list = malloc((size_t)s->p.room * sizeof(candidate));
    return s->z && s->small && s->nibble && s->table && s->scores && s->order && s->p.list && s->seen;
}

static float to_small(const float *values, const float *weights, int count, int8_t *out) {
    float most = 1e-20f;
    for (int j = 0; j < count; j++) {
        float value = fabsf(weights ? values[j] * weights[j] : values[j]);
        if (value > most) most = value;
    }
    float factor = 127.0f / most;
    for (int j = 0; j < count; j++) out[j] = (int8_t)lrintf((weights ? values[j] * weights[j] : values[j]) * factor);
    return most / 127.0f;
}

static void prepare(scratch *s, const engine *e, const float *query) {
    for (int j = 0; j < e->dims; j += 4) dot_four(e->map + (int64_t)j * e->fine_dim, query, e->fine_dim, s->z + j);
    s->small_scale = to_small(s->z, NULL, e->dims, s->small);
    to_small(s->z, e->step, e->dims, s->nibble);
    float widest = 1e-20f;
    for (int g = 0; g < e->dims; g += 4) {
        float width = 0;
        for (int j = g; j < g + 4; j++) width += fabsf(s->z[j] * e->amplitude[j]);
        if (width > widest) widest = width;
    }
    s->table_unit = 2 * widest / 31.0f;
    float middle = 0;
    for (int g = 0; g < e->dims / 4; g++) {
        float t[4], width = 0;
        for (int j = 0; j < 4; j++) {
            t[j] = s->z[4 * g + j] * e->amplitude[4 * g + j];
            width += fabsf(t[j]);
        }
        middle += width;
        /* Groups 0 to 3 of 16 dimensions: low half of the first bytes, high half, low half of the second, high. */
        uint8_t *out = s->table + 128 * (g / 4) + 32 * (g % 4 / 2) + 64 * (g % 2);
        for (int code = 0; code < 16; code++) {
            float sum = width;
            for (int j = 0; j < 4; j++) sum += code >> j & 1 ? t[j] : -t[j];
            out[code] = out[16 + code] = (uint8_t)lrintf(sum / s->table_unit);
        }
    }
    s->middle = (int32_t)lrintf(middle / s->table_unit);
}

#define FIRST 8 /* of the lists, which are read in order of their scores: they raise the bar */

/* Lists worth reading: at most `most`, and none whose score is more than `margin` below the best. A few of the best come
 * first, the others as they lie in memory. */
static int64_t choose_lists(scratch *s, const engine *e, int64_t most, float margin) {
    int64_t blocks = (e->lists + LANES - 1) / LANES, chosen = 0;
    int32_t shift = 0;
    for (int j = 0; j < e->dims; j++) shift += s->small[j];
    shift *= 128;
    float unit = s->small_scale * e->key_scale, best = -INFINITY;
    float *score = s->scores;
    for (int64_t b = 0; b < blocks; b++) {
        int32_t sums[LANES];
        score_keys(e->keys + b * e->dims * LANES, s->small, e->dims / 4, sums);
        int lanes = (int)(e->lists - b * LANES < LANES ? e->lists - b * LANES : LANES);
        for (int l = 0; l < LANES; l++) score[b * LANES + l] = (float)(sums[l] - shift) * unit;
        for (int l = 0; l < lanes; l++) score[b * LANES + l] += e->key_bias[b * LANES + l];
    }
    for (int64_t l = 0; l < e->lists; l++) best = score[l] > best ? score[l] : best;
    for (int64_t l = 0; l < e->lists; l++) {
        s->order[chosen].score = ordered(score[l]);
        s->order[chosen].row = (uint32_t)l;
        chosen += score[l] >= best - margin;
    }
    if (chosen > most) {
        keep_best(s->order, chosen, most);
        chosen = most;
    }
    for (int64_t first = 0; first < FIRST && first < chosen; first++) {
        int64_t top = first;
        for (int64_t c = first + 1; c < chosen; c++)
            if (rank_of(s->order[c]) > rank_of(s->order[top])) top = c;
        /* What lay before it moves up by one. */
        candidate one = s->order[top];
        memmove(s->order + first + 1, s->order + first, (size_t)(top - first) * sizeof(candidate));
        s->order[first] = one;
    }
    return chosen;
}

static inline void prefetch(const void *from, int64_t bytes) {
    for (int64_t at = 0; at < bytes; at += 64) __builtin_prefetch((const char *)from + at);
}

/* Ask memory for the block that is `ahead` of the first of a list, if the list has so many. */
static inline void prefetch_block(const engine *e, int64_t list, int64_t ahead) {
    int64_t block = e->starts[list] + ahead;
    if (block >= e->starts[list + 1]) return;
    prefetch(e->signs + block * (e->dims / 16) * 64, e->dims / 16 * 64);
    __builtin_prefetch(e->factors + block * SIGN_LANES);
}

/* What is asked for before it is needed, since lists are too short for the processor to see a pattern. */
#define AHEAD 2      /* blocks of signs */
#define FINE_AHEAD 2 /* float16 rows */

/* Offer the codes of one list; `next` is the one to be read after it, or -1. */
static void scan_list(scratch *s, const engine *e, int64_t list, int64_t next, const uint8_t *allowed) {
    int32_t dot = dot_bytes(e->centres + list * e->dims, s->small, e->dims);
    float unit = s->table_unit * e->factor_scale;
    int32_t offset = (int32_t)lrintf((float)dot * (s->small_scale * e->centre_scale / unit));
    int32_t scores[SIGN_LANES], most = s->middle * 255;
    int groups = e->dims / 16;
    int64_t first = e->starts[list], end = e->starts[list + 1];
    if (next >= 0) prefetch(e->centres + next * e->dims, e->dims);
    if (end > first) __builtin_prefetch(e->rows + (end - 1) * SIGN_LANES);
    for (int64_t b = first; b < end; b++) {
        if (b + AHEAD < end) prefetch_block(e, list, b + AHEAD - first);
        else if (next >= 0) prefetch_block(e, next, b + AHEAD - end);
        int64_t bar = (int64_t)s->p.bar - offset;
        if (bar > most) continue; /* no code can reach it */
        uint32_t mask = score_signs(e->signs + b * groups * 64, e->factors + b * SIGN_LANES, s->table, groups,
                                    (int16_t)s->middle, bar < -most ? -most : (int32_t)bar, scores);
        const uint32_t *rows = e->rows + b * SIGN_LANES;
        int look = allowed != NULL || b + 1 == end; /* only the last block has empty places */
        while (mask) {
            int v = __builtin_ctz(mask);
            mask &= mask - 1;
            if (!look || (rows[v] < e->count && passes(allowed, rows[v])))
                offer(&s->p, offset + scores[v], (uint32_t)(b * SIGN_LANES + v));
        }
        if (s->p.shift >= 0) raise_bar(&s->p);
    }
}

/* From the places of codes to the rows that they are of, each once. */
static void resolve(scratch *s, const engine *e) {
    candidate *list = s->p.list;
    int64_t count = 0, places = (e->starts[e->lists]) * SIGN_LANES;
    settle(&s->p);
    memset(s->seen, 0xff, (size_t)s->slots * sizeof(uint32_t));
    for (int64_t i = 0; i < s->p.count; i++) {
        if (i + 16 < s->p.count) __builtin_prefetch(e->rows + list[i + 16].row);
        uint32_t row = (int64_t)list[i].row < places ? e->rows[list[i].row] : UINT32_MAX;
        if (row >= e->count) continue;
        uint64_t slot = (row * 0x9e3779b97f4a7c15u >> 32) & (uint64_t)(s->slots - 1);
        while (s->seen[slot] != UINT32_MAX && s->seen[slot] != row) slot = (slot + 1) & (uint64_t)(s->slots - 1);
        if (s->seen[slot] == row) continue;
        s->seen[slot] = row;
        list[count].score = list[i].score;
        list[count++].row = row;
    }
    s->p.count = count;
}

/* From candidate rows, each there once, to the best `k`: nibbles choose `last`, whose fine vectors decide. */
static void decide(scratch *s, const engine *e, const float *query, int64_t last, int64_t k, int64_t *out_rows,
                      float *out_scores, work_done *work) {
    candidate *list = s->p.list;
    int64_t count = s->p.count, width = (int64_t)e->nibble_groups * 64;
    if (count > last) {
        for (int64_t i = 0; i < count; i++) {
            if (i + 12 < count) prefetch(e->nibbles + list[i + 12].row * width, width);
            list[i].score = score_nibbles(e->nibbles + list[i].row * width, s->nibble, e->nibble_groups);
        }
        work->nibbles += count;
        keep_best(list, count, last);
        count = last;
    }
    int64_t found = 0;
    for (int64_t i = 0; i < count; i++) {
        if (i + FINE_AHEAD < count)
            prefetch(e->fine + (int64_t)list[i + FINE_AHEAD].row * e->fine_dim, (int64_t)e->fine_dim * 2);
        float score = dot_half(e->fine + (int64_t)list[i].row * e->fine_dim, query, e->fine_dim);
        int64_t row = list[i].row;
        if (found == k && !(score > out_scores[k - 1] || (score == out_scores[k - 1] && row < out_rows[k - 1]))) continue;
        int64_t at = found < k ? found++ : k - 1;
        while (at > 0 && (score > out_scores[at - 1] || (score == out_scores[at - 1] && row < out_rows[at - 1]))) {
            out_scores[at] = out_scores[at - 1];
            out_rows[at] = out_rows[at - 1];
            at--;
        }
        out_scores[at] = score;
        out_rows[at] = row;
    }
    work->fine += count;
    for (int64_t at = found; at < k; at++) {
        out_rows[at] = -1;
        out_scores[at] = -INFINITY;
    }
}

/* The best rows of each of `count` queries, (count, fine_dim) float32.
 *
 * most, margin: which lists are read (see choose_lists). shortlist: how many the signs hand on; last: how many the
 * nibbles hand on. allowed: a bit a row, or NULL. Places for which there is no row get -1 and -inf. Returns 0, or -1
 * without memory.
 */
EXPORT int hivlp_search(const engine *e, const float *queries, int64_t count, int64_t most, float margin,
                        int64_t shortlist, int64_t last, int64_t k, const uint8_t *allowed, int64_t *out_rows,
                        float *out_scores, work_done *work) {
    scratch s;
    if (!make_scratch(&s, e, shortlist)) {
        free_scratch(&s);
        return -1;
    }
    for (int64_t i = 0; i < count; i++) {
        const float *query = queries + i * e->fine_dim;
        prepare(&s, e, query);
        int64_t chosen = choose_lists(&s, e, most, margin);
        empty_pool(&s.p);
        for (int64_t c = 0; c < chosen; c++) {
            int64_t list = s.order[c].row;
            if (c + 2 < chosen) __builtin_prefetch(e->starts + s.order[c + 2].row);
            scan_list(&s, e, list, c + 1 < chosen ? (int64_t)s.order[c + 1].row : -1, allowed);
            work->codes += (e->starts[list + 1] - e->starts[list]) * SIGN_LANES;
        }
        work->lists += chosen;
        resolve(&s, e);
        decide(&s, e, query, last, k, out_rows + i * k, out_scores + i * k, work);
    }
    free_scratch(&s);
    return 0;
}

/* The best of the given rows: the cascade without the lists, for a filter that few rows pass. */
EXPORT int hivlp_search_rows(const engine *e, const float *query, const uint32_t *which, int64_t count, int64_t last,
                             int64_t k, int64_t *out_rows, float *out_scores, work_done *work) {
    scratch s;
    if (!make_scratch(&s, e, count > 0 ? count : 1)) {
        free_scratch(&s);
        return -1;
    }
    prepare(&s, e, query);
    for (int64_t i = 0; i < count; i++) s.p.list[i] = (candidate){0, which[i]};
    s.p.count = count;
    decide(&s, e, query, last, k, out_rows, out_scores, work);
    free_scratch(&s);
    return 0;
}

/* For each of `count` items, (count, dims) float32, its `copies` best lists by key score, best first. */
EXPORT int hivlp_assign(const uint8_t *keys, const float *bias, float key_scale, int64_t lists, int dims,
                        const float *items, int64_t count, int copies, int32_t *out, float *out_scores) {
    int64_t blocks = (lists + LANES - 1) / LANES;
    int32_t *scores = malloc((size_t)blocks * LANES * sizeof(int32_t));
    int8_t *small = malloc((size_t)dims);
    if (!scores || !small) { free(scores); free(small); return -1; }
    for (int64_t i = 0; i < count; i++) {
        float unit = to_small(items + i * dims, NULL, dims, small) * key_scale;
        int32_t shift = 0, filled = 0;
        for (int j = 0; j < dims; j++) shift += small[j];
        shift *= 128;
        int32_t *best = out + i * copies;
        float *best_score = out_scores + i * copies;
        for (int64_t b = 0; b < blocks; b++) {
            score_keys(keys + b * dims * LANES, small, dims / 4, scores);
            for (int64_t l = b * LANES; l < (b + 1) * LANES && l < lists; l++) {
                float score = (float)(scores[l - b * LANES] - shift) * unit + bias[l];
                if (filled == copies && !(score > best_score[copies - 1])) continue;
                int at = filled < copies ? filled++ : copies - 1;
                while (at > 0 && score > best_score[at - 1]) {
                    best_score[at] = best_score[at - 1];
                    best[at] = best[at - 1];
                    at--;
                }
                best_score[at] = score;
                best[at] = (int32_t)l;
            }
        }
    }
    free(scores);
    free(small);
    return 0;
}
