/* Kernels in plain C and for Arm, and the choice of a variant at run time. */
#include "kernels.h"

#include "kernels_x86.h"

/* ---- generic ---------------------------------------------------------------------------------------------------- */

static uint32_t sign_scores_generic(const uint8_t *block, const uint8_t *scales, const sign_query *query,
    int groups, int32_t *out) {
    uint32_t mask = 0;
    for (int v = 0; v < CODE_LANES; v++) {
        const uint8_t *bytes = block + v, *sums = query->lut;
        int32_t sum = -query->lut_offset;
        for (int g = 0; g < groups; g++, bytes += 64, sums += 128) {
            uint8_t first = bytes[0], second = bytes[CODE_LANES];
            sum += sums[first & 15] + sums[64 + (first >> 4)] + sums[32 + (second & 15)] + sums[96 + (second >> 4)];
        }
        out[v] = sum * scales[v];
        mask |= (uint32_t)(out[v] >= query->threshold) << v;
    }
    return mask;
}

static int32_t refine_dot_generic(const uint8_t *row, const int8_t *query, int nibble_bytes, int pair_bytes) {
    int32_t sum = 0;
    for (int j = 0; j < nibble_bytes; j++) sum += (row[j] & 15) * query[j] + (row[j] >> 4) * query[nibble_bytes + j];
    row += nibble_bytes;
    query += 2 * nibble_bytes;
    for (int part = 0; part < 4; part++, query += pair_bytes)
        for (int j = 0; j < pair_bytes; j++) sum += (row[j] >> 2 * part & 3) * query[j];
    return sum;
}

static void key_dots_generic(const uint8_t *block, const int8_t *query, int groups, int32_t *out) {
    memset(out, 0, LIST_LANES * sizeof(int32_t));
    for (int g = 0; g < groups; g++, block += 64, query += 4)
        for (int v = 0; v < LIST_LANES; v++)
            for (int j = 0; j < 4; j++) out[v] += block[4 * v + j] * query[j];
}

static void router_dots_generic(const uint8_t *block, const int8_t *query, int nibble_bytes, int32_t *out) {
    memset(out, 0, LIST_LANES * sizeof(int32_t));
    for (int at = 0; at < nibble_bytes; at += 4, block += 64)
        for (int v = 0; v < LIST_LANES; v++)
            for (int j = 0; j < 4; j++) {
                uint8_t both = block[4 * v + j];
                out[v] += (both & 15) * query[at + j] + (both >> 4) * query[nibble_bytes + at + j];
            }
}

static int32_t int8_dot_generic(const int8_t *centroid, const int8_t *query, int dim) {
    int32_t sum = 0;
    for (int j = 0; j < dim; j++) sum += centroid[j] * query[j];
    return sum;
}

static float fp16_dot_generic(const uint16_t *row, const float *query, int dim) {
    float sum[8] = {0};
    int i = 0;
    for (; i + 8 <= dim; i += 8)
        for (int j = 0; j < 8; j++) sum[j] += half_to_float(row[i + j]) * query[i + j];
    for (; i < dim; i++) sum[0] += half_to_float(row[i]) * query[i];
    return ((sum[0] + sum[1]) + (sum[2] + sum[3])) + ((sum[4] + sum[5]) + (sum[6] + sum[7]));
}

static void fp16_dot4_generic(const uint16_t *rows, const float *query, int dim, float *out) {
    for (int r = 0; r < 4; r++) out[r] = fp16_dot_generic(rows + (int64_t)r * dim, query, dim);
}

static void fp16_dot16_generic(const uint16_t *rows, const float *queries, int dim, float *out) {
    for (int q = 0; q < 4; q++) fp16_dot4_generic(rows, queries + (int64_t)q * dim, dim, out + 4 * q);
}

static float codes_dot_generic(const int8_t *codes, const float *query, int dim) {
    float sum[8] = {0};
    int i = 0;
    for (; i + 8 <= dim; i += 8)
        for (int j = 0; j < 8; j++) sum[j] += (float)codes[i + j] * query[i + j];
    for (; i < dim; i++) sum[0] += (float)codes[i] * query[i];
    return ((sum[0] + sum[1]) + (sum[2] + sum[3])) + ((sum[4] + sum[5]) + (sum[6] + sum[7]));
}

