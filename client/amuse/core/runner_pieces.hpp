// What job_runner.py sends back through a job's standard output, taken apart. Pure.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>

namespace flotilla::amuse {

// Told of each piece, in order. What the pieces say comes from another machine: paths are relative and stay below their folder.
class PieceSink {
 public:
  virtual ~PieceSink() = default;
  virtual void on_output(std::string_view bytes) = 0;
  virtual void on_value(std::string_view bytes) = 0;
  virtual void on_file_begin(const std::string& path, unsigned mode) = 0;
  virtual void on_file_bytes(std::string_view bytes) = 0;
  virtual void on_file_end() = 0;
};

class RunnerPieces {
 public:
  explicit RunnerPieces(PieceSink& sink) : sink_(sink) {}
  // The next bytes of the stream, in pieces of any size. MessageError for what no runner sends; nothing is taken after that.
  void take(std::string_view bytes);
  bool whole() const { return whole_; }  // all has come

 private:
  void piece(char kind, std::string_view bytes);

  PieceSink& sink_;
  std::string held_;  // of a piece that is not whole
  bool in_file_ = false, whole_ = false, broken_ = false;
};

// A relative path of normal form without "..".
bool stays_inside(std::string_view path);

}  // namespace flotilla::amuse
