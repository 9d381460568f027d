#include "proto/base/error_wire.hpp"

#include "proto/base/text.hpp"

namespace flotilla {

v1::Error to_wire(const Error& error) {
  v1::Error wire;
  wire.set_code(static_cast<v1::ErrorCode>(error.code));
  wire.set_message(error.message);
  wire.set_hint(error.hint);
  wire.set_retry(error.retry == Retry::yes);
  for (const auto& fault : error.faults) wire.add_faults(fault);
  if (!error.exit.empty()) wire.mutable_exit()->ParseFromString(error.exit);
  make_utf8(wire);
  return wire;
}

Error from_wire(const v1::Error& wire) {
  Error error;
  error.code = wire.code() == v1::ERROR_UNSPECIFIED ? Code::internal : static_cast<Code>(wire.code());
  error.message = wire.message();
  error.hint = wire.hint();
  error.retry = wire.retry() ? Retry::yes : Retry::no;
  error.faults.assign(wire.faults().begin(), wire.faults().end());
  if (wire.has_exit()) error.exit = wire.exit().SerializeAsString();
  return error;
}

}  // namespace flotilla
