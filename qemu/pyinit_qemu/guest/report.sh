# SPDX-License-Identifier: MIT
# Reports to whoever watches the boot from outside, over the second serial port: the result channel of
# pyinit-qemu. For any POSIX shell, from the first line of PID 1 on; only built-ins are needed.
#
#     . /report.sh
#     pyinit_report hello
#     pyinit_report result status=0 "text=any text, of any length"
#     pyinit_report done
#
# The first word is the kind of the frame. `done` is the last frame, and without it the boot has not passed;
# `failure` ends it at once, and code= says why. If the port cannot be written to, nothing happens. Give
# another device as pyinit_report_device.

pyinit_report_device=${pyinit_report_device:-/dev/ttyS1}
_pyinit_number=0
# All of ASCII that can be printed, from 32 on: the place of a character in it is its code less 32.
_pyinit_ascii=' !"#$%&'\''()*+,-./0123456789:;<=>?@ABCDEFGHIJKLMNOPQRSTUVWXYZ[\]^_`abcdefghijklmnopqrstuvwxyz{|}~'
_pyinit_newline='
'

pyinit_report() {
    # Not every system has made its device nodes by then.
    [ -c "$pyinit_report_device" ] || mknod "$pyinit_report_device" c 4 65 2>/dev/null || :
    [ -c "$pyinit_report_device" ] || return 0
    # Bytes are counted, not characters.
    _pyinit_locale=${LC_ALL-unset}
    LC_ALL=C
    _pyinit_number=$((_pyinit_number + 1))
    _pyinit_text=$_pyinit_number
    for _pyinit_rest in "$@"; do
        _pyinit_text="$_pyinit_text "
        while [ -n "$_pyinit_rest" ]; do
            _pyinit_next
            case $_pyinit_char in
                ' ') _pyinit_char=%20 ;;
                '%') _pyinit_char=%25 ;;
                \\) _pyinit_char=%5C ;;
                "$_pyinit_newline") _pyinit_char=%0A ;;
                *)
                    case $_pyinit_ascii in
                        *"$_pyinit_char"*) ;;
                        *) _pyinit_char=$(printf %%%02X "'$_pyinit_char" 2>/dev/null) || _pyinit_char= ;;
                    esac
                    ;;
            esac
            case $_pyinit_char in
                ? | %??) _pyinit_text=$_pyinit_text$_pyinit_char ;;
                *) _pyinit_text=$_pyinit_text%3F ;;
            esac
        done
    done
    # Adler-32 (RFC 1950).
    _pyinit_rest=$_pyinit_text _pyinit_a=1 _pyinit_b=0
    while [ -n "$_pyinit_rest" ]; do
        _pyinit_next
        _pyinit_before=${_pyinit_ascii%%"$_pyinit_char"*}
        _pyinit_a=$(((_pyinit_a + ${#_pyinit_before} + 32) % 65521))
        _pyinit_b=$(((_pyinit_b + _pyinit_a) % 65521))
    done
    case $_pyinit_locale in
        unset) unset LC_ALL ;;
        *) LC_ALL=$_pyinit_locale ;;
    esac
    # The empty line ends what a firmware may have left on the line.
    {
        echo "${_pyinit_newline}pyinit ${#_pyinit_text} $((_pyinit_b * 65536 + _pyinit_a)) $_pyinit_text"
    } 2>/dev/null >"$pyinit_report_device" || :
}

# Takes the first character of _pyinit_rest as _pyinit_char.
_pyinit_next() {
    _pyinit_char=${_pyinit_rest#?}
    _pyinit_char=${_pyinit_rest%"$_pyinit_char"}
    _pyinit_rest=${_pyinit_rest#?}
}
