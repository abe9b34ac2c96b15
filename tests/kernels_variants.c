/* Kernels one by one: as a program, every variant beside the plain one, on random and on extreme codes, for processors that
 * are emulated; as a library, functions that tests hold against numpy. */
#include "../src/hivlp/ann/c/kernels.c"
#include <math.h>
#include <stdio.h>
#include <stdlib.h>

EXPORT void test_sign_scores(const uint8_t *blocks, const uint8_t *scales, int64_t count, const uint8_t *lut, int groups,
                             int lut_offset, int threshold, int32_t *out, uint32_t *masks) {
    sign_query query = {lut, (int16_t)lut_offset, threshold};
    for (int64_t b = 0; b < count; b++)
        masks[b] = use.sign_scores(blocks + b * groups * 64, scales + b * CODE_LANES, &query, groups, out + b * CODE_LANES);
}

EXPORT void test_refine_dot(const uint8_t *codes, int64_t count, const int8_t *query, int nibble_bytes, int pair_bytes,
                            int32_t *out) {
    for (int64_t i = 0; i < count; i++)
        out[i] = use.refine_dot(codes + i * (nibble_bytes + pair_bytes), query, nibble_bytes, pair_bytes);
}

EXPORT void test_refine_dot4(const uint8_t *codes, const int8_t *query, int nibble_bytes, int pair_bytes, int32_t *out) {
    const uint8_t *four[4];
    for (int r = 0; r < 4; r++) four[r] = codes + r * (nibble_bytes + pair_bytes);
    use.refine_dot4(four, query, nibble_bytes, pair_bytes, out);
}

EXPORT void test_key_dots(const uint8_t *blocks, int64_t count, const int8_t *query, int groups, int32_t *out) {
    for (int64_t b = 0; b < count; b++) use.key_dots(blocks + b * groups * 64, query, groups, out + b * LIST_LANES);
}

EXPORT void test_router_dots(const uint8_t *blocks, int64_t count, const int8_t *query, int nibble_bytes, int32_t *out) {
    for (int64_t b = 0; b < count; b++)
        use.router_dots(blocks + b * nibble_bytes * LIST_LANES, query, nibble_bytes, out + b * LIST_LANES);
}

EXPORT void test_int8_dot(const int8_t *rows, int64_t count, const int8_t *query, int dims, int32_t *out) {
    for (int64_t i = 0; i < count; i++) out[i] = use.int8_dot(rows + i * dims, query, dims);
}

EXPORT void test_fp16_dot4(const uint16_t *rows, const float *query, int dims, float *out) {
    use.fp16_dot4(rows, query, dims, out);
}

EXPORT void test_fp16_dot16(const uint16_t *rows, const float *queries, int dims, float *out) {
    use.fp16_dot16(rows, queries, dims, out);
}

