/* LD_PRELOAD library that sees every operation of a process on one file, the store's data.mdb.
 *
 *   SHIM_STORE    absolute path of the file; without a journal also files of that name in directories beside it, because
 *                 a store may be made there and moved into place
 *   SHIM_JOURNAL  append a record for every completed operation to this file (O_APPEND: other processes may append, too)
 *   SHIM_CONTROL  a file of seven 64-bit words in native order, mapped shared, so that they can be read and set at any time:
 *                 [0] number of writes so far
 *                 [1] SIGKILL at this write (1 is the first; 0: never)
 *                 [2] 0: before it, 1: after it, 2: in its middle
 *                 [3] where the middle is: after so many thousandths of its sectors of 512 bytes
 *                 [4] the first write that fails (0: none does)
 *                 [5] so many in a row fail
 *                 [6] with this errno; 0: only half of the bytes are written, as on a full disk
 *
 * "Write" is whatever changes the file: write*, pwrite*, truncation, fallocate (punched holes). A lock is held across each
 * operation and its record, so the order of the journal is the order of the operations, and everything recorded before a flush
 * had been issued before that flush began. A change that cannot be recorded (a writable shared mapping, splice, ...) leaves an
 * OPAQUE record, on which the reader of the journal fails.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <signal.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/sendfile.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <unistd.h>

#define SECTOR 512
#define MAX_FD 65536
enum kind { WRITE = 1, FLUSH = 2, TRUNCATE = 3, PUNCH = 4, /* 5: an acknowledgement, by the workload */ OPAQUE = 6 };
enum state { OTHER = 0, STORE = 1, STORE_DSYNC = 3 };

struct record {
    uint32_t magic, kind;
    uint64_t offset, length;
    uint32_t flags, payload;
};

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static unsigned char fds[MAX_FD];
static int journal = -1;
static const char *store;
static struct { uint64_t writes, kill_at, how, tear, fail_at, fail_count, fail_with; } nobody, *volatile control = &nobody;
enum how { BEFORE = 0, AFTER = 1, TORN = 2 };

#define REAL(ret, name, ...)                                                                        \
    static ret (*real)(__VA_ARGS__);                                                                \
    if (!real) *(void **)&real = dlsym(RTLD_NEXT, name)

