/* A clock that is wrong and a disk that takes nothing, for one process and all that it starts (LD_PRELOAD).
 *
 * $FAULTS_CLOCK names a file with a number of seconds by which the time of day is off; the monotonic clock stays right.
 * $FAULTS_DISK names a file with an errno: while it is not 0, what would change a file below $FAULTS_ROOT fails with it.
 * EROFS refuses all of that, any other number only what takes more room: what is written in place and what is removed is
 * allowed, as on a full disk. Both files are read at every call, so a test may change them.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <sys/syscall.h>
#include <sys/time.h>
#include <sys/types.h>
#include <time.h>
#include <unistd.h>

static long number_in(const char *variable) {
    const char *path = getenv(variable);
    char text[32] = {0};
    int saved = errno, fd = path ? (int)syscall(SYS_openat, AT_FDCWD, path, O_RDONLY | O_CLOEXEC) : -1;
    if (fd >= 0) {
        if (syscall(SYS_read, fd, text, sizeof text - 1) < 0) text[0] = 0;
        syscall(SYS_close, fd);
    }
    errno = saved;
    return atol(text);
}

int clock_gettime(clockid_t clock, struct timespec *now) {
    int result = (int)syscall(SYS_clock_gettime, clock, now);
    if (result == 0 && (clock == CLOCK_REALTIME || clock == CLOCK_REALTIME_COARSE)) now->tv_sec += number_in("FAULTS_CLOCK");
    return result;
}

int gettimeofday(struct timeval *now, void *zone) {
    struct timespec precise;
    (void)zone;
    clock_gettime(CLOCK_REALTIME, &precise);
    now->tv_sec = precise.tv_sec;
    now->tv_usec = precise.tv_nsec / 1000;
    return 0;
}

time_t time(time_t *now) {
    struct timespec precise;
    clock_gettime(CLOCK_REALTIME, &precise);
    if (now) *now = precise.tv_sec;
    return precise.tv_sec;
}

/* Whether the disk refuses to change this path; sets errno then. */
static int refused(const char *path, int grows) {
    const char *root = getenv("FAULTS_ROOT");
    char full[PATH_MAX];
    if (!root || !path) return 0;
    int saved = errno;
    if (path[0] != '/') {
        char base[PATH_MAX];
        if (!getcwd(base, sizeof base) || snprintf(full, sizeof full, "%s/%s", base, path) >= (int)sizeof full) full[0] = 0;
        path = full;
    }
    errno = saved;
    if (strncmp(path, root, strlen(root))) return 0;
    long number = number_in("FAULTS_DISK");
    if (!number || (!grows && number != EROFS)) return 0;
    errno = (int)number;
    return 1;
}

/* The same for an open file; `size` is what it will have at least. */
static int refused_here(int fd, off_t size) {
    char link[64], path[PATH_MAX];
    struct stat status;
    int saved = errno;
    snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
    ssize_t length = readlink(link, path, sizeof path - 1);
    errno = saved;
    if (length < 0) return 0;
    path[length] = 0;
    return refused(path, fstat(fd, &status) || size > status.st_size);
}

static int open_any(int dir, const char *path, int flags, mode_t mode) {
    int writes = (flags & O_ACCMODE) != O_RDONLY || (flags & (O_CREAT | O_TRUNC));
    if (writes && (dir == AT_FDCWD || path[0] == '/') && refused(path, syscall(SYS_access, path, F_OK) != 0)) return -1;
    return (int)syscall(SYS_openat, dir, path, flags, mode);
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

ssize_t write(int fd, const void *data, size_t size) {
    return refused_here(fd, LONG_MAX) ? -1 : syscall(SYS_write, fd, data, size);
}
ssize_t pwrite(int fd, const void *data, size_t size, off_t offset) {
    return refused_here(fd, offset + (off_t)size) ? -1 : syscall(SYS_pwrite64, fd, data, size, offset);
}
ssize_t pwrite64(int fd, const void *data, size_t size, off_t offset) { return pwrite(fd, data, size, offset); }
int ftruncate(int fd, off_t size) { return refused_here(fd, size) ? -1 : (int)syscall(SYS_ftruncate, fd, size); }
int ftruncate64(int fd, off_t size) { return ftruncate(fd, size); }
int rename(const char *from, const char *to) {
    return refused(from, 0) || refused(to, 0) ? -1 : (int)syscall(SYS_rename, from, to);
}
int unlink(const char *path) { return refused(path, 0) ? -1 : (int)syscall(SYS_unlink, path); }
int rmdir(const char *path) { return refused(path, 0) ? -1 : (int)syscall(SYS_rmdir, path); }
int mkdir(const char *path, mode_t mode) { return refused(path, 1) ? -1 : (int)syscall(SYS_mkdir, path, mode); }

int statvfs(const char *path, struct statvfs *found) {
    static int (*real)(const char *, struct statvfs *);
    if (!real) real = dlsym(RTLD_NEXT, "statvfs");
    int result = real(path, found), saved = errno;
    if (result == 0 && refused(path, 0)) found->f_flag |= ST_RDONLY;
    errno = saved;
    return result;
}
int statvfs64(const char *path, struct statvfs64 *found) { return statvfs(path, (struct statvfs *)found); }
