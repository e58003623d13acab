"""A FIDO2 device for tests, made of a process: CTAP 2.0 with hmac-secret and PIN, by /dev/uhid.

Client to Authenticator Protocol 2.1 (https://fidoalliance.org/specs/, PIN protocol 1),
Documentation/hid/uhid.rst.
Word of the command line: ``test.key=PIN``. It signs nothing, and is touched after three times of waiting.
"""

import os
import socket
import struct

_DESCRIPTOR = bytes.fromhex("06d0f10901a1010920150026ff007508954081020921150026ff00750895409102c0")
_CREATE2, _OUTPUT, _INPUT2 = 11, 6, 12
_INIT, _CBOR, _KEEPALIVE, _ERROR = 0x86, 0x90, 0xBB, 0xBF
_EVENT = 4380
_PIN_INVALID, _PIN_REQUIRED, _NO_CREDENTIALS = b"\x31", b"\x36", b"\x2e"

_P = 0xFFFFFFFF00000001000000000000000000000000FFFFFFFFFFFFFFFFFFFFFFFF
_G = (
    0x6B17D1F2E12C4247F8BCE6E563A440F277037D812DEB33A0F4A13945D898C296,
    0x4FE342E2FE1A7F9B8EE7EB4A7C0F9E162BCE33576B315ECECBB6406837BF51F5,
)
_PRIVATE = 0x1234567890ABCDEF1234567890ABCDEF1234567890ABCDEF1234567890ABCDEF
_TOKEN = b"t" * 16
_CREDENTIAL = b"the credential"
_SECRET = b"the secret of the credential....."


def pre_trigger(moment):
    word = moment.command_line.last("test.key")
    if word is not None:
        moment.run("/sbin/modprobe", "uhid")
        if os.fork() == 0:
            try:
                _serve((word.value or "").encode())
            except BaseException as error:
                with open("/dev/kmsg", "w") as log:
                    log.write(f"<3>security key: {error!r}")
            os._exit(1)


def _serve(pin):
    device = os.open("/dev/uhid", os.O_RDWR)
    head = struct.pack("<I128s64s64sHHIIII", _CREATE2, b"key", b"", b"", len(_DESCRIPTOR), 3, 0x1209, 1, 0, 0)
    os.write(device, head + _DESCRIPTOR.ljust(4096, b"\0"))
    message, size, command, channel = b"", 0, 0, b""

    def answer(command, data):
        _send(device, channel, command, data)

    while True:
        event = os.read(device, _EVENT)
        if struct.unpack_from("<I", event)[0] != _OUTPUT:
            continue
        length = struct.unpack_from("<H", event, 4 + 4096)[0]
        packet = event[4 : 4 + length][-64:]
        if packet[4] & 0x80:
            channel, command, size = packet[:4], packet[4], struct.unpack(">H", packet[5:7])[0]
            message = packet[7:]
        else:
            message += packet[5:]
        if len(message) < size:
            continue
        if command == _INIT:
            answer(_INIT, message[:8] + b"\0\0\0\1" + bytes((2, 1, 0, 0, 0x04 | 0x08)))
        elif command == _CBOR:
            status, reply, touch = _handle(message[0], _decode(message[1:size])[0] if size > 1 else {}, pin)
            for _ in range(3 if touch else 0):
                answer(_KEEPALIVE, b"\2")
            answer(_CBOR, status + (_encode(reply) if reply is not None else b""))
        else:
            answer(_ERROR, b"\1")


def _send(device, channel, command, data):
    packets = [channel + bytes((command,)) + struct.pack(">H", len(data)) + data[:57]]
    packets += [channel + bytes((n,)) + data[at : at + 59] for n, at in enumerate(range(57, len(data), 59))]
    for packet in packets:
        os.write(device, struct.pack("<IH", _INPUT2, 64) + packet.ljust(64, b"\0"))


