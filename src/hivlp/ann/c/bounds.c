/* Upper bounds on inner products from an engine's nibbles: which rows an exact search has to look at.
 *
 * A code's bound is `offset + lists[its list] + stretch * (unit * sum + slack) + reach * length`: `sum` is the exact integer
 * product of its nibbles with a query of 15 bits, split into bytes (128 * high + low), and `length` is what the code
 * leaves out at most. All variants agree but for the rounding of these doubles. `hivlp.ann.bounds` says why this is a
 * bound, and the same in numpy. Codes lie as kernels.c has them.
 */
#include <stdint.h>
#include <string.h>

#include "platform.h"

#define BLOCK 32    /* codes, as SIGN_LANES of scoring.h */
#define OTHER 65535 /* instead of a length: there is another code of the same row */
#define TOGETHER 4  /* codes that share what is loaded of a query */
#define AHEAD 16    /* codes that memory is asked for before they are needed */
#define BATCH 256   /* codes, a multiple of TOGETHER */
enum { GENERIC = 0, AVX2 = 1, AVX512 = 2 };

/* Sums of products of TOGETHER rows of `half` bytes of nibbles and `quarter` bytes of four, and a query. */
typedef void (*products_fn)(const uint8_t *const *rows, const int8_t *high, const int8_t *low, int half, int quarter,
                            int32_t *out);

static int32_t product_generic(const uint8_t *row, const int8_t *high, const int8_t *low, int half, int quarter) {
    int32_t a = 0, b = 0;
    for (int j = 0; j < half; j++) {
        int first = row[j] & 15, second = row[j] >> 4;
        a += first * high[j] + second * high[half + j];
        b += first * low[j] + second * low[half + j];
    }
    for (int j = 0; j < 4 * quarter; j++) {
        int code = row[half + j % quarter] >> 2 * (j / quarter) & 3;
        a += code * high[2 * half + j];
        b += code * low[2 * half + j];
    }
    return 128 * a + b;
}

static void products_generic(const uint8_t *const *rows, const int8_t *high, const int8_t *low, int half, int quarter,
                             int32_t *out) {
    for (int r = 0; r < TOGETHER; r++) out[r] = product_generic(rows[r], high, low, half, quarter);
}

#ifdef X86
#include "sums_x86.h"

