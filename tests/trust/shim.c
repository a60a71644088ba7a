/* Wraps file operations of the C library in a process (LD_PRELOAD) and disturbs them.

   Every function below that changes a file (CHANGE), reads one (READ) or looks at one (LOOK) is
   counted when its path lies under the directory given to trust_arm(). At the operations numbered
   `first` to `last` the process is killed, interrupted or stopped *before* the call, or the call
   fails with an errno, as by a crash, Ctrl-C, a broken disk or a full one. A log gets one line for
   each operation, with milliseconds; it also shows the order of fsync and rename.

   TensorFlow's file system writes through stdio, whose inner write() a preloaded library does not
   see: fwrite, fflush and fclose are counted instead. */
#define _GNU_SOURCE
#include <dirent.h>
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <time.h>
#include <unistd.h>

enum { CHANGE = 1, READ = 2, LOOK = 4 };
enum { COUNT, KILL, INTERRUPT, FAIL, STOP };

static struct {
    char root[4096];
    int classes, action, error, log, no_exchange;
    long first, last, count;
} trust = {.log = -1};

typedef struct {
    const char *name;
    int counted, fails;
    struct timespec start;
    char path[4096], other[4096];
} Call;

/* Arms the shim; disarms it with an empty root. */
void trust_arm(const char *root, int classes, long first, long last, int action, int error,
               int log) {
    trust.classes = classes, trust.action = action, trust.error = error;
    trust.first = first, trust.last = last;
    trust.log = log, trust.count = 0;
    snprintf(trust.root, sizeof trust.root, "%s", root);
}

long trust_count(void) { return __atomic_load_n(&trust.count, __ATOMIC_SEQ_CST); }

/* Makes renameat2 refuse its flags, as on file systems that have none of them. */
void trust_deny_exchange(int deny) { trust.no_exchange = deny; }

static void *real_function(const char *name) {
    void *found = dlsym(RTLD_NEXT, name);
    if (!found) {
        fprintf(stderr, "trust shim: the C library has no %s\n", name);
        abort();
    }
    return found;
}

/* Writes the absolute path of `path` below the directory `fd`, or of `fd` itself without a path. */
static void resolve(char *out, size_t size, int fd, const char *path) {
    char link[64];
    out[0] = 0;
    if (path && path[0] == '/') {
        snprintf(out, size, "%s", path);
        return;
    }
    if (fd == AT_FDCWD && !path) return;
    if (fd == AT_FDCWD)
        snprintf(link, sizeof link, "/proc/self/cwd");
    else
        snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
    ssize_t length = readlink(link, out, size - 1);
    if (length < 0) length = 0;
    out[length] = 0;
    if (path && path[0]) snprintf(out + length, size - length, "/%s", path);
}

static int is_under(const char *path) {
    size_t size = strlen(trust.root);
    return strncmp(path, trust.root, size) == 0 && (path[size] == '/' || path[size] == 0);
}

/* Counts a call and performs the action armed for its number. */
static void begin(Call *call, int class, const char *name, int fd, const char *path, int other_fd,
                  const char *other) {
    int saved = errno;
    call->name = name, call->counted = call->fails = 0;
    if (!trust.root[0] || !(class & trust.classes)) return;
    resolve(call->path, sizeof call->path, fd, path);
    resolve(call->other, sizeof call->other, other_fd, other);
    if (is_under(call->path) || is_under(call->other)) {
        long number = __atomic_add_fetch(&trust.count, 1, __ATOMIC_SEQ_CST);
        call->counted = 1;
        if (number >= trust.first && number <= trust.last) {
            if (trust.action == KILL) kill(getpid(), SIGKILL);
            if (trust.action == INTERRUPT) kill(getpid(), SIGINT);
            if (trust.action == STOP) kill(getpid(), SIGSTOP);
            call->fails = trust.action == FAIL;
        }
        clock_gettime(CLOCK_MONOTONIC, &call->start);
    }
    errno = saved;
}

