// Mutual TLS on a connected stream socket, for the data connections of channels. Non-blocking; each stream belongs to one
// thread. The process must ignore SIGPIPE. The key is checked once, in make_context; a context may be shared by threads.
#pragma once

#include <chrono>
#include <memory>
#include <string>
#include <string_view>

#include "proto/base/result.hpp"
#include "proto/base/unique_fd.hpp"
#include "proto/link/link.hpp"

struct ssl_ctx_st;
struct ssl_st;

namespace flotilla::tls {

using ContextPtr = std::shared_ptr<ssl_ctx_st>;
enum class Role { server, client };
// The peer must show a chain to identity.ca that is good for the other role.
Result<ContextPtr> make_context(Role role, const link::TlsIdentity& identity);

enum class Step { done, want_read, want_write, ended, failed };
struct Moved {
  Step step = Step::done;
  std::size_t bytes = 0;  // with done
};

class Stream {
 public:
  // Client: `server_name` is what the server's certificate must say. Server: empty.
  static Result<Stream> make(const ContextPtr& context, Role role, unique_fd fd, std::string_view server_name);
  Stream(Stream&&) noexcept;
  Stream& operator=(Stream&&) noexcept;
  ~Stream();

  int fd() const { return fd_.get(); }
  Step handshake();  // done: the peer is who it must be
  // Blocks (poll) until the handshake is over or the time is.
  Status handshake_within(std::chrono::milliseconds limit);
  Moved read(void* to, std::size_t size);  // ended: the peer has finished its direction
  Moved write(const void* from, std::size_t size);
  Step finish();  // our direction ends; reading goes on
  // read() may have bytes that poll() does not see: read again before waiting.
  bool pending() const { return !drained_; }
  std::string peer_uri() const;                        // in the peer's certificate, empty = none
  const std::string& cause() const { return cause_; }  // of the last `failed`

 private:
  Stream(std::unique_ptr<ssl_st, void (*)(ssl_st*)> ssl, unique_fd fd);
  Step step_of(int result);

  unique_fd fd_;  // closed after ssl_
  std::unique_ptr<ssl_st, void (*)(ssl_st*)> ssl_;
  std::string cause_;
  bool drained_ = true;  // the last read() found nothing more
};

}  // namespace flotilla::tls
