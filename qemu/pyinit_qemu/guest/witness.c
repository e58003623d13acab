/* SPDX-License-Identifier: MIT
 *
 * The smallest real init for a test root: reports its process id, its arguments and its mounts, and powers
 * the machine off. It is the proof that an initramfs needs nothing of the root but an init.
 *
 *     gcc -static -o root/sbin/init witness.c
 */
#include "report.h"

#include <sys/reboot.h>

static void report_mounts(void)
{
    char line[4096], *target, *options;
    FILE *mounts = fopen("/proc/self/mounts", "r");

    while (mounts && fgets(line, sizeof line, mounts)) {
        line[strcspn(line, "\n")] = '\0';
        /* proc_pid_mounts(5): source, target, type, options, 0, 0; spaces are written as \040. */
        if ((target = strchr(line, ' ')) && (options = strchr(target + 1, ' '))) {
            *target = *options = '\0';
            pyinit_report("mount", "source", line, "target", target + 1, "rest", options + 1, NULL);
        }
    }
    if (mounts)
        fclose(mounts);
}

int main(int count, char **words)
{
    char number[24];

    snprintf(number, sizeof number, "%d", (int)getpid());
    pyinit_report("init", "pid", number, NULL);
    for (int word = 0; word < count; word++) {
        snprintf(number, sizeof number, "%d", word);
        pyinit_report("argument", "number", number, "text", words[word], NULL);
    }
    report_mounts();
    pyinit_report("done", NULL);
    sync();
    if (getpid() != 1) /* tried by hand */
        return 0;
    return reboot(RB_POWER_OFF);
}
