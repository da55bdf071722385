// The same kernels on the host, behind the functions of the CUDA driver that nnfs.kernels.driver calls: for tests, and
// for `tools/test-gpu --host`. Launches run their blocks one after the other; a "device" of NNFS_HOST_MEMORY bytes.
#include "kernels.h"
#include <stdlib.h>

#define EXPORT extern "C" __attribute__((visibility("default")))
enum { SUCCESS = 0, INVALID_VALUE = 1, OUT_OF_MEMORY = 2, NOT_FOUND = 500 };

typedef void (*Kernel)(void **arguments, u8 *shared, int block);
typedef struct {
    const char *name;
    Kernel run;
    int rows;
} Function;

template <int N> static void columns(void **arguments, u8 *shared, int block) { step_columns<N>(*(Work *)arguments[0], shared, block); }
static void streams(void **arguments, u8 *, int block) { encode_bits(*(Chunk **)arguments[0] + block); }
static const Function functions[] = {
    {"nnfs_columns_1", columns<1>, 8}, {"nnfs_columns_2", columns<2>, 16}, {"nnfs_columns_4", columns<4>, 32}, {"nnfs_streams", streams, 0}};
static int sizes[] = {sizeof(Network), sizeof(Chunk), sizeof(Work), sizeof(Mixing), THREADS, PAD};

enum { HEAD_OF_BLOCK = 64 }; // the size of an allocation stands before it
static size_t total(void) {
    const char *named = getenv("NNFS_HOST_MEMORY");
    return named ? strtoull(named, 0, 10) : (size_t)1 << 32;
}
static size_t used;
static i64 launches;

EXPORT i64 nnfs_host_launches(void) { return launches; }
EXPORT i64 nnfs_host_used(void) { return (i64)used; }
EXPORT void nnfs_host_order(int order) { host_order = order; }
EXPORT int cuInit(unsigned) { return SUCCESS; }
EXPORT int cuGetErrorString(int, const char **text) { return *text = "the host's shim refuses it", SUCCESS; }
EXPORT int cuDeviceGetCount(int *count) { return *count = 1, SUCCESS; }
EXPORT int cuDeviceGet(int *device, int ordinal) { return *device = ordinal, ordinal ? INVALID_VALUE : SUCCESS; }
EXPORT int cuDeviceGetName(char *name, int size, int) { return strncpy(name, "host", size), SUCCESS; }
EXPORT int cuDeviceGetAttribute(int *value, int attribute, int) {
    switch (attribute) { // blocks at once; shared memory of a block; the version of its instructions
    case 16: *value = 2; return SUCCESS;
    case 97: *value = 99 << 10; return SUCCESS;
    case 75: *value = 0; return SUCCESS;
    case 76: *value = 0; return SUCCESS;
    default: return INVALID_VALUE;
    }
}
EXPORT int cuDevicePrimaryCtxRetain(void **context, int) { return *context = &used, SUCCESS; }
EXPORT int cuCtxSetCurrent(void *) { return SUCCESS; }
EXPORT int cuCtxSynchronize(void) { return SUCCESS; }
EXPORT int cuMemGetInfo_v2(size_t *free, size_t *all) { return *all = total(), *free = *all - used, SUCCESS; }
EXPORT int cuMemAlloc_v2(u64 *at, size_t size) {
    if (!size) return INVALID_VALUE;
    if (size > total() - used) return OUT_OF_MEMORY;
    u8 *room = (u8 *)aligned_alloc(64, HEAD_OF_BLOCK + ((size + 63) & ~(size_t)63));
    if (!room) return OUT_OF_MEMORY;
    memset(room, 0xA5, HEAD_OF_BLOCK + size); // nothing may count on zeros
    memcpy(room, &size, sizeof size);
    used += size;
    *at = (u64)(room + HEAD_OF_BLOCK);
    return SUCCESS;
}
EXPORT int cuMemFree_v2(u64 at) {
    size_t size;
    memcpy(&size, (u8 *)at - HEAD_OF_BLOCK, sizeof size);
    used -= size;
    free((u8 *)at - HEAD_OF_BLOCK);
    return SUCCESS;
}
EXPORT int cuMemcpyHtoD_v2(u64 to, const void *from, size_t size) { return memcpy((void *)to, from, size), SUCCESS; }
EXPORT int cuMemcpyDtoH_v2(void *to, u64 from, size_t size) { return memcpy(to, (void *)from, size), SUCCESS; }
EXPORT int cuMemcpyDtoD_v2(u64 to, u64 from, size_t size) { return memcpy((void *)to, (void *)from, size), SUCCESS; }
EXPORT int cuMemsetD8_v2(u64 at, unsigned char value, size_t size) { return memset((void *)at, value, size), SUCCESS; }
EXPORT int cuModuleLoadData(void **module, const void *) { return *module = (void *)functions, SUCCESS; }
EXPORT int cuModuleGetGlobal_v2(u64 *at, size_t *size, void *, const char *name) {
    if (strcmp(name, "nnfs_sizes")) return NOT_FOUND;
    return *at = (u64)sizes, *size = sizeof sizes, SUCCESS;
}
EXPORT int cuModuleGetFunction(const void **function, void *, const char *name) {
    for (const Function &one : functions)
        if (!strcmp(one.name, name)) return *function = &one, SUCCESS;
    return NOT_FOUND;
}
EXPORT int cuFuncSetAttribute(const void *, int attribute, int value) {
    return attribute == 8 && value >= 0 && value <= 99 << 10 ? SUCCESS : INVALID_VALUE;
}
EXPORT int cuLaunchKernel(const void *function, unsigned x, unsigned y, unsigned z, unsigned threads, unsigned, unsigned, unsigned shared,
                          void *, void **arguments, void **) {
    const Function *one = (const Function *)function;
    if (y != 1 || z != 1 || !x || (one->rows && threads != THREADS)) return INVALID_VALUE;
    if (one->rows && (u32)lay_out(((Work *)arguments[0])->net, one->rows, 0).bytes > shared) return INVALID_VALUE;
    launches++;
    for (unsigned block = 0; block < x; block++) {
        u8 *room = (u8 *)aligned_alloc(64, (shared + 127) & ~63u); // each block gets garbage of its own
        memset(room, 0x5A, shared);
        one->run(arguments, room, (int)block);
        free(room);
    }
    return SUCCESS;
}
