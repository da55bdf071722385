// cross IMAGE LEVEL: decode the batch of an image of memory, which tests/kernels/test_cross.py made on another machine.
//
// The image: how many pointers it has, its size, where its `Network` and its `Batch` are, the columns, where the plain
// bytes are and how many; the places of all pointers, which count from its beginning; the memory. Then for codec 19 the
// size of a payload, that of its plain bytes, and the payload. Both plain contents go to standard output.
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

uint32_t nnfs_levels(void);
int nnfs_offset(int);
int64_t nnfs_state_start(int, const void *, void *, uint8_t *, int64_t, int64_t);
int nnfs_decode_columns(int, const void *, void *, void *, int64_t, int64_t, void *, int64_t);
int64_t nnfs_ppm_size(int64_t);
int nnfs_ppm_decode(uint8_t *, int64_t, const uint8_t *, int64_t, uint8_t *, int64_t);

static uint8_t *room(int64_t size) {
    uint8_t *p = aligned_alloc(64, (size_t)(size + 63) / 64 * 64);
    if (!p) exit(9);
    memset(p, 0, (size_t)size);
    return p;
}

static uint8_t *take(FILE *f, int64_t size) {
    uint8_t *p = room(size + 1);
    if (fread(p, 1, (size_t)size, f) != (size_t)size) exit(8);
    return p;
}

int main(int argc, char **argv) {
    FILE *f = argc == 3 ? fopen(argv[1], "rb") : 0;
    if (!f) return 7;
    const int level = atoi(argv[2]);
    if (!(nnfs_levels() >> level & 1) || nnfs_offset(level)) return 6; // the image's weights are as without an offset
    const int64_t *head = (const int64_t *)(void *)take(f, 7 * 8), *places = (const int64_t *)(void *)take(f, head[0] * 8);
    uint8_t *memory = take(f, head[1]);
    for (int64_t i = 0; i < head[0]; i++) {
        uint64_t *pointer = (uint64_t *)(void *)(memory + places[i]);
        *pointer += (uint64_t)(uintptr_t)memory;
    }
    const void *network = memory + head[2];
    uint8_t *state = room(1024);
    const int64_t size = nnfs_state_start(level, network, state, 0, 64, 1);
    if (size < 0 || nnfs_state_start(level, network, state, room(size), 64, 1) != size) return 5;
    if (nnfs_decode_columns(level, network, state, memory + head[3], 0, head[4], 0, 0)) return 4;
    fwrite(memory + head[5], 1, (size_t)head[6], stdout);
    const int64_t *sizes = (const int64_t *)(void *)take(f, 16);
    const uint8_t *payload = take(f, sizes[0]);
    uint8_t *plain = room(sizes[1]);
    if (nnfs_ppm_decode(room(nnfs_ppm_size(sizes[1])), nnfs_ppm_size(sizes[1]), payload, sizes[0], plain, sizes[1])) return 3;
    fwrite(plain, 1, (size_t)sizes[1], stdout);
    return 0;
}