__attribute__((constructor)) static void begin(void) {
    const char *s;
    store = getenv("SHIM_STORE");
    if (store && (s = getenv("SHIM_JOURNAL"))) {
        int low = syscall(SYS_openat, AT_FDCWD, s, O_WRONLY | O_APPEND | O_CREAT | O_CLOEXEC, 0644);
        journal = syscall(SYS_fcntl, low, F_DUPFD_CLOEXEC, 500);
        syscall(SYS_close, low);
        if (journal < 0) abort();
    }
    if (store && (s = getenv("SHIM_CONTROL"))) {
        int fd = syscall(SYS_openat, AT_FDCWD, s, O_RDWR | O_CLOEXEC, 0);
        control = mmap(NULL, sizeof *control, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
        syscall(SYS_close, fd);
        if (control == MAP_FAILED) abort();
    }
}

static void note(enum kind kind, uint64_t offset, uint64_t length, uint32_t flags, const void *data, size_t size) {
    if (journal < 0) return;
    struct record r = {0x4d494853, kind, offset, length, flags, (uint32_t)size};
    struct iovec v[2] = {{&r, sizeof r}, {(void *)data, size}};
    if (syscall(SYS_writev, journal, v, size ? 2 : 1) != (long)(sizeof r + size)) abort();
}

static void die(void) {
    syscall(SYS_kill, getpid(), SIGKILL);
    for (;;) pause();
}

static int due; /* this write is the one */

/* Called with the lock held, before a write: true if it is to be torn. */
static int counted(void) {
    due = ++control->writes == control->kill_at;
    if (due && control->how == BEFORE) die();
    return due && control->how == TORN;
}

/* Called with the lock held, after `counted`: whether this write is one that fails. */
static int fails(void) {
    return control->fail_at && control->writes >= control->fail_at &&
           control->writes - control->fail_at < control->fail_count;
}

static void written(void) {
    if (due) die();
}

static enum state state_of(int fd) { return store && fd >= 0 && fd < MAX_FD ? fds[fd] : OTHER; }

static int is_ours(const char *path) {
    const char *name = strrchr(store, '/'), *last = strrchr(path, '/');
    if (journal >= 0 || !last) return !strcmp(path, store);
    return !strcmp(last, name) && !strncmp(path, store, name + 1 - store);
}

static int opened(int fd, int flags_given) {
    char link[64], target[4096];
    if (!store || fd < 0 || fd >= MAX_FD) return fd;
    int saved = errno;
    snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
    ssize_t n = readlink(link, target, sizeof target - 1);
    target[n < 0 ? 0 : n] = 0;
    int flags = syscall(SYS_fcntl, fd, F_GETFL);
    fds[fd] = !is_ours(target) ? OTHER : flags & O_DSYNC ? STORE_DSYNC : STORE;
    if (fds[fd] && flags_given & O_TRUNC) {
        pthread_mutex_lock(&lock);
        note(TRUNCATE, 0, 0, 0, NULL, 0);
        pthread_mutex_unlock(&lock);
    }
    errno = saved;
    return fd;
}

#define MODE(flags, mode)                                                                           \
    int mode = 0;                                                                                   \
    if ((flags) & (O_CREAT | __O_TMPFILE)) {                                                        \
        va_list ap;                                                                                 \
        va_start(ap, flags);                                                                        \
        mode = va_arg(ap, int);                                                                     \
        va_end(ap);                                                                                 \
    }

int open(const char *path, int flags, ...) {
    MODE(flags, mode)
    REAL(int, "open", const char *, int, ...);
    return opened(real(path, flags, mode), flags);
}
int open64(const char *path, int flags, ...) {
    MODE(flags, mode)
    REAL(int, "open64", const char *, int, ...);
    return opened(real(path, flags, mode), flags);
}
int openat(int dir, const char *path, int flags, ...) {
    MODE(flags, mode)
    REAL(int, "openat", int, const char *, int, ...);
    return opened(real(dir, path, flags, mode), flags);
}
int openat64(int dir, const char *path, int flags, ...) {
    MODE(flags, mode)
    REAL(int, "openat64", int, const char *, int, ...);
    return opened(real(dir, path, flags, mode), flags);
}
int close(int fd) {
    REAL(int, "close", int);
    if (fd >= 0 && fd == journal) return 0;
    if (fd >= 0 && fd < MAX_FD) fds[fd] = OTHER;
    return real(fd);
}
int dup(int fd) {
    REAL(int, "dup", int);
    return opened(real(fd), 0);
}
int dup2(int fd, int to) {
    REAL(int, "dup2", int, int);
    return opened(real(fd, to), 0);
}
int dup3(int fd, int to, int flags) {
    REAL(int, "dup3", int, int, int);
    return opened(real(fd, to, flags), 0);
}
static int is_dup(int command) { return command == F_DUPFD || command == F_DUPFD_CLOEXEC; }
int fcntl(int fd, int command, ...) {
    va_list ap;
    va_start(ap, command);
    void *arg = va_arg(ap, void *);
    va_end(ap);
    REAL(int, "fcntl", int, int, ...);
    int result = real(fd, command, arg);
    return is_dup(command) ? opened(result, 0) : result;
}
int fcntl64(int fd, int command, ...) {
    va_list ap;
    va_start(ap, command);
    void *arg = va_arg(ap, void *);
    va_end(ap);
    REAL(int, "fcntl64", int, int, ...);
    int result = real(fd, command, arg);
    return is_dup(command) ? opened(result, 0) : result;
}

/* All kinds of write end here: `offset` < 0 writes at the file position. The bytes are joined first, so that a torn
 * write and the record see one run of bytes. */
static ssize_t put(int fd, const struct iovec *v, int n, off_t offset) {
    size_t size = 0, at = 0;
    for (int i = 0; i < n; i++) size += v[i].iov_len;
    char *all = malloc(size ? size : 1);
    if (!all) abort();
    for (int i = 0; i < n; at += v[i++].iov_len) memcpy(all + at, v[i].iov_base, v[i].iov_len);
    pthread_mutex_lock(&lock);
    off_t where = offset < 0 ? syscall(SYS_lseek, fd, 0, SEEK_CUR) : offset;
    int torn = counted();
    if (torn) size = size / SECTOR * control->tear / 1000 * SECTOR;
    int failed = fails();
    if (failed && !control->fail_with) size /= 2;
    int refused = failed && control->fail_with;
    ssize_t done = refused ? -1 : size ? syscall(SYS_pwrite64, fd, all, size, where) : 0;
    int saved = refused ? (int)control->fail_with : errno;
    if (torn) die();
    if (done > 0) {
        note(WRITE, where, done, fds[fd] == STORE_DSYNC, all, done);
        if (offset < 0) syscall(SYS_lseek, fd, where + done, SEEK_SET);
        written();
    }
    pthread_mutex_unlock(&lock);
    free(all);
    errno = saved;
    return done;
}

ssize_t write(int fd, const void *data, size_t size) {
    REAL(ssize_t, "write", int, const void *, size_t);
    if (!state_of(fd)) return real(fd, data, size);
    struct iovec v = {(void *)data, size};
    return put(fd, &v, 1, -1);
}
ssize_t writev(int fd, const struct iovec *v, int n) {
    REAL(ssize_t, "writev", int, const struct iovec *, int);
    return state_of(fd) ? put(fd, v, n, -1) : real(fd, v, n);
}
#define PWRITE(name)                                                                                \
    ssize_t name(int fd, const void *data, size_t size, off_t offset) {                             \
        REAL(ssize_t, #name, int, const void *, size_t, off_t);                                     \
        if (!state_of(fd)) return real(fd, data, size, offset);                                     \
        struct iovec v = {(void *)data, size};                                                      \
        return put(fd, &v, 1, offset);                                                              \
    }
PWRITE(pwrite)
PWRITE(pwrite64)
#define PWRITEV(name)                                                                               \
    ssize_t name(int fd, const struct iovec *v, int n, off_t offset) {                              \
        REAL(ssize_t, #name, int, const struct iovec *, int, off_t);                                \
        return state_of(fd) ? put(fd, v, n, offset) : real(fd, v, n, offset);                       \
    }
PWRITEV(pwritev)
PWRITEV(pwritev64)
#define PWRITEV2(name)                                                                              \
    ssize_t name(int fd, const struct iovec *v, int n, off_t offset, int flags) {                   \
        REAL(ssize_t, #name, int, const struct iovec *, int, off_t, int);                           \
        return state_of(fd) ? put(fd, v, n, offset) : real(fd, v, n, offset, flags);                \
    }
PWRITEV2(pwritev2)
PWRITEV2(pwritev64v2)

/* One system call that changes the file, its record, and the kill before or after it. */
#define CHANGE(call, kind, offset, length, flags)                                                   \
    pthread_mutex_lock(&lock);                                                                      \
    if (counted()) die();                                                                           \
    int failed = fails() && control->fail_with;                                                     \
    int result = failed ? -1 : call, saved = failed ? (int)control->fail_with : errno;              \
    if (!result) {                                                                                  \
        note(kind, offset, length, flags, NULL, 0);                                                 \
        written();                                                                                  \
    }                                                                                               \
    pthread_mutex_unlock(&lock);                                                                    \
    errno = saved;                                                                                  \
    return result

#define FTRUNCATE(name)                                                                             \
    int name(int fd, off_t size) {                                                                  \
        REAL(int, #name, int, off_t);                                                               \
        if (!state_of(fd)) return real(fd, size);                                                   \
        CHANGE(real(fd, size), TRUNCATE, size, 0, 0);                                               \
    }
FTRUNCATE(ftruncate)
FTRUNCATE(ftruncate64)
#define TRUNCATE_PATH(name)                                                                         \
    int name(const char *path, off_t size) {                                                        \
        REAL(int, #name, const char *, off_t);                                                      \
        if (!store || strcmp(path, store)) return real(path, size);                                 \
        CHANGE(real(path, size), TRUNCATE, size, 0, 0);                                             \
    }
TRUNCATE_PATH(truncate)
TRUNCATE_PATH(truncate64)
#define FALLOCATE(name)                                                                             \
    int name(int fd, int mode, off_t offset, off_t length) {                                        \
        REAL(int, #name, int, int, off_t, off_t);                                                   \
        if (!state_of(fd)) return real(fd, mode, offset, length);                                   \
        CHANGE(real(fd, mode, offset, length), PUNCH, offset, length, mode);                        \
    }
FALLOCATE(fallocate)
FALLOCATE(fallocate64)
#define POSIX_FALLOCATE(name)                                                                       \
    int name(int fd, off_t offset, off_t length) {                                                  \
        REAL(int, #name, int, off_t, off_t);                                                        \
        if (!state_of(fd)) return real(fd, offset, length);                                         \
        CHANGE(real(fd, offset, length), PUNCH, offset, length, 0);                                 \
    }
POSIX_FALLOCATE(posix_fallocate)
POSIX_FALLOCATE(posix_fallocate64)

#define FLUSH_CALL(name)                                                                            \
    int name(int fd) {                                                                              \
        REAL(int, #name, int);                                                                      \
        if (!state_of(fd)) return real(fd);                                                         \
        pthread_mutex_lock(&lock);                                                                  \
        int result = real(fd), saved = errno;                                                       \
        if (!result) note(FLUSH, 0, 0, 0, NULL, 0);                                                 \
        pthread_mutex_unlock(&lock);                                                                \
        errno = saved;                                                                              \
        return result;                                                                              \
    }
FLUSH_CALL(fsync)
FLUSH_CALL(fdatasync)
/* sync_file_range and msync of a read-only map promise nothing that a disk keeps: no record. */

static void opaque(int fd) {
    if (!state_of(fd)) return;
    pthread_mutex_lock(&lock);
    counted();
    note(OPAQUE, 0, 0, 0, NULL, 0);
    pthread_mutex_unlock(&lock);
}
#define MMAP(name)                                                                                  \
    void *name(void *addr, size_t length, int protection, int flags, int fd, off_t offset) {        \
        REAL(void *, #name, void *, size_t, int, int, int, off_t);                                  \
        if (protection & PROT_WRITE && flags & MAP_SHARED) opaque(fd);                              \
        return real(addr, length, protection, flags, fd, offset);                                   \
    }
MMAP(mmap)
MMAP(mmap64)
ssize_t copy_file_range(int in, off64_t *in_at, int out, off64_t *out_at, size_t size, unsigned flags) {
    REAL(ssize_t, "copy_file_range", int, off64_t *, int, off64_t *, size_t, unsigned);
    opaque(out);
    return real(in, in_at, out, out_at, size, flags);
}
ssize_t splice(int in, off64_t *in_at, int out, off64_t *out_at, size_t size, unsigned flags) {
    REAL(ssize_t, "splice", int, off64_t *, int, off64_t *, size_t, unsigned);
    opaque(out);
    return real(in, in_at, out, out_at, size, flags);
}
ssize_t sendfile64(int out, int in, off64_t *at, size_t size) {
    REAL(ssize_t, "sendfile64", int, int, off64_t *, size_t);
    opaque(out);
    return real(out, in, at, size);
}