int main(void) {
    static uint8_t block[64 * 32], scales[32], lut[128 * 32], nibbles[256], keys[64 * 128];
    static int8_t query[1024];
    static uint16_t halves[1000];
    static float floats[1000];
    int bad = 0, variant = GENERIC;
    srand(7);
    for (int trial = 0; trial < 300; trial++) {
        int groups = 1 + rand() % 32, wide = 8 + rand() % 16 * 8, dim = 1 + rand() % 1000, extreme = trial % 3 == 0;
        int even = 16 + rand() % 32 * 16, pairs = rand() % 32 * 4;
        for (unsigned i = 0; i < sizeof block; i++) block[i] = (uint8_t)rand();
        for (unsigned i = 0; i < sizeof scales; i++) scales[i] = (uint8_t)rand();
        for (unsigned i = 0; i < sizeof lut; i++)
            lut[i] = extreme ? 63 : i % 32 < 16 ? (uint8_t)(rand() % 64) : lut[i - 16];
        for (unsigned i = 0; i < sizeof nibbles; i++) nibbles[i] = extreme ? 255 : (uint8_t)rand();
        for (unsigned i = 0; i < sizeof keys; i++) keys[i] = extreme ? 255 : (uint8_t)rand();
        for (unsigned i = 0; i < sizeof query; i++) query[i] = extreme ? -128 : (int8_t)rand();
        for (int i = 0; i < dim; i++) {
            halves[i] = (uint16_t)(rand() % 0x3c00 | (rand() & 1) << 15); /* between -1 and 1, subnormals too */
            floats[i] = (float)rand() / (float)RAND_MAX - 0.5f;
        }
        int32_t expected[32], found[32], expected_keys[16], found_keys[16], expected_nibble_keys[16], found_nibble_keys[16];
        int16_t middle = (int16_t)(groups * 100);
        sign_query asked = {lut, middle, 5000};
        hivlp_use_variant(GENERIC);
        uint32_t mask = use.sign_scores(block, scales, &asked, groups, expected);
        int32_t sum = use.refine_dot(nibbles, query, wide, pairs), bytes = use.int8_dot((const int8_t *)keys, query, even);
        float product = use.fp16_dot(halves, floats, dim), four[4], found_four[4];
        use.fp16_dot4(halves, floats, dim / 4, four);
        use.key_dots(keys, query, 128, expected_keys);
        use.router_dots(keys, query, even / 2, expected_nibble_keys);
        for (int most = AVX2; most <= NEON; most++) {
            variant = hivlp_use_variant(most);
            bad += use.sign_scores(block, scales, &asked, groups, found) != mask;
            sign_query queries[TOGETHER]; /* the same for each of them */
            hits found_by[TOGETHER];
            block_run run = {block, scales, 1};
            int many = 1 + rand() % TOGETHER;
            for (int q = 0; q < TOGETHER; q++) queries[q] = (sign_query){lut, (int16_t)(middle - q), q ? -(1 << 30) : 5000};
            use.sign_scan(&run, queries, many, groups, found_by);
            for (int q = 0; q < many; q++) {
                uint32_t there = 0;
                for (int i = 0; i < found_by[q].count; i++) {
                    hit one = found_by[q].of[i];
                    there |= 1u << one.at;
                    bad += one.score != found[one.at] + q * scales[one.at];
                }
                bad += there != (q ? UINT32_MAX : mask) || found_by[q].count != __builtin_popcount(there);
            }
            bad += use.refine_dot(nibbles, query, wide, pairs) != sum;
            const uint8_t *rows[4] = {nibbles + 3, nibbles, nibbles + 1, nibbles + 2};
            int32_t four_sums[4];
            use.refine_dot4(rows, query, wide, pairs, four_sums);
            for (int r = 0; r < 4; r++) bad += four_sums[r] != use.refine_dot(rows[r], query, wide, pairs);
            bad += use.int8_dot((const int8_t *)keys, query, even) != bytes;
            bad += !(fabsf(use.fp16_dot(halves, floats, dim) - product) < 1e-3f);
            use.fp16_dot4(halves, floats, dim / 4, found_four);
            for (int i = 0; i < 4; i++) bad += !(fabsf(four[i] - found_four[i]) < 1e-3f);
            float sixteen[16]; /* the same sums for each query, to the last bit */
            use.fp16_dot4(halves, floats, dim / 8, found_four);
            use.fp16_dot16(halves, floats, dim / 8, sixteen);
            bad += memcmp(found_four, sixteen, sizeof found_four) != 0;
            use.fp16_dot4(halves, floats + 3 * (dim / 8), dim / 8, found_four);
            bad += memcmp(found_four, sixteen + 12, sizeof found_four) != 0;
            use.key_dots(keys, query, 128, found_keys);
            use.router_dots(keys, query, even / 2, found_nibble_keys);
            bad += memcmp(expected_nibble_keys, found_nibble_keys, sizeof found_nibble_keys) != 0;
            bad += memcmp(expected, found, sizeof found) != 0;
            bad += memcmp(expected_keys, found_keys, sizeof found_keys) != 0;
        }
    }
    /* Every float16 is itself; halfway to the next one goes to the even one, and a little more or less to the nearer. */
    int can = use.to_float16 != NULL;
    for (uint32_t h = 0; can && h < 0x7bff; h++) {
        float low = half_to_float((uint16_t)h), high = half_to_float((uint16_t)(h + 1)), middle = low / 2 + high / 2;
        float given[9] = {low, middle, nextafterf(middle, 0), nextafterf(middle, 1e9f), -low, -middle, high, 1e9f, -high};
        uint16_t even = (uint16_t)(h + (h & 1)), sign = 0x8000, to[9];
        uint16_t right[9] = {(uint16_t)h, even, (uint16_t)h, (uint16_t)(h + 1), (uint16_t)h | sign, even | sign,
                             (uint16_t)(h + 1), 0x7c00, (uint16_t)(h + 1) | sign};
        bad += !hivlp_to_float16(given, 9, to) || memcmp(to, right, sizeof to) != 0;
    }
    printf("%d bad, widest variant %d\n", bad, variant);
    return bad != 0;
}
