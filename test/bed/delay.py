"""A slow stretch of network: joins two interfaces and passes every frame on after a while.

delay.py INTERFACE_1 INTERFACE_2 MILLISECONDS    prints "up"; ends with its stdin
delay.py --offload-off INTERFACE                 frames leave whole: checksum and size

Kernels without netem or NFQUEUE still have packet sockets. Both interfaces must leave checksums and segmentation to
their senders (see `offload_off`), or frames arrive here half made.
"""
import array
import collections
import fcntl
import select
import socket
import struct
import sys
import time

EVERYTHING = 0x0003          # ETH_P_ALL
PACKET_OUTGOING = 4
SIOCETHTOOL = 0x8946
OFFLOADS = (0x17, 0x19, 0x1F, 0x24, 0x2C, 0x22)  # set tx checksums, scatter-gather, TSO, GSO, GRO, UFO


def offload_off(interface):
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        for command in OFFLOADS:
            holder = array.array("B", struct.pack("II", command, 0))
            address, _ = holder.buffer_info()
            request = struct.pack("16sP", interface.encode(), address)
            try:
                fcntl.ioctl(probe, SIOCETHTOOL, request)
            except OSError:
                pass             # a kernel without that offload needs it not turned off


def main():
    names, wait = sys.argv[1:3], float(sys.argv[3]) / 1000
    ends = []
    for name in names:
        offload_off(name)
        end = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(EVERYTHING))
        end.setsockopt(socket.SOL_SOCKET, 33, 64 << 20)   # SO_RCVBUFFORCE
        end.setsockopt(socket.SOL_SOCKET, 32, 64 << 20)   # SO_SNDBUFFORCE
        end.bind((name, EVERYTHING))
        end.setblocking(False)
        ends.append(end)
    queues = (collections.deque(), collections.deque())    # [of end 0, of end 1]: (due, frame)
    print("up", flush=True)
    while True:
        now = time.monotonic()
        due = min((q[0][0] for q in queues if q), default=None)
        ready, _, _ = select.select([*ends, sys.stdin], [], [], None if due is None else max(0, due - now))
        if sys.stdin in ready:
            return
        now = time.monotonic()
        for index, end in enumerate(ends):
            while True:
                try:
                    frame, sender = end.recvfrom(65600)
                except BlockingIOError:
                    break
                except OSError:
                    return
                if sender[2] != PACKET_OUTGOING:
                    queues[1 - index].append((now + wait, frame))
        for end, queue in zip(ends, queues):
            while queue and queue[0][0] <= now:
                try:
                    end.send(queue[0][1])
                except BlockingIOError:
                    break
                except OSError:
                    pass
                queue.popleft()


if __name__ == "__main__":
    if sys.argv[1] == "--offload-off":
        offload_off(sys.argv[2])
    else:
        main()
