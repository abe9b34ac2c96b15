/* Every variant of the kernels beside the plain one, on random and on extreme codes; for processors that are emulated. */
#include "../src/hivlp/ann/c/halves.c"
#include "../src/hivlp/ann/c/kernels.c"
#include <stdio.h>

int main(void) {
    static uint8_t block[64 * 32], factors[32], table[128 * 32], nibbles[256], keys[64 * 128];
    static int8_t query[1024];
    static uint16_t halves[1000];
    static float floats[1000];
    int bad = 0, variant = GENERIC;
    srand(7);
    for (int trial = 0; trial < 300; trial++) {
        int groups = 1 + rand() % 32, wide = 8 + rand() % 16 * 8, dim = 1 + rand() % 1000, extreme = trial % 3 == 0;
        int even = 16 + rand() % 32 * 16, pairs = rand() % 32 * 4;
        for (unsigned i = 0; i < sizeof block; i++) block[i] = (uint8_t)rand();
        for (unsigned i = 0; i < sizeof factors; i++) factors[i] = (uint8_t)rand();
        for (unsigned i = 0; i < sizeof table; i++)
            table[i] = extreme ? 63 : i % 32 < 16 ? (uint8_t)(rand() % 64) : table[i - 16];
        for (unsigned i = 0; i < sizeof nibbles; i++) nibbles[i] = extreme ? 255 : (uint8_t)rand();
        for (unsigned i = 0; i < sizeof keys; i++) keys[i] = extreme ? 255 : (uint8_t)rand();
        for (unsigned i = 0; i < sizeof query; i++) query[i] = extreme ? -128 : (int8_t)rand();
        for (int i = 0; i < dim; i++) {
            halves[i] = (uint16_t)(rand() % 0x3c00 | (rand() & 1) << 15); /* between -1 and 1, subnormals too */
            floats[i] = (float)rand() / (float)RAND_MAX - 0.5f;
        }
        int32_t expected[32], found[32], expected_keys[16], found_keys[16], expected_nibble_keys[16], found_nibble_keys[16];
        int16_t middle = (int16_t)(groups * 100);
        hivlp_choose(GENERIC);
        uint32_t mask = use.signs(block, factors, table, groups, middle, 5000, expected);
        int32_t sum = use.nibbles(nibbles, query, wide, pairs), bytes = use.bytes((const int8_t *)keys, query, even);
        float product = use.half(halves, floats, dim), four[4], found_four[4];
        use.four_halves(halves, floats, dim / 4, four);
        use.keys(keys, query, 128, expected_keys);
        use.nibble_keys(keys, query, even / 2, expected_nibble_keys);
        for (int most = AVX2; most <= NEON; most++) {
            variant = hivlp_choose(most);
            bad += use.signs(block, factors, table, groups, middle, 5000, found) != mask;
            asker askers[SIDE]; /* the same for each of them */
            hits side[SIDE];
            run now = {block, factors, 1};
            int many = 1 + rand() % SIDE;
            for (int q = 0; q < SIDE; q++) askers[q] = (asker){table, (int16_t)(middle - q), q ? -(1 << 30) : 5000};
            use.run(&now, askers, many, groups, side);
            for (int q = 0; q < many; q++) {
                uint32_t there = 0;
                for (int i = 0; i < side[q].count; i++) {
                    hit one = side[q].of[i];
                    there |= 1u << one.at;
                    bad += one.score != found[one.at] + q * factors[one.at];
                }
                bad += there != (q ? UINT32_MAX : mask) || side[q].count != __builtin_popcount(there);
            }
            bad += use.nibbles(nibbles, query, wide, pairs) != sum;
            const uint8_t *rows[4] = {nibbles + 3, nibbles, nibbles + 1, nibbles + 2};
            int32_t four_sums[4];
            use.four_nibbles(rows, query, wide, pairs, four_sums);
            for (int r = 0; r < 4; r++) bad += four_sums[r] != use.nibbles(rows[r], query, wide, pairs);
            bad += use.bytes((const int8_t *)keys, query, even) != bytes;
            bad += !(fabsf(use.half(halves, floats, dim) - product) < 1e-3f);
            use.four_halves(halves, floats, dim / 4, found_four);
            for (int i = 0; i < 4; i++) bad += !(fabsf(four[i] - found_four[i]) < 1e-3f);
            float sixteen[16]; /* the same sums for each query, to the last bit */
            use.four_halves(halves, floats, dim / 8, found_four);
            use.sixteen_halves(halves, floats, dim / 8, sixteen);
            bad += memcmp(found_four, sixteen, sizeof found_four) != 0;
            use.four_halves(halves, floats + 3 * (dim / 8), dim / 8, found_four);
            bad += memcmp(found_four, sixteen + 12, sizeof found_four) != 0;
            use.keys(keys, query, 128, found_keys);
            use.nibble_keys(keys, query, even / 2, found_nibble_keys);
            bad += memcmp(expected_nibble_keys, found_nibble_keys, sizeof found_nibble_keys) != 0;
            bad += memcmp(expected, found, sizeof found) != 0;
            bad += memcmp(expected_keys, found_keys, sizeof found_keys) != 0;
        }
    }
    /* Every float16 is itself; halfway to the next one goes to the even one, and a little more or less to the nearer. */
    int can = can_convert();
    for (uint32_t h = 0; can && h < 0x7bff; h++) {
        float low = half_to_float((uint16_t)h), high = half_to_float((uint16_t)(h + 1)), middle = low / 2 + high / 2;
        float given[9] = {low, middle, nextafterf(middle, 0), nextafterf(middle, 1e9f), -low, -middle, high, 1e9f, -high};
        uint16_t even = (uint16_t)(h + (h & 1)), sign = 0x8000, to[9];
        uint16_t right[9] = {(uint16_t)h, even, (uint16_t)h, (uint16_t)(h + 1), (uint16_t)h | sign, even | sign,
                             (uint16_t)(h + 1), 0x7c00, (uint16_t)(h + 1) | sign};
        bad += !hivlp_halves(given, 9, to) || memcmp(to, right, sizeof to) != 0;
    }
    printf("%d bad, widest variant %d\n", bad, variant);
    return bad != 0;
}