__attribute__((target("avx2"))) static int32_t product_avx2(const uint8_t *row, const int8_t *high, const int8_t *low,
                                                            int half, int quarter) {
    const __m256i nibble = _mm256_set1_epi8(15), pair = _mm256_set1_epi8(3), ones = _mm256_set1_epi16(1);
    __m256i a = _mm256_setzero_si256(), b = _mm256_setzero_si256();
    uint8_t end[32] = {0};
    memcpy(end, row + half / 32 * 32, (size_t)(half % 32));
    for (int j = 0; j < half; j += 32) {
        /* Four products of at most 15 * 128 each: well inside 16 bits. */
        __m256i bytes = _mm256_loadu_si256((const __m256i *)(half - j >= 32 ? row + j : end));
        __m256i first = _mm256_and_si256(bytes, nibble);
        __m256i second = _mm256_and_si256(_mm256_srli_epi16(bytes, 4), nibble);
        __m256i x = _mm256_maddubs_epi16(first, _mm256_loadu_si256((const __m256i *)(high + j)));
        __m256i y = _mm256_maddubs_epi16(second, _mm256_loadu_si256((const __m256i *)(high + half + j)));
        a = _mm256_add_epi32(a, _mm256_madd_epi16(_mm256_add_epi16(x, y), ones));
        x = _mm256_maddubs_epi16(first, _mm256_loadu_si256((const __m256i *)(low + j)));
        y = _mm256_maddubs_epi16(second, _mm256_loadu_si256((const __m256i *)(low + half + j)));
        b = _mm256_add_epi32(b, _mm256_madd_epi16(_mm256_add_epi16(x, y), ones));
    }
    memset(end, 0, sizeof end);
    memcpy(end, row + half + quarter / 32 * 32, (size_t)(quarter % 32));
    for (int j = 0; j < quarter; j += 32) {
        __m256i bytes = _mm256_loadu_si256((const __m256i *)(quarter - j >= 32 ? row + half + j : end));
        __m256i x = _mm256_setzero_si256(), y = x;
        for (int at = 2 * half + j; at < 2 * half + j + 4 * quarter; at += quarter) {
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

__attribute__((target("avx2"))) static void products_avx2(const uint8_t *const *rows, const int8_t *high,
                                                          const int8_t *low, int half, int quarter, int32_t *out) {
    for (int r = 0; r < TOGETHER; r++) out[r] = product_avx2(rows[r], high, low, half, quarter);
}

#define WIDE "avx512f,avx512bw,avx512vl,avx512dq,avx512vnni"
__attribute__((target(WIDE))) static void products_avx512(const uint8_t *const *rows, const int8_t *high,
                                                          const int8_t *low, int half, int quarter, int32_t *out) {
    const __m512i nibble = _mm512_set1_epi8(15), pair = _mm512_set1_epi8(3);
    __m512i large[TOGETHER], small[TOGETHER];
    for (int r = 0; r < TOGETHER; r++) large[r] = small[r] = _mm512_setzero_si512();
    for (int j = 0; j < half; j += 64) {
        __mmask64 there = half - j >= 64 ? ~(__mmask64)0 : ((__mmask64)1 << (half - j)) - 1;
        __m512i high_first = _mm512_loadu_si512(high + j), high_second = _mm512_loadu_si512(high + half + j);
        __m512i low_first = _mm512_loadu_si512(low + j), low_second = _mm512_loadu_si512(low + half + j);
        for (int r = 0; r < TOGETHER; r++) {
            __m512i bytes = _mm512_maskz_loadu_epi8(there, rows[r] + j);
            __m512i first = _mm512_and_si512(bytes, nibble);
            __m512i second = _mm512_and_si512(_mm512_srli_epi16(bytes, 4), nibble);
            large[r] = _mm512_dpbusd_epi32(_mm512_dpbusd_epi32(large[r], first, high_first), second, high_second);
            small[r] = _mm512_dpbusd_epi32(_mm512_dpbusd_epi32(small[r], first, low_first), second, low_second);
        }
    }
    for (int j = 0; j < quarter; j += 64) {
        __mmask64 there = quarter - j >= 64 ? ~(__mmask64)0 : ((__mmask64)1 << (quarter - j)) - 1;
        for (int part = 0; part < 4; part++) {
            int at = 2 * half + part * quarter + j;
            __m512i of_high = _mm512_loadu_si512(high + at), of_low = _mm512_loadu_si512(low + at);
            for (int r = 0; r < TOGETHER; r++) {
                __m512i bytes = _mm512_maskz_loadu_epi8(there, rows[r] + half + j);
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

static products_fn products = products_generic;

/* Use the widest variant that this processor has, but none above `most` (for tests). Returns the one chosen. */
EXPORT int hivlp_bounds_choose(int most) {
    int chosen = GENERIC;
    products = products_generic;
#ifdef X86
    __builtin_cpu_init();
    if (most >= AVX2 && __builtin_cpu_supports("avx2")) {
        products = products_avx2;
        chosen = AVX2;
    }
    if (most >= AVX512 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
        __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq") &&
        __builtin_cpu_supports("avx512vnni")) {
        products = products_avx512;
        chosen = AVX512;
    }
#else
    (void)most;
#endif
    return chosen;
}

/* The rows of the codes in the blocks from `first` up to `last` whose bounds reach `bar`, and these; returns how many.
 *
 * Of several codes of a row all but one have the length OTHER. `homes` has the list of each block, `numbers` a number for
 * each list. `high` and `low` have 64 bytes more than is said. `allowed` has a bit for each of `count` rows, or is NULL.
 */
EXPORT int64_t hivlp_bounds(const uint8_t *nibbles, const uint32_t *rows_of, const uint16_t *lengths,
                            const uint32_t *homes, int64_t first, int64_t last, int half, int quarter,
                            const int8_t *high, const int8_t *low, const double *numbers, int64_t count,
                            double offset, double unit, double slack, double reach, double bar,
                            const uint8_t *allowed, int64_t *rows, double *bounds) {
    int64_t found = 0, place = first * BLOCK, end = last * BLOCK, width = half + quarter + 2;
    uint32_t batch[BATCH];
    while (place < end) {
        int filled = 0;
        for (; place < end && filled < BATCH; place++) {
            uint32_t row = rows_of[place];
            batch[filled] = (uint32_t)place;
            filled += lengths[place] != OTHER && row < count && (!allowed || (allowed[row >> 3] >> (row & 7) & 1));
        }
        for (int i = 0; i < filled; i += TOGETHER) {
            const uint8_t *here[TOGETHER];
            int32_t sums[TOGETHER];
            int many = filled - i < TOGETHER ? filled - i : TOGETHER;
            for (int r = 0; r < TOGETHER; r++) here[r] = nibbles + batch[i + (r < many ? r : 0)] * width;
            for (int r = 0; r < TOGETHER && i + r + AHEAD < filled; r++) {
                const uint8_t *next = nibbles + batch[i + r + AHEAD] * width;
                for (int at = 0; at < width; at += 64) __builtin_prefetch(next + at);
            }
            products(here, high, low, half, quarter, sums);
            for (int r = 0; r < many; r++) {
                uint32_t code = batch[i + r];
                uint16_t stretch;
                memcpy(&stretch, here[r] + half + quarter, 2);
                double inner = stretch * (unit * sums[r] + slack);
                double bound = offset + numbers[homes[code / BLOCK]] + inner + reach * lengths[code];
                rows[found] = rows_of[code];
                bounds[found] = bound;
                found += bound >= bar;
            }
        }
    }
    return found;
}
