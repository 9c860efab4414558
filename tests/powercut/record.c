/* Records every change below $POWERCUT_ROOT, in the order in which it happened, to $POWERCUT_LOG.
 *
 * Preloaded (LD_PRELOAD) into a process and all that it starts. Each call that changes a file, a name, or what of both is
 * on disk takes one lock, shared by all processes, makes the real system call, and appends one record if that went well.
 * It does not see: changes through mmap, through C's stdio, or through raw system calls. The reader of the log finds that
 * out by comparing what the log leads to with what lies there.
 *
 * sendfile and copy_file_range into the root are refused, so that their callers fall back on write. SQLite's -shm files
 * are left out: they are rebuilt after a crash, whatever is in them.
 *
 * A record: the header below in the machine's byte order, then `path_size` bytes, then `more_size` bytes.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <pthread.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/types.h>
#include <sys/uio.h>
#include <unistd.h>

#if !defined(__linux__) || __SIZEOF_POINTER__ != 8
#error "64-bit Linux only"
#endif

struct header {
    uint32_t path_size, more_size; /* more: the data, or the second path */
    int32_t pid;
    char op, unused[3];
    uint64_t inode;
    int64_t offset; /* of a write, or the size that a truncation sets */
};

struct shared {
    atomic_int state; /* 0 untouched, 1 being made, 2 ready */
    pthread_mutex_t mutex;
};

static const char *root, *log_path;
static size_t root_size;
static struct shared *shared;