static void end(Call *call, int failed) {
    int saved = errno;
    if (call->counted && trust.log >= 0) {
        struct timespec now;
        clock_gettime(CLOCK_MONOTONIC, &now);
        double ms =
            (now.tv_sec - call->start.tv_sec) * 1e3 + (now.tv_nsec - call->start.tv_nsec) / 1e6;
        dprintf(trust.log, "%s\t%s\t%s\t%d\t%.3f\n", call->name, call->path, call->other,
                failed ? saved : 0, ms);
    }
    errno = saved;
}

/* Wraps a function of the C library: class, where it acts (fd and path), result on failure. */
#define WRAP(type, name, params, args, class, fd, path, other_fd, other, failure)                  \
    type name params {                                                                             \
        static type(*real) params;                                                                 \
        if (!real) real = real_function(#name);                                                    \
        Call call;                                                                                 \
        begin(&call, class, #name, fd, path, other_fd, other);                                     \
        if (call.fails) errno = trust.error;                                                       \
        type result = call.fails ? failure : real args;                                            \
        end(&call, result == failure);                                                             \
        return result;                                                                             \
    }
#define ON_PATH(type, name, params, args, class, path, failure)                                    \
    WRAP(type, name, params, args, class, AT_FDCWD, path, AT_FDCWD, NULL, failure)
#define ON_FD(type, name, params, args, class, fd, failure)                                        \
    WRAP(type, name, params, args, class, fd, NULL, AT_FDCWD, NULL, failure)

/* Opening for writing counts as a change: it may create or truncate the file. */
#define OPEN_CLASS(flags) (((flags) & (O_CREAT | O_TRUNC | O_WRONLY | O_RDWR)) ? CHANGE : READ)
#define OPENS(name, params, args, last, fd, path)                                                  \
    static int opened_##name params;                                                               \
    int name last {                                                                                \
        va_list list;                                                                              \
        va_start(list, flags);                                                                     \
        mode_t mode = flags & (O_CREAT | __O_TMPFILE) ? va_arg(list, mode_t) : 0;                  \
        va_end(list);                                                                              \
        return opened_##name args;                                                                 \
    }                                                                                              \
    static int opened_##name params {                                                              \
        static int(*real) params;                                                                  \
        if (!real) real = real_function(#name);                                                    \
        Call call;                                                                                 \
        begin(&call, OPEN_CLASS(flags), OPEN_CLASS(flags) == CHANGE ? #name : #name "_read", fd,   \
              path, AT_FDCWD, NULL);                                                               \
        if (call.fails) errno = trust.error;                                                       \
        int result = call.fails ? -1 : real args;                                                  \
        end(&call, result == -1);                                                                  \
        return result;                                                                             \
    }
OPENS(open, (const char *path, int flags, mode_t mode), (path, flags, mode),
      (const char *path, int flags, ...), AT_FDCWD, path)
OPENS(open64, (const char *path, int flags, mode_t mode), (path, flags, mode),
      (const char *path, int flags, ...), AT_FDCWD, path)
OPENS(openat, (int fd, const char *path, int flags, mode_t mode), (fd, path, flags, mode),
      (int fd, const char *path, int flags, ...), fd, path)
OPENS(openat64, (int fd, const char *path, int flags, mode_t mode), (fd, path, flags, mode),
      (int fd, const char *path, int flags, ...), fd, path)
ON_PATH(int, creat, (const char *path, mode_t mode), (path, mode), CHANGE, path, -1)
ON_PATH(FILE *, fopen, (const char *path, const char *mode), (path, mode),
        strpbrk(mode, "wa+") ? CHANGE : READ, path, NULL)
ON_PATH(FILE *, fopen64, (const char *path, const char *mode), (path, mode),
        strpbrk(mode, "wa+") ? CHANGE : READ, path, NULL)
ON_PATH(DIR *, opendir, (const char *path), (path), READ, path, NULL)

/* Writing and reading. */
ON_FD(ssize_t, write, (int fd, const void *data, size_t size), (fd, data, size), CHANGE, fd, -1)
ON_FD(ssize_t, pwrite, (int fd, const void *data, size_t size, off_t at), (fd, data, size, at),
      CHANGE, fd, -1)
ON_FD(ssize_t, pwrite64, (int fd, const void *data, size_t size, off64_t at), (fd, data, size, at),
      CHANGE, fd, -1)
ON_FD(ssize_t, writev, (int fd, const struct iovec *parts, int count), (fd, parts, count), CHANGE,
      fd, -1)
ON_FD(size_t, fwrite, (const void *data, size_t size, size_t count, FILE *file),
      (data, size, count, file), CHANGE, fileno(file), 0)
ON_FD(int, fflush, (FILE * file), (file), CHANGE, file ? fileno(file) : -1, EOF)
ON_FD(ssize_t, copy_file_range,
      (int in, off64_t *from, int out, off64_t *to, size_t size, unsigned flags),
      (in, from, out, to, size, flags), CHANGE, out, -1)
ON_FD(ssize_t, sendfile, (int out, int in, off_t *at, size_t size), (out, in, at, size), CHANGE,
      out, -1)
ON_FD(ssize_t, sendfile64, (int out, int in, off64_t *at, size_t size), (out, in, at, size), CHANGE,
      out, -1)
ON_FD(ssize_t, read, (int fd, void *data, size_t size), (fd, data, size), READ, fd, -1)
ON_FD(ssize_t, pread, (int fd, void *data, size_t size, off_t at), (fd, data, size, at), READ, fd,
      -1)
ON_FD(ssize_t, pread64, (int fd, void *data, size_t size, off64_t at), (fd, data, size, at), READ,
      fd, -1)
ON_FD(int, ftruncate, (int fd, off_t size), (fd, size), CHANGE, fd, -1)
ON_FD(int, ftruncate64, (int fd, off64_t size), (fd, size), CHANGE, fd, -1)
ON_FD(int, fsync, (int fd), (fd), CHANGE, fd, -1)
ON_FD(int, fdatasync, (int fd), (fd), CHANGE, fd, -1)
ON_FD(int, syncfs, (int fd), (fd), CHANGE, fd, -1)
ON_FD(int, flock, (int fd, int how), (fd, how), CHANGE, fd, -1)
ON_FD(int, fchmod, (int fd, mode_t mode), (fd, mode), CHANGE, fd, -1)

/* Closing a file that was written: it is closed even if the call reports a failure. */
static int written(int fd) {
    int saved = errno, flags = fcntl(fd, F_GETFL);
    errno = saved;
    return flags != -1 && (flags & O_ACCMODE) != O_RDONLY;
}
#define CLOSES(name, params, args, fd)                                                             \
    int name params {                                                                              \
        static int(*real) params;                                                                  \
        if (!real) real = real_function(#name);                                                    \
        Call call;                                                                                 \
        begin(&call, trust.root[0] && written(fd) ? CHANGE : 0, #name, fd, NULL, AT_FDCWD, NULL);  \
        int result = real args;                                                                    \
        if (call.fails) result = -1, errno = trust.error;                                          \
        end(&call, result == -1);                                                                  \
        return result;                                                                             \
    }
CLOSES(close, (int fd), (fd), fd)
CLOSES(fclose, (FILE * file), (file), fileno(file))

/* Names. */
ON_PATH(int, mkdir, (const char *path, mode_t mode), (path, mode), CHANGE, path, -1)
ON_PATH(int, unlink, (const char *path), (path), CHANGE, path, -1)
ON_PATH(int, rmdir, (const char *path), (path), CHANGE, path, -1)
ON_PATH(int, remove, (const char *path), (path), CHANGE, path, -1)
ON_PATH(int, chmod, (const char *path, mode_t mode), (path, mode), CHANGE, path, -1)
WRAP(int, mkdirat, (int fd, const char *path, mode_t mode), (fd, path, mode), CHANGE, fd, path,
     AT_FDCWD, NULL, -1)
WRAP(int, unlinkat, (int fd, const char *path, int flags), (fd, path, flags), CHANGE, fd, path,
     AT_FDCWD, NULL, -1)
WRAP(int, rename, (const char *from, const char *to), (from, to), CHANGE, AT_FDCWD, from, AT_FDCWD,
     to, -1)
WRAP(int, renameat, (int fd, const char *from, int to_fd, const char *to), (fd, from, to_fd, to),
     CHANGE, fd, from, to_fd, to, -1)
WRAP(int, link, (const char *from, const char *to), (from, to), CHANGE, AT_FDCWD, from, AT_FDCWD,
     to, -1)
WRAP(int, linkat, (int fd, const char *from, int to_fd, const char *to, int flags),
     (fd, from, to_fd, to, flags), CHANGE, fd, from, to_fd, to, -1)
ON_PATH(int, symlink, (const char *target, const char *path), (target, path), CHANGE, path, -1)

/* renameat2, called by name or by number. The log distinguishes an exchange from a rename. */
static int rename_with_flags(int fd, const char *from, int to_fd, const char *to, unsigned flags) {
    static long (*real)(long, ...);
    if (!real) real = real_function("syscall");
    Call call;
    begin(&call, CHANGE, flags & RENAME_EXCHANGE ? "exchange" : "renameat2", fd, from, to_fd, to);
    int denied = trust.no_exchange && flags;
    if (denied || call.fails) errno = call.fails ? trust.error : EINVAL;
    int result = denied || call.fails ? -1 : real(SYS_renameat2, fd, from, to_fd, to, flags);
    end(&call, result == -1);
    return result;
}
int renameat2(int fd, const char *from, int to_fd, const char *to, unsigned flags) {
    return rename_with_flags(fd, from, to_fd, to, flags);
}
long syscall(long number, ...) {
    static long (*real)(long, ...);
    if (!real) real = real_function("syscall");
    long a[6];
    va_list list;
    va_start(list, number);
    for (int i = 0; i < 6; i++) a[i] = va_arg(list, long);
    va_end(list);
    if (number == SYS_renameat2)
        return rename_with_flags(a[0], (char *)a[1], a[2], (char *)a[3], a[4]);
    return real(number, a[0], a[1], a[2], a[3], a[4], a[5]);
}

/* Looking. glibc before 2.33 has only the functions with underscores, which TensorFlow calls. */
ON_PATH(int, access, (const char *path, int mode), (path, mode), LOOK, path, -1)
WRAP(int, faccessat, (int fd, const char *path, int mode, int flags), (fd, path, mode, flags), LOOK,
     fd, path, AT_FDCWD, NULL, -1)
#define STATS(suffix, type)                                                                        \
    ON_PATH(int, stat##suffix, (const char *path, struct type *found), (path, found), LOOK, path,  \
            -1)                                                                                    \
    ON_PATH(int, lstat##suffix, (const char *path, struct type *found), (path, found), LOOK, path, \
            -1)                                                                                    \
    ON_FD(int, fstat##suffix, (int fd, struct type *found), (fd, found), LOOK, fd, -1)             \
    ON_PATH(int, __xstat##suffix, (int version, const char *path, struct type *found),             \
            (version, path, found), LOOK, path, -1)                                                \
    ON_PATH(int, __lxstat##suffix, (int version, const char *path, struct type *found),            \
            (version, path, found), LOOK, path, -1)                                                \
    ON_FD(int, __fxstat##suffix, (int version, int fd, struct type *found), (version, fd, found),  \
          LOOK, fd, -1)                                                                            \
    WRAP(int, fstatat##suffix, (int fd, const char *path, struct type *found, int flags),          \
         (fd, path, found, flags), LOOK, fd, path, AT_FDCWD, NULL, -1)
STATS(, stat)
STATS(64, stat64)
