/* CRC32C (Castagnoli, reflected polynomial 0x82f63b78): it guards every WAL record and every frame.
 * Where the processor has SSE4.2 its crc32 instruction does 8 bytes in 3 cycles; else eight tables
 * ("slicing by 8") do 8 bytes in a dozen. Both are chosen and built once, before main(), so that no
 * thread meets a half-built table. */
#include "base/codec.h"

#define CRC32C_POLY 0x82f63b78u

static uint32_t crc_table[8][256];

uint32_t crc32c_portable(uint32_t crc, const void *p, size_t n)
{
    const uint8_t *at = p;

    crc = ~crc;
    for (; n >= 8; n -= 8, at += 8) {
        const uint32_t low = crc ^ ((uint32_t)at[0] | (uint32_t)at[1] << 8 | (uint32_t)at[2] << 16 |
                                    (uint32_t)at[3] << 24);

        crc = crc_table[7][low & 0xff] ^ crc_table[6][low >> 8 & 0xff] ^
              crc_table[5][low >> 16 & 0xff] ^ crc_table[4][low >> 24] ^ crc_table[3][at[4]] ^
              crc_table[2][at[5]] ^ crc_table[1][at[6]] ^ crc_table[0][at[7]];
    }
    for (; n > 0; n--, at++) {
        crc = crc >> 8 ^ crc_table[0][(crc ^ *at) & 0xff];
    }
    return ~crc;
}

static uint32_t (*crc_chosen)(uint32_t, const void *, size_t) = crc32c_portable;

#if defined(__x86_64__)
__attribute__((target("sse4.2"))) static uint32_t crc32c_sse42(uint32_t crc, const void *p,
                                                               size_t n)
{
    const uint8_t *at = p;
    uint64_t c = ~crc;

    for (; n >= 8; n -= 8, at += 8) {
        uint64_t word = 0;

        memcpy(&word, at, sizeof word);
        c = __builtin_ia32_crc32di(c, word);
    }
    for (; n > 0; n--, at++) {
        c = __builtin_ia32_crc32qi((uint32_t)c, *at);
    }
    return ~(uint32_t)c;
}
#endif

__attribute__((constructor)) static void crc32c_choose(void)
{
    for (uint32_t i = 0; i < 256; i++) {
        uint32_t crc = i;

        for (int bit = 0; bit < 8; bit++) {
            crc = crc >> 1 ^ (crc & 1 ? CRC32C_POLY : 0);
        }
        crc_table[0][i] = crc;
    }
    for (uint32_t i = 0; i < 256; i++) {
        for (int t = 1; t < 8; t++) {
            const uint32_t before = crc_table[t - 1][i];

            crc_table[t][i] = before >> 8 ^ crc_table[0][before & 0xff];
        }
    }
#if defined(__x86_64__)
    __builtin_cpu_init();
    if (__builtin_cpu_supports("sse4.2")) {
        crc_chosen = crc32c_sse42;
    }
#endif
}

uint32_t crc32c(uint32_t crc, const void *p, size_t n)
{
    return crc_chosen(crc, p, n);
}