__attribute__((constructor)) static void begin(void) {
    const char *wanted = getenv("POWERCUT_ROOT");
    log_path = getenv("POWERCUT_LOG");
    if (!wanted || !log_path) return;
    char name[PATH_MAX];
    snprintf(name, sizeof name, "%s.lock", log_path);
    int fd = (int)syscall(SYS_openat, AT_FDCWD, name, O_RDWR | O_CREAT | O_CLOEXEC, 0600);
    if (fd < 0) return; /* a sandbox without the log: nothing of the root is there either */
    if (syscall(SYS_ftruncate, fd, (off_t)sizeof *shared) == 0) {
        shared = mmap(NULL, sizeof *shared, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
        if (shared == MAP_FAILED) shared = NULL;
    }
    close(fd);
    if (!shared) return;
    int untouched = 0;
    if (atomic_compare_exchange_strong(&shared->state, &untouched, 1)) {
        pthread_mutexattr_t attributes;
        pthread_mutexattr_init(&attributes);
        pthread_mutexattr_setpshared(&attributes, PTHREAD_PROCESS_SHARED);
        pthread_mutexattr_setrobust(&attributes, PTHREAD_MUTEX_ROBUST);
        pthread_mutex_init(&shared->mutex, &attributes);
        atomic_store(&shared->state, 2);
    }
    while (atomic_load(&shared->state) != 2) usleep(100);
    root_size = strlen(wanted);
    root = strdup(wanted); /* the environment may be rewritten */
}

static void lock(void) {
    if (pthread_mutex_lock(&shared->mutex) == EOWNERDEAD) pthread_mutex_consistent(&shared->mutex);
}

static void unlock(void) {
    int saved = errno;
    pthread_mutex_unlock(&shared->mutex);
    errno = saved;
}

/* Append a record. Losing one would make every later finding a lie, so that ends the process. */
static void record(char op, const char *path, uint64_t inode, int64_t offset, const void *more, size_t more_size) {
    int saved = errno;
    struct header header = {0};
    header.path_size = (uint32_t)strlen(path);
    header.more_size = (uint32_t)more_size;
    header.pid = (int32_t)getpid();
    header.op = op;
    header.inode = inode;
    header.offset = offset;
    struct iovec parts[3] = {
        {&header, sizeof header}, {(void *)path, header.path_size}, {(void *)more, more_size}};
    ssize_t size = (ssize_t)(sizeof header + header.path_size + more_size);
    int fd = (int)syscall(SYS_openat, AT_FDCWD, log_path, O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0600);
    if (fd < 0 || syscall(SYS_writev, fd, parts, 3) != size) abort();
    close(fd);
    errno = saved;
}

static int below(const char *path) {
    if (!root || strncmp(path, root, root_size) || (path[root_size] && path[root_size] != '/')) return 0;
    size_t size = strlen(path);
    return size < 4 || strcmp(path + size - 4, "-shm");
}

/* The absolute path of a name, into `out`; whether it is below the root. */
static int named(int dir, const char *path, char *out) {
    if (!root || !path) return 0;
    if (path[0] == '/') {
        if (strlen(path) >= PATH_MAX) return 0;
        strcpy(out, path);
        return below(out);
    }
    int saved = errno;
    char link[64], base[PATH_MAX];
    if (dir == AT_FDCWD) strcpy(link, "/proc/self/cwd");
    else snprintf(link, sizeof link, "/proc/self/fd/%d", dir);
    ssize_t size = readlink(link, base, sizeof base - 1);
    errno = saved;
    if (size < 0) return 0;
    base[size] = 0;
    if (snprintf(out, PATH_MAX, "%s/%s", base, path) >= PATH_MAX) return 0;
    return below(out);
}

/* The path and inode of a file or directory that is open; whether it is below the root. */
static int opened(int fd, char *out, uint64_t *inode) {
    if (!root || fd < 0) return 0;
    int saved = errno, found = 0;
    char link[64];
    struct stat status;
    snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
    ssize_t size = readlink(link, out, PATH_MAX - 1);
    if (size > 0) {
        out[size] = 0;
        if (below(out) && fstat(fd, &status) == 0) {
            *inode = status.st_ino;
            found = 1;
        }
    }
    errno = saved;
    return found;
}

/* A word of the test's own, in order with everything else: called through ctypes. */
void powercut_mark(const char *text, size_t size) {
    if (!root) return;
    lock();
    record('M', "", 0, 0, text, size);
    unlock();
}

static int open_any(int dir, const char *path, int flags, mode_t mode) {
    char full[PATH_MAX];
    int writes = flags & (O_CREAT | O_TRUNC);
    if (!writes || !named(dir, path, full)) return (int)syscall(SYS_openat, dir, path, flags, mode);
    struct stat before, after;
    lock();
    int saved = errno;
    int existed = fstatat(dir, path, &before, 0) == 0;
    errno = saved;
    int fd = (int)syscall(SYS_openat, dir, path, flags, mode);
    if (fd >= 0 && fstat(fd, &after) == 0) {
        if (!existed) record('C', full, after.st_ino, 0, NULL, 0);
        else if ((flags & O_TRUNC) && before.st_size) record('T', full, after.st_ino, 0, NULL, 0);
    }
    unlock();
    return fd;
}

#define MODE_OF(flags)                                    \
    mode_t mode = 0;                                      \
    if ((flags) & (O_CREAT | O_TMPFILE)) {                \
        va_list rest;                                     \
        va_start(rest, flags);                            \
        mode = (mode_t)va_arg(rest, unsigned);            \
        va_end(rest);                                     \
    }

int open(const char *path, int flags, ...) { MODE_OF(flags) return open_any(AT_FDCWD, path, flags, mode); }
int open64(const char *path, int flags, ...) { MODE_OF(flags) return open_any(AT_FDCWD, path, flags | O_LARGEFILE, mode); }
int openat(int dir, const char *path, int flags, ...) { MODE_OF(flags) return open_any(dir, path, flags, mode); }
int openat64(int dir, const char *path, int flags, ...) { MODE_OF(flags) return open_any(dir, path, flags | O_LARGEFILE, mode); }
int __open_2(const char *path, int flags) { return open_any(AT_FDCWD, path, flags, 0); }
int __open64_2(const char *path, int flags) { return open_any(AT_FDCWD, path, flags | O_LARGEFILE, 0); }
int __openat_2(int dir, const char *path, int flags) { return open_any(dir, path, flags, 0); }
int __openat64_2(int dir, const char *path, int flags) { return open_any(dir, path, flags | O_LARGEFILE, 0); }
int creat(const char *path, mode_t mode) { return open_any(AT_FDCWD, path, O_CREAT | O_WRONLY | O_TRUNC, mode); }
int creat64(const char *path, mode_t mode) { return open_any(AT_FDCWD, path, O_CREAT | O_WRONLY | O_TRUNC, mode); }

/* Where `size` bytes went that were just written at the file's own position. */
static int64_t written_at(int fd, ssize_t size) { return lseek(fd, 0, SEEK_CUR) - size; }

ssize_t write(int fd, const void *data, size_t size) {
    char path[PATH_MAX];
    uint64_t inode;
    if (!opened(fd, path, &inode)) return syscall(SYS_write, fd, data, size);
    lock();
    ssize_t done = syscall(SYS_write, fd, data, size);
    if (done > 0) record('W', path, inode, written_at(fd, done), data, (size_t)done);
    unlock();
    return done;
}

ssize_t pwrite(int fd, const void *data, size_t size, off_t offset) {
    char path[PATH_MAX];
    uint64_t inode;
    if (!opened(fd, path, &inode)) return syscall(SYS_pwrite64, fd, data, size, offset);
    lock();
    ssize_t done = syscall(SYS_pwrite64, fd, data, size, offset);
    if (done > 0) record('W', path, inode, offset, data, (size_t)done);
    unlock();
    return done;
}
ssize_t pwrite64(int fd, const void *data, size_t size, off64_t offset) { return pwrite(fd, data, size, offset); }

/* A vector is written part by part: its parts are neighbours in the log, and a short count is allowed. */
static ssize_t write_parts(int fd, const struct iovec *parts, int count, int64_t offset) {
    ssize_t total = 0;
    for (int i = 0; i < count; i++) {
        ssize_t done = offset < 0 ? write(fd, parts[i].iov_base, parts[i].iov_len)
                                  : pwrite(fd, parts[i].iov_base, parts[i].iov_len, offset + total);
        if (done < 0) return total ? total : done;
        total += done;
        if ((size_t)done < parts[i].iov_len) break;
    }
    return total;
}

ssize_t writev(int fd, const struct iovec *parts, int count) {
    char path[PATH_MAX];
    uint64_t inode;
    if (!opened(fd, path, &inode)) return syscall(SYS_writev, fd, parts, count);
    return write_parts(fd, parts, count, -1);
}
ssize_t pwritev(int fd, const struct iovec *parts, int count, off_t offset) { return write_parts(fd, parts, count, offset); }
ssize_t pwritev64(int fd, const struct iovec *parts, int count, off64_t offset) { return write_parts(fd, parts, count, offset); }

static ssize_t refuse(void) {
    errno = EINVAL;
    return -1;
}

ssize_t sendfile(int out, int in, off_t *offset, size_t size) {
    char path[PATH_MAX];
    uint64_t inode;
    return opened(out, path, &inode) ? refuse() : syscall(SYS_sendfile, out, in, offset, size);
}
ssize_t sendfile64(int out, int in, off64_t *offset, size_t size) { return sendfile(out, in, offset, size); }
ssize_t copy_file_range(int in, off64_t *in_at, int out, off64_t *out_at, size_t size, unsigned flags) {
    char path[PATH_MAX];
    uint64_t inode;
    return opened(out, path, &inode) ? refuse() : syscall(SYS_copy_file_range, in, in_at, out, out_at, size, flags);
}

static int sized(int fd, const char *path, off_t size) {
    char full[PATH_MAX];
    uint64_t inode = 0;
    struct stat status;
    int tracked = path ? named(AT_FDCWD, path, full) && stat(path, &status) == 0 : opened(fd, full, &inode);
    if (!tracked) return (int)(path ? syscall(SYS_truncate, path, size) : syscall(SYS_ftruncate, fd, size));
    if (path) inode = status.st_ino;
    lock();
    int result = (int)(path ? syscall(SYS_truncate, path, size) : syscall(SYS_ftruncate, fd, size));
    if (result == 0) record('T', full, inode, size, NULL, 0);
    unlock();
    return result;
}
int ftruncate(int fd, off_t size) { return sized(fd, NULL, size); }
int ftruncate64(int fd, off64_t size) { return sized(fd, NULL, size); }
int truncate(const char *path, off_t size) { return sized(-1, path, size); }
int truncate64(const char *path, off64_t size) { return sized(-1, path, size); }

int fallocate(int fd, int mode, off_t offset, off_t size) {
    char path[PATH_MAX];
    uint64_t inode;
    struct stat before, after;
    if (!opened(fd, path, &inode)) return (int)syscall(SYS_fallocate, fd, mode, offset, size);
    if (mode) return (int)refuse();
    lock();
    int known = fstat(fd, &before) == 0;
    int result = (int)syscall(SYS_fallocate, fd, mode, offset, size);
    if (result == 0 && known && fstat(fd, &after) == 0 && after.st_size != before.st_size)
        record('T', path, inode, after.st_size, NULL, 0);
    unlock();
    return result;
}
int fallocate64(int fd, int mode, off64_t offset, off64_t size) { return fallocate(fd, mode, offset, size); }
int posix_fallocate(int fd, off_t offset, off_t size) {
    int saved = errno, result = fallocate(fd, 0, offset, size) ? errno : 0;
    errno = saved;
    return result;
}
int posix_fallocate64(int fd, off64_t offset, off64_t size) { return posix_fallocate(fd, offset, size); }

static int synced(int fd, long call) {
    char path[PATH_MAX];
    uint64_t inode;
    if (!opened(fd, path, &inode)) return (int)syscall(call, fd);
    lock();
    int result = (int)syscall(call, fd);
    if (result == 0) record('S', path, inode, 0, NULL, 0);
    unlock();
    return result;
}
int fsync(int fd) { return synced(fd, SYS_fsync); }
int fdatasync(int fd) { return synced(fd, SYS_fdatasync); }

/* sync_file_range promises nothing after a power cut, so it is not recorded. */

static void everything_synced(void) {
    if (!root) return;
    lock();
    record('A', "", 0, 0, NULL, 0);
    unlock();
}
void sync(void) {
    syscall(SYS_sync);
    everything_synced();
}
int syncfs(int fd) {
    int result = (int)syscall(SYS_syncfs, fd);
    if (result == 0) everything_synced();
    return result;
}

static int renamed(int from_dir, const char *from, int to_dir, const char *to, unsigned flags) {
    char old[PATH_MAX], new[PATH_MAX];
    int leaves = named(from_dir, from, old), arrives = named(to_dir, to, new);
    if (!leaves && !arrives) return (int)syscall(SYS_renameat2, from_dir, from, to_dir, to, flags);
    if (leaves != arrives || (flags & ~1u)) { /* across the root's border, or an exchange: nothing here does that */
        errno = EXDEV;
        return -1;
    }
    lock();
    int result = (int)syscall(SYS_renameat2, from_dir, from, to_dir, to, flags);
    if (result == 0) record('R', old, 0, 0, new, strlen(new));
    unlock();
    return result;
}
int rename(const char *from, const char *to) { return renamed(AT_FDCWD, from, AT_FDCWD, to, 0); }
int renameat(int from_dir, const char *from, int to_dir, const char *to) { return renamed(from_dir, from, to_dir, to, 0); }
int renameat2(int from_dir, const char *from, int to_dir, const char *to, unsigned flags) {
    return renamed(from_dir, from, to_dir, to, flags);
}

static int removed(int dir, const char *path, int flags) {
    char full[PATH_MAX];
    if (!named(dir, path, full)) return (int)syscall(SYS_unlinkat, dir, path, flags);
    lock();
    int result = (int)syscall(SYS_unlinkat, dir, path, flags);
    if (result == 0) record('U', full, 0, 0, NULL, 0);
    unlock();
    return result;
}
int unlink(const char *path) { return removed(AT_FDCWD, path, 0); }
int unlinkat(int dir, const char *path, int flags) { return removed(dir, path, flags); }
int rmdir(const char *path) { return removed(AT_FDCWD, path, AT_REMOVEDIR); }

int mkdirat(int dir, const char *path, mode_t mode) {
    char full[PATH_MAX];
    struct stat status;
    if (!named(dir, path, full)) return (int)syscall(SYS_mkdirat, dir, path, mode);
    lock();
    int result = (int)syscall(SYS_mkdirat, dir, path, mode);
    if (result == 0 && fstatat(dir, path, &status, 0) == 0) record('D', full, status.st_ino, 0, NULL, 0);
    unlock();
    return result;
}
int mkdir(const char *path, mode_t mode) { return mkdirat(AT_FDCWD, path, mode); }

int linkat(int from_dir, const char *from, int to_dir, const char *to, int flags) {
    char full[PATH_MAX];
    struct stat status;
    if (!named(to_dir, to, full)) return (int)syscall(SYS_linkat, from_dir, from, to_dir, to, flags);
    lock();
    int result = (int)syscall(SYS_linkat, from_dir, from, to_dir, to, flags);
    if (result == 0 && fstatat(to_dir, to, &status, AT_SYMLINK_NOFOLLOW) == 0)
        record('L', full, status.st_ino, 0, NULL, 0);
    unlock();
    return result;
}
int link(const char *from, const char *to) { return linkat(AT_FDCWD, from, AT_FDCWD, to, 0); }
