/* Kernels: inner products and scores of packed codes, with a variant for each instruction set.
 *
 * Byte layouts:
 * - Sign codes, 1 bit a dim: CODE_LANES codes share a block. For every 16 dims a block holds 64 bytes: byte v has dims 0-3 of
 *   code v in its low nibble and 4-7 in its high one, byte 32 + v has 8-11 and 12-15. A query is a lookup table (LUT) of 16
 *   sums, 0 to 63, for every four dims (as in FastScan). The sum, less the LUT's offset, times the code's own scale is the
 *   estimate of the inner product with the residual.
 * - Refinement codes: one after the other, `nibble_bytes` bytes of 4-bit codes, byte j having dim j in its low nibble and dim
 *   nibble_bytes + j in its high one; then `pair_bytes` bytes of 2-bit codes, byte j having the j-th dim of each quarter, the
 *   first in its lowest bits. nibble_bytes is a multiple of 8, pair_bytes of 4; 64 bytes more of a query may be read than it
 *   has dims.
 * - 8-bit keys: LIST_LANES share a block, four dims to 64 bytes; a byte is the value plus 128.
 * - 4-bit keys (of the router): a block has 64 bytes for every eight dims; byte j of a key as byte j of a refinement code.
 *
 * Scores of codes are sums of small integers, and what is made of these is float32 in a fixed order, so that all variants
 * agree to the last bit. Only the products of stored vectors may differ in rounding.
 */
#pragma once
#include <stdint.h>
#include <string.h>

#include "constants.h"
#include "platform.h"

#define TOGETHER 4   /* queries that share one pass over sign codes, at most; refinement codes scored at once */
#define RUN_BLOCKS 8 /* blocks of sign codes in one call, at most */
enum { GENERIC = 0, AVX2 = 1, AVX512 = 2, NEON = 3 };

/* Query of a sign scan: its LUT, the LUT's offset, and the score that a code must reach. */
typedef struct { const uint8_t *lut; int16_t lut_offset; int32_t threshold; } sign_query;
/* Consecutive blocks of sign codes. */
typedef struct { const uint8_t *codes, *scales; int64_t count; } block_run;
/* Codes of a run that reach a threshold: scores, and positions from the run's first code. */
typedef struct { int32_t score; uint32_t at; } hit;
typedef struct { int count; hit of[RUN_BLOCKS * CODE_LANES]; } hits;

typedef struct {
    /* Scores of one block of sign codes; returns a bit for each that reaches the threshold. */
    uint32_t (*sign_scores)(const uint8_t *block, const uint8_t *scales, const sign_query *query, int groups, int32_t *out);
    /* Codes of a run that reach the thresholds of up to TOGETHER queries: hits of each query, by position. */
    void (*sign_scan)(const block_run *run, const sign_query *queries, int many, int groups, hits *out);
    /* Inner product of one refinement code and a query; and of TOGETHER codes. */
    int32_t (*refine_dot)(const uint8_t *code, const int8_t *query, int nibble_bytes, int pair_bytes);
    void (*refine_dot4)(const uint8_t *const *codes, const int8_t *query, int nibble_bytes, int pair_bytes, int32_t *out);
    /* Inner products of a block of 8-bit keys and a query; `groups` of four dims. */
    void (*key_dots)(const uint8_t *block, const int8_t *query, int groups, int32_t *out);
    /* Inner products of a block of 4-bit keys and a query, of half as many bytes as dims. */
    void (*router_dots)(const uint8_t *block, const int8_t *query, int nibble_bytes, int32_t *out);
    /* Inner product of an int8 centroid and a query; dims is a multiple of 16. */
    int32_t (*int8_dot)(const int8_t *centroid, const int8_t *query, int dims);
    /* Inner product of a float16 vector and a float32 query; of four consecutive vectors; of these and four consecutive
     * queries, four products a query and each to the last bit that of fp16_dot4. */
    float (*fp16_dot)(const uint16_t *vector, const float *query, int dims);
    void (*fp16_dot4)(const uint16_t *vectors, const float *query, int dims, float *out);
    void (*fp16_dot16)(const uint16_t *vectors, const float *queries, int dims, float *out);
    /* Inner product of the int8 codes of a vector and a float32 query. */
    float (*codes_dot)(const int8_t *codes, const float *query, int dims);
    /* Inner products of TOGETHER refinement codes and a 15-bit query, 128 * high + low. */
    void (*bound_dots)(const uint8_t *const *codes, const int8_t *high, const int8_t *low, int nibble_bytes, int pair_bytes,
                       int32_t *out);
    /* Float32 to float16, eight numbers a group; returns whether none was NaN. NULL without an instruction for it. */
    int (*to_float16)(const float *numbers, int64_t groups, uint16_t *halves);
} kernels;

/* Kernels in use: the widest variant that the processor has, once hivlp_use_variant was called. */
extern HIDDEN kernels use;

/* Use the widest variant of this processor up to `most`; returns the one chosen. */
EXPORT int hivlp_use_variant(int most);

/* Inner product of a stored vector and a float32 query: of `dims` float16, or as many int8 and a float scale behind them. */
static inline float vector_dot(const uint8_t *vector, int is_int8, const float *query, int dims) {
    if (!is_int8) return use.fp16_dot((const uint16_t *)vector, query, dims);
    float scale;
    memcpy(&scale, vector + dims, sizeof scale);
    return scale * use.codes_dot((const int8_t *)vector, query, dims);
}

/* Inner products of `count` stored vectors, each of `bytes`, and a query; of the vectors at `rows`, or of the first ones
 * where that is NULL. */
EXPORT void hivlp_dot(const uint8_t *vectors, int64_t bytes, int is_int8, const int64_t *rows, int64_t count,
                      const float *query, int dims, float *out);

/* Float32 to float16, to nearest, ties to even. Returns whether it was done: not without an instruction for it, nor where a
 * number is NaN, of which every processor makes what it likes. */
EXPORT int hivlp_to_float16(const float *numbers, int64_t count, uint16_t *halves);

static inline float half_to_float(uint16_t half) {
    uint32_t sign = (uint32_t)(half & 0x8000) << 16, exponent = (half >> 10) & 31, fraction = half & 1023, bits;
    if (exponent == 31) bits = sign | 0x7f800000 | fraction << 13;
    else if (exponent) bits = sign | (exponent + 112) << 23 | fraction << 13;
    else { float tiny = (float)fraction * 5.9604644775390625e-8f; return sign ? -tiny : tiny; }
    float value;
    memcpy(&value, &bits, 4);
    return value;
}

/* Prefetch into the second-level cache, which can wait for more lines at a time than the first. */
static inline void prefetch_far(const void *from, int64_t bytes) {
    for (int64_t at = 0; at < bytes; at += 64) __builtin_prefetch((const char *)from + at, 0, 2);
}

static inline void prefetch(const void *from, int64_t bytes) {
    for (int64_t at = 0; at < bytes; at += 64) __builtin_prefetch((const char *)from + at);
    __builtin_prefetch((const char *)from + bytes - 1);
}
