/* LD_PRELOAD: fsync and fdatasync fail with EIO on files that a control file names, as a disk does
 * that can not write its cache out. The control file (EIO_CONTROL) holds "always TEXT" or "once
 * TEXT": syncs of files whose path contains TEXT fail, in every process that has it; "once" fails
 * one sync and removes the file. Without it every sync is the system's. What was written before a
 * sync that fails stays readable, as on Linux. */
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static int real(const char *name, int fd)
{
    int (*fn)(int);
    void *symbol = dlsym(RTLD_NEXT, name);
    memcpy(&fn, &symbol, sizeof fn);
    return fn(fd);
}

/* The control file's text, without its end of line; false when there is none. */
static int control_read(const char *path, char *out, size_t size)
{
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    if (fd < 0) {
        return 0;
    }
    ssize_t n = read(fd, out, size - 1);
    (void)close(fd);
    out[n > 0 ? n : 0] = '\0';
    out[strcspn(out, "\n")] = '\0';
    return n > 0;
}

static int fails(int fd)
{
    const char *control = getenv("EIO_CONTROL");
    char text[512];
    char link[64];
    char path[4096];
    if (control == NULL || !control_read(control, text, sizeof text)) {
        return 0;
    }
    char *what = strchr(text, ' ');
    if (what == NULL) {
        return 0;
    }
    *what++ = '\0';
    (void)snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
    ssize_t n = readlink(link, path, sizeof path - 1);
    path[n > 0 ? n : 0] = '\0';
    if (strstr(path, what) == NULL) {
        return 0;
    }
    return strcmp(text, "once") != 0 || unlink(control) == 0;
}

int fsync(int fd)
{
    if (fails(fd)) {
        errno = EIO;
        return -1;
    }
    return real("fsync", fd);
}

int fdatasync(int fd)
{
    if (fails(fd)) {
        errno = EIO;
        return -1;
    }
    return real("fdatasync", fd);
}
