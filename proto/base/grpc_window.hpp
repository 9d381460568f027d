// How far a sender may be ahead of its reader on a gRPC stream, the same everywhere.
#pragma once

namespace flotilla {

// A fixed window, enough for 40 MB/s over 100 ms. gRPC's own way to find one sends a ping with each message, and the window's
// updates with it: three writes instead of one.
template <class Set>
void set_window(Set&& set) {
  set("grpc.http2.bdp_probe", 0);
  set("grpc.http2.lookahead_bytes", 4 << 20);
}

}  // namespace flotilla
