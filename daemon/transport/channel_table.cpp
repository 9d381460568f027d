#include "daemon/transport/channel_table_internal.hpp"

namespace flotilla::daemon {

namespace {

class Table final : public ChannelTableInternal {
 public:
  explicit Table(boost::asio::io_context& io) : io_(io) {}
  ~Table() override {
    for (auto& [number, each] : channels_) each->close();
  }

  void add(std::uint64_t number, unique_fd user) override {
    remove(number);
    UserChannelEvents events;
    events.on_ack = [this, number](std::uint32_t epoch, std::uint64_t received) {
      v1::Frame frame;
      auto* ack = frame.mutable_channel_ack();
      ack->set_channel(number);
      ack->set_epoch(epoch);
      ack->set_received(received);
      if (send_frame) send_frame(number, std::move(frame));
    };
    events.on_user_end = [this, number](std::uint64_t final_offset) {
      v1::Frame frame;
      auto* end = frame.mutable_channel_end();
      end->set_channel(number);
      end->set_final_offset(final_offset);
      if (send_frame) send_frame(number, std::move(frame));
    };
    events.on_user_gone = [this, number] {
      if (on_user_gone) on_user_gone(number);
    };
    events.on_broken = [this, number](std::uint32_t, const std::string& cause) {
      spdlog::debug("channel {}: its connection broke: {}", number, cause);
      if (on_broken) on_broken(number);
    };
    events.on_no_forwarding = [this, number](std::uint32_t epoch, const std::string& ticket) { open_frames(number, epoch, ticket); };
    events.on_failed = [this, number](const Error& error) {
      spdlog::warn("channel {}: {}", number, error.text());
      if (on_failed) on_failed(number, error);
    };
    channels_[number] = std::make_shared<UserChannel>(io_, number, std::move(user), std::move(events));
  }
  void on_ack(const v1::ChannelAck& ack) override {
    if (auto each = find(ack.channel())) each->on_ack(ack.epoch(), ack.received());
  }
  void on_data(const v1::ChannelData& data) override {
    if (auto each = find(data.channel())) each->on_frame(data.epoch(), data.offset(), data.data());
  }
  void on_end(const v1::ChannelEnd& end) override {
    if (auto each = find(end.channel())) each->on_peer_end(end.final_offset());
  }
  // PROTOCOL.md 5.3: the connection's bytes as frames of the link.
  void open_frames(std::uint64_t number, std::uint32_t epoch, const std::string& ticket) override {
    const auto each = find(number);
    if (!each || each->uses_frames()) return;
    (void)each->attach_frames(epoch, ticket, [this, number, epoch](std::uint64_t offset, std::string bytes) {
      v1::Frame frame;
      auto* data = frame.mutable_channel_data();
      data->set_channel(number);
      data->set_epoch(epoch);
      data->set_offset(offset);
      data->set_data(std::move(bytes));
      if (send_frame) send_frame(number, std::move(frame));
    });
  }
  void on_link_renewed(std::uint64_t number) override {
    if (auto each = find(number)) each->detach_frames("the pilot's link was made anew");
  }
  void remove(std::uint64_t number) override {
    const auto found = channels_.find(number);
    if (found == channels_.end()) return;
    found->second->close();
    channels_.erase(found);
  }
  ChannelCounters counters(std::uint64_t number) const override {
    const auto found = channels_.find(number);
    if (found == channels_.end()) return {};
    return {found->second->bytes_from_user(), found->second->bytes_to_user()};
  }
  std::shared_ptr<UserChannel> find(std::uint64_t number) const override {
    const auto found = channels_.find(number);
    return found == channels_.end() ? nullptr : found->second;
  }

 private:
  boost::asio::io_context& io_;
  std::map<std::uint64_t, std::shared_ptr<UserChannel>> channels_;
};

}  // namespace

std::unique_ptr<ChannelTable> make_channel_table(boost::asio::io_context& io) { return std::make_unique<Table>(io); }

}  // namespace flotilla::daemon
