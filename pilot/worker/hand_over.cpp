#include "pilot/worker/hand_over.hpp"

#include <fcntl.h>
#include <google/protobuf/util/json_util.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>

#include "proto/base/error_wire.hpp"
#include "proto/base/log.hpp"
#include "proto/base/random.hpp"
#include "proto/channel/hand_over.hpp"

namespace flotilla::pilot {
namespace {

constexpr std::size_t line_limit = 256;
constexpr std::size_t visitors_limit = 64;  // connections that have not shown a ticket
constexpr std::size_t counters_bytes = 3 * sizeof(std::uint64_t);

using Descriptor = boost::asio::posix::stream_descriptor;

// As channel::format_take_error, with the reason of the worker's end.
std::string format_worker_error(const Error& error, const v1::ExitReason& exit) {
  auto wire = to_wire(error);
  *wire.mutable_exit() = exit;
  std::string json;
  google::protobuf::util::JsonPrintOptions options;
  options.preserve_proto_field_names = true;
  (void)google::protobuf::util::MessageToJsonString(wire, &json, options);
  return "ERROR " + json + "\n";
}

// Short texts into an empty socket buffer: they fit, or the client is lost anyway.
void tell(int fd, const std::string& text) { (void)::send(fd, text.data(), text.size(), MSG_NOSIGNAL | MSG_DONTWAIT); }

}  // namespace

struct HandOver::Offer {
  explicit Offer(boost::asio::io_context& io) : client(io) {}
  ~Offer() {
    if (counters) munmap(counters, counters_bytes);
  }
  std::string ticket;  // empty once used
  unique_fd worker;
  std::function<void()> on_taken, on_client_gone;
  Descriptor client;  // open while a client holds the channel
  std::uint64_t* counters = nullptr;
  std::optional<v1::ExitReason> over;
};

struct HandOver::Visitor {
  Visitor(boost::asio::io_context& io, unique_fd fd) : descriptor(io, fd.release()) {}
  Descriptor descriptor;
  std::string line;
};

HandOver::~HandOver() = default;

Status HandOver::listen(const std::filesystem::path& socket) {
  return acceptor_.open_at(socket, [this](unique_fd visitor) {
    if (visitors_.size() >= visitors_limit) visitors_.pop_front();
    visitors_.push_back(std::make_shared<Visitor>(io_, std::move(visitor)));
    wait_for_line(visitors_.back());
  });
}

void HandOver::wait_for_line(const std::shared_ptr<Visitor>& visitor) {
  visitor->descriptor.async_wait(Descriptor::wait_read,
                                 [this, weak = std::weak_ptr<Visitor>(visitor)](const boost::system::error_code& error) {
                                   auto here = weak.lock();
                                   if (error || !here) return;
                                   // Byte for byte up to the end of the line: what follows is not ours.
                                   for (;;) {
                                     char byte;
                                     const ssize_t n = recv(here->descriptor.native_handle(), &byte, 1, 0);
                                     if (n < 0 && errno == EINTR) continue;
                                     if (n < 0 && (errno == EAGAIN || errno == EWOULDBLOCK)) {
                                       wait_for_line(here);
                                       return;
                                     }
                                     if (n <= 0 || here->line.size() >= line_limit) {
                                       visitors_.remove(here);
                                       return;
                                     }
                                     if (byte == '\n') break;
                                     here->line.push_back(byte);
                                   }
                                   unique_fd client(here->descriptor.release());
                                   visitors_.remove(here);
                                   on_line(std::move(client), here->line);
                                 });
}

void HandOver::on_line(unique_fd client, const std::string& line) {
  auto refuse = [&](const Error& error) { tell(client.get(), channel::format_take_error(error)); };
  const auto ticket = channel::parse_take_request(line + "\n");
  if (!ticket) {
    refuse(ticket.error());
    return;
  }
  std::shared_ptr<Offer> offer;
  Attempt attempt;
  for (auto& [id, candidate] : offers_)
    if (!candidate->ticket.empty() && equal_secret(candidate->ticket, *ticket)) {
      offer = candidate;
      attempt = id;
    }
  if (!offer) {
    refuse(Error{
        Code::permission_denied, "this ticket opens no worker's channel: it was used already, or its worker is gone", {}, Retry::no, {}});
    return;
  }
  offer->ticket.clear();
  if (offer->over) {
    tell(client.get(), format_worker_error(Error{Code::worker_failed, offer->over->message(), {}, Retry::no, {}}, *offer->over));
    return;
  }
  unique_fd memory(memfd_create("flotilla-counters", MFD_CLOEXEC | MFD_ALLOW_SEALING));
  if (!memory || ftruncate(memory.get(), counters_bytes) != 0 ||
      // Its size is fixed: a client that cut it short would kill us with SIGBUS.
      fcntl(memory.get(), F_ADD_SEALS, F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_SEAL) != 0) {
    refuse(errno_error(Code::resource_exhausted, "make the channel's counters"));
  } else if (void* mapped = mmap(nullptr, counters_bytes, PROT_READ, MAP_SHARED, memory.get(), 0); mapped != MAP_FAILED) {
    offer->counters = static_cast<std::uint64_t*>(mapped);
  }
  if (!memory || !channel::send_fds(client.get(), channel::take_ok, {offer->worker.get(), memory.get()})) {
    auto gone = offer->on_client_gone;
    offer->worker.reset();
    if (gone) gone();
    return;
  }
  offer->worker.reset();  // a duplicate would hide the worker's end from the client
  offer->client.assign(client.release());
  spdlog::info("worker {} was taken by its client", attempt.job.value);
  wait_for_end(offer);
  auto taken = offer->on_taken;
  if (taken) taken();
}

void HandOver::wait_for_end(const std::shared_ptr<Offer>& offer) {
  offer->client.async_wait(Descriptor::wait_read, [this, weak = std::weak_ptr<Offer>(offer)](const boost::system::error_code& error) {
    auto here = weak.lock();
    if (error || !here || !here->client.is_open()) return;
    char byte;
    const ssize_t n = recv(here->client.native_handle(), &byte, 1, 0);
    if (n > 0 || (n < 0 && (errno == EAGAIN || errno == EINTR))) {  // nothing is expected here
      wait_for_end(here);
      return;
    }
    here->client.close();
    auto gone = here->on_client_gone;
    if (gone && !here->over) gone();
  });
}

void HandOver::offer(Attempt attempt, std::string ticket, unique_fd worker, std::function<void()> on_taken,
                     std::function<void()> on_client_gone) {
  auto offer = std::make_shared<Offer>(io_);
  offer->ticket = std::move(ticket);
  offer->worker = std::move(worker);
  offer->on_taken = std::move(on_taken);
  offer->on_client_gone = std::move(on_client_gone);
  offers_[attempt] = std::move(offer);
}

void HandOver::end(Attempt attempt, const v1::ExitReason& reason) {
  auto it = offers_.find(attempt);
  if (it == offers_.end()) return;
  Offer& offer = *it->second;
  offer.over = reason;
  offer.worker.reset();
  if (offer.client.is_open()) {
    tell(offer.client.native_handle(), channel::format_end(reason));
    offer.client.close();
  }
}

void HandOver::forget(Attempt attempt) { offers_.erase(attempt); }

std::optional<ChannelCounts> HandOver::counts(Attempt attempt) const {
  auto it = offers_.find(attempt);
  if (it == offers_.end() || !it->second->counters) return std::nullopt;
  const std::uint64_t* counters = it->second->counters;
  return ChannelCounts{__atomic_load_n(&counters[0], __ATOMIC_RELAXED), __atomic_load_n(&counters[1], __ATOMIC_RELAXED),
                       __atomic_load_n(&counters[2], __ATOMIC_RELAXED)};
}

}  // namespace flotilla::pilot
