/* counter A B C [PAUSE]: for ever write the next number to A, then to B, then to C, each durable before the next.
 *
 * So at any instant A >= B >= C and A - C <= 1; copies for which that does not hold are not of one instant.
 * A, B and C are files or block devices; the first 4096 bytes are one line "000000000001041\n", repeated 256 times.
 * PAUSE is in microseconds. Counting goes on from the number found in A, written to all three first.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

enum { BLOCK = 4096, LINE = 16 };

static int fail(const char *what)
{
    fprintf(stderr, "counter: %s: %s\n", what, strerror(errno));
    return 1;
}

int main(int argc, char **argv)
{
    static char block[BLOCK] __attribute__((aligned(BLOCK)));
    int fds[3];

    if (argc != 4 && argc != 5) {
        fprintf(stderr, "usage: counter A B C [PAUSE in microseconds]\n");
        return 2;
    }
    useconds_t pause = argc == 5 ? strtoul(argv[4], NULL, 10) : 0;
    for (int i = 0; i < 3; i++) {
        fds[i] = open(argv[1 + i], O_RDWR | O_CREAT | O_DIRECT | O_DSYNC, 0644);
        if (fds[i] < 0)
            return fail(argv[1 + i]);
    }
    if (pread(fds[0], block, BLOCK, 0) < 0)
        return fail(argv[1]);
    char first[LINE] = {0};
    memcpy(first, block, LINE - 1);
    for (uint64_t n = strtoull(first, NULL, 10);; n++) {
        char line[LINE + 1];
        snprintf(line, sizeof line, "%015llu\n", (unsigned long long)(n % 1000000000000000));
        for (int at = 0; at < BLOCK; at += LINE)
            memcpy(block + at, line, LINE);
        for (int i = 0; i < 3; i++)
            if (pwrite(fds[i], block, BLOCK, 0) != BLOCK)
                return fail(argv[1 + i]);
        if (pause)
            usleep(pause);
    }
}
