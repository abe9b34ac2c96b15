/* Scores of packed codes, with a variant for each instruction set, chosen once at run time.
 *
 * Signs, one bit a dimension: 32 vectors share a block. For every 16 dimensions a block holds 64 bytes: byte v has
 * dimensions 0-3 of vector v in its low half and 4-7 in its high half, byte 32 + v has 8-11 and 12-15. A query is a
 * table of 16 sums (0..63) for every four dimensions. The sum, less its middle, times the vector's own factor (a byte)
 * is what the signs say of the product with the rest of the vector beyond its list's centre.
 * Nibbles, four bits a dimension: a row a vector, `half` bytes for 2 * half dimensions: dimension j in the low half of byte
 * j, dimension half + j in its high half. Behind them two bits a dimension, `quarter` bytes for 4 * quarter dimensions:
 * byte j has the j-th of each quarter, the first in its lowest bits. `half` is a multiple of 8, `quarter` of 4, and 64 bytes
 * more of a query may be read than it has dimensions.
 * Keys, a byte a dimension (128 more than the value): 16 share a block, four dimensions to 64 bytes. Keys in nibbles: as
 * many bytes for eight dimensions, byte j of a key as byte j of a row of nibbles.
 */
#pragma once
#include <stdint.h>
#include <string.h>

#include "platform.h"

#define LANES 16      /* lists a block of keys */
#define SIGN_LANES 32 /* vectors a block of signs */
#define SIDE 4        /* queries that read them together, at most */
#define RUN 8         /* blocks that are read at once, at most */
enum { GENERIC = 0, AVX2 = 1, AVX512 = 2, NEON = 3 };

/* Scores of one block of signs, one a vector; returns a bit for each that is at least `bar`. */
typedef uint32_t (*signs_fn)(const uint8_t *block, const uint8_t *factors, const uint8_t *table, int groups,
                             int16_t middle, int32_t bar, int32_t *out);
/* One of the queries that read signs together: what signs_fn is told of it. */
typedef struct { const uint8_t *table; int16_t middle; int32_t bar; } asker;
/* Some blocks that lie one after the other. */
typedef struct { const uint8_t *signs, *factors; int64_t count; } run;
/* The vectors of a run of at most RUN blocks whose scores reach the bar, for up to SIDE queries: of each query the next
 * `hits`, a score and a place from the run's first, in this order. */
typedef struct { int32_t score; uint32_t at; } hit;
typedef struct { int count; hit of[RUN * SIGN_LANES]; } hits;
typedef void (*run_fn)(const run *now, const asker *askers, int many, int groups, hits *out);
/* Sum of products of one row of nibbles, and of what is behind them, and a query. */
typedef int32_t (*nibbles_fn)(const uint8_t *row, const int8_t *query, int half, int quarter);
/* The same of four rows. */
typedef void (*nibbles4_fn)(const uint8_t *const *rows, const int8_t *query, int half, int quarter, int32_t *out);
/* Sums of products of one block of keys and a query, one a key. */
typedef void (*keys_fn)(const uint8_t *block, const int8_t *query, int groups, int32_t *out);
/* The same of keys in nibbles. */
typedef void (*nibble_keys_fn)(const uint8_t *block, const int8_t *query, int half, int32_t *out);
/* Sum of products of a list's centre and a query; dim is a multiple of 16. */
typedef int32_t (*bytes_fn)(const int8_t *centre, const int8_t *query, int dim);
/* Sum of products of a float16 row and a float32 query. */
typedef float (*dot_fn)(const uint16_t *row, const float *query, int dim);
/* The same for four rows, one after the other. */
typedef void (*dot4_fn)(const uint16_t *rows, const float *query, int dim, float *out);
/* The same, to the last bit, for four queries, one after the other: four sums a query. */
typedef dot4_fn dot16_fn;

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

static void run_in_turn(const run *now, const asker *askers, int many, int groups, hits *out);

static int32_t nibbles_generic(const uint8_t *row, const int8_t *query, int half, int quarter) {
    int32_t sum = 0;
    for (int j = 0; j < half; j++) sum += (row[j] & 15) * query[j] + (row[j] >> 4) * query[half + j];
    row += half;
    query += 2 * half;
    for (int part = 0; part < 4; part++, query += quarter)
        for (int j = 0; j < quarter; j++) sum += (row[j] >> 2 * part & 3) * query[j];
    return sum;
}

static void nibbles4_in_turn(const uint8_t *const *rows, const int8_t *query, int half, int quarter, int32_t *out);

