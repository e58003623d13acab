/* SPDX-License-Identifier: MIT
 *
 * Reports to whoever watches the boot from outside, over the second serial port: the result channel of
 * pyinit-qemu. For PID 1 or any other program, from its first line on; C99 and any libc.
 *
 *     #include "report.h"
 *
 *     pyinit_report("hello", NULL);
 *     pyinit_report("result", "status", "0", "text", "any text", NULL);
 *     pyinit_report("done", NULL);
 *
 * The first argument is the kind of the frame; keys and values follow, and NULL. "done" is the last frame,
 * and without it the boot has not passed; "failure" ends it at once, and the value of "code" says why.
 * Returns 0, or -1 if the port cannot be written to or the frame has more than 8000 bytes. Include it in
 * one source file of a program: the frames are counted there.
 */
#ifndef PYINIT_REPORT_H
#define PYINIT_REPORT_H

#include <errno.h>
#include <fcntl.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#ifndef PYINIT_REPORT_DEVICE
#define PYINIT_REPORT_DEVICE "/dev/ttyS1"
#endif

static int pyinit_report(const char *kind, ...)
{
    static unsigned number;
    char text[8000], line[8064];
    size_t length, size, done = 0;
    unsigned long a = 1, b = 0;
    const char *key, *value;
    ssize_t written;
    va_list rest;
    int fd;

    length = (size_t)snprintf(text, sizeof text, "%u %s", ++number, kind);
    va_start(rest, kind);
    while (length < sizeof text && (key = va_arg(rest, const char *)) != NULL) {
        if ((value = va_arg(rest, const char *)) == NULL)
            break;
        length += (size_t)snprintf(text + length, sizeof text - length, " %s=", key);
        for (; *value && length < sizeof text; value++) {
            const char *form = *value > ' ' && *value <= '~' && !strchr("%\\", *value) ? "%c" : "%%%02X";
            length += (size_t)snprintf(text + length, sizeof text - length, form, (unsigned char)*value);
        }
    }
    va_end(rest);
    if (length >= sizeof text)
        return -1;
    for (size = 0; size < length; size++) { /* Adler-32 (RFC 1950) */
        a = (a + (unsigned char)text[size]) % 65521;
        b = (b + a) % 65521;
    }
    /* The empty line ends what a firmware may have left on the line. */
    size = (size_t)snprintf(line, sizeof line, "\npyinit %zu %lu %s\n", length, b << 16 | a, text);

    fd = open(PYINIT_REPORT_DEVICE, O_WRONLY | O_NOCTTY);
    if (fd < 0 && errno == ENOENT) { /* Not every system has made its device nodes by then. */
        mkdir("/dev", 0755);
        mknod(PYINIT_REPORT_DEVICE, S_IFCHR | 0600, 4 << 8 | 65);
        fd = open(PYINIT_REPORT_DEVICE, O_WRONLY | O_NOCTTY);
    }
    if (fd < 0)
        return -1;
    while (isatty(fd) && done < size) {
        written = write(fd, line + done, size - done);
        if (written < 0 && errno != EINTR)
            break;
        if (written > 0)
            done += (size_t)written;
    }
    close(fd);
    return done == size ? 0 : -1;
}

#endif
