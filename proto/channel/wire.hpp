// What lies under a channel's end: a byte stream that may be a socket or TLS on one. Used by one thread.
#pragma once

#include <poll.h>
#include <sys/uio.h>

#include <cstddef>
#include <memory>
#include <string>

#include "proto/base/unique_fd.hpp"

namespace flotilla::channel {

class Wire {
 public:
  virtual ~Wire() = default;
  virtual int fd() const = 0;
  // > 0 bytes, 0 = end of stream, -1 with errno: EAGAIN = wait for the events that wait_for_read/write name.
  virtual long read(void* to, std::size_t size) = 0;
  // >= 0 bytes taken, -1 with errno.
  virtual long write(const iovec* pieces, int count) = 0;
  // Bytes are held that poll() does not see.
  virtual bool pending() const { return false; }
  virtual short wait_for_read() const { return POLLIN; }
  virtual short wait_for_write() const { return POLLOUT; }
  // Why the last call failed, where errno does not say it.
  virtual std::string failure() const { return {}; }
};

// A connected stream socket; TCP_NODELAY is set where it is TCP. The socket's own flags are not changed.
std::unique_ptr<Wire> make_socket_wire(unique_fd fd);

// No Nagle on TCP sockets; nothing on others.
void set_no_delay(int fd);

}  // namespace flotilla::channel