def _handle(command, request, pin):
    """Status, reply (or None), and whether a touch is waited for."""
    if command == 4:  # authenticatorGetInfo
        options = {"rk": False, "up": True, "clientPin": bool(pin)}
        return b"\0", {1: ["FIDO_2_0"], 2: ["hmac-secret"], 3: bytes(16), 4: options, 6: [1]}, False
    if command == 6:  # authenticatorClientPIN
        if request[2] == 1:
            return b"\0", {3: 8}, False
        if request[2] == 2:
            x, y = _multiply(_PRIVATE, _G)
            return (
                b"\0",
                {1: {1: 2, 3: -25, -1: 1, -2: x.to_bytes(32, "big"), -3: y.to_bytes(32, "big")}},
                False,
            )
        shared = _shared(request[3])
        if _aes(shared, request[6], decrypt=True) != _sha256(pin)[:16]:
            return _PIN_INVALID, None, False
        return b"\0", {2: _aes(shared, _TOKEN)}, False
    if command != 2:
        return b"\1", None, False
    # authenticatorGetAssertion
    if all(item["id"] != _CREDENTIAL for item in request.get(3, [])):
        return _NO_CREDENTIALS, None, False
    touch = request.get(5, {}).get("up", True)
    data, extensions = _sha256(request[1].encode()), b""
    flags = 1 if touch else 0
    if 6 in request:
        if request[6] != _hmac(_TOKEN, request[2])[:16]:
            return _PIN_INVALID, None, False
        flags |= 4
    if "hmac-secret" in request.get(4, {}):
        wanted = request[4]["hmac-secret"]
        shared = _shared(wanted[1])
        salt = _aes(shared, wanted[2], decrypt=True)
        flags |= 0x80
        extensions = _encode({"hmac-secret": _aes(shared, _hmac(_SECRET, salt))})
    data += bytes((flags,)) + bytes(4) + extensions
    return b"\0", {1: {"id": _CREDENTIAL, "type": "public-key"}, 2: data, 3: b"not signed"}, touch


def _shared(key):
    point = int.from_bytes(key[-2], "big"), int.from_bytes(key[-3], "big")
    return _sha256(_multiply(_PRIVATE, point)[0].to_bytes(32, "big"))


def _multiply(number, point):
    result = None
    for bit in bin(number)[2:]:
        result = _add(result, result)
        if bit == "1":
            result = _add(result, point)
    return result


def _add(one, other):
    if one is None or other is None:
        return one or other
    if one == other:
        slope = (3 * one[0] * one[0] - 3) * pow(2 * one[1], -1, _P)
    else:
        slope = (other[1] - one[1]) * pow(other[0] - one[0], -1, _P)
    x = (slope * slope - one[0] - other[0]) % _P
    return x, (slope * (one[0] - x) - one[1]) % _P


def _kernel(kind, name, key):
    algorithm = socket.socket(socket.AF_ALG, socket.SOCK_SEQPACKET)
    algorithm.bind((kind, name))
    if key:
        algorithm.setsockopt(socket.SOL_ALG, socket.ALG_SET_KEY, key)
    return algorithm.accept()[0]


def _aes(key, data, decrypt=False):
    with _kernel("skcipher", "cbc(aes)", key) as cipher:
        operation = socket.ALG_OP_DECRYPT if decrypt else socket.ALG_OP_ENCRYPT
        cipher.sendmsg_afalg([data], op=operation, iv=bytes(16))
        return cipher.recv(len(data))


def _sha256(data):
    with _kernel("hash", "sha256", b"") as digest:
        digest.sendall(data)
        return digest.recv(32)


def _hmac(key, data):
    inner, outer = (bytes(byte ^ pad for byte in key.ljust(64, b"\0")) for pad in (0x36, 0x5C))
    return _sha256(outer + _sha256(inner + data))


def _encode(value):
    if value is True or value is False:
        return b"\xf5" if value else b"\xf4"
    if isinstance(value, int):
        return _head(0, value) if value >= 0 else _head(1, -1 - value)
    if isinstance(value, bytes):
        return _head(2, len(value)) + value
    if isinstance(value, str):
        return _head(3, len(value.encode())) + value.encode()
    if isinstance(value, list):
        return _head(4, len(value)) + b"".join(map(_encode, value))
    return _head(5, len(value)) + b"".join(_encode(key) + _encode(item) for key, item in value.items())


def _head(kind, number):
    if number < 24:
        return bytes((kind << 5 | number,))
    return (
        bytes((kind << 5 | 24, number))
        if number < 256
        else bytes((kind << 5 | 25,)) + number.to_bytes(2, "big")
    )


def _decode(data):
    """The first value, and what follows it."""
    kind, number, rest = data[0] >> 5, data[0] & 31, data[1:]
    if number >= 24 and kind != 7:
        size = 1 << number - 24
        number, rest = int.from_bytes(rest[:size], "big"), rest[size:]
    if kind in (0, 1):
        return (number if kind == 0 else -1 - number), rest
    if kind == 2:
        return rest[:number], rest[number:]
    if kind == 3:
        return rest[:number].decode(), rest[number:]
    if kind == 7:
        return number == 21, rest
    items = []
    for _ in range(number * (2 if kind == 5 else 1)):
        item, rest = _decode(rest)
        items.append(item)
    return (dict(zip(items[::2], items[1::2], strict=True)) if kind == 5 else items), rest