static void keys_generic(const uint8_t *block, const int8_t *query, int groups, int32_t *out) {
    memset(out, 0, LANES * sizeof(int32_t));
    for (int g = 0; g < groups; g++, block += 64, query += 4)
        for (int v = 0; v < LANES; v++)
            for (int j = 0; j < 4; j++) out[v] += block[4 * v + j] * query[j];
}

static void nibble_keys_generic(const uint8_t *block, const int8_t *query, int half, int32_t *out) {
    memset(out, 0, LANES * sizeof(int32_t));
    for (int at = 0; at < half; at += 4, block += 64)
        for (int v = 0; v < LANES; v++)
            for (int j = 0; j < 4; j++) {
                uint8_t both = block[4 * v + j];
                out[v] += (both & 15) * query[at + j] + (both >> 4) * query[half + at + j];
            }
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

static void dot16_generic(const uint16_t *rows, const float *queries, int dim, float *out) {
    for (int q = 0; q < 4; q++) dot4_generic(rows, queries + (int64_t)q * dim, dim, out + 4 * q);
}

/* To the second cache, which can wait for more at a time than the first. */
static inline void prefetch_far(const void *from, int64_t bytes) {
    for (int64_t at = 0; at < bytes; at += 64) __builtin_prefetch((const char *)from + at, 0, 2);
}

static inline void prefetch(const void *from, int64_t bytes) {
    for (int64_t at = 0; at < bytes; at += 64) __builtin_prefetch((const char *)from + at);
    __builtin_prefetch((const char *)from + bytes - 1);
}

#ifdef X86
#include "scoring_x86.h"
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

static inline int32x4_t products_neon(int32x4_t total, uint8x16_t codes, const int8_t *query) {
    int8x16_t a = vreinterpretq_s8_u8(codes), x = vld1q_s8(query);
    return vpadalq_s16(total, vmlal_high_s8(vmull_s8(vget_low_s8(a), vget_low_s8(x)), a, x));
}

static int32_t nibbles_neon(const uint8_t *row, const int8_t *query, int half, int quarter) {
    const uint8x16_t low = vdupq_n_u8(15), pair = vdupq_n_u8(3);
    int32x4_t total = vdupq_n_s32(0);
    for (int j = 0; j < half; j += 16) {
        uint8x16_t bytes = half - j >= 16 ? vld1q_u8(row + j) : vcombine_u8(vld1_u8(row + j), vdup_n_u8(0));
        total = products_neon(total, vandq_u8(bytes, low), query + j);
        total = products_neon(total, vshrq_n_u8(bytes, 4), query + half + j);
    }
    row += half;
    query += 2 * half;
    for (int j = 0; j < quarter; j += 16) {
        uint8_t end[16] = {0};
        if (quarter - j < 16) memcpy(end, row + j, (size_t)(quarter - j));
        uint8x16_t bytes = vld1q_u8(quarter - j < 16 ? end : row + j);
        total = products_neon(total, vandq_u8(bytes, pair), query + j);
        total = products_neon(total, vandq_u8(vshrq_n_u8(bytes, 2), pair), query + quarter + j);
        total = products_neon(total, vandq_u8(vshrq_n_u8(bytes, 4), pair), query + 2 * quarter + j);
        total = products_neon(total, vshrq_n_u8(bytes, 6), query + 3 * quarter + j);
    }
    return vaddvq_s32(total);
}
#endif

/* ---- choice of variant ------------------------------------------------------------------------------------------ */

typedef struct {
    signs_fn signs;
    run_fn run;
    nibbles_fn nibbles;
    nibbles4_fn four_nibbles;
    keys_fn keys;
    nibble_keys_fn nibble_keys;
    bytes_fn bytes;
    dot_fn half;
    dot4_fn four_halves;
    dot16_fn sixteen_halves;
} scores;

#define PLAIN                                                                                                    \
    {signs_generic,       run_in_turn,   nibbles_generic, nibbles4_in_turn, keys_generic, nibble_keys_generic, \
     bytes_generic,       dot_generic,   dot4_generic,    dot16_generic}
static scores use = PLAIN;

static void nibbles4_in_turn(const uint8_t *const *rows, const int8_t *query, int half, int quarter, int32_t *out) {
    for (int r = 0; r < 4; r++) out[r] = use.nibbles(rows[r], query, half, quarter);
}

static void run_in_turn(const run *now, const asker *askers, int many, int groups, hits *out) {
    int32_t scores[SIGN_LANES];
    for (int q = 0; q < many; q++) out[q].count = 0;
    for (int64_t b = 0; b < now->count; b++) {
        for (int q = 0; q < many; q++) {
            uint32_t mask = use.signs(now->signs + b * groups * 64, now->factors + b * SIGN_LANES, askers[q].table,
                                      groups, askers[q].middle, askers[q].bar, scores);
            for (; mask; mask &= mask - 1) {
                int v = __builtin_ctz(mask);
                out[q].of[out[q].count++] = (hit){scores[v], (uint32_t)(b * SIGN_LANES + v)};
            }
        }
    }
}

/* Use the widest variant that this processor has, but none above `most` (for tests). Returns the one chosen. */
EXPORT int hivlp_choose(int most) {
    int chosen = GENERIC;
    use = (scores)PLAIN;
#ifdef X86
    __builtin_cpu_init();
    if (most >= AVX2 && __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) {
        use = (scores){signs_avx2,       run_in_turn, nibbles_avx2, nibbles4_in_turn, keys_avx2,
                       nibble_keys_avx2, bytes_avx2,  dot_avx2,     dot4_avx2,        dot16_avx2};
        chosen = AVX2;
    }
    if (most >= AVX512 && chosen == AVX2 && __builtin_cpu_supports("avx512vnni") &&
        __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512vl") &&
        __builtin_cpu_supports("avx512dq")) {
        use = (scores){signs_avx512,       run_avx512,   nibbles_avx512, nibbles4_avx512, keys_avx512,
                       nibble_keys_avx512, bytes_avx512, dot_avx512,     dot4_avx512,     dot16_avx512};
        chosen = AVX512;
    }
#endif
#ifdef ARM64
    if (most >= NEON) {
        use.signs = signs_neon;
        use.nibbles = nibbles_neon;
        chosen = NEON;
    }
#endif
    return chosen;
}

EXPORT void hivlp_signs(const uint8_t *blocks, const uint8_t *factors, int64_t count, const uint8_t *table, int groups,
                        int middle, int bar, int32_t *out, uint32_t *masks) {
    for (int64_t b = 0; b < count; b++)
        masks[b] = use.signs(blocks + b * groups * 64, factors + b * SIGN_LANES, table, groups, (int16_t)middle, bar,
                               out + b * SIGN_LANES);
}

EXPORT void hivlp_nibbles(const uint8_t *rows, int64_t count, const int8_t *query, int half, int quarter,
                          int32_t *out) {
    for (int64_t i = 0; i < count; i++) out[i] = use.nibbles(rows + i * (half + quarter), query, half, quarter);
}

EXPORT void hivlp_nibbles4(const uint8_t *rows, int64_t count, const int8_t *query, int half, int quarter,
                           int32_t *out) {
    for (int64_t i = 0; i < count; i += 4) {
        const uint8_t *here = rows + i * (half + quarter), *four[4];
        for (int r = 0; r < 4; r++) four[r] = here + r * (half + quarter);
        use.four_nibbles(four, query, half, quarter, out + i);
    }
}

EXPORT void hivlp_keys(const uint8_t *blocks, int64_t count, const int8_t *query, int groups, int32_t *out) {
    for (int64_t b = 0; b < count; b++) use.keys(blocks + b * groups * 64, query, groups, out + b * LANES);
}

EXPORT void hivlp_nibble_keys(const uint8_t *blocks, int64_t count, const int8_t *query, int half, int32_t *out) {
    for (int64_t b = 0; b < count; b++) use.nibble_keys(blocks + b * half * LANES, query, half, out + b * LANES);
}

EXPORT void hivlp_dot4(const uint16_t *rows, const float *query, int dim, float *out) {
    use.four_halves(rows, query, dim, out);
}

EXPORT void hivlp_dot16(const uint16_t *rows, const float *queries, int dim, float *out) {
    use.sixteen_halves(rows, queries, dim, out);
}

EXPORT void hivlp_bytes(const int8_t *rows, int64_t count, const int8_t *query, int dim, int32_t *out) {
    for (int64_t i = 0; i < count; i++) out[i] = use.bytes(rows + i * dim, query, dim);
}

EXPORT void hivlp_dot(const uint16_t *rows, const int64_t *which, int64_t count, const float *query, int dim,
                      float *out) {
    for (int64_t i = 0; i < count; i++) out[i] = use.half(rows + (which ? which[i] : i) * dim, query, dim);
}