static int32_t bound_dot_generic(const uint8_t *row, const int8_t *high, const int8_t *low, int nibble_bytes, int pair_bytes) {
    int32_t a = 0, b = 0;
    for (int j = 0; j < nibble_bytes; j++) {
        int first = row[j] & 15, second = row[j] >> 4;
        a += first * high[j] + second * high[nibble_bytes + j];
        b += first * low[j] + second * low[nibble_bytes + j];
    }
    for (int j = 0; j < 4 * pair_bytes; j++) {
        int code = row[nibble_bytes + j % pair_bytes] >> 2 * (j / pair_bytes) & 3;
        a += code * high[2 * nibble_bytes + j];
        b += code * low[2 * nibble_bytes + j];
    }
    return 128 * a + b;
}

static void bound_dots_generic(const uint8_t *const *rows, const int8_t *high, const int8_t *low, int nibble_bytes,
                               int pair_bytes, int32_t *out) {
    for (int r = 0; r < TOGETHER; r++) out[r] = bound_dot_generic(rows[r], high, low, nibble_bytes, pair_bytes);
}

/* ---- Arm -------------------------------------------------------------------------------------------------------- */

#ifdef ARM64
static uint32_t sign_scores_neon(const uint8_t *block, const uint8_t *scales, const sign_query *query,
    int groups, int32_t *out) {
    const uint8x16_t low = vdupq_n_u8(15);
    uint32_t mask = 0;
    for (int part = 0; part < 2; part++) {
        uint16x8_t first = vdupq_n_u16(0), second = vdupq_n_u16(0);
        for (int g = 0; g < groups; g++) {
            uint8x16_t sum = vdupq_n_u8(0);
            for (int half = 0; half < 2; half++) {
                const uint8_t *here = query->lut + 128 * g + 32 * half;
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
            int32_t score = ((int32_t)sums[v] - query->lut_offset) * scales[16 * part + v];
            out[16 * part + v] = score;
            mask |= (uint32_t)(score >= query->threshold) << (16 * part + v);
        }
    }
    return mask;
}

static inline int32x4_t dot_neon(int32x4_t total, uint8x16_t codes, const int8_t *query) {
    int8x16_t a = vreinterpretq_s8_u8(codes), x = vld1q_s8(query);
    return vpadalq_s16(total, vmlal_high_s8(vmull_s8(vget_low_s8(a), vget_low_s8(x)), a, x));
}

static int32_t refine_dot_neon(const uint8_t *row, const int8_t *query, int nibble_bytes, int pair_bytes) {
    const uint8x16_t low = vdupq_n_u8(15), pair = vdupq_n_u8(3);
    int32x4_t total = vdupq_n_s32(0);
    for (int j = 0; j < nibble_bytes; j += 16) {
        uint8x16_t bytes = nibble_bytes - j >= 16 ? vld1q_u8(row + j) : vcombine_u8(vld1_u8(row + j), vdup_n_u8(0));
        total = dot_neon(total, vandq_u8(bytes, low), query + j);
        total = dot_neon(total, vshrq_n_u8(bytes, 4), query + nibble_bytes + j);
    }
    row += nibble_bytes;
    query += 2 * nibble_bytes;
    for (int j = 0; j < pair_bytes; j += 16) {
        uint8_t end[16] = {0};
        if (pair_bytes - j < 16) memcpy(end, row + j, (size_t)(pair_bytes - j));
        uint8x16_t bytes = vld1q_u8(pair_bytes - j < 16 ? end : row + j);
        total = dot_neon(total, vandq_u8(bytes, pair), query + j);
        total = dot_neon(total, vandq_u8(vshrq_n_u8(bytes, 2), pair), query + pair_bytes + j);
        total = dot_neon(total, vandq_u8(vshrq_n_u8(bytes, 4), pair), query + 2 * pair_bytes + j);
        total = dot_neon(total, vshrq_n_u8(bytes, 6), query + 3 * pair_bytes + j);
    }
    return vaddvq_s32(total);
}

static int to_float16_neon(const float *numbers, int64_t groups, uint16_t *halves) {
    uint32x4_t even = vdupq_n_u32(~0u);
    for (int64_t g = 0; g < 2 * groups; g++, numbers += 4, halves += 4) {
        float32x4_t some = vld1q_f32(numbers);
        even = vandq_u32(even, vceqq_f32(some, some));
        vst1_u16(halves, vreinterpret_u16_f16(vcvt_f16_f32(some)));
    }
    return vminvq_u32(even) != 0;
}
#endif

/* ---- choice of a variant ---------------------------------------------------------------------------------------- */

static void refine_dot4_in_turn(const uint8_t *const *codes, const int8_t *query, int nibble_bytes, int pair_bytes,
                                int32_t *out) {
    for (int r = 0; r < TOGETHER; r++) out[r] = use.refine_dot(codes[r], query, nibble_bytes, pair_bytes);
}

static void sign_scan_in_turn(const block_run *run, const sign_query *queries, int many, int groups, hits *out) {
    int32_t scores[CODE_LANES];
    for (int q = 0; q < many; q++) out[q].count = 0;
    for (int64_t b = 0; b < run->count; b++) {
        for (int q = 0; q < many; q++) {
            uint32_t mask = use.sign_scores(run->codes + b * groups * 64, run->scales + b * CODE_LANES, &queries[q], groups,
                                            scores);
            for (; mask; mask &= mask - 1) {
                int v = __builtin_ctz(mask);
                out[q].of[out[q].count++] = (hit){scores[v], (uint32_t)(b * CODE_LANES + v)};
            }
        }
    }
}

#define PLAIN                                                                                                    \
    {.sign_scores = sign_scores_generic, .sign_scan = sign_scan_in_turn, .refine_dot = refine_dot_generic,       \
     .refine_dot4 = refine_dot4_in_turn, .key_dots = key_dots_generic, .router_dots = router_dots_generic,       \
     .int8_dot = int8_dot_generic, .fp16_dot = fp16_dot_generic, .fp16_dot4 = fp16_dot4_generic,                 \
     .fp16_dot16 = fp16_dot16_generic, .codes_dot = codes_dot_generic, .bound_dots = bound_dots_generic}
kernels use = PLAIN;

int hivlp_use_variant(int most) {
    int chosen = GENERIC;
    use = (kernels)PLAIN;
#ifdef X86
    __builtin_cpu_init();
    if (most >= AVX2 && __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) {
        use = (kernels){sign_scores_avx2, sign_scan_in_turn, refine_dot_avx2, refine_dot4_in_turn, key_dots_avx2,
                        router_dots_avx2, int8_dot_avx2, fp16_dot_avx2, fp16_dot4_avx2, fp16_dot16_avx2,
                        codes_dot_avx2, bound_dots_avx2, to_float16_avx2};
        chosen = AVX2;
    }
    if (most >= AVX512 && chosen == AVX2 && __builtin_cpu_supports("avx512vnni") &&
        __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512vl") &&
        __builtin_cpu_supports("avx512dq")) {
        use = (kernels){sign_scores_avx512, sign_scan_avx512, refine_dot_avx512, refine_dot4_avx512, key_dots_avx512,
                        router_dots_avx512, int8_dot_avx512, fp16_dot_avx512, fp16_dot4_avx512, fp16_dot16_avx512,
                        codes_dot_avx512, bound_dots_avx512, to_float16_avx2};
        chosen = AVX512;
    }
#endif
#ifdef ARM64
    if (most >= NEON) {
        use.sign_scores = sign_scores_neon;
        use.refine_dot = refine_dot_neon;
        use.to_float16 = to_float16_neon;
        chosen = NEON;
    }
#endif
    return chosen;
}

void hivlp_dot(const uint8_t *vectors, int64_t bytes, int is_int8, const int64_t *rows, int64_t count, const float *query,
               int dims, float *out) {
    for (int64_t i = 0; i < count; i++) out[i] = vector_dot(vectors + (rows ? rows[i] : i) * bytes, is_int8, query, dims);
}

int hivlp_to_float16(const float *numbers, int64_t count, uint16_t *halves) {
    if (!use.to_float16) return 0;
    int64_t groups = count / 8, rest = count % 8;
    int done = use.to_float16(numbers, groups, halves);
    if (rest) {
        float last[8] = {0};
        uint16_t converted[8];
        memcpy(last, numbers + groups * 8, (size_t)rest * sizeof *last);
        done &= use.to_float16(last, 1, converted);
        memcpy(halves + groups * 8, converted, (size_t)rest * sizeof *converted);
    }
    return done;
}
